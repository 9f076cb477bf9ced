/* SPDX-License-Identifier: Apache-2.0 */
#include "move/fetch_order.h"

#include "base/clock.h"
#include "base/macro.h"
#include "disk/split.h"
#include "move/fetch_path.h"

#include <errno.h>
#include <string.h>

#define MAX_UNDER_WAY 512
#define MAX_UNDER_WAY_TO_ONE 256
#define STREAMS 8                           /* places where the guest reads on and on, per disk */
#define AHEAD_MIN 32U                       /* blocks, doubled at each step */
#define AHEAD_MAX 256U                      /* 1 MiB */
#define REST_ANYWAY_NS (50 * NSEC_PER_MSEC) /* however much is demanded, the rest moves on */
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
    uint64_t blocks, extent_blocks, grain, cursor;
    uint32_t base, reached, upto;
    uint32_t *hot;
    size_t hot_count;
    struct stream streams[STREAMS];
};

/* How far a holder has been asked about a disk, and what it has. */
struct reach {
    uint32_t upto;  /* its copy's generation */
    uint8_t *newer; /* NULL: the lender has all, others nothing */
    size_t hot_at;
    uint64_t hot_from; /* within the extent hot[hot_at] */
    uint64_t next;     /* by address */
    uint64_t
        dry[2]; /* by enum find_of: of all that is missing nothing is left to ask for, since order->turn */
};

struct holder {
    bool joined;
    struct reach reach[VM_MAX_DISKS];
    size_t under_way_count, urgent_count;
    uint64_t rest_bytes; /* under way that nobody waits for, at most */
    int64_t rest_sent;   /* when the newest of those was */
    int64_t answered[2]; /* when it last answered what nobody waits for, and what is urgent */
    struct fetch_path path;
};

struct demand {
    struct demand *next;
    size_t disk;
    struct range range;
    bool asked; /* all that is missing of it is under way */
};

struct under_way {
    struct wire_fetch fetch;
    unsigned holder;
    bool urgent;
    int64_t sent;
};

struct fetch_order {
    struct source sources[VM_MAX_DISKS];
    size_t count;
    struct holder holders[FETCH_MAX_HOLDERS];
    struct demand *demands, **last_demand; /* what somebody waits for */
    struct demand *ahead, **last_ahead;    /* what will soon be */
    struct under_way under_way[MAX_UNDER_WAY];
    size_t under_way_count;
    uint64_t serial;
    uint64_t turn; /* counts the times that what can be asked for grew */
    struct fetch_order_numbers numbers;
};

/* --- lists ---------------------------------------------------------------------------------------------- */

static void put(struct demand ***last, size_t disk, struct range range)
{
    struct demand *demand = malloc(sizeof *demand);
    if (!demand)
        return; /* the rest brings it, later */
    *demand = (struct demand){.disk = disk, .range = range};
    **last = demand;
    *last = &demand->next;
}

/* Takes out the element that *at points to. */
static void drop(struct demand **at, struct demand ***last)
{
    struct demand *demand = *at;
    *at = demand->next;
    if (!*at)
        *last = at;
    free(demand);
}

static void drop_all(struct demand **first, struct demand ***last)
{
    while (*first)
        drop(first, last);
}

/* --- what is under way ---------------------------------------------------------------------------------- */

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

/* --- who has what --------------------------------------------------------------------------------------- */

static bool has(const struct fetch_order *order, unsigned holder, size_t disk, uint64_t block)
{
    const struct source *source = &order->sources[disk];
    const struct reach *reach = &order->holders[holder].reach[disk];
    if (holder == FETCH_LENDER)
        return true;
    if (!reach->newer || reach->upto <= (block < source->cursor ? source->reached : source->base))
        return false;
    uint64_t grain = block / source->grain;
    return !(reach->newer[grain / 8] >> grain % 8 & 1);
}

static bool others_have(const struct fetch_order *order, size_t disk, uint64_t block)
{
    for (unsigned i = FETCH_LENDER + 1; i < FETCH_MAX_HOLDERS; i++)
        if (order->holders[i].joined && has(order, i, disk, block))
            return true;
    return false;
}

/* Whoever answers soonest of those that have it. One whose answers have not been measured comes last. */
static bool is_quickest(const struct fetch_order *order, unsigned holder, size_t disk, uint64_t block)
{
    int64_t best = INT64_MAX;
    unsigned chosen = holder;
    for (unsigned i = 0; i < FETCH_MAX_HOLDERS; i++) {
        const struct holder *other = &order->holders[i];
        int64_t takes = other->path.shortest ? other->path.shortest : INT64_MAX - 1;
        if (other->joined && other->urgent_count < FETCH_URGENT_MAX && takes < best &&
            has(order, i, disk, block)) {
            best = takes;
            chosen = i;
        }
    }
    return chosen == holder;
}

