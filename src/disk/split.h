/* SPDX-License-Identifier: Apache-2.0
 *
 * split: a disk whose VM runs here already while the newest data of some blocks is still on another host: the
 * disk half of post-copy.
 *
 *   source        split_picture: which extents the destination lacks, a few kB
 *   destination   disk_expect, before the switch: what will be missing is durable (IMAGE.missing, missing.h)
 *                 disk_set_lineage with the claim SPLIT, after the commit: now it is
 *                 disk_fill, disk_filled: data comes, bits go
 *                 disk_whole: nothing is missing; the claim is OWNER
 *
 * What always holds:
 *   - Bits only ever go from "missing" to "here", and a block is here only after its data is in the image.
 *   - Fetched data never overwrites a write: it goes only into blocks that are missing, under a lock striped
 *     by extent; a write that touches missing blocks takes the same lock, writes, then clears their bits.
 *     Where nothing is missing no lock is taken.
 *   - What the guest wrote and flushed is never fetched again, nor is what a checkpoint has seen. A power cut
 *     may make blocks missing again that were fetched or written since: the source keeps all of its data
 *     until disk_whole has returned.
 *   - A request that needs missing data gets -EAGAIN, has done nothing, and the fetcher has been told. A
 *     write that covers missing blocks wholly needs nothing.
 *
 * A disk that is not split pays one atomic load per request for all this. Functions from any thread.
 */
#pragma once

#include "disk/disk.h"

/* --- the source ---------------------------------------------------------------------------------------- */

/* Extents of the coarse picture: 1 MiB, doubled until there are at most SPLIT_MAX_EXTENTS. In blocks. */
#define SPLIT_MAX_EXTENTS 262144U
uint64_t split_extent_blocks(uint64_t disk_blocks);
uint64_t split_extents(uint64_t disk_blocks);
/* Sets bit n (n % 8 of byte n / 8) of *ret_bits (malloc'ed, extents / 8 rounded up) where extent n has a
 * block that the destination lacks: blocks below the base's `cursor` above `reached`, the others above
 * `base`, none above `upto`. Returns the number of such blocks. */
int split_picture(const struct disk *disk, const struct lineage_base *base, uint32_t upto, uint8_t **ret_bits,
                  size_t *ret_size, uint64_t *ret_blocks, struct err *err);

/* The finer picture, for after the switch: 4 KiB, doubled until there are at most SPLIT_MAX_GRAINS. In
 * blocks. */
#define SPLIT_MAX_GRAINS 4194304U
uint64_t split_grain_blocks(uint64_t disk_blocks);
size_t split_newer_size(uint64_t disk_blocks); /* of its bits, bytes */
/* Bits as above, of *ret_size bytes, where a grain has a block whose number is above `above`, whatever
 * wrote it: the crash rule too. */
int split_newer(const struct disk *disk, uint32_t above, uint8_t **ret_bits, size_t *ret_size,
                struct err *err);

/* --- the destination: becoming split ------------------------------------------------------------------- */

/* For a frozen PARTIAL copy, before the switch. `lineage`: claim PARTIAL, its newest entry the hand-over to
 * be; it is made the disk's as by disk_set_lineage. When this returns IMAGE.missing is durable. It means
 * nothing before the claim is SPLIT, and goes with the next disk_receive, disk_expect, or lineage of another
 * newest entry. -EPROTO when the picture is none of this disk. */
int disk_expect(struct disk *disk, const struct lineage *lineage, const uint8_t *bits, size_t size,
                struct err *err);
/* A PARTIAL copy whose IMAGE.missing fits its newest entry: it may take the claim SPLIT. */
bool disk_may_split(const struct disk *disk);

/* --- while it is split --------------------------------------------------------------------------------- */

bool disk_is_split(const struct disk *disk);    /* some block may be missing */
uint64_t disk_missing(const struct disk *disk); /* blocks not known to be here; a counter, cheap */
/* The next run of missing blocks at or after `from` and below `end`, at most max_blocks; its generation is
 * 0. */
bool disk_next_missing(const struct disk *disk, uint64_t from, uint64_t end, uint64_t max_blocks,
                       struct disk_run *ret);
/* Fetched data (NULL = zeroes, a hole) of a run is written where still missing, its numbers raised to the
 * run's. -EPROTO for a run outside the disk or above the hand-over's generation. After an error part of the
 * run may be here; the whole may be filled again. */
int disk_fill(struct disk *disk, const struct disk_run *run, const void *data, struct err *err);
/* The source has answered for all of these blocks: what of them is still missing is good as it is here. */
int disk_filled(struct disk *disk, uint64_t block, uint64_t count, struct err *err);
/* Nothing is missing any more: makes all durable, the claim OWNER, removes IMAGE.missing. -EBUSY when blocks
 * are missing. */
int disk_whole(struct disk *disk, struct err *err);

/* --- demands: what somebody waits for ------------------------------------------------------------------ */

/* Blocks that somebody needs; at least one of them was missing. Called on the thread that needs them, with no
 * lock held; the same may be told again. */
typedef void disk_demand_fn(void *arg, uint64_t block, uint64_t count);
/* NULL takes the function away, and returns once no call of it is under way; so not from within it. Until one
 * is set whoever waits remembers, and tells it then. */
void disk_on_demand(struct disk *disk, disk_demand_fn *fn, void *arg);

/* What a request needs to be here: all of its blocks (a read), or those that it covers in part (a write). */
enum disk_need_kind { DISK_NEED_ALL, DISK_NEED_EDGES };
struct disk_need {
    uint64_t block, count;
};
/* Would the request get -EAGAIN? Then the fetcher has been told, unless *told says that it was before;
 * *told, 0 in the beginning, is the caller's to keep. Bits never come back: true stays true. */
bool disk_ready(struct disk *disk, enum disk_need_kind kind, uint64_t size, uint64_t offset, unsigned *told);

/* A non-blocking eventfd that is written to when missing blocks have come, and once in this call. */
int disk_watch(struct disk *disk, int eventfd);
void disk_unwatch(struct disk *disk, int eventfd);
/* Somebody has waited there since `since` (clock_now()); 0 = nobody waits any more. */
void disk_waits(struct disk *disk, int eventfd, int64_t since);
/* Since when the one has been waiting that has waited longest (clock_now()); 0 = nobody waits. */
int64_t disk_waiting_since(const struct disk *disk);
