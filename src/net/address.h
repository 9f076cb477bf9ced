/* SPDX-License-Identifier: Apache-2.0
 *
 * address: the addresses that one NIC of a guest was seen to use. Small and bounded: a guest with more than
 * ADDRESSES_MAX keeps the ones used last. Its JSON travels with a move:
 *   {"mac": "52:54:..", "addresses": [{"address": "192.0.2.7"}, {"address": "fe80::1", "router": true}]}
 */
#pragma once

#include "base/err.h"

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define MAC_SIZE 6
#define ADDRESSES_MAX 16

struct address {
    bool ipv6;
    bool router;       /* IPv6: it called itself one (RFC 4861), and must not be announced as a mere host */
    uint8_t bytes[16]; /* IPv4: the first four, the others zero */
};

struct addresses {
    size_t count;
    struct address list[ADDRESSES_MAX]; /* the one seen last comes last */
};

/* "52:54:00:12:34:56"; 0 or -EINVAL. */
int mac_parse(const char *text, uint8_t ret[MAC_SIZE]);

/* Can a guest be announced with it? Not the unspecified one, loopback or multicast. */
bool address_usable(const struct address *address);
/* Adds it, or makes it the newest. A router stays one. */
void addresses_see(struct addresses *addresses, const struct address *address);
bool addresses_have_ipv4(const struct addresses *addresses);

json_t *addresses_to_json(const char *mac, const struct addresses *addresses);
/* The JSON may come from a peer. */
int addresses_from_json(const json_t *json, uint8_t ret_mac[MAC_SIZE], struct addresses *ret,
                        struct err *err);
