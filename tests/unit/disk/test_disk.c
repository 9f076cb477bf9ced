/* SPDX-License-Identifier: Apache-2.0
 *
 * One open disk: data, marks, generations, claims, and what a killed process or a power cut leaves behind.
 */
#include "disk_test.h"

#define SIZE (16 * MiB)

static struct disk *disk;

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
    disk = NULL;
    return drop_folder(state);
}

static void reopen(unsigned flags)
{
    close_disk(disk);
    disk = open_disk(in_folder("d"), flags);
}

static uint64_t changed(uint32_t above)
{
    return disk_count(disk, above, UINT32_MAX);
}

static void test_data_is_read_back(void **state)
{
    char data[10000], back[sizeof data];
    memset(data, 'a', sizeof data);
    assert_int_equal(disk_write(disk, data, sizeof data, 5000, true), 0);
    assert_int_equal(disk_read(disk, back, sizeof back, 5000), 0);
    assert_memory_equal(data, back, sizeof data);
}

static void test_ranges_outside_the_disk_are_refused(void **state)
{
    char byte = 0;
    assert_int_equal(disk_read(disk, &byte, 1, SIZE), -EINVAL);
    assert_int_equal(disk_write(disk, &byte, 1, SIZE, false), -EINVAL);
    assert_int_equal(disk_write(disk, &byte, 1, UINT64_MAX, false), -EINVAL);
    assert_int_equal(disk_trim(disk, UINT64_MAX, 1, false), -EINVAL);
    assert_int_equal(disk_zero(disk, SIZE, 1, 0), -EINVAL);
    struct disk_extent extent;
    assert_int_equal(disk_extent(disk, 1, SIZE, &extent), -EINVAL);
    assert_int_equal(changed(0), 0);
}

static void test_a_write_marks_every_block_it_touches(void **state)
{
    char data[2] = "ab";
    assert_int_equal(disk_write(disk, data, 2, 3 * DISK_BLOCK - 1, false), 0);
    struct disk_run run;
    assert_true(disk_next_run(disk, 0, 0, UINT32_MAX, 100, &run));
    assert_int_equal(run.block, 2);
    assert_int_equal(run.count, 2);
    assert_int_equal(run.generation, disk_generation(disk));
    assert_false(disk_next_run(disk, 4, 0, UINT32_MAX, 100, &run));
}

static void test_a_comparing_disk_counts_only_blocks_that_differ(void **state)
{
    char data[8 * DISK_BLOCK] = {1};
    data[5 * DISK_BLOCK] = 1;
    assert_int_equal(disk_write(disk, data, sizeof data, 512, true), 0);
    reopen(DISK_COMPARE);
    uint32_t before = disk_generation(disk) - 1;
    assert_int_equal(disk_write(disk, data, sizeof data, 512, true), 0);
    assert_int_equal(changed(before), 0);
    data[5 * DISK_BLOCK] = 2;
    assert_int_equal(disk_write(disk, data, sizeof data, 512, false), 0);
    struct disk_run run;
    assert_true(disk_next_run(disk, 0, before, UINT32_MAX, 100, &run));
    assert_int_equal(run.block, 5);
    assert_int_equal(run.count, 1);
    char back[sizeof data];
    assert_int_equal(disk_read(disk, back, sizeof back, 512), 0);
    assert_memory_equal(data, back, sizeof data);
}

static void test_the_short_last_block_counts(void **state)
{
    struct disk *small = new_disk(in_folder("small"), DISK_BLOCK + 512);
    assert_int_equal(disk_blocks(small), 2);
    write_byte(small, DISK_BLOCK + 511);
    struct disk_run run;
    assert_true(disk_next_run(small, 0, 0, UINT32_MAX, 100, &run));
    assert_int_equal(run.block, 1);
    assert_int_equal(run.count, 1);
    close_disk(small);
}

