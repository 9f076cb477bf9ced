/* SPDX-License-Identifier: Apache-2.0
 *
 * A disk whose VM runs here while the newest data of some of its blocks is still on another host.
 */
#include "split_test.h"

#include "base/clock.h"
#include "disk/relocate.h"
#include "disk/verify.h"

#include <pthread.h>
#include <stdatomic.h>
#include <sys/eventfd.h>

/* Extent 1 is missing, and 8, which is only the last, short block. */
#define SOME (1U << 1 | 1U << 8)
#define FIRST EXTENT
#define LAST (SPLIT_BLOCKS - 1)

static int setup(void **state)
{
    boot = 1;
    return make_folder(state);
}

static struct disk *some_disk(void)
{
    return split_disk(in_folder("d"), SOME);
}

static bool exists(const char *name)
{
    struct stat st;
    return stat(in_folder(name), &st) == 0;
}

struct demands {
    unsigned count;
    struct disk_need last[4];
};

static void note_demand(void *arg, uint64_t block, uint64_t count)
{
    struct demands *demands = arg;
    demands->last[demands->count++ % 4] = (struct disk_need){block, count};
}

/* --- reading ------------------------------------------------------------------------------------------- */

static void test_a_read_of_missing_blocks_waits_and_says_which(void **state)
{
    struct disk *disk = some_disk();
    struct demands demands = {0};
    disk_on_demand(disk, note_demand, &demands);
    assert_int_equal(look(disk, 2 * DISK_BLOCK, (FIRST - 1) * DISK_BLOCK), -EAGAIN);
    assert_int_equal(demands.count, 1);
    assert_int_equal(demands.last[0].block, FIRST);
    assert_int_equal(demands.last[0].count, 1);
    fetch(disk, FIRST, 1);
    assert_int_equal(look_at(disk, FIRST), 'f');
    assert_int_equal(demands.count, 1);
    close_disk(disk);
}

static void test_what_is_here_is_read_at_once(void **state)
{
    struct disk *disk = some_disk();
    assert_true(disk_is_split(disk));
    assert_int_equal(disk_missing(disk), EXTENT + 1);
    assert_int_equal(look(disk, FIRST * DISK_BLOCK, 0), 'o');
    assert_int_equal(look(disk, 6 * MiB, 2 * MiB), 'o');
    close_disk(disk);
}

static void test_missing_blocks_count_as_data(void **state)
{
    struct disk *disk = some_disk();
    struct disk_extent extent;
    fetch(disk, FIRST, 1);
    assert_int_equal(disk_fill(disk, &(struct disk_run){FIRST + 1, 1, HANDOVER}, NULL, NULL), 0);
    assert_int_equal(disk_trim(disk, MiB, 0, false), 0);
    assert_int_equal(disk_extent(disk, 0, SPLIT_SIZE, &extent), 0);
    assert_true(extent.hole && extent.length == MiB);
    assert_int_equal(disk_extent(disk, MiB + DISK_BLOCK, SPLIT_SIZE - MiB - DISK_BLOCK, &extent), 0);
    assert_true(extent.hole && extent.length == DISK_BLOCK);
    assert_int_equal(disk_extent(disk, MiB + 2 * DISK_BLOCK + 7, MiB, &extent), 0);
    assert_true(!extent.hole && extent.length == MiB - 2 * DISK_BLOCK - 7);
    close_disk(disk);
}

/* --- writing ------------------------------------------------------------------------------------------- */

static void test_a_write_of_whole_blocks_never_waits(void **state)
{
    struct disk *disk = some_disk();
    assert_int_equal(write_w(disk, 2 * MiB, DISK_BLOCK), 0);
    assert_int_equal(look(disk, 2 * MiB, DISK_BLOCK), 'w');
    assert_int_equal(write_w(disk, 512, LAST * DISK_BLOCK), 0); /* the short one */
    assert_int_equal(disk_missing(disk), 0);
    close_disk(disk);
}

static void test_fetched_data_never_overwrites_a_write(void **state)
{
    struct disk *disk = some_disk();
    assert_int_equal(write_w(disk, DISK_BLOCK, (FIRST + 3) * DISK_BLOCK), 0);
    uint32_t number = number_at(disk, FIRST + 3);
    fetch(disk, FIRST, 8);
    assert_int_equal(look_at(disk, FIRST + 2), 'f');
    assert_int_equal(look_at(disk, FIRST + 3), 'w');
    assert_int_equal(look_at(disk, FIRST + 4), 'f');
    assert_int_equal(number_at(disk, FIRST + 2), HANDOVER);
    assert_int_equal(number_at(disk, FIRST + 3), number);
    assert_true(number > HANDOVER);
    fetch(disk, FIRST, 8); /* what came twice changes nothing either */
    assert_int_equal(look_at(disk, FIRST + 3), 'w');
    close_disk(disk);
}

