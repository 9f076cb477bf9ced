/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/format.h"

#include "base/macro.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

static const struct view view = {
    .columns =
        (const struct column[]){
            {"name", "NAME"}, {"disk.size", "SIZE", COLUMN_BYTES}, {"on", "ON", COLUMN_BOOL}, {0}},
    .empty = "nothing there",
};

typedef int print_fn(FILE *, const struct style *, const struct view *, const json_t *);

static char *printed(print_fn *print, struct style style, const struct view *columns, const char *json)
{
    char *text = NULL;
    size_t size;
    FILE *out = open_memstream(&text, &size);
    _cleanup_json_ json_t *rows = json ? json_loads(json, JSON_DECODE_ANY, NULL) : NULL;
    assert_true(!json || rows);
    assert_int_equal(print(out, &style, columns, rows), 0);
    fclose(out);
    return text;
}

static void assert_printed(print_fn *print, struct style style, const struct view *columns, const char *json,
                           const char *expected)
{
    _cleanup_free_ char *text = printed(print, style, columns, json);
    assert_string_equal(text, expected);
}

#define STYLE(f) ((struct style){.format = f})
#define TWO_ROWS                                                                                               \
    "[{\"name\":\"web1\",\"disk\":{\"size\":1610612736},\"on\":true},{\"name\":\"往来\",\"disk\":{\"size\":" \
    "312},\"on\":false}]"

static void a_table_lines_up_by_columns_on_the_screen(void **state)
{
    (void)state;
    assert_printed(format_list, STYLE(FORMAT_TABLE), &view, TWO_ROWS,
                   "NAME     SIZE  ON\n"
                   "web1  1.5 GiB  yes\n"
                   "往来    312 B  no\n");
}

static void an_empty_table_says_so(void **state)
{
    (void)state;
    assert_printed(format_list, STYLE(FORMAT_TABLE), &view, "[]", "nothing there\n");
}

static void missing_values_are_dashes_in_a_table_and_nothing_in_csv(void **state)
{
    (void)state;
    assert_printed(format_list, STYLE(FORMAT_TABLE), &view, "[{\"name\":null}]",
                   "NAME  SIZE  ON\n-        -  -\n");
    assert_printed(format_list, STYLE(FORMAT_CSV), &view, "[{\"name\":null}]", "name,disk.size,on\n,,\n");
}

static void a_table_shows_control_characters_instead_of_obeying_them(void **state)
{
    (void)state;
    assert_printed(format_list, STYLE(FORMAT_TABLE), &view, "[{\"name\":\"a\\u001b[2J\\n\"}]",
                   "NAME          SIZE  ON\na\\x1b[2J\\x0a     -  -\n");
}

static void a_table_is_cut_to_the_terminal(void **state)
{
    (void)state;
    assert_printed(format_list, (struct style){.format = FORMAT_TABLE, .width = 24}, &view,
                   "[{\"name\":\"a-very-long-name-indeed\",\"disk\":{\"size\":5},\"on\":true}]",
                   "NAME           SIZE  ON\na-very-long-…   5 B  yes\n");
}

static void csv_has_raw_numbers_under_keys(void **state)
{
    (void)state;
    assert_printed(format_list, STYLE(FORMAT_CSV), &view, TWO_ROWS,
                   "name,disk.size,on\nweb1,1610612736,true\n往来,312,false\n");
}

static void csv_quotes_what_would_break_a_row(void **state)
{
    (void)state;
    assert_printed(format_list, STYLE(FORMAT_CSV), &view,
                   "[{\"name\":\"a,\\\"b\\\"\\nc\"},{\"name\":\" x\"}]",
                   "name,disk.size,on\n\"a,\"\"b\"\"\nc\",,\n\" x\",,\n");
}

static void json_is_the_whole_object(void **state)
{
    (void)state;
    assert_printed(format_object, STYLE(FORMAT_JSON), &view, "{\"name\":\"a\",\"other\":[1]}",
                   "{\n  \"name\": \"a\",\n  \"other\": [\n    1\n  ]\n}\n");
}

