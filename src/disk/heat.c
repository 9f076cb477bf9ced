/* SPDX-License-Identifier: Apache-2.0 */
#include "disk/heat.h"

#include "base/clock.h"
#include "base/macro.h"
#include "disk/private.h"

void heat_init(struct heat *heat, uint64_t disk_blocks)
{
    *heat = (struct heat){.extent = split_extent_blocks(disk_blocks) * DISK_BLOCK,
                          .extents = (size_t)split_extents(disk_blocks),
                          .aged = clock_now()};
    heat->counts = calloc(heat->extents, sizeof *heat->counts);
}

void heat_done(struct heat *heat)
{
    free(heat->counts);
    heat->counts = NULL;
}

/* True once in 2^octave times, in no step with what the guest does. */
static bool by_chance(unsigned octave)
{
    static _Thread_local uint32_t state;
    state = state * UINT32_C(1664525) + UINT32_C(1013904223);
    return state >> 16 >> (16 - octave) == 0;
}

static void count_one(_Atomic uint8_t *count)
{
    uint8_t c = atomic_load_explicit(count, memory_order_relaxed);
    if (c < UINT8_MAX && by_chance(c / HEAT_OCTAVE))
        atomic_store_explicit(count, (uint8_t)(c + 1), memory_order_relaxed);
}

void heat_count(struct heat *heat, uint64_t size, uint64_t offset)
{
    if (!heat->counts)
        return;
    uint64_t last = (offset + size - 1) / heat->extent;
    for (uint64_t e = offset / heat->extent; e <= last; e++)
        count_one(&heat->counts[e]);
}

void heat_age(struct heat *heat, int64_t now)
{
    int64_t aged = atomic_load(&heat->aged);
    if (!heat->counts || now - aged < HEAT_HALF_LIFE ||
        !atomic_compare_exchange_strong(&heat->aged, &aged, now))
        return;
    int64_t octaves = (now - aged) / HEAT_HALF_LIFE;
    for (size_t e = 0; e < heat->extents; e++) {
        unsigned c = atomic_load_explicit(&heat->counts[e], memory_order_relaxed);
        for (int64_t i = 0; i < octaves && c > 0; i++)
            c = c >= HEAT_OCTAVE ? c - HEAT_OCTAVE : c / 2;
        atomic_store_explicit(&heat->counts[e], (uint8_t)c, memory_order_relaxed);
    }
}

void disk_heat(struct disk *disk, uint64_t size, uint64_t offset)
{
    if (size > 0)
        heat_count(&disk->heat, size, offset);
}

/* Counting sort: where the extents of each count begin in the list. */
size_t disk_hottest(const struct disk *disk, uint32_t *ret_extents, size_t capacity)
{
    struct heat *heat = (struct heat *)&disk->heat; /* ageing does not change the disk */
    size_t begins[UINT8_MAX + 1] = {0}, total = 0;
    if (!heat->counts)
        return 0;
    heat_age(heat, clock_now());
    _cleanup_free_ uint8_t *picture = malloc(heat->extents); /* others go on counting */
    if (!picture)
        return 0;
    for (size_t e = 0; e < heat->extents; e++) {
        picture[e] = atomic_load_explicit(&heat->counts[e], memory_order_relaxed);
        begins[picture[e]]++;
    }
    for (unsigned c = UINT8_MAX; c > 0; c--) {
        size_t count = begins[c];
        begins[c] = total;
        total += count;
    }
    for (size_t e = 0; e < heat->extents; e++)
        if (picture[e] > 0 && begins[picture[e]] < capacity)
            ret_extents[begins[picture[e]]++] = (uint32_t)e;
    return MIN(total, capacity);
}