static void test_a_write_of_part_of_a_missing_block_waits_and_does_nothing(void **state)
{
    struct disk *disk = some_disk();
    struct demands demands = {0};
    disk_on_demand(disk, note_demand, &demands);
    assert_int_equal(write_w(disk, 4 * DISK_BLOCK, FIRST * DISK_BLOCK + 512), -EAGAIN);
    assert_int_equal(demands.count, 2);
    assert_int_equal(demands.last[0].block, FIRST);
    assert_int_equal(demands.last[1].block, FIRST + 4);
    assert_int_equal(write_w(disk, 512, FIRST * DISK_BLOCK), -EAGAIN);
    assert_int_equal(write_w(disk, 100, (FIRST + 9) * DISK_BLOCK + 7), -EAGAIN);
    assert_int_equal(disk_missing(disk), EXTENT + 1);
    assert_int_equal(number_at(disk, FIRST + 1), 3);
    fetch(disk, FIRST, 1);
    fetch(disk, FIRST + 4, 1);
    assert_int_equal(write_w(disk, 4 * DISK_BLOCK, FIRST * DISK_BLOCK + 512), 0);
    assert_int_equal(look(disk, 512, FIRST * DISK_BLOCK), 'f');
    assert_int_equal(look(disk, 4 * DISK_BLOCK, FIRST * DISK_BLOCK + 512), 'w');
    assert_int_equal(look(disk, DISK_BLOCK - 512, (FIRST + 4) * DISK_BLOCK + 512), 'f');
    assert_int_equal(disk_missing(disk), EXTENT + 1 - 5);
    close_disk(disk);
}

static void check_cleared(struct disk *disk, int (*clear)(struct disk *disk, uint64_t size, uint64_t offset))
{
    assert_int_equal(clear(disk, 2 * DISK_BLOCK, (FIRST + 1) * DISK_BLOCK - 1), -EAGAIN);
    assert_int_equal(clear(disk, 2 * DISK_BLOCK, (FIRST + 1) * DISK_BLOCK), 0);
    fetch(disk, FIRST, 4);
    assert_int_equal(look_at(disk, FIRST), 'f');
    assert_int_equal(look(disk, 2 * DISK_BLOCK, (FIRST + 1) * DISK_BLOCK), 0);
    assert_int_equal(look_at(disk, FIRST + 3), 'f');
    assert_true(number_at(disk, FIRST + 1) > HANDOVER);
    assert_int_equal(clear(disk, SPLIT_SIZE, 0), 0); /* everything at once */
    assert_int_equal(look(disk, SPLIT_SIZE, 0), 0);
    assert_int_equal(disk_missing(disk), 0);
    close_disk(disk);
}

static int trim(struct disk *disk, uint64_t size, uint64_t offset)
{
    return disk_trim(disk, size, offset, false);
}

static int zero(struct disk *disk, uint64_t size, uint64_t offset)
{
    return disk_zero(disk, size, offset, DISK_ZERO_NO_HOLE);
}

static void test_a_trim_of_missing_blocks_is_not_undone_by_what_comes(void **state)
{
    check_cleared(some_disk(), trim);
}

static void test_zeroing_missing_blocks_is_not_undone_by_what_comes(void **state)
{
    check_cleared(some_disk(), zero);
}

/* Here it is a hole that was never written; over there it is not. */
static void test_a_trim_of_a_missing_hole_counts_as_written(void **state)
{
    assert_ok(disk_create(in_folder("d"), SPLIT_SIZE, NULL, NULL, &err));
    struct disk *disk = open_disk(in_folder("d"), DISK_FROZEN);
    set_claim(disk, LINEAGE_PARTIAL, 0);
    expect_missing(disk, SOME);
    become_split(disk);
    assert_int_equal(disk_trim(disk, 4 * MiB, 0, false), 0);
    assert_int_equal(number_at(disk, FIRST - 1), 0);
    assert_true(number_at(disk, FIRST) > HANDOVER);
    assert_true(number_at(disk, FIRST + EXTENT - 1) > HANDOVER);
    assert_int_equal(number_at(disk, FIRST + EXTENT), 0);
    assert_int_equal(disk_missing(disk), 1);
    close_disk(disk);
}

/* --- what comes ---------------------------------------------------------------------------------------- */

static void test_a_hole_comes_as_a_hole(void **state)
{
    struct disk *disk = some_disk();
    struct disk_run run = {.block = FIRST, .count = EXTENT, .generation = 4};
    assert_ok(disk_fill(disk, &run, NULL, &err));
    assert_int_equal(look(disk, MiB, MiB), 0);
    assert_int_equal(number_at(disk, FIRST), 4);
    assert_true(space_of(in_folder("d")) < 8 * MiB);
    close_disk(disk);
}

static void test_what_the_source_had_nothing_newer_of_is_good_as_it_is(void **state)
{
    struct disk *disk = some_disk();
    fetch(disk, FIRST + 1, 1);
    assert_ok(disk_filled(disk, FIRST, EXTENT, &err));
    assert_int_equal(look_at(disk, FIRST), 'o');
    assert_int_equal(look_at(disk, FIRST + 1), 'f');
    assert_int_equal(number_at(disk, FIRST), 3);
    assert_int_equal(disk_missing(disk), 1);
    fetch(disk, FIRST, 1); /* comes late */
    assert_int_equal(look_at(disk, FIRST), 'o');
    close_disk(disk);
}

