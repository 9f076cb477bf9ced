/* SPDX-License-Identifier: Apache-2.0
 *
 * disk: one virtual disk = a plain raw image (sparse file or block device) that any tool can read, and beside
 * it what Orai knows about it:
 *
 *   IMAGE           the user's bytes
 *   IMAGE.map       generation map: for each 4 KiB block the generation of its last write (genmap.h)
 *   IMAGE.lineage   disk id, current generation's ancestors, what this copy is (lineage.h)
 *   IMAGE.intent    extents written since the map was last made durable (intent.h): the crash rule
 *   IMAGE.missing   only while the disk is split: blocks whose newest data is still on another host (split.h)
 *
 * Generations (the project's idea of "what changed since when"; DBT in the thesis that Orai grew from):
 * `current` grows at every open for writing, at every pre-copy round and at every hand-over. A write marks
 * its blocks with `current` before its data reaches the image, so the map may say too much, never too little.
 *
 * Threads: every function may be called from any thread, except open and close. disk_advance waits for the
 * writes that began in the old generation, without ever holding a lock across their I/O (gate.h).
 */
#pragma once

#include "base/err.h"
#include "base/id.h"
#include "disk/lineage.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define DISK_BLOCK 4096U

struct disk;

enum disk_open_flags {
    DISK_READ_ONLY = 1 << 0,
    DISK_FROZEN = 1 << 1,  /* writes wait until disk_thaw: an arriving disk, before its VM may run */
    DISK_DIRECT = 1 << 2,  /* O_DIRECT for the image */
    DISK_INIT = 1 << 3,    /* make map, lineage and intent when the image has none: a new disk id */
    DISK_COMPARE = 1 << 4, /* a write of what is there already changes nothing: for small disks that are
                              written as a whole again and again */
};

/* Makes a new image at `path` of `size` bytes (a multiple of 512) and its side files. `base` (may be NULL) is
 * a raw base image whose data is copied without its holes, its blocks becoming generation 1 with `base_hash`
 * (first 16 bytes of the SHA-256) as that generation's id. -EEXIST when the image is there. On failure
 * nothing is left behind.
 *
 * Where `path` is a symbolic link to a block device that is no disk of ours yet, the disk is made on that
 * device, which must have `size` bytes: all that it held is overwritten with zeroes and the base. -EBUSY when
 * something else uses it. A failure leaves the device without side files, and parts of it overwritten. */
int disk_create(const char *path, uint64_t size, const char *base, const struct id *base_hash,
                struct err *err);

/* Opens for writing only a copy whose claim is OWNER, FORK or SPLIT (else -EROFS), unless DISK_FROZEN says
 * that it is one that arrives. A block device is named by a symbolic link to it; the side files lie beside
 * the link. After an unclean stop (another boot than the intent record's) the blocks of every intended extent
 * are marked first. Opening for writing without DISK_FROZEN starts a new generation. An exclusive lock on the
 * map keeps a second opener out (-EBUSY); read-only openers share. */
int disk_open(const char *image, unsigned flags, struct disk **ret, struct err *err);
/* Makes everything durable, marks the stop as clean. Returns the first error of that; frees in any case. */
int disk_close(struct disk *disk, struct err *err);
/* Deletes image and side files (a block device is left, only its side files go). */
int disk_remove(const char *path, struct err *err);

uint64_t disk_size(const struct disk *disk);   /* bytes */
uint64_t disk_blocks(const struct disk *disk); /* rounded up */
const char *disk_path(const struct disk *disk);
/* File descriptor of the image, for sendfile and the like; the disk's own. */
int disk_fd(const struct disk *disk);

/* --- the data path: NBD server ------------------------------------------------------------------------- */

/* Whole or -errno (-ENOSPC, -EIO, -EROFS...). Ranges outside the disk are -EINVAL. -EAGAIN, with nothing
 * done, when blocks of a split disk must come first (split.h). */
