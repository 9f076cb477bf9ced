/* SPDX-License-Identifier: Apache-2.0
 *
 * genmap: the generation map: for each block the generation of its last write, 0 = never written.
 *
 *   IMAGE.map:  4096 bytes  struct genmap_header_v1, then zeroes
 *               u32[blocks] the numbers, little-endian, sparse: where nothing was written the file has a hole
 *
 * The numbers are mapped shared; a number only ever grows. A page of the file (1024 numbers, 4 MiB of disk)
 * gets its disk space before its first number is stored, because a store into a hole of a full file system
 * would be a SIGBUS instead of an error.
 */
#pragma once

#include "base/err.h"
#include "base/id.h"
#include "disk/disk.h"

#include <pthread.h>
#include <stdatomic.h>

#define GENMAP_HEADER_SIZE 4096U

/* What the header says. */
struct genmap_header {
    struct id map;    /* random, of this file; the intent record refers to it */
    struct id disk;   /* the lineage's disk id must be this one, */
    struct id former; /* or this one: the disk id is being changed */
    uint64_t size;    /* of the disk, bytes */
    uint32_t current; /* no number above it was ever stored */
};

void genmap_header_encode(const struct genmap_header *header, uint8_t ret[GENMAP_HEADER_SIZE]);
/* Pure; the bytes may be anything. */
int genmap_header_decode(const void *bytes, size_t size, struct genmap_header *ret, struct err *err);

struct genmap {
    int fd;
    bool private;                /* opened read-only: stores stay in memory */
    struct genmap_header header; /* as it is on disk; of the disk's control lock */
    uint64_t blocks;
    void *mapping;               /* the whole file, */
    size_t mapped;               /* this many bytes */
    _Atomic uint32_t *numbers;   /* behind the header */
    _Atomic uint64_t *allocated; /* one bit per page of numbers: it has disk space */
    size_t pages;
    atomic_uint touched;   /* scanned pages since they were last dropped */
    atomic_int sync_error; /* final, as in image_sync */
    pthread_mutex_t allocating;
};

/* On file systems that copy on write (btrfs) every new store needs space; this keeps an empty file, which is
 * to be mapped, in its place. */
void genmap_keep_in_place(int fd);
/* Makes the file durably; -EEXIST when it is there. */
int genmap_create(const char *path, const struct id *disk, uint64_t size, uint32_t current, struct err *err);
/* Locks the file: exclusively, or shared when read-only. -EBUSY when another process has it. */
int genmap_open(const char *path, bool read_only, struct genmap *ret, struct err *err);
void genmap_done(struct genmap *map);

/* Replaces the header durably (and with it makes every number durable). */
int genmap_set_header(struct genmap *map, const struct genmap_header *header, struct err *err);
/* Every number stored before is durable afterwards. */
int genmap_sync(struct genmap *map);

/* Raises the numbers of a run to `generation` where they are lower. -ENOSPC when the map cannot grow; then
 * nothing was stored. */
int genmap_mark(struct genmap *map, uint64_t block, uint64_t count, uint32_t generation);
uint32_t genmap_get(const struct genmap *map, uint64_t block);
/* The first block at or after `from` with a number other than 0; `blocks` when there is none. */
uint64_t genmap_next_marked(struct genmap *map, uint64_t from);
bool genmap_next_run(struct genmap *map, uint64_t from, uint32_t above, uint32_t upto, uint64_t max_blocks,
                     struct disk_run *ret);
uint64_t genmap_count(struct genmap *map, uint32_t above, uint32_t upto);
/* Gives the mapped pages back; the numbers stay in the page cache. Safe at any time. */
void genmap_drop(struct genmap *map);
