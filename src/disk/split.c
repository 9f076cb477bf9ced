/* SPDX-License-Identifier: Apache-2.0
 *
 * What becomes split, what comes, and how it ends. The data path's half is in data.c, who waits in wait.c,
 * the record in missing.c, its being made durable in checkpoint.c.
 *
 * The record is on the disk before the lineage names the hand-over, and the claim is SPLIT only after the
 * caller knows that the VM is ours; at the end the claim is OWNER before the record goes. So at each moment a
 * crash finds either a copy that need not know what it lacks, or one that knows.
 *
 * A fill needs no intent: until its number is durable the block is missing after a power cut, and is fetched
 * again.
 */
#include "disk/split.h"

#include "base/file.h"
#include "base/macro.h"
#include "disk/private.h"

#include <errno.h>
#include <string.h>

#define MIN_EXTENT (UINT64_C(1048576) / DISK_BLOCK)

uint64_t split_extent_blocks(uint64_t disk_blocks)
{
    uint64_t extent = MIN_EXTENT;
    while ((disk_blocks + extent - 1) / extent > SPLIT_MAX_EXTENTS)
        extent *= 2;
    return extent;
}

uint64_t split_extents(uint64_t disk_blocks)
{
    uint64_t extent = split_extent_blocks(disk_blocks);
    return (disk_blocks + extent - 1) / extent;
}

static size_t picture_size(uint64_t disk_blocks)
{
    return (size_t)((split_extents(disk_blocks) + 7) / 8);
}

/* --- the source ---------------------------------------------------------------------------------------- */

static void draw_run(const struct disk_run *run, uint64_t extent, uint8_t *bits)
{
    uint64_t last = (run->block + run->count - 1) / extent;
    for (uint64_t e = run->block / extent; e <= last; e++)
        bits[e / 8] |= (uint8_t)(1U << e % 8);
}

/* Blocks of [from, end) with numbers in (above, upto]; `extent` blocks to a bit. */
static uint64_t draw(const struct disk *disk, uint64_t from, uint64_t end, uint32_t above, uint32_t upto,
                     uint64_t extent, uint8_t *bits)
{
    uint64_t count = 0;
    struct disk_run run;
    while (from < end && disk_next_run(disk, from, above, upto, end - from, &run) && run.block < end) {
        run.count = MIN(run.count, end - run.block);
        draw_run(&run, extent, bits);
        count += run.count;
        from = run.block + run.count;
    }
    return count;
}

int split_picture(const struct disk *disk, const struct lineage_base *base, uint32_t upto, uint8_t **ret_bits,
                  size_t *ret_size, uint64_t *ret_blocks, struct err *err)
{
    uint64_t blocks = disk_blocks(disk), turn = MIN(base->cursor, blocks);
    uint64_t extent = split_extent_blocks(blocks);
    size_t size = picture_size(blocks);
    uint8_t *bits = calloc(1, size);
    if (!bits)
        return err_set(err, ENOMEM, "out of memory listing what is new on %s", disk_path(disk));
    *ret_blocks = draw(disk, 0, turn, MAX(base->reached, base->base), upto, extent, bits) +
                  draw(disk, turn, blocks, base->base, upto, extent, bits);
    *ret_bits = bits;
    *ret_size = size;
    return 0;
}

uint64_t split_grain_blocks(uint64_t disk_blocks)
{
    uint64_t grain = 1;
    while ((disk_blocks + grain - 1) / grain > SPLIT_MAX_GRAINS)
        grain *= 2;
    return grain;
}

size_t split_newer_size(uint64_t disk_blocks)
{
    uint64_t grain = split_grain_blocks(disk_blocks);
    return (size_t)((disk_blocks + grain - 1) / grain + 7) / 8;
}

int split_newer(const struct disk *disk, uint32_t above, uint8_t **ret_bits, size_t *ret_size,
                struct err *err)
{
    uint64_t blocks = disk_blocks(disk);
    uint8_t *bits = calloc(1, split_newer_size(blocks));
    if (!bits)
        return err_set(err, ENOMEM, "out of memory listing what is new on %s", disk_path(disk));
    draw(disk, 0, blocks, above, UINT32_MAX, split_grain_blocks(blocks), bits);
    *ret_bits = bits;
    *ret_size = split_newer_size(blocks);
    return 0;
}

/* --- the record: made, found, removed ------------------------------------------------------------------ */

static int record_path(const struct disk *disk, char ret[PATH_MAX], struct err *err)
{
    return side_path(disk->path, SUFFIX_MISSING, ret, err);
}

