/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/macro.h"
#include "net/frame.h"

#include <arpa/inet.h>
#include <errno.h>
#include <string.h>

static const uint8_t mac[MAC_SIZE] = {0x52, 0x54, 0x00, 0x12, 0x34, 0x56};
static const uint8_t other[MAC_SIZE] = {0x52, 0x54, 0x00, 0x00, 0x00, 0x01};

static struct address ipv4(const char *text)
{
    struct address address = {0};
    assert_int_equal(inet_pton(AF_INET, text, address.bytes), 1);
    return address;
}

static struct address ipv6(const char *text, bool router)
{
    struct address address = {.ipv6 = true, .router = router};
    assert_int_equal(inet_pton(AF_INET6, text, address.bytes), 1);
    return address;
}

static void assert_learns(const uint8_t *frame, size_t size, const struct address *wanted, bool wanted_plain)
{
    struct address address;
    bool plain;
    assert_true(frame_learn(mac, frame, size, &address, &plain));
    assert_memory_equal(address.bytes, wanted->bytes, 16);
    assert_int_equal(address.ipv6, wanted->ipv6);
    assert_int_equal(address.router, wanted->router);
    assert_int_equal(plain, wanted_plain);
}

static void assert_learns_nothing(const uint8_t *frame, size_t size)
{
    struct address address;
    bool plain;
    assert_false(frame_learn(mac, frame, size, &address, &plain));
}

/* --- built, byte by byte -------------------------------------------------------------------------------- */

static void rarp_is_as_qemus(void **state)
{
    static const uint8_t wanted[60] = {
        0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x52, 0x54, 0x00, 0x12,
        0x34, 0x56, 0x80, 0x35,                                     /* Ethernet, RARP */
        0x00, 0x01, 0x08, 0x00, 0x06, 0x04, 0x00, 0x03,             /* reverse request */
        0x52, 0x54, 0x00, 0x12, 0x34, 0x56, 0x00, 0x00, 0x00, 0x00, /* sender */
        0x52, 0x54, 0x00, 0x12, 0x34, 0x56, 0x00, 0x00, 0x00, 0x00, /* target */
    };
    uint8_t frame[FRAME_MAX];
    assert_int_equal(frame_rarp(mac, frame), sizeof wanted);
    assert_memory_equal(frame, wanted, sizeof wanted);
}

static void arp_announcement_as_a_request(void **state)
{
    static const uint8_t wanted[60] = {
        0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x52, 0x54, 0x00, 0x12,
        0x34, 0x56, 0x08, 0x06,                                  /* Ethernet, ARP */
        0x00, 0x01, 0x08, 0x00, 0x06, 0x04, 0x00, 0x01,          /* request */
        0x52, 0x54, 0x00, 0x12, 0x34, 0x56, 192,  0,    2,    7, /* sender */
        0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 192,  0,    2,    7, /* target */
    };
    uint8_t frame[FRAME_MAX];
    struct address address = ipv4("192.0.2.7");
    assert_int_equal(frame_arp(mac, &address, false, frame), sizeof wanted);
    assert_memory_equal(frame, wanted, sizeof wanted);
}

static void arp_announcement_as_a_reply(void **state)
{
    static const uint8_t wanted[60] = {
        0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x52, 0x54, 0x00, 0x12,
        0x34, 0x56, 0x08, 0x06,                                  /* Ethernet, ARP */
        0x00, 0x01, 0x08, 0x00, 0x06, 0x04, 0x00, 0x02,          /* reply */
        0x52, 0x54, 0x00, 0x12, 0x34, 0x56, 192,  0,    2,    7, /* sender */
        0x52, 0x54, 0x00, 0x12, 0x34, 0x56, 192,  0,    2,    7, /* target */
    };
    uint8_t frame[FRAME_MAX];
    struct address address = ipv4("192.0.2.7");
    assert_int_equal(frame_arp(mac, &address, true, frame), sizeof wanted);
    assert_memory_equal(frame, wanted, sizeof wanted);
}

static void neighbour_advertisement(void **state)
{
    static const uint8_t wanted[86] = {
        0x33, 0x33, 0x00, 0x00, 0x00, 0x01, 0x52, 0x54, 0x00, 0x12, 0x34, 0x56, 0x86, 0xdd, /* Ethernet, IPv6
                                                                                             */
        0x60, 0x00, 0x00, 0x00, 0x00, 0x20, 0x3a, 0xff, /* ICMPv6, hop limit 255 */
        0x20, 0x01, 0x0d, 0xb8, 0,    0,    0,    0,    0,    0,    0,    0,    0,    0,    0,
        7, /* from */
        0xff, 0x02, 0,    0,    0,    0,    0,    0,    0,    0,    0,    0,    0,    0,    0,
        1,                                              /* to all nodes */
        0x88, 0x00, 0x74, 0x63, 0x20, 0x00, 0x00, 0x00, /* override */
        0x20, 0x01, 0x0d, 0xb8, 0,    0,    0,    0,    0,    0,    0,    0,    0,    0,    0,
        7,                                              /* target */
        0x02, 0x01, 0x52, 0x54, 0x00, 0x12, 0x34, 0x56, /* its MAC */
    };
    uint8_t frame[FRAME_MAX];
    struct address address = ipv6("2001:db8::7", false);
    assert_int_equal(frame_advertisement(mac, &address, frame), sizeof wanted);
    assert_memory_equal(frame, wanted, sizeof wanted);
}

