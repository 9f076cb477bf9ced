/* SPDX-License-Identifier: Apache-2.0
 *
 * Moves as oraid sees them: it prepares the destination, hands the move to orai-vm, and watches
 * (vm_keeper.c). The move itself runs between the two orai-vm and does not need oraid. The operation's id is
 * the move's.
 */
#include "base/clock.h"
#include "base/json.h"
#include "base/log.h"
#include "base/macro.h"
#include "host/api.h"
#include "host/client.h"
#include "host/join.h"
#include "host/verify.h"
#include "host/vm.h"
#include "move/move.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

/* The other oraid waits for the end of an earlier try, and starts an orai-vm: longer than it may take for
 * both, so that what it says in the end is heard. */
#define ARRIVAL_MSEC 60000
#define WAIT_NSEC (NSEC_PER_SEC / 4)
#define MAX_BLACKOUT_MSEC 3600000                       /* an hour */
#define MAX_TIMEOUT_MSEC (UINT64_C(365) * 24 * 3600000) /* a year */

/* --- departure ------------------------------------------------------------------------------------------ */

struct departing {
    struct host *host;
    char name[VM_NAME_SIZE];
    struct id vm, move;
    uint64_t epoch;
    struct peer peer;
    json_t *options; /* of the request, as orai-vm takes them */
};

static void departing_free(struct departing *d)
{
    json_decref(d->options);
    free(d);
}

static int check_cancelled(const struct departing *d, struct err *err)
{
    if (!vm_move_cancelled(d->host->vms, d->name))
        return 0;
    return err_set(err, ECANCELED, "the move was cancelled before it began");
}

static int announce(struct departing *d, struct err *err)
{
    char vm[ID_TEXT_SIZE], move[ID_TEXT_SIZE];
    _cleanup_json_ json_t *body =
        json_pack("{s:s, s:s, s:s, s:I, s:o}", "vm", id_format(&d->vm, vm), "name", d->name, "move",
                  id_format(&d->move, move), "epoch", (json_int_t)d->epoch, "protocol", protocol_range());
    struct client_call call = {
        .peer = &d->peer, .method = "POST", .path = "/v1/arrivals", .body = body, .msec = ARRIVAL_MSEC};
    int r = client_call(d->host, &call);
    json_decref(call.answer);
    if (r < 0)
        *err = call.err;
    return r;
}

/* The destination would give up by itself after a while; this is quicker. */
static void take_back(struct departing *d)
{
    char path[64], move[ID_TEXT_SIZE];
    snprintf(path, sizeof path, "/v1/arrivals/%s", id_format(&d->move, move));
    struct client_call call = {.peer = &d->peer, .method = "DELETE", .path = path, .msec = CLIENT_MSEC};
    if (client_call(d->host, &call) < 0)
        log_info("%s: \"%s\" was not told that the move is off: %s", d->name, d->peer.name, call.err.text);
    json_decref(call.answer);
}

static int hand_over(struct departing *d, struct err *err)
{
    char move[ID_TEXT_SIZE], key[HASH_TEXT_SIZE];
    json_t *request = json_deep_copy(d->options);
    json_object_set_new(request, "do", json_string("move"));
    json_object_set_new(request, "move", json_string(id_format(&d->move, move)));
    json_object_set_new(request, "peer",
                        json_pack("{s:s, s:s, s:i, s:s}", "name", d->peer.name, "address", d->peer.address,
                                  "port", (int)d->peer.port, "fingerprint",
                                  fingerprint_format(&d->peer.fingerprint, key)));
    return vm_ask(d->host, d->name, request, VM_TELL_MSEC, NULL, err);
}

