/* SPDX-License-Identifier: Apache-2.0
 *
 * moving: begins moves, hands them connections, and takes over again when they have an outcome. In between
 * machine and epoch record are the move's.
 */
#include "vm/vm.h"

#include "base/log.h"
#include "base/macro.h"
#include "base/pid.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

bool vm_is_moving(const struct vm *vm)
{
    return vm->departure || vm->arrival || vm->refresh;
}

int vm_need_identity(struct vm *vm, struct err *err)
{
    struct tls_identity *identity;
    if (vm->host.identity)
        return 0;
    int r = tls_identity_open(vm->options.state_dir, vm->options.host_name, &identity, err);
    if (r == 0)
        vm->host.identity = identity;
    return r;
}

static void tell_move(struct vm *vm)
{
    control_tell(vm->control, json_pack("{s:s, s:o}", "event", "progress", "move", vm_move_status(vm)));
}

/* --- departure ------------------------------------------------------------------------------------------ */

void vm_hand_machine_over(struct vm *vm)
{
    json_decref(vm->disks);
    vm->disks = vm_disks(vm);
    vm->stop_deadline = 0;
}

static void begin(struct vm *vm)
{
    vm_hand_machine_over(vm);
    json_decref(vm->last_move);
    vm->last_move = NULL;
}

int vm_depart(struct vm *vm, const struct move_options *options, struct err *err)
{
    int r = vm_need_identity(vm, err);
    if (r < 0)
        return r;
    if (vm_is_split(vm)) {
        err_set(err, EBUSY, "the disks of %s are not wholly here yet: %s still lends blocks", vm->config.name,
                epoch_get(vm->epoch)->peer.name);
        return err_hint(err, "wait until they are: orai status %s", vm->config.name);
    }
    if (fingerprint_equal(tls_identity_fingerprint(vm->host.identity), &options->peer.fingerprint))
        return err_set(err, EINVAL, "%s is this host: %s is here already", options->peer.name,
                       vm->config.name);
    begin(vm);
    /* QEMU's events wait until there is a departure to hear them. */
    pthread_mutex_lock(&vm->events.mutex);
    r = departure_start(&vm->host, vm->machine, vm->epoch, options, &vm->departure, err);
    vm->events.departure = r == 0 ? vm->departure : NULL;
    pthread_mutex_unlock(&vm->events.mutex);
    if (r == 0)
        vm_set_state(vm, VM_LEAVING);
    return r;
}

/* The guest is not to run unless the peer refuses, so its disks stay frozen; QEMU may be gone. */
int vm_departure_resume(struct vm *vm, struct err *err)
{
    int r = vm_need_identity(vm, err);
    if (r == 0)
        r = machine_new(&vm->host.env, &vm->config, &vm->machine, err);
    if (r == 0)
        r = machine_open_disks(vm->machine, DISK_FROZEN, err);
    if (r < 0)
        return r;
    r = machine_adopt(vm->machine, events_from_qemu, vm, err);
    if (r < 0 && r != -ESRCH)
        return r;
    begin(vm);
    pthread_mutex_lock(&vm->events.mutex);
    r = departure_resume(&vm->host, vm->machine, vm->epoch, &vm->departure, err);
    vm->events.departure = r == 0 ? vm->departure : NULL;
    pthread_mutex_unlock(&vm->events.mutex);
    if (r == 0)
        vm_set_state(vm, VM_COMMITTED);
    return r;
}

static void departure_ended(struct vm *vm, enum move_outcome outcome)
{
    tell_move(vm);
    vm->last_move = vm_move_status(vm);
    pthread_mutex_lock(&vm->events.mutex);
    vm->events.departure = NULL;
    pthread_mutex_unlock(&vm->events.mutex);
    int ram = outcome == MOVE_MOVED ? departure_take_ram(vm->departure) : -1;
    if (outcome == MOVE_MOVED)
        vm->lender = departure_take_lender(vm->departure);
    departure_free(TAKE_PTR(vm->departure));

    if (outcome == MOVE_MOVED) {
        control_tell(vm->control,
                     json_pack("{s:s, s:s}", "event", "moved", "peer", epoch_get(vm->epoch)->peer.name));
        if (vm->lender)
            vm_lend(vm);
        else
            vm_end(vm, VM_REPLICA, "moved");
        vm_keep_ram(vm, ram);
    } else if (outcome == MOVE_GUEST_LOST || !machine_qemu(vm->machine)) {
        snprintf(vm->reason, sizeof vm->reason, "QEMU ended during a move, before the hand-over");
        vm_end(vm, VM_CRASHED, "crashed");
    } else {
        vm_look(vm);
        vm_take_news(vm);
    }
}

/* --- arrival -------------------------------------------------------------------------------------------- */

static void arrival_began(struct vm *vm)
{
    pthread_mutex_lock(&vm->events.mutex);
    vm->events.arrival = vm->arrival;
    pthread_mutex_unlock(&vm->events.mutex);
    vm_set_state(vm, VM_ARRIVING);
}

