/* SPDX-License-Identifier: Apache-2.0 */
#include "unit.h"

#include "base/err.h"
#include "base/macro.h"

static void set_returns_the_negative_code_and_keeps_the_text(void **state)
{
    struct err err = {.hint = "old"};
    assert_int_equal(err_set(&err, ENOSPC, "disk %s is full", "a"), -ENOSPC);
    assert_int_equal(err.code, ENOSPC);
    assert_string_equal(err.text, "disk a is full");
    assert_string_equal(err.hint, "");
}

static void set_takes_negative_codes_too(void **state)
{
    struct err err;
    assert_int_equal(err_set(&err, -EIO, "x"), -EIO);
    assert_int_equal(err.code, EIO);
}

static void set_without_err_still_returns_the_code(void **state)
{
    assert_int_equal(err_set(NULL, EBUSY, "x"), -EBUSY);
    assert_int_equal(err_sys(NULL, -EBUSY, "x"), -EBUSY);
}

static void set_may_quote_its_own_old_text(void **state)
{
    struct err err;
    err_set(&err, EIO, "inner");
    err_set(&err, EPROTO, "outer (%s)", err.text);
    assert_string_equal(err.text, "outer (inner)");
}

static void sys_appends_the_systems_words(void **state)
{
    struct err err;
    err_sys(&err, ENOENT, "cannot open x");
    assert_string_equal(err.text, "cannot open x: No such file or directory");
}

static void context_goes_before_the_text_and_keeps_the_hint(void **state)
{
    struct err err;
    err_set(&err, EIO, "broken");
    err_hint(&err, "orai recover %s", "web1");
    assert_int_equal(err_context(&err, "move of %s", "web1"), -EIO);
    assert_string_equal(err.text, "move of web1: broken");
    assert_string_equal(err.hint, "orai recover web1");
}

static void endless_contexts_are_cut_not_overrun(void **state)
{
    struct err err;
    err_set(&err, EIO, "end");
    for (int i = 0; i < 200; i++)
        err_context(&err, "context number %d", i);
    assert_true(strlen(err.text) == sizeof err.text - 1);
}

static void where_does_not_overwrite_what_is_known(void **state)
{
    struct err err;
    err_set(&err, EIO, "x");
    err_where(&err, "b", NULL);
    err_where(&err, "a", "pause");
    assert_string_equal(err.host, "b");
    assert_string_equal(err.stage, "pause");
}

static void json_carries_every_member_there_and_back(void **state)
{
    struct err err, back;
    err_set(&err, ENOSPC, "full");
    err_hint(&err, "df");
    err_where(&err, "b", "transfer");
    _cleanup_json_ json_t *json = err_to_json(&err);
    assert_int_equal(err_from_json(json, &back), -ENOSPC);
    assert_memory_equal(&err, &back, sizeof err);
}

static void json_leaves_empty_members_out(void **state)
{
    struct err err;
    err_set(&err, EIO, "x");
    _cleanup_json_ json_t *json = err_to_json(&err);
    assert_int_equal(json_object_size(json), 2);
}

static void text_that_is_no_utf8_still_gets_through_json(void **state)
{
    struct err err;
    err_set(&err, EIO, "cannot open caf\xe9.raw");
    _cleanup_json_ json_t *json = err_to_json(&err);
    assert_string_equal(json_string_value(json_object_get(json, "text")), "cannot open caf?.raw");
}

static void text_cut_inside_a_character_still_gets_through_json(void **state)
{
    struct err err;
    char text[sizeof err.text + 2];
    memset(text, 'x', sizeof text);
    memcpy(text + sizeof err.text - 2, "\xc3\xa9", 3);
    err_set(&err, EIO, "%s", text);
    _cleanup_json_ json_t *json = err_to_json(&err);
    _cleanup_free_ char *dump = json_dumps(json, 0);
    assert_non_null(dump);
    assert_non_null(json_object_get(json, "text"));
}

static void odd_json_becomes_a_protocol_error(void **state)
{
    struct err err;
    assert_int_equal(err_from_json(NULL, &err), -EPROTO);
    assert_true(err.text[0]);
    _cleanup_json_ json_t *json = json_pack("{s:s, s:i}", "code", "EWHATEVER", "text", 7);
    assert_int_equal(err_from_json(json, &err), -EPROTO);
    _cleanup_json_ json_t *list = json_array();
    assert_int_equal(err_from_json(list, &err), -EPROTO);
}

static void a_peers_control_characters_do_not_reach_the_terminal(void **state)
{
    struct err err;
    _cleanup_json_ json_t *json = json_pack("{s:s, s:s}", "code", "EIO", "text",
                                            "a\x1b[2J\nb\x7f\xc2\x9b"
                                            "c");
    err_from_json(json, &err);
    assert_string_equal(err.text, "a [2J b \xc2\xa0"
                                  "c");
}

static void every_code_that_base_returns_keeps_its_name(void **state)
{
    static const int codes[] = {EPERM,    ENOENT,     ESRCH,      EINTR,        EIO,          EAGAIN,
                                ENOMEM,   EACCES,     EBUSY,      EEXIST,       EINVAL,       EFBIG,
                                ENOSPC,   EROFS,      EPIPE,      ERANGE,       EPROTO,       EBADMSG,
                                EMSGSIZE, ECONNRESET, ETIMEDOUT,  ECONNREFUSED, EHOSTUNREACH, ENAMETOOLONG,
                                ENOTDIR,  EMFILE,     ENETUNREACH};
    for (size_t i = 0; i < ARRAY_SIZE(codes); i++) {
        struct err err, back;
        err_set(&err, codes[i], "x");
        _cleanup_json_ json_t *json = err_to_json(&err);
        assert_int_equal(err_from_json(json, &back), -codes[i]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(set_returns_the_negative_code_and_keeps_the_text),
        cmocka_unit_test(set_takes_negative_codes_too),
        cmocka_unit_test(set_without_err_still_returns_the_code),
        cmocka_unit_test(set_may_quote_its_own_old_text),
        cmocka_unit_test(sys_appends_the_systems_words),
        cmocka_unit_test(context_goes_before_the_text_and_keeps_the_hint),
        cmocka_unit_test(endless_contexts_are_cut_not_overrun),
        cmocka_unit_test(where_does_not_overwrite_what_is_known),
        cmocka_unit_test(json_carries_every_member_there_and_back),
        cmocka_unit_test(json_leaves_empty_members_out),
        cmocka_unit_test(text_that_is_no_utf8_still_gets_through_json),
        cmocka_unit_test(text_cut_inside_a_character_still_gets_through_json),
        cmocka_unit_test(odd_json_becomes_a_protocol_error),
        cmocka_unit_test(a_peers_control_characters_do_not_reach_the_terminal),
        cmocka_unit_test(every_code_that_base_returns_keeps_its_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
