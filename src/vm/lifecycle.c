/* SPDX-License-Identifier: Apache-2.0
 *
 * lifecycle: how the VM comes up, is found again, and ends.
 *
 * The epoch record is read first and decides: only an OWNER's guest may run. The disks' claims (lineage.h)
 * follow the record, never the other way round: a crash between the two leaves a record that is right and a
 * claim that the next start mends before the guest can write.
 *
 * When QEMU ends, its pidfd becomes readable and the QMP connection ends; only when both have been seen is it
 * clear whether a SHUTDOWN event had come before, that is, whether the guest shut down or crashed.
 */
#include "vm/vm.h"

#include "base/clock.h"
#include "base/log.h"
#include "base/macro.h"
#include "base/pid.h"
#include "disk/split.h"
#include "memory/checkpoint.h"
#include "move/take_back.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

#define QUIT_MSEC 2000
#define LOST_NSEC (5 * NSEC_PER_SEC) /* between the end of QMP and the exit of a QEMU that ends */

void vm_set_state(struct vm *vm, enum vm_state state)
{
    if (vm->state == state)
        return;
    vm->state = state;
    log_info("%s is %s%s%s", vm->has_config ? vm->config.name : "the VM", vm_state_name(state),
             vm->reason[0] ? ": " : "", vm->reason);
    if (vm->control)
        control_tell(vm->control, json_pack("{s:s, s:s}", "event", "state", "state", vm_state_name(state)));
}

void vm_end(struct vm *vm, enum vm_state state, const char *why)
{
    struct err err = ERR_NONE;
    if (vm->machine && machine_stop(vm->machine, 0, &err) < 0)
        log_error("%s", err.text);
    vm_end_split(vm);
    if (vm->machine && machine_close_disks(vm->machine, &err) < 0)
        log_error("closing the disks: %s", err.text);
    vm_want_paused(vm, false);
    vm_set_state(vm, state);
    vm->ended = why;
    control_tell(vm->control, json_pack("{s:s, s:s, s:s*}", "event", "ended", "why", why, "reason",
                                        vm->reason[0] ? vm->reason : NULL));
}

int vm_kill(struct vm *vm, struct err *err)
{
    vm->killed = true;
    int r = machine_stop(vm->machine, QUIT_MSEC, err);
    if (r == 0)
        vm_end(vm, VM_STOPPED, "killed");
    return r;
}

/* --- what the guest does -------------------------------------------------------------------------------- */

static void pause_marker(const struct vm *vm, char path[PATH_MAX])
{
    snprintf(path, PATH_MAX, "%.4000s/paused", vm->options.run_dir);
}

void vm_want_paused(struct vm *vm, bool paused)
{
    char path[PATH_MAX];
    pause_marker(vm, path);
    if (!paused) {
        unlink(path);
        return;
    }
    int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0)
        log_warning("cannot remember that the guest is paused: %s: %m", path);
    else
        close(fd);
}

bool vm_wants_paused(const struct vm *vm)
{
    char path[PATH_MAX];
    pause_marker(vm, path);
    return access(path, F_OK) == 0;
}

void vm_look(struct vm *vm)
{
    char status[32];
    struct err err = ERR_NONE;
    if (qemu_status(machine_qemu(vm->machine), status, &err) < 0) {
        log_warning("%s", err.text); /* when QEMU has ended, the loop sees it */
        return;
    }
    if (strcmp(status, "running") == 0) {
        vm->reason[0] = '\0';
        vm->io_pause = IO_PAUSE_NONE;
        vm_set_state(vm, VM_RUNNING);
        return;
    }
    if (!vm->reason[0] && strcmp(status, "paused") != 0)
        snprintf(vm->reason, sizeof vm->reason, "QEMU says \"%s\"", status);
    vm_set_state(vm, VM_PAUSED);
}

static bool qemu_has_exited(const struct vm *vm)
{
    struct pollfd p = {.fd = qemu_pidfd(machine_qemu(vm->machine)), .events = POLLIN};
    return poll(&p, 1, 0) > 0;
}

