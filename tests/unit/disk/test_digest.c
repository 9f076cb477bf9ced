/* SPDX-License-Identifier: Apache-2.0
 *
 * Hashing one copy of a disk: what is left out, what a flipped bit does, and that nobody is kept out
 * meanwhile.
 */
#include "disk_test.h"

#include "disk/digest.h"

#define TAIL 512u
#define SIZE (2 * DIGEST_EXTENT + 3 * DISK_BLOCK + TAIL)
#define SEED UINT64_C(0x1234567890abcdef)

static struct disk *disk;
static struct digest_extent got;

static int setup(void **state)
{
    boot = 1;
    if (make_folder(state) < 0)
        return -1;
    disk = new_disk(in_folder("d"), SIZE);
    return 0;
}

static int teardown(void **state)
{
    if (disk)
        close_disk(disk);
    return drop_folder(state);
}

static void fill(struct disk *to, uint64_t block, int byte)
{
    uint8_t data[DISK_BLOCK];
    memset(data, byte, sizeof data);
    size_t size = MIN((uint64_t)sizeof data, disk_size(to) - block * DISK_BLOCK);
    assert_int_equal(disk_write(to, data, size, block * DISK_BLOCK, false), 0);
}

static void look(const char *path, uint64_t seed, uint32_t upto, uint64_t extent)
{
    _cleanup_(digester_cleanup) struct digester *digester = NULL;
    assert_ok(digester_open(path, &digester, &err));
    assert_ok(digester_extent(digester, seed, upto, extent, &got, &err));
}

/* The sum of an extent of which nothing is left out. */
static void sum_of(const char *path, uint64_t seed, uint64_t extent, uint8_t ret[DIGEST_SIZE])
{
    look(path, seed, UINT32_MAX, extent);
    digest_sum(&got, got.changed, seed, ret);
}

static bool any_changed(void)
{
    for (size_t i = 0; i < sizeof got.changed; i++)
        if (got.changed[i])
            return true;
    return false;
}

static void test_the_same_data_has_the_same_sums_wherever_it_lies(void **state)
{
    uint8_t one[DIGEST_SIZE], other[DIGEST_SIZE];
    (void)state;
    struct disk *twin = new_disk(in_folder("twin"), SIZE);
    fill(disk, 3, 7);
    seal(disk);
    fill(twin, 9, 1);
    fill(twin, 9, 0); /* written zeroes are what a hole is */
    fill(twin, 3, 7);
    sum_of(in_folder("d"), SEED, 0, one);
    sum_of(in_folder("twin"), SEED, 0, other);
    assert_memory_equal(one, other, DIGEST_SIZE);
    close_disk(twin);
}

static void test_another_seed_has_other_sums(void **state)
{
    uint8_t one[DIGEST_SIZE], other[DIGEST_SIZE];
    (void)state;
    sum_of(in_folder("d"), SEED, 0, one);
    sum_of(in_folder("d"), SEED + 1, 0, other);
    assert_memory_not_equal(one, other, DIGEST_SIZE);
}

static void test_a_flipped_bit_behind_our_back_is_in_the_hash_of_its_block_alone(void **state)
{
    (void)state;
    fill(disk, DIGEST_EXTENT_BLOCKS + 20, 7);
    look(in_folder("d"), SEED, UINT32_MAX, 1);
    struct digest_extent before = got;
    int fd = open(in_folder("d"), O_RDWR);
    uint8_t byte = 7 ^ 0x10;
    assert_int_equal(pwrite(fd, &byte, 1, DIGEST_EXTENT + 20 * DISK_BLOCK + 99), 1);
    close(fd);
    look(in_folder("d"), SEED, UINT32_MAX, 1);
    for (unsigned i = 0; i < DIGEST_EXTENT_BLOCKS; i++)
        assert_int_equal(memcmp(got.blocks[i], before.blocks[i], DIGEST_SIZE) == 0, i != 20);
}

static void test_what_is_above_the_common_generation_is_left_out(void **state)
{
    static const uint8_t nothing[DIGEST_SIZE];
    (void)state;
    fill(disk, 3, 7);
    uint32_t sealed = seal(disk);
    fill(disk, 5, 8);
    look(in_folder("d"), SEED, sealed, 0);
    for (unsigned i = 0; i < DIGEST_EXTENT_BLOCKS; i++)
        assert_int_equal(digest_bit(got.changed, i), i == 5);
    assert_memory_equal(got.blocks[5], nothing, DIGEST_SIZE);
    assert_memory_not_equal(got.blocks[3], nothing, DIGEST_SIZE);
}

