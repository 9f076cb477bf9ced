/* SPDX-License-Identifier: Apache-2.0 */
#include "move/arrival.h"

#include "base/clock.h"
#include "base/json.h"
#include "base/log.h"
#include "base/macro.h"

#include <errno.h>
#include <string.h>

void arrival_enter(struct arrival *arrival, const char *stage)
{
    (void)stage; /* people see the source's progress, which names the stage */
    if (arrival->host->on_change)
        arrival->host->on_change(arrival->host->arg);
}

/* The source should not wait for its own timeouts. */
void arrival_failed(struct arrival *arrival, const struct err *err)
{
    struct err why = *err;
    bool as_wished =
        arrival->dry_run && err->code == ECANCELED; /* its end, which the source has brought about */
    err_where(&why, arrival->host->name, NULL);
    if (as_wished || arrival->session.peer_failed || !arrival->session.control)
        return;
    _cleanup_json_ json_t *json = err_to_json(&why);
    if (link_send_json(arrival->session.control, FRAME_ERROR, json, NULL) == 0)
        link_drain(arrival->session.control, clock_now() + NSEC_PER_SEC, NULL);
}

bool arrival_may_roll_back(const struct arrival *arrival)
{
    return !arrival->taken;
}

/* --- the thread ----------------------------------------------------------------------------------------- */

static void *arrival_thread(void *arg)
{
    struct arrival *arrival = arg;
    struct err err = ERR_NONE;
    int r = stages_walk_destination(arrival,
                                    arrival->taken     ? STAGE_FINISH
                                    : arrival->resumed ? STAGE_COMMIT
                                                       : STAGE_PREPARE,
                                    STAGE_FINISH, &err);
    bool here = !arrival_may_roll_back(arrival);
    if (r < 0) {
        err_where(&err, arrival->host->name, NULL);
        pthread_mutex_lock(&arrival->lock);
        arrival->why = err;
        pthread_mutex_unlock(&arrival->lock);
    }
    arrival_close_links(arrival);
    log_info("arrival of %s from %s: %s%s%s", arrival->config.name, arrival->source_name,
             here ? "the guest runs here" : "ended", r < 0 ? ": " : "", r < 0 ? err.text : "");
    atomic_store(&arrival->outcome, here ? MOVE_MOVED : MOVE_STAYED);
    if (arrival->host->on_change)
        arrival->host->on_change(arrival->host->arg);
    return NULL;
}

static struct arrival *arrival_new(const struct move_host *host, const struct move_peer *source,
                                   struct epoch *epoch, struct err *err)
{
    struct arrival *arrival = calloc(1, sizeof *arrival);
    if (!arrival || session_init(&arrival->session, 0, err) < 0) {
        free(arrival);
        err_set(err, ENOMEM, "out of memory");
        return NULL;
    }
    arrival->host = host;
    arrival->source = *source;
    arrival->epoch = epoch;
    arrival->before = *epoch_get(epoch);
    arrival->move = arrival->before.move;
    pthread_mutex_init(&arrival->lock, NULL);
    arrival_open_porch(arrival);
    return arrival;
}

static int launch(struct arrival *arrival, struct arrival **ret, struct err *err)
{
    int r = pthread_create(&arrival->thread, NULL, arrival_thread, arrival);
    if (r != 0) {
        err_sys(err, r, "cannot start the arrival's thread");
        arrival->thread = 0;
        arrival_free(arrival);
        return -r;
    }
    *ret = arrival;
    return 0;
}

int arrival_start(const struct move_host *host, const struct move_peer *source, const struct id *vm,
                  struct epoch *epoch, struct arrival **ret, struct err *err)
{
    struct arrival *arrival = arrival_new(host, source, epoch, err);
    if (!arrival)
        return -ENOMEM;
    arrival->config.id = *vm;
    return launch(arrival, ret, err);
}

static int new_resumed(const struct move_host *host, const struct vm_config *config, struct epoch *epoch,
                       struct arrival **ret, struct err *err)
{
    const struct epoch_record *record = epoch_get(epoch);
    struct move_peer source = {.port = record->peer.port, .fingerprint = record->peer.fingerprint};
    snprintf(source.name, sizeof source.name, "%s", record->peer.name);
    snprintf(source.address, sizeof source.address, "%s", record->peer.address);
    struct arrival *arrival = arrival_new(host, &source, epoch, err);
    if (!arrival)
        return -ENOMEM;
    arrival->config = *config;
    arrival->resumed = arrival->ready = true;
    arrival->guest_runs = record->guest_runs;
    arrival->next_epoch = record->epoch;
    snprintf(arrival->source_name, sizeof arrival->source_name, "%s", record->peer.name);
    *ret = arrival;
    return 0;
}

