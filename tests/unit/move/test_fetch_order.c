/* SPDX-License-Identifier: Apache-2.0
 *
 * In which order missing blocks are asked for, and how many at a time. Time is a number that the test says.
 */
#include "../disk/split_test.h"

#include "base/clock.h"
#include "move/fetch_order.h"

#define MSEC NSEC_PER_MSEC
#define ALL 0x1ffU /* every extent is missing */

static struct disk *disk;
static struct fetch_order *order;
static int64_t now;

static int setup(void **state)
{
    boot = 1;
    now = 1000 * MSEC;
    return make_folder(state);
}

static int teardown(void **state)
{
    fetch_order_free(order);
    order = NULL;
    disk_close(disk, NULL);
    disk = NULL;
    return drop_folder(state);
}

static void missing(unsigned extents)
{
    disk = split_disk(in_folder("d"), extents);
    assert_ok(fetch_order_new(&disk, 1, &order, &err));
    fetch_order_join(order, FETCH_LENDER);
}

/* The next request, which there must be. */
static struct wire_fetch next(bool urgent)
{
    struct wire_fetch fetch = {0};
    int64_t again;
    bool is_urgent;
    assert_true(fetch_order_next(order, FETCH_LENDER, now, &fetch, &is_urgent, &again));
    assert_int_equal(is_urgent, urgent);
    return fetch;
}

static bool nothing_next(void)
{
    struct wire_fetch fetch;
    int64_t again;
    bool urgent;
    return !fetch_order_next(order, FETCH_LENDER, now, &fetch, &urgent, &again);
}

/* It comes, and is here. */
static void answer(const struct wire_fetch *asked)
{
    fetch(disk, asked->block, asked->count);
    assert_true(fetch_order_answered(order, FETCH_LENDER, asked, asked->count * DISK_BLOCK, now));
}

static void assert_asks(const struct wire_fetch *asked, uint64_t block, uint32_t count)
{
    assert_int_equal(asked->block, block);
    assert_int_equal(asked->count, count);
}

static void test_without_demand_or_heat_it_goes_by_address(void **state)
{
    missing(1U << 1 | 1U << 3);
    for (uint64_t block = EXTENT; block < 2 * EXTENT; block += FETCH_REST_BLOCKS) {
        struct wire_fetch asked = next(false);
        assert_asks(&asked, block, FETCH_REST_BLOCKS);
        answer(&asked);
    }
    struct wire_fetch asked = next(false);
    assert_asks(&asked, 3 * EXTENT, FETCH_REST_BLOCKS);
}

static void test_what_somebody_waits_for_comes_first_and_alone(void **state)
{
    missing(ALL);
    struct wire_fetch rest = next(false);
    fetch_order_demand(order, 0, 1000, 1);
    struct wire_fetch asked = next(true);
    assert_asks(&asked, 1000, 1);
    now += MSEC;
    assert_true(nothing_next()); /* the guest must not wait behind what nobody waits for */
    answer(&asked);
    answer(&rest);
    next(false);
}

static void test_however_much_is_demanded_the_rest_moves_on(void **state)
{
    missing(ALL);
    next(false);
    fetch_order_demand(order, 0, 1000, 1);
    next(true);
    now += 49 * MSEC;
    assert_true(nothing_next());
    now += 2 * MSEC;
    next(false);
}

static void test_only_what_is_missing_is_asked_for(void **state)
{
    missing(1U << 1);
    fetch(disk, EXTENT + 2, 3);
    fetch_order_demand(order, 0, EXTENT - 5, 20);
    struct wire_fetch asked = next(true);
    assert_asks(&asked, EXTENT, 2);
    asked = next(true);
    assert_asks(&asked, EXTENT + 5, 10);
}

static void test_what_is_under_way_is_not_asked_for_again(void **state)
{
    missing(ALL);
    fetch_order_demand(order, 0, 100, 4);
    fetch_order_demand(order, 0, 102, 4);
    struct wire_fetch asked = next(true);
    assert_asks(&asked, 100, 4);
    asked = next(true);
    assert_asks(&asked, 104, 2);
    fetch_order_demand(order, 0, 101, 3);
    struct wire_fetch more;
    int64_t again;
    bool urgent = true;
    if (fetch_order_next(order, FETCH_LENDER, now, &more, &urgent, &again))
        assert_false(urgent);
}

