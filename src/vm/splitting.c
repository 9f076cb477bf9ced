/* SPDX-License-Identifier: Apache-2.0
 *
 * splitting: the time after a post-copy hand-over in which the VM's disks are on two hosts. Here the guest
 * runs and `fetch` brings what is missing; there nothing runs and `lender` answers. Both sides' epoch records
 * say so durably ("borrowed", "lent"), so that whoever is started again goes on: the borrower until nothing
 * is missing and the lender has heard it, the lender until then.
 */
#include "vm/vm.h"

#include "base/log.h"
#include "base/macro.h"
#include "disk/split.h"
#include "move/fault.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

/* --- here the guest runs -----------------------------------------------------------------------------------
 */

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

static void check_fetch(struct vm *vm)
{
    struct err err = ERR_NONE;
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

/* --- here the disks are lent -------------------------------------------------------------------------------
 */

int vm_lend_resume(struct vm *vm, struct err *err)
{
    const struct epoch_record *record = epoch_get(vm->epoch);
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
        .epoch = record->epoch,
        .borrower = record->peer.fingerprint,
        .disk_count = machine_disk_count(vm->machine),
    };
    for (size_t i = 0; i < options.disk_count; i++)
        options.disks[i] = machine_disk(vm->machine, i);
    r = lender_new(&options, &vm->lender, err);
    if (r < 0)
        return r;
    lender_open(vm->lender);
    vm_lend(vm);
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
    int r = note_released(vm, err);
    if (r < 0)
        return r;
    log_info("%s may still lack blocks that were lent here", epoch_get(vm->epoch)->peer.name);
    vm->reason[0] = '\0';
    vm_end(vm, VM_REPLICA, "moved");
    return 0;
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

/* --- both --------------------------------------------------------------------------------------------------
 */

void vm_check_split(struct vm *vm)
{
    if (vm_is_moving(vm) || vm->ended)
        return;
    if (vm->fetch)
        check_fetch(vm);
    if (vm->lender)
        check_lender(vm);
}

void vm_end_split(struct vm *vm)
{
    fetch_free(TAKE_PTR(vm->fetch));
    lender_free(TAKE_PTR(vm->lender));
}

json_t *vm_lends(const struct vm *vm)
{
    struct lender_numbers numbers;
    if (!vm->lender)
        return json_null();
    lender_numbers(vm->lender, &numbers);
    return json_pack("{s:s, s:i, s:I, s:I}", "to", epoch_get(vm->epoch)->peer.name, "connections",
                     (int)numbers.connections, "fetches", (json_int_t)numbers.fetches, "bytes",
                     (json_int_t)numbers.bytes);
}
