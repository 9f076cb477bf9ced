/* SPDX-License-Identifier: Apache-2.0 */
#include "move/departure.h"

#include "base/clock.h"
#include "base/log.h"
#include "base/macro.h"

#include <errno.h>
#include <poll.h>
#include <string.h>

size_t departure_disks(const struct departure *departure)
{
    return machine_disk_count(departure->machine);
}

void departure_show(struct departure *departure)
{
    progress_set(departure->progress, &departure->numbers);
    _cleanup_json_ json_t *json = progress_json(departure->progress, "destination");
    if (departure->session.control && link_queued(departure->session.control) < 64 * KiB)
        link_send_json(departure->session.control, FRAME_PROGRESS, json, NULL);
    if (departure->host->on_change)
        departure->host->on_change(departure->host->arg);
}

void departure_enter(struct departure *departure, const char *stage)
{
    departure->numbers.stage = stage;
    departure_show(departure);
}

void departure_failed(struct departure *departure, const struct err *err)
{
    departure->why = *err;
    err_where(&departure->why, departure->host->name, departure->numbers.stage);
}

bool departure_may_roll_back(const struct departure *departure)
{
    return epoch_get(departure->epoch)->role == EPOCH_OWNER;
}

void departure_qemu_event(struct departure *departure, const char *event, const json_t *data)
{
    if (!event) {
        session_wake(&departure->session);
        return;
    }
    if (strcmp(event, "STOP") == 0)
        atomic_store(&departure->stopped_at, clock_now());
    if (strcmp(event, "RESUME") == 0 && departure->committed)
        departure_fence(departure);
    if (strcmp(event, "MIGRATION") == 0) {
        static const struct {
            const char *status;
            enum departure_migration migration;
        } table[] = {
            {"setup", MIGRATION_NONE}, /* whatever became of the one before it */
            {"active", MIGRATION_ACTIVE},
            {"pre-switchover", MIGRATION_PRE_SWITCHOVER},
            {"postcopy-active", MIGRATION_POSTCOPY},
            {"completed", MIGRATION_COMPLETED},
            {"failed", MIGRATION_FAILED},
            {"postcopy-paused", MIGRATION_PAUSED},
            {"cancelled", MIGRATION_FAILED},
            {"cancelling", MIGRATION_FAILED},
        };
        const char *status = json_string_value(json_object_get(data, "status"));
        for (size_t i = 0; status && i < ARRAY_SIZE(table); i++) {
            enum departure_migration migration = table[i].migration;
            if (migration == MIGRATION_PAUSED && !departure->committed)
                migration = MIGRATION_FAILED; /* it could not read its peer, and is taken back */
            if (strcmp(table[i].status, status) == 0)
                atomic_store(&departure->migration, (int)migration);
        }
    }
    session_wake(&departure->session);
}

/* A process that has ended but was not reaped yet has ended; a pidfd is readable then. */
bool departure_qemu_alive(const struct departure *departure)
{
    if (!machine_qemu(departure->machine))
        return false;
    struct pollfd gone = {.fd = qemu_pidfd(machine_qemu(departure->machine)), .events = POLLIN};
    return poll(&gone, 1, 0) == 0;
}

int departure_check(struct departure *departure, struct err *err)
{
    int r = session_check(&departure->session, err);
    if (r == 0 && !departure_qemu_alive(departure))
        r = err_set(err, EOWNERDEAD, "the guest's QEMU has ended");
    return r;
}

static void record_outcome(struct departure *departure, int r, struct err *err)
{
    enum move_outcome outcome = MOVE_MOVED;
    if (r < 0 && departure_may_roll_back(departure))
        outcome = departure_qemu_alive(departure) ? MOVE_STAYED : MOVE_GUEST_LOST;
    else if (r == 0 && departure->options.dry_run)
        outcome = MOVE_PREDICTED;
    if (r < 0) {
        err_where(err, departure->host->name, NULL);
        if (outcome == MOVE_STAYED && !err->hint[0])
            err_hint(err, "the guest runs on %s as before; try again with: orai move %s %s",
                     departure->host->name, machine_config(departure->machine)->name,
                     departure->options.peer.name);
        if (outcome == MOVE_GUEST_LOST)
            err_hint(err, "start it again here with: orai start %s",
                     machine_config(departure->machine)->name);
    }
    if (outcome == MOVE_MOVED)
        progress_obstacle(departure->progress, NULL);
    progress_end(departure->progress, outcome, r < 0 ? err : NULL);
    log_info("move of %s to %s: %s%s%s", machine_config(departure->machine)->name,
             departure->options.peer.name, move_outcome_name(outcome), r < 0 ? ": " : "",
             r < 0 ? err->text : "");
    atomic_store(&departure->outcome, outcome);
}