static void test_runs_are_of_one_number_and_bounded(void **state)
{
    char data[8 * DISK_BLOCK] = {1};
    assert_int_equal(disk_write(disk, data, sizeof data, 0, false), 0);
    uint32_t sealed = seal(disk);
    write_byte(disk, 5 * DISK_BLOCK);
    struct disk_run run;
    assert_true(disk_next_run(disk, 0, 0, UINT32_MAX, 3, &run));
    assert_int_equal(run.count, 3);
    assert_true(disk_next_run(disk, 3, 0, UINT32_MAX, 100, &run));
    assert_int_equal(run.count, 2);
    assert_true(disk_next_run(disk, 5, 0, UINT32_MAX, 100, &run));
    assert_int_equal(run.generation, sealed + 1);
    assert_int_equal(disk_count(disk, 0, sealed), 7);
    assert_int_equal(disk_count(disk, sealed, UINT32_MAX), 1);
}

static void test_numbers_survive_closing(void **state)
{
    write_byte(disk, 0);
    write_byte(disk, SIZE - 1);
    reopen(0);
    assert_int_equal(changed(0), 2);
}

static void test_opening_for_writing_starts_a_generation(void **state)
{
    uint32_t before = disk_generation(disk);
    reopen(0);
    assert_int_equal(disk_generation(disk), before + 1);
}

static void test_opening_frozen_or_read_only_starts_none(void **state)
{
    uint32_t before = disk_generation(disk);
    reopen(DISK_FROZEN);
    assert_int_equal(disk_generation(disk), before);
    reopen(DISK_READ_ONLY);
    assert_int_equal(disk_generation(disk), before);
    assert_int_equal(disk_write(disk, "x", 1, 0, false), -EROFS);
    assert_int_equal(disk_zero(disk, 512, 0, 0), -EROFS);
}

static void test_advance_names_the_sealed_generation(void **state)
{
    uint32_t current = disk_generation(disk);
    uint32_t sealed = seal(disk);
    assert_int_equal(sealed, current);
    assert_int_equal(disk_generation(disk), current + 1);
    reopen(0);
    _cleanup_(lineage_cleanup) struct lineage *lineage = NULL;
    assert_ok(disk_lineage(disk, &lineage, &err));
    assert_int_equal(lineage_newest(lineage)->generation, sealed);
    assert_string_equal(lineage_newest(lineage)->host, "here");
    assert_true(disk_generation(disk) > sealed + 1);
}

static void test_a_second_opener_is_kept_out(void **state)
{
    struct disk *second = NULL;
    assert_int_equal(disk_open(in_folder("d"), 0, &second, NULL), -EBUSY);
    assert_int_equal(disk_open(in_folder("d"), DISK_READ_ONLY, &second, NULL), -EBUSY);
    assert_int_equal(disk_remove(in_folder("d"), NULL), -EBUSY);
    assert_null(second);
}

static void test_read_only_openers_share(void **state)
{
    reopen(DISK_READ_ONLY);
    close_disk(open_disk(in_folder("d"), DISK_READ_ONLY));
}

static void test_trim_punches_a_hole_and_marks(void **state)
{
    static char data[MiB], back[MiB];
    memset(data, 1, sizeof data);
    assert_int_equal(disk_write(disk, data, sizeof data, 0, false), 0);
    uint32_t sealed = seal(disk);
    assert_int_equal(disk_trim(disk, 512 * KiB, 256 * KiB, true), 0);
    assert_int_equal(changed(sealed), 128);
    struct disk_extent extent;
    assert_int_equal(disk_extent(disk, 256 * KiB, SIZE - 256 * KiB, &extent), 0);
    assert_true(extent.hole);
    assert_int_equal(extent.length, 512 * KiB);
    assert_int_equal(disk_read(disk, back, sizeof back, 0), 0);
    memset(data + 256 * KiB, 0, 512 * KiB);
    assert_memory_equal(data, back, sizeof data);
}

