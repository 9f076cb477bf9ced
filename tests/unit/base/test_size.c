/* SPDX-License-Identifier: Apache-2.0 */
#include "unit.h"

#include "base/macro.h"
#include "base/size.h"

#include <math.h>

typedef int parser(const char *text, uint64_t *ret, struct err *err);

static void assert_value(parser *parse, const char *text, uint64_t expected)
{
    uint64_t value = 1234567;
    struct err err = ERR_NONE;
    if (parse(text, &value, &err) < 0)
        fail_msg("%s: %s", text, err.text);
    if (value != expected)
        fail_msg("%s gave %llu", text, (unsigned long long)value);
}

static void assert_refused(parser *parse, const char *text, int code)
{
    uint64_t value = 1234567;
    struct err err = ERR_NONE;
    int r = parse(text, &value, &err);
    if (r != -code || value != 1234567 || !strstr(err.text, "\""))
        fail_msg("\"%s\" gave %d, %llu, %s", text, r, (unsigned long long)value, err.text);
}

static void sizes_are_powers_of_1024(void **state)
{
    assert_value(size_parse, "0", 0);
    assert_value(size_parse, "4096", 4096);
    assert_value(size_parse, "512B", 512);
    assert_value(size_parse, "1k", 1024);
    assert_value(size_parse, "8G", 8 * GiB);
    assert_value(size_parse, "512MiB", 512 * MiB);
    assert_value(size_parse, "1.5T", 1536 * GiB);
    assert_value(size_parse, "0.5 KiB", 512);
    assert_value(size_parse, "15E", UINT64_C(15) << 60);
    assert_value(size_parse, "18446744073709551615", UINT64_MAX);
}

static void a_fraction_of_a_byte_is_dropped_but_never_all(void **state)
{
    assert_value(size_parse, "0.1K", 102);
    assert_refused(size_parse, "0.0001K", ERANGE);
    assert_refused(size_parse, "0.5", ERANGE);
}

static void sizes_that_do_not_fit_are_refused(void **state)
{
    assert_refused(size_parse, "18446744073709551616", ERANGE);
    assert_refused(size_parse, "16E", ERANGE);
    assert_refused(size_parse, "99999999999999999999999", ERANGE);
    assert_refused(size_parse, "18014398509481984K", ERANGE);
    assert_refused(size_parse, "1.0123456789G", ERANGE);
}

static void sizes_that_are_not_understood_are_refused(void **state)
{
    static const char *const bad[] = {"",     "G",   "-1",  "+1",    " 1",  "1 ",  "1.",  ".5",   "1,5G",
                                      "0x10", "8GB", "8Gi", "8GiBs", "1 2", "1e3", "nan", "8 G ", "1..5G"};
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
        assert_refused(size_parse, bad[i], EINVAL);
}

static void rates_without_a_b_are_decimal_bits(void **state)
{
    assert_value(rate_parse, "500M", 62500000);
    assert_value(rate_parse, "1G", 125000000);
    assert_value(rate_parse, "500Mbit", 62500000);
    assert_value(rate_parse, "500Mbit/s", 62500000);
    assert_value(rate_parse, "2.5G", 312500000);
    assert_value(rate_parse, "8", 1);
}

static void rates_in_bytes_are_decimal_or_binary(void **state)
{
    assert_value(rate_parse, "60MB", 60000000);
    assert_value(rate_parse, "60MB/s", 60000000);
    assert_value(rate_parse, "60MiB", 60 * MiB);
    assert_value(rate_parse, "60 MiB/s", 60 * MiB);
    assert_value(rate_parse, "1kB/s", 1000);
}

static void zero_and_unlimited_mean_no_limit(void **state)
{
    assert_value(rate_parse, "0", 0);
    assert_value(rate_parse, "unlimited", 0);
}

static void a_rate_too_small_does_not_become_no_limit(void **state)
{
    assert_refused(rate_parse, "7", ERANGE);
    assert_refused(rate_parse, "0.1B/s", ERANGE);
}

