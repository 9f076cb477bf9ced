/* SPDX-License-Identifier: Apache-2.0
 *
 * The data path. A write is, in this order: through the gate; its extents' intents durable; its blocks marked
 * with the current generation; its data; out of the gate. The generation is read behind the gate: a write
 * that began after disk_advance raised it can only see the new one.
 */
#include "disk/private.h"

#include "base/macro.h"

#include <errno.h>

static bool outside(const struct disk *disk, uint64_t size, uint64_t offset)
{
    return offset > disk->image.size || size > disk->image.size - offset;
}

int disk_read(struct disk *disk, void *data, size_t size, uint64_t offset)
{
    return outside(disk, size, offset) ? -EINVAL : image_read(&disk->image, data, size, offset);
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

int disk_write(struct disk *disk, const void *data, size_t size, uint64_t offset, bool fua)
{
    if (disk->read_only)
        return -EROFS;
    if (outside(disk, size, offset))
        return -EINVAL;
    if (size == 0)
        return 0;
    unsigned slot = gate_enter(&disk->gate);
    int r = atomic_load(&disk->writable) ? mark(disk, size, offset) : -EROFS;
    if (r == 0)
        r = image_write(&disk->image, data, size, offset);
    gate_exit(&disk->gate, slot);
    return r == 0 && fua ? disk_flush(disk) : r;
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
static int punch(struct disk *disk, uint64_t size, uint64_t offset, bool fast)
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

int disk_zero(struct disk *disk, uint64_t size, uint64_t offset, unsigned flags)
{
    if (disk->read_only)
        return -EROFS;
    if (outside(disk, size, offset))
        return -EINVAL;
    if (size == 0)
        return 0;
    bool fast = flags & DISK_ZERO_FAST;
    unsigned slot = gate_enter(&disk->gate);
    int r = 0;
    if (!atomic_load(&disk->writable)) {
        r = -EROFS;
    } else if (flags & DISK_ZERO_NO_HOLE) {
        r = mark(disk, size, offset);
        if (r == 0)
            r = image_zero(&disk->image, size, offset, fast);
    } else {
        r = punch(disk, size, offset, fast);
    }
    gate_exit(&disk->gate, slot);
    return r == 0 && flags & DISK_ZERO_FUA ? disk_flush(disk) : r;
}

int disk_trim(struct disk *disk, uint64_t size, uint64_t offset, bool fua)
{
    return disk_zero(disk, size, offset, fua ? DISK_ZERO_FUA : 0);
}

int disk_flush(struct disk *disk)
{
    if (disk->read_only)
        return 0;
    int r = image_sync(&disk->image);
    if (r < 0) {
        pthread_mutex_lock(&disk->control);
        intent_distrust(&disk->intent);
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
    uint64_t end = offset + size, data = image_next_data(&disk->image, offset);
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