static void test_unaligned_trim_keeps_its_neighbours(void **state)
{
    char data[3 * DISK_BLOCK], back[sizeof data];
    memset(data, 7, sizeof data);
    assert_int_equal(disk_write(disk, data, sizeof data, 0, false), 0);
    uint32_t sealed = seal(disk);
    assert_int_equal(disk_trim(disk, DISK_BLOCK + 20, 100, false), 0);
    memset(data + 100, 0, DISK_BLOCK + 20);
    assert_int_equal(disk_read(disk, back, sizeof back, 0), 0);
    assert_memory_equal(data, back, sizeof data);
    assert_int_equal(changed(sealed), 2);
}

static void test_trimming_what_was_never_written_leaves_no_trace(void **state)
{
    write_byte(disk, 5 * MiB);
    uint32_t sealed = seal(disk);
    uint64_t before = space_of(in_folder("d.map"));
    assert_int_equal(disk_trim(disk, SIZE, 0, false), 0);
    assert_int_equal(changed(sealed), 1);
    assert_int_equal(disk_zero(disk, 4 * MiB, 8 * MiB, 0), 0);
    assert_int_equal(changed(sealed), 1);
    assert_int_equal(space_of(in_folder("d.map")), before);
}

static void test_zero_without_hole_allocates(void **state)
{
    assert_int_equal(disk_zero(disk, MiB, MiB, DISK_ZERO_NO_HOLE | DISK_ZERO_FUA), 0);
    assert_true(space_of(in_folder("d")) >= MiB);
    assert_int_equal(changed(0), 256);
}

static void test_extent_of_an_empty_disk_is_one_hole(void **state)
{
    struct disk_extent extent;
    assert_int_equal(disk_extent(disk, 512, SIZE - 512, &extent), 0);
    assert_true(extent.hole);
    assert_int_equal(extent.length, SIZE - 512);
}

static void test_direct_io_takes_any_alignment(void **state)
{
    reopen(DISK_DIRECT);
    _cleanup_free_ char *data = aligned_alloc(4096, 16384);
    memset(data, 3, 16384);
    assert_int_equal(disk_write(disk, data, 8192, 4096, false), 0);
    assert_int_equal(disk_write(disk, data + 1, 999, 4097, true), 0);
    memset(data, 0, 16384);
    assert_int_equal(disk_read(disk, data, 16384, 0), 0);
    assert_int_equal(data[4095], 0);
    assert_int_equal(data[4096], 3);
    assert_int_equal(data[12287], 3);
    assert_int_equal(data[12288], 0);
}

static void test_touch_marks_without_writing(void **state)
{
    struct disk_range ranges[] = {{0, DISK_BLOCK}, {8 * MiB, 2 * DISK_BLOCK}};
    assert_int_equal(disk_touch(disk, ranges, 2), 0);
    assert_int_equal(changed(0), 3);
    assert_int_equal(space_of(in_folder("d")), 0);
}

/* --- claims -------------------------------------------------------------------------------------------- */

static void test_a_replica_opens_for_nobody_to_write(void **state)
{
    uint32_t sealed = seal(disk);
    set_claim(disk, LINEAGE_REPLICA, sealed);
    assert_int_equal(disk_write(disk, "x", 1, 0, false), -EROFS);
    close_disk(disk);
    struct err err = ERR_NONE;
    disk = NULL;
    assert_int_equal(disk_open(in_folder("d"), 0, &disk, &err), -EROFS);
    assert_non_null(strstr(err.text, "replica"));
    assert_true(err.hint[0]);
    disk = open_disk(in_folder("d"), DISK_FROZEN);
    set_claim(disk, LINEAGE_FORK, sealed);
    reopen(0);
    write_byte(disk, 0);
    assert_int_equal(changed(sealed), 1);
}

