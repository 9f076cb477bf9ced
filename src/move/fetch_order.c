/* SPDX-License-Identifier: Apache-2.0 */
#include "move/fetch_order.h"

#include "base/clock.h"
#include "base/macro.h"
#include "disk/split.h"

#include <errno.h>
#include <string.h>

#define MAX_UNDER_WAY 256
#define WINDOW_MIN (128 * KiB)
#define WINDOW_MAX (16 * MiB)
#define QUEUE_NS (2 * NSEC_PER_MSEC)        /* what the rest may add to the way of what somebody waits for */
#define STREAMS 8                           /* places where the guest reads on and on, per disk */
#define AHEAD_MIN 32U                       /* blocks, doubled at each step */
#define AHEAD_MAX 256U                      /* 1 MiB */
#define REST_ANYWAY_NS (50 * NSEC_PER_MSEC) /* however much is demanded, the rest moves on */
#define RATE_NS (200 * NSEC_PER_MSEC)       /* over which the rate is measured */
#define SHORTEST_NS (10 * NSEC_PER_SEC)     /* how long the shortest answer counts */
#define DEMAND_WEIGHT 0.1

struct range {
    uint64_t block, count;
};

/* Where a sequential reader will be next. */
struct stream {
    uint64_t next;
    unsigned ahead;
    int64_t used;
};

struct source {
    struct disk *disk; /* NULL: whole */
    uint64_t blocks, extent_blocks, cursor;
    uint32_t base, reached, upto;
    uint32_t *hot;
    size_t hot_count, hot_at;
    uint64_t hot_from; /* within the extent hot[hot_at] */
    uint64_t next;     /* by address */
    struct stream streams[STREAMS];
};

struct demand {
    struct demand *next;
    size_t disk;
    struct range range;
};

struct under_way {
    struct wire_fetch fetch;
    bool urgent;
    int64_t sent;
};

struct fetch_order {
    struct source sources[VM_MAX_DISKS];
    size_t count;
    struct demand *demands, **last_demand; /* what somebody waits for */
    struct demand *ahead, **last_ahead;    /* what will soon be */
    struct under_way under_way[MAX_UNDER_WAY];
    size_t under_way_count, urgent_count;
    uint64_t rest_bytes; /* under way that nobody waits for, at most */
    uint64_t serial;
    int64_t rest_sent; /* when the newest of those was */

    double best_rate; /* bytes per second */
    int64_t shortest, shortest_at, measured_at;
    uint64_t measured_bytes;
    struct fetch_order_numbers numbers;
};

/* --- lists -----------------------------------------------------------------------------------------------
 */

static void put(struct demand ***last, size_t disk, struct range range)
{
    struct demand *demand = malloc(sizeof *demand);
    if (!demand)
        return; /* the rest brings it, later */
    *demand = (struct demand){.disk = disk, .range = range};
    **last = demand;
    *last = &demand->next;
}

static void drop_first(struct demand **first, struct demand ***last)
{
    struct demand *demand = *first;
    *first = demand->next;
    if (!*first)
        *last = first;
    free(demand);
}

/* --- what is under way -----------------------------------------------------------------------------------
 */

static bool is_under_way(const struct fetch_order *order, size_t disk, uint64_t block, uint64_t *ret_end)
{
    for (size_t i = 0; i < order->under_way_count; i++) {
        const struct wire_fetch *fetch = &order->under_way[i].fetch;
        if (fetch->disk == disk && block >= fetch->block && block < fetch->block + fetch->count) {
            *ret_end = fetch->block + fetch->count;
            return true;
        }
    }
    return false;
}

/* The first block of [from, to) that is under way, or `to`. */
static uint64_t next_under_way(const struct fetch_order *order, size_t disk, uint64_t from, uint64_t to)
{
    for (size_t i = 0; i < order->under_way_count; i++) {
        const struct wire_fetch *fetch = &order->under_way[i].fetch;
        if (fetch->disk == disk && fetch->block > from && fetch->block < to)
            to = fetch->block;
    }
    return to;
}

