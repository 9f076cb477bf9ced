/* SPDX-License-Identifier: Apache-2.0 */
// clang-format off
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
// clang-format on

#include "base/endian.h"
#include "base/macro.h"
#include "memory/asked.h"
#include "memory/qstream.h"

#include <string.h>

#define PAGES 1000U

static struct asked *asked;

static int setup(void **state)
{
    (void)state;
    return asked_new("ram", PAGES * (uint64_t)QSTREAM_PAGE_SIZE, &asked, NULL);
}

static int teardown(void **state)
{
    (void)state;
    asked_free(asked);
    return 0;
}

/* Returns the message's size. */
static size_t make_request(uint8_t ret[64], uint64_t page, uint32_t pages, const char *block)
{
    size_t name = block ? strlen(block) : 0, data = 12 + (block ? 1 + name : 0);
    put_be16(ret, block ? 3 : 4);
    put_be16(ret + 2, (uint16_t)data);
    put_be64(ret + 4, page * QSTREAM_PAGE_SIZE);
    put_be32(ret + 12, pages * QSTREAM_PAGE_SIZE);
    if (block) {
        ret[16] = (uint8_t)name;
        memcpy(ret + 17, block, name);
    }
    return 4 + data;
}

static void hear(uint64_t page, uint32_t pages, const char *block)
{
    uint8_t message[64];
    asked_hear(asked, message, make_request(message, page, pages, block));
}

static void come(uint64_t page, const char *block)
{
    uint8_t name[64];
    name[0] = (uint8_t)strlen(block);
    memcpy(name + 1, block, strlen(block));
    asked_came(asked, name, page);
}

static bool is(enum asked_state state)
{
    uint64_t missing;
    bool so = asked_state(asked, &missing) == state;
    assert_true(state != ASKED_MISSING || !so || missing);
    return so;
}

static void test_what_comes_before_the_pages_is_never_held(void **state)
{
    (void)state;
    assert_true(is(ASKED_EARLY));
    hear(1, 1, "ram");
    assert_true(is(ASKED_EARLY));
    come(1, "ram");
    assert_true(is(ASKED_IDLE));
}

static void test_it_is_idle_once_all_that_was_asked_for_has_come(void **state)
{
    (void)state;
    come(1, "ram");
    hear(10, 3, "ram");
    hear(20, 1, NULL);
    for (uint64_t page = 9; page < 13; page++) {
        assert_true(is(ASKED_MISSING));
        come(page, "ram");
    }
    assert_true(is(ASKED_MISSING));
    come(20, "ram");
    assert_true(is(ASKED_IDLE));
    hear(11, 1, "ram");
    assert_true(is(ASKED_IDLE));
}

static void test_a_page_counts_once(void **state)
{
    (void)state;
    hear(5, 1, "ram");
    hear(5, 1, "ram");
    come(5, "ram");
    come(5, "ram");
    assert_true(is(ASKED_IDLE));
    hear(6, 1, "ram");
    come(5, "ram");
    assert_true(is(ASKED_MISSING));
}

static void test_requests_may_come_byte_by_byte(void **state)
{
    (void)state;
    static const uint8_t pong[8] = {0, 2, 0, 4, 0, 0, 0, 1};
    uint8_t bytes[128];
    size_t size = make_request(bytes, 7, 1, "ram");
    memcpy(bytes + size, pong, sizeof pong);
    size += sizeof pong;
    size += make_request(bytes + size, 8, 1, NULL);
    come(7, "ram");
    for (size_t at = 0; at < size; at++)
        asked_hear(asked, bytes + at, 1);
    assert_true(is(ASKED_MISSING));
    come(8, "ram");
    assert_true(is(ASKED_IDLE));
}

static void test_another_block_is_not_judged(void **state)
{
    (void)state;
    hear(3, 1, "ram");
    come(3, "vga.vram");
    assert_true(is(ASKED_MISSING));
    come(3, "ram");
    assert_true(is(ASKED_IDLE));
    hear(3, 1, "vga.vram");
    assert_true(is(ASKED_UNSURE));
}

static void test_nothing_is_held_behind_what_makes_no_sense(void **state)
{
    (void)state;
    static const uint8_t nonsense[] = {0, 99, 0, 4};
    come(1, "ram");
    assert_true(is(ASKED_IDLE));
    asked_hear(asked, nonsense, sizeof nonsense);
    assert_true(is(ASKED_UNSURE));
}

