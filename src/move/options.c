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

int move_on_timeout_parse(const char *name, enum move_on_timeout *ret)
{
    static const char *const names[] = {
        [MOVE_CANCEL] = "cancel", [MOVE_PAUSE] = "pause", [MOVE_FOLLOW] = "postcopy"};
    for (size_t i = 0; i < ARRAY_SIZE(names); i++)
        if (strcmp(names[i], name) == 0) {
            *ret = (enum move_on_timeout)i;
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
    static const char *const numbers[] = {"bandwidth", "max_blackout_ms", "timeout_ms", "connections",
                                          "throttle"};
    for (size_t i = 0; i < ARRAY_SIZE(numbers); i++) {
        const json_t *member = json_object_get(json, numbers[i]);
        if (member && (!json_is_integer(member) || json_integer_value(member) < 0))
            return err_set(err, EINVAL, "move: \"%s\" must be a whole number, not negative", numbers[i]);
    }
    static const char *const flags[] = {"dry_run", "compare", "verify_memory"};
    for (size_t i = 0; i < ARRAY_SIZE(flags); i++) {
        const json_t *member = json_object_get(json, flags[i]);
        if (member && !json_is_boolean(member))
            return err_set(err, EINVAL, "move: \"%s\" must be true or false", flags[i]);
    }
    static const char *const texts[] = {"on_timeout", "mode", "memory"};
    for (size_t i = 0; i < ARRAY_SIZE(texts); i++) {
        const json_t *member = json_object_get(json, texts[i]);
        if (member && !json_is_string(member))
            return err_set(err, EINVAL, "move: \"%s\" must be a string", texts[i]);
    }
    return 0;
}

static int check_ranges(const struct move_options *options, uint64_t connections, uint64_t throttle,
                        struct err *err)
{
    if (throttle > QEMU_THROTTLE_MAX)
        return err_set(err, EINVAL, "throttle must be 0 to %d percent", QEMU_THROTTLE_MAX);
    if (throttle && options->memory_later)
        return err_set(err, EINVAL,
                       "the guest is slowed down while its memory goes before it: not with memory postcopy");
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
        .verify_memory = json_bool(json, "verify_memory", false),
        .bandwidth = json_u64(json, "bandwidth", 0),
        .max_blackout_ms = json_u64(json, "max_blackout_ms", 300),
        .timeout_ms = json_u64(json, "timeout_ms", 0),
    };
    uint64_t connections = json_u64(json, "connections", 2), throttle = json_u64(json, "throttle", 0);
    const char *on_timeout = json_str(json, "on_timeout", "cancel");
    r = json_get_object(json, "peer", "move", &peer, err);
    if (r < 0 || (r = peer_from_json(peer, &options.peer, err)) < 0 ||
        (r = json_get_id(json, "move", "move", &options.move, err)) < 0)
        return r;
    if (move_on_timeout_parse(on_timeout, &options.on_timeout) < 0)
        return err_set(err, EINVAL, "on_timeout must be cancel, pause or postcopy, not \"%s\"", on_timeout);
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
    r = check_ranges(&options, connections, throttle, err);
    if (r < 0)
        return r;
    if (options.verify_memory &&
        (options.memory_later || (options.timeout_ms && options.on_timeout == MOVE_FOLLOW)))
        return err_set(err, EINVAL,
                       "memory is verified before the guest goes on: not where it follows the guest");
    options.connections = (unsigned)connections;
    options.throttle = (unsigned)throttle;
    *ret = options;
    return 0;
}