/* A VM whose disks are still on two hosts goes on when they are here: a third host would depend on two. */
static int wait_whole(struct departing *d, struct err *err)
{
    for (int r;;) {
        _cleanup_json_ json_t *status = NULL;
        if ((r = check_cancelled(d, err)) == 0)
            r = vm_ask(d->host, d->name, json_pack("{s:s}", "do", "status"), VM_TELL_MSEC, &status, err);
        if (r < 0)
            return r;
        const json_t *borrows = json_object_get(status, "borrows");
        if (!json_is_object(borrows) || strcmp(json_str(borrows, "state", ""), "fetching") != 0)
            return 0;
        operation_progress(d->host->operations, &d->move,
                           json_pack("{s:s, s:s, s:s, s:s, s:O}", "role", "source", "stage", "wait", "phase",
                                     "disk", "state", "running", "borrows", borrows));
        clock_sleep(WAIT_NSEC);
    }
}

/* From orai-vm's "ok" on the keeper follows the move and ends the operation. */
static void depart(void *arg)
{
    struct departing *d = arg;
    struct err err = ERR_NONE;
    int r = wait_whole(d, &err);
    if (r == 0)
        r = announce(d, &err);
    if (r == 0) {
        if ((r = check_cancelled(d, &err)) == 0)
            r = hand_over(d, &err);
        if (r < 0)
            take_back(d);
        else if (vm_move_cancelled(d->host->vms, d->name)) /* it came between check and hand-over */
            vm_ask(d->host, d->name, json_pack("{s:s}", "do", "cancel"), VM_TELL_MSEC, NULL, &err);
    }
    vm_release(d->host->vms, d->name);
    if (r < 0) {
        err_where(&err, d->host->options.name, "prepare");
        vm_end_move(d->host->vms, d->name, &d->move);
        operation_end(d->host->operations, &d->move, NULL, &err);
    }
    departing_free(d);
}

/* Only a VM that runs here can leave. */
static int check_movable(struct departing *d, struct err *err)
{
    struct epoch_record record;
    _cleanup_json_ json_t *status = NULL;
    int r = vm_record(d->host, d->name, &record, err);
    if (r < 0)
        return r;
    if (record.role == EPOCH_REPLICA) {
        err_set(err, EBUSY, "\"%s\" is on %s; here is only a copy of it", d->name, record.peer.name);
        return err_hint(err, "give the command on %s", record.peer.name);
    }
    d->epoch = record.epoch;
    r = vm_ask(d->host, d->name, json_pack("{s:s}", "do", "status"), VM_TELL_MSEC, &status, err);
    if (r == -ENOTCONN) {
        err_set(err, EBUSY, "\"%s\" does not run: only a running VM can be moved", d->name);
        return err_hint(err, "orai start %s", d->name);
    }
    return r;
}

/* What cannot be where memory follows the guest. The members' types are as they should be. */
static int check_memory(const json_t *body, const char *memory, enum move_on_timeout policy, struct err *err)
{
    bool later = strcmp(memory, "postcopy") == 0,
         may_follow = later || (policy == MOVE_FOLLOW && json_u64(body, "timeout_ms", 0) > 0);
    if (!later && strcmp(memory, "precopy") != 0)
        return err_set(err, EINVAL, "\"memory\" must be \"precopy\" or \"postcopy\"");
    if (later && json_u64(body, "throttle", 0) > 0)
        return err_set(err, EINVAL,
                       "\"throttle\" is for memory that goes before the guest: not with \"postcopy\"");
    if (may_follow && json_bool(body, "verify_memory", false))
        return err_set(err, EINVAL,
                       "\"verify_memory\" is done before the guest goes on: not where memory follows it");
    return 0;
}

