/* SPDX-License-Identifier: Apache-2.0
 *
 * Which extents of a disk were read of late.
 */
#include "disk_test.h"

#include "disk/heat.h"
#include "disk/split.h"

#define EXTENTS 16U

static void read_often(struct disk *disk, unsigned extent, unsigned times)
{
    for (unsigned i = 0; i < times; i++)
        disk_heat(disk, 512, extent * MiB + i % 2048 * 512);
}

static void test_the_hottest_come_first(void **state)
{
    uint32_t hot[EXTENTS];
    struct disk *disk = new_disk(in_folder("d"), EXTENTS * MiB);
    assert_int_equal(disk_hottest(disk, hot, EXTENTS), 0);
    read_often(disk, 3, 10);
    read_often(disk, 15, 1000);
    read_often(disk, 0, 1);
    read_often(disk, 7, 100000);
    assert_int_equal(disk_hottest(disk, hot, EXTENTS), 4);
    assert_int_equal(hot[0], 7);
    assert_int_equal(hot[1], 15);
    assert_int_equal(hot[2], 3);
    assert_int_equal(hot[3], 0);
    hot[2] = 77;
    assert_int_equal(disk_hottest(disk, hot, 2), 2);
    assert_int_equal(hot[1], 15);
    assert_int_equal(hot[2], 77); /* not beyond its room */
    close_disk(disk);
}

static void test_a_read_warms_all_that_it_touches(void **state)
{
    uint32_t hot[EXTENTS];
    struct disk *disk = new_disk(in_folder("d"), EXTENTS * MiB);
    disk_heat(disk, 3 * MiB, 4 * MiB + 5);
    disk_heat(disk, 1, 16 * MiB - 1);
    disk_heat(disk, 0, 14 * MiB);
    assert_int_equal(disk_hottest(disk, hot, EXTENTS), 5);
    close_disk(disk);
}

static void test_what_is_not_the_guests_reading_leaves_it_cold(void **state)
{
    static char data[MiB];
    uint32_t hot[EXTENTS];
    struct disk *disk = new_disk(in_folder("d"), EXTENTS * MiB);
    assert_int_equal(disk_write(disk, data, sizeof data, 0, false), 0);
    assert_int_equal(disk_read(disk, data, sizeof data, 0), 0);
    assert_int_equal(disk_hottest(disk, hot, EXTENTS), 0);
    close_disk(disk);
}

static unsigned count_of(const struct heat *heat, unsigned extent)
{
    return atomic_load(&heat->counts[extent]);
}

static void heat_up(struct heat *heat, unsigned extent, unsigned times)
{
    for (unsigned i = 0; i < times; i++)
        heat_count(heat, 1, extent * MiB);
}

static void test_twice_the_reads_are_an_octave_more(void **state)
{
    struct heat heat;
    heat_init(&heat, 8 * 256);
    for (unsigned i = 0; i < 8; i++)
        heat_up(&heat, i, 1000U << i);
    for (unsigned i = 1; i < 8; i++) {
        int step = (int)count_of(&heat, i) - (int)count_of(&heat, i - 1);
        assert_in_range(step, HEAT_OCTAVE / 2, HEAT_OCTAVE * 2);
    }
    heat_done(&heat);
}

static void test_counts_never_wrap(void **state)
{
    struct heat heat;
    heat_init(&heat, 256);
    atomic_store(&heat.counts[0], 254);
    heat_up(&heat, 0, 1000000);
    assert_true(count_of(&heat, 0) >= 254);
    heat_done(&heat);
}

static void test_old_reads_are_forgotten_by_and_by(void **state)
{
    struct heat heat;
    heat_init(&heat, 4 * 256);
    int64_t now = atomic_load(&heat.aged);
    heat_up(&heat, 0, 100000);
    heat_up(&heat, 1, 2);
    unsigned before = count_of(&heat, 0);
    heat_age(&heat, now + HEAT_HALF_LIFE - 1);
    assert_int_equal(count_of(&heat, 0), before);
    heat_age(&heat, now + HEAT_HALF_LIFE);
    assert_int_equal(count_of(&heat, 0), before - HEAT_OCTAVE);
    assert_int_equal(count_of(&heat, 1), 1);
    heat_age(&heat, now + HEAT_HALF_LIFE + 1); /* not twice */
    assert_int_equal(count_of(&heat, 0), before - HEAT_OCTAVE);
    heat_age(&heat, now + 1000 * HEAT_HALF_LIFE);
    assert_int_equal(count_of(&heat, 0), 0);
    heat_done(&heat);
}

static void test_the_largest_disk_takes_a_quarter_of_a_mib(void **state)
{
    struct heat heat;
    const uint64_t blocks = INT64_MAX / DISK_BLOCK;
    heat_init(&heat, blocks);
    assert_true(heat.extents <= SPLIT_MAX_EXTENTS);
    heat_count(&heat, 1, blocks * DISK_BLOCK - 1);
    assert_int_equal(count_of(&heat, (unsigned)heat.extents - 1), 1);
    heat_done(&heat);
}

#define T(name) cmocka_unit_test_setup_teardown(name, make_folder, drop_folder)

int main(void)
{
    const struct CMUnitTest tests[] = {
        T(test_the_hottest_come_first),
        T(test_a_read_warms_all_that_it_touches),
        T(test_what_is_not_the_guests_reading_leaves_it_cold),
        cmocka_unit_test(test_twice_the_reads_are_an_octave_more),
        cmocka_unit_test(test_counts_never_wrap),
        cmocka_unit_test(test_old_reads_are_forgotten_by_and_by),
        cmocka_unit_test(test_the_largest_disk_takes_a_quarter_of_a_mib),
    };
    return cmocka_run_group_tests_name("disk heat", tests, NULL, NULL);
}