static void test_a_write_while_the_copy_is_open_is_seen(void **state)
{
    _cleanup_(digester_cleanup) struct digester *digester = NULL;
    (void)state;
    uint32_t sealed = seal(disk);
    assert_ok(digester_open(in_folder("d"), &digester, &err));
    assert_ok(digester_extent(digester, SEED, sealed, 0, &got, &err));
    assert_false(any_changed());
    fill(disk, 0, 7); /* nobody is shut out */
    assert_ok(digester_extent(digester, SEED, sealed, 0, &got, &err));
    assert_true(digest_bit(got.changed, 0));
}

static void test_a_sum_without_the_same_blocks_is_the_same(void **state)
{
    uint8_t one[DIGEST_SIZE], other[DIGEST_SIZE], both[DIGEST_BITS_SIZE] = {[0] = 1 << 2};
    (void)state;
    fill(disk, 2, 7);
    look(in_folder("d"), SEED, UINT32_MAX, 0);
    digest_sum(&got, both, SEED, one);
    fill(disk, 2, 8);
    look(in_folder("d"), SEED, UINT32_MAX, 0);
    digest_sum(&got, both, SEED, other);
    assert_memory_equal(one, other, DIGEST_SIZE);
}

static void test_the_short_end_of_a_disk_is_hashed_too(void **state)
{
    uint8_t before[DIGEST_SIZE], after[DIGEST_SIZE];
    _cleanup_(digester_cleanup) struct digester *digester = NULL;
    (void)state;
    assert_ok(digester_open(in_folder("d"), &digester, &err));
    assert_int_equal(digester_extents(digester), 3);
    assert_int_equal(digester_extent_blocks(digester, 2), 4);
    sum_of(in_folder("d"), SEED, 2, before);
    fill(disk, 2 * DIGEST_EXTENT_BLOCKS + 3, 7);
    sum_of(in_folder("d"), SEED, 2, after);
    assert_memory_not_equal(before, after, DIGEST_SIZE);
    struct err err = ERR_NONE;
    assert_int_equal(digester_extent(digester, SEED, 1, 3, &got, &err), -EINVAL);
}

static void write_first(struct disk *to)
{
    fill(to, 1, 7);
}

static void test_after_a_power_cut_intended_extents_are_left_out(void **state)
{
    (void)state;
    uint32_t sealed = seal(disk);
    close_disk(disk);
    disk = NULL;
    in_killed_process(in_folder("d"), write_first);
    look(in_folder("d"), SEED, sealed, 0);
    assert_false(digest_bit(got.changed, 2)); /* a killed process leaves the page cache whole */
    boot++;
    look(in_folder("d"), SEED, sealed, 0);
    for (unsigned i = 0; i < DIGEST_EXTENT_BLOCKS; i++)
        assert_true(digest_bit(got.changed, i));
}

static void test_a_copy_whose_side_files_are_damaged_is_refused(void **state)
{
    struct digester *digester = NULL;
    struct err err = ERR_NONE;
    (void)state;
    assert_int_equal(truncate(in_folder("d.lineage"), 20), 0);
    assert_int_equal(digester_open(in_folder("d"), &digester, &err), -EBADMSG);
    assert_non_null(strstr(err.text, "d.lineage"));
    assert_int_equal(unlink(in_folder("d.map")), 0);
    assert_true(digester_open(in_folder("d"), &digester, &err) < 0);
    assert_int_equal(digester_open(in_folder("none"), &digester, &err), -ENOENT);
    assert_null(digester);
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(test_the_same_data_has_the_same_sums_wherever_it_lies),
        T(test_another_seed_has_other_sums),
        T(test_a_flipped_bit_behind_our_back_is_in_the_hash_of_its_block_alone),
        T(test_what_is_above_the_common_generation_is_left_out),
        T(test_a_write_while_the_copy_is_open_is_seen),
        T(test_a_sum_without_the_same_blocks_is_the_same),
        T(test_the_short_end_of_a_disk_is_hashed_too),
        T(test_after_a_power_cut_intended_extents_are_left_out),
        T(test_a_copy_whose_side_files_are_damaged_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