static int read_move(struct departing *d, const json_t *body, struct err *err)
{
    static const char *const plain[] = {"mode",        "memory",          "dry_run",      "compare",
                                        "bandwidth",   "max_blackout_ms", "timeout_ms",   "on_timeout",
                                        "connections", "throttle",        "verify_memory"};
    const char *to = NULL, *on_timeout = "cancel", *mode = "auto", *memory = "precopy";
    enum move_mode parsed;
    enum move_on_timeout policy = MOVE_CANCEL;
    uint64_t number = 0;
    bool flag = false, compare = false;
    int r = body_name(body, "to", &to, err);
    if (r == 0)
        r = body_flag(body, "dry_run", &flag, err);
    if (r == 0)
        r = body_flag(body, "compare", &compare, err);
    if (r == 0)
        r = body_flag(body, "verify_memory", &flag, err);
    if (r == 0)
        r = body_number(body, "bandwidth", 0, INT64_MAX, &number, err);
    if (r == 0)
        r = body_number(body, "max_blackout_ms", 1, MAX_BLACKOUT_MSEC, &number, err);
    if (r == 0)
        r = body_number(body, "timeout_ms", 0, MAX_TIMEOUT_MSEC, &number, err);
    if (r == 0)
        r = body_number(body, "connections", 1, 8, &number, err);
    if (r == 0)
        r = body_number(body, "throttle", 0, QEMU_THROTTLE_MAX, &number, err);
    if (r == 0)
        r = body_string(body, "on_timeout", &on_timeout, err);
    if (r == 0 && move_on_timeout_parse(on_timeout, &policy) < 0)
        r = err_set(err, EINVAL, "\"on_timeout\" must be \"cancel\", \"pause\" or \"postcopy\"");
    if (r == 0)
        r = body_string(body, "mode", &mode, err);
    if (r == 0 && move_mode_parse(mode, &parsed) < 0)
        r = err_set(err, EINVAL, "\"mode\" must be \"precopy\", \"postcopy\", \"hybrid\" or \"auto\"");
    if (r == 0 && compare && (parsed == MOVE_POSTCOPY || parsed == MOVE_HYBRID))
        r = err_set(err, EINVAL, "\"compare\" is done before the switch: not in mode \"%s\"", mode);
    if (r == 0)
        r = body_string(body, "memory", &memory, err);
    if (r == 0)
        r = check_memory(body, memory, policy, err);
    if (r < 0)
        return r;
    if (strcmp(to, d->host->options.name) == 0)
        return err_set(err, EINVAL, "\"%s\" is on %s already: that is this host", d->name, to);
    d->options = json_object();
    for (size_t i = 0; i < ARRAY_SIZE(plain); i++)
        if (json_object_get(body, plain[i]))
            json_object_set(d->options, plain[i], json_object_get(body, plain[i]));
    return peer_find(d->host->registry, to, &d->peer, err);
}

/* After this the job owns `d`. */
static int begin_move(struct departing *d, struct err *err)
{
    struct host *host = d->host;
    int r = vm_begin_move(host->vms, d->name, &d->move, err);
    if (r < 0)
        return r;
    r = vm_claim(host->vms, d->name, "about to move", err);
    if (r == 0) {
        r = operation_begin(host->operations, &d->move, "move", d->name, err);
        if (r == 0 && (r = pool_run(host->jobs, depart, d, err)) < 0)
            operation_end(host->operations, &d->move, NULL, err);
        if (r < 0)
            vm_release(host->vms, d->name);
    }
    if (r < 0)
        vm_end_move(host->vms, d->name, &d->move);
    return r;
}

int api_vm_move(struct host *host, struct request *request, struct answer *ret, struct err *err)
{
    static const char *const members[] = {
        "to",         "mode",       "memory",      "dry_run", "bandwidth", "max_blackout_ms",
        "timeout_ms", "on_timeout", "connections", "compare", "throttle",  "verify_memory",
        NULL};
    struct departing *d = calloc(1, sizeof *d);
    if (!d)
        return err_set(err, ENOMEM, "out of memory");
    d->host = host;
    struct id move = d->move = id_random();
    snprintf(d->name, sizeof d->name, "%.63s", request->args[0]);
    int r = request_body(request, false, members, err);
    if (r == 0)
        r = vm_lookup(host->vms, request->args[0], &d->vm, err);
    if (r == 0)
        r = read_move(d, request->body, err);
    if (r == 0)
        r = check_movable(d, err);
    if (r == 0)
        r = begin_move(d, err);
    if (r < 0) {
        departing_free(d);
        return r;
    }
    return answer_operation(host, &move, ret, err);
}

/* --- status, cancel, recover ---------------------------------------------------------------------------- */