static void test_requests_that_are_too_long_or_out_of_range(void **state)
{
    (void)state;
    come(1, "ram");
    hear(PAGES, 1, "ram");
    hear(UINT64_MAX / QSTREAM_PAGE_SIZE, 1, "ram");
    assert_true(is(ASKED_IDLE));
    hear(PAGES - 1, 100, "ram");
    assert_true(is(ASKED_MISSING));
    come(PAGES - 1, "ram");
    assert_true(is(ASKED_IDLE));
    hear(0, PAGES, "ram");
    assert_true(is(ASKED_UNSURE));
}

static void test_neighbours_are_asked_for_once(void **state)
{
    (void)state;
    uint8_t ours[REQUESTS_ROOM], expected[64];
    assert_int_equal(asked_neighbours(asked, 8, ours), 0);
    come(90, "ram");
    hear(100, 1, "ram");
    size_t size = make_request(expected, 92, 8, "ram");
    assert_int_equal(asked_neighbours(asked, 8, ours), size);
    assert_memory_equal(ours, expected, size);
    assert_int_equal(asked_neighbours(asked, 8, ours), 0);
    hear(96, 1, "ram"); /* under way */
    assert_int_equal(asked_neighbours(asked, 4, ours), 0);
    hear(3, 1, "ram");
    make_request(expected, 0, 3, "ram");
    assert_int_equal(asked_neighbours(asked, 8, ours), size);
    assert_memory_equal(ours, expected, size);
    for (uint64_t page = 0; page < 101; page++) {
        assert_true(is(ASKED_MISSING));
        come(page, "ram");
    }
    assert_true(is(ASKED_IDLE));
}

static void test_nothing_is_put_behind_a_part_of_a_request(void **state)
{
    (void)state;
    uint8_t ours[REQUESTS_ROOM], message[64];
    size_t size = make_request(message, 100, 1, "ram");
    asked_hear(asked, message, size);
    asked_hear(asked, message, 5);
    assert_int_equal(asked_neighbours(asked, 8, ours), 0);
    asked_hear(asked, message + 5, size - 5);
    assert_int_equal(asked_neighbours(asked, 8, ours), size);
}

static void test_a_working_set_is_asked_for_a_little_at_a_time(void **state)
{
    (void)state;
    static const uint64_t wanted[] = {50, 7, 51, 8, 900};
    uint8_t ours[REQUESTS_ROOM], expected[64];
    struct workset *workset;
    size_t index = 0;
    assert_int_equal(workset_new(PAGES * (uint64_t)QSTREAM_PAGE_SIZE, &workset, NULL), 0);
    for (size_t i = 0; i < ARRAY_SIZE(wanted); i++)
        workset_add(workset, wanted[i]);
    come(7, "ram");
    hear(51, 1, "ram");
    come(51, "ram");
    size_t size = make_request(expected, 50, 1, "ram");
    assert_int_equal(asked_next(asked, workset, &index, 2, ours), size);
    assert_memory_equal(ours, expected, size);
    make_request(expected, 8, 1, "ram"); /* those between them have come, unasked or not */
    assert_int_equal(asked_next(asked, workset, &index, 2, ours), size);
    assert_memory_equal(ours, expected, size);
    assert_int_equal(asked_next(asked, workset, &index, 2, ours), 0); /* two are under way */
    come(50, "ram");
    asked_hear(asked, expected, 3);
    assert_int_equal(asked_next(asked, workset, &index, 2, ours), 0); /* behind a part of a request */
    asked_hear(asked, expected + 3, size - 3);
    make_request(expected, 900, 1, "ram");
    assert_int_equal(asked_next(asked, workset, &index, 2, ours), size);
    assert_memory_equal(ours, expected, size);
    come(8, "ram");
    come(900, "ram");
    assert_int_equal(asked_next(asked, workset, &index, 2, ours), 0); /* there are no more */
    assert_true(is(ASKED_IDLE));
    workset_free(workset);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_what_comes_before_the_pages_is_never_held),
        TEST(test_it_is_idle_once_all_that_was_asked_for_has_come),
        TEST(test_a_page_counts_once),
        TEST(test_requests_may_come_byte_by_byte),
        TEST(test_another_block_is_not_judged),
        TEST(test_nothing_is_held_behind_what_makes_no_sense),
        TEST(test_neighbours_are_asked_for_once),
        TEST(test_nothing_is_put_behind_a_part_of_a_request),
        TEST(test_a_working_set_is_asked_for_a_little_at_a_time),
        TEST(test_requests_that_are_too_long_or_out_of_range),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
