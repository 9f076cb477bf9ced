/* SPDX-License-Identifier: Apache-2.0
 *
 * verbs: what the control socket's requests do. One table says which of them each state allows.
 */
#include "vm/vm.h"

#include "base/clock.h"
#include "base/json.h"
#include "base/macro.h"

#include <errno.h>
#include <limits.h>
#include <string.h>

enum verb {
    VERB_STATUS = 1 << 0,
    VERB_WATCH = 1 << 1,
    VERB_STOP = 1 << 2,
    VERB_KILL = 1 << 3,
    VERB_PAUSE = 1 << 4,
    VERB_RESUME = 1 << 5,
    VERB_MOVE = 1 << 6,
    VERB_CANCEL = 1 << 7,
    VERB_RECOVER = 1 << 8,
    VERB_RELEASE = 1 << 9,
    VERB_FETCH = 1 << 10,
    VERB_REFRESH = 1 << 11,
    VERB_LET_GO = 1 << 12,
    VERBS_ALWAYS = VERB_STATUS | VERB_WATCH, /* and "accept": another host asks what became of its move */
};

/* What may be done in each state, and what to say otherwise, before the VM's name. */
static const struct {
    unsigned verbs;
    const char *hint;
} allowed[] = {
    [VM_STARTING] = {VERBS_ALWAYS | VERB_KILL, "wait until it runs: orai status"},
    [VM_RUNNING] = {VERBS_ALWAYS | VERB_STOP | VERB_KILL | VERB_PAUSE | VERB_MOVE | VERB_FETCH |
                        VERB_REFRESH | VERB_LET_GO,
                    "see orai status"},
    [VM_PAUSED] = {VERBS_ALWAYS | VERB_KILL | VERB_RESUME | VERB_MOVE | VERB_FETCH | VERB_REFRESH |
                       VERB_LET_GO,
                   "see orai status"},
    [VM_ARRIVING] = {VERBS_ALWAYS | VERB_KILL | VERB_CANCEL | VERB_RECOVER,
                     "wait for the move, or: orai cancel"},
    [VM_LEAVING] = {VERBS_ALWAYS | VERB_CANCEL | VERB_RECOVER, "wait for the move, or: orai cancel"},
    [VM_REFRESHING] = {VERBS_ALWAYS, "it takes a second or two: orai status"},
    [VM_COMMITTED] = {VERBS_ALWAYS | VERB_CANCEL | VERB_RECOVER, "see what can be done: orai status"},
    [VM_REPLICA] = {VERBS_ALWAYS | VERB_RELEASE, "this host only has a copy of"},
    [VM_STOPPED] = {VERBS_ALWAYS, "start it with: orai start"},
    [VM_CRASHED] = {VERBS_ALWAYS, "start it with: orai start"},
};
static_assert(ARRAY_SIZE(allowed) == VM_STATE_COUNT, "a line for each state");

static int do_nothing(struct vm *vm, const json_t *request, struct err *err)
{
    (void)vm, (void)request, (void)err;
    return 0;
}

static int do_stop(struct vm *vm, const json_t *request, struct err *err)
{
    int r = qemu_powerdown(machine_qemu(vm->machine), err);
    vm->stop_msec = json_u64(request, "timeout_ms", 0);
    if (r == 0 && vm->stop_msec)
        vm->stop_deadline = clock_now() + (int64_t)MIN(vm->stop_msec, UINT64_C(86400000)) * NSEC_PER_MSEC;
    return r;
}

static int do_kill(struct vm *vm, const json_t *request, struct err *err)
{
    (void)request;
    if (!vm->arrival)
        return vm_kill(vm, err);
    int r = arrival_kill(vm->arrival, err);
    vm->killed = r == 0; /* its end is seen later */
    return r;
}

static int do_pause(struct vm *vm, const json_t *request, struct err *err)
{
    (void)request;
    int r = qemu_pause(machine_qemu(vm->machine), err);
    if (r == 0) {
        vm_want_paused(vm, true);
        vm_look(vm);
    }
    return r;
}

static int do_resume(struct vm *vm, const json_t *request, struct err *err)
{
    (void)request;
    int r = qemu_cont(machine_qemu(vm->machine), err);
    if (r == 0) {
        vm_want_paused(vm, false);
        vm->reason[0] = '\0';
        vm_look(vm);
    }
    return r;
}

