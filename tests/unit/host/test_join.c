/* SPDX-License-Identifier: Apache-2.0
 *
 * Tokens and the inviting side; the network between the two sides is tests/lab/test_api.py's.
 */
#include "host_test.h"

#include "base/clock.h"
#include "host/join.h"

static struct token sample(void)
{
    struct token token = {.secret = id_random(), .port = 7420, .name = "host-a", .address_count = 2};
    memset(token.fingerprint.bytes, 0xa5, HASH_SIZE);
    strcpy(token.addresses[0], "192.0.2.1");
    strcpy(token.addresses[1], "2001:db8::1");
    return token;
}

static void a_token_goes_there_and_back(void **state)
{
    struct token token = sample(), back;
    struct err err;
    char text[TOKEN_TEXT_SIZE];
    assert_int_equal(token_parse(token_format(&token, text), &back, &err), 0);
    assert_memory_equal(&token.fingerprint, &back.fingerprint, sizeof back.fingerprint);
    assert_true(id_equal(&token.secret, &back.secret));
    assert_int_equal(back.port, 7420);
    assert_string_equal(back.name, "host-a");
    assert_int_equal(back.address_count, 2);
    assert_string_equal(back.addresses[1], "2001:db8::1");
}

static void the_longest_token_fits(void **state)
{
    struct token token = sample(), back;
    struct err err;
    char text[TOKEN_TEXT_SIZE];
    memset(token.name, 'n', 63);
    token.address_count = TOKEN_MAX_ADDRESSES;
    for (unsigned i = 0; i < TOKEN_MAX_ADDRESSES; i++)
        memset(token.addresses[i], 'd', TOKEN_ADDRESS_SIZE - 1);
    assert_int_equal(token_parse(token_format(&token, text), &back, &err), 0);
    assert_string_equal(back.addresses[7], token.addresses[7]);
}

static void blanks_around_a_token_are_ignored(void **state)
{
    struct token token = sample(), back;
    struct err err;
    char text[TOKEN_TEXT_SIZE], padded[TOKEN_TEXT_SIZE + 8];
    snprintf(padded, sizeof padded, " \t%s\r\n", token_format(&token, text));
    assert_int_equal(token_parse(padded, &back, &err), 0);
}

static void every_changed_or_missing_character_is_noticed(void **state)
{
    struct token token = sample(), back;
    struct err err;
    char text[TOKEN_TEXT_SIZE], bad[TOKEN_TEXT_SIZE];
    token_format(&token, text);
    size_t length = strlen(text);
    for (size_t i = 0; i < length; i++) {
        strcpy(bad, text);
        bad[i] = bad[i] == 'A' ? 'B' : 'A';
        /* The last digit may carry bits that no byte uses. */
        if (i < length - 1)
            assert_int_equal(token_parse(bad, &back, &err), -EINVAL);
        strcpy(bad, text);
        bad[i] = '\0';
        assert_int_equal(token_parse(bad, &back, &err), -EINVAL);
    }
}

static void what_is_no_token_is_refused_with_words(void **state)
{
    static const char *const bad[] = {"", "orai1.", "orai2.AAAA", "hello", "orai1.!!!!", "orai1.AAAA"};
    struct token back;
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        struct err err = ERR_NONE;
        assert_int_equal(token_parse(bad[i], &back, &err), -EINVAL);
        assert_non_null(strstr(err.text, "token"));
    }
}

static void addresses_that_mean_more_in_a_url_are_refused(void **state)
{
    static const char *const bad[] = {"", "a/b", "a b", "user@host", "a#b", "a?b", "a%31", "[::1]", "a\nb"};
    static const char *const good[] = {"192.0.2.1", "2001:db8::1", "host-1.example", "a_b"};
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
        assert_false(peer_address_ok(bad[i]));
    for (size_t i = 0; i < ARRAY_SIZE(good); i++)
        assert_true(peer_address_ok(good[i]));
    struct token token = sample(), back;
    struct err err;
    char text[TOKEN_TEXT_SIZE];
    strcpy(token.addresses[1], "evil/path");
    assert_int_equal(token_parse(token_format(&token, text), &back, &err), -EINVAL);
}

