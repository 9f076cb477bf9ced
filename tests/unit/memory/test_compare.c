/* SPDX-License-Identifier: Apache-2.0 */
#include "memory/compare.h"

#include "base/endian.h"
#include "base/macro.h"

#include <errno.h>
#include <linux/memfd.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <sys/mman.h>

#include <cmocka.h>

#define PAGES UINT64_C(3000)
#define RAM (PAGES * COMPARE_PAGE)
#define TWO_HUGE (4 * MiB)

static int make_ram(void)
{
    int fd = memfd_create("ram", MFD_CLOEXEC);
    assert_true(fd >= 0);
    assert_int_equal(ftruncate(fd, (off_t)RAM), 0);
    return fd;
}

static void fill(int ram, uint64_t page, uint8_t value)
{
    uint8_t bytes[COMPARE_PAGE];
    memset(bytes, value, sizeof bytes);
    assert_int_equal(pwrite(ram, bytes, sizeof bytes, (off_t)(page * COMPARE_PAGE)), sizeof bytes);
}

/* The whole conversation; returns the number of pages that differ, the first of them in *ret_first. */
static size_t compare_all(int source, int destination, uint64_t *ret_first)
{
    struct compare compare;
    uint8_t message[COMPARE_MESSAGE];
    uint64_t page = 0;
    size_t size;
    bool end = false;
    struct ram_view from;
    compare = (struct compare){0};
    assert_int_equal(ram_view_open(&from, source, RAM, false, NULL), 0);
    assert_int_equal(ram_view_open(&compare.ram, destination, RAM, true, NULL), 0);
    while (!end) {
        compare_hashes(&from, &page, message, &size);
        assert_int_equal(compare_check(&compare, message, size, &end, NULL), 0);
    }
    size_t count = compare.count;
    if (count && ret_first)
        *ret_first = compare.differ[0];
    ram_view_close(&from);
    compare_done(&compare);
    return count;
}

static void test_a_view_is_filled_piece_by_piece(void **state)
{
    (void)state;
    _cleanup_close_ int ram = make_ram();
    struct ram_view view;
    assert_int_equal(ram_view_open(&view, ram, RAM, false, NULL), 0);
    uint64_t last = 0;
    while (ram_view_populate(&view)) {
        assert_true(view.populated > last && view.populated < PAGES);
        last = view.populated;
    }
    assert_int_equal(view.populated, PAGES);
    assert_false(ram_view_populate(&view));
    ram_view_close(&view);
}

static void test_equal_memories_differ_nowhere(void **state)
{
    (void)state;
    _cleanup_close_ int a = make_ram(), b = make_ram();
    for (uint64_t page = 0; page < PAGES; page += 3) {
        fill(a, page, (uint8_t)(page | 1));
        fill(b, page, (uint8_t)(page | 1));
    }
    assert_int_equal(compare_all(a, b, NULL), 0);
}

static void test_a_lost_write_is_found(void **state)
{
    (void)state;
    _cleanup_close_ int a = make_ram(), b = make_ram();
    uint64_t first;
    for (uint64_t page = 0; page < PAGES; page++) {
        fill(a, page, 1);
        fill(b, page, 1);
    }
    fill(a, 1777, 2);
    assert_int_equal(compare_all(a, b, &first), 1);
    assert_int_equal(first, 1777);
}

static void test_what_the_source_never_wrote_must_be_zero(void **state)
{
    (void)state;
    _cleanup_close_ int a = make_ram(), b = make_ram();
    uint64_t first;
    fill(b, 5, 0); /* allocated, and zero all the same */
    fill(b, 2999, 9);
    assert_int_equal(compare_all(a, b, &first), 1);
    assert_int_equal(first, 2999);
}

static void test_a_page_of_zeroes_equals_a_hole(void **state)
{
    (void)state;
    _cleanup_close_ int a = make_ram(), b = make_ram();
    fill(a, 8, 0);
    assert_int_equal(compare_all(a, b, NULL), 0);
}

static void refuse(uint64_t first, size_t size)
{
    _cleanup_close_ int ram = make_ram();
    struct compare compare;
    uint8_t message[COMPARE_MESSAGE] = {0};
    bool end;
    compare = (struct compare){.next = 10};
    assert_int_equal(ram_view_open(&compare.ram, ram, RAM, false, NULL), 0);
    put_le64(message, first);
    assert_int_equal(compare_check(&compare, message, size, &end, NULL), -EPROTO);
    compare_done(&compare);
}

static void test_hashes_out_of_order_or_range_are_refused(void **state)
{
    (void)state;
    refuse(9, 16);
    refuse(PAGES, 16);
    refuse(UINT64_MAX, 16);
    refuse(10, 7);
    refuse(10, 13);
}

/* Replaces two pages of `fd`, and finds them there. */
static void replace_two(int fd)
{
    static const uint64_t pages[] = {1, TWO_HUGE / COMPARE_PAGE - 1};
    struct compare compare = {0};
    uint8_t bytes[COMPARE_PAGE];
    assert_int_equal(ram_view_open(&compare.ram, fd, TWO_HUGE, true, NULL), 0);
    for (size_t i = 0; i < ARRAY_SIZE(pages); i++) {
        memset(bytes, 7 + (int)i, sizeof bytes);
        assert_int_equal(compare_write(&compare, pages[i], bytes, NULL), 0);
        assert_memory_equal(compare.ram.bytes + pages[i] * COMPARE_PAGE, bytes, sizeof bytes);
    }
    assert_int_equal(compare.ram.bytes[0], 0);
    compare_done(&compare);
}

static void test_pages_are_replaced(void **state)
{
    (void)state;
    _cleanup_close_ int ram = memfd_create("ram", MFD_CLOEXEC);
    assert_int_equal(ftruncate(ram, TWO_HUGE), 0);
    replace_two(ram);
}

static void test_pages_in_huge_ones_are_replaced(void **state)
{
    (void)state;
    _cleanup_close_ int ram = memfd_create("ram", MFD_CLOEXEC | MFD_HUGETLB | MFD_HUGE_2MB);
    void *map = ram < 0 || ftruncate(ram, TWO_HUGE) < 0 ? MAP_FAILED
                                                        : mmap(NULL, TWO_HUGE, PROT_READ, MAP_SHARED, ram, 0);
    if (map == MAP_FAILED)
        skip(); /* none are set aside here */
    munmap(map, TWO_HUGE);
    replace_two(ram);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_view_is_filled_piece_by_piece),
        cmocka_unit_test(test_equal_memories_differ_nowhere),
        cmocka_unit_test(test_a_lost_write_is_found),
        cmocka_unit_test(test_what_the_source_never_wrote_must_be_zero),
        cmocka_unit_test(test_a_page_of_zeroes_equals_a_hole),
        cmocka_unit_test(test_hashes_out_of_order_or_range_are_refused),
        cmocka_unit_test(test_pages_are_replaced),
        cmocka_unit_test(test_pages_in_huge_ones_are_replaced),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
