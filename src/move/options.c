/* SPDX-License-Identifier: Apache-2.0 */
#include "base/json.h"
#include "base/macro.h"
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

static const char *const mode_names[] = {
    [MOVE_PRECOPY] = "precopy", [MOVE_POSTCOPY] = "postcopy", [MOVE_HYBRID] = "hybrid", [MOVE_AUTO] = "auto"};

const char *move_mode_name(enum move_mode mode)
{
    return mode_names[mode];
}

int move_mode_parse(const char *name, enum move_mode *ret)
{
    for (size_t i = 0; i < ARRAY_SIZE(mode_names); i++)
        if (strcmp(mode_names[i], name) == 0) {
            *ret = (enum move_mode)i;
            return 0;
        }
    return -EINVAL;
}

#define MAX_MSEC UINT64_C(31536000000) /* a year; as nanoseconds it fits well */
#define MIN_BANDWIDTH 65536U           /* slower than the heartbeats need */

/* A member that is missing keeps its default; one of another type would be taken for missing, and a move be
 * made that nobody asked for. */
static int check_types(const json_t *json, struct err *err)
{
    static const char *const numbers[] = {"bandwidth", "max_blackout_ms", "timeout_ms", "connections"};
    for (size_t i = 0; i < ARRAY_SIZE(numbers); i++) {
        const json_t *member = json_object_get(json, numbers[i]);
        if (member && (!json_is_integer(member) || json_integer_value(member) < 0))
            return err_set(err, EINVAL, "move: \"%s\" must be a whole number, not negative", numbers[i]);
    }
    const json_t *dry_run = json_object_get(json, "dry_run"),
                 *on_timeout = json_object_get(json, "on_timeout"), *mode = json_object_get(json, "mode"),
                 *memory = json_object_get(json, "memory"), *compare = json_object_get(json, "compare");
    if (dry_run && !json_is_boolean(dry_run))
        return err_set(err, EINVAL, "move: \"dry_run\" must be true or false");
    if (compare && !json_is_boolean(compare))
        return err_set(err, EINVAL, "move: \"compare\" must be true or false");
    if (on_timeout && !json_is_string(on_timeout))
        return err_set(err, EINVAL, "move: \"on_timeout\" must be a string");
    if (mode && !json_is_string(mode))
        return err_set(err, EINVAL, "move: \"mode\" must be a string");
    if (memory && !json_is_string(memory))
        return err_set(err, EINVAL, "move: \"memory\" must be a string");
    return 0;
}

static int check_ranges(const struct move_options *options, uint64_t connections, struct err *err)
{
    if (connections < 1 || connections > MOVE_MAX_CONNECTIONS)
        return err_set(err, EINVAL, "connections must be 1 to %d", MOVE_MAX_CONNECTIONS);
    if (options->timeout_ms > MAX_MSEC || options->max_blackout_ms > MAX_MSEC)
        return err_set(err, EINVAL, "timeout_ms and max_blackout_ms must be at most a year");
    if (options->bandwidth && options->bandwidth < MIN_BANDWIDTH)
        return err_set(err, EINVAL, "bandwidth must be 0 (no limit) or at least %u bytes per second",
                       MIN_BANDWIDTH);
    return 0;
}

int move_options_from_json(const json_t *json, struct move_options *ret, struct err *err)
{
    json_t *peer;
    int r = check_types(json, err);
    if (r < 0)
        return r;
    struct move_options options = {
        .dry_run = json_bool(json, "dry_run", false),
        .compare = json_bool(json, "compare", false),
        .bandwidth = json_u64(json, "bandwidth", 0),
        .max_blackout_ms = json_u64(json, "max_blackout_ms", 300),
        .timeout_ms = json_u64(json, "timeout_ms", 0),
    };
    uint64_t connections = json_u64(json, "connections", 2);
    const char *on_timeout = json_str(json, "on_timeout", "cancel");
    r = json_get_object(json, "peer", "move", &peer, err);
    if (r < 0 || (r = peer_from_json(peer, &options.peer, err)) < 0 ||
        (r = json_get_id(json, "move", "move", &options.move, err)) < 0)
        return r;
    r = check_ranges(&options, connections, err);
    if (r < 0)
        return r;
    if (strcmp(on_timeout, "cancel") != 0 && strcmp(on_timeout, "pause") != 0)
        return err_set(err, EINVAL, "on_timeout must be \"cancel\" or \"pause\", not \"%s\"", on_timeout);
    if (move_mode_parse(json_str(json, "mode", "auto"), &options.mode) < 0)
        return err_set(err, EINVAL, "mode must be precopy, postcopy, hybrid or auto, not \"%s\"",
                       json_str(json, "mode", ""));
    if (options.compare && (options.mode == MOVE_POSTCOPY || options.mode == MOVE_HYBRID))
        return err_set(err, EINVAL, "copies are compared before the switch: not in mode %s",
                       move_mode_name(options.mode));
    const char *memory = json_str(json, "memory", "precopy");
    options.memory_later = strcmp(memory, "postcopy") == 0;
    if (!options.memory_later && strcmp(memory, "precopy") != 0)
        return err_set(err, EINVAL, "memory must be precopy or postcopy, not \"%s\"", memory);
    options.connections = (unsigned)connections;
    options.pause_on_timeout = strcmp(on_timeout, "pause") == 0;
    *ret = options;
    return 0;
}
