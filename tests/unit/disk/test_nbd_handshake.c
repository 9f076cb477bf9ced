/* SPDX-License-Identifier: Apache-2.0 */
#include "disk/nbd_handshake.h"
#include "nbd_test.h"

static const struct nbd_export export = {.name = "web1", .size = 1 << 20};

struct talk {
    struct nbd_handshake handshake;
    struct nbd_output output;
};

static void start(struct talk *talk, uint32_t flags, const struct nbd_export *of)
{
    uint8_t greeting[NBD_GREETING_SIZE], data[4];
    size_t used;
    nbd_handshake_init(&talk->handshake, of, greeting);
    assert_int_equal(get_be64(greeting), NBD_MAGIC);
    assert_int_equal(get_be64(greeting + 8), NBD_OPTION_MAGIC);
    assert_int_equal(get_be16(greeting + 16), NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES);
    put_be32(data, flags);
    assert_int_equal(nbd_handshake_step(&talk->handshake, data, 4, &used, &talk->output), NBD_STEP_REPLY);
    assert_int_equal(used, 4);
    assert_int_equal(talk->output.size, 0);
}

static void start_default(struct talk *talk)
{
    start(talk, NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES, &export);
}

static enum nbd_step say(struct talk *talk, uint32_t option, const struct bytes *data)
{
    struct bytes message = {0};
    size_t used;
    add_option(&message, option, data);
    enum nbd_step step = nbd_handshake_step(&talk->handshake, message.at, message.size, &used, &talk->output);
    assert_int_equal(used, message.size);
    return step;
}

/* Checks the reply at `at`, returns where the next one begins. */
static size_t expect(const struct talk *talk, size_t at, uint32_t option, uint32_t type,
                     const uint8_t **ret_data, uint32_t *ret_size)
{
    const uint8_t *reply = talk->output.bytes + at;
    assert_true(at + 20 <= talk->output.size);
    assert_int_equal(get_be64(reply), NBD_OPTION_REPLY_MAGIC);
    assert_int_equal(get_be32(reply + 8), option);
    assert_int_equal(get_be32(reply + 12), type);
    uint32_t size = get_be32(reply + 16);
    assert_true(at + 20 + size <= talk->output.size);
    if (ret_data)
        *ret_data = reply + 20;
    if (ret_size)
        *ret_size = size;
    return at + 20 + size;
}

/* The whole answer is one reply of this type. */
static void expect_only(const struct talk *talk, uint32_t option, uint32_t type)
{
    assert_int_equal(expect(talk, 0, option, type, NULL, NULL), talk->output.size);
}

static struct bytes go(const char *name, size_t count, const uint16_t *infos)
{
    struct bytes data = {0};
    add_text(&data, name);
    add16(&data, (uint16_t)count);
    for (size_t i = 0; i < count; i++)
        add16(&data, infos[i]);
    return data;
}

static struct bytes contexts(const char *name, size_t count, const char *const *queries)
{
    struct bytes data = {0};
    add_text(&data, name);
    add32(&data, (uint32_t)count);
    for (size_t i = 0; i < count; i++)
        add_text(&data, queries[i]);
    return data;
}

static uint16_t flags_of_go(struct talk *talk)
{
    struct bytes data = go("", 0, NULL);
    const uint8_t *info;
    assert_int_equal(say(talk, NBD_OPT_GO, &data), NBD_STEP_GO);
    expect(talk, 0, NBD_OPT_GO, NBD_REP_INFO, &info, NULL);
    return get_be16(info + 10);
}

static void unknown_client_flags_close(void **state)
{
    struct talk talk;
    uint8_t greeting[NBD_GREETING_SIZE], data[] = {0, 0, 0, 4};
    size_t used;
    nbd_handshake_init(&talk.handshake, &export, greeting);
    assert_int_equal(nbd_handshake_step(&talk.handshake, data, 3, &used, &talk.output), NBD_STEP_MORE);
    assert_int_equal(nbd_handshake_step(&talk.handshake, data, 4, &used, &talk.output), NBD_STEP_CLOSE);
}

