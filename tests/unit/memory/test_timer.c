/* SPDX-License-Identifier: Apache-2.0
 *
 * The guest's clocks in QEMU's stream: held back, set forward, however the stream is cut; and what is not
 * understood passes as it is.
 */
// clang-format off
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
// clang-format on

#include "memory/timer.h"
#include "stream_maker.h"

#include <errno.h>
#include <stdlib.h>

#define TICKS UINT64_C(7000000000)
#define NSEC UINT64_C(3000000000)
#define SECTION 48U

static struct maker in, out;
static struct timer *timer;
static struct err err;
static struct timer_shift shift;
static int asked, asked_to_load;
static int write_fails;

static int to_qemu(void *arg, const void *data, size_t size, size_t *ret_written, struct err *error)
{
    assert_ptr_equal(arg, &out);
    if (write_fails)
        return err_set(error, write_fails, "it does not read");
    put(&out, data, size);
    *ret_written = size;
    return 0;
}

static struct timer_shift say_shift(void *arg, bool loads)
{
    assert_ptr_equal(arg, &in);
    asked++;
    asked_to_load += loads;
    return shift;
}

static int setup(void **state)
{
    (void)state;
    in.size = out.size = 0;
    asked = asked_to_load = write_fails = 0;
    shift = (struct timer_shift){.nsec = 250000000, .ticks = 600000000};
    return timer_new(to_qemu, &out, say_shift, &in, &timer, &err);
}

static int teardown(void **state)
{
    (void)state;
    timer_free(timer);
    return 0;
}

static void take(size_t from, size_t to, size_t piece)
{
    for (size_t some; from < to; from += some) {
        some = MIN(piece, to - from);
        assert_int_equal(timer_take(timer, in.bytes + from, some, &err), 0);
    }
}

static void put_timer(struct maker *maker, uint64_t ticks, uint64_t nsec)
{
    put_u8(maker, 4);
    put_u32(maker, 9);
    put_name(maker, "timer");
    put_u32(maker, 0);
    put_u32(maker, 2);
    put_u64(maker, ticks);
    put_u64(maker, 0);
    put_u64(maker, nsec);
    put_u8(maker, 0x7e);
    put_u32(maker, 9);
}

static void put_device(struct maker *maker)
{
    put_u8(maker, 4);
    put_u32(maker, 10);
    put_name(maker, "apic");
    put_u32(maker, 0);
    put_u32(maker, 3);
    put(maker, "of no known length, \0\6 with an end in it \0\6\0\0\0\0", 47);
    put_u8(maker, 0x7e);
    put_u32(maker, 10);
}

static void put_description(struct maker *maker)
{
    static const char json[] = "{\"page_size\": 4096, \"devices\": []}";
    put_u8(maker, 0);
    put_u8(maker, 6);
    put_u32(maker, sizeof json - 1);
    put(maker, json, sizeof json - 1);
}

static void put_ram(struct maker *maker)
{
    put_beginning(maker, 64);
    put_part(maker);
    put_page(maker, 1, 1);
    put_zero(maker, 2);
    put_eos(maker);
    put_u8(maker, 3);
    put_u32(maker, RAM_SECTION);
    put_page(maker, 3, 3);
    put_eos(maker);
}

static void check_out(const struct maker *expected)
{
    assert_int_equal(out.size, expected->size);
    assert_memory_equal(out.bytes, expected->bytes, expected->size);
}

static const size_t cuts[] = {1, 3, 47, 48, 1000, sizeof in.bytes};

