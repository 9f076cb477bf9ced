/* SPDX-License-Identifier: Apache-2.0
 *
 * What a move is asked to do: nothing may be misunderstood into a move that nobody wanted.
 */
// clang-format off
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
// clang-format on

#include "base/macro.h"
#include "move/move.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define PRINT "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"

static json_t *sample(void)
{
    return json_pack("{s:s, s:{s:s, s:s, s:i, s:s}, s:s}", "do", "move", "peer", "name", "b", "address",
                     "b.example", "port", 7420, "fingerprint", PRINT, "move",
                     "0123456789abcdef0123456789abcdef");
}

static int parse_with(const char *key, json_t *value, struct move_options *ret)
{
    _cleanup_json_ json_t *json = sample();
    json_object_set_new(json, key, value);
    return move_options_from_json(json, ret, NULL);
}

static int parse_with_peer(const char *key, json_t *value)
{
    _cleanup_json_ json_t *json = sample();
    struct move_options options;
    json_object_set_new(json_object_get(json, "peer"), key, value);
    return move_options_from_json(json, &options, NULL);
}

static void assert_refused(const char *key, json_t *value)
{
    struct move_options options = {.bandwidth = 4711};
    if (parse_with(key, value, &options) >= 0)
        fail_msg("a strange \"%s\" was accepted", key);
    assert_int_equal(options.bandwidth, 4711);
}

static void test_defaults(void **state)
{
    _cleanup_json_ json_t *json = sample();
    struct move_options options;
    assert_int_equal(move_options_from_json(json, &options, NULL), 0);
    assert_string_equal(options.peer.name, "b");
    assert_int_equal(options.peer.port, 7420);
    assert_int_equal(options.peer.fingerprint.bytes[1], 0x11);
    assert_false(options.dry_run);
    assert_int_equal(options.bandwidth, 0);
    assert_int_equal(options.max_blackout_ms, 300);
    assert_int_equal(options.timeout_ms, 0);
    assert_int_equal(options.connections, 2);
    assert_int_equal(options.throttle, 0);
    assert_int_equal(options.on_timeout, MOVE_CANCEL);
}

static void test_every_option_is_taken(void **state)
{
    struct move_options options;
    assert_int_equal(parse_with("dry_run", json_true(), &options), 0);
    assert_true(options.dry_run);
    assert_int_equal(parse_with("bandwidth", json_integer(60000000), &options), 0);
    assert_int_equal(options.bandwidth, 60000000);
    assert_int_equal(parse_with("on_timeout", json_string("pause"), &options), 0);
    assert_int_equal(options.on_timeout, MOVE_PAUSE);
    assert_int_equal(parse_with("on_timeout", json_string("postcopy"), &options), 0);
    assert_int_equal(options.on_timeout, MOVE_FOLLOW);
    assert_int_equal(parse_with("connections", json_integer(8), &options), 0);
    assert_int_equal(options.connections, 8);
    assert_int_equal(parse_with("throttle", json_integer(99), &options), 0);
    assert_int_equal(options.throttle, 99);
    assert_int_equal(parse_with("verify_memory", json_true(), &options), 0);
    assert_true(options.verify_memory);
}

/* "dry_run": "yes" taken for missing would be a real move. */
static void test_a_member_of_another_type_is_refused(void **state)
{
    assert_refused("dry_run", json_string("yes"));
    assert_refused("dry_run", json_integer(1));
    assert_refused("bandwidth", json_string("500M"));
    assert_refused("bandwidth", json_real(1e6));
    assert_refused("timeout_ms", json_null());
    assert_refused("on_timeout", json_true());
    assert_refused("connections", json_string("2"));
    assert_refused("peer", json_string("b"));
    assert_refused("move", json_integer(1));
}

static void test_amounts_out_of_range_are_refused(void **state)
{
    assert_refused("connections", json_integer(0));
    assert_refused("connections", json_integer(9));
    assert_refused("bandwidth", json_integer(-1));
    assert_refused("bandwidth", json_integer(1000));
    assert_refused("timeout_ms", json_integer(INT64_MAX)); /* as nanoseconds it would overflow */
    assert_refused("max_blackout_ms", json_integer(INT64_MAX));
    assert_refused("on_timeout", json_string("explode"));
    assert_refused("throttle", json_integer(100));
    assert_refused("throttle", json_integer(-1));
    assert_refused("throttle", json_real(50));
    assert_refused("verify_memory", json_integer(1));
}

static void test_what_follows_the_guest_is_neither_slowed_down_for_nor_verified(void **state)
{
    static const char *const members[] = {"throttle", "verify_memory"};
    for (size_t i = 0; i < ARRAY_SIZE(members); i++) {
        _cleanup_json_ json_t *json = sample();
        struct move_options options;
        json_object_set_new(json, members[i], i == 0 ? json_integer(50) : json_true());
        assert_int_equal(move_options_from_json(json, &options, NULL), 0);
        json_object_set_new(json, "memory", json_string("postcopy"));
        assert_int_equal(move_options_from_json(json, &options, NULL), -EINVAL);
    }
}

static void test_a_peer_that_makes_no_sense_is_refused(void **state)
{
    char longer[300];
    memset(longer, 'x', sizeof longer);
    longer[sizeof longer - 1] = '\0';
    assert_int_equal(parse_with_peer("port", json_integer(0)), -EINVAL);
    assert_int_equal(parse_with_peer("port", json_integer(65536)), -EINVAL);
    assert_int_equal(parse_with_peer("fingerprint", json_string("12")), -EINVAL);
    assert_int_equal(parse_with_peer("fingerprint", json_string(PRINT "00")), -EINVAL);
    assert_int_equal(parse_with_peer("name", json_string(longer)), -EINVAL);
    assert_int_equal(parse_with_peer("address", json_string(longer)), -EINVAL);
    assert_int_equal(parse_with_peer("address", json_null()), -EINVAL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defaults),
        cmocka_unit_test(test_every_option_is_taken),
        cmocka_unit_test(test_a_member_of_another_type_is_refused),
        cmocka_unit_test(test_amounts_out_of_range_are_refused),
        cmocka_unit_test(test_what_follows_the_guest_is_neither_slowed_down_for_nor_verified),
        cmocka_unit_test(test_a_peer_that_makes_no_sense_is_refused),
    };
    return cmocka_run_group_tests_name("options", tests, NULL, NULL);
}