int disk_read(struct disk *disk, void *data, size_t size, uint64_t offset);
int disk_write(struct disk *disk, const void *data, size_t size, uint64_t offset, bool fua);
enum disk_zero_flags { DISK_ZERO_NO_HOLE = 1 << 0, DISK_ZERO_FAST = 1 << 1, DISK_ZERO_FUA = 1 << 2 };
/* -ENOTSUP at once with DISK_ZERO_FAST where it would be as slow as writing. */
int disk_zero(struct disk *disk, uint64_t size, uint64_t offset, unsigned flags);
/* Punches a hole; reads zeroes afterwards. */
int disk_trim(struct disk *disk, uint64_t size, uint64_t offset, bool fua);
/* Every write acknowledged before on any connection is durable afterwards, and never fetched again. */
int disk_flush(struct disk *disk);
/* Declares writes to come, so that a batch of them pays for one intent record only. Optional. */
struct disk_range {
    uint64_t offset, size;
};
int disk_intend(struct disk *disk, const struct disk_range *ranges, size_t count);
/* Marks ranges as changed without changing them: what a fork wrote on its own must be sent again. */
int disk_touch(struct disk *disk, const struct disk_range *ranges, size_t count);

/* Allocation from `offset` on: one run, at most `size` long. */
struct disk_extent {
    uint64_t length;
    bool hole; /* reads as zeroes and takes no space */
};
int disk_extent(struct disk *disk, uint64_t offset, uint64_t size, struct disk_extent *ret);

/* Writes wait (not fail) from here until thaw; returns once those under way have ended. */
void disk_freeze(struct disk *disk);
void disk_thaw(struct disk *disk);

/* --- generations: the transfer engine ------------------------------------------------------------------ */

uint32_t disk_generation(const struct disk *disk); /* current */
/* Seals the current generation and starts the next one durably: gives the sealed one `id` and `kind` in the
 * lineage, waits until every write of it has landed. Returns the sealed generation in *ret_sealed. */
int disk_advance(struct disk *disk, const struct id *id, enum lineage_kind kind, const char *host,
                 uint32_t *ret_sealed, struct err *err);

/* The next run of blocks at or after `from` whose number is > above and <= upto, all of one number, at most
 * `max_blocks` long. false when there is none. */
struct disk_run {
    uint64_t block, count;
    uint32_t generation;
};
bool disk_next_run(const struct disk *disk, uint64_t from, uint32_t above, uint32_t upto, uint64_t max_blocks,
                   struct disk_run *ret);
/* How many blocks have numbers > above and <= upto. */
uint64_t disk_count(const struct disk *disk, uint32_t above, uint32_t upto);

/* --- a disk that arrives ------------------------------------------------------------------------------- */

/* Writes data (or zeroes, data NULL: a hole is punched) of a run and raises its blocks' numbers to the run's;
 * works on a frozen disk. The claim must be PARTIAL (-EROFS): a power cut may tear what is being received,
 * and no other claim allows that. A frozen FORK becomes PARTIAL at its first run, and lineage_compare goes on
 * calling it forked until disk_set_lineage says better. */
int disk_receive(struct disk *disk, const struct disk_run *run, const void *data, struct err *err);
/* Image, map, then lineage durable, in this order; every intent is settled. */
int disk_sync(struct disk *disk, struct err *err);
/* What a thread of the disk does now and then: the same, but the intents of places that are being written
 * stay; where all would stay it does nothing. */
int disk_checkpoint(struct disk *disk);

/* A copy of the lineage, to be freed with lineage_free. */
int disk_lineage(const struct disk *disk, struct lineage **ret, struct err *err);
/* Makes image and map durable, then replaces the lineage, durably. The current generation becomes at least
 * its newest
 * + 1. Whether writes are let through follows the new claim: with REPLICA or PARTIAL they get -EROFS.
 * -EBUSY for a split disk, which only disk_whole makes anything else. */
int disk_set_lineage(struct disk *disk, const struct lineage *lineage, struct err *err);
