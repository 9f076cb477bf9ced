/* SPDX-License-Identifier: Apache-2.0
 *
 * io_pause: the guest stands still because a disk's request failed. QEMU keeps the request (rerror=stop,
 * werror=stop) and makes it again when the guest goes on, so the guest never learns of it. What passes by
 * itself is waited for:
 *
 *   no room on the host            until there is some
 *   blocks that another host has   until that host is back
 *
 * Anything else waits for `orai resume`.
 */
#include "vm/vm.h"

#include "base/clock.h"
#include "base/log.h"
#include "base/macro.h"

#include <stdio.h>
#include <string.h>
#include <sys/statvfs.h>

#define LOOK_NSEC NSEC_PER_SEC
#define ROOM (64 * MiB) /* less would last the guest for a moment only */

void vm_io_stopped(struct vm *vm, const struct qemu_news *news)
{
    bool lent = vm_is_split(vm) && !news->no_space;
    vm->io_pause = news->no_space ? IO_PAUSE_NO_SPACE : lent ? IO_PAUSE_BLOCKS : IO_PAUSE_OTHER;
    vm->io_look = clock_now() + LOOK_NSEC;
    if (news->no_space)
        snprintf(vm->reason, sizeof vm->reason,
                 "no space left on %s: the guest waits, and goes on by itself when there is room",
                 vm->options.host_name);
    else if (lent)
        snprintf(vm->reason, sizeof vm->reason,
                 "it waits for blocks that only %s has, and goes on by itself when they come",
                 epoch_get(vm->epoch)->peer.name);
    else
        snprintf(vm->reason, sizeof vm->reason, "%.150s; once that is mended: orai resume %.60s",
                 news->io_error, vm->config.name);
}

static bool has_room(const struct vm *vm)
{
    struct statvfs fs;
    return statvfs(vm->options.vm_dir, &fs) == 0 && fs.f_bavail * fs.f_frsize >= ROOM;
}

static bool may_go_on(const struct vm *vm)
{
    switch (vm->io_pause) {
    case IO_PAUSE_NO_SPACE:
        return has_room(vm);
    case IO_PAUSE_BLOCKS:
        return !vm_is_split(vm) || fetch_connected(vm->fetch);
    case IO_PAUSE_NONE:
    case IO_PAUSE_OTHER:
        break;
    }
    return false;
}

void vm_check_io_pause(struct vm *vm, int64_t now)
{
    struct err err = ERR_NONE;
    if (!vm->io_pause || now < vm->io_look || vm->ended || vm_is_moving(vm) || vm->state != VM_PAUSED ||
        vm_wants_paused(vm))
        return;
    vm->io_look = now + LOOK_NSEC;
    if (!may_go_on(vm))
        return;
    log_info("%s goes on: what it waited for has come", vm->config.name);
    if (qemu_cont(machine_qemu(vm->machine), &err) < 0)
        log_warning("%s", err.text);
    vm_look(vm);
}
