/* SPDX-License-Identifier: Apache-2.0 */
#include "unit.h"

#include "base/json.h"
#include "base/macro.h"

static int parse(const char *text, json_t **ret)
{
    return json_parse(text, strlen(text), "test", ret, NULL);
}

static void make_nested(char *text, int depth)
{
    memset(text, '[', (size_t)depth);
    memset(text + depth, ']', (size_t)depth);
    text[2 * depth] = '\0';
}

static void parse_takes_64_levels_and_no_more(void **state)
{
    char text[256];
    _cleanup_json_ json_t *json = NULL;
    make_nested(text, 64);
    assert_int_equal(parse(text, &json), 0);
    json_t *none = NULL;
    make_nested(text, 65);
    assert_int_equal(parse(text, &none), -EINVAL);
    assert_null(none);
}

static void brackets_inside_strings_are_no_depth(void **state)
{
    char text[256] = "[\"\\\"";
    memset(text + 4, '[', 100);
    strcpy(text + 104, "\"]");
    _cleanup_json_ json_t *json = NULL;
    assert_int_equal(parse(text, &json), 0);
}

static void depth_is_found_behind_a_string_that_ends_in_a_backslash(void **state)
{
    char text[512] = "[\"\\\\\",";
    json_t *none = NULL;
    make_nested(text + strlen(text), 100);
    strcat(text, "]");
    assert_int_equal(parse(text, &none), -EINVAL);
}

static void a_million_open_brackets_are_refused_quickly(void **state)
{
    json_t *none = NULL;
    size_t size = 1 << 20;
    _cleanup_free_ char *text = malloc(size);
    memset(text, '{', size);
    assert_int_equal(json_parse(text, size, "test", &none, NULL), -EINVAL);
}

static void parse_refuses_more_than_the_largest_size(void **state)
{
    struct err err;
    json_t *none = NULL;
    size_t size = JSON_MAX_SIZE + 1;
    _cleanup_free_ char *text = malloc(size);
    memset(text, ' ', size);
    memcpy(text, "[]", 2);
    assert_int_equal(json_parse(text, size, "the thing", &none, &err), -EFBIG);
    assert_non_null(strstr(err.text, "the thing"));
}

static void parse_refuses_doubled_keys_trailing_bytes_nuls_and_bad_utf8(void **state)
{
    json_t *none = NULL;
    assert_int_equal(parse("{\"a\":1,\"a\":2}", &none), -EINVAL);
    assert_int_equal(parse("{} x", &none), -EINVAL);
    assert_int_equal(parse("", &none), -EINVAL);
    assert_int_equal(parse("7", &none), -EINVAL);
    assert_int_equal(parse("[\"\\u0000\"]", &none), -EINVAL);
    assert_int_equal(json_parse("[]\0", 3, "test", &none, NULL), -EINVAL);
    assert_int_equal(parse("[\"\xff\"]", &none), -EINVAL);
}

static void a_bad_file_is_reported_with_its_line(void **state)
{
    struct err err;
    json_t *none = NULL;
    file_replace(in_scratch("f"), "{\n  \"a\": 1,\n  oops\n}", 20, 0644, NULL);
    assert_int_equal(json_read_file(in_scratch("f"), &none, &err), -EINVAL);
    assert_non_null(strstr(err.text, "line 3"));
    assert_non_null(strstr(err.text, in_scratch("f")));
}

static void files_keep_the_order_of_keys_and_end_in_a_newline(void **state)
{
    _cleanup_json_ json_t *json = json_pack("{s:i, s:i}", "z", 1, "a", 2);
    _cleanup_free_ void *text = NULL;
    size_t size = 0;
    assert_int_equal(json_write_file(in_scratch("f"), json, 0644, NULL), 0);
    assert_int_equal(file_load(in_scratch("f"), 100, &text, &size, NULL), 0);
    assert_string_equal(text, "{\n  \"z\": 1,\n  \"a\": 2\n}\n");
    _cleanup_json_ json_t *back = NULL;
    assert_int_equal(json_read_file(in_scratch("f"), &back, NULL), 0);
    assert_true(json_equal(json, back));
}

