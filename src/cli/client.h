/* SPDX-License-Identifier: Apache-2.0
 *
 * client: HTTP with JSON to oraid's unix socket, through libcurl. One request at a time; nothing is retried:
 * a request may have been carried out although its answer was lost, and only a person or the verb knows what
 * then.
 */
#pragma once

#include "base/err.h"

#include <jansson.h>
#include <stdint.h>

#define CLIENT_DEFAULT_SOCKET "/run/orai/api.sock"

struct client;

/* Does not connect yet. `socket` is copied. */
int client_new(const char *socket, struct client **ret, struct err *err);
void client_free(struct client *client);
/* How long an answer may take from here on; two minutes unless set: oraid answers at once, except where it is
 * asked to wait for a guest. */
void client_set_patience(struct client *client, uint64_t msec);

/* `body` may be NULL. An answer of 400 and above is an error, with the text that oraid gave. *ret_status is
 * always set: the HTTP status, or 0 when there was no answer. `ret` may be NULL; it becomes JSON null for an
 * empty answer. */
int client_call(struct client *client, const char *method, const char *path, const json_t *body,
                long *ret_status, json_t **ret, struct err *err);

/* GET of an answer that does not end: each line's JSON object is given to `on_line`, which returns 0 or an
 * error that ends the stream. 0 when oraid ended it. */
typedef int client_line_fn(void *arg, const json_t *object, struct err *err);
int client_stream(struct client *client, const char *path, client_line_fn *on_line, void *arg,
                  long *ret_status, struct err *err);
