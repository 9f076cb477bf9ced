/* SPDX-License-Identifier: Apache-2.0
 *
 * The data path. A write is, in this order: through the gate; its extents' intents durable; its blocks marked
 * with the current generation; its data; out of the gate. The generation is read behind the gate: a write
 * that began after disk_advance raised it can only see the new one.
 *
 * On a split disk (split.h) a write of missing blocks happens under the lock of their extent, and clears
 * their bits at the end; the parts of it with nothing missing go as ever.
 */
#include "disk/private.h"

#include "base/macro.h"

#include <errno.h>
#include <string.h>

static bool outside(const struct disk *disk, uint64_t size, uint64_t offset)
{
    return offset > disk->image.size || size > disk->image.size - offset;
}

/* Always -EAGAIN, for a request that cannot be served yet. */
static int demand(struct disk *disk, enum disk_need_kind kind, uint64_t size, uint64_t offset)
{
    unsigned told = 0;
    (void)disk_ready(disk, kind, size, offset, &told); /* if it has come meanwhile, the next try finds it */
    return -EAGAIN;
}

static bool lacks(const struct disk *disk, const struct missing *split, enum disk_need_kind kind,
                  uint64_t size, uint64_t offset)
{
    struct disk_need unused[2];
    return split && split_lacks(split, disk->image.size, kind, size, offset, unused) > 0;
}

int disk_read(struct disk *disk, void *data, size_t size, uint64_t offset)
{
    if (outside(disk, size, offset))
        return -EINVAL;
    if (lacks(disk, atomic_load(&disk->split), DISK_NEED_ALL, size, offset))
        return demand(disk, DISK_NEED_ALL, size, offset);
    return image_read(&disk->image, data, size, offset);
}

/* Behind the gate: from here on the blocks count as written. */
static int mark(struct disk *disk, uint64_t size, uint64_t offset)
{
    struct disk_range range = {.offset = offset, .size = size};
    int r = intent_cover(&disk->intent, &range, 1);
    if (r < 0)
        return r;
    uint64_t first = offset / DISK_BLOCK, last = (offset + size - 1) / DISK_BLOCK;
    return genmap_mark(disk->map, first, last - first + 1, atomic_load(&disk->current));
}

/* The next place at or after `from` that is not both a hole and never written, at most `end`. */
static uint64_t next_used(struct disk *disk, uint64_t from, uint64_t end)
{
    uint64_t block = genmap_next_marked(disk->map, from / DISK_BLOCK);
    uint64_t marked = block < disk->map->blocks ? MAX(block * DISK_BLOCK, from) : end;
    if (marked == from)
        return from;
    return MIN(MIN(marked, image_next_data(&disk->image, from)), end);
}

/* `from` is used; where does that end? */
static uint64_t next_unused(struct disk *disk, uint64_t from, uint64_t end)
{
    uint64_t block = from / DISK_BLOCK;
    while (block < disk->map->blocks && block * DISK_BLOCK < end && genmap_get(disk->map, block) != 0)
        block++;
    uint64_t marked = block * DISK_BLOCK;
    if (marked <= from) { /* data that was never written through us */
        uint64_t hole = image_next_hole(&disk->image, from);
        marked = (hole + DISK_BLOCK - 1) / DISK_BLOCK * DISK_BLOCK;
    }
    return MIN(marked, end);
}

/* Zeroes what is not a hole that was never written anyway: a guest that trims its new, empty disk leaves no
 * trace. */
static int punch_used(struct disk *disk, uint64_t size, uint64_t offset, bool fast)
{
    uint64_t end = offset + size;
    int r = 0;
    while (r == 0 && (offset = next_used(disk, offset, end)) < end) {
        uint64_t stop = next_unused(disk, offset, end);
        r = mark(disk, stop - offset, offset);
        if (r == 0)
            r = image_punch(&disk->image, stop - offset, offset, fast);
        offset = stop;
    }
    return r;
}

/* What is to be done to a range; behind the gate. */
struct change {
    enum { CHANGE_WRITE, CHANGE_ZERO, CHANGE_PUNCH } kind;
    bool fast;
    const uint8_t *data; /* WRITE: that of the range's first byte */
};