void vm_take_news(struct vm *vm)
{
    struct qemu_news news = events_take(&vm->events);
    if (vm_is_moving(vm) || vm->ended || !vm->machine || !machine_qemu(vm->machine))
        return;
    if (news.gone && qemu_has_exited(vm)) {
        vm->lost_deadline = 0;
        bool crashed = !news.shut_down && !vm->killed;
        if (crashed && !vm->reason[0])
            snprintf(vm->reason, sizeof vm->reason,
                     "QEMU ended without the guest having shut down; see %.160s/qemu.log",
                     vm->options.vm_dir);
        vm_end(vm, crashed ? VM_CRASHED : VM_STOPPED,
               crashed                           ? "crashed"
               : news.shut_down && news.by_guest ? "shutdown"
                                                 : "killed");
        return;
    }
    if (news.gone && !vm->lost_deadline)
        vm->lost_deadline = clock_now() + LOST_NSEC;
    if (news.io_error[0])
        vm_io_stopped(vm, &news);
    if (news.stopped || news.resumed)
        vm_look(vm);
}

/* --- start ---------------------------------------------------------------------------------------------- */

/* The record says that this copy is the VM; the disks' claims shall say so too, before the guest writes. */
static int claim_disk(struct disk *disk, bool forked, struct err *err)
{
    struct lineage *lineage;
    int r = disk_lineage(disk, &lineage, err);
    if (r < 0)
        return r;
    if (lineage->claim == LINEAGE_PARTIAL && disk_may_split(disk)) {
        lineage->claim = LINEAGE_SPLIT; /* orai-vm died between the record and the claim */
        r = disk_set_lineage(disk, lineage, err);
    } else if (lineage->claim == LINEAGE_PARTIAL) {
        r = err_set(err, ESTALE, "%s is only part of a copy and cannot be run", disk_path(disk));
        err_hint(err, "move the VM here again, or drop this copy: orai replica drop");
    } else if (lineage->claim == LINEAGE_REPLICA) {
        lineage->claim = forked ? LINEAGE_FORK : LINEAGE_OWNER;
        r = disk_set_lineage(disk, lineage, err);
    }
    lineage_free(lineage);
    return r;
}

/* Opened frozen, because a copy that does not claim to be the VM may not be opened for writing otherwise; and
 * not served: a write of a QEMU that runs already would wait in the server for a thaw, and closing for it. */
static int claim_disks(struct vm *vm, struct err *err)
{
    int r = 0;
    for (size_t i = 0; r == 0 && i < vm->config.disk_count; i++) {
        char path[PATH_MAX];
        struct disk *disk;
        snprintf(path, sizeof path, "%.4000s/%s", vm->options.vm_dir, vm->config.disks[i].file);
        r = disk_open(path, DISK_FROZEN, &disk, err);
        if (r < 0)
            return r;
        r = claim_disk(disk, epoch_get(vm->epoch)->forked, err);
        int closed = disk_close(disk, r == 0 ? err : NULL);
        r = r < 0 ? r : closed;
    }
    return r;
}

/* May the guest be started here? A human's decision makes an old copy an owner, durably, before anything
 * else. */
static int check_role(struct vm *vm, struct err *err)
{
    struct epoch_record record = *epoch_get(vm->epoch);
    const char *name = vm->config.name, *peer = record.peer.name;
    int r;
    switch (record.role) {
    case EPOCH_OWNER:
        return 0;
    case EPOCH_REPLICA:
        if (vm->options.fork_old_copy) {
            log_warning("starting an old copy of %s on purpose: the VM itself is on %s", name, peer);
            record.role = EPOCH_OWNER;
            record.forked = true;
            record.lent = false;
            return epoch_set(vm->epoch, &record, err);
        }
        r = err_set(err, EPERM, "%s is on %s (epoch %llu); here is only a copy of it", name,
                    peer[0] ? peer : "another host", (unsigned long long)record.epoch);
        err_hint(err, "start it there, or move it here: orai move %s %s", name, vm->options.host_name);
        return r;
    case EPOCH_COMMITTED:
        r = err_set(err, EPERM, "%s was handed over to %s, which has not confirmed it yet", name, peer);
        err_hint(err, "orai recover %s", name);
        return r;
    case EPOCH_ARRIVING:
        r = err_set(err, EPERM, "a move of %s from %s to here is not finished", name, peer);
        err_hint(err, "orai recover %s", name);
        return r;
    }
    return err_set(err, EBADMSG, "the epoch record of %s has no known role", name);
}