static int do_move(struct vm *vm, const json_t *request, struct err *err)
{
    struct move_options options;
    int r = move_options_from_json(request, &options, err);
    return r < 0 ? r : vm_depart(vm, &options, err);
}

static int do_cancel(struct vm *vm, const json_t *request, struct err *err)
{
    (void)request;
    return vm_move_cancel(vm, err);
}

static int do_recover(struct vm *vm, const json_t *request, struct err *err)
{
    /* Without run_here there is nothing to do: the move keeps asking by itself, and the status says so. */
    return json_bool(request, "run_here", false) ? vm_move_run_here(vm, err) : 0;
}

static int do_release(struct vm *vm, const json_t *request, struct err *err)
{
    (void)request;
    return vm_stop_lending(vm, err);
}

static int do_fetch(struct vm *vm, const json_t *request, struct err *err)
{
    return vm_fetch_from(vm, request, err);
}

static int do_refresh(struct vm *vm, const json_t *request, struct err *err)
{
    const char *binary = json_str(request, "qemu", "");
    if (!binary[0] || strlen(binary) >= PATH_MAX)
        return err_set(err, EINVAL, "\"qemu\" must say which program is to run the guest");
    return vm_refresh(vm, binary, json_str(request, "operation", ""), err);
}

static int do_let_go(struct vm *vm, const json_t *request, struct err *err)
{
    (void)request, (void)err;
    vm->let_go = vm->hand_on = true;
    return 0;
}

static const struct {
    const char *name;
    enum verb verb;
    int (*handler)(struct vm *vm, const json_t *request, struct err *err);
} verbs[] = {
    {"status", VERB_STATUS, do_nothing},   {"watch", VERB_WATCH, do_nothing},
    {"stop", VERB_STOP, do_stop},          {"kill", VERB_KILL, do_kill},
    {"pause", VERB_PAUSE, do_pause},       {"resume", VERB_RESUME, do_resume},
    {"move", VERB_MOVE, do_move},          {"cancel", VERB_CANCEL, do_cancel},
    {"recover", VERB_RECOVER, do_recover}, {"release", VERB_RELEASE, do_release},
    {"fetch", VERB_FETCH, do_fetch},       {"refresh", VERB_REFRESH, do_refresh},
    {"let-go", VERB_LET_GO, do_let_go},
};

static int carry_out(struct vm *vm, const json_t *request, const char *name, enum verb *ret, struct err *err)
{
    size_t i = 0;
    while (i < ARRAY_SIZE(verbs) && strcmp(name, verbs[i].name) != 0)
        i++;
    if (i == ARRAY_SIZE(verbs))
        return err_set(err, EINVAL, "unknown request \"%.40s\"", name);
    if (!(allowed[vm->state].verbs & verbs[i].verb)) {
        int r = err_set(err, vm_is_moving(vm) ? EBUSY : EINVAL, "cannot %s %s: it is %s", name,
                        vm->config.name[0] ? vm->config.name : "the VM", vm_state_name(vm->state));
        err_hint(err, "%s %s", allowed[vm->state].hint, vm->config.name);
        return r;
    }
    *ret = verbs[i].verb;
    return verbs[i].handler(vm, request, err);
}

json_t *vm_request(struct vm *vm, const json_t *request, int fd, bool *ret_watch)
{
    _cleanup_close_ int descriptor = fd;
    struct err err = ERR_NONE;
    enum verb verb = 0;
    const char *name = json_str(request, "do", "");
    int r;
    if (strcmp(name, "accept") == 0)
        r = descriptor < 0 ? err_set(&err, EINVAL, "\"accept\" came without a connection")
                           : vm_connection(vm, TAKE_FD(descriptor), &err);
    else
        r = carry_out(vm, request, name, &verb, &err);
    if (r < 0) {
        err_where(&err, vm->options.host_name, "");
        return json_pack("{s:b, s:o}", "ok", 0, "error", err_to_json(&err));
    }
    if (verb == VERB_WATCH)
        *ret_watch = true;
    return verb == VERB_STATUS ? vm_status(vm) : json_pack("{s:b}", "ok", 1);
}
