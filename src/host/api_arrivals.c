/* SPDX-License-Identifier: Apache-2.0
 *
 * The destination's part of a move before orai-vm takes over: is there room for this VM here, and an orai-vm
 * that waits for it. The peer is one that we trust to have VMs, not one that may touch ours: only a replica,
 * nothing, or an old copy that someone ran here may be overwritten by what arrives.
 */
#include "base/clock.h"
#include "base/file.h"
#include "base/json.h"
#include "base/macro.h"
#include "host/api.h"
#include "host/join.h"
#include "host/vm.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define READY_MSEC 20000
#define YIELD_MSEC \
    12000 /* for an earlier try to go away: it may first have to notice that its source is gone */

struct arriving {
    struct id vm, move;
    const char *name;
    uint64_t epoch; /* the sender's */
};

static int read_arrival(const json_t *body, struct arriving *a, struct err *err)
{
    int r = json_get_id(body, "vm", "the request", &a->vm, err);
    if (r == 0)
        r = json_get_id(body, "move", "the request", &a->move, err);
    if (r == 0)
        r = body_name(body, "name", &a->name, err);
    if (r == 0)
        r = json_get_u64(body, "epoch", "the request", &a->epoch, err);
    if (r == 0 && (a->epoch == 0 || id_is_zero(&a->vm)))
        r = err_set(err, EINVAL, "the request's epoch and id must not be zero");
    return r;
}

/* What the VM is here, before it comes: the guest is at the peer, and this copy (nothing yet) is for deltas.
 */
static struct epoch_record first_record(const struct request *request, const struct arriving *a)
{
    const struct peer *peer = &request->peer;
    struct epoch_record record = {.epoch = a->epoch, .role = EPOCH_REPLICA};
    snprintf(record.peer.name, sizeof record.peer.name, "%s", peer->name);
    snprintf(record.peer.address, sizeof record.peer.address, "%s", peer->address);
    record.peer.port = peer->port;
    record.peer.fingerprint = peer->fingerprint;
    return record;
}

static int make_folder(struct host *host, const struct request *request, const struct arriving *a,
                       struct err *err)
{
    struct epoch_record record = first_record(request, a);
    struct epoch *epoch = NULL;
    char dir[PATH_MAX], final[PATH_MAX];
    struct err unused;
    vm_dir(host, a->name, final);
    if (access(final, F_OK) == 0)
        return err_set(err, EEXIST,
                       "there is a folder %s already, of which this host's registry knows nothing", final);
    int r = vm_dir_begin(host, a->name, dir, err);
    if (r < 0)
        return r;
    r = epoch_create(dir, &record, &epoch, err);
    epoch_free(epoch);
    if (r == 0)
        r = vm_dir_finish(host, a->name, err);
    if (r < 0)
        file_remove_tree(dir, &unused);
    else if ((r = vm_add(host->vms, a->name, &a->vm, err)) < 0)
        vm_dir_remove(host, a->name, &unused);
    return r;
}

/* A VM can be moved on only when it is whole. So one that comes from a later epoch than that of the blocks
 * that are lent here needs them no more, though nobody could tell us. */
static int check_lent(const struct arriving *a, const struct epoch_record *record, struct err *err)
{
    if (record->role != EPOCH_REPLICA || !record->lent || a->epoch > record->epoch)
        return 0;
    return err_set(err, EBUSY, "\"%s\" still lends blocks of its copy here to \"%s\"", a->name,
                   record->peer.name);
}

/* An earlier try that the same peer has given up: its orai-vm still waits. Or the one that has just sent the
 * VM away, and is about to end. */
static int end_earlier_try(struct host *host, const struct request *request, const struct arriving *a,
                           int pidfd, struct err *err)
{
    struct epoch_record record;
    _cleanup_json_ json_t *status = NULL;
    int r = vm_record(host, a->name, &record, err);
    if (r < 0)
        return r;
    bool lends = record.role == EPOCH_REPLICA && record.lent;
    if (record.role == EPOCH_REPLICA && !lends && (r = vm_end_sharing(host, a->name, err)) < 0)
        return r;
    if (lends && check_lent(a, &record, NULL) == 0)
        return vm_end_lending(host, a->name, err);
    if (record.role == EPOCH_REPLICA && vm_process_ends(pidfd, YIELD_MSEC))
        return 0;
    if (lends)
        return check_lent(a, &record, err);
    r = vm_ask(host, a->name, json_pack("{s:s}", "do", "status"), VM_TELL_MSEC, &status, err);
    if (r < 0)
        return vm_process_ends(pidfd, YIELD_MSEC) ? 0 : r;
    if (strcmp(json_str(status, "state", ""), "arriving") != 0)
        return err_set(err, EBUSY, "\"%s\" is %s here", a->name, json_str(status, "state", "unknown"));
    if (!fingerprint_equal(&record.peer.fingerprint, &request->key))
        return err_set(err, EBUSY, "\"%s\" is arriving here from \"%s\"", a->name, record.peer.name);
    r = vm_ask(host, a->name, json_pack("{s:s}", "do", "cancel"), VM_TELL_MSEC, NULL, err);
    if (vm_process_ends(pidfd, YIELD_MSEC)) /* also by itself, before it could answer */
        return 0;
    return r < 0
               ? r
               : err_set(err, EBUSY, "an earlier move of \"%s\" to here is still being cleaned up", a->name);
}

