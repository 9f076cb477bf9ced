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
#include "move/window.h"

#define PIECE (32 * KiB)
#define MOST (16 * MiB)

/* A path that carries `rate` bytes per second and takes `away` from end to end and back. */
struct path {
    struct window window;
    double rate;
    int64_t away, now, free_at; /* when the path's narrowest place is free again */
    uint64_t sent, told;
    int64_t arrives[4096]; /* of piece number n modulo 4096 */
};

static void begin(struct path *path, double rate, int64_t away)
{
    *path = (struct path){.rate = rate, .away = away, .now = NSEC_PER_SEC};
    window_init(&path->window, 512 * KiB, MOST);
}

static void send_all(struct path *path)
{
    for (; path->sent + PIECE - path->told <= path->window.size; path->sent += PIECE) {
        int64_t from = MAX(path->free_at, path->now);
        path->free_at = from + (int64_t)((double)PIECE / path->rate * NSEC_PER_SEC);
        path->arrives[path->sent / PIECE % 4096] = path->free_at + path->away;
        window_sent(&path->window, path->sent + PIECE, path->now);
    }
}

/* Always has something to send. Returns the bytes that were taken. */
static uint64_t travel(struct path *path, int64_t ns)
{
    uint64_t before = path->told;
    for (int64_t end = path->now + ns; path->now < end;) {
        send_all(path);
        path->now = path->arrives[path->told / PIECE % 4096];
        path->told += PIECE;
        window_taken(&path->window, path->told, path->now);
    }
    return path->told - before;
}

static int64_t queue(const struct path *path)
{
    return MAX(path->free_at - path->now, INT64_C(0));
}

static void check_full_and_short(double rate, int64_t away, int64_t queue_most)
{
    static struct path path;
    begin(&path, rate, away);
    travel(&path, 2 * NSEC_PER_SEC);
    uint64_t taken = travel(&path, 4 * NSEC_PER_SEC);
    assert_true((double)taken >= 0.9 * 4 * rate);
    assert_in_range(queue(&path), 0, queue_most);
}

static void test_a_near_path_is_full_and_its_queue_short(void **state)
{
    (void)state;
    check_full_and_short(119e6, NSEC_PER_MSEC / 5, 3 * NSEC_PER_MSEC);
    check_full_and_short(119e6, 2 * NSEC_PER_MSEC, 4 * NSEC_PER_MSEC);
}

static void test_a_far_path_is_full_and_its_queue_short(void **state)
{
    (void)state;
    check_full_and_short(119e6, 50 * NSEC_PER_MSEC, 25 * NSEC_PER_MSEC);
    check_full_and_short(12e6, 50 * NSEC_PER_MSEC, 25 * NSEC_PER_MSEC);
}

static void test_a_slow_path_gets_little(void **state)
{
    (void)state;
    static struct path path;
    begin(&path, 1e6, NSEC_PER_MSEC);
    travel(&path, 5 * NSEC_PER_SEC);
    assert_int_equal(path.window.size, 128 * KiB);
}

static void test_it_is_never_more_than_what_can_be_kept(void **state)
{
    (void)state;
    static struct path path;
    begin(&path, 1e9, 100 * NSEC_PER_MSEC);
    travel(&path, 10 * NSEC_PER_SEC);
    assert_in_range(path.window.size, MOST / 2, MOST);
}

static void test_a_path_that_gets_longer_is_learned(void **state)
{
    (void)state;
    static struct path path;
    begin(&path, 119e6, NSEC_PER_MSEC);
    travel(&path, 2 * NSEC_PER_SEC);
    path.away = 30 * NSEC_PER_MSEC;
    travel(&path, 20 * NSEC_PER_SEC);
    assert_true((double)travel(&path, 4 * NSEC_PER_SEC) >= 0.8 * 4 * 119e6);
}

static void test_a_long_way_keeps_its_queue_short(void **state)
{
    (void)state;
    static struct path path;
    begin(&path, 119e6, 5 * NSEC_PER_MSEC);
    travel(&path, 120 * NSEC_PER_SEC);
    assert_true((double)travel(&path, 20 * NSEC_PER_SEC) >= 0.9 * 20 * 119e6);
    assert_in_range(path.window.shortest, 5 * NSEC_PER_MSEC, 6 * NSEC_PER_MSEC);
}

static void test_another_connection_begins_anew(void **state)
{
    (void)state;
    static struct path path;
    begin(&path, 119e6, NSEC_PER_MSEC);
    travel(&path, NSEC_PER_SEC);
    path.now += 10 * NSEC_PER_SEC; /* nothing of what was under way is ever taken */
    path.sent = path.told;
    path.free_at = 0;
    window_restart(&path.window, path.told);
    assert_true((double)travel(&path, 2 * NSEC_PER_SEC) >= 0.9 * 2 * 119e6);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_near_path_is_full_and_its_queue_short),
        cmocka_unit_test(test_a_far_path_is_full_and_its_queue_short),
        cmocka_unit_test(test_a_slow_path_gets_little),
        cmocka_unit_test(test_it_is_never_more_than_what_can_be_kept),
        cmocka_unit_test(test_a_path_that_gets_longer_is_learned),
        cmocka_unit_test(test_a_long_way_keeps_its_queue_short),
        cmocka_unit_test(test_another_connection_begins_anew),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