static void test_only_a_partial_copy_receives(void **state)
{
    char data[DISK_BLOCK] = "received";
    struct disk_run run = {.block = 3, .count = 1, .generation = 77};
    assert_int_equal(disk_receive(disk, &run, data, NULL), -EROFS);
    set_claim(disk, LINEAGE_PARTIAL, 0);
    reopen(DISK_FROZEN);
    assert_ok(disk_receive(disk, &run, data, &err));
    struct disk_run back;
    assert_true(disk_next_run(disk, 0, 0, UINT32_MAX, 9, &back));
    assert_int_equal(back.block, 3);
    assert_int_equal(back.count, 1);
    assert_int_equal(back.generation, 77);
    assert_true(disk_generation(disk) >= 77);
    reopen(DISK_FROZEN);
    assert_true(disk_generation(disk) >= 77);
    assert_int_equal(disk_read(disk, data, sizeof data, 3 * DISK_BLOCK), 0);
    assert_string_equal(data, "received");
}

static void test_a_fork_that_receives_is_never_run_again_and_stays_a_fork_to_others(void **state)
{
    uint32_t sealed = seal(disk);
    _cleanup_(lineage_cleanup) struct lineage *ours = NULL, *theirs = NULL;
    assert_ok(disk_lineage(disk, &ours, &err));
    set_claim(disk, LINEAGE_FORK, sealed);
    write_byte(disk, 0);
    struct disk_run run = {.block = 1, .count = 1, .generation = sealed + 5};
    assert_int_equal(disk_receive(disk, &run, NULL, NULL), -EROFS); /* it runs */
    disk_freeze(disk);
    assert_ok(disk_receive(disk, &run, NULL, &err));
    close_disk(disk);
    disk = NULL;
    assert_int_equal(disk_open(in_folder("d"), 0, &disk, NULL), -EROFS);
    disk = open_disk(in_folder("d"), DISK_FROZEN);
    assert_ok(disk_lineage(disk, &theirs, &err));
    assert_int_equal(theirs->claim, LINEAGE_PARTIAL);
    struct lineage_base base;
    lineage_compare(ours, theirs, &base);
    assert_int_equal(base.base, sealed);
    assert_true(base.forked);
    assert_int_equal(changed(sealed), 2);
}

static void test_a_received_hole_takes_no_space(void **state)
{
    write_byte(disk, 0);
    set_claim(disk, LINEAGE_PARTIAL, 0);
    struct disk_run run = {.block = 0, .count = 4, .generation = 9};
    assert_ok(disk_receive(disk, &run, NULL, &err));
    assert_ok(disk_sync(disk, &err));
    assert_int_equal(space_of(in_folder("d")), 0);
}

static void test_received_runs_outside_or_absurd_are_refused(void **state)
{
    set_claim(disk, LINEAGE_PARTIAL, 0);
    struct disk_run outside = {.block = SIZE / DISK_BLOCK, .count = 1, .generation = 9};
    struct disk_run wrapping = {.block = 1, .count = UINT64_MAX, .generation = 9};
    struct disk_run absurd = {.block = 0, .count = 1, .generation = UINT32_MAX};
    assert_int_equal(disk_receive(disk, &outside, NULL, NULL), -EPROTO);
    assert_int_equal(disk_receive(disk, &wrapping, NULL, NULL), -EPROTO);
    assert_int_equal(disk_receive(disk, &absurd, NULL, NULL), -EOVERFLOW);
    assert_int_equal(changed(0), 0);
}

static void test_an_arriving_disk_takes_over_the_senders_lineage(void **state)
{
    struct id sender = id_random(), entry = id_random();
    _cleanup_(lineage_cleanup) struct lineage *lineage = lineage_new(&sender, SIZE);
    assert_int_equal(lineage_add(lineage, 41, &entry, LINEAGE_HANDOVER, "there", 1), 0);
    lineage->claim = LINEAGE_REPLICA;
    lineage->complete = 41;
    assert_ok(disk_set_lineage(disk, lineage, &err));
    assert_int_equal(disk_generation(disk), 42);
    reopen(DISK_FROZEN);
    _cleanup_(lineage_cleanup) struct lineage *back = NULL;
    assert_ok(disk_lineage(disk, &back, &err));
    assert_true(id_equal(&back->disk, &sender));
    assert_int_equal(back->complete, 41);
}

