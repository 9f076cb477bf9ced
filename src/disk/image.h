/* SPDX-License-Identifier: Apache-2.0
 *
 * image: the user's bytes: a raw sparse file or a block device. Hides what differs between the two (size,
 * holes, zeroing) and between buffered and direct I/O. Knows nothing of generations.
 */
#pragma once

#include "base/err.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct image {
    int fd;        /* buffered */
    int direct_fd; /* the same with O_DIRECT, or -1; takes the aligned requests */
    bool block_device;
    uint32_t sector; /* zeroing on a block device must be aligned to it */
    uint64_t size;
    atomic_int sync_error; /* see image_sync */
};

#define IMAGE_NONE ((struct image){.fd = -1, .direct_fd = -1})

/* `path` may be a symbolic link to a block device. A block device opened for writing is opened exclusively:
 * one that is mounted is -EBUSY. */
int image_open(const char *path, bool read_only, bool direct, struct image *ret, struct err *err);
/* IMAGE_NONE and a closed image are fine. */
void image_done(struct image *image);

/* Whole or -errno. Ranges are the caller's duty. */
int image_read(const struct image *image, void *data, size_t size, uint64_t offset);
int image_write(const struct image *image, const void *data, size_t size, uint64_t offset);
/* Frees the range's space, reads zeroes afterwards (written ones where there are no holes; -ENOTSUP instead
 * when `fast`). */
int image_punch(const struct image *image, uint64_t size, uint64_t offset, bool fast);
/* Like image_punch, but the range keeps (or gets) its space. */
int image_zero(const struct image *image, uint64_t size, uint64_t offset, bool fast);
/* Everything written before is durable afterwards. An error is final: the kernel drops the pages that it
 * could not write, so that a second fdatasync would succeed without them (PostgreSQL's "fsyncgate", 2018);
 * every later call returns it again. */
int image_sync(struct image *image);

/* Where the next data begins at or after `offset`; the image's size when there is none. */
uint64_t image_next_data(const struct image *image, uint64_t offset);
/* Where the data at `offset` ends. */
uint64_t image_next_hole(const struct image *image, uint64_t offset);