static void test_an_answer_that_was_not_asked_for_is_noticed(void **state)
{
    missing(ALL);
    struct wire_fetch asked = next(false), other = asked;
    other.serial++;
    assert_false(fetch_order_answered(order, FETCH_LENDER, &other, 0, now));
    other = asked;
    other.count++;
    assert_false(fetch_order_answered(order, FETCH_LENDER, &other, 0, now));
    assert_true(fetch_order_answered(order, FETCH_LENDER, &asked, 0, now));
    assert_false(fetch_order_answered(order, FETCH_LENDER, &asked, 0, now));
}

static void test_hot_extents_come_before_the_others_hottest_first(void **state)
{
    const uint32_t hot[] = {5, 2};
    missing(ALL);
    assert_int_equal(fetch_order_hot(order, 0, hot, 2), 0);
    uint64_t expected[] = {5, 2, 0};
    for (size_t i = 0; i < 3; i++)
        for (uint64_t block = 0; block < EXTENT; block += FETCH_REST_BLOCKS) {
            struct wire_fetch asked = next(false);
            assert_asks(&asked, expected[i] * EXTENT + block, FETCH_REST_BLOCKS);
            answer(&asked);
        }
}

static void test_a_reader_that_goes_on_is_read_ahead_of(void **state)
{
    missing(ALL);
    for (uint64_t block = 600; block < 602; block++) {
        fetch_order_demand(order, 0, block, 1);
        struct wire_fetch asked = next(true);
        answer(&asked);
    }
    struct wire_fetch ahead;
    for (uint64_t from = 602; from < 602 + 32; from += FETCH_REST_BLOCKS) {
        ahead = next(false);
        assert_asks(&ahead, from, FETCH_REST_BLOCKS);
        answer(&ahead);
    }
    fetch_order_demand(order, 0, 634, 1);
    struct wire_fetch asked = next(true);
    answer(&asked);
    for (uint64_t from = 635; from < 635 + 64; from += FETCH_REST_BLOCKS) { /* and further each time */
        ahead = next(false);
        assert_asks(&ahead, from, FETCH_REST_BLOCKS);
        answer(&ahead);
    }
}

static void test_random_reads_are_not_read_ahead_of(void **state)
{
    missing(ALL);
    static const uint64_t blocks[] = {1500, 300, 900, 1200};
    for (size_t i = 0; i < ARRAY_SIZE(blocks); i++) {
        fetch_order_demand(order, 0, blocks[i], 1);
        struct wire_fetch asked = next(true);
        answer(&asked);
    }
    struct wire_fetch rest = next(false);
    assert_int_equal(rest.block, 0);
}

/* How much goes out before an answer must come. */
static uint64_t fill_path(struct wire_fetch *asked, size_t *ret_count)
{
    int64_t again;
    bool urgent;
    uint64_t bytes = 0;
    *ret_count = 0;
    while (fetch_order_next(order, FETCH_LENDER, now, &asked[*ret_count], &urgent, &again)) {
        bytes += asked[*ret_count].count * DISK_BLOCK;
        ++*ret_count;
    }
    return bytes;
}

/* A path that answers after 20 ms, all that was asked at once: each time more may be asked. */
static void test_a_long_path_is_filled_more_and_more(void **state)
{
    missing(ALL);
    struct wire_fetch asked[64];
    size_t count;
    uint64_t first = fill_path(asked, &count), last = first;
    assert_in_range(first, 128 * KiB, 192 * KiB);
    for (int round = 0; round < 12; round++) {
        now += 20 * MSEC;
        for (size_t i = 0; i < count; i++) /* the disk stays as it is: only the path is looked at */
            assert_true(
                fetch_order_answered(order, FETCH_LENDER, &asked[i], asked[i].count * DISK_BLOCK, now));
        last = fill_path(asked, &count);
    }
    assert_true(last > first);
    assert_true(last <= 1 * MiB);
}

static void test_lost_connections_lose_nothing(void **state)
{
    missing(1U << 1);
    struct wire_fetch before = next(false);
    fetch_order_leave(order, FETCH_LENDER);
    assert_true(nothing_next());
    fetch_order_join(order, FETCH_LENDER);
    assert_false(fetch_order_answered(order, FETCH_LENDER, &before, 0, now));
    while (disk_missing(disk) > 0) {
        struct wire_fetch asked = next(false);
        answer(&asked);
    }
    assert_true(fetch_order_done(order));
}