static void yaml_nests_objects_and_lists(void **state)
{
    (void)state;
    assert_printed(format_object, STYLE(FORMAT_YAML), &view,
                   "{\"a\":{\"b\":[1,{\"c\":null,\"d\":[]},[2,3]],\"e\":{}},\"f\":true}",
                   "a:\n  b:\n    - 1\n    - c: null\n      d: []\n    - - 2\n      - 3\n  e: {}\nf: true\n");
}

static void yaml_quotes_what_it_could_misread(void **state)
{
    static const char *const odd[] = {"yes", "No", "null", "~",    "1e3", "0x1f", "12:30", "2024-01-02",
                                      "",    " a", "a: b", "- a",  "#a",  "@a",   "%a",    "*a",
                                      "&a",  "!a", "[a",   ".inf", "-1",  "y",    "=",     "a#"};
    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(odd); i++) {
        _cleanup_json_ json_t *text = json_string(odd[i]);
        char *out_text = NULL, expected[64];
        size_t size;
        FILE *out = open_memstream(&out_text, &size);
        format_yaml(out, text);
        fclose(out);
        snprintf(expected, sizeof expected, "\"%s\"\n", odd[i]);
        assert_string_equal(out_text, expected);
        free(out_text);
    }
}

static void yaml_escapes_what_yaml_cannot_print(void **state)
{
    (void)state;
    assert_printed(format_list, STYLE(FORMAT_YAML), &view,
                   "[\"\\\"\\\\\\n\\u0001\\u007f\\u0085\\u2028\\ufeff\"]",
                   "- \"\\\"\\\\\\n\\x01\\x7f\\x85\\u2028\\ufeff\"\n");
}

static void yaml_reals_are_numbers_for_old_readers_too(void **state)
{
    (void)state;
    assert_printed(format_list, STYLE(FORMAT_YAML), &view, "[1.0, 1.5, 1e300, 0.0000001]",
                   "- 1.0\n- 1.5\n- 1.0e+300\n- 1.0e-07\n");
}

static const struct view view_lines = {.columns = (const struct column[]){{"file", "FILE"}, {0}}};
static const struct view view_whole = {
    .columns = (const struct column[]){{"name", "Name"}, {"ms", "Blackout", COLUMN_MSEC}, {0}},
    .sections = (const struct section[]){{"disks", "Disks", &view_lines}, {"none", "None", &view_lines}, {0}},
};

static void an_object_is_a_line_per_column_and_its_lists_below(void **state)
{
    (void)state;
    assert_printed(format_object, STYLE(FORMAT_TABLE), &view_whole,
                   "{\"name\":\"web1\",\"ms\":140,\"disks\":[{\"file\":\"disk0.raw\"}],\"none\":[]}",
                   "Name:     web1\nBlackout: 140 ms\n\nDisks\nFILE\ndisk0.raw\n");
}

static void times_are_local_and_odd_ones_are_left_alone(void **state)
{
    const struct column column = {"t", "T", COLUMN_TIME};
    (void)state;
    setenv("TZ", "UTC", 1);
    _cleanup_json_ json_t *row = json_pack("{s:s}", "t", "2026-11-20T21:31:37.123Z");
    _cleanup_json_ json_t *odd = json_pack("{s:s}", "t", "tomorrow");
    _cleanup_json_ json_t *number = json_pack("{s:I}", "t", (json_int_t)0);
    _cleanup_free_ char *cell = format_cell(row, &column, FORMAT_TABLE);
    _cleanup_free_ char *odd_cell = format_cell(odd, &column, FORMAT_TABLE);
    _cleanup_free_ char *number_cell = format_cell(number, &column, FORMAT_TABLE);
    _cleanup_free_ char *raw = format_cell(row, &column, FORMAT_CSV);
    assert_string_equal(cell, "2026-11-20 21:31:37");
    assert_string_equal(odd_cell, "tomorrow");
    assert_string_equal(number_cell, "1970-01-01 00:00:00");
    assert_string_equal(raw, "2026-11-20T21:31:37.123Z");
}