static void go_tells_size_flags_and_block_sizes(void **state)
{
    struct talk talk;
    start_default(&talk);
    struct bytes data = go("web1", 3, (uint16_t[]){NBD_INFO_BLOCK_SIZE, NBD_INFO_NAME, 99});
    assert_int_equal(say(&talk, NBD_OPT_GO, &data), NBD_STEP_GO);

    const uint8_t *info;
    uint32_t size;
    size_t at = expect(&talk, 0, NBD_OPT_GO, NBD_REP_INFO, &info, &size);
    assert_int_equal(size, 12);
    assert_int_equal(get_be16(info), NBD_INFO_EXPORT);
    assert_int_equal(get_be64(info + 2), export.size);
    at = expect(&talk, at, NBD_OPT_GO, NBD_REP_INFO, &info, &size);
    assert_int_equal(get_be16(info), NBD_INFO_NAME);
    assert_int_equal(size, 2 + 4);
    assert_memory_equal(info + 2, "web1", 4);
    at = expect(&talk, at, NBD_OPT_GO, NBD_REP_INFO, &info, &size);
    assert_int_equal(size, 14);
    assert_int_equal(get_be16(info), NBD_INFO_BLOCK_SIZE);
    assert_int_equal(get_be32(info + 2), 1);
    assert_int_equal(get_be32(info + 6), 4096);
    assert_int_equal(get_be32(info + 10), NBD_PAYLOAD_MAX);
    assert_int_equal(expect(&talk, at, NBD_OPT_GO, NBD_REP_ACK, NULL, NULL), talk.output.size);
    assert_int_equal(talk.handshake.session.size, export.size);
}

static void info_does_not_start_transmission(void **state)
{
    struct talk talk;
    start_default(&talk);
    struct bytes data = go("", 0, NULL);
    assert_int_equal(say(&talk, NBD_OPT_INFO, &data), NBD_STEP_REPLY);
    size_t at = expect(&talk, 0, NBD_OPT_INFO, NBD_REP_INFO, NULL, NULL);
    expect(&talk, at, NBD_OPT_INFO, NBD_REP_ACK, NULL, NULL);
}

static void go_to_unknown_export_is_refused(void **state)
{
    struct talk talk;
    start_default(&talk);
    struct bytes data = go("web2", 0, NULL);
    assert_int_equal(say(&talk, NBD_OPT_GO, &data), NBD_STEP_REPLY);
    expect_only(&talk, NBD_OPT_GO, NBD_REP_ERR_UNKNOWN);
}

static void go_with_a_name_longer_than_the_option_is_invalid(void **state)
{
    struct talk talk;
    start_default(&talk);
    struct bytes data = {0};
    add32(&data, 0xffffffff);
    add16(&data, 0);
    assert_int_equal(say(&talk, NBD_OPT_GO, &data), NBD_STEP_REPLY);
    expect_only(&talk, NBD_OPT_GO, NBD_REP_ERR_INVALID);
}

static void go_with_more_requests_announced_than_sent_is_invalid(void **state)
{
    struct talk talk;
    start_default(&talk);
    struct bytes data = {0};
    add_text(&data, "");
    add16(&data, 2);
    add16(&data, NBD_INFO_NAME);
    assert_int_equal(say(&talk, NBD_OPT_GO, &data), NBD_STEP_REPLY);
    expect_only(&talk, NBD_OPT_GO, NBD_REP_ERR_INVALID);
}

static void go_with_bytes_left_over_is_invalid(void **state)
{
    struct talk talk;
    start_default(&talk);
    struct bytes data = go("", 0, NULL);
    add16(&data, 0);
    assert_int_equal(say(&talk, NBD_OPT_GO, &data), NBD_STEP_REPLY);
    expect_only(&talk, NBD_OPT_GO, NBD_REP_ERR_INVALID);
}

static void writable_export_advertises_what_it_can(void **state)
{
    struct talk talk;
    start_default(&talk);
    assert_int_equal(flags_of_go(&talk), NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH | NBD_FLAG_SEND_FUA |
                                             NBD_FLAG_SEND_TRIM | NBD_FLAG_SEND_WRITE_ZEROES |
                                             NBD_FLAG_CAN_MULTI_CONN | NBD_FLAG_SEND_CACHE |
                                             NBD_FLAG_SEND_FAST_ZERO);
}

