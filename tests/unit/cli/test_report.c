/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/report.h"

#include "base/macro.h"
#include "cli/vmview.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

static char *reported(const struct err *err, const char *whereabouts)
{
    char *text = NULL;
    size_t size;
    FILE *out = open_memstream(&text, &size);
    report_error(out, err, whereabouts);
    fclose(out);
    return text;
}

static void a_report_has_host_stage_cause_place_and_next_command(void **state)
{
    const struct err err = {.code = ENOSPC,
                            .text = "no space for 8.0 GiB",
                            .host = "b",
                            .stage = "prepare",
                            .hint = "orai replica list web1"};
    (void)state;
    _cleanup_free_ char *text = reported(&err, "web1 is running on a");
    assert_string_equal(text, "orai: host b, stage prepare: no space for 8.0 GiB\n"
                              "orai: web1 is running on a\n"
                              "orai: next: orai replica list web1\n");
}

static void a_report_leaves_out_what_is_not_known(void **state)
{
    const struct err err = {.code = EIO, .text = "broken"},
                     at_host = {.code = EIO, .text = "broken", .host = "b"};
    (void)state;
    _cleanup_free_ char *text = reported(&err, NULL), *with_host = reported(&at_host, NULL);
    assert_string_equal(text, "orai: broken\n");
    assert_string_equal(with_host, "orai: host b: broken\n");
}

static void a_report_shows_control_characters_instead_of_obeying_them(void **state)
{
    const struct err err = {.code = EIO, .text = "a\033[2J\nb", .host = "\033c"};
    (void)state;
    _cleanup_free_ char *text = reported(&err, NULL);
    assert_null(strchr(text, '\033'));
    assert_string_equal(strchr(text, '\n'), "\n");
}

static void assert_whereabouts(const char *state, const char *expected)
{
    _cleanup_json_ json_t *vm = json_pack("{s:s, s:s, s:s}", "name", "web1", "state", state, "peer", "b");
    _cleanup_free_ char *text = vm_whereabouts(vm, "a");
    assert_string_equal(text, expected);
}

static void the_vm_is_where_its_state_says(void **state)
{
    (void)state;
    assert_whereabouts("running", "web1 is running on a");
    assert_whereabouts("stopped", "web1 is stopped on a");
    assert_whereabouts("leaving", "web1 is running on a and on its way to b");
    assert_whereabouts("arriving", "web1 is on b and on its way to a");
    assert_whereabouts("replica", "web1 is on b; a has a replica");
    assert_whereabouts("incomplete", "web1 is on b; a has part of a replica");
    assert_whereabouts("committed", "web1 is paused on a until b answers whether it runs there");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_report_has_host_stage_cause_place_and_next_command),
        cmocka_unit_test(a_report_leaves_out_what_is_not_known),
        cmocka_unit_test(a_report_shows_control_characters_instead_of_obeying_them),
        cmocka_unit_test(the_vm_is_where_its_state_says),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
