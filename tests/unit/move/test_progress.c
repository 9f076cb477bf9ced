/* SPDX-License-Identifier: Apache-2.0
 *
 * "Move status": the members that docs/protocol.md promises, and no number out of thin air.
 */
// clang-format off
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
// clang-format on

#include "base/clock.h"
#include "base/json.h"
#include "base/macro.h"
#include "move/progress.h"

#include <errno.h>
#include <string.h>

static struct progress *progress;
static json_t *json;

static const struct progress_numbers begun = {.stage = "transfer",
                                              .phase = "disk",
                                              .disk_base = "replica",
                                              .converging = true,
                                              .blackout_ms = -1,
                                              .clock_forward_ms = -1,
                                              .running_ms = -1};

static int setup(void **state)
{
    static const struct id move = {{1}};
    progress = progress_new(&move, "web1", "a", "b", false);
    return progress ? 0 : -1;
}

static int teardown(void **state)
{
    json_decref(json);
    json = NULL;
    progress_free(progress);
    return 0;
}

static const json_t *look(void)
{
    json_decref(json);
    json = progress_json(progress, "source");
    assert_non_null(json);
    return json;
}

static void test_all_members_are_there_from_the_beginning(void **state)
{
    static const char *const members[] = {
        "move",         "vm",        "from",       "to",         "role",        "stage",
        "phase",        "state",     "dry_run",    "disk",       "memory",      "rate",
        "dirty_rate",   "eta_ms",    "converging", "elapsed_ms", "blackout_ms", "clock_forward_ms",
        "running_ms",   "predicted", "notes",      "error",      "obstacle",    "throttle",
        "throttle_most"};
    look();
    for (size_t i = 0; i < ARRAY_SIZE(members); i++)
        if (!json_object_get(json, members[i]))
            fail_msg("\"%s\" is missing", members[i]);
    assert_int_equal(json_object_size(json), ARRAY_SIZE(members));
    assert_string_equal(json_str(json, "state", ""), "running");
    assert_true(json_is_null(json_object_get(json, "eta_ms")));
    assert_true(json_is_null(json_object_get(json, "blackout_ms")));
    assert_true(json_is_null(json_object_get(json, "running_ms")));
    assert_true(json_is_null(json_object_get(json, "predicted")));
    assert_true(json_is_null(json_object_get(json, "error")));
}

static void test_numbers_are_shown_as_they_were_set(void **state)
{
    struct progress_numbers numbers = begun;
    numbers.disk_sent = 100;
    numbers.disk_remaining = 200;
    numbers.memory_iterations = 3;
    numbers.blackout_ms = 61;
    numbers.clock_forward_ms = 60;
    numbers.running_ms = 412;
    numbers.memory_later = 7;
    numbers.faults.count = 12;
    numbers.faults.median_usec = 2500;
    progress_set(progress, &numbers);
    const json_t *disk = json_object_get(look(), "disk");
    assert_int_equal(json_u64(disk, "total_bytes", 0), 300);
    assert_int_equal(json_u64(disk, "sent_bytes", 0), 100);
    assert_string_equal(json_str(disk, "base", ""), "replica");
    assert_int_equal(json_u64(json_object_get(json, "memory"), "iteration", 0), 3);
    assert_int_equal(json_u64(json, "blackout_ms", 0), 61);
    assert_int_equal(json_u64(json, "clock_forward_ms", 0), 60);
    assert_int_equal(json_u64(json, "running_ms", 0), 412);
    assert_int_equal(json_u64(json_object_get(json, "memory"), "later_bytes", 0), 7);
    assert_int_equal(json_u64(json_object_get(json, "memory"), "faults", 0), 12);
    assert_true(json_real_value(json_object_get(json_object_get(json, "memory"), "fault_ms")) == 2.5);
}

static void test_the_rate_and_the_end_are_estimated(void **state)
{
    struct progress_numbers numbers = begun;
    clock_sleep(250 * NSEC_PER_MSEC);
    numbers.disk_sent = 25 * MiB;
    numbers.disk_remaining = 100 * MiB;
    progress_set(progress, &numbers);
    uint64_t rate = json_u64(look(), "rate", 0), eta = json_u64(json, "eta_ms", 0);
    assert_in_range(rate, 1 * MiB, 100 * MiB); /* 25 MiB in a quarter of a second or longer */
    assert_in_range(eta, 100 * MiB * 1000 / rate - 2, 100 * MiB * 1000 / rate + 2);
}

