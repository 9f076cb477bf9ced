/* SPDX-License-Identifier: Apache-2.0
 *
 * The bandwidth limit: to the byte by a clock that the test moves, and by threads with the machine's own,
 * which may take too little when it is busy, and never too much.
 */
// clang-format off
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
// clang-format on

#include "base/clock.h"
#include "base/macro.h"
#include "move/budget.h"

#include <inttypes.h>
#include <pthread.h>

/* Bytes per second that one taker of `want` bytes gets, who asks again exactly when it is told to. */
static double measure(uint64_t rate, size_t want)
{
    struct budget *budget = budget_new(rate);
    const int64_t began = clock_now();
    int64_t now = began, wait = 0;
    uint64_t sum = 0;
    while (now < began + NSEC_PER_SEC) {
        size_t n = budget_take_at(budget, now, want, &wait);
        assert_true(n > 0 || (wait > 0 && wait < NSEC_PER_SEC));
        sum += n;
        now += n == 0 ? wait : 0;
    }
    assert_int_equal(budget_spent(budget), sum);
    budget_free(budget);
    return (double)sum / ((double)(now - began) / NSEC_PER_SEC);
}

static void test_slow_and_fast_links_get_their_rate_in_pieces_of_any_size(void **state)
{
    static const uint64_t rates[] = {100000, 10 * 1000 * 1000, 125 * 1000 * 1000};
    static const size_t pieces[] = {100, 1400, 65536, 1 << 20};
    for (size_t i = 0; i < ARRAY_SIZE(rates); i++) {
        for (size_t j = 0; j < ARRAY_SIZE(pieces); j++) {
            double share = measure(rates[i], pieces[j]) / (double)rates[i];
            if (share > 1.05 || share < 0.98)
                fail_msg("%.3f of %" PRIu64 " bytes/s, in pieces of %zu", share, rates[i], pieces[j]);
        }
    }
}

struct taker {
    struct budget *budget;
    int64_t until;
    uint64_t taken;
};

static void *take_all(void *arg)
{
    struct taker *t = arg;
    for (int64_t wait = 0; clock_now() < t->until;) {
        size_t n = budget_take(t->budget, 65536, &wait);
        t->taken += n;
        if (n == 0)
            clock_sleep(wait);
    }
    return NULL;
}

static void test_threads_share_the_rate(void **state)
{
    const uint64_t rate = 10 * 1000 * 1000;
    struct budget *budget = budget_new(rate);
    struct taker takers[4];
    pthread_t threads[ARRAY_SIZE(takers)];
    int64_t began = clock_now();
    uint64_t sum = 0;
    for (size_t i = 0; i < ARRAY_SIZE(takers); i++) {
        takers[i] = (struct taker){.budget = budget, .until = began + NSEC_PER_SEC / 2};
        assert_int_equal(pthread_create(&threads[i], NULL, take_all, &takers[i]), 0);
    }
    for (size_t i = 0; i < ARRAY_SIZE(takers); i++) {
        pthread_join(threads[i], NULL);
        sum += takers[i].taken;
    }
    double seconds = (double)(clock_now() - began) / NSEC_PER_SEC;
    assert_int_equal(budget_spent(budget), sum);
    assert_true(sum > 0 && (double)sum <= (double)rate * (seconds + 0.02));
    budget_free(budget);
}

static void test_after_a_rest_no_more_than_a_bucket_is_granted_at_once(void **state)
{
    const uint64_t rate = 10 * 1000 * 1000;
    struct budget *budget = budget_new(rate);
    int64_t wait, now = clock_now() + 300 * NSEC_PER_MSEC;
    uint64_t burst = 0;
    for (size_t n; (n = budget_take_at(budget, now, 65536, &wait)) > 0;)
        burst += n;
    assert_in_range(burst, rate / 50 - 1400, rate / 50);
    budget_free(budget);
}

static void test_a_clock_read_before_another_thread_s_takes_nothing_away(void **state)
{
    struct budget *budget = budget_new(10 * 1000 * 1000);
    int64_t wait, now = clock_now() + 10 * NSEC_PER_MSEC;
    assert_int_equal(budget_take_at(budget, now, 1400, &wait), 1400);
    assert_int_equal(budget_take_at(budget, now - 9 * NSEC_PER_MSEC, 65536, &wait), 65536);
    budget_free(budget);
}

static void test_no_limit_grants_everything_and_counts_it(void **state)
{
    struct budget *budget = budget_new(0);
    int64_t wait;
    for (int i = 0; i < 100; i++)
        assert_int_equal(budget_take(budget, 1 << 20, &wait), 1 << 20);
    assert_int_equal(budget_spent(budget), 100u << 20);
    budget_free(budget);
    budget_free(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_slow_and_fast_links_get_their_rate_in_pieces_of_any_size),
        cmocka_unit_test(test_threads_share_the_rate),
        cmocka_unit_test(test_after_a_rest_no_more_than_a_bucket_is_granted_at_once),
        cmocka_unit_test(test_a_clock_read_before_another_thread_s_takes_nothing_away),
        cmocka_unit_test(test_no_limit_grants_everything_and_counts_it),
    };
    return cmocka_run_group_tests_name("budget", tests, NULL, NULL);
}