static void test_a_run_that_cannot_be_is_refused(void **state)
{
    struct disk *disk = some_disk();
    char data[DISK_BLOCK] = {0};
    const struct disk_run newer = {FIRST, 1, HANDOVER + 1}, outside = {LAST, 2, HANDOVER},
                          far = {UINT64_MAX, 2, HANDOVER};
    assert_int_equal(disk_fill(disk, &newer, data, NULL), -EPROTO);
    assert_int_equal(disk_fill(disk, &outside, data, NULL), -EPROTO);
    assert_int_equal(disk_fill(disk, &far, data, NULL), -EPROTO);
    assert_int_equal(disk_filled(disk, LAST, 2, NULL), -EPROTO);
    assert_int_equal(disk_filled(disk, 1, UINT64_MAX, NULL), -EPROTO);
    assert_int_equal(disk_missing(disk), EXTENT + 1);
    close_disk(disk);
}

static void test_runs_of_missing_blocks_are_found(void **state)
{
    struct disk *disk = some_disk();
    struct disk_run run;
    fetch(disk, FIRST + 70, 1);
    assert_true(disk_next_missing(disk, 0, UINT64_MAX, UINT64_MAX, &run));
    assert_true(run.block == FIRST && run.count == 70);
    assert_true(disk_next_missing(disk, FIRST + 70, UINT64_MAX, 10, &run));
    assert_true(run.block == FIRST + 71 && run.count == 10);
    assert_true(disk_next_missing(disk, FIRST + 80, FIRST + 90, UINT64_MAX, &run));
    assert_true(run.block == FIRST + 80 && run.count == 10);
    assert_true(disk_next_missing(disk, 2 * EXTENT, UINT64_MAX, 10, &run));
    assert_true(run.block == LAST && run.count == 1);
    assert_false(disk_next_missing(disk, 2 * EXTENT, LAST, 10, &run));
    close_disk(disk);
}

/* --- the end ------------------------------------------------------------------------------------------- */

static void test_a_disk_with_missing_blocks_is_not_whole(void **state)
{
    struct disk *disk = some_disk();
    fetch(disk, FIRST, EXTENT);
    assert_int_equal(disk_whole(disk, NULL), -EBUSY);
    close_disk(disk);
}

static void test_a_whole_disk_is_an_owners_like_any_other(void **state)
{
    struct disk *disk = some_disk();
    _cleanup_(lineage_cleanup) struct lineage *lineage = NULL;
    fetch(disk, FIRST, EXTENT);
    fetch(disk, LAST, 1);
    assert_ok(disk_whole(disk, &err));
    assert_ok(disk_whole(disk, &err)); /* already */
    assert_false(disk_is_split(disk));
    assert_false(exists("d.missing"));
    assert_ok(disk_lineage(disk, &lineage, &err));
    assert_int_equal(lineage->claim, LINEAGE_OWNER);
    assert_int_equal(look(disk, MiB, MiB), 'f');
    seal(disk);
    close_disk(disk);
    disk = open_disk(in_folder("d"), 0);
    assert_int_equal(look(disk, 512, LAST * DISK_BLOCK), 'f');
    assert_false(disk_is_split(disk));
    close_disk(disk);
}

static void test_the_same_disk_may_be_split_again(void **state)
{
    struct disk *disk = some_disk();
    assert_ok(disk_filled(disk, 0, SPLIT_BLOCKS, &err));
    assert_ok(disk_whole(disk, &err));
    disk_freeze(disk);
    set_claim(disk, LINEAGE_REPLICA, HANDOVER);
    set_claim(disk, LINEAGE_PARTIAL, HANDOVER);
    _cleanup_(lineage_cleanup) struct lineage *lineage = NULL;
    struct id id = id_random();
    assert_ok(disk_lineage(disk, &lineage, &err));
    assert_int_equal(lineage_add(lineage, 20, &id, LINEAGE_HANDOVER, "there", 1), 0);
    const uint8_t bits[2] = {1, 0};
    assert_ok(disk_expect(disk, lineage, bits, sizeof bits, &err));
    become_split(disk);
    assert_int_equal(disk_missing(disk), EXTENT);
    assert_int_equal(look_at(disk, 0), -EAGAIN);
    close_disk(disk);
}

/* --- stops and power cuts ------------------------------------------------------------------------------ */

static void test_closing_and_opening_changes_nothing(void **state)
{
    struct disk *disk = some_disk();
    fetch(disk, FIRST, 3);
    assert_int_equal(write_w(disk, DISK_BLOCK, (FIRST + 7) * DISK_BLOCK), 0);
    close_disk(disk);
    boot++;
    disk = open_disk(in_folder("d"), 0);
    assert_true(disk_is_split(disk));
    assert_int_equal(disk_missing(disk), EXTENT + 1 - 4);
    assert_int_equal(look_at(disk, FIRST + 7), 'w');
    assert_int_equal(look_at(disk, FIRST + 3), -EAGAIN);
    assert_true(disk_generation(disk) > HANDOVER + 1);
    close_disk(disk);
}