static void read_only_export_offers_no_zeroing(void **state)
{
    struct talk talk;
    struct nbd_export read_only = export;
    read_only.read_only = true;
    start(&talk, NBD_FLAG_FIXED_NEWSTYLE, &read_only);
    assert_int_equal(flags_of_go(&talk), NBD_FLAG_HAS_FLAGS | NBD_FLAG_READ_ONLY | NBD_FLAG_SEND_FLUSH |
                                             NBD_FLAG_SEND_FUA | NBD_FLAG_CAN_MULTI_CONN |
                                             NBD_FLAG_SEND_CACHE);
    assert_true(talk.handshake.session.read_only);
}

static void df_comes_with_structured_replies_only(void **state)
{
    struct talk talk;
    start_default(&talk);
    assert_int_equal(say(&talk, NBD_OPT_STRUCTURED_REPLY, NULL), NBD_STEP_REPLY);
    expect_only(&talk, NBD_OPT_STRUCTURED_REPLY, NBD_REP_ACK);
    assert_true(flags_of_go(&talk) & NBD_FLAG_SEND_DF);
    assert_true(talk.handshake.session.structured);
}

static void structured_reply_with_data_is_invalid(void **state)
{
    struct talk talk;
    struct bytes data = {0};
    add32(&data, 0);
    start_default(&talk);
    say(&talk, NBD_OPT_STRUCTURED_REPLY, &data);
    expect_only(&talk, NBD_OPT_STRUCTURED_REPLY, NBD_REP_ERR_INVALID);
    assert_false(talk.handshake.session.structured);
}

static void list_names_the_export(void **state)
{
    struct talk talk;
    const uint8_t *data;
    uint32_t size;
    start_default(&talk);
    assert_int_equal(say(&talk, NBD_OPT_LIST, NULL), NBD_STEP_REPLY);
    size_t at = expect(&talk, 0, NBD_OPT_LIST, NBD_REP_SERVER, &data, &size);
    assert_int_equal(size, 8);
    assert_int_equal(get_be32(data), 4);
    assert_memory_equal(data + 4, "web1", 4);
    expect(&talk, at, NBD_OPT_LIST, NBD_REP_ACK, NULL, NULL);
}

static void list_with_data_is_invalid(void **state)
{
    struct talk talk;
    struct bytes data = {0};
    add16(&data, 1);
    start_default(&talk);
    say(&talk, NBD_OPT_LIST, &data);
    expect_only(&talk, NBD_OPT_LIST, NBD_REP_ERR_INVALID);
}

static void the_longest_export_name_fits_every_answer(void **state)
{
    static char name[NBD_NAME_MAX + 1];
    struct talk talk;
    memset(name, 'n', NBD_NAME_MAX);
    struct nbd_export long_name = {.name = name, .size = 1};
    start(&talk, NBD_FLAG_FIXED_NEWSTYLE, &long_name);
    assert_int_equal(say(&talk, NBD_OPT_LIST, NULL), NBD_STEP_REPLY);
    struct bytes data = go(name, 2, (uint16_t[]){NBD_INFO_BLOCK_SIZE, NBD_INFO_NAME});
    assert_int_equal(say(&talk, NBD_OPT_GO, &data), NBD_STEP_GO);
}

static void export_name_answers_with_padding_unless_spared(void **state)
{
    struct talk talk;
    struct bytes name = {0};
    add(&name, "web1", 4);
    start_default(&talk);
    assert_int_equal(say(&talk, NBD_OPT_EXPORT_NAME, &name), NBD_STEP_GO);
    assert_int_equal(talk.output.size, 10);
    assert_int_equal(get_be64(talk.output.bytes), export.size);

    start(&talk, NBD_FLAG_FIXED_NEWSTYLE, &export);
    assert_int_equal(say(&talk, NBD_OPT_EXPORT_NAME, &name), NBD_STEP_GO);
    assert_int_equal(talk.output.size, 134);
}

static void export_name_that_is_unknown_closes(void **state)
{
    struct talk talk;
    struct bytes name = {0};
    add(&name, "web", 3);
    start_default(&talk);
    assert_int_equal(say(&talk, NBD_OPT_EXPORT_NAME, &name), NBD_STEP_CLOSE);
    assert_int_equal(talk.output.size, 0);
}

static void abort_is_acknowledged_and_closes(void **state)
{
    struct talk talk;
    start_default(&talk);
    assert_int_equal(say(&talk, NBD_OPT_ABORT, NULL), NBD_STEP_CLOSE);
    expect_only(&talk, NBD_OPT_ABORT, NBD_REP_ACK);
}