/* The first missing blocks of the range that nobody has asked for, at most `max` of one bound. */
static bool find(const struct fetch_order *order, size_t disk, uint64_t from, uint64_t end, uint64_t max,
                 struct wire_fetch *ret)
{
    const struct source *source = &order->sources[disk];
    struct disk_run run;
    while (source->disk && from < end && disk_next_missing(source->disk, from, end, max, &run)) {
        if (is_under_way(order, disk, run.block, &from))
            continue;
        uint64_t stop = next_under_way(order, disk, run.block, run.block + run.count);
        bool below = run.block < source->cursor;
        if (below)
            stop = MIN(stop, source->cursor);
        *ret = (struct wire_fetch){
            .disk = (uint16_t)disk,
            .above = below ? source->reached : source->base,
            .upto = source->upto,
            .block = run.block,
            .count = (uint32_t)(stop - run.block),
        };
        return true;
    }
    return false;
}

static void note(struct fetch_order *order, struct wire_fetch *fetch, bool urgent, int64_t now)
{
    fetch->serial = ++order->serial;
    order->under_way[order->under_way_count++] = (struct under_way){*fetch, urgent, now};
    if (urgent) {
        order->urgent_count++;
        order->numbers.demands++;
    } else {
        order->rest_bytes += (uint64_t)fetch->count * DISK_BLOCK;
        order->rest_sent = now;
    }
}

/* --- reading on ------------------------------------------------------------------------------------------
 */

/* A demand where a stream was expected makes it longer; any other begins one in the place used least. */
static void read_ahead(struct fetch_order *order, size_t disk, const struct range *range, int64_t now)
{
    struct source *source = &order->sources[disk];
    struct stream *oldest = &source->streams[0];
    uint64_t end = range->block + range->count;
    for (size_t i = 0; i < STREAMS; i++) {
        struct stream *stream = &source->streams[i];
        if (stream->ahead && range->block + AHEAD_MIN >= stream->next &&
            range->block <= stream->next + AHEAD_MIN) {
            stream->ahead = MIN(stream->ahead * 2, AHEAD_MAX);
            struct range ahead = {end, stream->ahead};
            put(&order->last_ahead, disk, ahead);
            *stream = (struct stream){end + stream->ahead, stream->ahead, now};
            return;
        }
        if (stream->used < oldest->used)
            oldest = stream;
    }
    *oldest = (struct stream){end, AHEAD_MIN / 2, now};
}

/* --- what comes next -------------------------------------------------------------------------------------
 */

static bool next_urgent(struct fetch_order *order, int64_t now, struct wire_fetch *ret)
{
    while (order->demands && order->urgent_count < FETCH_URGENT_MAX) {
        struct demand *demand = order->demands;
        struct range *range = &demand->range;
        uint64_t end = range->block + range->count;
        if (find(order, demand->disk, range->block, end, WIRE_FETCH_MAX_BLOCKS, ret)) {
            range->count = end - (ret->block + ret->count);
            range->block = ret->block + ret->count;
            read_ahead(order, demand->disk, &(struct range){ret->block, ret->count}, now);
            return true;
        }
        drop_first(&order->demands, &order->last_demand);
    }
    return false;
}

static bool next_ahead(struct fetch_order *order, struct wire_fetch *ret)
{
    while (order->ahead) {
        struct demand *ahead = order->ahead;
        uint64_t end = MIN(ahead->range.block + ahead->range.count, order->sources[ahead->disk].blocks);
        if (find(order, ahead->disk, ahead->range.block, end, FETCH_REST_BLOCKS, ret)) {
            ahead->range.block = ret->block + ret->count;
            ahead->range.count = end - ahead->range.block;
            return true;
        }
        drop_first(&order->ahead, &order->last_ahead);
    }
    return false;
}

