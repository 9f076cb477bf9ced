/* SPDX-License-Identifier: Apache-2.0
 *
 * What the keeper hears: events of an orai-vm, its status when the watch begins, and what can be told from a
 * record when there is nobody left to tell. It becomes the VM's state, its wanted state, operations and
 * events of this host.
 */
#include "base/json.h"
#include "base/log.h"
#include "host/share.h"
#include "host/vm_internal.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

static void set_state(struct vms *vms, struct vm *vm, const char *state, const char *reason)
{
    char before[sizeof vm->state];
    pthread_mutex_lock(&vms->lock);
    memcpy(before, vm->state, sizeof before);
    snprintf(vm->state, sizeof vm->state, "%s", state);
    bool changed = strcmp(before, vm->state) != 0;
    pthread_mutex_unlock(&vms->lock);
    if (changed)
        event_add(vms->host->events, "vm.state", vm->name,
                  json_pack("{s:s, s:s?}", "state", state, "reason", reason && reason[0] ? reason : NULL));
}

static void set_desired(struct vms *vms, struct vm *vm, bool running)
{
    struct err err;
    if (vm_set_desired(vms, vm->name, running, &err) < 0 && err.code != ENOENT)
        log_error("%s: its wanted state is not kept: %s", vm->name, err.text);
}

/* --- moves ---------------------------------------------------------------------------------------------- */

static void end_move(struct vms *vms, struct vm *vm, const struct id *move, json_t *status,
                     const struct err *err)
{
    vm_end_move(vms, vm->name,
                move); /* first: who sees the operation ended may move it again, or cancel nothing */
    operation_end(vms->host->operations, move, status, err);
}

static void finish_move(struct vms *vms, struct vm *vm, const struct id *move, const json_t *status)
{
    const char *state = json_str(status, "state", "");
    struct err err = ERR_NONE;
    if (strcmp(state, "moved") == 0 || strcmp(state, "predicted") == 0) {
        end_move(vms, vm, move, json_deep_copy(status), NULL);
        return;
    }
    err_from_json(json_object_get(status, "error"), &err);
    err_where(&err, vms->host->options.name, json_str(status, "stage", NULL));
    end_move(vms, vm, move, json_deep_copy(status), &err);
}

/* A move status of orai-vm as the source; the destination's belongs to no operation here. */
static void take_move(struct vms *vms, struct vm *vm, const json_t *status)
{
    struct id move;
    if (!json_is_object(status) || id_parse(json_str(status, "move", ""), &move) < 0 ||
        strcmp(json_str(status, "role", ""), "source") != 0)
        return;
    operation_progress(vms->host->operations, &move, json_deep_copy(status));
    if (strcmp(json_str(status, "state", "running"), "running") != 0)
        finish_move(vms, vm, &move, status);
}

void vms_settle_move(struct vms *vms, struct vm *vm, const struct epoch_record *record)
{
    pthread_mutex_lock(&vms->lock);
    struct id move = vm->move;
    bool claimed = vms_find_claim(vms, vm->name) != NULL; /* the move has not reached orai-vm yet */
    pthread_mutex_unlock(&vms->lock);
    struct err err;
    if (id_is_zero(&move) || claimed || record->role == EPOCH_COMMITTED)
        return;
    if (record->role == EPOCH_REPLICA) {
        end_move(vms, vm, &move, NULL, NULL);
        return;
    }
    err_set(&err, EOWNERDEAD, "orai-vm ended during the move; the VM has not left this host");
    err_hint(&err, "orai info %s shows its state; then move it again", vm->name);
    err_where(&err, vms->host->options.name, NULL);
    end_move(vms, vm, &move, NULL, &err);
}

/* --- what orai-vm says ---------------------------------------------------------------------------------- */

static void take_ended(struct vms *vms, struct vm *vm, const json_t *event)
{
    const char *why = json_str(event, "why", "unknown");
    vm->ended = true;
    bool crashed = strcmp(why, "crashed") == 0;
    pthread_mutex_lock(&vms->lock);
    vm->crashed = crashed;
    if (crashed)
        snprintf(vm->sorrow, sizeof vm->sorrow, "%s", json_str(event, "reason", "QEMU ended unexpectedly"));
    pthread_mutex_unlock(&vms->lock);
    if (strcmp(why, "abandoned") != 0)
        set_desired(vms, vm, false);
    event_add(vms->host->events, "vm.ended", vm->name, json_pack("{s:s}", "why", why));
}

static void take_state(struct vms *vms, struct vm *vm, const json_t *said)
{
    const char *state = json_str(said, "state", "unknown");
    set_state(vms, vm, state, json_str(said, "reason", NULL));
    if (strcmp(state, "running") == 0) /* whatever word of it was missed */
        set_desired(vms, vm, true);
    if (strcmp(state, "starting") != 0) /* with the host; whatever happens from here on is its own life */
        vm->boot = false;
}

void vms_take_event(struct vms *vms, struct vm *vm, const json_t *event)
{
    const char *what = json_str(event, "event", "");
    if (strcmp(what, "state") == 0) {
        take_state(vms, vm, event);
    } else if (strcmp(what, "progress") == 0) {
        take_move(vms, vm, json_object_get(event, "move"));
    } else if (strcmp(what, "moved") == 0) {
        set_desired(vms, vm, false);
        event_add(vms->host->events, "vm.moved", vm->name,
                  json_pack("{s:O?}", "peer", json_object_get(event, "peer")));
    } else if (strcmp(what, "arrived") == 0) {
        set_desired(vms, vm, true);
        event_add(vms->host->events, "vm.arrived", vm->name, NULL);
    } else if (strcmp(what, "borrowing") == 0) {
        share_seek(vms->host, vm->name);
    } else if (strcmp(what, "ended") == 0) {
        take_ended(vms, vm, event);
    }
}

void vms_take_status(struct vms *vms, struct vm *vm, const json_t *status)
{
    take_state(vms, vm, status);
    take_move(vms, vm, json_object_get(status, "move"));
}

/* --- what nobody says ---------------------------------------------------------------------------------- */

void vms_take_crash(struct vms *vms, struct vm *vm)
{
    struct err words = ERR_NONE;
    const char *why = vm_last_words(vms->host, vm->name, &words) && words.code == ESRCH
                          ? words.text
                          : "QEMU ended while nobody watched it, perhaps because the host was restarted";
    pthread_mutex_lock(&vms->lock);
    vm->crashed = true;
    snprintf(vm->sorrow, sizeof vm->sorrow, "%.250s", why);
    pthread_mutex_unlock(&vms->lock);
    set_desired(vms, vm, false);
    event_add(vms->host->events, "vm.ended", vm->name,
              json_pack("{s:s, s:s}", "why", "crashed", "reason", why));
}