static void a_router_is_advertised_as_one(void **state)
{
    uint8_t frame[FRAME_MAX];
    struct address address = ipv6("fe80::1", true);
    frame_advertisement(mac, &address, frame);
    assert_int_equal(frame[14 + 40 + 4], 0x80 | 0x20);
}

/* --- learned -------------------------------------------------------------------------------------------- */

static void learns_from_what_it_builds(void **state)
{
    uint8_t frame[FRAME_MAX];
    struct address four = ipv4("192.0.2.7"), six = ipv6("2001:db8::7", false), router = ipv6("fe80::1", true);
    assert_learns(frame, frame_arp(mac, &four, false, frame), &four, false);
    assert_learns(frame, frame_arp(mac, &four, true, frame), &four, false);
    assert_learns(frame, frame_advertisement(mac, &six, frame), &six, false);
    assert_learns(frame, frame_advertisement(mac, &router, frame), &router, false);
    assert_learns_nothing(frame, frame_rarp(mac, frame));
}

static void every_shorter_frame_teaches_nothing(void **state)
{
    uint8_t frame[FRAME_MAX];
    struct address four = ipv4("192.0.2.7"), six = ipv6("2001:db8::7", false);
    frame_arp(mac, &four, false, frame);
    for (size_t size = 0; size < 14 + 28; size++)
        assert_learns_nothing(frame, size);
    frame_advertisement(mac, &six, frame);
    for (size_t size = 0; size < 14 + 40 + 24; size++)
        assert_learns_nothing(frame, size);
}

static void another_senders_frame_teaches_nothing(void **state)
{
    uint8_t frame[FRAME_MAX];
    struct address four = ipv4("192.0.2.7");
    assert_learns_nothing(frame, frame_arp(other, &four, false, frame));
}

static void an_arp_that_speaks_for_another_teaches_nothing(void **state)
{
    uint8_t frame[FRAME_MAX];
    struct address four = ipv4("192.0.2.7");
    size_t size = frame_arp(mac, &four, false, frame);
    memcpy(frame + 14 + 8, other, MAC_SIZE); /* proxy ARP */
    assert_learns_nothing(frame, size);
}

static void an_arp_probe_teaches_nothing(void **state)
{
    uint8_t frame[FRAME_MAX];
    struct address four = ipv4("192.0.2.7");
    size_t size = frame_arp(mac, &four, false, frame);
    memset(frame + 14 + 14, 0, 4);
    assert_learns_nothing(frame, size);
}

static void forwarded_neighbour_discovery_teaches_nothing(void **state)
{
    uint8_t frame[FRAME_MAX];
    struct address six = ipv6("2001:db8::7", false);
    size_t size = frame_advertisement(mac, &six, frame);
    frame[14 + 7] = 254;
    assert_learns_nothing(frame, size);
}

static void a_solicitation_teaches_its_source(void **state)
{
    uint8_t frame[FRAME_MAX];
    struct address six = ipv6("2001:db8::7", false), asked = ipv6("2001:db8::9", false);
    size_t size = frame_advertisement(mac, &asked, frame);
    frame[14 + 40] = 135;
    memcpy(frame + 14 + 8, six.bytes, 16);
    assert_learns(frame, size, &six, false);
}

static void a_router_advertisement_teaches_a_router(void **state)
{
    uint8_t frame[FRAME_MAX];
    struct address six = ipv6("fe80::1", false), router = ipv6("fe80::1", true);
    size_t size = frame_advertisement(mac, &six, frame);
    frame[14 + 40] = 134;
    assert_learns(frame, size, &router, false);
}

static void plain_ipv4_teaches_its_source(void **state)
{
    uint8_t frame[34] = {0};
    struct address four = ipv4("192.0.2.7");
    memcpy(frame + MAC_SIZE, mac, MAC_SIZE);
    frame[12] = 0x08;
    frame[14] = 0x45;
    memcpy(frame + 14 + 12, four.bytes, 4);
    assert_learns(frame, sizeof frame, &four, true);
}

/* --- addresses ------------------------------------------------------------------------------------------ */

