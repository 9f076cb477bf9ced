/* SPDX-License-Identifier: Apache-2.0 */
#include "unit.h"

#include "base/id.h"

static void random_ids_differ_and_are_not_zero(void **state)
{
    struct id a = id_random(), b = id_random(), zero = {0};
    assert_false(id_equal(&a, &b));
    assert_false(id_is_zero(&a));
    assert_true(id_is_zero(&zero));
}

static void text_goes_there_and_back(void **state)
{
    char text[ID_TEXT_SIZE];
    struct id a = id_random(), b;
    assert_int_equal(strlen(id_format(&a, text)), 32);
    assert_int_equal(id_parse(text, &b), 0);
    assert_true(id_equal(&a, &b));
}

static void parse_takes_uuids_and_upper_case(void **state)
{
    struct id a, b;
    assert_int_equal(id_parse("01234567-89AB-cdef-0123-456789abcdef", &a), 0);
    assert_int_equal(id_parse("0123456789abcdef0123456789abcdef", &b), 0);
    assert_true(id_equal(&a, &b));
}

static void parse_refuses_other_lengths_and_digits_and_leaves_ret_alone(void **state)
{
    static const char *const bad[] = {NULL,
                                      "",
                                      "-",
                                      "0123456789abcdef0123456789abcde",
                                      "0123456789abcdef0123456789abcdef0",
                                      "0123456789abcdef0123456789abcdeg",
                                      "0123456789abcdef 123456789abcdef"};
    struct id before = id_random(), id = before;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(id_parse(bad[i], &id), -EINVAL);
        assert_true(id_equal(&id, &before));
    }
}

static void hex_keeps_leading_zeroes(void **state)
{
    uint8_t bytes[3] = {0, 1, 0xff}, back[3];
    char text[7];
    assert_string_equal(hex_format(bytes, 3, text), "0001ff");
    assert_int_equal(hex_parse(text, back, 3), 0);
    assert_memory_equal(bytes, back, 3);
    assert_int_equal(hex_parse(text, back, 2), -EINVAL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_ids_differ_and_are_not_zero),
        cmocka_unit_test(text_goes_there_and_back),
        cmocka_unit_test(parse_takes_uuids_and_upper_case),
        cmocka_unit_test(parse_refuses_other_lengths_and_digits_and_leaves_ret_alone),
        cmocka_unit_test(hex_keeps_leading_zeroes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
