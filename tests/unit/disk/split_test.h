/* SPDX-License-Identifier: Apache-2.0
 *
 * What the tests of split disks share: a small disk full of 'o' (old) whose VM has just come over without
 * some of its blocks; what is fetched is 'f', what the guest writes 'w'.
 */
#pragma once

#include "disk/split.h"
#include "disk_test.h"

#define SPLIT_SIZE (8 * MiB + 512)
#define SPLIT_BLOCKS (SPLIT_SIZE / DISK_BLOCK + 1)
#define EXTENT (MiB / DISK_BLOCK)
#define HANDOVER 5U /* the generation that it left with */

static inline uint64_t split_length(uint64_t block, uint64_t count)
{
    return MIN((block + count) * DISK_BLOCK, SPLIT_SIZE) - block * DISK_BLOCK;
}

/* With the hand-over as its newest entry. */
static inline struct lineage *arriving_lineage(struct disk *disk, enum lineage_claim claim)
{
    struct lineage *lineage = NULL;
    struct id id = id_random();
    assert_ok(disk_lineage(disk, &lineage, &err));
    lineage->claim = claim;
    assert_int_equal(lineage_add(lineage, HANDOVER, &id, LINEAGE_HANDOVER, "there", 1), 0);
    return lineage;
}

/* A frozen partial copy. */
static inline struct disk *partial_disk(const char *path)
{
    assert_ok(disk_create(path, SPLIT_SIZE, NULL, NULL, &err));
    struct disk *disk = open_disk(path, DISK_FROZEN);
    set_claim(disk, LINEAGE_PARTIAL, 0);
    char *old = malloc(SPLIT_SIZE);
    memset(old, 'o', SPLIT_SIZE);
    struct disk_run all = {.block = 0, .count = SPLIT_BLOCKS, .generation = 3};
    assert_ok(disk_receive(disk, &all, old, &err));
    free(old);
    return disk;
}

/* Bit n of `extents`: the n-th MiB will be missing. */
static inline void expect_missing(struct disk *disk, unsigned extents)
{
    _cleanup_(lineage_cleanup) struct lineage *lineage = arriving_lineage(disk, LINEAGE_PARTIAL);
    uint8_t bits[2] = {(uint8_t)extents, (uint8_t)(extents >> 8)};
    assert_ok(disk_expect(disk, lineage, bits, sizeof bits, &err));
}

static inline void become_split(struct disk *disk)
{
    _cleanup_(lineage_cleanup) struct lineage *lineage = NULL;
    assert_ok(disk_lineage(disk, &lineage, &err));
    lineage->claim = LINEAGE_SPLIT;
    assert_ok(disk_set_lineage(disk, lineage, &err));
    disk_thaw(disk);
}

static inline struct disk *split_disk(const char *path, unsigned extents)
{
    struct disk *disk = partial_disk(path);
    expect_missing(disk, extents);
    become_split(disk);
    return disk;
}

static inline void fetch(struct disk *disk, uint64_t block, uint64_t count)
{
    uint64_t size = split_length(block, count);
    char *data = malloc(size);
    memset(data, 'f', size);
    struct disk_run run = {.block = block, .count = count, .generation = HANDOVER};
    assert_ok(disk_fill(disk, &run, data, &err));
    free(data);
}

static inline int write_w(struct disk *disk, uint64_t size, uint64_t offset)
{
    char *data = malloc(size);
    memset(data, 'w', size);
    int r = disk_write(disk, data, size, offset, false);
    free(data);
    return r;
}

/* The one byte that all of the range has, or -errno. */
static inline int look(struct disk *disk, uint64_t size, uint64_t offset)
{
    char *data = malloc(size);
    int r = disk_read(disk, data, size, offset);
    for (uint64_t i = 0; r == 0 && i < size; i++)
        assert_int_equal(data[i], data[0]);
    r = r < 0 ? r : data[0];
    free(data);
    return r;
}

static inline int look_at(struct disk *disk, uint64_t block)
{
    return look(disk, split_length(block, 1), block * DISK_BLOCK);
}

static inline bool is_missing(struct disk *disk, uint64_t block)
{
    struct disk_run run;
    return disk_next_missing(disk, block, block + 1, 1, &run);
}

static inline uint32_t number_at(struct disk *disk, uint64_t block)
{
    struct disk_run run;
    return disk_next_run(disk, block, 0, UINT32_MAX, 1, &run) && run.block == block ? run.generation : 0;
}