static void addresses_no_guest_has_are_not_usable(void **state)
{
    static const char *const four[] = {"0.0.0.0", "0.1.2.3", "127.0.0.1", "224.0.0.1", "255.255.255.255"};
    static const char *const six[] = {"::", "::1", "ff02::1"};
    for (size_t i = 0; i < ARRAY_SIZE(four); i++) {
        struct address address = ipv4(four[i]);
        assert_false(address_usable(&address));
    }
    for (size_t i = 0; i < ARRAY_SIZE(six); i++) {
        struct address address = ipv6(six[i], false);
        assert_false(address_usable(&address));
    }
}

static void the_oldest_address_makes_room(void **state)
{
    struct addresses addresses = {0};
    for (unsigned i = 1; i <= ADDRESSES_MAX; i++)
        addresses_see(&addresses, &(struct address){.bytes = {10, 0, 0, (uint8_t)i}});
    addresses_see(&addresses,
                  &(struct address){.bytes = {10, 0, 0, 1}}); /* seen again: not the oldest any more */
    addresses_see(&addresses, &(struct address){.bytes = {10, 0, 0, 99}});
    assert_int_equal(addresses.count, ADDRESSES_MAX);
    assert_int_equal(addresses.list[0].bytes[3], 3);
    assert_int_equal(addresses.list[ADDRESSES_MAX - 2].bytes[3], 1);
    assert_int_equal(addresses.list[ADDRESSES_MAX - 1].bytes[3], 99);
}

static void a_router_stays_one(void **state)
{
    struct addresses addresses = {0};
    struct address router = ipv6("fe80::1", true), host = ipv6("fe80::1", false);
    addresses_see(&addresses, &router);
    addresses_see(&addresses, &host);
    assert_int_equal(addresses.count, 1);
    assert_true(addresses.list[0].router);
}

static void addresses_travel_as_json(void **state)
{
    struct addresses addresses = {0}, back;
    uint8_t back_mac[MAC_SIZE];
    struct address four = ipv4("192.0.2.7"), router = ipv6("fe80::1", true);
    addresses_see(&addresses, &four);
    addresses_see(&addresses, &router);
    _cleanup_json_ json_t *json = addresses_to_json("52:54:00:12:34:56", &addresses);
    assert_int_equal(addresses_from_json(json, back_mac, &back, NULL), 0);
    assert_memory_equal(back_mac, mac, MAC_SIZE);
    assert_memory_equal(&back, &addresses, sizeof back);
}

static void odd_json_is_refused(void **state)
{
    static const char *const texts[] = {
        "[]",
        "{}",
        "{\"mac\": \"52:54:00:12:34:56\"}",
        "{\"mac\": \"52:54:00:12:34\", \"addresses\": []}",
        "{\"mac\": 1, \"addresses\": []}",
        "{\"mac\": \"52:54:00:12:34:56\", \"addresses\": [1]}",
        "{\"mac\": \"52:54:00:12:34:56\", \"addresses\": [{\"address\": \"127.0.0.1\"}]}",
        "{\"mac\": \"52:54:00:12:34:56\", \"addresses\": [{\"address\": \"host.example\"}]}",
        "{\"mac\":\"52:54:00:12:34:56\",\"addresses\":[{},{},{},{},{},{},{},{},{},{},{},{},{},{},{},{},{}]}",
    };
    for (size_t i = 0; i < ARRAY_SIZE(texts); i++) {
        struct addresses addresses;
        uint8_t back_mac[MAC_SIZE];
        _cleanup_json_ json_t *json = json_loads(texts[i], 0, NULL);
        assert_non_null(json);
        assert_int_equal(addresses_from_json(json, back_mac, &addresses, NULL), -EINVAL);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rarp_is_as_qemus),
        cmocka_unit_test(arp_announcement_as_a_request),
        cmocka_unit_test(arp_announcement_as_a_reply),
        cmocka_unit_test(neighbour_advertisement),
        cmocka_unit_test(a_router_is_advertised_as_one),
        cmocka_unit_test(learns_from_what_it_builds),
        cmocka_unit_test(every_shorter_frame_teaches_nothing),
        cmocka_unit_test(another_senders_frame_teaches_nothing),
        cmocka_unit_test(an_arp_that_speaks_for_another_teaches_nothing),
        cmocka_unit_test(an_arp_probe_teaches_nothing),
        cmocka_unit_test(forwarded_neighbour_discovery_teaches_nothing),
        cmocka_unit_test(a_solicitation_teaches_its_source),
        cmocka_unit_test(a_router_advertisement_teaches_a_router),
        cmocka_unit_test(plain_ipv4_teaches_its_source),
        cmocka_unit_test(addresses_no_guest_has_are_not_usable),
        cmocka_unit_test(the_oldest_address_makes_room),
        cmocka_unit_test(a_router_stays_one),
        cmocka_unit_test(addresses_travel_as_json),
        cmocka_unit_test(odd_json_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
