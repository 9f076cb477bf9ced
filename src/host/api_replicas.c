/* SPDX-License-Identifier: Apache-2.0
 *
 * The copies of a VM, here and at peers.
 */
#include "base/json.h"
#include "base/macro.h"
#include "host/api.h"
#include "host/client.h"
#include "host/vm.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define ASK_MSEC 3000

static json_t *replica(const char *host, bool here, const char *state)
{
    return json_pack("{s:s, s:b, s:s, s:n, s:n, s:n, s:n}", "host", host, "here", here, "state", state,
                     "epoch", "allocated", "checkpoint", "error");
}

static int own_copy(struct host *host, const char *name, json_t *list, struct err *err)
{
    _cleanup_json_ json_t *vm = NULL;
    size_t index;
    json_t *disk;
    json_int_t allocated = 0;
    int r = vm_json(host, name, &vm, err);
    if (r < 0)
        return r;
    const char *role = json_str(vm, "role", ""), *state = json_str(vm, "state", "");
    bool owner = strcmp(role, "owner") == 0 || strcmp(role, "committed") == 0;
    bool whole = strcmp(role, "replica") == 0 && strcmp(state, "replica") == 0;
    json_t *copy = replica(host->options.name, true, owner ? "owner" : whole ? "replica" : "partial");
    json_array_foreach(json_object_get(vm, "disks"), index, disk) allocated +=
        json_integer_value(json_object_get(disk, "allocated"));
    json_object_set(copy, "epoch", json_object_get(vm, "epoch"));
    json_object_set_new(copy, "allocated", json_integer(allocated));
    json_object_set(copy, "checkpoint", json_object_get(vm, "checkpoint"));
    json_array_append_new(list, copy);
    return 0;
}

/* Takes the peer's own line under the name that it has here. */
static void take_answer(const struct client_call *call, json_t *list)
{
    const char *name = call->peer->name;
    if (call->r == 0) {
        json_t *line = json_deep_copy(json_array_get(json_object_get(call->answer, "replicas"), 0));
        const char *state = json_str(line, "state", "");
        bool sane =
            strcmp(state, "owner") == 0 || strcmp(state, "replica") == 0 || strcmp(state, "partial") == 0;
        json_t *copy = replica(name, false, sane ? state : "unreachable");
        static const char *const numbers[] = {"epoch", "allocated", "checkpoint"};
        for (size_t i = 0; i < ARRAY_SIZE(numbers); i++)
            if (json_is_integer(json_object_get(line, numbers[i])))
                json_object_set(copy, numbers[i], json_object_get(line, numbers[i]));
        json_array_append_new(list, copy);
        json_decref(line);
    } else if (call->r != -ENOENT) {
        json_t *copy = replica(name, false, "unreachable");
        json_object_set_new(copy, "error", err_to_json(&call->err));
        json_array_append_new(list, copy);
    }
}

static int peers_copies(struct host *host, const char *name, json_t *list, struct err *err)
{
    _cleanup_free_ struct peer *peers = NULL;
    char path[192];
    size_t count = 0;
    int r = peer_list(host->registry, &peers, &count, err);
    if (r < 0)
        return r;
    _cleanup_free_ struct client_call *calls = calloc(count + 1, sizeof *calls);
    if (!calls)
        return err_set(err, ENOMEM, "out of memory");
    snprintf(path, sizeof path, "/v1/vms/%.63s/replicas?here=true", name);
    for (size_t i = 0; i < count; i++)
        calls[i] = (struct client_call){.peer = &peers[i], .method = "GET", .path = path, .msec = ASK_MSEC};
    client_calls(host, calls, count);
    for (size_t i = 0; i < count; i++) {
        take_answer(&calls[i], list);
        json_decref(calls[i].answer);
    }
    return 0;
}

int api_replicas(struct host *host, struct request *request, struct answer *ret, struct err *err)
{
    const char *name = request->args[0];
    _cleanup_json_ json_t *list = json_array();
    struct err missing = ERR_NONE;
    bool here_only = request_flag(request, "here") || request->caller != CALLER_LOCAL;
    if (!peer_name_ok(name))
        return err_set(err, ENOENT, "\"%.100s\" is not a name", name);
    int r = own_copy(host, name, list, &missing);
    if (r < 0 && (r != -ENOENT || here_only)) {
        *err = missing;
        return r;
    }
    if (!here_only && (r = peers_copies(host, name, list, err)) < 0)
        return r;
    if (json_array_size(list) == 0) {
        *err = missing;
        return -ENOENT;
    }
    return answer_json(ret, 200, json_pack("{s:O}", "replicas", list));
}

static int drop(struct host *host, const char *name, bool force, struct err *err)
{
    struct epoch_record record;
    _cleanup_close_ int pidfd = -1;
    int r = vm_record(host, name, &record, err);
    if (r < 0)
        return r;
    if (record.role == EPOCH_OWNER || record.role == EPOCH_COMMITTED) {
        err_set(err, EBUSY, "\"%s\" on this host is %s", name,
                record.role == EPOCH_OWNER ? "the VM itself, not a copy"
                                           : "being handed over: it may be the only copy");
        return err_hint(err, record.role == EPOCH_OWNER ? "orai rm %s deletes the VM" : "orai recover %s",
                        name);
    }
    if (record.role == EPOCH_REPLICA && record.lent && !force) {
        err_set(err, EBUSY, "\"%s\" on %s still fetches blocks from this copy: nowhere else are they", name,
                record.peer.name);
        return err_hint(err, "wait until it has them all: orai status %s; if %s is lost for good, --force",
                        name, record.peer.name);
    }
    if (record.role == EPOCH_REPLICA)
        r = record.lent ? vm_end_lending(host, name, err) : vm_end_sharing(host, name, err);
    if (r < 0)
        return r;
    if (record.role == EPOCH_ARRIVING ||
        (vm_process(host, name, &pidfd) == 0 && !vm_process_ends(pidfd, VM_YIELD_MSEC))) {
        err_set(err, EBUSY, "a move of \"%s\" to here is under way", name);
        return err_hint(err, "orai cancel %s", name);
    }
    r = vm_dir_remove(host, name, err);
    if (r == 0)
        r = vm_forget(host->vms, name, err);
    if (r == 0)
        event_add(host->events, "vm.removed", name, json_pack("{s:b}", "replica", 1));
    return r;
}

int api_replica_drop(struct host *host, struct request *request, struct answer *ret, struct err *err)
{
    const char *name = request->args[0];
    int r = vm_lookup(host->vms, name, NULL, err);
    if (r == 0)
        r = vm_claim(host->vms, name, "being dropped", err);
    if (r < 0)
        return r;
    r = drop(host, name, request_flag(request, "force"), err);
    vm_release(host->vms, name);
    return r < 0 ? r : answer_ok(ret);
}