/* Blocks 4 (fetched) and 1 (written) before a flush, 0 (written) and 5 (fetched) after it. */
static void write_flush_and_fetch(struct disk *disk)
{
    char data[DISK_BLOCK];
    memset(data, 'w', sizeof data);
    fetch(disk, FIRST + 4, 1);
    if (disk_write(disk, data, sizeof data, (FIRST + 1) * DISK_BLOCK, false) != 0 || disk_flush(disk) != 0)
        _exit(2);
    if (disk_write(disk, data, sizeof data, FIRST * DISK_BLOCK, false) != 0)
        _exit(2);
    fetch(disk, FIRST + 5, 1);
}

static void test_a_killed_process_loses_no_write_and_nothing_fetched(void **state)
{
    close_disk(some_disk());
    in_killed_process(in_folder("d"), write_flush_and_fetch);
    struct disk *disk = open_disk(in_folder("d"), 0);
    fetch(disk, FIRST, EXTENT); /* whoever was forgotten would be overwritten */
    assert_int_equal(look_at(disk, FIRST), 'w');
    assert_int_equal(look_at(disk, FIRST + 1), 'w');
    assert_int_equal(look_at(disk, FIRST + 4), 'f');
    close_disk(disk);
}

static void flush_only(struct disk *disk)
{
    if (disk_flush(disk) != 0)
        _exit(2);
}

static void test_what_a_killed_process_left_is_carried_over_by_the_next_flush(void **state)
{
    close_disk(some_disk());
    in_killed_process(in_folder("d"), write_flush_and_fetch);
    in_killed_process(in_folder("d"), flush_only);
    boot++;
    struct disk *disk = open_disk(in_folder("d"), 0);
    assert_int_equal(disk_missing(disk), EXTENT + 1 - 4);
    close_disk(disk);
}

static void test_after_a_power_cut_what_was_flushed_is_not_missing(void **state)
{
    close_disk(some_disk());
    in_killed_process(in_folder("d"), write_flush_and_fetch);
    boot++;
    struct disk *disk = open_disk(in_folder("d"), 0);
    assert_false(is_missing(disk, FIRST + 1));
    assert_false(is_missing(disk, FIRST + 4)); /* the flush took it along */
    assert_true(is_missing(disk, FIRST));
    assert_true(is_missing(disk, FIRST + 5));
    assert_int_equal(disk_missing(disk), EXTENT + 1 - 2);
    assert_int_equal(look_at(disk, FIRST + 1), 'w');
    close_disk(disk);
}

static void write_with_fua(struct disk *disk)
{
    char data[DISK_BLOCK] = {0};
    if (disk_write(disk, data, sizeof data, FIRST * DISK_BLOCK, true) != 0 ||
        disk_zero(disk, DISK_BLOCK, (FIRST + 1) * DISK_BLOCK, DISK_ZERO_FUA) != 0)
        _exit(2);
}

static void test_after_a_power_cut_what_was_written_with_fua_is_not_missing(void **state)
{
    close_disk(some_disk());
    in_killed_process(in_folder("d"), write_with_fua);
    boot++;
    struct disk *disk = open_disk(in_folder("d"), 0);
    assert_false(is_missing(disk, FIRST) || is_missing(disk, FIRST + 1));
    close_disk(disk);
}

static void fetch_and_checkpoint(struct disk *disk)
{
    fetch(disk, FIRST, 10);
    if (disk_checkpoint(disk) != 0)
        _exit(2);
}

static void test_a_checkpoint_keeps_what_was_fetched(void **state)
{
    close_disk(some_disk());
    in_killed_process(in_folder("d"), fetch_and_checkpoint);
    boot++;
    struct disk *disk = open_disk(in_folder("d"), 0);
    assert_int_equal(disk_missing(disk), EXTENT + 1 - 10);
    close_disk(disk);
}

/* The marks of a power cut say nothing of what is here. */
static void test_a_missing_block_that_counts_as_written_is_fetched_all_the_same(void **state)
{
    close_disk(some_disk());
    in_killed_process(in_folder("d"), write_flush_and_fetch);
    boot++;
    struct disk *disk = open_disk(in_folder("d"), 0);
    assert_int_equal(number_at(disk, FIRST + 100), disk_generation(disk));
    assert_true(is_missing(disk, FIRST + 100));
    fetch(disk, FIRST + 100, 1);
    assert_int_equal(look_at(disk, FIRST + 100), 'f');
    assert_int_equal(number_at(disk, FIRST + 100), disk_generation(disk));
    close_disk(disk);
}

