/* SPDX-License-Identifier: Apache-2.0 */
#include "move/epoch.h"

#include "base/json.h"
#include "base/macro.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

#define EPOCH_FORMAT "orai-epoch-1"

struct epoch {
    struct epoch_record record;
    char path[PATH_MAX];
};

static const char *const role_names[] = {
    [EPOCH_OWNER] = "owner",
    [EPOCH_COMMITTED] = "committed",
    [EPOCH_REPLICA] = "replica",
    [EPOCH_ARRIVING] = "arriving",
};
static_assert(ARRAY_SIZE(role_names) == EPOCH_ARRIVING + 1, "a name for each role");

const char *epoch_role_name(enum epoch_role role)
{
    return role >= EPOCH_OWNER && role <= EPOCH_ARRIVING ? role_names[role] : "unknown";
}

static int role_parse(const char *name, enum epoch_role *ret)
{
    for (int role = EPOCH_OWNER; role <= EPOCH_ARRIVING; role++)
        if (strcmp(role_names[role], name) == 0) {
            *ret = (enum epoch_role)role;
            return 0;
        }
    return -EINVAL;
}

static json_t *record_to_json(const struct epoch_record *record)
{
    char move[ID_TEXT_SIZE], fingerprint[HASH_TEXT_SIZE];
    id_format(&record->move, move);
    hex_format(record->peer.fingerprint.bytes, HASH_SIZE, fingerprint);
    json_t *json = json_pack("{s:s, s:I, s:s, s:b, s:b, s:b, s:I, s:s}", "format", EPOCH_FORMAT, "epoch",
                             (json_int_t)record->epoch, "role", epoch_role_name(record->role), "ready", record->ready,
                             "guest_runs", record->guest_runs, "forked", record->forked, "refused", (json_int_t)record->refused, "move", move);
    if (record->peer.name[0])
        json_object_set_new(json, "peer",
                            json_pack("{s:s, s:s, s:i, s:s}", "name", record->peer.name, "address", record->peer.address,
                                      "port", (int)record->peer.port, "fingerprint", fingerprint));
    return json;
}

static int peer_from_json(const json_t *json, struct epoch_record *record)
{
    const char *name = json_str(json, "name", ""), *address = json_str(json, "address", "");
    uint64_t port = json_u64(json, "port", UINT64_MAX);
    if (snprintf(record->peer.name, sizeof record->peer.name, "%s", name) >= (int)sizeof record->peer.name ||
        snprintf(record->peer.address, sizeof record->peer.address, "%s", address) >= (int)sizeof record->peer.address ||
        port > UINT16_MAX)
        return -EINVAL;
    record->peer.port = (uint16_t)port;
    return hex_parse(json_str(json, "fingerprint", ""), record->peer.fingerprint.bytes, HASH_SIZE);
}

static int record_from_json(const json_t *json, struct epoch_record *ret)
{
    struct epoch_record record = {
        .epoch = json_u64(json, "epoch", 0),
        .ready = json_bool(json, "ready", false),
        .guest_runs = json_bool(json, "guest_runs", true),
        .forked = json_bool(json, "forked", false),
        .refused = json_u64(json, "refused", 0),
    };
    const json_t *peer = json_object_get(json, "peer");
    if (strcmp(json_str(json, "format", ""), EPOCH_FORMAT) != 0 || role_parse(json_str(json, "role", ""), &record.role) < 0 ||
        id_parse(json_str(json, "move", ""), &record.move) < 0 || (peer && peer_from_json(peer, &record) < 0))
        return -EINVAL;
    *ret = record;
    return 0;
}

static int epoch_new(const char *vm_dir, struct epoch **ret, struct err *err)
{
    struct epoch *epoch = calloc(1, sizeof *epoch);
    if (!epoch)
        return err_set(err, ENOMEM, "out of memory");
    if (snprintf(epoch->path, sizeof epoch->path, "%s/epoch.json", vm_dir) >= (int)sizeof epoch->path) {
        free(epoch);
        return err_set(err, ENAMETOOLONG, "path too long: %s", vm_dir);
    }
    *ret = epoch;
    return 0;
}

static void epoch_cleanup(struct epoch **epoch)
{
    epoch_free(*epoch);
}

int epoch_open(const char *vm_dir, struct epoch **ret, struct err *err)
{
    _cleanup_(epoch_cleanup) struct epoch *epoch = NULL;
    _cleanup_json_ json_t *json = NULL;
    int r = epoch_new(vm_dir, &epoch, err);
    if (r < 0 || (r = json_read_file(epoch->path, &json, err)) == -ENOENT)
        return r;
    if (r < 0 || record_from_json(json, &epoch->record) < 0) {
        err_set(err, EBADMSG, "%s is damaged: it cannot be told which host may run this VM", epoch->path);
        return err_hint(err, "find out on which host the VM ran last, then write that host's file anew by hand "
                             "(docs/formats.md, \"epoch.json\")");
    }
    *ret = TAKE_PTR(epoch);
    return 0;
}

int epoch_create(const char *vm_dir, const struct epoch_record *first, struct epoch **ret, struct err *err)
{
    _cleanup_(epoch_cleanup) struct epoch *epoch = NULL;
    int r = epoch_new(vm_dir, &epoch, err);
    if (r < 0)
        return r;
    r = epoch_set(epoch, first, err);
    if (r < 0)
        return r;
    *ret = TAKE_PTR(epoch);
    return 0;
}

void epoch_free(struct epoch *epoch)
{
    free(epoch);
}

const struct epoch_record *epoch_get(const struct epoch *epoch)
{
    return &epoch->record;
}

int epoch_set(struct epoch *epoch, const struct epoch_record *record, struct err *err)
{
    /* ARRIVING names the epoch that is hoped for: when the move fails, the record goes back below it. */
    if (record->epoch < epoch->record.epoch && epoch->record.role != EPOCH_ARRIVING)
        return err_set(err, EINVAL, "the epoch cannot go back from %llu to %llu",
                       (unsigned long long)epoch->record.epoch, (unsigned long long)record->epoch);
    struct epoch_record new = *record; /* `record` may be the one inside `epoch` */
    _cleanup_json_ json_t *json = record_to_json(&new);
    int r = json_write_file(epoch->path, json, 0600, err);
    if (r < 0)
        return r;
    epoch->record = new;
    return 0;
}
