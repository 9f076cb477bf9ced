/* SPDX-License-Identifier: Apache-2.0 */
#include "base/json.h"
#include "move/move.h"
#include "move/session.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

static int peer_from_json(const json_t *json, struct move_peer *ret, struct err *err)
{
    const char *name, *address, *fingerprint;
    uint64_t port;
    int r = json_get_string(json, "name", "peer", &name, err);
    if (r < 0 || (r = json_get_string(json, "address", "peer", &address, err)) < 0 ||
        (r = json_get_string(json, "fingerprint", "peer", &fingerprint, err)) < 0 ||
        (r = json_get_u64(json, "port", "peer", &port, err)) < 0)
        return r;
    if (port == 0 || port > UINT16_MAX || hex_parse(fingerprint, ret->fingerprint.bytes, HASH_SIZE) < 0 ||
        snprintf(ret->name, sizeof ret->name, "%s", name) >= (int)sizeof ret->name ||
        snprintf(ret->address, sizeof ret->address, "%s", address) >= (int)sizeof ret->address)
        return err_set(err, EINVAL, "peer: port, fingerprint, name or address makes no sense");
    ret->port = (uint16_t)port;
    return 0;
}

int move_options_from_json(const json_t *json, struct move_options *ret, struct err *err)
{
    json_t *peer;
    struct move_options options = {
        .dry_run = json_bool(json, "dry_run", false),
        .bandwidth = json_u64(json, "bandwidth", 0),
        .max_blackout_ms = json_u64(json, "max_blackout_ms", 300),
        .timeout_ms = json_u64(json, "timeout_ms", 0),
    };
    uint64_t connections = json_u64(json, "connections", 2);
    const char *on_timeout = json_str(json, "on_timeout", "cancel");
    int r = json_get_object(json, "peer", "move", &peer, err);
    if (r < 0 || (r = peer_from_json(peer, &options.peer, err)) < 0 ||
        (r = json_get_id(json, "move", "move", &options.move, err)) < 0)
        return r;
    if (connections < 1 || connections > MOVE_MAX_CONNECTIONS)
        return err_set(err, EINVAL, "connections must be 1 to %d", MOVE_MAX_CONNECTIONS);
    if (strcmp(on_timeout, "cancel") != 0 && strcmp(on_timeout, "pause") != 0)
        return err_set(err, EINVAL, "on_timeout must be \"cancel\" or \"pause\", not \"%s\"", on_timeout);
    options.connections = (unsigned)connections;
    options.pause_on_timeout = strcmp(on_timeout, "pause") == 0;
    *ret = options;
    return 0;
}