static void rates_that_are_not_understood_are_refused(void **state)
{
    static const char *const bad[] = {
        "",           "/s",          "5/s",
        "M",          "5Mb",         "5mbps",
        "-5M",        "5M/s/s",      "5MBit",
        "unlimited ", "500Mbit/s/s", "500000000000000000000000000000000000000000000000000000000000M"};
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
        assert_true(rate_parse(bad[i], &(uint64_t){0}, NULL) < 0);
}

static void durations_have_four_units(void **state)
{
    assert_value(duration_parse, "300ms", 300);
    assert_value(duration_parse, "90", 90000);
    assert_value(duration_parse, "90s", 90000);
    assert_value(duration_parse, "1.5s", 1500);
    assert_value(duration_parse, "10m", 600000);
    assert_value(duration_parse, "2h", 7200000);
    assert_refused(duration_parse, "5124095576030432h", ERANGE);
    assert_refused(duration_parse, "0.1ms", ERANGE);
    assert_refused(duration_parse, "1d", EINVAL);
    assert_refused(duration_parse, "10M", EINVAL);
    assert_refused(duration_parse, "-1s", EINVAL);
}

static void assert_size(uint64_t bytes, const char *expected)
{
    char text[SIZE_TEXT];
    assert_string_equal(size_format(bytes, text), expected);
}

static void sizes_are_written_with_one_decimal_at_most(void **state)
{
    assert_size(0, "0 B");
    assert_size(312, "312 B");
    assert_size(1023, "1023 B");
    assert_size(1024, "1 KiB");
    assert_size(1536, "1.5 KiB");
    assert_size(1024 * 1024 - 1, "1 MiB");
    assert_size(3 * GiB / 2, "1.5 GiB");
    assert_size(UINT64_MAX, "16 EiB");
}

static void what_size_writes_size_reads(void **state)
{
    char text[SIZE_TEXT];
    assert_value(size_parse, size_format(3 * GiB / 2, text), 3 * GiB / 2);
    assert_value(size_parse, size_format(312, text), 312);
}

static void assert_rate(double rate, const char *expected)
{
    char text[SIZE_TEXT];
    assert_string_equal(rate_format(rate, text), expected);
}

static void rates_are_written_in_decimal_bits(void **state)
{
    assert_rate(0, "0 bit/s");
    assert_rate(117500000, "940 Mbit/s");
    assert_rate(125000000, "1.0 Gbit/s");
    assert_rate(124999000, "1.0 Gbit/s");
    assert_rate(1, "8 bit/s");
}

static void rates_that_are_no_numbers_are_written_without_harm(void **state)
{
    char text[SIZE_TEXT];
    assert_rate(-5, "0 bit/s");
    assert_rate(NAN, "0 bit/s");
    assert_true(strlen(rate_format(INFINITY, text)) < SIZE_TEXT);
    assert_true(strlen(rate_format(1e300, text)) < SIZE_TEXT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sizes_are_powers_of_1024),
        cmocka_unit_test(a_fraction_of_a_byte_is_dropped_but_never_all),
        cmocka_unit_test(sizes_that_do_not_fit_are_refused),
        cmocka_unit_test(sizes_that_are_not_understood_are_refused),
        cmocka_unit_test(rates_without_a_b_are_decimal_bits),
        cmocka_unit_test(rates_in_bytes_are_decimal_or_binary),
        cmocka_unit_test(zero_and_unlimited_mean_no_limit),
        cmocka_unit_test(a_rate_too_small_does_not_become_no_limit),
        cmocka_unit_test(rates_that_are_not_understood_are_refused),
        cmocka_unit_test(durations_have_four_units),
        cmocka_unit_test(sizes_are_written_with_one_decimal_at_most),
        cmocka_unit_test(what_size_writes_size_reads),
        cmocka_unit_test(rates_are_written_in_decimal_bits),
        cmocka_unit_test(rates_that_are_no_numbers_are_written_without_harm),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
