/* SPDX-License-Identifier: Apache-2.0 */
#include "move/epoch.h"

#include "base/file.h"
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

static bool is_known(const struct fingerprint *fingerprint)
{
    static const struct fingerprint none;
    return !fingerprint_equal(fingerprint, &none);
}

static bool has_peer(const struct epoch_record *record)
{
    return record->peer.name[0] || is_known(&record->peer.fingerprint);
}

/* NULL when a name is not UTF-8 or memory is short: then nothing may be written. */
static json_t *record_to_json(const struct epoch_record *record)
{
    char move[ID_TEXT_SIZE], fingerprint[HASH_TEXT_SIZE], from[HASH_TEXT_SIZE];
    json_t *peer = has_peer(record)
                       ? json_pack("{s:s, s:s, s:i, s:s}", "name", record->peer.name, "address",
                                   record->peer.address, "port", (int)record->peer.port, "fingerprint",
                                   fingerprint_format(&record->peer.fingerprint, fingerprint))
                       : NULL;
    if (has_peer(record) && !peer)
        return NULL;
    return json_pack("{s:s, s:I, s:s, s:b, s:b, s:b, s:b, s:b, s:b, s:I, s:I, s:s, s:o*, s:s*}", "format",
                     EPOCH_FORMAT, "epoch", (json_int_t)record->epoch, "role", epoch_role_name(record->role),
                     "ready", record->ready, "guest_runs", record->guest_runs, "forked", record->forked,
                     "lent", record->lent, "borrowed", record->borrowed, "memory_away", record->memory_away,
                     "refused", (json_int_t)record->refused, "was", (json_int_t)record->was, "move",
                     id_format(&record->move, move), "peer", peer, "from",
                     is_known(&record->from) ? fingerprint_format(&record->from, from) : NULL);
}

static int peer_from_json(const json_t *json, struct epoch_record *record, struct err *err)
{
    const char *name, *address, *fingerprint;
    uint64_t port;
    int r = json_get_string(json, "name", "peer", &name, err);
    if (r < 0 || (r = json_get_string(json, "address", "peer", &address, err)) < 0 ||
        (r = json_get_string(json, "fingerprint", "peer", &fingerprint, err)) < 0 ||
        (r = json_get_u64(json, "port", "peer", &port, err)) < 0)
        return r;
    if (snprintf(record->peer.name, sizeof record->peer.name, "%s", name) >= (int)sizeof record->peer.name ||
        snprintf(record->peer.address, sizeof record->peer.address, "%s", address) >=
            (int)sizeof record->peer.address ||
        port > UINT16_MAX || fingerprint_parse(fingerprint, &record->peer.fingerprint) < 0)
        return err_set(err, EINVAL, "\"peer\" makes no sense");
    record->peer.port = (uint16_t)port;
    return 0;
}

static int from_from_json(const json_t *json, struct epoch_record *record, struct err *err)
{
    const char *from;
    int r = json_get_string(json, "from", "record", &from, err);
    if (r == 0 && fingerprint_parse(from, &record->from) < 0)
        r = err_set(err, EINVAL, "\"from\" is no fingerprint");
    return r;
}

/* Missing is `otherwise`; of another type is damage. */
static int get_bool(const json_t *json, const char *key, bool otherwise, bool *ret, struct err *err)
{
    const json_t *member = json_object_get(json, key);
    if (member && !json_is_boolean(member))
        return err_set(err, EINVAL, "\"%s\" must be true or false", key);
    *ret = member ? json_is_true(member) : otherwise;
    return 0;
}

static int numbers_from_json(const json_t *json, struct epoch_record *record, struct err *err)
{
    int r = json_get_u64(json, "epoch", "record", &record->epoch, err);
    if (r == 0 && json_object_get(json, "refused"))
        r = json_get_u64(json, "refused", "record", &record->refused, err);
    if (r == 0 && json_object_get(json, "was"))
        r = json_get_u64(json, "was", "record", &record->was, err);
    if (r == 0)
        r = json_get_id(json, "move", "record", &record->move, err);
    if (r == 0 && (record->epoch > EPOCH_MAX || record->refused > EPOCH_MAX || record->was > record->epoch))
        r = err_set(err, EINVAL, "no epoch is that large");
    return r;
}

static int record_from_json(const json_t *json, struct epoch_record *ret, struct err *err)
{
    struct epoch_record record = {0};
    const json_t *peer = json_object_get(json, "peer");
    if (strcmp(json_str(json, "format", ""), EPOCH_FORMAT) != 0)
        return err_set(err, EINVAL, "\"format\" is not \"%s\"", EPOCH_FORMAT);
    if (role_parse(json_str(json, "role", ""), &record.role) < 0)
        return err_set(err, EINVAL, "\"role\" is none that there is");
    int r = numbers_from_json(json, &record, err);
    if (r < 0 || (r = get_bool(json, "ready", false, &record.ready, err)) < 0 ||
        (r = get_bool(json, "guest_runs", true, &record.guest_runs, err)) < 0 ||
        (r = get_bool(json, "forked", false, &record.forked, err)) < 0 ||
        (r = get_bool(json, "lent", false, &record.lent, err)) < 0 ||
        (r = get_bool(json, "borrowed", false, &record.borrowed, err)) < 0 ||
        (r = get_bool(json, "memory_away", false, &record.memory_away, err)) < 0 ||
        (peer && (r = peer_from_json(peer, &record, err)) < 0) ||
        (json_object_get(json, "from") && (r = from_from_json(json, &record, err)) < 0))
        return r;
    bool asks = record.role == EPOCH_COMMITTED || (record.role == EPOCH_ARRIVING && record.ready);
    if (asks && !has_peer(&record))
        return err_set(err, EINVAL, "it does not say which host the other one is");
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
    if (r < 0)
        return r;
    /* What could not be read is not damaged: that error stays as it is. */
    void *text = NULL;
    size_t size;
    r = file_load(epoch->path, JSON_MAX_SIZE, &text, &size, err);
    if (r < 0)
        return r;
    struct err why = ERR_NONE;
    r = json_parse(text, size, "record", &json, &why);
    free(text);
    if (r == 0)
        r = record_from_json(json, &epoch->record, &why);
    if (r < 0) {
        err_set(err, EBADMSG, "%s is damaged (%.200s): it cannot be told which host may run this VM",
                epoch->path, why.text);
        return err_hint(err,
                        "find out on which host the VM ran last, then write that host's file anew by hand "
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
    if (access(epoch->path, F_OK) == 0)
        return err_set(err, EEXIST, "%s is there already", epoch->path);
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
    if (record->refused < epoch->record.refused)
        return err_set(err, EINVAL, "what was refused stays refused");
    if (record->epoch > EPOCH_MAX || record->refused > EPOCH_MAX)
        return err_set(err, EINVAL, "no epoch is as large as %llu", (unsigned long long)record->epoch);
    struct epoch_record new = *record; /* `record` may be the one inside `epoch` */
    _cleanup_json_ json_t *json = record_to_json(&new);
    if (!json)
        return err_set(err, EINVAL,
                       "the epoch record cannot be written as JSON: the peer's name is not UTF-8");
    int r = json_write_file(epoch->path, json, 0600, err);
    if (r < 0) {
        /* Perhaps only the folder could not be synced, and the file says something new already: put the old
         * one back. */
        _cleanup_json_ json_t *old = epoch->record.role ? record_to_json(&epoch->record) : NULL;
        if (old)
            json_write_file(epoch->path, old, 0600, NULL);
        return r;
    }
    epoch->record = new;
    return 0;
}