static bool next_hot(struct fetch_order *order, size_t disk, struct wire_fetch *ret)
{
    struct source *source = &order->sources[disk];
    while (source->hot_at < source->hot_count) {
        uint64_t begin = source->hot[source->hot_at] * source->extent_blocks;
        uint64_t end = MIN(begin + source->extent_blocks, source->blocks);
        if (find(order, disk, begin + source->hot_from, end, FETCH_REST_BLOCKS, ret)) {
            source->hot_from = ret->block + ret->count - begin;
            return true;
        }
        source->hot_at++;
        source->hot_from = 0;
    }
    return false;
}

/* From where the last pass stands, then once more from the beginning: requests may have been lost. */
static bool next_by_address(struct fetch_order *order, size_t disk, struct wire_fetch *ret)
{
    struct source *source = &order->sources[disk];
    bool found = find(order, disk, source->next, source->blocks, FETCH_REST_BLOCKS, ret) ||
                 find(order, disk, 0, source->next, FETCH_REST_BLOCKS, ret);
    if (found)
        source->next = ret->block + ret->count;
    return found;
}

static bool next_rest(struct fetch_order *order, struct wire_fetch *ret)
{
    if (next_ahead(order, ret))
        return true;
    for (size_t i = 0; i < order->count; i++)
        if (next_hot(order, i, ret))
            return true;
    for (size_t i = 0; i < order->count; i++)
        if (next_by_address(order, i, ret))
            return true;
    return false;
}

static uint64_t window(const struct fetch_order *order)
{
    double seconds = (double)(order->shortest + QUEUE_NS) / NSEC_PER_SEC;
    return MIN(MAX((uint64_t)(order->best_rate * seconds), WINDOW_MIN), WINDOW_MAX);
}

bool fetch_order_next(struct fetch_order *order, int64_t now, struct wire_fetch *ret, bool *ret_urgent,
                      int64_t *ret_again)
{
    *ret_again = now + NSEC_PER_SEC;
    if (order->under_way_count == MAX_UNDER_WAY)
        return false;
    *ret_urgent = next_urgent(order, now, ret);
    if (*ret_urgent) {
        note(order, ret, true, now);
        return true;
    }
    if (order->rest_bytes >= window(order))
        return false;
    if (order->urgent_count && now - order->rest_sent < REST_ANYWAY_NS) {
        *ret_again = order->rest_sent + REST_ANYWAY_NS;
        return false;
    }
    if (!next_rest(order, ret))
        return false;
    note(order, ret, false, now);
    return true;
}

/* --- what was answered -----------------------------------------------------------------------------------
 */

static void measure(struct fetch_order *order, uint64_t bytes, int64_t took, int64_t now)
{
    if (order->shortest == 0 || took < order->shortest || now - order->shortest_at > SHORTEST_NS) {
        order->shortest = MAX(took, INT64_C(1));
        order->shortest_at = now;
    }
    order->measured_bytes += bytes;
    if (order->measured_at == 0)
        order->measured_at = now - took;
    int64_t span = now - order->measured_at;
    if (span < RATE_NS)
        return;
    double rate = (double)order->measured_bytes * NSEC_PER_SEC / (double)span;
    order->best_rate = MAX(rate, order->best_rate * 0.9);
    order->numbers.rate = (uint64_t)rate;
    order->measured_bytes = 0;
    order->measured_at = now;
}