static void short_times_keep_what_is_after_the_point(void **state)
{
    const struct column column = {"t", "T", COLUMN_MSEC};
    static const struct {
        double msec;
        const char *text;
    } cases[] = {{0, "0 ms"},     {0.26, "0.3 ms"},   {2, "2 ms"},        {140.4, "140 ms"},
                 {2500, "2.5 s"}, {150000, "2m 30s"}, {7260000, "2h 01m"}};
    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        _cleanup_json_ json_t *row = json_pack("{s:f}", "t", cases[i].msec);
        _cleanup_free_ char *cell = format_cell(row, &column, FORMAT_TABLE);
        assert_string_equal(cell, cases[i].text);
    }
}

static void an_object_in_a_cell_is_its_members(void **state)
{
    const struct column column = {"data", "WHAT", COLUMN_TEXT};
    (void)state;
    _cleanup_json_ json_t *row = json_pack("{s:{s:s, s:n, s:i}}", "data", "state", "done", "error", "n", 2);
    _cleanup_free_ char *cell = format_cell(row, &column, FORMAT_TABLE);
    assert_string_equal(cell, "state=done n=2");
}

static void a_stream_is_one_line_per_row(void **state)
{
    (void)state;
    assert_printed(format_stream, STYLE(FORMAT_JSON), &view, NULL, "");
    assert_printed(format_stream, STYLE(FORMAT_JSON), &view, "{\"name\":\"a\"}", "{\"name\":\"a\"}\n");
    assert_printed(format_stream, STYLE(FORMAT_CSV), &view, NULL, "name,disk.size,on\n");
    assert_printed(format_stream, STYLE(FORMAT_YAML), &view, "{\"name\":\"a\"}", "---\nname: a\n");
    assert_printed(format_stream, STYLE(FORMAT_TABLE), &view, "{\"name\":\"a\",\"on\":true}", "a  -  yes\n");
}

static void a_full_disk_is_an_error(void **state)
{
    (void)state;
    FILE *full = fopen("/dev/full", "w");
    assert_non_null(full);
    _cleanup_json_ json_t *rows = json_loads(TWO_ROWS, 0, NULL);
    assert_int_equal(format_list(full, &STYLE(FORMAT_CSV), &view, rows), -ENOSPC);
    fclose(full);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_table_lines_up_by_columns_on_the_screen),
        cmocka_unit_test(an_empty_table_says_so),
        cmocka_unit_test(missing_values_are_dashes_in_a_table_and_nothing_in_csv),
        cmocka_unit_test(a_table_shows_control_characters_instead_of_obeying_them),
        cmocka_unit_test(a_table_is_cut_to_the_terminal),
        cmocka_unit_test(csv_has_raw_numbers_under_keys),
        cmocka_unit_test(csv_quotes_what_would_break_a_row),
        cmocka_unit_test(json_is_the_whole_object),
        cmocka_unit_test(yaml_nests_objects_and_lists),
        cmocka_unit_test(yaml_quotes_what_it_could_misread),
        cmocka_unit_test(yaml_escapes_what_yaml_cannot_print),
        cmocka_unit_test(yaml_reals_are_numbers_for_old_readers_too),
        cmocka_unit_test(an_object_is_a_line_per_column_and_its_lists_below),
        cmocka_unit_test(times_are_local_and_odd_ones_are_left_alone),
        cmocka_unit_test(short_times_keep_what_is_after_the_point),
        cmocka_unit_test(an_object_in_a_cell_is_its_members),
        cmocka_unit_test(a_stream_is_one_line_per_row),
        cmocka_unit_test(a_full_disk_is_an_error),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
