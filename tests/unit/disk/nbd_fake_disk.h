/* SPDX-License-Identifier: Apache-2.0
 *
 * nbd_fake_disk: stands in for disk.h under the NBD server: a sparse memfd that fails, blocks and counts as a
 * test asks. It defines the functions of disk.h that the server calls, so that the library's are not linked.
 */
#pragma once

#include "disk/disk.h"

#include <pthread.h>

struct disk {
    int fd;
    int fd_for_splice; /* what disk_fd gives out */
    uint64_t size;
    int read_error, write_error, zero_error, flush_error; /* errno, or 0 */
    unsigned zero_flags;                                  /* of the last call */
    unsigned flushes, fua_writes, trims, intends, intended_ranges;
    uint64_t largest_write, largest_read;
    uint64_t good_reads; /* so many before read_error; 0 = none */
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool frozen;
    unsigned waiting; /* writes that the frozen disk holds */
};

void fake_disk_init(struct disk *disk, uint64_t size);
void fake_disk_done(struct disk *disk);
/* Returns once `count` writes wait inside disk_write. */
void fake_disk_wait_for_writers(struct disk *disk, unsigned count);
