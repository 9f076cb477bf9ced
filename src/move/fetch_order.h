/* SPDX-License-Identifier: Apache-2.0
 *
 * fetch_order: which missing blocks are asked for next, of whom, and how much may be under way (fetch.h says
 * the order). Knows no network and no clock: its owner sends what it says, tells it what was answered and
 * when. One thread at a time.
 *
 * Of whom: the *lender* has every missing block, other *holders* have some, each those that it was said to
 * share. What somebody waits for goes to the holder that answers soonest, the rest to whoever has
 * room for it; the lender leaves what others have too for the end.
 *
 * How much: a number of requests that somebody waits for, and of the others as much as the path to the holder
 * takes (fetch_path.h).
 */
#pragma once

#include "disk/disk.h"
#include "vmm/config.h"
#include "wire/frame.h"

#define FETCH_LENDER 0U      /* the holder that has them all */
#define FETCH_MAX_HOLDERS 8U /* with it */
#define FETCH_URGENT_MAX 64U /* requests under way to a holder that somebody waits for */
#define FETCH_PATIENCE_NS (INT64_C(3) * 1000000000)
#define FETCH_REST_BLOCKS 16U /* of one request that nobody waits for: half a millisecond of 1 Gbit/s */

struct fetch_order;

/* `disks[i]` NULL: nothing of it is missing. -EINVAL when a split disk's lineage does not say what it was
 * good for. */
int fetch_order_new(struct disk *const disks[], size_t count, struct fetch_order **ret, struct err *err);
void fetch_order_free(struct fetch_order *order);

/* Somebody waits for what is missing of these blocks. */
void fetch_order_demand(struct fetch_order *order, size_t disk, uint64_t block, uint64_t count);
/* Extents (split_extent_blocks), hottest first; replaces what was said before. */
int fetch_order_hot(struct fetch_order *order, size_t disk, const uint32_t *extents, size_t count);

/* What the holder's copy of the disk is good for: it is exactly the data of the generation `upto`, and where
 * `newer` (split_newer_size bytes, copied) has a bit the lender has something newer. */
int fetch_order_share(struct fetch_order *order, unsigned holder, size_t disk, uint32_t upto,
                      const uint8_t *newer);
/* The holder can be asked from here on: the lender for everything, others for what they share. */
void fetch_order_join(struct fetch_order *order, unsigned holder);
/* It cannot any more, and will not answer what is under way to it: that is asked for again, of others. What
 * it shares is forgotten. */
void fetch_order_leave(struct fetch_order *order, unsigned holder);

/* The next request to send to the holder now. false: nothing at this moment; *ret_again (clock_now() units)
 * says when to ask again if nothing is answered before. */
bool fetch_order_next(struct fetch_order *order, unsigned holder, int64_t now, struct wire_fetch *ret,
                      bool *ret_urgent, int64_t *ret_again);
/* Is the run part of what the holder was asked for and has not answered? */
bool fetch_order_expects(const struct fetch_order *order, unsigned holder, size_t disk,
                         const struct disk_run *run);
/* `bytes` of data came with the holder's answer. false: there is no such request to it, or an older one that
 * waits on the same connection: answers come in order. */
bool fetch_order_answered(struct fetch_order *order, unsigned holder, const struct wire_fetch *fetch,
                          uint64_t bytes, int64_t now);
/* It has been asked, and has answered nothing for longer than FETCH_PATIENCE_NS on one of its connections. */
bool fetch_order_is_late(const struct fetch_order *order, unsigned holder, int64_t now);
/* Nothing is missing, nothing under way. */
bool fetch_order_done(const struct fetch_order *order);

struct fetch_order_numbers {
    uint64_t demands;      /* requests that somebody waited for */
    double demand_seconds; /* how long their answers took lately */
    uint64_t rate;         /* bytes per second lately, of all holders */
};
void fetch_order_numbers(const struct fetch_order *order, struct fetch_order_numbers *ret);
/* Bytes per second lately, of one. */
uint64_t fetch_order_rate(const struct fetch_order *order, unsigned holder);
