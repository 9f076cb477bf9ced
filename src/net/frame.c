/* SPDX-License-Identifier: Apache-2.0 */
#include "net/frame.h"

#include "base/endian.h"

#include <string.h>

enum {
    ETHER_SIZE = 14,
    ARP_SIZE = 28,
    IPV4_SIZE = 20,
    IPV6_SIZE = 40,
    SHORTEST_FRAME = 60, /* Ethernet's minimum without its checksum */
    TYPE_IPV4 = 0x0800,
    TYPE_ARP = 0x0806,
    TYPE_RARP = 0x8035,
    TYPE_IPV6 = 0x86dd,
    ARP_REQUEST = 1,
    ARP_REPLY = 2,
    RARP_REQUEST = 3,
    PROTOCOL_ICMPV6 = 58,
    ROUTER_SOLICITATION = 133,
    ROUTER_ADVERTISEMENT = 134,
    NEIGHBOUR_SOLICITATION = 135,
    NEIGHBOUR_ADVERTISEMENT = 136,
    FLAG_ROUTER = 0x80,
    FLAG_OVERRIDE = 0x20,
    OPTION_TARGET_ADDRESS = 2,
};

static const uint8_t broadcast[MAC_SIZE] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff};

/* --- learning ------------------------------------------------------------------------------------------- */

static bool learn_arp(const uint8_t mac[MAC_SIZE], const uint8_t *arp, size_t size, struct address *ret)
{
    static const uint8_t ethernet_ipv4[] = {0, 1, 8, 0, 6, 4};
    if (size < ARP_SIZE || memcmp(arp, ethernet_ipv4, sizeof ethernet_ipv4) != 0)
        return false;
    if (memcmp(arp + 8, mac, MAC_SIZE) != 0)
        return false;
    *ret = (struct address){0};
    memcpy(ret->bytes, arp + 14, 4);
    return true;
}

static bool learn_ipv4(const uint8_t *ip, size_t size, struct address *ret)
{
    if (size < IPV4_SIZE || ip[0] >> 4 != 4)
        return false;
    *ret = (struct address){0};
    memcpy(ret->bytes, ip + 12, 4);
    return true;
}

/* Neighbour discovery only ever travels with hop limit 255, so no router has forwarded it. */
static bool learn_ipv6(const uint8_t *ip, size_t size, struct address *ret)
{
    if (size < IPV6_SIZE + 8 || ip[0] >> 4 != 6 || ip[6] != PROTOCOL_ICMPV6 || ip[7] != 255)
        return false;
    const uint8_t *icmp = ip + IPV6_SIZE;
    const uint8_t *source = ip + 8;
    *ret = (struct address){.ipv6 = true};
    switch (icmp[0]) {
    case ROUTER_ADVERTISEMENT:
        ret->router = true;
        break;
    case NEIGHBOUR_ADVERTISEMENT:
        if (size < IPV6_SIZE + 24)
            return false;
        source = icmp + 8; /* its target */
        ret->router = icmp[4] & FLAG_ROUTER;
        break;
    case ROUTER_SOLICITATION:
    case NEIGHBOUR_SOLICITATION:
        break;
    default:
        return false;
    }
    memcpy(ret->bytes, source, 16);
    return true;
}

bool frame_learn(const uint8_t mac[MAC_SIZE], const uint8_t *frame, size_t size, struct address *ret,
                 bool *ret_plain)
{
    struct address address;
    bool found = false;
    if (size < ETHER_SIZE || memcmp(frame + MAC_SIZE, mac, MAC_SIZE) != 0)
        return false;
    const uint8_t *payload = frame + ETHER_SIZE;
    unsigned type = get_be16(frame + 12);
    size -= ETHER_SIZE;
    if (type == TYPE_ARP)
        found = learn_arp(mac, payload, size, &address);
    else if (type == TYPE_IPV4)
        found = learn_ipv4(payload, size, &address);
    else if (type == TYPE_IPV6)
        found = learn_ipv6(payload, size, &address);
    if (!found || !address_usable(&address))
        return false;
    *ret = address;
    *ret_plain = type == TYPE_IPV4;
    return true;
}