static void test_devices_wait_and_the_newest_clock_comes_last(void **state)
{
    static struct maker expected;
    for (size_t i = 0; i < ARRAY_SIZE(cuts); i++) {
        teardown(state);
        setup(state);
        put_ram(&in);
        size_t ram = in.size;
        put_timer(&in, TICKS, NSEC);
        put_device(&in);
        size_t devices = in.size;
        put_description(&in);

        take(0, ram, cuts[i]);
        assert_false(timer_holds(timer));
        take(ram, in.size, cuts[i]);
        assert_true(timer_holds(timer));
        assert_int_equal(out.size, ram);
        assert_int_equal(timer_let_go(timer, &err), 0);
        assert_true(timer_holds(timer));
        assert_int_equal(out.size, devices);
        assert_int_equal(asked, 0);
        assert_int_equal(timer_finish(timer, &err), 0);
        assert_true(timer_is_over(timer));
        assert_int_equal(asked, 1);
        assert_int_equal(asked_to_load, 0);

        expected.size = 0;
        put(&expected, in.bytes, devices);
        put_timer(&expected, TICKS + (uint64_t)shift.ticks, NSEC + (uint64_t)shift.nsec);
        put(&expected, in.bytes + devices, in.size - devices);
        check_out(&expected);
        assert_null(timer_strange(timer));
    }
}

static void test_nothing_is_put_in_when_it_did_not_stand_still(void **state)
{
    (void)state;
    put_ram(&in);
    put_timer(&in, TICKS, NSEC);
    put_description(&in);
    shift = (struct timer_shift){0};
    take(0, in.size, 100);
    assert_int_equal(timer_let_go(timer, &err), 0);
    assert_int_equal(timer_finish(timer, &err), 0);
    check_out(&in);
}

/* It is set where it stands then. */
static void test_a_state_without_its_end_goes_whole(void **state)
{
    static struct maker expected;
    (void)state;
    put_ram(&in);
    size_t ram = in.size;
    put_timer(&in, TICKS, NSEC);
    size_t behind = in.size;
    put_device(&in);
    take(0, in.size, 1000);
    assert_int_equal(timer_let_go(timer, &err), 0);
    assert_false(timer_holds(timer));
    assert_int_equal(asked_to_load, 1);
    assert_int_equal(timer_finish(timer, &err), 0);
    assert_int_equal(asked, 1);
    size_t came = in.size;
    put_description(&in);
    take(came, in.size, 7);

    put(&expected, in.bytes, ram);
    put_timer(&expected, TICKS + (uint64_t)shift.ticks, NSEC + (uint64_t)shift.nsec);
    put(&expected, in.bytes + behind, in.size - behind);
    check_out(&expected);
}

static void test_without_a_clock_all_passes_and_it_is_said(void **state)
{
    (void)state;
    put_ram(&in);
    put_device(&in);
    put_description(&in);
    take(0, in.size, 1000);
    assert_int_equal(timer_let_go(timer, &err), 0);
    assert_int_equal(timer_finish(timer, &err), 0);
    check_out(&in);
    assert_non_null(timer_strange(timer));
    assert_int_equal(asked, 0);
}

/* Version 1 has one number less; a guest's own bytes may look like a beginning. */
static void test_what_only_looks_like_it_is_left_alone(void **state)
{
    (void)state;
    put_ram(&in);
    put_timer(&in, TICKS, NSEC);
    in.bytes[in.size - SECTION + 18] = 1; /* the version */
    put_timer(&in, TICKS, NSEC);
    in.bytes[in.size - 1]++; /* the footer's section */
    put_description(&in);
    take(0, in.size, 1000);
    assert_int_equal(timer_let_go(timer, &err), 0);
    assert_int_equal(timer_finish(timer, &err), 0);
    check_out(&in);
    assert_non_null(timer_strange(timer));
}

static void put_package(struct maker *maker, uint64_t ticks, uint64_t nsec, size_t *ret_head)
{
    static struct maker inside;
    inside.size = 0;
    put(&inside, "\x08\0\4\0\0", 5); /* LISTEN */
    put_timer(&inside, ticks, nsec);
    put_device(&inside);
    put(&inside, "\x08\0\5\0\0", 5); /* RUN */
    put(maker, "\x08\0\7\0\4", 5);
    put_u32(maker, (uint32_t)inside.size);
    *ret_head = maker->size;
    put(maker, inside.bytes, inside.size);
}