/* DISK_COMPARE: only the blocks that differ are written, and count as written. */
static int write_changed(struct disk *disk, const uint8_t *data, uint64_t size, uint64_t offset)
{
    uint8_t here[DISK_BLOCK];
    int r = 0;
    for (uint64_t end = offset + size; r == 0 && offset < end;) {
        size_t part = MIN(DISK_BLOCK - offset % DISK_BLOCK, end - offset);
        r = image_read(&disk->image, here, part, offset);
        if (r == 0 && memcmp(here, data, part) != 0) {
            r = mark(disk, part, offset);
            if (r == 0)
                r = image_write(&disk->image, data, part, offset);
        }
        data += part;
        offset += part;
    }
    return r;
}

/* `missing`: some of the range is not here, so that what the map and the image say of it is of the past. */
static int apply(struct disk *disk, const struct change *change, uint64_t size, uint64_t offset, bool missing)
{
    if (change->kind == CHANGE_PUNCH && !missing)
        return punch_used(disk, size, offset, change->fast);
    if (change->kind == CHANGE_WRITE && disk->compare && !missing)
        return write_changed(disk, change->data, size, offset);
    int r = mark(disk, size, offset);
    if (r < 0)
        return r;
    if (change->kind == CHANGE_WRITE)
        return image_write(&disk->image, change->data, size, offset);
    return change->kind == CHANGE_ZERO ? image_zero(&disk->image, size, offset, change->fast)
                                       : image_punch(&disk->image, size, offset, change->fast);
}

/* The range lies within one extent. What it covers in part is here. */
static int apply_missing(struct disk *disk, struct missing *split, const struct change *change, uint64_t size,
                         uint64_t offset)
{
    uint64_t from = (offset + DISK_BLOCK - 1) / DISK_BLOCK, end = offset + size;
    uint64_t whole_end = end == disk->image.size ? disk->map->blocks : end / DISK_BLOCK;
    pthread_mutex_t *stripe = split_stripe(split, offset / DISK_BLOCK);
    pthread_mutex_lock(stripe);
    int r = apply(disk, change, size, offset, true);
    uint64_t cleared = r == 0 && from < whole_end ? missing_clear(split, from, whole_end) : 0;
    pthread_mutex_unlock(stripe);
    if (cleared > 0)
        waiting_wake(&disk->waiting);
    return r;
}

static int apply_split(struct disk *disk, struct missing *split, struct change change, uint64_t size,
                       uint64_t offset)
{
    int r = 0;
    for (uint64_t end = offset + size, stop; r == 0 && offset < end; offset = stop) {
        uint64_t block = offset / DISK_BLOCK;
        uint64_t next = missing_next(split, block, (end + DISK_BLOCK - 1) / DISK_BLOCK);
        if (next > block) {
            stop = MIN(next * DISK_BLOCK, end);
            r = apply(disk, &change, stop - offset, offset, false);
        } else {
            stop = MIN(split_stripe_end(split, block) * DISK_BLOCK, end);
            r = apply_missing(disk, split, &change, stop - offset, offset);
        }
        if (change.data)
            change.data += stop - offset;
    }
    return r;
}

static int change_range(struct disk *disk, const struct change *change, uint64_t size, uint64_t offset)
{
    if (disk->read_only)
        return -EROFS;
    if (outside(disk, size, offset))
        return -EINVAL;
    if (size == 0)
        return 0;
    unsigned slot = gate_enter(&disk->gate);
    /* In this order: a disk is split before it may be written. */
    int r = atomic_load(&disk->writable) ? 0 : -EROFS;
    struct missing *split = atomic_load(&disk->split);
    bool waits = r == 0 && lacks(disk, split, DISK_NEED_EDGES, size, offset);
    if (r == 0 && !waits)
        r = split ? apply_split(disk, split, *change, size, offset)
                  : apply(disk, change, size, offset, false);
    gate_exit(&disk->gate, slot);
    return waits ? demand(disk, DISK_NEED_EDGES, size, offset) : r;
}

