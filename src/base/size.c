/* SPDX-License-Identifier: Apache-2.0
 *
 * Numbers are whole or decimal fractions ("1.5"), kept exact as digits over a power of ten; nothing is ever
 * computed in floating point on the way in, and whatever does not fit in 64 bits is refused. Pure.
 */
#include "base/size.h"

#include "base/macro.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#define MAX_FRACTION_DIGITS 9

/* "1.5": digits = 15, scale = 10. */
struct number {
    uint64_t digits;
    uint64_t scale;
};

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

static bool add_digit(struct number *number, char c)
{
    return !__builtin_mul_overflow(number->digits, UINT64_C(10), &number->digits) &&
           !__builtin_add_overflow(number->digits, (uint64_t)(c - '0'), &number->digits);
}

/* Digits, perhaps a fraction, perhaps one space; *ret_unit is what follows. */
static int take_number(const char *text, struct number *ret, const char **ret_unit)
{
    const char *p = text;
    struct number number = {.scale = 1};
    if (!is_digit(*p))
        return -EINVAL;
    for (; is_digit(*p); p++)
        if (!add_digit(&number, *p))
            return -ERANGE;
    if (*p == '.') {
        const char *fraction = ++p;
        for (; is_digit(*p); p++, number.scale *= 10)
            if (p - fraction == MAX_FRACTION_DIGITS || !add_digit(&number, *p))
                return -ERANGE;
        if (p == fraction)
            return -EINVAL;
    }
    if (*p == ' ' && p[1])
        p++;
    *ret = number;
    *ret_unit = p;
    return 0;
}

/* number * unit / divisor, rounded down; what is not 0 must not become 0. */
static int scale_number(const struct number *number, uint64_t unit, uint64_t divisor, uint64_t *ret)
{
    unsigned __int128 value = (unsigned __int128)number->digits * unit / number->scale / divisor;
    if (value > UINT64_MAX || (value == 0 && number->digits != 0))
        return -ERANGE;
    *ret = (uint64_t)value;
    return 0;
}

struct unit {
    const char *name;
    uint64_t size;
};

static const struct unit *find_unit(const struct unit *units, size_t count, const char *name)
{
    for (size_t i = 0; i < count; i++)
        if (strcmp(units[i].name, name) == 0)
            return &units[i];
    return NULL;
}

static int refuse(int r, const char *text, const char *example, struct err *err)
{
    if (r == -ERANGE)
        return err_set(err, ERANGE, "\"%.40s\" is too large or too finely divided", text);
    return err_set(err, EINVAL, "\"%.40s\" is not understood; write it like %s", text, example);
}

static int parse(const char *text, const struct unit *units, size_t count, uint64_t divisor,
                 const char *example, uint64_t *ret, struct err *err)
{
    struct number number;
    const char *name = NULL;
    int r = take_number(text, &number, &name);
    if (r < 0)
        return refuse(r, text, example, err);
    const struct unit *unit = find_unit(units, count, name);
    r = unit ? scale_number(&number, unit->size, divisor, ret) : -EINVAL;
    return r < 0 ? refuse(r, text, example, err) : 0;
}

int size_parse(const char *text, uint64_t *ret_bytes, struct err *err)
{
    /* Not "GB": half of its readers take it for 10^9. */
    static const struct unit units[] = {
        {"", 1},          {"B", 1},           {"K", KiB},        {"k", KiB},          {"KiB", KiB},
        {"M", MiB},       {"m", MiB},         {"MiB", MiB},      {"G", GiB},          {"g", GiB},
        {"GiB", GiB},     {"T", GiB * 1024},  {"t", GiB * 1024}, {"TiB", GiB * 1024}, {"P", GiB * MiB},
        {"p", GiB * MiB}, {"PiB", GiB * MiB}, {"E", GiB * GiB},  {"e", GiB * GiB},    {"EiB", GiB * GiB},
    };
    return parse(text, units, ARRAY_SIZE(units), 1, "512M, 1.5G or 8GiB (powers of 1024)", ret_bytes, err);
}