/* With the newest operation of that kind. */
static int answer_status(struct host *host, const char *name, const char *kind, struct answer *ret,
                         struct err *err)
{
    _cleanup_json_ json_t *vm = NULL;
    json_t *operation = NULL;
    int r = vm_json(host, name, &vm, err);
    if (r == 0)
        r = operation_newest(host->operations, kind, name, &operation, err);
    return r < 0 ? r : answer_json(ret, 200, json_pack("{s:O, s:o?}", "vm", vm, "operation", operation));
}

int api_vm_status(struct host *host, struct request *request, struct answer *ret, struct err *err)
{
    return answer_status(host, request->args[0], "move", ret, err);
}

int api_vm_cancel(struct host *host, struct request *request, struct answer *ret, struct err *err)
{
    const char *name = request->args[0];
    int r = vm_lookup(host->vms, name, NULL, err);
    if (r < 0)
        return r;
    bool comparison = operation_cancel(host->operations, VERIFY_KIND, name);
    bool from_here = vm_cancel_move(host->vms, name); /* in case orai-vm has not heard of it yet */
    r = vm_ask(host, name, json_pack("{s:s}", "do", "cancel"), VM_TELL_MSEC, NULL, err);
    if (r < 0 && !((from_here || comparison) && (r == -EINVAL || r == -ENOTCONN))) {
        if (r != -EINVAL && r != -ENOTCONN)
            return r;
        return err_set(err, EBUSY, "no move of \"%s\" is under way, and no comparison", name);
    }
    return answer_status(host, name, r < 0 && !from_here ? VERIFY_KIND : "move", ret, err);
}

/* An orai-vm that was given up is tried again first: it alone can finish what is open. */
static int revive(struct host *host, const char *name, struct err *err)
{
    struct epoch_record record;
    char reason[256];
    int pidfd = -1;
    int r = vm_record(host, name, &record, err);
    if (r < 0)
        return r;
    bool open = record.role == EPOCH_COMMITTED || record.role == EPOCH_ARRIVING;
    if (!open && vm_qemu(host, name, &pidfd) < 0 && !vm_sorrow(host->vms, name, reason)) {
        bool owner = record.role == EPOCH_OWNER;
        r = err_set(err, EBUSY, "there is nothing to recover: \"%s\" is %s here", name,
                    owner ? "stopped" : "only a copy");
        return owner ? err_hint(err, "orai start %s", name) : r;
    }
    close_cleanup(&pidfd);
    pidfd = -1;
    r = vm_spawn(host, name, &(struct vm_mode){.name = "resume"}, &pidfd, err);
    if (r == 0)
        r = vm_await(host, name, pidfd, NULL, clock_now() + VM_TELL_MSEC * NSEC_PER_MSEC, err);
    if (pidfd >= 0)
        vm_watch(host->vms, name, pidfd);
    return r;
}

static int recover(struct host *host, const char *name, bool run_here, struct err *err)
{
    _cleanup_close_ int pidfd = -1;
    int r = vm_process(host, name, &pidfd) < 0 ? revive(host, name, err) : 0;
    if (r == 0)
        r = vm_ask(host, name, json_pack("{s:s, s:b}", "do", "recover", "run_here", run_here), VM_TELL_MSEC,
                   NULL, err);
    return r == -EINVAL && !run_here ? 0 : r; /* it runs: nothing was open */
}

int api_vm_recover(struct host *host, struct request *request, struct answer *ret, struct err *err)
{
    static const char *const members[] = {"run_here", NULL};
    const char *name = request->args[0];
    bool run_here = false;
    int r = request_body(request, true, members, err);
    if (r == 0)
        r = body_flag(request->body, "run_here", &run_here, err);
    if (r == 0)
        r = vm_lookup(host->vms, name, NULL, err);
    if (r == 0)
        r = vm_claim(host->vms, name, "being recovered", err);
    if (r < 0)
        return r;
    vm_retry(host->vms, name);
    r = recover(host, name, run_here, err);
    vm_release(host->vms, name);
    return r < 0 ? r : answer_status(host, name, "move", ret, err);
}