/* --- the inviting side ---------------------------------------------------------------------------------- */

static struct token invite(struct test_host *t, const char *alias, uint64_t ttl)
{
    struct token token;
    struct err err;
    char expires[TIME_TEXT];
    assert_int_equal(join_invite(&t->host, alias, ttl, &token, expires, &err), 0);
    return token;
}

static struct peer joiner(const char *name, uint8_t key)
{
    struct peer peer = {.port = 7420, .address = "192.0.2.2"};
    snprintf(peer.name, sizeof peer.name, "%s", name);
    memset(peer.fingerprint.bytes, key, HASH_SIZE);
    return peer;
}

static size_t peer_count(struct test_host *t)
{
    _cleanup_free_ struct peer *peers = NULL;
    size_t count = 0;
    struct err err;
    assert_int_equal(peer_list(t->host.registry, &peers, &count, &err), 0);
    return count;
}

static void the_secret_is_stored_only_as_its_hash(void **state)
{
    struct test_host *t = *state;
    struct token token = invite(t, NULL, 60);
    _cleanup_json_ json_t *rows = NULL;
    struct err err;
    char secret[ID_TEXT_SIZE];
    assert_int_equal(registry_list(t->host.registry, REGISTRY_INVITES, &rows, &err), 0);
    _cleanup_free_ char *text = json_dumps(rows, 0);
    assert_null(strstr(text, id_format(&token.secret, secret)));
    assert_int_equal(json_array_size(rows), 1);
}

static void an_invite_is_redeemed_once(void **state)
{
    struct test_host *t = *state;
    struct token token = invite(t, NULL, 60);
    struct peer b = joiner("b", 1), c = joiner("c", 2), found;
    struct err err;
    assert_int_equal(join_accept(&t->host, &token.secret, &b, &err), 0);
    assert_int_equal(peer_find(t->host.registry, "b", &found, &err), 0);
    assert_memory_equal(found.fingerprint.bytes, b.fingerprint.bytes, HASH_SIZE);
    assert_int_equal(join_accept(&t->host, &token.secret, &c, &err), -ESTALE);
    assert_non_null(strstr(err.text, "used"));
    assert_int_equal(join_accept(&t->host, &token.secret, &b, &err), -ESTALE); /* by the same host too */
    assert_int_equal(peer_count(t), 1);
}

static void an_unknown_secret_is_refused(void **state)
{
    struct test_host *t = *state;
    struct id guess = id_random();
    struct peer b = joiner("b", 1);
    struct err err;
    invite(t, NULL, 60);
    assert_int_equal(join_accept(&t->host, &guess, &b, &err), -EACCES);
    assert_int_equal(peer_count(t), 0);
}

static void an_expired_invite_is_refused(void **state)
{
    struct test_host *t = *state;
    struct token token = invite(t, NULL, 1);
    struct peer b = joiner("b", 1);
    struct err err;
    clock_sleep(1100 * NSEC_PER_MSEC);
    assert_int_equal(join_accept(&t->host, &token.secret, &b, &err), -ESTALE);
    assert_non_null(strstr(err.text, "expired"));
    assert_int_equal(peer_count(t), 0);
}

static void a_taken_name_is_refused_and_the_invite_stays_good(void **state)
{
    struct test_host *t = *state;
    struct token first = invite(t, NULL, 60), second = invite(t, NULL, 60);
    struct peer b = joiner("b", 1), other = joiner("b", 2), self = joiner("a", 3);
    struct err err;
    assert_int_equal(join_accept(&t->host, &first.secret, &b, &err), 0);
    assert_int_equal(join_accept(&t->host, &second.secret, &other, &err), -EEXIST);
    assert_int_equal(join_accept(&t->host, &second.secret, &self, &err), -EEXIST);
    strcpy(other.name, "c");
    assert_int_equal(join_accept(&t->host, &second.secret, &other, &err), 0);
    assert_int_equal(peer_count(t), 2);
}

