/* SPDX-License-Identifier: Apache-2.0 */
#include "unit.h"

#include "base/clock.h"
#include "base/crowd.h"

#include <arpa/inet.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

#define MOST 8

static struct crowd_member members[MOST];

static struct crowd_member from(char origin, int64_t since)
{
    return (struct crowd_member){.origin.bytes[15] = (uint8_t)origin, .since = since};
}

/* One member for each letter, in the order in which they came; '-' is one that may not be asked. */
static int victim(const char *crowd, char newcomer)
{
    const struct crowd_member *list[MOST];
    size_t count = 0;
    for (; crowd[count]; count++) {
        members[count] = from(crowd[count], 100 + (int64_t)count);
        list[count] = crowd[count] == '-' ? NULL : &members[count];
    }
    struct crowd_member who = from(newcomer, 200);
    return crowd_victim(list, count, &who);
}

static void the_oldest_of_the_most_numerous_goes(void **state)
{
    assert_int_equal(victim("abbab", 'c'), 1);
    assert_int_equal(victim("haaaa", 'a'), 1);
    assert_int_equal(victim("haaaa", 'h'), 1);
}

static void the_newcomer_counts_with_its_own(void **state)
{
    assert_int_equal(victim("aabb", 'b'), 2);
    assert_int_equal(victim("bbaa", 'a'), 2);
}

static void where_nobody_is_more_the_oldest_goes(void **state)
{
    assert_int_equal(victim("abcd", 'e'), 0);
}

static void who_may_not_be_asked_neither_goes_nor_counts(void **state)
{
    assert_int_equal(victim("--abb", 'c'), 3);
    assert_int_equal(victim("---", 'a'), -1);
    assert_int_equal(victim("", 'a'), -1);
}

/* The origin of a connection over loopback, from `source` to a socket that listens for both families. */
static struct crowd_origin origin_of(int family, const char *source)
{
    struct sockaddr_in6 here = {.sin6_family = AF_INET6, .sin6_addr = in6addr_any};
    socklen_t size = sizeof here;
    int listener = socket(AF_INET6, SOCK_STREAM, 0), client = socket(family, SOCK_STREAM, 0);
    assert_int_equal(bind(listener, (struct sockaddr *)&here, sizeof here), 0);
    assert_int_equal(listen(listener, 1), 0);
    assert_int_equal(getsockname(listener, (struct sockaddr *)&here, &size), 0);
    if (family == AF_INET) {
        struct sockaddr_in there = {.sin_family = AF_INET, .sin_port = here.sin6_port}, own = there;
        inet_pton(AF_INET, "127.0.0.1", &there.sin_addr);
        inet_pton(AF_INET, source, &own.sin_addr);
        own.sin_port = 0;
        assert_int_equal(bind(client, (struct sockaddr *)&own, sizeof own), 0);
        assert_int_equal(connect(client, (struct sockaddr *)&there, sizeof there), 0);
    } else {
        here.sin6_addr = in6addr_loopback;
        assert_int_equal(connect(client, (struct sockaddr *)&here, sizeof here), 0);
    }
    int accepted = accept(listener, NULL, NULL);
    struct crowd_member member = crowd_member(accepted);
    assert_true(member.since > 0 && member.since <= clock_now());
    close(accepted), close(client), close(listener);
    return member.origin;
}

static bool equal(struct crowd_origin a, struct crowd_origin b)
{
    return memcmp(&a, &b, sizeof a) == 0;
}

static void an_address_is_one_origin_whatever_the_port(void **state)
{
    assert_true(equal(origin_of(AF_INET, "127.0.0.1"), origin_of(AF_INET, "127.0.0.1")));
    assert_false(equal(origin_of(AF_INET, "127.0.0.1"), origin_of(AF_INET, "127.0.0.2")));
}

static void of_an_ipv6_address_only_the_network_counts(void **state)
{
    static const struct crowd_origin none;
    int probe = socket(AF_INET6, SOCK_STREAM, 0);
    struct sockaddr_in6 loopback = {.sin6_family = AF_INET6, .sin6_addr = in6addr_loopback};
    bool have = probe >= 0 && bind(probe, (struct sockaddr *)&loopback, sizeof loopback) == 0;
    close(probe);
    if (!have)
        skip();
    assert_true(equal(origin_of(AF_INET6, NULL), none)); /* ::1 is in ::/64 */
}

static void a_local_user_is_an_origin(void **state)
{
    int pair[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
    struct crowd_member member = crowd_member(pair[0]);
    uid_t uid;
    memcpy(&uid, member.origin.bytes, sizeof uid);
    assert_int_equal(uid, getuid());
    close(pair[0]), close(pair[1]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_oldest_of_the_most_numerous_goes),
        cmocka_unit_test(the_newcomer_counts_with_its_own),
        cmocka_unit_test(where_nobody_is_more_the_oldest_goes),
        cmocka_unit_test(who_may_not_be_asked_neither_goes_nor_counts),
        cmocka_unit_test(an_address_is_one_origin_whatever_the_port),
        cmocka_unit_test(of_an_ipv6_address_only_the_network_counts),
        cmocka_unit_test(a_local_user_is_an_origin),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