static int qemu_record_path(const struct vm *vm, char path[PATH_MAX])
{
    return snprintf(path, PATH_MAX, "%.4000s/qemu.pid", vm->options.run_dir);
}

/* 0 and its pidfd, or -ESRCH. */
static int find_qemu(const struct vm *vm, pid_t *ret_pid, int *ret_pidfd)
{
    char path[PATH_MAX];
    qemu_record_path(vm, path);
    return pid_open_record(path, ret_pid, ret_pidfd, NULL);
}

static int check_not_running(const struct vm *vm, struct err *err)
{
    pid_t pid;
    int pidfd;
    if (find_qemu(vm, &pid, &pidfd) < 0)
        return 0;
    close(pidfd);
    int r = err_set(err, EBUSY, "QEMU of %s still runs (pid %d)", vm->config.name, (int)pid);
    err_hint(err, "oraid finds it again by itself when it starts; by hand: orai-vm ... resume");
    return r;
}

static int boot(struct vm *vm, struct err *err)
{
    int r = machine_new(&vm->host.env, &vm->config, &vm->machine, err);
    if (r == 0)
        r = claim_disks(vm, err);
    if (r == 0)
        r = machine_open_disks(vm->machine, 0, err);
    if (r == 0) /* QEMU itself reads the first blocks, before it answers */
        r = vm_start_fetch(vm, err);
    if (r == 0)
        r = machine_start(vm->machine, false, events_from_qemu, vm, err);
    if (r == 0)
        r = qemu_cont(machine_qemu(vm->machine), err);
    if (r < 0 && vm->machine)
        machine_stop(vm->machine, 0, NULL);
    if (r < 0)
        vm_end_split(vm);
    if (r == 0) {
        checkpoint_remove(vm->options.vm_dir); /* of memory that nothing will have in common with it */
        vm_look(vm);
    }
    return r;
}

/* Memory that was elsewhere was a former guest's: the host went down before that was on record. */
static int forget_memory(struct vm *vm, struct err *err)
{
    struct epoch_record record = *epoch_get(vm->epoch);
    if (!record.memory_away)
        return 0;
    record.memory_away = false;
    return epoch_set(vm->epoch, &record, err);
}

int vm_start(struct vm *vm, struct err *err)
{
    int r = machine_end_leftover(vm->options.run_dir, err);
    if (r == 0)
        r = check_not_running(vm, err);
    if (r == 0)
        r = check_role(vm, err);
    if (r == 0)
        r = forget_memory(vm, err);
    if (r < 0)
        return r;
    vm_want_paused(vm, false);
    return boot(vm, err);
}

/* --- resume --------------------------------------------------------------------------------------------- */

/* Ends a QEMU of which only the record is left: half arrived, or not ended after it had left. */
static int end_leftover(struct vm *vm, struct err *err)
{
    char path[PATH_MAX];
    pid_t pid;
    int pidfd;
    if (find_qemu(vm, &pid, &pidfd) < 0)
        return 0;
    log_info("ending a QEMU that is left over (pid %d)", (int)pid);
    int r = pid_signal_wait(pidfd, SIGKILL, 10000);
    close(pidfd);
    if (r < 0)
        return err_sys(err, r, "cannot end QEMU (pid %d)", (int)pid);
    qemu_record_path(vm, path);
    unlink(path);
    return 0;
}

/* Some of the guest's memory is on another host, and cannot come any more. Its main thread may wait for a
 * page for ever, so QEMU is not asked. */
static int lose_memory(struct vm *vm, struct err *err)
{
    int r = end_leftover(vm, err);
    if (r == 0)
        r = forget_memory(vm, err);
    if (r < 0)
        return r;
    err_set(err, ESRCH, "the guest has crashed: orai-vm ended while some of its memory was still on %s",
            epoch_get(vm->epoch)->peer.name);
    return err_hint(err, "start it again with: orai start %s", vm->config.name);
}

/* Some of the guest's memory is still on another host, and comes through the next orai-vm as well. */
static int follow_memory(struct vm *vm, struct err *err)
{
    struct err why = ERR_NONE;
    int r = claim_disks(vm, err);
    if (r < 0)
        return r;
    if (vm_arrival_follow(vm, &why) == 0)
        return 0;
    log_error("the memory that is still on %s cannot come: %s", epoch_get(vm->epoch)->peer.name, why.text);
    return lose_memory(vm, err);
}

