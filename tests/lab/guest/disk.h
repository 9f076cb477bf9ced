/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Writes numbered records to a disk, past the page cache, and reads some of them back.
 *
 *   written   all records up to this number were acknowledged by the disk
 *   durable   all records up to this number were acknowledged before an fsync that succeeded
 *
 * One record at most is under way: whatever a crash leaves behind, record written + 1 is the newest there can
 * be. A failed write is tried again with the same number. Records of an earlier boot are never looked at.
 * Counters can be read at any time, also while the disk does not answer; all else waits for the disk.
 * Functions return 0 or -errno.
 */
#pragma once

#include "options.h"

#include <stdint.h>

struct disk;

struct disk_status {
    uint64_t written, durable, errors;
};

/* Starts the thread that writes options->rate records per second. */
int disk_start(struct disk **ret_disk, const char *path, const struct options *options, uint64_t boot);

/* Writes `count` records at full speed; returns at the first failure. */
int disk_write(struct disk *disk, uint64_t count);
int disk_sync(struct disk *disk);

/* Syncs, and lets no record begin ever after: the machine is about to be switched off. */
int disk_stop(struct disk *disk);

/* Discards bytes. Not in the region of the records (-EPERM): that would look like lost records. */
int disk_trim(struct disk *disk, uint64_t offset, uint64_t length);

void disk_set_rate(struct disk *disk, uint64_t records_per_second);

/* NULL for `disk` gives zeros. */
struct disk_status disk_status(const struct disk *disk);
