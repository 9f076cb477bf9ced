/* SPDX-License-Identifier: Apache-2.0
 *
 * image: base images. An image is STATE/images/HASH/{image.raw,info.json}, HASH being the SHA-256 of all its
 * raw bytes, holes included: two hosts that hold the same bytes hold the same image, whatever they call it. A
 * new one is made in STATE/images/tmp and then renamed, so it is there whole or not at all.
 *
 * Threads: any. The registry has a row for each image; at start both are brought together.
 */
#pragma once

#include "base/err.h"
#include "host/host.h"

#include <jansson.h>
#include <limits.h>

/* Makes the folders; removes what unfinished work left; adds rows for images without one and drops rows
 * without image. */
int images_open(struct host *host, struct err *err);

/* By name or hash: the row as the API shows it. -ENOENT with a hint. */
int image_find(struct host *host, const char *name_or_hash, json_t **ret, struct err *err);
/* STATE/images/HASH/image.raw */
int image_path(const struct host *host, const char *hash, char ret[PATH_MAX], struct err *err);

/* Begins to add the file behind `fd` (consumed) under `name`: an operation. -EEXIST when the name is taken.
 */
int image_add(struct host *host, const char *name, int fd, struct id *ret_operation, struct err *err);
/* -EBUSY while a VM was made from it, unless `force`. */
int image_remove(struct host *host, const char *name_or_hash, bool force, struct err *err);
