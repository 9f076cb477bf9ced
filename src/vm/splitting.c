/* SPDX-License-Identifier: Apache-2.0
 *
 * splitting: the time after a post-copy hand-over in which the VM's disks are on two hosts. Here the guest
 * runs and `fetch` brings what is missing; there nothing runs and `lender` answers. Both sides' epoch records
 * say so durably ("borrowed", "lent"), so that whoever is started again goes on: the borrower until nothing
 * is missing and the lender has heard it, the lender until then.
 *
 * A third host may have an old copy and *share* it: its orai-vm is started for that alone, by its oraid,
 * which ours asks when we say that we borrow. It may come and go; no record speaks of it.
 */
#include "vm/vm.h"

#include "base/clock.h"
#include "base/json.h"
#include "base/log.h"
#include "base/macro.h"
#include "disk/split.h"
#include "move/fault.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define WISH_NSEC (20 * NSEC_PER_SEC)  /* hosts come back */
#define SHARE_NSEC (15 * NSEC_PER_SEC) /* without a connection */

/* --- here the guest runs -------------------------------------------------------------------------------- */

int vm_start_fetch(struct vm *vm, struct err *err)
{
    const struct epoch_record *record = epoch_get(vm->epoch);
    if (!record->borrowed || vm->fetch)
        return 0;
    int r = vm_need_identity(vm, err);
    if (r < 0)
        return r;
    struct fetch_options options = {
        .host = &vm->host,
        .vm = vm->id,
        .epoch = record->epoch,
        .lender = {.port = record->peer.port, .fingerprint = record->peer.fingerprint},
        .disk_count = machine_disk_count(vm->machine),
    };
    snprintf(options.name, sizeof options.name, "%s", vm->config.name);
    snprintf(options.lender.name, sizeof options.lender.name, "%s", record->peer.name);
    snprintf(options.lender.address, sizeof options.lender.address, "%s", record->peer.address);
    for (size_t i = 0; i < options.disk_count; i++)
        options.disks[i] = machine_disk(vm->machine, i);
    struct fetch *fetch;
    r = fetch_new(&options, &fetch, err);
    if (r < 0)
        return r;
    r = fetch_open(fetch, err);
    if (r < 0) {
        fetch_free(fetch);
        return r;
    }
    vm->fetch = fetch;
    return 0;
}

bool vm_is_split(const struct vm *vm)
{
    return vm->fetch && fetch_state(vm->fetch) == FETCH_RUNNING;
}

/* Who else has blocks only oraid can find out. */
static void wish_for_hosts(struct vm *vm)
{
    int64_t now = clock_now();
    if (fetch_state(vm->fetch) != FETCH_RUNNING || now < vm->next_wish || !control_watched(vm->control))
        return;
    vm->next_wish = now + WISH_NSEC;
    control_tell(vm->control, json_pack("{s:s}", "event", "borrowing"));
}

static int read_host(const json_t *json, struct move_peer *ret, struct err *err)
{
    const char *name = json_str(json, "name", ""), *address = json_str(json, "address", "");
    uint64_t port = json_u64(json, "port", 0);
    if (!name[0] || !address[0] || port == 0 || port > UINT16_MAX ||
        fingerprint_parse(json_str(json, "fingerprint", ""), &ret->fingerprint) < 0)
        return err_set(err, EINVAL, "a host is named without name, address, port or fingerprint");
    snprintf(ret->name, sizeof ret->name, "%s", name);
    snprintf(ret->address, sizeof ret->address, "%s", address);
    ret->port = (uint16_t)port;
    return 0;
}

int vm_fetch_from(struct vm *vm, const json_t *request, struct err *err)
{
    size_t index;
    json_t *host;
    int r = 0;
    if (!vm_is_split(vm))
        return 0; /* all has come meanwhile */
    json_array_foreach(json_object_get(request, "hosts"), index, host)
    {
        struct move_peer peer = {0};
        if ((r = read_host(host, &peer, err)) < 0 || (r = fetch_share(vm->fetch, &peer, err)) < 0)
            break;
    }
    return r;
}

static void check_fetch(struct vm *vm)
{
    struct err err = ERR_NONE;
    wish_for_hosts(vm);
    if (fetch_state(vm->fetch) != FETCH_RELEASED)
        return;
    struct epoch_record record = *epoch_get(vm->epoch);
    record.borrowed = false;
    if (epoch_set(vm->epoch, &record, &err) < 0) {
        log_warning("%s; trying again", err.text); /* at the next turn of the loop */
        return;
    }
    fetch_free(TAKE_PTR(vm->fetch));
    control_tell(vm->control, json_pack("{s:s}", "event", "whole"));
}

/* --- here the disks are lent ---------------------------------------------------------------------------- */