static void test_the_clock_in_a_package_is_set_when_it_is_whole(void **state)
{
    static struct maker expected;
    size_t head, ignored;
    for (size_t i = 0; i < ARRAY_SIZE(cuts); i++) {
        teardown(state);
        setup(state);
        put_beginning(&in, 64);
        put(&in, "\x08\0\6\0\2ab", 7); /* DISCARD */
        put_package(&in, TICKS, NSEC, &head);
        size_t behind = in.size;
        put_part(&in);
        put_page(&in, 5, 5);
        put_eos(&in);
        put_end(&in);

        take(0, behind - 1, cuts[i]);
        assert_int_equal(out.size, head);
        assert_int_equal(asked, 0);
        take(behind - 1, in.size, cuts[i]);
        assert_int_equal(asked, 1);
        assert_int_equal(asked_to_load, 1);
        assert_true(timer_is_over(timer));

        expected.size = 0;
        put_beginning(&expected, 64);
        put(&expected, "\x08\0\6\0\2ab", 7);
        put_package(&expected, TICKS + (uint64_t)shift.ticks, NSEC + (uint64_t)shift.nsec, &ignored);
        put(&expected, in.bytes + behind, in.size - behind);
        check_out(&expected);
    }
}

static void test_a_stream_that_is_not_understood_passes(void **state)
{
    (void)state;
    put_beginning(&in, 64);
    put(&in, "\x55 what is that? \4 ", 18);
    put_timer(&in, TICKS, NSEC);
    put_description(&in);
    take(0, in.size, 5);
    assert_true(timer_is_over(timer));
    assert_false(timer_holds(timer));
    check_out(&in);
    assert_non_null(timer_strange(timer));
}

static void test_sums_wrap_around(void **state)
{
    (void)state;
    put_ram(&in);
    size_t ram = in.size;
    put_timer(&in, UINT64_MAX, UINT64_MAX - 4);
    put_description(&in);
    shift = (struct timer_shift){.nsec = 5, .ticks = -3};
    take(0, in.size, 1000);
    assert_int_equal(timer_let_go(timer, &err), 0);
    assert_int_equal(timer_finish(timer, &err), 0);
    assert_int_equal(get_be64(out.bytes + ram + SECTION + 19), UINT64_MAX - 3);
    assert_int_equal(get_be64(out.bytes + ram + SECTION + 35), 0);
}

static void test_a_write_that_fails_is_said(void **state)
{
    (void)state;
    put_ram(&in);
    put_timer(&in, TICKS, NSEC);
    put_description(&in);
    take(0, in.size, 1000);
    write_fails = EPIPE;
    assert_int_equal(timer_let_go(timer, &err), -EPIPE);
    write_fails = EINTR; /* what it had taken cannot be taken once more */
    assert_int_equal(timer_finish(timer, &err), -ECANCELED);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_devices_wait_and_the_newest_clock_comes_last, setup, teardown),
        cmocka_unit_test_setup_teardown(test_nothing_is_put_in_when_it_did_not_stand_still, setup, teardown),
        cmocka_unit_test_setup_teardown(test_a_state_without_its_end_goes_whole, setup, teardown),
        cmocka_unit_test_setup_teardown(test_without_a_clock_all_passes_and_it_is_said, setup, teardown),
        cmocka_unit_test_setup_teardown(test_what_only_looks_like_it_is_left_alone, setup, teardown),
        cmocka_unit_test_setup_teardown(test_the_clock_in_a_package_is_set_when_it_is_whole, setup, teardown),
        cmocka_unit_test_setup_teardown(test_a_stream_that_is_not_understood_passes, setup, teardown),
        cmocka_unit_test_setup_teardown(test_sums_wrap_around, setup, teardown),
        cmocka_unit_test_setup_teardown(test_a_write_that_fails_is_said, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