/* A migration that was under way when our predecessor died before the commit: the guest goes on here. */
static int end_migration(struct vm *vm, struct err *err)
{
    struct qemu *qemu = machine_qemu(vm->machine);
    struct qemu_migration migration;
    int r = qemu_migrate_query(qemu, &migration, err);
    if (r < 0)
        return r;
    if (strncmp(migration.status, "postcopy-", 9) == 0) {
        struct err why = ERR_NONE;
        if (take_back_guest(vm->machine, &vm->host.env, &why) == 0)
            return 0;
        log_error("QEMU's post-copy cannot be taken back: %s", why.text);
        return lose_memory(vm, err);
    }
    if (strcmp(migration.status, "none") != 0)
        log_info("QEMU's migration is \"%s\": the guest stays here", migration.status);
    return qemu_migrate_cancel(qemu, err);
}

/* Whatever the guest was interrupted in, it runs again, unless its owner paused it or QEMU says it cannot. */
static int continue_guest(struct vm *vm, struct err *err)
{
    static const char *const startable[] = {"prelaunch", "paused", "postmigrate", "io-error",
                                            "finish-migrate"};
    char status[32];
    int r = qemu_status(machine_qemu(vm->machine), status, err);
    for (size_t i = 0; r == 0 && i < ARRAY_SIZE(startable); i++)
        if (strcmp(status, startable[i]) == 0 && !vm_wants_paused(vm)) {
            r = qemu_cont(machine_qemu(vm->machine), err);
            break;
        }
    if (r == 0)
        vm_look(vm);
    return r;
}

static int resume_owner(struct vm *vm, struct err *err)
{
    pid_t pid;
    int pidfd;
    int r = find_qemu(vm, &pid, &pidfd);
    if (r < 0) {
        err_set(err, ESRCH, "no QEMU of %s runs: the guest has ended or crashed while nobody watched",
                vm->config.name);
        err_hint(err, "start it with: orai start %s", vm->config.name);
        return -ESRCH;
    }
    close(pidfd);
    if (epoch_get(vm->epoch)->memory_away)
        return follow_memory(vm, err);
    r = machine_new(&vm->host.env, &vm->config, &vm->machine, err);
    if (r == 0)
        r = claim_disks(vm, err);
    if (r == 0)
        r = machine_open_disks(vm->machine, 0, err);
    if (r == 0) /* QEMU may have waited for blocks when our predecessor died */
        r = vm_start_fetch(vm, err);
    if (r == 0)
        r = machine_adopt(vm->machine, events_from_qemu, vm, err);
    if (r == 0)
        r = end_migration(vm, err);
    return r < 0 ? r : continue_guest(vm, err);
}

/* A move to here that had not become ready: what came is a partial copy, and the record goes back below the
 * epoch that was hoped for. */
static int abandon_arrival(struct vm *vm, struct err *err)
{
    struct epoch_record record = *epoch_get(vm->epoch);
    record.role = EPOCH_REPLICA;
    record.epoch = record.was;
    return epoch_set(vm->epoch, &record, err);
}

int vm_resume(struct vm *vm, struct err *err)
{
    struct epoch_record record = *epoch_get(vm->epoch);
    int r = machine_end_leftover(vm->options.run_dir, err);
    if (r < 0)
        return r;
    switch (record.role) {
    case EPOCH_OWNER:
        return resume_owner(vm, err);
    case EPOCH_COMMITTED:
        return vm_departure_resume(vm, err);
    case EPOCH_ARRIVING:
        if (record.ready)
            return vm_arrival_resume(vm, err);
        r = end_leftover(vm, err);
        if (r == 0)
            r = abandon_arrival(vm, err);
        if (r == 0)
            vm_end(vm, VM_REPLICA, "abandoned");
        return r;
    case EPOCH_REPLICA:
        r = end_leftover(vm, err);
        if (r == 0 && record.lent)
            return vm_lend_resume(vm, err);
        if (r == 0)
            vm_end(vm, VM_REPLICA, "moved");
        return r;
    }
    return err_set(err, EBADMSG, "the epoch record of %s has no known role", vm->config.name);
}
