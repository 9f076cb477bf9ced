/* SPDX-License-Identifier: Apache-2.0
 *
 * digest: hashes of what one copy of a disk holds, so that two copies can be compared by exchanging nothing
 * else. For a copy at rest as well as for one that a guest writes to.
 *
 * Two copies share a history up to a generation `upto` (lineage_shared): a block whose number is at or below
 * it in both maps was last written before that moment, and must be the same in both. A block above it, on
 * either side, was changed since, and is not compared. An extent is 1 MiB; its sum is the hash of its blocks'
 * hashes, zeroes standing for the blocks that are left out, so both sides must leave out the same ones.
 *
 * A write marks its blocks before its data reaches the image (disk.h). So the number is read *after* the
 * data: when it is still at or below `upto`, no write has touched what was read. No lock is taken, and
 * orai-vm knows nothing of it. The image is read past the page cache where that is possible: what counts is
 * what the disk holds, and the guest keeps its cache.
 *
 * XXH3-128 with a seed that is made anew for each comparison: nobody who chose a block's content beforehand
 * can have prepared two that hash alike. One thread per object.
 */
#pragma once

#include "base/err.h"
#include "disk/disk.h"
#include "disk/lineage.h"

#include <stdbool.h>
#include <stdint.h>

#define DIGEST_EXTENT_BLOCKS 256U
#define DIGEST_EXTENT ((uint64_t)DIGEST_EXTENT_BLOCKS * DISK_BLOCK)
#define DIGEST_SIZE 16U
#define DIGEST_BITS_SIZE (DIGEST_EXTENT_BLOCKS / 8)

struct digester;

/* Opens a copy to read. Shuts nobody out and is shut out by nobody. */
int digester_open(const char *image, struct digester **ret, struct err *err);
void digester_free(struct digester *digester);
static inline void digester_cleanup(struct digester **digester)
{
    digester_free(*digester);
}
const struct lineage *digester_lineage(const struct digester *digester);
uint64_t digester_size(const struct digester *digester); /* bytes */
uint64_t digester_extents(const struct digester *digester);
/* How many blocks the extent has: the disk's last one may be short. */
unsigned digester_extent_blocks(const struct digester *digester, uint64_t extent);

struct digest_extent {
    bool hole;                         /* nothing had to be read */
    uint8_t changed[DIGEST_BITS_SIZE]; /* bit n: block n is above `upto`, or may be: not hashed */
    uint8_t blocks[DIGEST_EXTENT_BLOCKS][DIGEST_SIZE];
};

/* Reads and hashes one extent. -EIO names the block. */
int digester_extent(struct digester *digester, uint64_t seed, uint32_t upto, uint64_t extent,
                    struct digest_extent *ret, struct err *err);
/* The extent's sum without the blocks in `changed`, which must contain the extent's own. */
void digest_sum(const struct digest_extent *extent, const uint8_t changed[DIGEST_BITS_SIZE], uint64_t seed,
                uint8_t ret[DIGEST_SIZE]);
static inline bool digest_bit(const uint8_t bits[DIGEST_BITS_SIZE], unsigned block)
{
    return bits[block / 8] >> block % 8 & 1;
}
