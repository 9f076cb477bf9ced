/* SPDX-License-Identifier: Apache-2.0
 *
 * json: reading members of a JSON object with clear errors, on top of jansson. `what` names the document in
 * the error's text ("vm.json", "the peer's answer"). Optional members leave *ret untouched when missing.
 */
#pragma once

#include "base/err.h"
#include "base/id.h"

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

/* Limits on foreign JSON: size, and depth (jansson's own limit of 2048 is lowered by a scan). */
#define JSON_MAX_SIZE (4U << 20)

int json_parse(const char *text, size_t size, const char *what, json_t **ret, struct err *err);
/* File of at most JSON_MAX_SIZE bytes; errors carry the line. */
int json_read_file(const char *path, json_t **ret, struct err *err);
/* Durably (file_replace), indented, keys in the order they were set, with a final newline. */
int json_write_file(const char *path, const json_t *json, mode_t mode, struct err *err);

/* *ret points into `object`. */
int json_get_string(const json_t *object, const char *key, const char *what, const char **ret,
                    struct err *err);
int json_get_u64(const json_t *object, const char *key, const char *what, uint64_t *ret, struct err *err);
int json_get_id(const json_t *object, const char *key, const char *what, struct id *ret, struct err *err);
int json_get_object(const json_t *object, const char *key, const char *what, json_t **ret, struct err *err);
int json_get_array(const json_t *object, const char *key, const char *what, json_t **ret, struct err *err);

/* For members that may be missing or of another type: then the given default. */
const char *json_str(const json_t *object, const char *key, const char *otherwise);
uint64_t json_u64(const json_t *object, const char *key, uint64_t otherwise);
bool json_bool(const json_t *object, const char *key, bool otherwise);
double json_double(const json_t *object, const char *key, double otherwise);

/* Fails if `object` has a key that is not among the NULL-terminated `allowed` (typing errors in config
 * files). */
int json_only_keys(const json_t *object, const char *what, const char *const *allowed, struct err *err);