static void test_a_split_disk_without_its_record_is_not_opened(void **state)
{
    struct err err = ERR_NONE;
    struct disk *disk = NULL;
    close_disk(some_disk());
    assert_int_equal(truncate(in_folder("d.missing"), 4096), 0);
    assert_int_equal(disk_open(in_folder("d"), 0, &disk, &err), -EBADMSG);
    assert_non_null(strstr(err.hint, "recover"));
    assert_int_equal(unlink(in_folder("d.missing")), 0);
    assert_int_equal(disk_open(in_folder("d"), 0, &disk, &err), -ENOENT);
}

/* --- becoming split ------------------------------------------------------------------------------------ */

static void test_what_is_expected_outlives_a_stop(void **state)
{
    struct disk *disk = partial_disk(in_folder("d"));
    assert_false(disk_may_split(disk));
    expect_missing(disk, SOME);
    assert_true(disk_may_split(disk));
    assert_false(disk_is_split(disk));
    assert_int_equal(look(disk, SPLIT_SIZE, 0), 'o'); /* it is no split disk yet */
    close_disk(disk);
    boot++;
    disk = open_disk(in_folder("d"), DISK_FROZEN);
    assert_true(disk_may_split(disk));
    become_split(disk);
    assert_false(disk_may_split(disk));
    assert_int_equal(disk_missing(disk), EXTENT + 1);
    assert_int_equal(write_w(disk, DISK_BLOCK, 0), 0);
    close_disk(disk);
}

static void test_what_is_received_after_all_ends_the_expectation(void **state)
{
    struct disk *disk = partial_disk(in_folder("d"));
    char data[DISK_BLOCK] = {0};
    expect_missing(disk, SOME);
    assert_ok(disk_receive(disk, &(struct disk_run){0, 1, 4}, data, &err));
    assert_false(disk_may_split(disk));
    assert_false(exists("d.missing"));
    assert_ok(disk_receive(disk, &(struct disk_run){1, 1, 4}, data, &err));
    close_disk(disk);
}

static void test_a_lineage_of_another_hand_over_ends_the_expectation(void **state)
{
    struct disk *disk = partial_disk(in_folder("d"));
    _cleanup_(lineage_cleanup) struct lineage *before = NULL;
    assert_ok(disk_lineage(disk, &before, &err));
    expect_missing(disk, SOME);
    assert_ok(disk_set_lineage(disk, before, &err));
    assert_false(disk_may_split(disk));
    assert_false(exists("d.missing"));
    close_disk(disk);
}

static void test_a_new_expectation_replaces_the_old_one(void **state)
{
    struct disk *disk = partial_disk(in_folder("d"));
    _cleanup_(lineage_cleanup) struct lineage *before = NULL;
    assert_ok(disk_lineage(disk, &before, &err));
    expect_missing(disk, SOME);
    struct id id = id_random();
    assert_int_equal(lineage_add(before, HANDOVER, &id, LINEAGE_HANDOVER, "there", 1), 0);
    const uint8_t bits[2] = {1, 0};
    assert_ok(disk_expect(disk, before, bits, sizeof bits, &err));
    become_split(disk);
    assert_int_equal(disk_missing(disk), EXTENT);
    assert_true(is_missing(disk, 0));
    close_disk(disk);
}

static void test_a_record_that_fits_nothing_is_removed(void **state)
{
    struct disk *disk = partial_disk(in_folder("d"));
    expect_missing(disk, SOME);
    close_disk(disk);
    assert_int_equal(rename(in_folder("d.missing"), in_folder("kept")), 0);
    disk = open_disk(in_folder("d"), DISK_FROZEN);
    assert_false(disk_may_split(disk));
    set_claim(disk, LINEAGE_OWNER, 0);
    close_disk(disk);
    assert_int_equal(rename(in_folder("kept"), in_folder("d.missing")), 0);
    disk = open_disk(in_folder("d"), 0); /* as after a crash in disk_whole */
    assert_false(disk_is_split(disk));
    assert_false(exists("d.missing"));
    close_disk(disk);
}

static void test_only_a_frozen_partial_copy_may_expect(void **state)
{
    const uint8_t bits[2] = {1, 0};
    struct disk *disk = partial_disk(in_folder("d"));
    _cleanup_(lineage_cleanup) struct lineage *lineage = arriving_lineage(disk, LINEAGE_PARTIAL);
    _cleanup_(lineage_cleanup) struct lineage *owner = arriving_lineage(disk, LINEAGE_OWNER);
    _cleanup_(lineage_cleanup) struct lineage *bare = NULL;
    assert_ok(disk_lineage(disk, &bare, &err));
    assert_int_equal(disk_expect(disk, owner, bits, sizeof bits, NULL), -EPROTO);
    assert_int_equal(disk_expect(disk, bare, bits, sizeof bits, NULL), -EPROTO);
    disk_thaw(disk);
    assert_int_equal(disk_expect(disk, lineage, bits, sizeof bits, NULL), -EROFS);
    disk_freeze(disk);
    set_claim(disk, LINEAGE_OWNER, 0);
    assert_int_equal(disk_expect(disk, lineage, bits, sizeof bits, NULL), -EROFS);
    assert_false(exists("d.missing"));
    close_disk(disk);
}