bool split_fits(const struct missing *missing, const struct lineage *lineage)
{
    const struct lineage_entry *newest = lineage_newest(lineage);
    return newest && newest->generation == missing->header.generation &&
           id_equal(&newest->id, &missing->header.handover) && lineage->size == missing->header.size;
}

static int remove_record(const struct disk *disk, struct err *err)
{
    char path[PATH_MAX];
    int r = record_path(disk, path, err);
    if (r < 0)
        return r;
    if (unlink(path) < 0)
        return errno == ENOENT ? 0 : err_sys(err, errno, "cannot remove %s", path);
    return file_sync_parent(path, err);
}

int split_forget(struct disk *disk, struct err *err)
{
    int r = remove_record(disk, err);
    if (r < 0)
        return r;
    missing_free(disk->expected);
    disk->expected = NULL;
    return 0;
}

void split_begin(struct disk *disk)
{
    if (!disk->expected)
        return; /* it was split already */
    atomic_store(&disk->split, disk->expected);
    disk->expected = NULL;
}

void split_free(struct disk *disk)
{
    missing_free(atomic_load(&disk->split));
    missing_free(disk->expected);
    missing_free(disk->former);
}

/* *ret is NULL when there is none that fits. */
static int open_record(struct disk *disk, struct missing **ret, struct err *err)
{
    char path[PATH_MAX];
    struct id boot;
    struct missing *missing = NULL;
    int r = record_path(disk, path, err);
    if (r == 0)
        r = intent_boot(&boot, err);
    if (r == 0)
        r = missing_open(path, disk->read_only, &boot, &missing, err);
    if (r < 0 || !missing)
        return r;
    if (!id_equal(&missing->header.map, &disk->map->header.map) || !split_fits(missing, disk->lineage)) {
        missing_free(missing);
        return err_set(err, EBADMSG, "%s is of another hand-over", path);
    }
    *ret = missing;
    return 0;
}

static bool is_no_record(int r)
{
    return r == -ENOENT || r == -EBADMSG;
}

int split_load(struct disk *disk, struct err *err)
{
    enum lineage_claim claim = disk->lineage->claim;
    struct missing *missing = NULL;
    struct err why = ERR_NONE;
    int r = 0;
    if (claim == LINEAGE_SPLIT || (claim == LINEAGE_PARTIAL && !disk->read_only))
        r = open_record(disk, &missing, &why);
    if (claim == LINEAGE_SPLIT && r < 0) {
        err_set(err, why.code, "what is missing of the split disk %s is not known: %s", disk->path, why.text);
        if (is_no_record(r))
            err_hint(err, "on a host with a replica: orai recover NAME --run-here");
        return r;
    }
    if (r < 0 && !is_no_record(r))
        return err_set(err, why.code, "%s", why.text);
    if (claim == LINEAGE_SPLIT)
        atomic_store(&disk->split, missing);
    else
        disk->expected = missing;
    if (!missing && !disk->read_only)
        (void)remove_record(disk, NULL); /* what stays of one is ignored */
    return 0;
}

/* --- becoming split ------------------------------------------------------------------------------------ */

static int check_picture(const struct disk *disk, const uint8_t *bits, size_t size, struct err *err)
{
    uint64_t extents = split_extents(disk->map->blocks);
    if (size != picture_size(disk->map->blocks) || (extents % 8 != 0 && bits[size - 1] >> extents % 8 != 0))
        return err_set(err, EPROTO, "the list of what will be missing is not of a disk of %llu bytes",
                       (unsigned long long)disk->image.size);
    return 0;
}

static int check_expectation(const struct disk *disk, const struct lineage *lineage, struct err *err)
{
    const struct lineage_entry *newest = lineage_newest(lineage);
    if (disk->read_only || disk->lineage->claim != LINEAGE_PARTIAL || !gate_is_frozen(&disk->gate))
        return err_set(err, EROFS, "%s can become split only while it is a frozen partial replica",
                       disk->path);
    if (lineage->claim != LINEAGE_PARTIAL || !newest || newest->kind != LINEAGE_HANDOVER)
        return err_set(err, EPROTO, "the lineage of a disk that becomes split must end with its hand-over");
    return 0;
}

static int make_record(struct disk *disk, const struct lineage *lineage, const uint8_t *bits, struct err *err)
{
    const struct lineage_entry *handover = lineage_newest(lineage);
    struct missing_header header = {.map = disk->map->header.map,
                                    .handover = handover->id,
                                    .generation = handover->generation,
                                    .size = disk->image.size};
    char path[PATH_MAX];
    int r = record_path(disk, path, err);
    if (r == 0)
        r = intent_boot(&header.boot, err);
    if (r == 0)
        r = missing_create(path, &header, bits, split_extent_blocks(disk->map->blocks), err);
    return r == 0 ? missing_open(path, false, &header.boot, &disk->expected, err) : r;
}