static void test_what_somebody_waits_for_is_asked_for_again_when_the_connection_is_lost(void **state)
{
    missing(ALL);
    fetch_order_demand(order, 0, 1000, 1);
    next(true);
    fetch_order_leave(order, FETCH_LENDER);
    fetch_order_join(order, FETCH_LENDER);
    struct wire_fetch asked = next(true);
    assert_asks(&asked, 1000, 1);
}

/* --- several holders ------------------------------------------------------------------------------------ */

enum { SHARER = 3 };

/* It has what it was at generation 4; of the extents in `newer` the lender has something newer. */
static void share(unsigned newer)
{
    uint8_t bits[(SPLIT_BLOCKS + 7) / 8] = {0};
    for (uint64_t block = 0; block < SPLIT_BLOCKS; block++)
        if (newer >> block / EXTENT & 1)
            bits[block / 8] |= (uint8_t)(1U << block % 8);
    assert_int_equal(fetch_order_share(order, SHARER, 0, 4, bits), 0);
    fetch_order_join(order, SHARER);
}

static bool next_of(unsigned holder, struct wire_fetch *ret, bool *ret_urgent)
{
    int64_t again;
    return fetch_order_next(order, holder, now, ret, ret_urgent, &again);
}

static void answer_of(unsigned holder, const struct wire_fetch *asked)
{
    fetch(disk, asked->block, asked->count);
    assert_true(fetch_order_answered(order, holder, asked, asked->count * DISK_BLOCK, now));
}

static void test_a_holder_is_asked_only_for_what_it_shares(void **state)
{
    struct wire_fetch asked;
    bool urgent;
    missing(ALL);
    assert_false(next_of(SHARER, &asked, &urgent)); /* not there */
    share(ALL & ~(1U << 2 | 1U << 8));
    unsigned count = 0;
    for (; next_of(SHARER, &asked, &urgent); count++) {
        assert_false(urgent);
        assert_true(asked.block / EXTENT == 2 || asked.block / EXTENT == 8);
        assert_int_equal(asked.above, 0); /* the copy here is of nothing */
        assert_int_equal(asked.upto, 4);
        answer_of(SHARER, &asked);
    }
    assert_int_equal(count, EXTENT / FETCH_REST_BLOCKS + 1);
    assert_int_equal(disk_missing(disk), 7 * EXTENT);
    struct wire_fetch wrong = next(false);
    assert_false(fetch_order_answered(order, SHARER, &wrong, 0, now)); /* it was the lender who was asked */
    answer(&wrong);
}

static void test_single_newer_blocks_are_left_out(void **state)
{
    uint8_t bits[(SPLIT_BLOCKS + 7) / 8] = {0};
    struct wire_fetch asked;
    bool urgent;
    bits[0] = 1U << 3 | 1U << 4;
    missing(1U << 0);
    assert_int_equal(fetch_order_share(order, SHARER, 0, 4, bits), 0);
    fetch_order_join(order, SHARER);
    assert_true(next_of(SHARER, &asked, &urgent));
    assert_asks(&asked, 0, 3);
    assert_true(next_of(SHARER, &asked, &urgent));
    assert_asks(&asked, 5, FETCH_REST_BLOCKS);
    asked = next(false);
    assert_asks(&asked, 3, 2);
}

static void test_runs_must_be_part_of_what_was_asked(void **state)
{
    missing(ALL);
    share(1U << 0);
    struct wire_fetch asked;
    bool urgent;
    assert_true(next_of(SHARER, &asked, &urgent));
    struct disk_run run = {.block = asked.block, .count = asked.count, .generation = 4};
    assert_true(fetch_order_expects(order, SHARER, 0, &run));
    assert_false(fetch_order_expects(order, FETCH_LENDER, 0, &run));
    assert_false(fetch_order_expects(order, SHARER, 1, &run));
    run.generation = 5; /* newer than its copy is */
    assert_false(fetch_order_expects(order, SHARER, 0, &run));
    run.generation = 4;
    run.count++;
    assert_false(fetch_order_expects(order, SHARER, 0, &run));
    run = (struct disk_run){.block = 0, .count = 1, .generation = 4};
    assert_false(fetch_order_expects(order, SHARER, 0, &run));
}