static void *departure_run(void *arg)
{
    struct departure *departure = arg;
    struct err err = ERR_NONE;
    departure->began = clock_now();
    session_hurry();
    int r = stages_walk_source(departure, departure->resumed ? STAGE_COMMIT : STAGE_PREPARE,
                               departure->options.dry_run ? STAGE_PREPARE : STAGE_FINISH, &err);
    session_reset(&departure->session);
    record_outcome(departure, r, &err);
    if (departure->host->on_change)
        departure->host->on_change(departure->host->arg);
    return NULL;
}

static int start(const struct move_host *host, struct machine *machine, struct epoch *epoch,
                 const struct move_options *options, bool resumed, struct departure **ret, struct err *err)
{
    struct departure *departure = calloc(1, sizeof *departure);
    if (!departure)
        return err_set(err, ENOMEM, "out of memory");
    departure->host = host;
    departure->machine = machine;
    departure->epoch = epoch;
    departure->options = *options;
    departure->resumed = resumed;
    departure->kept_ram = -1;
    departure->last_hashes = &departure->hashes;
    departure->next_epoch = epoch_get(epoch)->epoch + (resumed ? 0 : 1);
    departure->numbers = (struct progress_numbers){.stage = "prepare",
                                                   .phase = "disk",
                                                   .disk_base = "none",
                                                   .converging = true,
                                                   .blackout_ms = -1,
                                                   .clock_forward_ms = -1,
                                                   .running_ms = -1};
    departure->progress = progress_new(&options->move, machine_config(machine)->name, host->name,
                                       options->peer.name, options->dry_run);
    int r = session_init(&departure->session, options->bandwidth, err);
    if (r == 0 && !departure->progress)
        r = err_set(err, ENOMEM, "out of memory");
    if (r == 0) {
        int failed = pthread_create(&departure->thread, NULL, departure_run, departure);
        r = failed ? err_sys(err, failed, "cannot start the move's thread") : 0;
    }
    if (r < 0) {
        session_done(&departure->session);
        progress_free(departure->progress);
        free(departure);
        return r;
    }
    *ret = departure;
    return 0;
}

int departure_start(const struct move_host *host, struct machine *machine, struct epoch *epoch,
                    const struct move_options *options, struct departure **ret, struct err *err)
{
    int r = departure_check_ram(machine, options, err);
    return r < 0 ? r : start(host, machine, epoch, options, false, ret, err);
}

int departure_resume(const struct move_host *host, struct machine *machine, struct epoch *epoch,
                     struct departure **ret, struct err *err)
{
    const struct epoch_record *record = epoch_get(epoch);
    struct move_options options = {.move = record->move, .connections = 1};
    options.peer.port = record->peer.port;
    options.peer.fingerprint = record->peer.fingerprint;
    snprintf(options.peer.name, sizeof options.peer.name, "%s", record->peer.name);
    snprintf(options.peer.address, sizeof options.peer.address, "%s", record->peer.address);
    return start(host, machine, epoch, &options, true, ret, err);
}

int departure_cancel(struct departure *departure, struct err *err)
{
    if (departure->outcome != MOVE_RUNNING)
        return err_set(err, EALREADY, "the move is over");
    if (!session_cancel(&departure->session)) {
        err_set(err, EALREADY, "the commit was made: the guest belongs to %s", departure->options.peer.name);
        return err_hint(err, "if %s never comes back: orai recover %s --run-here",
                        departure->options.peer.name, machine_config(departure->machine)->name);
    }
    return 0;
}

int departure_run_here(struct departure *departure, struct err *err)
{
    if (departure->outcome != MOVE_RUNNING || !departure->committed)
        return err_set(err, EINVAL, "no commit is waiting for an answer: there is nothing to decide");
    departure->run_here = true;
    session_wake(&departure->session);
    return 0;
}

enum move_outcome departure_outcome(const struct departure *departure)
{
    return departure->outcome;
}

json_t *departure_status(const struct departure *departure)
{
    return progress_json(departure->progress, "source");
}

void departure_free(struct departure *departure)
{
    if (!departure)
        return;
    pthread_join(departure->thread, NULL);
    session_done(&departure->session);
    stream_free(departure->old_stream);
    lender_free(departure->lender);
    if (departure->kept_ram >= 0)
        close(departure->kept_ram);
    ram_view_close(&departure->ram);
    departure_drop_hashes(departure);
    departure_free_asking(departure);
    known_free(departure->known);
    workset_free(departure->workset);
    for (size_t i = 0; i < VM_MAX_DISKS; i++)
        relocate_free(departure->relocate[i]);
    progress_free(departure->progress);
    free(departure);
}