/* For an orai-vm that has no guest: disks that nobody writes, and whoever answers for them. */
static int open_lender(struct vm *vm, const struct fingerprint *borrower, bool shares, struct err *err)
{
    int r = vm_need_identity(vm, err);
    if (r == 0)
        r = machine_new(&vm->host.env, &vm->config, &vm->machine, err);
    if (r == 0)
        r = machine_open_disks(vm->machine, DISK_READ_ONLY, err);
    if (r < 0)
        return r;
    struct lender_options options = {
        .host = &vm->host,
        .vm = vm->id,
        .epoch = epoch_get(vm->epoch)->epoch,
        .borrower = *borrower,
        .disk_count = machine_disk_count(vm->machine),
        .shares = shares,
    };
    for (size_t i = 0; i < options.disk_count; i++)
        options.disks[i] = machine_disk(vm->machine, i);
    r = lender_new(&options, &vm->lender, err);
    if (r == 0)
        lender_open(vm->lender);
    return r;
}

int vm_lend_resume(struct vm *vm, struct err *err)
{
    int r = open_lender(vm, &epoch_get(vm->epoch)->peer.fingerprint, false, err);
    if (r == 0)
        vm_lend(vm);
    return r;
}

int vm_share(struct vm *vm, struct err *err)
{
    const struct epoch_record *record = epoch_get(vm->epoch);
    if (record->role != EPOCH_REPLICA || record->lent)
        return err_set(err, EBUSY, "%s is no mere copy here: this host holds it as %s", vm->config.name,
                       record->lent ? "a lender" : epoch_role_name(record->role));
    int r = open_lender(vm, &vm->options.source.fingerprint, true, err);
    if (r < 0)
        return r;
    vm->share_until = clock_now() + SHARE_NSEC;
    vm_set_state(vm, VM_REPLICA);
    return 0;
}

void vm_lend(struct vm *vm)
{
    snprintf(vm->reason, sizeof vm->reason, "%s fetches its blocks from here",
             epoch_get(vm->epoch)->peer.name);
    vm_set_state(vm, VM_REPLICA);
}

static int note_released(struct vm *vm, struct err *err)
{
    struct epoch_record record = *epoch_get(vm->epoch);
    record.lent = false;
    return epoch_set(vm->epoch, &record, err);
}

int vm_stop_lending(struct vm *vm, struct err *err)
{
    if (!vm->lender)
        return err_set(err, EINVAL, "%s lends nothing here", vm->config.name);
    int r = vm->share_until ? 0 : note_released(vm, err);
    if (r < 0)
        return r;
    if (!vm->share_until)
        log_info("%s may still lack blocks that were lent here", epoch_get(vm->epoch)->peer.name);
    vm->reason[0] = '\0';
    vm_end(vm, VM_REPLICA, vm->share_until ? "shared" : "moved");
    return 0;
}

static void check_share(struct vm *vm)
{
    struct lender_numbers numbers;
    lender_numbers(vm->lender, &numbers);
    int64_t now = clock_now();
    if (numbers.connections > 0)
        vm->share_until = now + SHARE_NSEC;
    else if (now >= vm->share_until)
        vm_end(vm, VM_REPLICA, "shared");
}

/* The borrower is told that we have heard it only when it is durable that nothing is lent. */
static void check_lender(struct vm *vm)
{
    struct err err = ERR_NONE;
    if (!lender_released(vm->lender))
        return;
    if (fault_point(&err, "lend.release") < 0)
        log_warning("%s", err.text);
    if (note_released(vm, &err) < 0) {
        log_warning("%s; trying again", err.text);
        return;
    }
    if (fault_point(&err, "lend.released") < 0)
        log_warning("%s", err.text);
    lender_confirm(vm->lender);
    vm->reason[0] = '\0';
    vm_end(vm, VM_REPLICA, "moved");
}

/* --- both ----------------------------------------------------------------------------------------------- */

void vm_check_split(struct vm *vm)
{
    if (vm_is_moving(vm) || vm->ended)
        return;
    if (vm->fetch)
        check_fetch(vm);
    if (vm->lender && vm->share_until)
        check_share(vm);
    else if (vm->lender)
        check_lender(vm);
}

void vm_end_split(struct vm *vm)
{
    fetch_free(TAKE_PTR(vm->fetch));
    lender_free(TAKE_PTR(vm->lender));
}

static json_t *numbers_of(const struct vm *vm, const char *what, const char *who)
{
    struct lender_numbers numbers;
    lender_numbers(vm->lender, &numbers);
    return json_pack("{s:s, s:i, s:I, s:I}", what, who, "connections", (int)numbers.connections, "fetches",
                     (json_int_t)numbers.fetches, "bytes", (json_int_t)numbers.bytes);
}

json_t *vm_lends(const struct vm *vm)
{
    return vm->lender && !vm->share_until ? numbers_of(vm, "to", epoch_get(vm->epoch)->peer.name)
                                          : json_null();
}

json_t *vm_shares(const struct vm *vm)
{
    char key[HASH_TEXT_SIZE];
    if (!vm->lender || !vm->share_until)
        return json_null();
    return numbers_of(vm, "key", fingerprint_format(&vm->options.source.fingerprint, key));
}