int arrival_resume(const struct move_host *host, const struct vm_config *config, struct epoch *epoch,
                   struct arrival **ret, struct err *err)
{
    struct arrival *arrival;
    int r = new_resumed(host, config, epoch, &arrival, err);
    return r < 0 ? r : launch(arrival, ret, err);
}

int arrival_resume_following(const struct move_host *host, struct machine **machine, struct epoch *epoch,
                             struct arrival **ret, struct err *err)
{
    struct arrival *arrival;
    int r = new_resumed(host, machine_config(*machine), epoch, &arrival, err);
    if (r < 0)
        return r;
    arrival->taken = arrival->memory_later = true;
    r = arrival_load_blocks(arrival, err);
    if (r < 0) {
        arrival_free(arrival);
        return r;
    }
    arrival->machine = TAKE_PTR(*machine);
    return launch(arrival, ret, err);
}

int arrival_cancel(struct arrival *arrival, struct err *err)
{
    if (arrival->outcome != MOVE_RUNNING)
        return err_set(err, EALREADY, "the move is over");
    /* The source is asked to cancel, by the control link's own thread (ask_to_cancel); before there is one,
     * and once it is gone, the walker gives up by itself. */
    arrival->give_up = true;
    pthread_mutex_lock(&arrival->lock);
    bool alone = !arrival->session.control;
    pthread_mutex_unlock(&arrival->lock);
    if (alone && !arrival->ready)
        session_cancel(&arrival->session);
    session_wake(&arrival->session);
    return 0;
}

int arrival_run_here(struct arrival *arrival, struct err *err)
{
    if (arrival->outcome != MOVE_RUNNING || !arrival->ready)
        return err_set(err, EINVAL, "the VM is not wholly here: it cannot be run");
    arrival->run_here = true;
    session_wake(&arrival->session);
    return 0;
}

enum move_outcome arrival_outcome(const struct arrival *arrival)
{
    return arrival->outcome;
}

json_t *arrival_status(const struct arrival *arrival)
{
    pthread_mutex_t *lock = (pthread_mutex_t *)&arrival->lock; /* locking does not change the arrival */
    char move[ID_TEXT_SIZE];
    pthread_mutex_lock(lock);
    json_t *json = arrival->shown ? json_deep_copy(arrival->shown)
                                  : json_pack("{s:s, s:s, s:s, s:s, s:s, s:s, s:s}", "move",
                                              id_format(&arrival->move, move), "vm", arrival->config.name,
                                              "from", arrival->source_name, "to", arrival->host->name, "role",
                                              "destination", "stage", "prepare", "phase", "disk");
    json_object_set_new(json, "state", json_string(move_outcome_name(arrival->outcome)));
    if (arrival->why.code)
        json_object_set_new(json, "error", err_to_json(&arrival->why));
    pthread_mutex_unlock(lock);
    return json;
}

bool arrival_is_here(const struct arrival *arrival)
{
    return arrival->taken;
}

const struct err *arrival_error(const struct arrival *arrival)
{
    return &arrival->why;
}

struct machine *arrival_machine(struct arrival *arrival)
{
    return TAKE_PTR(arrival->machine);
}

struct fetch *arrival_fetch(struct arrival *arrival)
{
    return arrival_lacks(arrival) ? TAKE_PTR(arrival->fetch) : NULL;
}

void arrival_free(struct arrival *arrival)
{
    if (!arrival)
        return;
    if (arrival->thread)
        pthread_join(arrival->thread, NULL);
    arrival_close_links(arrival);
    arrival_close_donors(arrival);
    session_done(&arrival->session);
    stream_free(arrival->old_stream);
    checkpoint_close(arrival->checkpoint);
    workset_free(arrival->workset);
    compare_done(&arrival->compare);
    fetch_free(arrival->fetch);
    free(arrival->ram_blocks);
    for (size_t i = 0; i < VM_MAX_DISKS; i++)
        free(arrival->missing[i].bits);
    machine_free(arrival->machine);
    for (size_t i = 0; i < ARRIVAL_MAX_CLAIMS; i++)
        lineage_free(arrival->claims[i].lineage);
    json_decref(arrival->shown);
    porch_free(&arrival->porch);
    pthread_mutex_destroy(&arrival->lock);
    free(arrival);
}