/* May what arrives take the place of what is here? */
static int check_role(struct host *host, const struct arriving *a, struct err *err)
{
    struct epoch_record record;
    int r = vm_record(host, a->name, &record, err);
    if (r < 0)
        return r;
    if (record.role == EPOCH_OWNER && !record.forked)
        return err_set(err, EEXIST, "\"%s\" belongs here: this host owns its epoch %llu", a->name,
                       (unsigned long long)record.epoch);
    if (record.role == EPOCH_COMMITTED || (record.role == EPOCH_ARRIVING && record.ready)) {
        err_set(err, EBUSY, "an earlier move of \"%s\" between here and \"%s\" is not finished", a->name,
                record.peer.name);
        return err_hint(err, "on %s: orai status %s, orai recover %s", host->options.name, a->name, a->name);
    }
    if ((r = check_lent(a, &record, err)) < 0)
        return r;
    if (record.role == EPOCH_REPLICA && a->epoch < record.epoch)
        return err_set(err, ESTALE,
                       "\"%s\" went on to epoch %llu, so epoch %llu that is offered is an old copy", a->name,
                       (unsigned long long)record.epoch, (unsigned long long)a->epoch);
    return 0;
}

static int make_room(struct host *host, const struct request *request, const struct arriving *a,
                     struct err *err)
{
    _cleanup_close_ int pidfd = -1;
    struct id here;
    char other[VM_NAME_SIZE];
    if (vm_lookup(host->vms, a->name, &here, err) < 0) {
        if (vm_name_of(host->vms, &a->vm, other) == 0)
            return err_set(err, EEXIST, "this VM is on %s already, under the name \"%s\"", host->options.name,
                           other);
        return make_folder(host, request, a, err);
    }
    if (!id_equal(&here, &a->vm)) {
        err_set(err, EEXIST, "another VM on %s is called \"%s\"", host->options.name, a->name);
        return err_hint(err, "remove that one, or create the VM anew under another name");
    }
    int r = vm_process(host, a->name, &pidfd) == 0 ? end_earlier_try(host, request, a, pidfd, err) : 0;
    return r < 0 ? r : check_role(host, a, err);
}

static int receive(struct host *host, const struct request *request, const struct arriving *a,
                   struct err *err)
{
    static const char *const waiting[] = {"arriving", NULL};
    struct vm_mode mode = {.name = "arrive", .source = &request->peer, .vm = a->vm};
    int pidfd = -1;
    int r = make_room(host, request, a, err);
    if (r == 0)
        r = vm_spawn(host, a->name, &mode, &pidfd, err);
    if (r == 0)
        r = vm_await(host, a->name, pidfd, waiting, clock_now() + READY_MSEC * NSEC_PER_MSEC, err);
    if (pidfd >= 0) {
        vm_note_arrival(host->vms, a->name, &a->move);
        vm_watch(host->vms, a->name, pidfd);
    }
    return r;
}

int api_arrive(struct host *host, struct request *request, struct answer *ret, struct err *err)
{
    static const char *const members[] = {"vm", "name", "move", "epoch", "protocol", NULL};
    struct arriving a = {0};
    char move[ID_TEXT_SIZE];
    int r = request_body(request, false, members, err);
    if (r == 0)
        r = protocol_check(json_object_get(request->body, "protocol"), request->peer.name, err);
    if (r == 0)
        r = read_arrival(request->body, &a, err);
    if (r == 0)
        r = vm_claim(host->vms, a.name, "arriving", err);
    if (r < 0)
        return r;
    r = receive(host, request, &a, err);
    vm_release(host->vms, a.name);
    return r < 0 ? r
                 : answer_json(ret, 201,
                               json_pack("{s:s, s:s, s:s}", "move", id_format(&a.move, move), "name", a.name,
                                         "host", host->options.name));
}

/* Without effect when that arrival is over, or never was: the peer only wants it gone. */
int api_arrival_cancel(struct host *host, struct request *request, struct answer *ret, struct err *err)
{
    struct epoch_record record;
    struct id move;
    char name[VM_NAME_SIZE];
    if (id_parse(request->args[0], &move) < 0)
        return err_set(err, EINVAL, "\"%.64s\" is no move's id", request->args[0]);
    if (vm_of_arrival(host->vms, &move, name) < 0 || vm_record(host, name, &record, err) < 0)
        return answer_ok(ret);
    if (!fingerprint_equal(&record.peer.fingerprint, &request->key))
        return err_set(err, EACCES, "that move comes from another host");
    int r = vm_ask(host, name, json_pack("{s:s}", "do", "cancel"), VM_TELL_MSEC, NULL, err);
    return r < 0 && r != -ENOTCONN && r != -EINVAL ? r : answer_ok(ret);
}