static void unknown_options_and_tls_are_unsupported(void **state)
{
    static const uint32_t options[] = {0, 4, 5, 11, 0x7654321, 0xffffffff};
    struct talk talk;
    start_default(&talk);
    for (size_t i = 0; i < ARRAY_SIZE(options); i++) {
        assert_int_equal(say(&talk, options[i], NULL), NBD_STEP_REPLY);
        expect_only(&talk, options[i], NBD_REP_ERR_UNSUP);
    }
}

static void meta_context_needs_structured_replies(void **state)
{
    struct talk talk;
    struct bytes data = contexts("", 1, (const char *[]){"base:allocation"});
    start_default(&talk);
    say(&talk, NBD_OPT_SET_META_CONTEXT, &data);
    expect_only(&talk, NBD_OPT_SET_META_CONTEXT, NBD_REP_ERR_INVALID);
    assert_false(talk.handshake.session.base_allocation);
}

static void set_meta_context(struct talk *talk, size_t count, const char *const *queries)
{
    struct bytes data = contexts("", count, queries);
    say(talk, NBD_OPT_SET_META_CONTEXT, &data);
}

static void set_meta_context_selects_base_allocation_once(void **state)
{
    struct talk talk;
    const uint8_t *data;
    start_default(&talk);
    say(&talk, NBD_OPT_STRUCTURED_REPLY, NULL);
    set_meta_context(&talk, 3, (const char *[]){"qemu:dirty-bitmap:x", "base:allocation", "base:allocation"});
    size_t at = expect(&talk, 0, NBD_OPT_SET_META_CONTEXT, NBD_REP_META_CONTEXT, &data, NULL);
    assert_int_equal(get_be32(data), NBD_CONTEXT_ALLOCATION_ID);
    assert_memory_equal(data + 4, "base:allocation", 15);
    assert_int_equal(expect(&talk, at, NBD_OPT_SET_META_CONTEXT, NBD_REP_ACK, NULL, NULL), talk.output.size);
    assert_true(talk.handshake.session.base_allocation);
}

static void set_meta_context_again_replaces_the_choice(void **state)
{
    struct talk talk;
    start_default(&talk);
    say(&talk, NBD_OPT_STRUCTURED_REPLY, NULL);
    set_meta_context(&talk, 1, (const char *[]){"base:allocation"});
    assert_true(talk.handshake.session.base_allocation);
    set_meta_context(&talk, 0, NULL);
    expect_only(&talk, NBD_OPT_SET_META_CONTEXT, NBD_REP_ACK);
    assert_false(talk.handshake.session.base_allocation);
}

static void set_meta_context_takes_no_wildcard(void **state)
{
    struct talk talk;
    start_default(&talk);
    say(&talk, NBD_OPT_STRUCTURED_REPLY, NULL);
    set_meta_context(&talk, 1, (const char *[]){"base:"});
    expect_only(&talk, NBD_OPT_SET_META_CONTEXT, NBD_REP_ACK);
    assert_false(talk.handshake.session.base_allocation);
}

static void a_failed_set_meta_context_clears_the_choice(void **state)
{
    struct talk talk;
    start_default(&talk);
    say(&talk, NBD_OPT_STRUCTURED_REPLY, NULL);
    set_meta_context(&talk, 1, (const char *[]){"base:allocation"});
    struct bytes data = {0};
    add_text(&data, "");
    add32(&data, 1);
    add32(&data, 4000); /* a query that is longer than the option */
    say(&talk, NBD_OPT_SET_META_CONTEXT, &data);
    expect_only(&talk, NBD_OPT_SET_META_CONTEXT, NBD_REP_ERR_INVALID);
    assert_false(talk.handshake.session.base_allocation);
}

static void list_meta_context_without_query_lists_all(void **state)
{
    struct talk talk;
    struct bytes data = contexts("web1", 0, NULL);
    start_default(&talk);
    say(&talk, NBD_OPT_STRUCTURED_REPLY, NULL);
    say(&talk, NBD_OPT_LIST_META_CONTEXT, &data);
    size_t at = expect(&talk, 0, NBD_OPT_LIST_META_CONTEXT, NBD_REP_META_CONTEXT, NULL, NULL);
    expect(&talk, at, NBD_OPT_LIST_META_CONTEXT, NBD_REP_ACK, NULL, NULL);
    assert_false(talk.handshake.session.base_allocation);
}

