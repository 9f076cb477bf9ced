/* SPDX-License-Identifier: Apache-2.0
 *
 * status: what clients are told. While a move owns machine and epoch record, the disks are shown as they were
 * when it began, and the record is read from its file, which is always whole.
 */
#include "vm/vm.h"

#include "base/log.h"
#include "base/macro.h"

#include <string.h>
#include <sys/stat.h>

static const char *const state_names[] = {
    [VM_STARTING] = "starting",     [VM_RUNNING] = "running", [VM_PAUSED] = "paused",
    [VM_ARRIVING] = "arriving",     [VM_LEAVING] = "leaving", [VM_COMMITTED] = "committed",
    [VM_REPLICA] = "replica",       [VM_STOPPED] = "stopped", [VM_CRASHED] = "crashed",
    [VM_REFRESHING] = "refreshing",
};
static_assert(ARRAY_SIZE(state_names) == VM_STATE_COUNT, "a name for each state");

const char *vm_state_name(enum vm_state state)
{
    return state_names[state];
}

json_t *vm_disks(const struct vm *vm)
{
    json_t *list = json_array();
    for (size_t i = 0; vm->machine && i < machine_disk_count(vm->machine); i++) {
        const struct disk *disk = machine_disk(vm->machine, i);
        struct nbd_statistics statistics;
        struct stat st;
        if (!disk || fstat(disk_fd(disk), &st) < 0)
            continue;
        machine_disk_statistics(vm->machine, i, &statistics);
        json_array_append_new(
            list, json_pack("{s:s, s:I, s:I, s:I, s:I, s:I, s:I}", "file", vm->config.disks[i].file, "size",
                            (json_int_t)disk_size(disk), "generation", (json_int_t)disk_generation(disk),
                            "allocated", (json_int_t)st.st_blocks * 512, "read_bytes",
                            (json_int_t)statistics.read_bytes, "written_bytes",
                            (json_int_t)statistics.written_bytes, "errors", (json_int_t)statistics.errors));
    }
    return list;
}

json_t *vm_move_status(const struct vm *vm)
{
    if (vm->departure)
        return departure_status(vm->departure);
    if (vm->arrival)
        return arrival_status(vm->arrival);
    return vm->last_move ? json_incref(vm->last_move) : json_null();
}

static struct epoch_record read_record(const struct vm *vm)
{
    struct epoch *epoch = NULL;
    struct err err = ERR_NONE;
    if (!vm_is_moving(vm))
        return *epoch_get(vm->epoch);
    if (epoch_open(vm->options.vm_dir, &epoch, &err) < 0) {
        log_warning("%s", err.text);
        return (struct epoch_record){0};
    }
    struct epoch_record record = *epoch_get(epoch);
    epoch_free(epoch);
    return record;
}

json_t *vm_status(struct vm *vm)
{
    struct epoch_record record = read_record(vm);
    enum vm_state state = vm->state;
    if (state == VM_LEAVING && record.role == EPOCH_COMMITTED)
        state = VM_COMMITTED;
    json_t *json =
        json_pack("{s:b, s:s, s:I, s:s, s:b}", "ok", 1, "state", vm_state_name(state), "epoch",
                  (json_int_t)record.epoch, "role", epoch_role_name(record.role), "forked", record.forked);
    if (!vm_is_moving(vm) && vm->machine && machine_qemu(vm->machine)) {
        json_object_set_new(json, "qemu_pid", json_integer(qemu_pid(machine_qemu(vm->machine))));
        json_object_set_new(json, "ram", json_string(vm_ram_name(qemu_ram(machine_qemu(vm->machine)))));
    }
    if (vm->reason[0])
        json_object_set_new(json, "reason", json_string(vm->reason));
    json_object_set_new(json, "disks", vm_is_moving(vm) ? json_incref(vm->disks) : vm_disks(vm));
    json_object_set_new(json, "move", vm_move_status(vm));
    json_object_set_new(json, "refresh", vm_refresh_status(vm));
    json_object_set_new(json, "borrows", vm->fetch ? fetch_status(vm->fetch) : json_null());
    json_object_set_new(json, "lends", vm_is_moving(vm) ? json_null() : vm_lends(vm));
    json_object_set_new(json, "shares", vm_is_moving(vm) ? json_null() : vm_shares(vm));
    return json;
}