/* --- announcing ----------------------------------------------------------------------------------------- */

static uint8_t *put_ether(uint8_t *frame, const uint8_t to[MAC_SIZE], const uint8_t from[MAC_SIZE],
                          uint16_t type)
{
    memset(frame, 0, FRAME_MAX);
    memcpy(frame, to, MAC_SIZE);
    memcpy(frame + MAC_SIZE, from, MAC_SIZE);
    put_be16(frame + 12, type);
    return frame + ETHER_SIZE;
}

static void put_arp(uint8_t *arp, uint16_t operation, const uint8_t sender[MAC_SIZE])
{
    put_be16(arp, 1);             /* Ethernet */
    put_be16(arp + 2, TYPE_IPV4); /* for IPv4 */
    arp[4] = MAC_SIZE;
    arp[5] = 4;
    put_be16(arp + 6, operation);
    memcpy(arp + 8, sender, MAC_SIZE);
}

size_t frame_rarp(const uint8_t mac[MAC_SIZE], uint8_t *frame)
{
    uint8_t *arp = put_ether(frame, broadcast, mac, TYPE_RARP);
    put_arp(arp, RARP_REQUEST, mac);
    memcpy(arp + 18, mac, MAC_SIZE);
    return SHORTEST_FRAME;
}

size_t frame_arp(const uint8_t mac[MAC_SIZE], const struct address *address, bool reply, uint8_t *frame)
{
    uint8_t *arp = put_ether(frame, broadcast, mac, TYPE_ARP);
    put_arp(arp, reply ? ARP_REPLY : ARP_REQUEST, mac);
    memcpy(arp + 14, address->bytes, 4);
    if (reply)
        memcpy(arp + 18, mac, MAC_SIZE); /* RFC 5944, 4.6; a request's target stays zero */
    memcpy(arp + 24, address->bytes, 4);
    return SHORTEST_FRAME;
}

/* The sum of RFC 1071 over `size` bytes (even), not yet folded. */
static uint32_t sum_words(const uint8_t *data, size_t size)
{
    uint32_t sum = 0;
    for (size_t i = 0; i < size; i += 2)
        sum += get_be16(data + i);
    return sum;
}

size_t frame_advertisement(const uint8_t mac[MAC_SIZE], const struct address *address, uint8_t *frame)
{
    enum { ICMP_SIZE = 32 };
    static const uint8_t all_nodes_mac[MAC_SIZE] = {0x33, 0x33, 0, 0, 0, 1};
    static const uint8_t all_nodes[16] = {0xff, 0x02, [15] = 1};
    uint8_t *ip = put_ether(frame, all_nodes_mac, mac, TYPE_IPV6);
    ip[0] = 6 << 4;
    put_be16(ip + 4, ICMP_SIZE);
    ip[6] = PROTOCOL_ICMPV6;
    ip[7] = 255;
    memcpy(ip + 8, address->bytes, 16);
    memcpy(ip + 24, all_nodes, 16);
    uint8_t *icmp = ip + IPV6_SIZE;
    icmp[0] = NEIGHBOUR_ADVERTISEMENT;
    icmp[4] = FLAG_OVERRIDE | (address->router ? FLAG_ROUTER : 0);
    memcpy(icmp + 8, address->bytes, 16);
    icmp[24] = OPTION_TARGET_ADDRESS;
    icmp[25] = 1; /* in units of 8 bytes */
    memcpy(icmp + 26, mac, MAC_SIZE);
    uint32_t sum = sum_words(ip + 8, 32) + ICMP_SIZE + PROTOCOL_ICMPV6 + sum_words(icmp, ICMP_SIZE);
    while (sum >> 16)
        sum = (sum & 0xffff) + (sum >> 16);
    put_be16(icmp + 2, (uint16_t)~sum);
    return FRAME_MAX;
}