int rate_parse(const char *text, uint64_t *ret_bytes_per_second, struct err *err)
{
    static const struct unit units[] = {
        /* in bits */
        {"", 1},
        {"bit", 1},
        {"K", 1000},
        {"k", 1000},
        {"Kbit", 1000},
        {"kbit", 1000},
        {"M", 1000000},
        {"m", 1000000},
        {"Mbit", 1000000},
        {"G", 1000000000},
        {"g", 1000000000},
        {"Gbit", 1000000000},
        {"T", 1000000000000},
        {"t", 1000000000000},
        {"Tbit", 1000000000000},
        {"B", 8},
        {"KB", UINT64_C(8) * 1000},
        {"kB", UINT64_C(8) * 1000},
        {"MB", UINT64_C(8) * 1000000},
        {"GB", UINT64_C(8) * 1000000000},
        {"KiB", 8 * KiB},
        {"MiB", 8 * MiB},
        {"GiB", 8 * GiB},
    };
    if (strcmp(text, "unlimited") == 0) {
        *ret_bytes_per_second = 0;
        return 0;
    }
    char plain[SIZE_TEXT * 2];
    size_t length = strlen(text);
    if (length > 2 && strcmp(text + length - 2, "/s") == 0 && !is_digit(text[length - 3]))
        length -= 2;
    if (snprintf(plain, sizeof plain, "%.*s", (int)MIN(length, sizeof plain), text) >= (int)sizeof plain)
        return refuse(-EINVAL, text, "500M", err);
    struct err inner = ERR_NONE;
    int r = parse(plain, units, ARRAY_SIZE(units), 8, "", ret_bytes_per_second, &inner);
    return r < 0 ? refuse(r, text, "500M or 500Mbit (bits), 60MB/s or 60MiB/s (bytes), or unlimited", err)
                 : 0;
}

int duration_parse(const char *text, uint64_t *ret_msec, struct err *err)
{
    static const struct unit units[] = {
        {"ms", 1}, {"", 1000}, {"s", 1000}, {"m", UINT64_C(60) * 1000}, {"h", UINT64_C(3600) * 1000}};
    return parse(text, units, ARRAY_SIZE(units), 1, "300ms, 90s, 10m or 2h", ret_msec, err);
}

const char *size_format(uint64_t bytes, char text[SIZE_TEXT])
{
    static const char *const names[] = {"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    if (bytes < 1024) {
        snprintf(text, SIZE_TEXT, "%llu B", (unsigned long long)bytes);
        return text;
    }
    unsigned __int128 unit = 1024;
    size_t i = 0;
    uint64_t tenths;
    /* 1023.96 KiB would round to 1024.0 KiB: that is 1 MiB. */
    while ((tenths = (uint64_t)((bytes * (unsigned __int128)10 + unit / 2) / unit)) >= 10240) {
        unit *= 1024;
        i++;
    }
    if (tenths % 10 == 0)
        snprintf(text, SIZE_TEXT, "%u %s", (unsigned)(tenths / 10), names[i]);
    else
        snprintf(text, SIZE_TEXT, "%u.%u %s", (unsigned)(tenths / 10), (unsigned)(tenths % 10), names[i]);
    return text;
}

const char *rate_format(double bytes_per_second, char text[SIZE_TEXT])
{
    static const char *const names[] = {"bit/s", "kbit/s", "Mbit/s", "Gbit/s", "Tbit/s", "Pbit/s"};
    double value = bytes_per_second > 0 ? bytes_per_second * 8 : 0; /* NaN too becomes 0 */
    size_t i = 0;
    while (value >= 999.5 && i + 1 < ARRAY_SIZE(names)) {
        value /= 1000;
        i++;
    }
    snprintf(text, SIZE_TEXT, i > 0 && value < 9.95 ? "%.1f %s" : "%.0f %s", MIN(value, 999999.0), names[i]);
    return text;
}