static void a_known_key_that_joins_again_is_renewed(void **state)
{
    struct test_host *t = *state;
    struct token first = invite(t, NULL, 60), second = invite(t, NULL, 60);
    struct peer b = joiner("b", 1), renamed = joiner("b2", 1), found;
    struct err err;
    assert_int_equal(join_accept(&t->host, &first.secret, &b, &err), 0);
    strcpy(renamed.address, "192.0.2.9");
    assert_int_equal(join_accept(&t->host, &second.secret, &renamed, &err), 0);
    assert_int_equal(peer_count(t), 1);
    assert_int_equal(peer_find_key(t->host.registry, &b.fingerprint, &found, &err), 0);
    assert_string_equal(found.name, "b2");
    assert_string_equal(found.address, "192.0.2.9");
}

static void the_invites_name_wins_over_the_joiners(void **state)
{
    struct test_host *t = *state;
    struct token token = invite(t, "laptop", 60);
    struct peer b = joiner("b", 1), found;
    struct err err;
    assert_int_equal(join_accept(&t->host, &token.secret, &b, &err), 0);
    assert_int_equal(peer_find(t->host.registry, "laptop", &found, &err), 0);
}

static void a_host_cannot_join_itself(void **state)
{
    struct test_host *t = *state;
    struct token token = invite(t, NULL, 60);
    struct peer found;
    struct err err;
    assert_int_equal(join_with(&t->host, &token, NULL, &found, &err), -EINVAL);
    struct peer self = joiner("b", 0);
    self.fingerprint = *tls_identity_fingerprint(t->host.identity);
    assert_int_equal(join_accept(&t->host, &token.secret, &self, &err), -EINVAL);
    assert_int_equal(peer_count(t), 0);
}

static void an_invite_outlives_the_process(void **state)
{
    struct test_host *t = *state;
    struct token token = invite(t, NULL, 60);
    struct peer b = joiner("b", 1);
    struct err err;
    test_host_reopen(t);
    assert_int_equal(join_accept(&t->host, &token.secret, &b, &err), 0);
}

static void versions_must_meet(void **state)
{
    struct err err = ERR_NONE;
    _cleanup_json_ json_t *own = protocol_range();
    _cleanup_json_ json_t *newer = json_pack("{s:i, s:i}", "min", 98, "max", 99);
    _cleanup_json_ json_t *wider = json_pack("{s:i, s:i}", "min", 0, "max", 99);
    assert_int_equal(protocol_check(own, "b", &err), 0);
    assert_int_equal(protocol_check(wider, "b", &err), 0);
    assert_int_equal(protocol_check(newer, "b", &err), -ENOTSUP);
    assert_non_null(strstr(err.text, "version mismatch"));
    assert_int_equal(protocol_check(NULL, "b", &err), -EINVAL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_token_goes_there_and_back),
        cmocka_unit_test(the_longest_token_fits),
        cmocka_unit_test(blanks_around_a_token_are_ignored),
        cmocka_unit_test(every_changed_or_missing_character_is_noticed),
        cmocka_unit_test(what_is_no_token_is_refused_with_words),
        cmocka_unit_test(addresses_that_mean_more_in_a_url_are_refused),
        HOST_TEST(the_secret_is_stored_only_as_its_hash),
        HOST_TEST(an_invite_is_redeemed_once),
        HOST_TEST(an_unknown_secret_is_refused),
        HOST_TEST(an_expired_invite_is_refused),
        HOST_TEST(a_taken_name_is_refused_and_the_invite_stays_good),
        HOST_TEST(a_known_key_that_joins_again_is_renewed),
        HOST_TEST(the_invites_name_wins_over_the_joiners),
        HOST_TEST(a_host_cannot_join_itself),
        HOST_TEST(an_invite_outlives_the_process),
        cmocka_unit_test(versions_must_meet),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