static void test_a_lineage_that_could_not_be_opened_again_is_refused(void **state)
{
    struct id id = id_random();
    _cleanup_(lineage_cleanup) struct lineage *other_size = lineage_new(&id, SIZE * 2);
    assert_int_equal(disk_set_lineage(disk, other_size, NULL), -EINVAL);
    _cleanup_(lineage_cleanup) struct lineage *unlisted = lineage_new(&id, SIZE);
    unlisted->claim = LINEAGE_REPLICA;
    unlisted->complete = 5;
    assert_int_equal(disk_set_lineage(disk, unlisted, NULL), -EBADMSG);
    write_byte(disk, 0); /* still the owner's */
}

static void test_generations_never_go_back(void **state)
{
    for (int i = 0; i < 5; i++)
        seal(disk);
    uint32_t before = disk_generation(disk);
    struct id id = id_random();
    _cleanup_(lineage_cleanup) struct lineage *young = lineage_new(&id, SIZE);
    assert_ok(disk_set_lineage(disk, young, &err));
    assert_int_equal(disk_generation(disk), before);
}

/* --- freeze -------------------------------------------------------------------------------------------- */

static void test_an_unsealed_frozen_disk_reads(void **state)
{
    char byte = 1;
    write_byte(disk, 9);
    disk_freeze(disk);
    assert_int_equal(disk_read(disk, &byte, 1, 9), 0);
    assert_int_equal(byte, 'x');
    assert_int_equal(disk_flush(disk), 0);
    seal(disk);
    disk_thaw(disk);
    write_byte(disk, 9);
}

/* --- after a crash ------------------------------------------------------------------------------------- */

static void write_two_places(struct disk *d)
{
    write_byte(d, 3 * MiB + 5);
    write_byte(d, 9 * MiB);
}

static void test_a_killed_process_costs_no_marks(void **state)
{
    close_disk(disk);
    in_killed_process(in_folder("d"), write_two_places);
    disk = open_disk(in_folder("d"), 0);
    assert_int_equal(changed(0), 2);
    assert_int_equal(changed(disk_generation(disk) - 1), 0);
}

static void test_another_boot_marks_every_block_of_intended_extents(void **state)
{
    close_disk(disk);
    in_killed_process(in_folder("d"), write_two_places);
    boot = 2;
    disk = open_disk(in_folder("d"), 0);
    /* The second write followed quickly, so that its extent's neighbour was marked ahead. */
    uint64_t marked = changed(disk_generation(disk) - 1);
    assert_in_range(marked, 512, 3 * 256);
    struct disk_run run;
    assert_true(disk_next_run(disk, 0, disk_generation(disk) - 1, UINT32_MAX, 10000, &run));
    assert_int_equal(run.block, 3 * 256);
    assert_int_equal(run.count, 256);
    uint32_t before = disk_generation(disk);
    reopen(0);
    assert_int_equal(changed(before), 0);
}

static void test_killed_twice_then_power_cut_still_marks(void **state)
{
    close_disk(disk);
    in_killed_process(in_folder("d"), write_two_places);
    in_killed_process(in_folder("d"), write_two_places);
    boot = 3;
    disk = open_disk(in_folder("d"), 0);
    assert_true(changed(disk_generation(disk) - 1) >= 512);
}

static void write_then_sync(struct disk *d)
{
    write_two_places(d);
    if (disk_sync(d, NULL) < 0)
        _exit(2);
    write_byte(d, 12 * MiB);
}