static int expect(struct disk *disk, const struct lineage *lineage, const uint8_t *bits, size_t size,
                  struct err *err)
{
    int r = check_expectation(disk, lineage, err);
    if (r == 0)
        r = check_picture(disk, bits, size, err);
    if (r == 0 && disk->expected)
        r = split_forget(disk, err);
    if (r == 0)
        r = make_record(disk, lineage, bits, err);
    if (r < 0)
        return r;
    r = lineage_change(disk, lineage, err);
    if (r < 0 && disk->expected)
        (void)split_forget(disk, NULL);
    return r;
}

int disk_expect(struct disk *disk, const struct lineage *lineage, const uint8_t *bits, size_t size,
                struct err *err)
{
    pthread_mutex_lock(&disk->control);
    int r = expect(disk, lineage, bits, size, err);
    pthread_mutex_unlock(&disk->control);
    return r;
}

bool disk_may_split(const struct disk *disk)
{
    pthread_mutex_t *lock = (pthread_mutex_t *)&disk->control; /* locking does not change the disk */
    pthread_mutex_lock(lock);
    bool may = disk->expected != NULL;
    pthread_mutex_unlock(lock);
    return may;
}

/* --- while it is split --------------------------------------------------------------------------------- */

bool disk_is_split(const struct disk *disk)
{
    return atomic_load(&disk->split) != NULL;
}

uint64_t disk_missing(const struct disk *disk)
{
    const struct missing *split = atomic_load(&disk->split);
    return split ? atomic_load(&split->count) : 0;
}

bool disk_next_missing(const struct disk *disk, uint64_t from, uint64_t end, uint64_t max_blocks,
                       struct disk_run *ret)
{
    const struct missing *split = atomic_load(&disk->split);
    end = MIN(end, disk->map->blocks);
    if (!split || max_blocks == 0 || (from = missing_next(split, from, end)) >= end)
        return false;
    end = missing_next_here(split, from, from + MIN(max_blocks, end - from));
    *ret = (struct disk_run){.block = from, .count = end - from};
    return true;
}

static bool is_missing(const struct missing *split, uint64_t block)
{
    return missing_next(split, block, block + 1) == block;
}

size_t split_lacks(const struct missing *split, uint64_t disk_size, enum disk_need_kind kind, uint64_t size,
                   uint64_t offset, struct disk_need ret[2])
{
    if (size == 0)
        return 0;
    size_t count = 0;
    uint64_t end = offset + size, first = offset / DISK_BLOCK, last = (end - 1) / DISK_BLOCK;
    if (kind == DISK_NEED_ALL) {
        uint64_t from = missing_next(split, first, last + 1);
        if (from <= last)
            ret[count++] = (struct disk_need){from, last + 1 - from};
        return count;
    }
    bool head = offset % DISK_BLOCK != 0, tail = end % DISK_BLOCK != 0 && end != disk_size;
    if ((head || (tail && first == last)) && is_missing(split, first))
        ret[count++] = (struct disk_need){first, 1};
    if (tail && first != last && is_missing(split, last))
        ret[count++] = (struct disk_need){last, 1};
    return count;
}

bool disk_ready(struct disk *disk, enum disk_need_kind kind, uint64_t size, uint64_t offset, unsigned *told)
{
    const struct missing *split = atomic_load(&disk->split);
    struct disk_need needs[2];
    size_t count = split ? split_lacks(split, disk->image.size, kind, size, offset, needs) : 0;
    if (count > 0 && *told != waiting_turn(&disk->waiting))
        *told = waiting_tell(&disk->waiting, needs, count);
    return count == 0;
}

/* --- what comes ---------------------------------------------------------------------------------------- */

pthread_mutex_t *split_stripe(struct missing *split, uint64_t block)
{
    return &split->stripes[block / MIN_EXTENT % MISSING_STRIPES];
}

uint64_t split_stripe_end(const struct missing *split, uint64_t block)
{
    return MIN((block / MIN_EXTENT + 1) * MIN_EXTENT, split->blocks);
}

static int check_range(const struct disk *disk, uint64_t block, uint64_t count, struct err *err)
{
    if (block <= disk->map->blocks && count <= disk->map->blocks - block)
        return 0;
    return err_set(err, EPROTO, "a run for the split disk %s lies outside it", disk->path);
}

