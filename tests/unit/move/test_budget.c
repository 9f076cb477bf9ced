/* SPDX-License-Identifier: Apache-2.0
 *
 * The bandwidth limit. Taking too much is always a defect; taking too little may be the machine's fault, so
 * that side is judged leniently.
 */
// clang-format off
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
// clang-format on

#include "base/clock.h"
#include "move/budget.h"

#include <pthread.h>

struct taker {
    struct budget *budget;
    size_t want;
    int64_t until;
    uint64_t taken;
};

static void *take_all(void *arg)
{
    struct taker *t = arg;
    for (int64_t wait = 0; clock_now() < t->until;) {
        size_t n = budget_take(t->budget, t->want, &wait);
        t->taken += n;
        if (n == 0)
            clock_sleep(wait);
    }
    return NULL;
}

/* Bytes per second that `threads` takers of `want` bytes got in one second. */
static double measure(uint64_t rate, size_t want, unsigned threads)
{
    struct budget *budget = budget_new(rate);
    struct taker takers[4];
    pthread_t ids[4];
    int64_t began = clock_now();
    uint64_t sum = 0;
    for (unsigned i = 0; i < threads; i++) {
        takers[i] = (struct taker){.budget = budget, .want = want, .until = began + NSEC_PER_SEC};
        assert_int_equal(pthread_create(&ids[i], NULL, take_all, &takers[i]), 0);
    }
    for (unsigned i = 0; i < threads; i++) {
        pthread_join(ids[i], NULL);
        sum += takers[i].taken;
    }
    double seconds = (double)(clock_now() - began) / NSEC_PER_SEC;
    assert_int_equal(budget_spent(budget), sum);
    budget_free(budget);
    return (double)sum / seconds;
}

static void assert_honest(uint64_t rate, size_t want, unsigned threads)
{
    double got = measure(rate, want, threads);
    if (got > (double)rate * 1.05 || got < (double)rate * 0.75)
        fail_msg("%.0f bytes/s with a limit of %llu (pieces of %zu, %u threads)", got,
                 (unsigned long long)rate, want, threads);
}

static void test_slow_links_get_their_rate(void **state)
{
    assert_honest(100000, 65536, 1);
}

static void test_fast_links_get_their_rate(void **state)
{
    assert_honest(125 * 1000 * 1000, 65536, 1);
}

static void test_two_threads_share_the_rate(void **state)
{
    assert_honest(10 * 1000 * 1000, 65536, 2);
}

static void test_small_pieces_count_the_same(void **state)
{
    assert_honest(2 * 1000 * 1000, 100, 2);
}

static void test_after_a_rest_no_more_than_a_bucket_is_granted_at_once(void **state)
{
    const uint64_t rate = 10 * 1000 * 1000;
    struct budget *budget = budget_new(rate);
    int64_t wait;
    uint64_t burst = 0;
    clock_sleep(300 * NSEC_PER_MSEC);
    int64_t began = clock_now();
    for (size_t n; (n = budget_take(budget, 65536, &wait)) > 0;)
        burst += n;
    double slack = (double)(clock_now() - began) / NSEC_PER_SEC * (double)rate;
    assert_true((double)burst <= (double)rate * 0.02 + slack + 1500);
    budget_free(budget);
}

static void test_the_announced_wait_is_long_enough(void **state)
{
    struct budget *budget = budget_new(100000);
    int64_t wait = 0;
    while (budget_take(budget, 65536, &wait) > 0)
        ;
    assert_true(wait > 0 && wait < NSEC_PER_SEC);
    clock_sleep(wait);
    assert_true(budget_take(budget, 65536, &wait) > 0);
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
        cmocka_unit_test(test_slow_links_get_their_rate),
        cmocka_unit_test(test_fast_links_get_their_rate),
        cmocka_unit_test(test_two_threads_share_the_rate),
        cmocka_unit_test(test_small_pieces_count_the_same),
        cmocka_unit_test(test_after_a_rest_no_more_than_a_bucket_is_granted_at_once),
        cmocka_unit_test(test_the_announced_wait_is_long_enough),
        cmocka_unit_test(test_no_limit_grants_everything_and_counts_it),
    };
    return cmocka_run_group_tests_name("budget", tests, NULL, NULL);
}