enum find_of { FIND_ANY, FIND_ALONE }; /* ALONE: what no other holder has */

static bool fits(const struct fetch_order *order, unsigned holder, enum find_of of, size_t disk,
                 uint64_t block)
{
    return has(order, holder, disk, block) && (of == FIND_ANY || !others_have(order, disk, block));
}

/* The end of the blocks from `block` on, up to `end`, that fit, or do not, as the first does. They are looked
 * at by grains, and at the cursor, where what a copy is good for changes. */
static uint64_t same_until(const struct fetch_order *order, unsigned holder, enum find_of of, size_t disk,
                           uint64_t block, uint64_t end)
{
    const struct source *source = &order->sources[disk];
    bool first = fits(order, holder, of, disk, block);
    if (holder == FETCH_LENDER && of == FIND_ANY)
        return end;
    do {
        uint64_t next = (block / source->grain + 1) * source->grain;
        block = block < source->cursor ? MIN(next, source->cursor) : next;
    } while (block < end && fits(order, holder, of, disk, block) == first);
    return MIN(block, end);
}

/* The first missing blocks of the range that the holder has and nobody was asked for, at most `max` of one
 * bound. */
static bool find(const struct fetch_order *order, unsigned holder, enum find_of of, size_t disk,
                 uint64_t from, uint64_t end, uint64_t max, struct wire_fetch *ret)
{
    const struct source *source = &order->sources[disk];
    const struct reach *reach = &order->holders[holder].reach[disk];
    struct disk_run run;
    while (source->disk && from < end && disk_next_missing(source->disk, from, end, max, &run)) {
        if (is_under_way(order, disk, run.block, &from))
            continue;
        if (!fits(order, holder, of, disk, run.block)) {
            from = same_until(order, holder, of, disk, run.block, end);
            continue;
        }
        uint64_t stop = next_under_way(order, disk, run.block, run.block + run.count);
        stop = same_until(order, holder, of, disk, run.block, stop);
        bool below = run.block < source->cursor;
        if (below)
            stop = MIN(stop, source->cursor);
        *ret = (struct wire_fetch){
            .disk = (uint16_t)disk,
            .above = below ? source->reached : source->base,
            .upto = reach->newer ? reach->upto : source->upto,
            .block = run.block,
            .count = (uint32_t)(stop - run.block),
        };
        return true;
    }
    return false;
}

static void note(struct fetch_order *order, unsigned to, struct wire_fetch *fetch, bool urgent, int64_t now)
{
    struct holder *holder = &order->holders[to];
    fetch->serial = ++order->serial;
    order->under_way[order->under_way_count++] = (struct under_way){*fetch, to, urgent, now};
    holder->under_way_count++;
    if (urgent) {
        holder->urgent_count++;
        order->numbers.demands++;
    } else {
        holder->rest_bytes += (uint64_t)fetch->count * DISK_BLOCK;
        holder->rest_sent = now;
    }
}

static struct under_way take_back(struct fetch_order *order, size_t index)
{
    struct under_way gone = order->under_way[index];
    struct holder *holder = &order->holders[gone.holder];
    order->under_way[index] = order->under_way[--order->under_way_count];
    holder->under_way_count--;
    if (gone.urgent)
        holder->urgent_count--;
    else
        holder->rest_bytes -= (uint64_t)gone.fetch.count * DISK_BLOCK;
    return gone;
}

/* --- reading on ----------------------------------------------------------------------------------------- */

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

/* --- what comes next ------------------------------------------------------------------------------------ */

/* A demand stays in the list until all of it is here. */
static bool next_urgent(struct fetch_order *order, unsigned holder, int64_t now, struct wire_fetch *ret)
{
    if (order->holders[holder].urgent_count >= FETCH_URGENT_MAX)
        return false;
    for (struct demand **at = &order->demands; *at;) {
        struct demand *demand = *at;
        struct disk *disk = order->sources[demand->disk].disk;
        uint64_t begin = demand->range.block, end = begin + demand->range.count;
        struct disk_run run;
        if (!disk || !disk_next_missing(disk, begin, end, 1, &run)) {
            drop(at, &order->last_demand);
            continue;
        }
        bool found = !demand->asked &&
                     find(order, holder, FIND_ANY, demand->disk, begin, end, WIRE_FETCH_MAX_BLOCKS, ret);
        if (found && is_quickest(order, holder, demand->disk, ret->block)) {
            read_ahead(order, demand->disk, &(struct range){ret->block, ret->count}, now);
            return true;
        }
        if (!found && holder == FETCH_LENDER)
            demand->asked = true;
        at = &demand->next;
    }
    return false;
}