/* With the stripe's lock: [from, end) within one extent, `data` that of `from`. */
static int fill_missing(struct disk *disk, struct missing *split, uint64_t from, uint64_t end,
                        const uint8_t *data)
{
    int r = 0;
    uint64_t stop;
    for (uint64_t at = from; r == 0 && (at = missing_next(split, at, end)) < end; at = stop) {
        stop = missing_next_here(split, at, end);
        uint64_t offset = at * DISK_BLOCK, size = MIN(stop * DISK_BLOCK, disk->image.size) - offset;
        r = data ? image_write(&disk->image, data + (at - from) * DISK_BLOCK, size, offset)
                 : image_punch(&disk->image, size, offset, false);
        if (r == 0)
            missing_clear(split, at, stop);
    }
    return r;
}

static int fill(struct disk *disk, struct missing *split, const struct disk_run *run, const uint8_t *data)
{
    int r = genmap_mark(disk->map, run->block, run->count, run->generation);
    uint64_t end = run->block + run->count, stop;
    for (uint64_t at = run->block; r == 0 && at < end; at = stop) {
        stop = MIN(end, split_stripe_end(split, at));
        pthread_mutex_t *stripe = split_stripe(split, at);
        pthread_mutex_lock(stripe);
        r = fill_missing(disk, split, at, stop, data ? data + (at - run->block) * DISK_BLOCK : NULL);
        pthread_mutex_unlock(stripe);
    }
    return r;
}

int disk_fill(struct disk *disk, const struct disk_run *run, const void *data, struct err *err)
{
    struct missing *split = atomic_load(&disk->split);
    int r = check_range(disk, run->block, run->count, err);
    if (r < 0 || !split || run->count == 0)
        return r; /* nothing is missing of a disk that is not split */
    if (disk->read_only)
        return err_set(err, EROFS, "%s is opened read-only", disk->path);
    if (run->generation > split->header.generation)
        return err_set(err, EPROTO, "block %llu of %s was sent with generation %u; it left with %u",
                       (unsigned long long)run->block, disk->path, run->generation, split->header.generation);
    r = fill(disk, split, run, data);
    waiting_wake(&disk->waiting); /* part of it may be here even then */
    if (r == -ENOSPC) {
        err_set(err, ENOSPC, "no space left for the image %s", disk->path);
        err_hint(err, "free space here: the VM waits for its disk");
        return -ENOSPC;
    }
    return r < 0 ? err_sys(err, r, "cannot write the image %s", disk->path) : 0;
}

int disk_filled(struct disk *disk, uint64_t block, uint64_t count, struct err *err)
{
    struct missing *split = atomic_load(&disk->split);
    int r = check_range(disk, block, count, err);
    if (r < 0 || !split)
        return r;
    if (disk->read_only)
        return err_set(err, EROFS, "%s is opened read-only", disk->path);
    uint64_t end = block + count, stop;
    for (uint64_t at = block; at < end; at = stop) {
        stop = MIN(end, split_stripe_end(split, at));
        /* A fill of the same blocks by another thread must not come after a write that this one allows. */
        pthread_mutex_t *stripe = split_stripe(split, at);
        pthread_mutex_lock(stripe);
        missing_clear(split, at, stop);
        pthread_mutex_unlock(stripe);
    }
    waiting_wake(&disk->waiting);
    return 0;
}

/* --- the end ------------------------------------------------------------------------------------------- */

static int make_owner(struct disk *disk, struct err *err)
{
    _cleanup_(lineage_cleanup) struct lineage *lineage = NULL;
    int r = lineage_copy(disk->lineage, &lineage);
    if (r < 0)
        return err_sys(err, r, "cannot copy the lineage of %s", disk->path);
    lineage->claim = LINEAGE_OWNER;
    lineage->complete = lineage->reached = 0;
    lineage->cursor = 0;
    return lineage_change(disk, lineage, err);
}

static int become_whole(struct disk *disk, struct err *err)
{
    struct missing *split = atomic_load(&disk->split);
    if (!split)
        return 0;
    if (disk->read_only)
        return err_set(err, EROFS, "%s is opened read-only", disk->path);
    uint64_t count = atomic_load(&split->count);
    if (count > 0)
        return err_set(err, EBUSY, "%llu blocks of %s are still missing", (unsigned long long)count,
                       disk->path);
    int r = make_owner(disk, err);
    if (r < 0)
        return r;
    atomic_store(&disk->split, NULL);
    split->former = disk->former;
    disk->former = split;
    (void)remove_record(disk, NULL); /* an owner's record means nothing; the next opening tries again */
    return 0;
}

int disk_whole(struct disk *disk, struct err *err)
{
    pthread_mutex_lock(&disk->control);
    int r = become_whole(disk, err);
    pthread_mutex_unlock(&disk->control);
    return r;
}
