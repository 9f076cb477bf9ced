/* SPDX-License-Identifier: Apache-2.0 */
#include "host/peer.h"

#include "base/json.h"
#include "base/macro.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

bool peer_name_ok(const char *name)
{
    size_t length = strlen(name);
    if (length == 0 || length >= PEER_NAME_SIZE || !isalnum((unsigned char)name[0]))
        return false;
    for (const char *c = name; *c; c++)
        if (!isalnum((unsigned char)*c) && !strchr("._-", *c))
            return false;
    return true;
}

bool peer_address_ok(const char *address)
{
    size_t length = strlen(address);
    if (length == 0 || length >= sizeof((struct peer *)0)->address)
        return false;
    for (const char *c = address; *c; c++)
        if (!isalnum((unsigned char)*c) && !strchr(".:-_", *c))
            return false;
    return true;
}

int peer_from_json(const json_t *row, struct peer *ret, struct err *err)
{
    struct peer peer = {0};
    uint64_t port = json_u64(row, "port", 0);
    const char *name = json_str(row, "name", ""), *address = json_str(row, "address", "");
    if (!peer_name_ok(name) || !peer_address_ok(address) || port < 1 || port > UINT16_MAX ||
        hex_parse(json_str(row, "fingerprint", ""), peer.fingerprint.bytes, HASH_SIZE) < 0)
        return err_set(err, EBADMSG, "the registry's entry for peer \"%.63s\" is damaged", name);
    snprintf(peer.name, sizeof peer.name, "%s", name);
    snprintf(peer.address, sizeof peer.address, "%s", address);
    snprintf(peer.since, sizeof peer.since, "%s", json_str(row, "since", ""));
    peer.port = (uint16_t)port;
    *ret = peer;
    return 0;
}

json_t *peer_to_json(const struct peer *peer)
{
    char fingerprint[HASH_TEXT_SIZE];
    hex_format(peer->fingerprint.bytes, HASH_SIZE, fingerprint);
    return json_pack("{s:s, s:s, s:i, s:s, s:s}", "name", peer->name, "address", peer->address, "port",
                     (int)peer->port, "fingerprint", fingerprint, "since", peer->since);
}

static int find(struct registry *registry, const char *column, const char *value, struct peer *ret,
                struct err *err)
{
    _cleanup_json_ json_t *row = NULL;
    int r = registry_get(registry, REGISTRY_PEERS, column, value, &row, err);
    return r < 0 ? r : peer_from_json(row, ret, err);
}

int peer_find(struct registry *registry, const char *name, struct peer *ret, struct err *err)
{
    int r = find(registry, "name", name, ret, err);
    if (r != -ENOENT)
        return r;
    err_set(err, ENOENT, "no peer is called \"%.100s\"", name);
    return err_hint(
        err,
        "orai peer invite, and on the other host: orai peer join TOKEN (orai peer list shows the peers)");
}

int peer_find_key(struct registry *registry, const struct fingerprint *key, struct peer *ret, struct err *err)
{
    char text[HASH_TEXT_SIZE];
    int r = find(registry, "fingerprint", hex_format(key->bytes, HASH_SIZE, text), ret, err);
    return r == -ENOENT ? err_set(err, ENOENT, "no peer has the fingerprint %s", text) : r;
}

int peer_list(struct registry *registry, struct peer **ret, size_t *ret_count, struct err *err)
{
    _cleanup_json_ json_t *rows = NULL;
    int r = registry_list(registry, REGISTRY_PEERS, &rows, err);
    if (r < 0)
        return r;
    size_t count = json_array_size(rows);
    _cleanup_free_ struct peer *peers = calloc(count + 1, sizeof *peers);
    if (!peers)
        return err_set(err, ENOMEM, "out of memory");
    for (size_t i = 0; i < count && r == 0; i++)
        r = peer_from_json(json_array_get(rows, i), &peers[i], err);
    if (r < 0)
        return r;
    *ret = TAKE_PTR(peers);
    *ret_count = count;
    return 0;
}