static bool next_ahead(struct fetch_order *order, unsigned holder, struct wire_fetch *ret)
{
    for (struct demand **at = &order->ahead; *at;) {
        const struct demand *ahead = *at;
        uint64_t begin = ahead->range.block;
        uint64_t end = MIN(begin + ahead->range.count, order->sources[ahead->disk].blocks);
        if (find(order, holder, FIND_ANY, ahead->disk, begin, end, FETCH_REST_BLOCKS, ret))
            return true;
        if (holder == FETCH_LENDER) /* what it lacks nobody has */
            drop(at, &order->last_ahead);
        else
            at = &(*at)->next;
    }
    return false;
}

static bool next_hot(struct fetch_order *order, unsigned holder, size_t disk, struct wire_fetch *ret)
{
    const struct source *source = &order->sources[disk];
    struct reach *reach = &order->holders[holder].reach[disk];
    while (reach->hot_at < source->hot_count) {
        uint64_t begin = source->hot[reach->hot_at] * source->extent_blocks;
        uint64_t end = MIN(begin + source->extent_blocks, source->blocks);
        if (find(order, holder, FIND_ANY, disk, begin + reach->hot_from, end, FETCH_REST_BLOCKS, ret)) {
            reach->hot_from = ret->block + ret->count - begin;
            return true;
        }
        reach->hot_at++;
        reach->hot_from = 0;
    }
    return false;
}

/* From where the last pass stands, then once more from the beginning: requests may have been lost. */
static bool next_by_address(struct fetch_order *order, unsigned holder, enum find_of of, size_t disk,
                            struct wire_fetch *ret)
{
    const struct source *source = &order->sources[disk];
    struct reach *reach = &order->holders[holder].reach[disk];
    if (reach->dry[of] == order->turn)
        return false;
    bool found = find(order, holder, of, disk, reach->next, source->blocks, FETCH_REST_BLOCKS, ret) ||
                 find(order, holder, of, disk, 0, reach->next, FETCH_REST_BLOCKS, ret);
    if (found)
        reach->next = ret->block + ret->count;
    else
        reach->dry[of] = order->turn;
    return found;
}

static bool has_company(const struct fetch_order *order)
{
    for (unsigned i = FETCH_LENDER + 1; i < FETCH_MAX_HOLDERS; i++)
        if (order->holders[i].joined)
            return true;
    return false;
}

static bool next_rest(struct fetch_order *order, unsigned holder, struct wire_fetch *ret)
{
    if (next_ahead(order, holder, ret))
        return true;
    for (size_t i = 0; i < order->count; i++)
        if (next_hot(order, holder, i, ret))
            return true;
    for (size_t i = 0; holder == FETCH_LENDER && has_company(order) && i < order->count; i++)
        if (next_by_address(order, holder, FIND_ALONE, i, ret))
            return true;
    for (size_t i = 0; i < order->count; i++)
        if (next_by_address(order, holder, FIND_ANY, i, ret))
            return true;
    return false;
}

bool fetch_order_next(struct fetch_order *order, unsigned holder, int64_t now, struct wire_fetch *ret,
                      bool *ret_urgent, int64_t *ret_again)
{
    const struct holder *asked = &order->holders[holder];
    *ret_again = now + NSEC_PER_SEC;
    if (!asked->joined || order->under_way_count == MAX_UNDER_WAY ||
        asked->under_way_count == MAX_UNDER_WAY_TO_ONE)
        return false;
    *ret_urgent = next_urgent(order, holder, now, ret);
    if (*ret_urgent) {
        note(order, holder, ret, true, now);
        return true;
    }
    if (asked->rest_bytes >= fetch_path_window(&asked->path))
        return false;
    if (asked->urgent_count && now - asked->rest_sent < REST_ANYWAY_NS) {
        *ret_again = asked->rest_sent + REST_ANYWAY_NS;
        return false;
    }
    if (!next_rest(order, holder, ret))
        return false;
    note(order, holder, ret, false, now);
    return true;
}

/* --- what was answered ---------------------------------------------------------------------------------- */

