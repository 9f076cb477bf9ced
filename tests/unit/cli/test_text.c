/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/text.h"

#include "base/macro.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

static void assert_visible(const char *text, const char *expected)
{
    _cleanup_free_ char *visible = text_visible(text);
    assert_string_equal(visible, expected);
}

static void assert_cut(const char *text, size_t width, const char *expected)
{
    char copy[64];
    strcpy(copy, text);
    text_cut(copy, width);
    assert_string_equal(copy, expected);
}

static void width_counts_columns_and_not_bytes(void **state)
{
    (void)state;
    assert_int_equal(text_width("abc"), 3);
    assert_int_equal(text_width("\xc3\xa4"), 1);                 /* ä */
    assert_int_equal(text_width("\xe5\xbe\x80\xe6\x9d\xa5"), 4); /* 往来, double width */
    assert_int_equal(text_width("e\xcc\x81"), 1);                /* e and a combining acute */
}

static void stray_bytes_take_one_column_each(void **state)
{
    (void)state;
    assert_int_equal(text_width("\xff\xfe"), 2);
    assert_int_equal(text_width("\xe5\xbe"), 2); /* ends in mid-character */
}

static void escape_sequences_become_visible(void **state)
{
    (void)state;
    assert_visible("a\033[2Jb\r\n", "a\\x1b[2Jb\\x0d\\x0a");
    assert_visible("\x7f", "\\x7f");
}

static void c1_controls_and_bidirectional_controls_become_visible(void **state)
{
    (void)state;
    assert_visible("\xc2\x9b", "\\u{9b}"); /* CSI in one character */
    assert_visible("\xe2\x80\xae", "\\u{202e}");
    assert_visible("\xe2\x81\xa6", "\\u{2066}");
}

static void bytes_that_are_not_utf8_become_visible(void **state)
{
    (void)state;
    assert_visible("a\xff", "a\\xff");
    assert_visible("\xc0\x9b", "\\xc0\\x9b");          /* overlong ESC */
    assert_visible("\xed\xa0\x80", "\\xed\\xa0\\x80"); /* a surrogate */
}

static void harmless_text_stays_as_it_is(void **state)
{
    (void)state;
    assert_visible("往来 web-1", "往来 web-1");
}

static void cut_leaves_what_fits(void **state)
{
    (void)state;
    assert_cut("abcdef", 6, "abcdef");
}

static void cut_ends_in_an_ellipsis(void **state)
{
    (void)state;
    assert_cut("abcdefgh", 4, "abc…");
}

static void cut_never_splits_a_wide_character(void **state)
{
    (void)state;
    assert_cut("往来往来", 4, "往…");
    assert_cut("往来往来", 5, "往来…");
}

static void cut_to_nothing_is_empty(void **state)
{
    (void)state;
    assert_cut("abcdef", 0, "");
    assert_cut("ab", 0, "");
    assert_cut("ab", 1, ""); /* no room for the ellipsis's bytes */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(width_counts_columns_and_not_bytes),
        cmocka_unit_test(stray_bytes_take_one_column_each),
        cmocka_unit_test(escape_sequences_become_visible),
        cmocka_unit_test(c1_controls_and_bidirectional_controls_become_visible),
        cmocka_unit_test(bytes_that_are_not_utf8_become_visible),
        cmocka_unit_test(harmless_text_stays_as_it_is),
        cmocka_unit_test(cut_leaves_what_fits),
        cmocka_unit_test(cut_ends_in_an_ellipsis),
        cmocka_unit_test(cut_never_splits_a_wide_character),
        cmocka_unit_test(cut_to_nothing_is_empty),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
