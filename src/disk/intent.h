/* SPDX-License-Identifier: Apache-2.0
 *
 * intent: the crash rule's record: in which extents of the disk image or map may hold writes that are not
 * durable.
 *
 *   IMAGE.intent:  4096 bytes  struct intent_header_v1, then zeroes
 *                  one bit per extent of 1 MiB, in whole pages; bit n is bit n % 8 of byte n / 8
 *
 * Before a write's data may reach the image the bits of its extents are durable. After a power cut every
 * block of every extent with a bit counts as written: of its writes some may have reached the image and not
 * the map, or the other way round.
 *
 * 1 MiB: the whole record of a 200 GiB disk is 25 KiB, a first write pays its fdatasync once per MiB at most,
 * and a power cut costs at most 256 blocks of a later transfer per place that was being written. Where first
 * writes follow each other quickly, up to INTENT_AHEAD extents are marked at once.
 *
 * The bits of extents whose writes have become durable since are cleared by a checkpoint (disk_checkpoint):
 *     intent_turn(); wait for the writes under way; make image and map durable; intent_settle().
 */
#pragma once

#include "base/err.h"
#include "base/id.h"
#include "disk/disk.h"

#include <pthread.h>
#include <stdatomic.h>

#define INTENT_HEADER_SIZE 4096U
#define INTENT_EXTENT (UINT32_C(1) << 20)
#define INTENT_AHEAD 16U

struct intent_header {
    struct id map;  /* of the map that this belongs to */
    struct id boot; /* kernel that wrote it; zero: whatever its page cache held is not to be trusted */
    uint64_t size;  /* of the disk, bytes */
    bool clean;     /* closed in order: the bits say nothing */
};

void intent_header_encode(const struct intent_header *header, uint8_t ret[INTENT_HEADER_SIZE]);
/* Pure; the bytes may be anything. */
int intent_header_decode(const void *bytes, size_t size, struct intent_header *ret, struct err *err);

struct intent {
    int fd;
    struct intent_header header; /* as it is on disk */
    uint64_t extents;
    size_t words;
    _Atomic uint64_t *durable; /* a bit here is durable on disk */
    _Atomic uint64_t *recent;  /* written, or announced, since the last intent_turn */
    uint64_t *before;          /* the same of the turn before; of the disk's control lock */

    pthread_mutex_t lock; /* guards what follows; not held across I/O */
    pthread_cond_t written;
    uint64_t *wanted;
    bool writing;      /* one thread at a time writes the file; to that one belong: */
    uint64_t *picture; /* the bits as the file has them (encoded), */
    uint64_t *next;    /* as it is to have them, */
    bool unsure;       /* and whether a write failed, so that the picture may be wrong */
    unsigned ahead;
    int64_t last_miss;
};

/* The kernel's boot id as a number. */
int intent_boot(struct id *ret, struct err *err);

/* Makes the file durably, whole and clean; -EEXIST when it is there. */
int intent_create(const char *path, const struct id *map, uint64_t size, struct err *err);
/* Reads the file. */
int intent_open(const char *path, bool read_only, struct intent *ret, struct err *err);
void intent_done(struct intent *intent);

/* Before the first write: notes this boot, keeps the bits or clears them. Durable. */
int intent_begin(struct intent *intent, const struct id *boot, bool keep, struct err *err);
/* All bits gone, clean. Durable. Nobody writes any more. */
int intent_finish(struct intent *intent, struct err *err);
/* After a failed sync of image or map: from now on not even this boot may trust its page cache (the pages
 * that could not be written may be gone from it). As durable as the disk still allows. Under the control
 * lock, too. */
void intent_distrust(struct intent *intent);

/* Returns once all extents of the ranges have durable bits. */
int intent_cover(struct intent *intent, const struct disk_range *ranges, size_t count);
/* The next extent with a bit, from `from` on; `extents` when there is none. */
uint64_t intent_next(const struct intent *intent, uint64_t from);

/* Starts a turn: what is covered from here on stays. */
void intent_turn(struct intent *intent);
/* Is there a bit that intent_settle with `keep_hot` would clear? */
bool intent_has_cold(const struct intent *intent);
/* Clears the bits of extents that nothing was written to since intent_turn; with `keep_hot` only those that
 * were not written in the turn before either, so that a busy place does not pay for its bit again and again.
 * Not durable: a bit too many does no harm. */
int intent_settle(struct intent *intent, bool keep_hot);