static void a_wrong_option_magic_closes(void **state)
{
    struct talk talk;
    uint8_t data[16] = "IHAVEOPX";
    size_t used;
    start_default(&talk);
    assert_int_equal(nbd_handshake_step(&talk.handshake, data, 16, &used, &talk.output), NBD_STEP_CLOSE);
}

static void an_oversize_option_is_skipped_and_refused(void **state)
{
    static uint8_t filler[1000];
    struct talk talk;
    struct bytes header = {0};
    size_t used;
    uint32_t left = NBD_OPTION_MAX + 1;
    start_default(&talk);
    add64(&header, NBD_OPTION_MAGIC);
    add32(&header, NBD_OPT_GO);
    add32(&header, left);
    assert_int_equal(nbd_handshake_step(&talk.handshake, header.at, 16, &used, &talk.output), NBD_STEP_MORE);
    assert_int_equal(used, 16);
    enum nbd_step step = NBD_STEP_MORE;
    while (left > 0) {
        assert_int_equal(step, NBD_STEP_MORE);
        step = nbd_handshake_step(&talk.handshake, filler, MIN(left, sizeof filler), &used, &talk.output);
        assert_int_equal(used, MIN(left, sizeof filler));
        left -= (uint32_t)used;
    }
    assert_int_equal(step, NBD_STEP_REPLY);
    expect_only(&talk, NBD_OPT_GO, NBD_REP_ERR_TOO_BIG);
    say(&talk, NBD_OPT_LIST, NULL); /* and the conversation goes on in step */
    expect(&talk, 0, NBD_OPT_LIST, NBD_REP_SERVER, NULL, NULL);
}

static void an_option_in_pieces_waits_until_it_is_whole(void **state)
{
    struct talk talk;
    struct bytes message = {0}, data = go("web1", 0, NULL);
    size_t used;
    start_default(&talk);
    add_option(&message, NBD_OPT_GO, &data);
    for (size_t size = 0; size < message.size; size++) {
        assert_int_equal(nbd_handshake_step(&talk.handshake, message.at, size, &used, &talk.output),
                         NBD_STEP_MORE);
        assert_int_equal(used, 0);
    }
    assert_int_equal(nbd_handshake_step(&talk.handshake, message.at, message.size, &used, &talk.output),
                     NBD_STEP_GO);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(unknown_client_flags_close),
        cmocka_unit_test(go_tells_size_flags_and_block_sizes),
        cmocka_unit_test(info_does_not_start_transmission),
        cmocka_unit_test(go_to_unknown_export_is_refused),
        cmocka_unit_test(go_with_a_name_longer_than_the_option_is_invalid),
        cmocka_unit_test(go_with_more_requests_announced_than_sent_is_invalid),
        cmocka_unit_test(go_with_bytes_left_over_is_invalid),
        cmocka_unit_test(writable_export_advertises_what_it_can),
        cmocka_unit_test(read_only_export_offers_no_zeroing),
        cmocka_unit_test(df_comes_with_structured_replies_only),
        cmocka_unit_test(structured_reply_with_data_is_invalid),
        cmocka_unit_test(list_names_the_export),
        cmocka_unit_test(list_with_data_is_invalid),
        cmocka_unit_test(the_longest_export_name_fits_every_answer),
        cmocka_unit_test(export_name_answers_with_padding_unless_spared),
        cmocka_unit_test(export_name_that_is_unknown_closes),
        cmocka_unit_test(abort_is_acknowledged_and_closes),
        cmocka_unit_test(unknown_options_and_tls_are_unsupported),
        cmocka_unit_test(meta_context_needs_structured_replies),
        cmocka_unit_test(set_meta_context_selects_base_allocation_once),
        cmocka_unit_test(set_meta_context_again_replaces_the_choice),
        cmocka_unit_test(set_meta_context_takes_no_wildcard),
        cmocka_unit_test(a_failed_set_meta_context_clears_the_choice),
        cmocka_unit_test(list_meta_context_without_query_lists_all),
        cmocka_unit_test(a_wrong_option_magic_closes),
        cmocka_unit_test(an_oversize_option_is_skipped_and_refused),
        cmocka_unit_test(an_option_in_pieces_waits_until_it_is_whole),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