static void test_a_holder_with_a_copy_no_newer_than_ours_is_not_asked(void **state)
{
    const uint8_t bits[(SPLIT_BLOCKS + 7) / 8] = {0};
    struct wire_fetch asked;
    bool urgent;
    missing(ALL);
    assert_int_equal(fetch_order_share(order, SHARER, 0, 0, bits), 0);
    fetch_order_join(order, SHARER);
    assert_false(next_of(SHARER, &asked, &urgent));
}

static void test_the_lender_begins_with_what_only_it_has(void **state)
{
    missing(ALL);
    share(1U << 4);
    for (uint64_t block = 4 * EXTENT; block < 5 * EXTENT; block += FETCH_REST_BLOCKS) {
        struct wire_fetch asked = next(false);
        assert_asks(&asked, block, FETCH_REST_BLOCKS);
        answer(&asked);
    }
    struct wire_fetch asked = next(false); /* then it helps with the others */
    assert_int_equal(asked.block / EXTENT, 5);
}

static void test_no_block_is_asked_of_two(void **state)
{
    bool seen[SPLIT_BLOCKS] = {0};
    missing(ALL);
    share(0);
    for (unsigned turn = 0; disk_missing(disk) > 0; turn++) {
        unsigned holder = turn % 3 ? FETCH_LENDER : (unsigned)SHARER;
        struct wire_fetch asked;
        bool urgent;
        assert_true(next_of(holder, &asked, &urgent));
        for (uint64_t i = 0; i < asked.count; i++) {
            assert_false(seen[asked.block + i]);
            seen[asked.block + i] = true;
        }
        answer_of(holder, &asked);
    }
    assert_true(fetch_order_done(order));
}

/* Both have the block; whoever answered faster so far is asked. */
static void test_what_somebody_waits_for_is_asked_of_the_quickest(void **state)
{
    struct wire_fetch slow, quick, asked;
    bool urgent;
    missing(ALL);
    share(1U << 1);
    assert_true(next_of(FETCH_LENDER, &slow, &urgent));
    assert_true(next_of(SHARER, &quick, &urgent));
    now += MSEC;
    answer_of(SHARER, &quick);
    now += 9 * MSEC;
    answer_of(FETCH_LENDER, &slow);
    fetch_order_demand(order, 0, 1000, 1);
    assert_true(!next_of(FETCH_LENDER, &asked, &urgent) || !urgent);
    assert_true(next_of(SHARER, &asked, &urgent) && urgent);
    assert_asks(&asked, 1000, 1);
    answer_of(SHARER, &asked);
    fetch_order_demand(order, 0, EXTENT + 200, 1); /* this the lender alone has */
    assert_true(!next_of(SHARER, &asked, &urgent) || !urgent);
    assert_true(next_of(FETCH_LENDER, &asked, &urgent) && urgent);
    assert_asks(&asked, EXTENT + 200, 1);
}

static void test_without_the_lender_the_others_go_on(void **state)
{
    struct wire_fetch asked;
    bool urgent;
    missing(ALL);
    share(ALL & ~(1U << 2));
    fetch_order_leave(order, FETCH_LENDER);
    fetch_order_demand(order, 0, 2 * EXTENT + 9, 1);
    assert_true(next_of(SHARER, &asked, &urgent) && urgent);
    assert_asks(&asked, 2 * EXTENT + 9, 1);
}

static void test_what_was_asked_of_a_holder_that_left_is_asked_of_the_lender(void **state)
{
    struct wire_fetch asked, other;
    bool urgent;
    missing(1U << 2);
    share(0);
    assert_true(next_of(SHARER, &asked, &urgent));
    fetch_order_leave(order, FETCH_LENDER);
    fetch_order_demand(order, 0, asked.block, 1);
    assert_true(!next_of(SHARER, &other, &urgent) || !urgent); /* it comes anyway */
    fetch_order_leave(order, SHARER);
    fetch_order_join(order, FETCH_LENDER);
    other = next(true);
    assert_asks(&other, asked.block, 1);
    assert_false(fetch_order_answered(order, SHARER, &asked, 0, now));
    answer(&other);
    while (disk_missing(disk) > 0) {
        other = next(false);
        answer(&other);
    }
    assert_true(fetch_order_done(order));
}

static void test_answers_of_one_connection_come_in_order(void **state)
{
    missing(ALL);
    struct wire_fetch first = next(false), second = next(false);
    fetch_order_demand(order, 0, 1000, 1);
    struct wire_fetch urgent = next(true);
    assert_false(fetch_order_answered(order, FETCH_LENDER, &second, 0, now));
    answer(&urgent); /* on the other one */
    answer(&first);
    answer(&second);
}

