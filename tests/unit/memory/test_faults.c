/* SPDX-License-Identifier: Apache-2.0 */
// clang-format off
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
// clang-format on

#include "base/clock.h"
#include "memory/faults.h"

static void come(struct faults *faults, uint64_t page, int64_t took)
{
    faults_asked(faults, page, NSEC_PER_SEC);
    faults_came(faults, page, NSEC_PER_SEC + took);
}

static void test_nothing_came(void **state)
{
    (void)state;
    struct faults faults = {0};
    faults_came(&faults, 7, NSEC_PER_SEC);
    assert_int_equal(faults.count, 0);
    assert_int_equal(faults_took(&faults, 0.5), 0);
}

static void test_what_is_said_is_right_to_a_tenth(void **state)
{
    (void)state;
    for (uint64_t usec = 8; usec < UINT64_C(1) << 38; usec += usec / 3) {
        struct faults faults = {0};
        come(&faults, 1, (int64_t)usec * 1000);
        assert_in_range(faults_took(&faults, 0.5), usec - usec / 8, usec + usec / 8);
    }
}

static void test_median_and_tail(void **state)
{
    (void)state;
    struct faults faults = {0};
    for (unsigned i = 0; i < 98; i++)
        come(&faults, i, NSEC_PER_MSEC);
    for (unsigned i = 0; i < 2; i++)
        come(&faults, i, 100 * NSEC_PER_MSEC);
    assert_int_equal(faults.count, 100);
    assert_in_range(faults_took(&faults, 0.5), 900, 1100);
    assert_in_range(faults_took(&faults, 0.99), 90000, 110000);
}

static void test_a_page_that_is_asked_for_twice_counts_once(void **state)
{
    (void)state;
    struct faults faults = {0};
    faults_asked(&faults, 3, NSEC_PER_SEC);
    faults_asked(&faults, 3, 2 * NSEC_PER_SEC);
    faults_came(&faults, 3, 3 * NSEC_PER_SEC);
    faults_came(&faults, 3, 9 * NSEC_PER_SEC);
    assert_int_equal(faults.count, 1);
    assert_in_range(faults_took(&faults, 1), 1800000, 2200000);
}

static void test_more_than_can_be_remembered(void **state)
{
    (void)state;
    struct faults faults = {0};
    for (uint64_t page = 0; page < 2 * FAULTS_PENDING; page++)
        faults_asked(&faults, page, NSEC_PER_SEC);
    for (uint64_t page = 0; page < 2 * FAULTS_PENDING; page++)
        faults_came(&faults, page, NSEC_PER_SEC);
    assert_int_equal(faults.count, FAULTS_PENDING);
    assert_int_equal(faults.pending_count, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_nothing_came),
        cmocka_unit_test(test_what_is_said_is_right_to_a_tenth),
        cmocka_unit_test(test_median_and_tail),
        cmocka_unit_test(test_a_page_that_is_asked_for_twice_counts_once),
        cmocka_unit_test(test_more_than_can_be_remembered),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