int disk_write(struct disk *disk, const void *data, size_t size, uint64_t offset, bool fua)
{
    const struct change change = {.kind = CHANGE_WRITE, .data = data};
    int r = change_range(disk, &change, size, offset);
    return r == 0 && fua && size > 0 ? disk_flush(disk) : r;
}

int disk_zero(struct disk *disk, uint64_t size, uint64_t offset, unsigned flags)
{
    const struct change change = {.kind = flags & DISK_ZERO_NO_HOLE ? CHANGE_ZERO : CHANGE_PUNCH,
                                  .fast = flags & DISK_ZERO_FAST};
    int r = change_range(disk, &change, size, offset);
    return r == 0 && size > 0 && flags & DISK_ZERO_FUA ? disk_flush(disk) : r;
}

int disk_trim(struct disk *disk, uint64_t size, uint64_t offset, bool fua)
{
    return disk_zero(disk, size, offset, fua ? DISK_ZERO_FUA : 0);
}

int disk_flush(struct disk *disk)
{
    if (disk->read_only)
        return 0;
    struct missing *split = atomic_load(&disk->split);
    int r = split ? flush_split(disk, split) : image_sync(&disk->image);
    if (r < 0 && r != -ENOMEM) {
        pthread_mutex_lock(&disk->control);
        distrust(disk);
        pthread_mutex_unlock(&disk->control);
    }
    return r;
}

static int check_ranges(const struct disk *disk, const struct disk_range *ranges, size_t count)
{
    if (disk->read_only)
        return -EROFS;
    for (size_t i = 0; i < count; i++)
        if (outside(disk, ranges[i].size, ranges[i].offset))
            return -EINVAL;
    return 0;
}

int disk_intend(struct disk *disk, const struct disk_range *ranges, size_t count)
{
    int r = check_ranges(disk, ranges, count);
    /* No gate: a checkpoint that forgets this again costs the write its own intent, no more. */
    return r < 0 ? r : intent_cover(&disk->intent, ranges, count);
}

int disk_touch(struct disk *disk, const struct disk_range *ranges, size_t count)
{
    int r = check_ranges(disk, ranges, count);
    if (r < 0)
        return r;
    unsigned slot = gate_enter(&disk->gate);
    if (!atomic_load(&disk->writable))
        r = -EROFS;
    for (size_t i = 0; i < count && r == 0; i++)
        if (ranges[i].size > 0)
            r = mark(disk, ranges[i].size, ranges[i].offset);
    gate_exit(&disk->gate, slot);
    return r;
}

int disk_extent(struct disk *disk, uint64_t offset, uint64_t size, struct disk_extent *ret)
{
    if (size == 0 || outside(disk, size, offset))
        return -EINVAL;
    uint64_t end = offset + size, block = offset / DISK_BLOCK;
    const struct missing *split = atomic_load(&disk->split);
    if (split) { /* what is missing counts as data */
        uint64_t blocks_end = (end + DISK_BLOCK - 1) / DISK_BLOCK;
        uint64_t missing = missing_next(split, block, blocks_end);
        if (missing == block) {
            end = MIN(end, missing_next_here(split, block, blocks_end) * DISK_BLOCK);
            *ret = (struct disk_extent){.length = end - offset};
            return 0;
        }
        end = MIN(end, missing * DISK_BLOCK);
    }
    uint64_t data = image_next_data(&disk->image, offset);
    if (data > offset)
        *ret = (struct disk_extent){.length = MIN(data, end) - offset, .hole = true};
    else
        *ret = (struct disk_extent){.length = MIN(image_next_hole(&disk->image, offset), end) - offset};
    return 0;
}

void disk_freeze(struct disk *disk)
{
    pthread_mutex_lock(&disk->control);
    gate_freeze(&disk->gate);
    pthread_mutex_unlock(&disk->control);
}

void disk_thaw(struct disk *disk)
{
    pthread_mutex_lock(&disk->control);
    gate_thaw(&disk->gate);
    pthread_mutex_unlock(&disk->control);
}
