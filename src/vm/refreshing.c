/* SPDX-License-Identifier: Apache-2.0
 *
 * refreshing: begins a refresh (move/refresh.h), and takes the machine over again when it has an outcome.
 */
#include "vm/vm.h"

#include <errno.h>
#include <stdio.h>

/* Another QEMU must be able to have the memory, and this one to finish its requests to the disks when it
 * stops the guest, and to let go of all memory. */
static int check(const struct vm *vm, struct err *err)
{
    const char *peer = epoch_get(vm->epoch)->peer.name;
    if (epoch_get(vm->epoch)->memory_away)
        return err_set(err, EBUSY, "some of the memory of %s is still on %s", vm->config.name, peer);
    if (qemu_ram(machine_qemu(vm->machine)) == VM_RAM_PRIVATE) {
        err_set(err, ENOTSUP, "the memory of %s is private to its QEMU: no other can go on with it",
                vm->config.name);
        return err_hint(err, "move it, or start it anew; shared memory can be refreshed: stop it and set "
                             "\"ram\" to \"shared\"");
    }
    if (!vm_is_split(vm))
        return 0;
    err_set(err, EBUSY, "the disks of %s are not wholly here yet: %s still lends blocks", vm->config.name,
            peer);
    return err_hint(err, "wait until they are: orai status %s", vm->config.name);
}

int vm_refresh(struct vm *vm, const char *binary, const char *operation, struct err *err)
{
    struct refresh *refresh;
    int r = check(vm, err);
    if (r < 0)
        return r;
    vm_hand_machine_over(vm);
    r = refresh_start(&vm->host, vm->machine, binary, vm->state == VM_RUNNING, &refresh, err);
    if (r < 0)
        return r;
    vm->refresh = refresh;
    snprintf(vm->refresh_operation, sizeof vm->refresh_operation, "%s", operation);
    json_decref(vm->last_refresh);
    vm->last_refresh = NULL;
    vm_set_state(vm, VM_REFRESHING);
    return 0;
}

void vm_check_refresh(struct vm *vm)
{
    if (!vm->refresh || refresh_outcome(vm->refresh) == REFRESH_RUNNING)
        return;
    vm->last_refresh = refresh_status(vm->refresh);
    refresh_free(vm->refresh);
    vm->refresh = NULL;
    vm_look(vm);
    vm_take_news(vm);
}

json_t *vm_refresh_status(const struct vm *vm)
{
    json_t *json = vm->refresh ? refresh_status(vm->refresh) : json_incref(vm->last_refresh);
    if (!json)
        return json_null();
    json_object_set_new(json, "operation", json_string(vm->refresh_operation));
    return json;
}
