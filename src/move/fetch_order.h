/* SPDX-License-Identifier: Apache-2.0
 *
 * fetch_order: which missing blocks are asked for next, and how much may be under way (fetch.h says the
 * order). Knows no network and no clock: its owner sends what it says, tells it what was answered and when.
 * One thread at a time.
 *
 * How much: what nobody waits for keeps one bandwidth-delay product under way, measured as the best rate and
 * the shortest answer of late, and two milliseconds' worth more, so that the path is full and its queue is
 * short (the idea of BBR: Cardwell et al., "BBR: Congestion-Based Congestion Control", ACM Queue 14/5, 2016).
 */
#pragma once

#include "disk/disk.h"
#include "vmm/config.h"
#include "wire/frame.h"

#define FETCH_URGENT_MAX 64U  /* requests under way that somebody waits for */
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

/* The next request to send now. false: nothing at this moment; *ret_again (clock_now() units) says when to
 * ask again if nothing is answered before. */
bool fetch_order_next(struct fetch_order *order, int64_t now, struct wire_fetch *ret, bool *ret_urgent,
                      int64_t *ret_again);
/* `bytes` of data came with the answer. false: there is no such request. */
bool fetch_order_answered(struct fetch_order *order, const struct wire_fetch *fetch, uint64_t bytes,
                          int64_t now);
/* The connections are gone and with them all requests under way. Demands must be made again. */
void fetch_order_reset(struct fetch_order *order);
/* Nothing is missing, nothing under way. */
bool fetch_order_done(const struct fetch_order *order);

struct fetch_order_numbers {
    uint64_t demands;      /* requests that somebody waited for */
    double demand_seconds; /* how long their answers took lately */
    uint64_t rate;         /* bytes per second lately */
};
void fetch_order_numbers(const struct fetch_order *order, struct fetch_order_numbers *ret);