static void test_a_picture_of_another_disk_is_refused(void **state)
{
    struct disk *disk = partial_disk(in_folder("d"));
    _cleanup_(lineage_cleanup) struct lineage *lineage = arriving_lineage(disk, LINEAGE_PARTIAL);
    const uint8_t bits[3] = {0xff, 2, 0};
    assert_int_equal(disk_expect(disk, lineage, bits, 1, NULL), -EPROTO);
    assert_int_equal(disk_expect(disk, lineage, bits, 3, NULL), -EPROTO);
    assert_int_equal(disk_expect(disk, lineage, bits, 2, NULL), -EPROTO); /* a tenth extent */
    assert_false(disk_may_split(disk));
    close_disk(disk);
}

static void test_no_disk_is_split_before_what_is_missing_is_known(void **state)
{
    struct disk *disk = partial_disk(in_folder("d"));
    _cleanup_(lineage_cleanup) struct lineage *lineage = arriving_lineage(disk, LINEAGE_SPLIT);
    assert_int_equal(disk_set_lineage(disk, lineage, NULL), -EINVAL);
    expect_missing(disk, SOME); /* of another hand-over */
    assert_int_equal(disk_set_lineage(disk, lineage, NULL), -EINVAL);
    close_disk(disk);
}

/* --- what a split disk may not do ---------------------------------------------------------------------- */

static void test_a_split_disk_is_not_moved_on(void **state)
{
    struct disk *disk = some_disk();
    struct relocate *relocate = NULL;
    struct id id = id_random();
    struct err why = ERR_NONE;
    uint32_t sealed;
    assert_int_equal(relocate_new(disk, &(struct lineage_base){0}, NULL, 0, &relocate, &why), -EBUSY);
    assert_true(why.text[0] && why.hint[0]);
    assert_int_equal(disk_advance(disk, &id, LINEAGE_ROUND, "here", &sealed, NULL), -EBUSY);
    _cleanup_(lineage_cleanup) struct lineage *lineage = NULL;
    assert_ok(disk_lineage(disk, &lineage, &err));
    lineage->claim = LINEAGE_OWNER;
    assert_int_equal(disk_set_lineage(disk, lineage, NULL), -EBUSY);
    lineage->claim = LINEAGE_SPLIT;
    assert_ok(disk_set_lineage(disk, lineage, &err)); /* that it is already */
    close_disk(disk);
}

static void test_removing_a_disk_removes_its_record(void **state)
{
    close_disk(some_disk());
    assert_true(exists("d.missing"));
    assert_ok(disk_remove(in_folder("d"), &err));
    assert_false(exists("d.missing"));
}

static void test_verifying_leaves_out_what_is_missing(void **state)
{
    struct disk_verdict verdict;
    struct disk *disk = some_disk();
    fetch(disk, FIRST, 6);
    close_disk(disk);
    assert_ok(disk_verify(in_folder("d"), &verdict, &err));
    assert_int_equal(verdict.count, 0);
    assert_int_equal(verdict.missing, EXTENT + 1 - 6);
    disk_verdict_done(&verdict);
    assert_int_equal(unlink(in_folder("d.missing")), 0);
    assert_ok(disk_verify(in_folder("d"), &verdict, &err));
    assert_int_equal(verdict.count, 1);
    disk_verdict_done(&verdict);
}

static void test_a_reader_of_the_file_is_told_what_is_missing(void **state)
{
    struct disk *disk = some_disk();
    fetch(disk, FIRST, 6);
    close_disk(disk);
    for (int i = 0; i < 2; i++, boot++) { /* in this boot and in another */
        disk = open_disk(in_folder("d"), DISK_READ_ONLY);
        assert_int_equal(disk_missing(disk), EXTENT + 1 - 6);
        assert_int_equal(look_at(disk, FIRST + 6), -EAGAIN);
        assert_int_equal(disk_fill(disk, &(struct disk_run){FIRST + 6, 1, 1}, NULL, NULL), -EROFS);
        close_disk(disk);
    }
}

/* --- who waits ----------------------------------------------------------------------------------------- */

static bool rang(int fd)
{
    uint64_t count;
    return read(fd, &count, sizeof count) == sizeof count;
}

static void test_watchers_hear_of_what_comes(void **state)
{
    struct disk *disk = some_disk();
    _cleanup_close_ int fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    assert_int_equal(disk_watch(disk, fd), 0);
    assert_true(rang(fd)); /* once at the beginning */
    assert_false(rang(fd));
    fetch(disk, FIRST, 1);
    assert_true(rang(fd));
    assert_int_equal(write_w(disk, DISK_BLOCK, (FIRST + 1) * DISK_BLOCK), 0);
    assert_true(rang(fd));
    assert_ok(disk_filled(disk, FIRST + 2, 1, &err));
    assert_true(rang(fd));
    assert_int_equal(write_w(disk, DISK_BLOCK, (FIRST + 1) * DISK_BLOCK), 0);
    assert_false(rang(fd)); /* nothing new came */
    disk_unwatch(disk, fd);
    fetch(disk, FIRST + 3, 1);
    assert_false(rang(fd));
    close_disk(disk);
}