static void test_what_stands_in_the_way_comes_and_goes(void **state)
{
    assert_true(json_is_null(json_object_get(look(), "obstacle")));
    progress_obstacle(progress, "the guest writes too fast");
    assert_string_equal(json_str(look(), "obstacle", ""), "the guest writes too fast");
    progress_obstacle(progress, NULL);
    assert_true(json_is_null(json_object_get(look(), "obstacle")));
}

static void test_a_dirty_rate_that_is_not_known_is_null(void **state)
{
    struct prediction prediction = {.known = true, .converges = true};
    progress_predict(progress, &prediction);
    const json_t *predicted = json_object_get(look(), "predicted");
    assert_true(json_is_null(json_object_get(predicted, "dirty_bytes_per_second")));
    prediction.dirty_rate_known = true;
    prediction.dirty_rate = 4711;
    prediction.converges = false;
    prediction.endless = true;
    progress_predict(progress, &prediction);
    predicted = json_object_get(look(), "predicted");
    assert_int_equal(json_u64(predicted, "dirty_bytes_per_second", 0), 4711);
    assert_true(json_is_false(json_object_get(predicted, "converges")));
    assert_true(json_is_null(json_object_get(predicted, "seconds")));
    assert_true(json_is_null(json_object_get(predicted, "memory_bytes")));
}

static void test_there_is_no_end_in_sight_when_the_guest_is_faster(void **state)
{
    struct progress_numbers numbers = begun;
    clock_sleep(210 * NSEC_PER_MSEC);
    numbers.disk_sent = MiB;
    numbers.disk_remaining = 100 * MiB;
    numbers.dirty_rate = 1000 * MiB;
    progress_set(progress, &numbers);
    assert_true(json_is_null(json_object_get(look(), "eta_ms")));
}

static void test_an_end_in_centuries_is_none(void **state)
{
    struct progress_numbers numbers = begun;
    clock_sleep(210 * NSEC_PER_MSEC);
    numbers.disk_sent = 1;
    numbers.disk_remaining = UINT64_MAX / 2;
    progress_set(progress, &numbers);
    assert_true(json_is_null(json_object_get(look(), "eta_ms")));
}

static void test_the_end_is_shown_with_its_reason(void **state)
{
    struct err why = ERR_NONE;
    err_set(&why, ENOSPC, "no room");
    progress_end(progress, MOVE_STAYED, &why);
    uint64_t elapsed = json_u64(look(), "elapsed_ms", 0);
    assert_string_equal(json_str(json, "state", ""), "stayed");
    assert_string_equal(json_str(json_object_get(json, "error"), "text", ""), "no room");
    clock_sleep(20 * NSEC_PER_MSEC);
    assert_int_equal(json_u64(look(), "elapsed_ms", 0), elapsed); /* the clock has stopped */
}

static void test_notes_are_bounded(void **state)
{
    for (int i = 0; i < 100; i++)
        progress_note(progress, "note %d", i);
    assert_int_equal(json_array_size(json_object_get(look(), "notes")), PROGRESS_NOTES);
}

static void test_a_prediction_is_shown_with_its_disks(void **state)
{
    struct prediction prediction = {.known = true, .seconds = 2.5, .disk_bytes = 77, .disk_count = 1};
    strcpy(prediction.disks[0].file, "disk0.raw");
    prediction.disks[0].base = "image";
    progress_predict(progress, &prediction);
    const json_t *predicted = json_object_get(look(), "predicted");
    assert_true(json_double(predicted, "seconds", 0) == 2.5);
    assert_int_equal(json_u64(predicted, "disk_bytes", 0), 77);
    assert_string_equal(json_str(json_array_get(json_object_get(predicted, "disks"), 0), "base", ""),
                        "image");
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_all_members_are_there_from_the_beginning),
        TEST(test_numbers_are_shown_as_they_were_set),
        TEST(test_the_rate_and_the_end_are_estimated),
        TEST(test_what_stands_in_the_way_comes_and_goes),
        TEST(test_a_dirty_rate_that_is_not_known_is_null),
        TEST(test_there_is_no_end_in_sight_when_the_guest_is_faster),
        TEST(test_an_end_in_centuries_is_none),
        TEST(test_the_end_is_shown_with_its_reason),
        TEST(test_notes_are_bounded),
        TEST(test_a_prediction_is_shown_with_its_disks),
    };
    return cmocka_run_group_tests_name("progress", tests, NULL, NULL);
}
