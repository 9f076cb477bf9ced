/* SPDX-License-Identifier: Apache-2.0
 *
 * heat: how much each extent of a disk (split_extent_blocks) was read of late, so that a post-copy move can
 * fetch first what the guest will want first. At most 256 KiB, whatever the disk's size.
 *
 * One byte per extent counts reads on a logarithmic scale: from value c on, one read in 2^(c / HEAT_OCTAVE)
 * raises it (R. Morris, "Counting large numbers of events in small registers", 1978). So a byte tells 20
 * reads from 40 as well as 200,000 from 400,000. Every HEAT_HALF_LIFE, by whoever comes by, one octave is
 * taken off: about half of the reads are forgotten.
 *
 * Threads: any; reads that meet in the same moment may be counted as one.
 */
#pragma once

#include "disk/disk.h"

#include <stdatomic.h>

#define HEAT_OCTAVE 16U
#define HEAT_HALF_LIFE (INT64_C(60) * 1000000000) /* nanoseconds */

struct heat {
    uint64_t extent; /* bytes */
    size_t extents;
    _Atomic uint8_t *counts; /* NULL: memory was short, nothing is counted */
    _Atomic int64_t aged;    /* clock_now() of the last forgetting */
};

void heat_init(struct heat *heat, uint64_t disk_blocks);
void heat_done(struct heat *heat);
/* A read of size > 0 bytes. */
void heat_count(struct heat *heat, uint64_t size, uint64_t offset);
/* Forgets, if it is time. */
void heat_age(struct heat *heat, int64_t now);

/* The guest reads. What a move or a comparison reads is not counted: it would make all of the disk lukewarm.
 */
void disk_heat(struct disk *disk, uint64_t size, uint64_t offset);
/* The extents that were read of late, hottest first; returns how many, at most `capacity`. */
size_t disk_hottest(const struct disk *disk, uint32_t *ret_extents, size_t capacity);
