/* SPDX-License-Identifier: Apache-2.0
 *
 * Widths come from wcwidth(3) in the locale C.UTF-8, whatever the user's locale is: what the API sends is
 * UTF-8, and a terminal that shows something else only gets its columns wrong.
 */
#include "cli/text.h"

#include "base/macro.h"

#include <locale.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <wchar.h>

/* Decodes one character; returns its bytes, or 0 when they are not UTF-8. Overlong forms and surrogates are
 * not. */
static size_t decode(const char *text, uint32_t *ret)
{
    const uint8_t *p = (const uint8_t *)text;
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    size_t size = p[0] < 0x80 ? 1 : p[0] >= 0xf0 && p[0] < 0xf8 ? 4 : p[0] >= 0xe0 ? 3 : p[0] >= 0xc0 ? 2 : 0;
    if (size <= 1 || p[0] >= 0xf8) {
        *ret = p[0];
        return p[0] < 0x80;
    }
    uint32_t code = p[0] & (0x7f >> size);
    for (size_t i = 1; i < size; i++) {
        if ((p[i] & 0xc0) != 0x80)
            return 0;
        code = code << 6 | (p[i] & 0x3f);
    }
    if (code < least[size] || code > 0x10ffff || (code >= 0xd800 && code <= 0xdfff))
        return 0;
    *ret = code;
    return size;
}

static size_t columns_of(uint32_t code)
{
    static locale_t utf8;
    if (!utf8)
        utf8 = newlocale(LC_CTYPE_MASK, "C.UTF-8", NULL);
    if (!utf8)
        return 1;
    locale_t old = uselocale(utf8);
    int width = wcwidth((wchar_t)code);
    uselocale(old);
    return width < 0 ? 1 : (size_t)width;
}

size_t text_width(const char *text)
{
    size_t width = 0;
    while (*text) {
        uint32_t code;
        size_t size = decode(text, &code);
        width += size ? columns_of(code) : 1;
        text += size ? size : 1;
    }
    return width;
}

static bool steers(uint32_t code)
{
    return code < 0x20 || (code >= 0x7f && code < 0xa0) || code == 0x61c || code == 0x200e ||
           code == 0x200f || (code >= 0x2028 && code <= 0x202e) || (code >= 0x2066 && code <= 0x2069) ||
           code == 0xfeff;
}

char *text_visible(const char *text)
{
    char *copy = NULL;
    size_t size;
    FILE *out = open_memstream(&copy, &size);
    if (!out)
        abort();
    while (*text) {
        uint32_t code;
        size_t length = decode(text, &code);
        if (!length)
            fprintf(out, "\\x%02x", (uint8_t)*text);
        else if (!steers(code))
            fwrite(text, 1, length, out);
        else
            fprintf(out, code < 0x80 ? "\\x%02x" : "\\u{%x}", code);
        text += length ? length : 1;
    }
    if (fclose(out) != 0)
        abort();
    return copy;
}

void text_cut(char *text, size_t width)
{
    static const char ellipsis[] = "\xe2\x80\xa6";
    if (text_width(text) <= width)
        return;
    size_t used = 0, at = 0;
    for (;;) {
        uint32_t code;
        size_t size = decode(text + at, &code);
        size_t columns = size ? columns_of(code) : 1;
        if (used + columns + 1 > width)
            break;
        used += columns;
        at += size ? size : 1;
    }
    size_t room = strlen(text + at);
    if (width == 0 || room < sizeof ellipsis - 1)
        text[at] = '\0'; /* what is cut off is shorter than the ellipsis */
    else
        memcpy(text + at, ellipsis, sizeof ellipsis);
}
