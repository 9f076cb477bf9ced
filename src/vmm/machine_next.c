/* SPDX-License-Identifier: Apache-2.0
 *
 * machine_next: a second QEMU beside the first, for the same guest, RAM, disks and taps. Who uses what:
 *
 *   RAM    both have all of it mapped; only a running guest writes there
 *   disks  both are clients of the same NBD servers; QEMU gives its disks up when it has sent the devices'
 * state, and takes them when the guest goes on (late-block-activate), so never two of them write taps   both
 * have a descriptor of each, one of which gets the frames
 */
#include "vmm/machine_internal.h"

#include "base/log.h"
#include "base/macro.h"
#include "base/pid.h"
#include "net/tap.h"

#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>

#define END_MSEC 10000

void machine_next_forget(struct machine *machine)
{
    qemu_free(TAKE_PTR(machine->next));
    for (size_t i = 0; i < VM_MAX_NICS; i++)
        if (machine->next_taps[i] >= 0)
            close(TAKE_FD(machine->next_taps[i]));
}

static int stand_in_taps(struct machine *machine, struct err *err)
{
    for (size_t i = 0; i < machine->config.nic_count; i++) {
        char name[IFNAMSIZ];
        if (machine->taps[i] < 0)
            return err_set(err, ENOTSUP, "the tap %s cannot be shared with a second QEMU",
                           tap_name(&machine->config.id, i, name));
        int fd = tap_stand_in(tap_name(&machine->config.id, i, name), err);
        if (fd < 0)
            return fd;
        machine->next_taps[i] = fd;
    }
    return 0;
}

static int join_taps(struct machine *machine, struct err *err)
{
    int r = 0;
    for (size_t i = 0; r == 0 && i < machine->config.nic_count; i++) {
        char name[IFNAMSIZ];
        r = tap_join(machine->next_taps[i], tap_name(&machine->config.id, i, name), err);
    }
    return r;
}

int machine_next_start(struct machine *machine, const char *binary, qmp_event_fn *on_event, void *arg,
                       struct err *err)
{
    struct qemu_env env = machine->env;
    assert(machine->qemu && !machine->next);
    env.binary = binary;
    int r = stand_in_taps(machine, err);
    if (r == 0)
        r = qemu_start_next(machine->qemu, &env, &machine->config, machine->next_taps, on_event, arg,
                            &machine->next, err);
    if (r == 0)
        r = join_taps(machine, err);
    if (r < 0 && machine->next)
        qemu_kill(machine->next, 0, NULL);
    if (r < 0)
        machine_next_forget(machine);
    return r;
}

struct qemu *machine_next(const struct machine *machine)
{
    return machine->next;
}

/* The new one is put into use first: an interface without any is down. */
int machine_next_use_taps(struct machine *machine, bool next, struct err *err)
{
    const int *on = next ? machine->next_taps : machine->taps,
              *off = next ? machine->taps : machine->next_taps;
    int r = 0;
    for (size_t i = 0; r == 0 && i < machine->config.nic_count; i++) {
        r = tap_use(on[i], true, err);
        if (r == 0)
            r = tap_use(off[i], false, err);
    }
    return r;
}

static void exchange(struct machine *machine)
{
    struct qemu *qemu = machine->qemu;
    announce_free(
        TAKE_PTR(machine->announce)); /* it would go on with descriptors that are about to be closed */
    machine->qemu = machine->next;
    machine->next = qemu;
    for (size_t i = 0; i < VM_MAX_NICS; i++) {
        int tap = machine->taps[i];
        machine->taps[i] = machine->next_taps[i];
        machine->next_taps[i] = tap;
    }
}

int machine_next_take(struct machine *machine, struct err *err)
{
    int r = qemu_take_place(machine->next, machine->qemu, err);
    if (r == 0)
        exchange(machine);
    return r;
}

/* At once: one that was asked to quit would still write to the disks what it thinks is its own. */
int machine_next_end(struct machine *machine, struct err *err)
{
    int r = qemu_kill(machine->next, 0, err);
    machine_next_forget(machine);
    return r;
}

int machine_end_leftover(const char *run_dir, struct err *err)
{
    char path[PATH_MAX];
    pid_t pid;
    int pidfd;
    snprintf(path, sizeof path, "%.4000s/" QEMU_NEXT_RECORD, run_dir);
    int r = pid_open_record(path, &pid, &pidfd, err);
    if (r < 0)
        return r == -ESRCH ? 0 : r;
    log_info("ending a QEMU that was to replace the guest's, or was replaced (pid %d)", (int)pid);
    r = pid_signal_wait(pidfd, SIGKILL, END_MSEC);
    close(pidfd);
    if (r < 0)
        return err_sys(err, r, "cannot end QEMU (pid %d)", (int)pid);
    unlink(path);
    return 0;
}
