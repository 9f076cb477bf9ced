/* SPDX-License-Identifier: Apache-2.0 */
// clang-format off
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
// clang-format on

#include "base/clock.h"
#include "base/macro.h"
#include "move/fetch_path.h"

/* A path of `rate` bytes per second on which each answer takes `took`: one answer after the other for `ns`.
 */
static int64_t travel(struct fetch_path *path, double rate, int64_t took, int64_t now, int64_t ns)
{
    const uint64_t bytes = 64 * KiB;
    for (int64_t end = now + ns; now < end;) {
        now += (int64_t)((double)bytes / rate * NSEC_PER_SEC);
        fetch_path_answered(path, bytes, took, now);
    }
    return now;
}

static void test_an_unknown_path_gets_little(void **state)
{
    (void)state;
    const struct fetch_path path = {0};
    assert_int_equal(fetch_path_window(&path), 128 * KiB);
}

static void test_the_window_is_what_the_path_holds(void **state)
{
    (void)state;
    struct fetch_path path = {0};
    travel(&path, 125e6, 8 * NSEC_PER_MSEC, NSEC_PER_SEC, NSEC_PER_SEC);
    assert_in_range(path.rate, 120000000, 130000000);
    assert_in_range(fetch_path_window(&path), 1200000, 1300000); /* 10 ms of 125 MB/s */
}

static void test_a_far_and_fast_path_is_bounded(void **state)
{
    (void)state;
    struct fetch_path path = {0};
    travel(&path, 1e9, 100 * NSEC_PER_MSEC, NSEC_PER_SEC, NSEC_PER_SEC);
    assert_int_equal(fetch_path_window(&path), 16 * MiB);
}

/* Answers that waited behind others say nothing about the path. */
static void test_a_queue_does_not_widen_the_window(void **state)
{
    (void)state;
    struct fetch_path path = {0};
    int64_t now = travel(&path, 125e6, 8 * NSEC_PER_MSEC, NSEC_PER_SEC, NSEC_PER_SEC);
    travel(&path, 125e6, 200 * NSEC_PER_MSEC, now, 5 * NSEC_PER_SEC);
    assert_in_range(fetch_path_window(&path), 1200000, 1300000);
}

static void test_a_path_that_changed_is_learned(void **state)
{
    (void)state;
    struct fetch_path path = {0};
    int64_t now = travel(&path, 125e6, 8 * NSEC_PER_MSEC, NSEC_PER_SEC, NSEC_PER_SEC);
    travel(&path, 12.5e6, 48 * NSEC_PER_MSEC, now, 15 * NSEC_PER_SEC);
    assert_in_range(path.rate, 12000000, 13000000);
    assert_in_range(fetch_path_window(&path), 600000, 650000); /* 50 ms of 12.5 MB/s */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_an_unknown_path_gets_little),
        cmocka_unit_test(test_the_window_is_what_the_path_holds),
        cmocka_unit_test(test_a_far_and_fast_path_is_bounded),
        cmocka_unit_test(test_a_queue_does_not_widen_the_window),
        cmocka_unit_test(test_a_path_that_changed_is_learned),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