bool fetch_order_answered(struct fetch_order *order, const struct wire_fetch *fetch, uint64_t bytes,
                          int64_t now)
{
    size_t i = 0;
    while (i < order->under_way_count && order->under_way[i].fetch.serial != fetch->serial)
        i++;
    if (i == order->under_way_count)
        return false;
    struct under_way done = order->under_way[i];
    const struct wire_fetch *asked = &done.fetch;
    if (asked->disk != fetch->disk || asked->block != fetch->block || asked->count != fetch->count)
        return false;
    order->under_way[i] = order->under_way[--order->under_way_count];
    double seconds = (double)(now - done.sent) / NSEC_PER_SEC;
    if (done.urgent) {
        struct fetch_order_numbers *numbers = &order->numbers;
        order->urgent_count--;
        numbers->demand_seconds =
            numbers->demand_seconds == 0
                ? seconds
                : numbers->demand_seconds * (1 - DEMAND_WEIGHT) + seconds * DEMAND_WEIGHT;
    } else {
        order->rest_bytes -= (uint64_t)asked->count * DISK_BLOCK;
    }
    measure(order, bytes, now - done.sent, now);
    return true;
}

void fetch_order_reset(struct fetch_order *order)
{
    while (order->demands)
        drop_first(&order->demands, &order->last_demand);
    while (order->ahead)
        drop_first(&order->ahead, &order->last_ahead);
    order->under_way_count = order->urgent_count = 0;
    order->rest_bytes = order->measured_bytes = 0;
    order->measured_at = 0;
}

bool fetch_order_done(const struct fetch_order *order)
{
    for (size_t i = 0; i < order->count; i++)
        if (order->sources[i].disk && disk_missing(order->sources[i].disk) > 0)
            return false;
    return order->under_way_count == 0;
}

void fetch_order_numbers(const struct fetch_order *order, struct fetch_order_numbers *ret)
{
    *ret = order->numbers;
}

/* --- the object ------------------------------------------------------------------------------------------
 */

static int add_source(struct source *source, struct disk *disk, struct err *err)
{
    _cleanup_(lineage_freep) struct lineage *lineage = NULL;
    int r = disk_lineage(disk, &lineage, err);
    if (r < 0)
        return r;
    const struct lineage_entry *handover = lineage_newest(lineage);
    if (!handover)
        return err_set(err, EINVAL, "the lineage of %s names no hand-over", disk_path(disk));
    *source = (struct source){
        .disk = disk,
        .blocks = disk_blocks(disk),
        .extent_blocks = split_extent_blocks(disk_blocks(disk)),
        .cursor = lineage->cursor,
        .base = lineage->complete,
        .reached = MAX(lineage->reached, lineage->complete),
        .upto = handover->generation,
    };
    return 0;
}

int fetch_order_new(struct disk *const disks[], size_t count, struct fetch_order **ret, struct err *err)
{
    struct fetch_order *order = calloc(1, sizeof *order);
    if (!order)
        return err_set(err, ENOMEM, "out of memory");
    order->count = count;
    order->last_demand = &order->demands;
    order->last_ahead = &order->ahead;
    int r = 0;
    for (size_t i = 0; r == 0 && i < count; i++)
        if (disks[i])
            r = add_source(&order->sources[i], disks[i], err);
    if (r < 0) {
        free(order);
        return r;
    }
    *ret = order;
    return 0;
}

void fetch_order_free(struct fetch_order *order)
{
    if (!order)
        return;
    fetch_order_reset(order);
    for (size_t i = 0; i < order->count; i++)
        free(order->sources[i].hot);
    free(order);
}

void fetch_order_demand(struct fetch_order *order, size_t disk, uint64_t block, uint64_t count)
{
    put(&order->last_demand, disk, (struct range){block, count});
}

int fetch_order_hot(struct fetch_order *order, size_t disk, const uint32_t *extents, size_t count)
{
    if (disk >= order->count || !order->sources[disk].disk)
        return 0;
    struct source *source = &order->sources[disk];
    uint32_t *copy = malloc(count * sizeof *copy + 1);
    if (!copy)
        return -ENOMEM;
    if (count)
        memcpy(copy, extents, count * sizeof *copy);
    free(source->hot);
    source->hot = copy;
    source->hot_count = count;
    source->hot_at = 0;
    source->hot_from = 0;
    return 0;
}
