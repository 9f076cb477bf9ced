/* SPDX-License-Identifier: Apache-2.0 */
#include "base/id.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/types.h>

struct id id_random(void)
{
    struct id id;
    ssize_t n;
    do
        n = getrandom(id.bytes, sizeof id.bytes, 0);
    while (n < 0 && errno == EINTR); /* only before the pool is ready, early in a boot */
    if (n != sizeof id.bytes)
        abort(); /* the kernel promises up to 256 bytes at once */
    return id;
}

bool id_equal(const struct id *a, const struct id *b)
{
    return memcmp(a, b, sizeof *a) == 0;
}

bool id_is_zero(const struct id *id)
{
    static const struct id zero;
    return id_equal(id, &zero);
}

const char *hex_format(const void *bytes, size_t size, char *text)
{
    static const char digits[] = "0123456789abcdef";
    const uint8_t *p = bytes;
    for (size_t i = 0; i < size; i++) {
        text[2 * i] = digits[p[i] >> 4];
        text[2 * i + 1] = digits[p[i] & 15];
    }
    text[2 * size] = '\0';
    return text;
}

static int digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    if (c >= 'A' && c <= 'F')
        return c - 'A' + 10;
    return -1;
}

int hex_parse(const char *text, void *ret, size_t size)
{
    if (!text || strlen(text) != 2 * size)
        return -EINVAL;
    for (size_t i = 0; i < 2 * size; i++)
        if (digit(text[i]) < 0)
            return -EINVAL;
    for (size_t i = 0; i < size; i++)
        ((uint8_t *)ret)[i] = (uint8_t)(digit(text[2 * i]) << 4 | digit(text[2 * i + 1]));
    return 0;
}

const char *id_format(const struct id *id, char text[ID_TEXT_SIZE])
{
    return hex_format(id->bytes, sizeof id->bytes, text);
}

int id_parse(const char *text, struct id *ret)
{
    char plain[ID_TEXT_SIZE];
    size_t used = 0;
    for (; text && *text; text++) {
        if (*text == '-')
            continue;
        if (used == sizeof plain - 1)
            return -EINVAL;
        plain[used++] = *text;
    }
    plain[used] = '\0';
    return hex_parse(plain, ret->bytes, sizeof ret->bytes);
}