static void members_of_another_type_are_refused_and_leave_ret_alone(void **state)
{
    struct err err;
    _cleanup_json_ json_t *json =
        json_pack("{s:i, s:s, s:i, s:f}", "n", 7, "s", "text", "minus", -1, "f", 1.5);
    const char *string = "before";
    uint64_t number = 99;
    struct id id = {{1}};
    json_t *inner = NULL;
    assert_int_equal(json_get_string(json, "n", "doc", &string, &err), -EINVAL);
    assert_string_equal(err.text, "doc: \"n\" must be a string");
    assert_string_equal(string, "before");
    assert_int_equal(json_get_u64(json, "s", "doc", &number, NULL), -EINVAL);
    assert_int_equal(json_get_u64(json, "minus", "doc", &number, NULL), -EINVAL);
    assert_int_equal(json_get_u64(json, "f", "doc", &number, NULL), -EINVAL);
    assert_int_equal(json_get_u64(json, "missing", "doc", &number, NULL), -EINVAL);
    assert_int_equal(number, 99);
    assert_int_equal(json_get_id(json, "s", "doc", &id, NULL), -EINVAL);
    assert_int_equal(json_get_id(json, "n", "doc", &id, NULL), -EINVAL);
    assert_int_equal(id.bytes[0], 1);
    assert_int_equal(json_get_object(json, "s", "doc", &inner, NULL), -EINVAL);
    assert_int_equal(json_get_array(json, "missing", "doc", &inner, NULL), -EINVAL);
    assert_null(inner);
}

static void optional_members_fall_back_to_the_default(void **state)
{
    _cleanup_json_ json_t *json = json_pack("{s:i, s:b, s:s, s:i}", "n", 7, "b", 1, "s", "x", "minus", -1);
    assert_int_equal(json_u64(json, "n", 1), 7);
    assert_int_equal(json_u64(json, "minus", 1), 1);
    assert_int_equal(json_u64(json, "s", 1), 1);
    assert_true(json_bool(json, "b", false));
    assert_true(json_bool(json, "n", true));
    assert_string_equal(json_str(json, "s", "y"), "x");
    assert_string_equal(json_str(json, "n", "y"), "y");
    assert_string_equal(json_str(NULL, "n", "y"), "y");
    assert_true(json_double(json, "n", 0) == 7);
}

static void unknown_keys_are_named(void **state)
{
    struct err err;
    static const char *const allowed[] = {"memory", "cpus", NULL};
    _cleanup_json_ json_t *good = json_pack("{s:i}", "cpus", 2);
    _cleanup_json_ json_t *bad = json_pack("{s:i, s:i}", "cpus", 2, "memroy", 1);
    _cleanup_json_ json_t *list = json_array();
    assert_int_equal(json_only_keys(good, "vm.json", allowed, NULL), 0);
    assert_int_equal(json_only_keys(bad, "vm.json", allowed, &err), -EINVAL);
    assert_string_equal(err.text, "vm.json: unknown member \"memroy\"");
    assert_int_equal(json_only_keys(list, "vm.json", allowed, NULL), -EINVAL);
}

#define SCRATCH(f) cmocka_unit_test_setup_teardown(f, make_scratch, remove_scratch)

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(parse_takes_64_levels_and_no_more),
        cmocka_unit_test(brackets_inside_strings_are_no_depth),
        cmocka_unit_test(depth_is_found_behind_a_string_that_ends_in_a_backslash),
        cmocka_unit_test(a_million_open_brackets_are_refused_quickly),
        cmocka_unit_test(parse_refuses_more_than_the_largest_size),
        cmocka_unit_test(parse_refuses_doubled_keys_trailing_bytes_nuls_and_bad_utf8),
        SCRATCH(a_bad_file_is_reported_with_its_line),
        SCRATCH(files_keep_the_order_of_keys_and_end_in_a_newline),
        cmocka_unit_test(members_of_another_type_are_refused_and_leave_ret_alone),
        cmocka_unit_test(optional_members_fall_back_to_the_default),
        cmocka_unit_test(unknown_keys_are_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