bool fetch_order_expects(const struct fetch_order *order, unsigned holder, size_t disk,
                         const struct disk_run *run)
{
    for (size_t i = 0; i < order->under_way_count; i++) {
        const struct wire_fetch *fetch = &order->under_way[i].fetch;
        if (order->under_way[i].holder == holder && fetch->disk == disk && run->block >= fetch->block &&
            run->block + run->count <= fetch->block + fetch->count && run->generation > fetch->above &&
            run->generation <= fetch->upto)
            return true;
    }
    return false;
}

/* On the same connection. */
static bool is_before(const struct under_way *a, const struct under_way *b)
{
    return a->holder == b->holder && a->urgent == b->urgent && a->fetch.serial < b->fetch.serial;
}

bool fetch_order_answered(struct fetch_order *order, unsigned holder, const struct wire_fetch *fetch,
                          uint64_t bytes, int64_t now)
{
    size_t i = 0;
    while (i < order->under_way_count && order->under_way[i].fetch.serial != fetch->serial)
        i++;
    if (i == order->under_way_count || order->under_way[i].holder != holder)
        return false;
    const struct wire_fetch *asked = &order->under_way[i].fetch;
    if (asked->disk != fetch->disk || asked->block != fetch->block || asked->count != fetch->count)
        return false;
    for (size_t n = 0; n < order->under_way_count; n++)
        if (is_before(&order->under_way[n], &order->under_way[i]))
            return false;
    struct under_way done = take_back(order, i);
    order->holders[holder].answered[done.urgent] = now;
    double seconds = (double)(now - done.sent) / NSEC_PER_SEC;
    if (done.urgent) {
        struct fetch_order_numbers *numbers = &order->numbers;
        numbers->demand_seconds =
            numbers->demand_seconds == 0
                ? seconds
                : numbers->demand_seconds * (1 - DEMAND_WEIGHT) + seconds * DEMAND_WEIGHT;
    }
    fetch_path_answered(&order->holders[holder].path, bytes, now - done.sent, now);
    return true;
}

bool fetch_order_is_late(const struct fetch_order *order, unsigned holder, int64_t now)
{
    for (size_t i = 0; i < order->under_way_count; i++) {
        const struct under_way *asked = &order->under_way[i];
        if (asked->holder == holder &&
            now - MAX(asked->sent, order->holders[holder].answered[asked->urgent]) > FETCH_PATIENCE_NS)
            return true;
    }
    return false;
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
    for (unsigned i = 0; i < FETCH_MAX_HOLDERS; i++)
        ret->rate += order->holders[i].path.rate;
}

uint64_t fetch_order_rate(const struct fetch_order *order, unsigned holder)
{
    return order->holders[holder].path.rate;
}

/* --- holders -------------------------------------------------------------------------------------------- */

int fetch_order_share(struct fetch_order *order, unsigned holder, size_t disk, uint32_t upto,
                      const uint8_t *newer)
{
    const struct source *source = &order->sources[disk];
    if (disk >= order->count || !source->disk)
        return 0;
    size_t size = split_newer_size(source->blocks);
    uint8_t *copy = malloc(size);
    if (!copy)
        return -ENOMEM;
    memcpy(copy, newer, size);
    struct reach *reach = &order->holders[holder].reach[disk];
    free(reach->newer);
    *reach = (struct reach){.upto = upto, .newer = copy};
    order->turn++;
    return 0;
}

void fetch_order_join(struct fetch_order *order, unsigned holder)
{
    order->holders[holder].joined = true;
    order->turn++;
}

void fetch_order_leave(struct fetch_order *order, unsigned holder)
{
    struct holder *gone = &order->holders[holder];
    for (size_t i = order->under_way_count; i-- > 0;)
        if (order->under_way[i].holder == holder)
            take_back(order, i);
    for (struct demand *demand = order->demands; demand; demand = demand->next)
        demand->asked = false;
    order->turn++;
    for (size_t i = 0; i < order->count; i++)
        free(gone->reach[i].newer);
    *gone = (struct holder){0};
}

/* --- the object ----------------------------------------------------------------------------------------- */

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
        .grain = split_grain_blocks(disk_blocks(disk)),
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
    order->turn = 1;
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
    drop_all(&order->demands, &order->last_demand);
    drop_all(&order->ahead, &order->last_ahead);
    for (size_t i = 0; i < order->count; i++) {
        free(order->sources[i].hot);
        for (unsigned n = 0; n < FETCH_MAX_HOLDERS; n++)
            free(order->holders[n].reach[i].newer);
    }
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
    for (unsigned i = 0; i < FETCH_MAX_HOLDERS; i++) {
        order->holders[i].reach[disk].hot_at = 0;
        order->holders[i].reach[disk].hot_from = 0;
    }
    return 0;
}