static void test_a_demand_is_told_once_and_again_to_a_new_fetcher(void **state)
{
    struct disk *disk = some_disk();
    struct demands demands = {0};
    unsigned told = 0;
    _cleanup_close_ int fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    assert_int_equal(disk_watch(disk, fd), 0);
    assert_true(rang(fd));
    assert_false(disk_ready(disk, DISK_NEED_ALL, DISK_BLOCK, MiB, &told)); /* nobody to tell it to */
    disk_on_demand(disk, note_demand, &demands);
    assert_true(rang(fd));
    assert_false(disk_ready(disk, DISK_NEED_ALL, DISK_BLOCK, MiB, &told));
    assert_false(disk_ready(disk, DISK_NEED_ALL, DISK_BLOCK, MiB, &told));
    assert_int_equal(demands.count, 1);
    disk_on_demand(disk, NULL, NULL);
    assert_false(disk_ready(disk, DISK_NEED_ALL, DISK_BLOCK, MiB, &told));
    disk_on_demand(disk, note_demand, &demands);
    assert_false(disk_ready(disk, DISK_NEED_ALL, DISK_BLOCK, MiB, &told));
    assert_int_equal(demands.count, 2);
    assert_true(disk_ready(disk, DISK_NEED_EDGES, DISK_BLOCK, MiB, &told));
    fetch(disk, FIRST, 1);
    assert_true(disk_ready(disk, DISK_NEED_ALL, DISK_BLOCK, MiB, &told));
    close_disk(disk);
}

static atomic_int call_state;

static void slow_demand(void *arg, uint64_t block, uint64_t count)
{
    atomic_store(&call_state, 1);
    clock_sleep(50 * NSEC_PER_MSEC);
    atomic_store(&call_state, 2);
}

static void *read_missing(void *arg)
{
    char data[DISK_BLOCK];
    if (disk_read(arg, data, sizeof data, MiB) != -EAGAIN)
        fail_in_any_thread("the read did not wait");
    return NULL;
}

static void test_taking_the_fetcher_away_waits_for_its_calls(void **state)
{
    struct disk *disk = some_disk();
    pthread_t thread;
    atomic_store(&call_state, 0);
    disk_on_demand(disk, slow_demand, NULL);
    assert_int_equal(pthread_create(&thread, NULL, read_missing, disk), 0);
    while (atomic_load(&call_state) == 0)
        clock_sleep(NSEC_PER_MSEC);
    disk_on_demand(disk, NULL, NULL);
    assert_int_equal(atomic_load(&call_state), 2);
    pthread_join(thread, NULL);
    close_disk(disk);
}

static void test_the_oldest_wait_is_told(void **state)
{
    struct disk *disk = some_disk();
    int fds[2] = {eventfd(0, EFD_NONBLOCK), eventfd(0, EFD_NONBLOCK)};
    assert_int_equal(disk_waiting_since(disk), 0);
    for (int i = 0; i < 2; i++)
        assert_int_equal(disk_watch(disk, fds[i]), 0);
    assert_int_equal(disk_waiting_since(disk), 0);
    disk_waits(disk, fds[0], 2000);
    disk_waits(disk, fds[1], 1000);
    assert_int_equal(disk_waiting_since(disk), 1000);
    disk_waits(disk, fds[1], 0);
    assert_int_equal(disk_waiting_since(disk), 2000);
    disk_unwatch(disk, fds[0]);
    assert_int_equal(disk_waiting_since(disk), 0);
    disk_unwatch(disk, fds[1]);
    close_disk(disk);
    close(fds[0]);
    close(fds[1]);
}

/* --- the source's picture ------------------------------------------------------------------------------ */

static void test_extents_double_until_they_are_few_enough(void **state)
{
    const uint64_t most = UINT64_C(256) * SPLIT_MAX_EXTENTS;
    assert_int_equal(split_extent_blocks(1), 256);
    assert_int_equal(split_extents(1), 1);
    assert_int_equal(split_extent_blocks(most), 256);
    assert_int_equal(split_extents(most), SPLIT_MAX_EXTENTS);
    assert_int_equal(split_extent_blocks(most + 1), 512);
    assert_int_equal(split_extent_blocks(INT64_MAX / DISK_BLOCK) % 256, 0);
    assert_true(split_extents(INT64_MAX / DISK_BLOCK) <= SPLIT_MAX_EXTENTS);
    assert_int_equal(split_grain_blocks(SPLIT_MAX_GRAINS), 1);
    assert_int_equal(split_newer_size(SPLIT_MAX_GRAINS), SPLIT_MAX_GRAINS / 8);
    assert_int_equal(split_grain_blocks(SPLIT_MAX_GRAINS + 1), 2);
    assert_int_equal(split_newer_size(SPLIT_MAX_GRAINS + 1), SPLIT_MAX_GRAINS / 16 + 1);
    assert_int_equal(split_newer_size(9), 2);
    assert_true(split_newer_size(INT64_MAX / DISK_BLOCK) <= SPLIT_MAX_GRAINS / 8);
}

