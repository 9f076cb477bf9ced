/* SPDX-License-Identifier: Apache-2.0
 *
 * missing: which blocks of a split disk (split.h) have their newest data still on another host.
 *
 *   IMAGE.missing:  4096 bytes  struct missing_header_v1, then zeroes
 *                   the durable bits: one per block, bit n is bit n % 8 of byte n / 8, in whole pages
 *                   the live bits: the same
 *
 * 1 = missing. A bit only ever goes from 1 to 0, in both. The live bits, mapped shared, are the truth while
 * this boot lasts: one is cleared once the block's data is in the image, and a killed process takes neither
 * away. After a power cut the durable ones are: one is cleared there only once the block's data and number
 * are durable. So these may say "missing" too often, which costs a second fetch, but never too rarely.
 *
 * Where nothing is missing the file has a hole. No bit is ever set again, so a store into the mapping never
 * meets a hole: it cannot find the file system full.
 */
#pragma once

#include "base/err.h"
#include "base/id.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define MISSING_HEADER_SIZE 4096U
#define MISSING_STRIPES 64U

struct missing_header {
    struct id map;       /* the map beside it has this id */
    struct id boot;      /* kernel whose page cache has the live bits; zero: none */
    struct id handover;  /* the hand-over that the data belongs to, */
    uint32_t generation; /* and what it sealed */
    uint64_t size;       /* of the disk, bytes */
};

void missing_header_encode(const struct missing_header *header, uint8_t ret[MISSING_HEADER_SIZE]);
/* Pure; the bytes may be anything. */
int missing_header_decode(const void *bytes, size_t size, struct missing_header *ret, struct err *err);

struct missing {
    int fd;
    struct missing_header header; /* as it is on disk; its boot is changed under the disk's control lock */
    uint64_t blocks;
    size_t pages; /* of bits, durable or live */
    void *mapping;
    size_t mapped;
    _Atomic uint64_t *live;    /* the bits as the file has them: little-endian */
    _Atomic uint64_t *changed; /* one bit per page of live bits that differs from the durable ones */
    atomic_ullong count;       /* live bits that are set */
    atomic_int sync_error;     /* final, as in image_sync */
    struct missing *former;    /* of an earlier hand-over: whoever still looks at it may; freed at the end */

    /* One thread at a time carries live bits over to the durable ones; held across that I/O, so that nobody
     * calls durable what another is still writing. */
    pthread_mutex_t settling;
    /* By extent of SPLIT_LOCK_BLOCKS: who changes blocks that are missing holds its stripe. Held across a
     * write to the image, for the write and the clearing of its bits must be one. Innermost; one at a time.
     */
    pthread_mutex_t stripes[MISSING_STRIPES];
};

/* Makes the file durably in place of one that may be there. The missing blocks are those of the set bits of
 * `picture`, each of which stands for `extent` blocks (a multiple of 256). */
int missing_create(const char *path, const struct missing_header *header, const uint8_t *picture,
                   uint64_t extent, struct err *err);
/* -ENOENT, or -EBADMSG when it is damaged. On another boot than the header's the durable bits become the live
 * ones. Read-only, the file stays as it is. */
int missing_open(const char *path, bool read_only, const struct id *boot, struct missing **ret,
                 struct err *err);
void missing_free(struct missing *missing);

/* The first missing block in [from, end), or `end`. */
uint64_t missing_next(const struct missing *missing, uint64_t from, uint64_t end);
/* The first block in [from, end) that is not missing, or `end`. */
uint64_t missing_next_here(const struct missing *missing, uint64_t from, uint64_t end);
/* Clears live bits; returns how many were set. */
uint64_t missing_clear(struct missing *missing, uint64_t from, uint64_t end);

/* Carrying over, with `settling` held: take a picture of what has changed; make the disk's image and map
 * durable; put the picture into the durable bits. *ret is NULL when nothing has changed, else it is to be
 * given to missing_put, or to missing_put_back when something failed between. */
struct missing_picture;
int missing_take(struct missing *missing, struct missing_picture **ret);
int missing_put(struct missing *missing, struct missing_picture *picture);
void missing_put_back(struct missing *missing, struct missing_picture *picture);
bool missing_has_changed(const struct missing *missing);

/* After a failed sync of image, map or this file: from now on not even this boot may trust its page cache. As
 * durable as the disk still allows. */
void missing_distrust(struct missing *missing);