int vm_arrive(struct vm *vm, struct err *err)
{
    const struct epoch_record *record = epoch_get(vm->epoch);
    if (record->role == EPOCH_ARRIVING && !record->ready) {
        /* An earlier try that was cut short. */
        int r = vm_resume(vm, err);
        if (r < 0)
            return r;
        vm->ended = NULL;
    } else if (record->role != EPOCH_REPLICA && !(record->role == EPOCH_OWNER && record->forked)) {
        return err_set(err, EEXIST, "the VM cannot come here: this host holds it as %s, epoch %llu",
                       epoch_role_name(record->role), (unsigned long long)record->epoch);
    }
    if (id_is_zero(&vm->id))
        return err_set(err, EINVAL, "arrive needs the VM's id: there is no vm.json in %s",
                       vm->options.vm_dir);
    int r = vm_need_identity(vm, err);
    if (r == 0)
        r = arrival_start(&vm->host, &vm->options.source, &vm->id, vm->epoch, &vm->arrival, err);
    if (r == 0)
        arrival_began(vm);
    return r;
}

int vm_arrival_resume(struct vm *vm, struct err *err)
{
    int r = vm_need_identity(vm, err);
    if (r == 0)
        r = arrival_resume(&vm->host, &vm->config, vm->epoch, &vm->arrival, err);
    if (r == 0)
        arrival_began(vm);
    return r;
}

int vm_arrival_follow(struct vm *vm, struct err *err)
{
    int r = vm_need_identity(vm, err);
    if (r == 0)
        r = machine_new(&vm->host.env, &vm->config, &vm->machine, err);
    if (r == 0)
        r = machine_open_disks(vm->machine, 0, err);
    if (r == 0) /* QEMU may have waited for blocks when our predecessor died */
        r = vm_start_fetch(vm, err);
    if (r == 0)
        r = machine_adopt_waiting(vm->machine, err);
    if (r == 0) {
        vm_hand_machine_over(vm);
        r = arrival_resume_following(&vm->host, &vm->machine, vm->epoch, &vm->arrival, err);
    }
    if (r == 0) {
        arrival_began(vm);
        return 0;
    }
    vm_end_split(vm);
    machine_free(TAKE_PTR(vm->machine));
    return r;
}

/* Once the guest is ours, whatever still has to come. */
static void tell_arrived(struct vm *vm)
{
    if (!vm->arrived)
        control_tell(vm->control, json_pack("{s:s}", "event", "arrived"));
    vm->arrived = true;
}

static void arrival_ended(struct vm *vm, enum move_outcome outcome)
{
    tell_move(vm);
    vm->last_move = vm_move_status(vm);
    pthread_mutex_lock(&vm->events.mutex);
    vm->events.arrival = NULL;
    pthread_mutex_unlock(&vm->events.mutex);
    if (outcome == MOVE_MOVED) {
        vm->machine = arrival_machine(vm->arrival);
        if (!vm->fetch) /* else it is that of vm_arrival_follow */
            vm->fetch = arrival_fetch(vm->arrival);
        snprintf(vm->reason, sizeof vm->reason, "%.250s", arrival_error(vm->arrival)->text);
    }
    arrival_free(TAKE_PTR(vm->arrival));
    if (!vm->machine) {
        vm_end(vm, VM_REPLICA, "abandoned");
        return;
    }
    vm->config = *machine_config(vm->machine);
    vm->has_config = true;
    vm_look(vm);
    vm_want_paused(vm, vm->state == VM_PAUSED);
    tell_arrived(vm);
    vm_take_news(vm);
}

int vm_connection(struct vm *vm, int socket, struct err *err)
{
    if (vm->arrival) {
        arrival_connection(vm->arrival, socket);
        return 0;
    }
    if (vm->departure)
        return departure_connection(vm->departure, socket, err);
    if (vm->lender) {
        lender_connection(vm->lender, socket);
        return 0;
    }
    int r = vm_need_identity(vm, err);
    if (r < 0) {
        close(socket);
        return r;
    }
    arrival_answer(&vm->host, &vm->id, epoch_get(vm->epoch), socket);
    return 0;
}

/* --- both ----------------------------------------------------------------------------------------------- */

int vm_move_cancel(struct vm *vm, struct err *err)
{
    return vm->departure ? departure_cancel(vm->departure, err) : arrival_cancel(vm->arrival, err);
}

int vm_move_run_here(struct vm *vm, struct err *err)
{
    return vm->departure ? departure_run_here(vm->departure, err) : arrival_run_here(vm->arrival, err);
}

void vm_check_move(struct vm *vm)
{
    enum move_outcome outcome = vm->departure ? departure_outcome(vm->departure)
                                : vm->arrival ? arrival_outcome(vm->arrival)
                                              : MOVE_RUNNING;
    if (vm->arrival && arrival_is_here(vm->arrival))
        tell_arrived(vm);
    if (outcome == MOVE_RUNNING)
        return;
    if (vm->departure)
        departure_ended(vm, outcome);
    else
        arrival_ended(vm, outcome);
}