static void test_a_picture_shows_what_the_destination_lacks(void **state)
{
    struct disk *disk = new_disk(in_folder("s"), SPLIT_SIZE);
    uint32_t numbers[3];
    for (unsigned i = 0; i < 3; i++) { /* each round writes blocks of extents i and i + 4 */
        for (unsigned n = 0; n < 10; n++) {
            write_byte(disk, i * MiB + n * DISK_BLOCK);
            write_byte(disk, (i + 4) * MiB + n * DISK_BLOCK);
        }
        numbers[i] = seal(disk);
    }
    write_byte(disk, SPLIT_SIZE - 1); /* after the last seal */
    /* Below extent 4 it has round 1, above it round 0. */
    const struct lineage_base base = {.base = numbers[0], .reached = numbers[1], .cursor = 4 * EXTENT};
    uint8_t *bits = NULL;
    size_t size = 0;
    uint64_t blocks = 0;
    assert_ok(split_picture(disk, &base, numbers[2], &bits, &size, &blocks, &err));
    assert_int_equal(size, 2);
    assert_int_equal(bits[0], 1U << 2 | 1U << 5 | 1U << 6);
    assert_int_equal(bits[1], 0);
    assert_int_equal(blocks, 30);
    free(bits);
    assert_ok(split_newer(disk, numbers[1], &bits, &size, &err)); /* the last write too */
    assert_int_equal(size, SPLIT_BLOCKS / 8 + 1);
    for (uint64_t block = 0; block < SPLIT_BLOCKS; block++) {
        bool newer = (block % EXTENT < 10 && (block / EXTENT == 2 || block / EXTENT == 6)) ||
                     block == SPLIT_BLOCKS - 1;
        assert_int_equal(bits[block / 8] >> block % 8 & 1, newer);
    }
    free(bits);
    close_disk(disk);
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, drop_folder)

int main(void)
{
    const struct CMUnitTest tests[] = {
        T(test_a_read_of_missing_blocks_waits_and_says_which),
        T(test_what_is_here_is_read_at_once),
        T(test_missing_blocks_count_as_data),
        T(test_a_write_of_whole_blocks_never_waits),
        T(test_fetched_data_never_overwrites_a_write),
        T(test_a_write_of_part_of_a_missing_block_waits_and_does_nothing),
        T(test_a_trim_of_missing_blocks_is_not_undone_by_what_comes),
        T(test_zeroing_missing_blocks_is_not_undone_by_what_comes),
        T(test_a_trim_of_a_missing_hole_counts_as_written),
        T(test_a_hole_comes_as_a_hole),
        T(test_what_the_source_had_nothing_newer_of_is_good_as_it_is),
        T(test_a_run_that_cannot_be_is_refused),
        T(test_runs_of_missing_blocks_are_found),
        T(test_a_disk_with_missing_blocks_is_not_whole),
        T(test_a_whole_disk_is_an_owners_like_any_other),
        T(test_the_same_disk_may_be_split_again),
        T(test_closing_and_opening_changes_nothing),
        T(test_a_killed_process_loses_no_write_and_nothing_fetched),
        T(test_what_a_killed_process_left_is_carried_over_by_the_next_flush),
        T(test_after_a_power_cut_what_was_flushed_is_not_missing),
        T(test_after_a_power_cut_what_was_written_with_fua_is_not_missing),
        T(test_a_checkpoint_keeps_what_was_fetched),
        T(test_a_missing_block_that_counts_as_written_is_fetched_all_the_same),
        T(test_a_split_disk_without_its_record_is_not_opened),
        T(test_what_is_expected_outlives_a_stop),
        T(test_what_is_received_after_all_ends_the_expectation),
        T(test_a_lineage_of_another_hand_over_ends_the_expectation),
        T(test_a_new_expectation_replaces_the_old_one),
        T(test_a_record_that_fits_nothing_is_removed),
        T(test_only_a_frozen_partial_copy_may_expect),
        T(test_a_picture_of_another_disk_is_refused),
        T(test_no_disk_is_split_before_what_is_missing_is_known),
        T(test_a_split_disk_is_not_moved_on),
        T(test_removing_a_disk_removes_its_record),
        T(test_verifying_leaves_out_what_is_missing),
        T(test_a_reader_of_the_file_is_told_what_is_missing),
        T(test_watchers_hear_of_what_comes),
        T(test_a_demand_is_told_once_and_again_to_a_new_fetcher),
        T(test_taking_the_fetcher_away_waits_for_its_calls),
        T(test_the_oldest_wait_is_told),
        cmocka_unit_test(test_extents_double_until_they_are_few_enough),
        T(test_a_picture_shows_what_the_destination_lacks),
    };
    return cmocka_run_group_tests_name("disk split", tests, NULL, NULL);
}
