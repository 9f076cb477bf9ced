/* SPDX-License-Identifier: Apache-2.0
 *
 * file: whole reads and writes, and the one way in which Orai replaces a small file durably.
 */
#pragma once

#include "base/err.h"

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* Exactly `size` bytes or an error; a short file or closed peer is -EPIPE. They retry EINTR. */
int file_read_full(int fd, void *data, size_t size);
int file_write_full(int fd, const void *data, size_t size);
int file_pread_full(int fd, void *data, size_t size, uint64_t offset);
int file_pwrite_full(int fd, const void *data, size_t size, uint64_t offset);

/* Closes all descriptors but those, which are ascending. System calls only: for a child of fork(2) whose
 * parent has threads. */
void file_close_others(const int *kept, size_t count);

/* Replaces `path` so that after a power cut it is wholly the old or wholly the new one: temporary file beside
 * it, fsync, rename, fsync of the folder. */
int file_replace(const char *path, const void *data, size_t size, mode_t mode, struct err *err);
/* Reads a file of at most `limit` bytes; *ret_data is malloc'ed, with a NUL after it. -ENOENT if missing. */
int file_load(const char *path, size_t limit, void **ret_data, size_t *ret_size, struct err *err);
/* fsync of the folder that holds `path`: makes a create, rename or unlink durable. */
int file_sync_parent(const char *path, struct err *err);
/* mkdir -p. */
int file_mkdirs(const char *path, mode_t mode, struct err *err);
/* rm -r; a missing path is fine. Never follows links, never leaves the file system. */
int file_remove_tree(const char *path, struct err *err);