static void test_a_holder_that_answers_nothing_for_long_is_late(void **state)
{
    struct wire_fetch first, second;
    bool urgent;
    missing(ALL);
    share(0);
    now += 10 * FETCH_PATIENCE_NS;
    assert_false(fetch_order_is_late(order, SHARER, now)); /* nobody asked */
    assert_true(next_of(SHARER, &first, &urgent));
    assert_true(next_of(SHARER, &second, &urgent));
    now += FETCH_PATIENCE_NS;
    assert_false(fetch_order_is_late(order, SHARER, now));
    answer_of(SHARER, &first);
    now += FETCH_PATIENCE_NS; /* since it was last heard, not since it was asked: the path may be slow */
    assert_false(fetch_order_is_late(order, SHARER, now));
    assert_true(fetch_order_is_late(order, SHARER, now + 1));
    assert_false(fetch_order_is_late(order, FETCH_LENDER, now + 1));
    fetch_order_leave(order, SHARER);
    assert_false(fetch_order_is_late(order, SHARER, now + 1));
}

static void test_answers_to_what_nobody_waits_for_do_not_excuse_a_late_one(void **state)
{
    struct wire_fetch asked;
    bool urgent;
    missing(ALL);
    fetch_order_leave(order, FETCH_LENDER);
    share(0);
    assert_true(next_of(SHARER, &asked, &urgent) && !urgent);
    struct wire_fetch rest = asked;
    fetch_order_demand(order, 0, 1000, 1);
    assert_true(next_of(SHARER, &asked, &urgent) && urgent);
    now += FETCH_PATIENCE_NS + 1;
    answer_of(SHARER, &rest);
    assert_true(fetch_order_is_late(order, SHARER, now));
}

/* --- the end -------------------------------------------------------------------------------------------- */

static void test_it_is_done_when_nothing_is_missing_nor_under_way(void **state)
{
    missing(1U << 8); /* the short last block */
    assert_false(fetch_order_done(order));
    struct wire_fetch asked = next(false);
    assert_asks(&asked, SPLIT_BLOCKS - 1, 1);
    fetch(disk, asked.block, asked.count);
    assert_false(fetch_order_done(order));
    assert_true(fetch_order_answered(order, FETCH_LENDER, &asked, 512, now));
    assert_true(fetch_order_done(order));
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_without_demand_or_heat_it_goes_by_address),
        TEST(test_what_somebody_waits_for_comes_first_and_alone),
        TEST(test_however_much_is_demanded_the_rest_moves_on),
        TEST(test_only_what_is_missing_is_asked_for),
        TEST(test_what_is_under_way_is_not_asked_for_again),
        TEST(test_an_answer_that_was_not_asked_for_is_noticed),
        TEST(test_hot_extents_come_before_the_others_hottest_first),
        TEST(test_a_reader_that_goes_on_is_read_ahead_of),
        TEST(test_random_reads_are_not_read_ahead_of),
        TEST(test_a_long_path_is_filled_more_and_more),
        TEST(test_lost_connections_lose_nothing),
        TEST(test_what_somebody_waits_for_is_asked_for_again_when_the_connection_is_lost),
        TEST(test_a_holder_is_asked_only_for_what_it_shares),
        TEST(test_single_newer_blocks_are_left_out),
        TEST(test_runs_must_be_part_of_what_was_asked),
        TEST(test_a_holder_with_a_copy_no_newer_than_ours_is_not_asked),
        TEST(test_the_lender_begins_with_what_only_it_has),
        TEST(test_no_block_is_asked_of_two),
        TEST(test_what_somebody_waits_for_is_asked_of_the_quickest),
        TEST(test_without_the_lender_the_others_go_on),
        TEST(test_what_was_asked_of_a_holder_that_left_is_asked_of_the_lender),
        TEST(test_answers_of_one_connection_come_in_order),
        TEST(test_a_holder_that_answers_nothing_for_long_is_late),
        TEST(test_answers_to_what_nobody_waits_for_do_not_excuse_a_late_one),
        TEST(test_it_is_done_when_nothing_is_missing_nor_under_way),
    };
    return cmocka_run_group_tests_name("fetch_order", tests, NULL, NULL);
}