static void test_a_power_cut_costs_only_what_was_written_since_the_sync(void **state)
{
    close_disk(disk);
    in_killed_process(in_folder("d"), write_then_sync);
    boot = 4;
    disk = open_disk(in_folder("d"), 0);
    struct disk_run run;
    assert_true(disk_next_run(disk, 0, disk_generation(disk) - 1, UINT32_MAX, 10000, &run));
    assert_int_equal(run.block, 12 * 256);
    assert_in_range(run.count, 256, 4 * 256);
}

static void checkpoint_twice(struct disk *d)
{
    write_byte(d, 0);
    if (disk_checkpoint(d) < 0)
        _exit(2);
    write_byte(d, 12 * MiB);
    if (disk_checkpoint(d) < 0)
        _exit(2);
}

static void test_a_checkpoint_keeps_the_bits_of_hot_extents_only(void **state)
{
    close_disk(disk);
    in_killed_process(in_folder("d"), checkpoint_twice);
    boot = 5;
    disk = open_disk(in_folder("d"), 0);
    struct disk_run run;
    assert_true(disk_next_run(disk, 0, disk_generation(disk) - 1, UINT32_MAX, 10000, &run));
    assert_int_equal(run.block, 12 * 256);
}

static void test_a_reader_after_a_power_cut_sees_the_marks_and_writes_none(void **state)
{
    close_disk(disk);
    in_killed_process(in_folder("d"), write_two_places);
    boot = 6;
    disk = open_disk(in_folder("d"), DISK_READ_ONLY);
    assert_true(changed(0) >= 512);
    close_disk(disk);
    boot = 1;
    disk = open_disk(in_folder("d"), 0);
    assert_int_equal(changed(0), 2);
}

static void damage_intent(const char *how)
{
    close_disk(disk);
    const char *path = in_folder("d.intent");
    if (strcmp(how, "gone") == 0) {
        assert_int_equal(unlink(path), 0);
    } else if (strcmp(how, "short") == 0) {
        assert_int_equal(truncate(path, 100), 0);
    } else {
        int fd = open(path, O_RDWR);
        uint8_t byte;
        assert_int_equal(pread(fd, &byte, 1, 30), 1);
        byte ^= 0x10;
        assert_int_equal(pwrite(fd, &byte, 1, 30), 1);
        close(fd);
    }
    disk = open_disk(in_folder("d"), 0);
}

static void test_without_a_usable_intent_record_everything_counts(void **state)
{
    static const char *const hows[] = {"gone", "short", "damaged"};
    for (size_t i = 0; i < ARRAY_SIZE(hows); i++) {
        damage_intent(hows[i]);
        assert_int_equal(changed(disk_generation(disk) - 1), SIZE / DISK_BLOCK);
        uint32_t before = disk_generation(disk);
        reopen(0);
        assert_int_equal(changed(before), 0);
    }
}

static void test_the_map_of_another_disk_is_refused(void **state)
{
    close_disk(disk);
    close_disk(new_disk(in_folder("e"), SIZE));
    assert_int_equal(rename(in_folder("e.map"), in_folder("d.map")), 0);
    disk = NULL;
    assert_int_equal(disk_open(in_folder("d"), 0, &disk, NULL), -EINVAL);
}

static void test_the_intent_record_of_another_map_is_not_believed(void **state)
{
    close_disk(disk);
    close_disk(new_disk(in_folder("e"), SIZE));
    assert_int_equal(rename(in_folder("e.intent"), in_folder("d.intent")), 0);
    disk = open_disk(in_folder("d"), 0);
    assert_int_equal(changed(0), SIZE / DISK_BLOCK);
}

static void test_an_image_of_another_size_is_refused(void **state)
{
    close_disk(disk);
    assert_int_equal(truncate(in_folder("d"), SIZE / 2), 0);
    struct err err = ERR_NONE;
    disk = NULL;
    assert_int_equal(disk_open(in_folder("d"), 0, &disk, &err), -EINVAL);
    assert_non_null(strstr(err.text, "map says"));
}

/* --- memory -------------------------------------------------------------------------------------------- */

