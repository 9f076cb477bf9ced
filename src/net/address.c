/* SPDX-License-Identifier: Apache-2.0 */
#include "net/address.h"

#include "base/id.h"
#include "base/json.h"
#include "base/macro.h"

#include <arpa/inet.h>
#include <errno.h>
#include <string.h>

int mac_parse(const char *text, uint8_t ret[MAC_SIZE])
{
    char digits[2 * MAC_SIZE + 1] = "";
    if (!text || strlen(text) != 3 * MAC_SIZE - 1)
        return -EINVAL;
    for (size_t i = 0; i < MAC_SIZE; i++) {
        if (i > 0 && text[3 * i - 1] != ':')
            return -EINVAL;
        memcpy(&digits[2 * i], &text[3 * i], 2);
    }
    return hex_parse(digits, ret, MAC_SIZE);
}

bool address_usable(const struct address *address)
{
    static const uint8_t loopback[16] = {[15] = 1}, unspecified[16];
    const uint8_t *b = address->bytes;
    if (address->ipv6)
        return b[0] != 0xff && memcmp(b, unspecified, 16) != 0 && memcmp(b, loopback, 16) != 0;
    return b[0] != 0 && b[0] != 127 && b[0] < 224;
}

static bool same(const struct address *a, const struct address *b)
{
    return a->ipv6 == b->ipv6 && memcmp(a->bytes, b->bytes, a->ipv6 ? 16 : 4) == 0;
}

void addresses_see(struct addresses *addresses, const struct address *address)
{
    struct address seen = *address;
    size_t at = 0;
    while (at < addresses->count && !same(&addresses->list[at], &seen))
        at++;
    if (at < addresses->count)
        seen.router |= addresses->list[at].router;
    else if (addresses->count < ADDRESSES_MAX)
        addresses->count++;
    else
        at = 0;
    size_t last = addresses->count - 1;
    memmove(&addresses->list[at], &addresses->list[at + 1], (last - at) * sizeof seen);
    addresses->list[last] = seen;
}

bool addresses_have_ipv4(const struct addresses *addresses)
{
    for (size_t i = 0; i < addresses->count; i++)
        if (!addresses->list[i].ipv6)
            return true;
    return false;
}

json_t *addresses_to_json(const char *mac, const struct addresses *addresses)
{
    json_t *list = json_array();
    for (size_t i = 0; i < addresses->count; i++) {
        const struct address *a = &addresses->list[i];
        char text[INET6_ADDRSTRLEN];
        inet_ntop(a->ipv6 ? AF_INET6 : AF_INET, a->bytes, text, sizeof text);
        json_t *entry = json_pack("{s:s}", "address", text);
        if (a->router)
            json_object_set_new(entry, "router", json_true());
        json_array_append_new(list, entry);
    }
    return json_pack("{s:s, s:o}", "mac", mac, "addresses", list);
}

static int read_address(const json_t *json, struct address *ret, struct err *err)
{
    struct address address = {.router = json_bool(json, "router", false)};
    const char *text = json_str(json, "address", "");
    if (inet_pton(AF_INET6, text, address.bytes) == 1)
        address.ipv6 = true;
    else if (inet_pton(AF_INET, text, address.bytes) != 1)
        return err_set(err, EINVAL, "a guest's addresses: \"%.40s\" is none", text);
    if (!address_usable(&address))
        return err_set(err, EINVAL, "a guest's addresses: %s cannot be one", text);
    *ret = address;
    return 0;
}

int addresses_from_json(const json_t *json, uint8_t ret_mac[MAC_SIZE], struct addresses *ret, struct err *err)
{
    struct addresses addresses = {0};
    uint8_t mac[MAC_SIZE];
    json_t *list;
    if (mac_parse(json_str(json, "mac", ""), mac) < 0)
        return err_set(err, EINVAL, "a guest's addresses: \"mac\" is missing or malformed");
    int r = json_get_array(json, "addresses", "a guest's addresses", &list, err);
    if (r < 0)
        return r;
    if (json_array_size(list) > ADDRESSES_MAX)
        return err_set(err, EINVAL, "a guest's addresses: more than %d for one NIC", ADDRESSES_MAX);
    for (size_t i = 0; i < json_array_size(list); i++) {
        struct address address;
        r = read_address(json_array_get(list, i), &address, err);
        if (r < 0)
            return r;
        addresses_see(&addresses, &address);
    }
    memcpy(ret_mac, mac, MAC_SIZE);
    *ret = addresses;
    return 0;
}
