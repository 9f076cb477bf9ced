/* SPDX-License-Identifier: Apache-2.0
 *
 * relocate: what of one disk must still be sent, round by round; the source's half of the transfer. The other
 * half is disk_receive.
 *
 * A transfer starts from what the destination has (struct lineage_base): blocks below `cursor` are good up to
 * generation `reached`, the others up to `base`. Each round takes what is above that and not above the sealed
 * generation, in address order, so that "everything below block X" is a fact that the destination can keep
 * when the move ends early. After a round everything is good up to its sealed generation.
 *
 * Holes and zero blocks are told, never sent. One thread.
 */
#pragma once

#include "disk/disk.h"

struct relocate;

/* `fork` (may be NULL; copied): runs that the destination's fork wrote by itself, ascending; they are sent
 * whatever our map says. -EBUSY while the disk is split: it cannot send what it does not have. */
int relocate_new(struct disk *disk, const struct lineage_base *base, const struct disk_range *fork,
                 size_t fork_count, struct relocate **ret, struct err *err);
void relocate_free(struct relocate *relocate);

/* Starts a round up to the generation `sealed` (disk_advance). If a round is under way, what is left of it
 * joins the new one. */
void relocate_round(struct relocate *relocate, uint32_t sealed);

/* One piece to send: blocks of one generation, all data or all zeroes. */
struct relocate_piece {
    struct disk_run run;
    bool zero;
    size_t size; /* bytes of data; the disk's last block may be short */
};
/* The first blocks of `run`, as far as they are alike: all data or all zeroes. */
int relocate_read(struct disk *disk, const struct disk_run *run, void *data, size_t capacity,
                  struct relocate_piece *ret, struct err *err);
/* The round's next piece; data (at most `capacity` bytes, a multiple of DISK_BLOCK) is read into `data`.
 * 1 = a piece, 0 = the round is over, or -errno (-EIO names the block). */
int relocate_next(struct relocate *relocate, void *data, size_t capacity, struct relocate_piece *ret,
                  struct err *err);

/* Blocks still to be looked at in this round (zeroes among them). */
uint64_t relocate_remaining(const struct relocate *relocate);
/* Blocks that a round up to `upto` would take, including what is left of the round under way. */
uint64_t relocate_pending(const struct relocate *relocate, uint32_t upto);
/* Bytes of data (holes left out) that a round up to `upto` would send, by a look at the allocation, not at
 * the data. */
uint64_t relocate_estimate(struct relocate *relocate, uint32_t upto);
/* What a copy may claim that has durably got all pieces so far: sets claim (PARTIAL), complete, reached and
 * cursor. */
void relocate_claim(const struct relocate *relocate, struct lineage *claim);