static long resident_kib(void)
{
    FILE *f = fopen("/proc/self/status", "re");
    char line[256];
    long kib = 0;
    while (fgets(line, sizeof line, f))
        sscanf(line, "RssFile: %ld", &kib);
    fclose(f);
    return kib;
}

static void test_scanning_a_large_map_leaves_little_resident(void **state)
{
    struct disk *large = new_disk(in_folder("large"), 64 * GiB);
    struct disk_range all = {0, 32 * GiB};
    assert_int_equal(disk_touch(large, &all, 1), 0);
    assert_int_equal(disk_checkpoint(large), 0);
    long before = resident_kib();
    assert_int_equal(disk_count(large, 0, UINT32_MAX), 8 << 20);
    struct disk_run run;
    for (uint64_t at = 0; disk_next_run(large, at, 0, UINT32_MAX, 256, &run); at = run.block + run.count)
        ;
    assert_true(resident_kib() - before < 6 * 1024);
    close_disk(large);
}

static void test_a_large_empty_disk_is_cheap(void **state)
{
    struct disk *large = new_disk(in_folder("large"), 200 * GiB);
    write_byte(large, 150 * GiB);
    assert_int_equal(disk_count(large, 0, UINT32_MAX), 1);
    close_disk(large);
    assert_true(space_of(in_folder("large.map")) <= 16 * KiB);
    assert_true(space_of(in_folder("large.intent")) <= 64 * KiB);
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        T(test_data_is_read_back),
        T(test_ranges_outside_the_disk_are_refused),
        T(test_a_write_marks_every_block_it_touches),
        T(test_a_comparing_disk_counts_only_blocks_that_differ),
        T(test_the_short_last_block_counts),
        T(test_runs_are_of_one_number_and_bounded),
        T(test_numbers_survive_closing),
        T(test_opening_for_writing_starts_a_generation),
        T(test_opening_frozen_or_read_only_starts_none),
        T(test_advance_names_the_sealed_generation),
        T(test_a_second_opener_is_kept_out),
        T(test_read_only_openers_share),
        T(test_trim_punches_a_hole_and_marks),
        T(test_unaligned_trim_keeps_its_neighbours),
        T(test_trimming_what_was_never_written_leaves_no_trace),
        T(test_zero_without_hole_allocates),
        T(test_extent_of_an_empty_disk_is_one_hole),
        T(test_direct_io_takes_any_alignment),
        T(test_touch_marks_without_writing),
        T(test_a_replica_opens_for_nobody_to_write),
        T(test_only_a_partial_copy_receives),
        T(test_a_fork_that_receives_is_never_run_again_and_stays_a_fork_to_others),
        T(test_a_received_hole_takes_no_space),
        T(test_received_runs_outside_or_absurd_are_refused),
        T(test_an_arriving_disk_takes_over_the_senders_lineage),
        T(test_a_lineage_that_could_not_be_opened_again_is_refused),
        T(test_generations_never_go_back),
        T(test_an_unsealed_frozen_disk_reads),
        T(test_a_killed_process_costs_no_marks),
        T(test_another_boot_marks_every_block_of_intended_extents),
        T(test_killed_twice_then_power_cut_still_marks),
        T(test_a_power_cut_costs_only_what_was_written_since_the_sync),
        T(test_a_checkpoint_keeps_the_bits_of_hot_extents_only),
        T(test_a_reader_after_a_power_cut_sees_the_marks_and_writes_none),
        T(test_without_a_usable_intent_record_everything_counts),
        T(test_the_map_of_another_disk_is_refused),
        T(test_the_intent_record_of_another_map_is_not_believed),
        T(test_an_image_of_another_size_is_refused),
        T(test_scanning_a_large_map_leaves_little_resident),
        T(test_a_large_empty_disk_is_cheap),
    };
    return cmocka_run_group_tests_name("disk", tests, NULL, NULL);
}
