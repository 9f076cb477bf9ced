/* SPDX-License-Identifier: Apache-2.0
 *
 * The destination's last stages. After "ready" the source may commit at any moment, perhaps without our
 * hearing of it: so a broken connection ends nothing. We wait for the source to come back
 * (arrival_take_connection) and, when it has not for HOLD_NS, refuse durably: then a commit that was made in
 * the dark is answered "refused", and the guest goes on there. Taking and refusing are one durable write each
 * to the same record, so never both.
 */
#include "base/clock.h"
#include "base/json.h"
#include "base/log.h"
#include "base/macro.h"
#include "move/arrival.h"
#include "move/fault.h"

#include <errno.h>
#include <poll.h>
#include <string.h>

#define HOLD_NS (120 * NSEC_PER_SEC)

bool arrival_qemu_alive(const struct arrival *arrival)
{
    if (!arrival->machine || !machine_qemu(arrival->machine))
        return false;
    struct pollfd gone = {.fd = qemu_pidfd(machine_qemu(arrival->machine)), .events = POLLIN};
    return poll(&gone, 1, 0) == 0;
}

int arrival_refuse(struct arrival *arrival, struct err *err)
{
    struct epoch_record record = *epoch_get(arrival->epoch);
    record.role = EPOCH_REPLICA;
    record.ready = false;
    record.borrowed = record.memory_away = false;
    record.forked = false;
    record.epoch = record.was;
    record.refused = arrival->next_epoch;
    return epoch_set(arrival->epoch, &record, err);
}

static int answer(struct arrival *arrival, enum frame_type type)
{
    _cleanup_json_ json_t *json =
        json_pack("{s:s, s:I}", "host", arrival->host->name, "epoch", (json_int_t)arrival->next_epoch);
    struct link *control = arrival->session.control;
    if (type == FRAME_RUNNING && arrival->standstill.goes_on)
        json_object_set_new(json, "clock_forward_ms",
                            json_integer(arrival->standstill.forward / NSEC_PER_MSEC));
    int r = control ? link_send_json(control, type, json, NULL) : -ENOTCONN;
    return r < 0 ? r : link_drain(control, clock_now() + 2 * NSEC_PER_SEC, NULL);
}

int arrival_say_running(struct arrival *arrival)
{
    return answer(arrival, FRAME_RUNNING);
}

/* The disks become the newest there are. The guest waits until they are: it could not write before. */
static void own_disks(struct arrival *arrival)
{
    struct err err = ERR_NONE;
    for (size_t i = 0; i < machine_disk_count(arrival->machine); i++) {
        struct disk *disk = machine_disk(arrival->machine, i);
        for (int tries = 0; arrival_own_disk(disk, &err) < 0; tries++) {
            if (tries == 0)
                log_error("the guest waits for its disk: %s; trying again each second", err.text);
            clock_sleep(NSEC_PER_SEC);
        }
        disk_thaw(disk);
    }
}

/* The commit is ours: durable first, then the guest runs. A failure is before the durable write. */
static int take(struct arrival *arrival, const json_t *addresses, struct err *err)
{
    struct epoch_record record = *epoch_get(arrival->epoch);
    record.role = EPOCH_OWNER;
    record.ready = false;
    record.forked = false;
    record.guest_runs = arrival->guest_runs;
    int r = epoch_set(arrival->epoch, &record, err);
    if (r < 0)
        return r;
    arrival->taken = true;
    if (fault_point(err, "destination.commit.written") < 0)
        log_warning("%s", err->text);
    own_disks(arrival);
    if (arrival_lacks(arrival) && arrival_open_fetch(arrival, err) < 0)
        log_error("%s", err->text);
    if (arrival->guest_runs && arrival_go_on(arrival, err) < 0)
        log_error("the guest is here but does not run: %s", err->text);
    qemu_hurry(machine_qemu(arrival->machine), false); /* not before: its clock runs from here on */
    machine_announce(arrival->machine, addresses);
    if (arrival->host->on_change)
        arrival->host->on_change(arrival->host->arg);
    return 0;
}

/* After "ready" there are three ends only: the epoch taken, refused durably, or given up by the source
 * itself. Whatever else fails here (a full disk under the record, say) is tried again. */
enum end { END_NONE, END_TAKEN, END_REFUSED, END_SOURCE_GAVE_UP };

static enum end refuse(struct arrival *arrival, const char *why, struct err *err)
{
    int r = arrival_refuse(arrival, err);
    if (r < 0) {
        log_error("cannot refuse durably: %s", err->text);
        return END_NONE;
    }
    answer(arrival, FRAME_REFUSED);
    err_set(err, EOWNERDEAD, "%s: refused durably", why);
    return END_REFUSED;
}

static enum end on_commit(struct arrival *arrival, const struct mail *mail, struct err *err)
{
    _cleanup_json_ json_t *commit = NULL;
    uint64_t epoch;
    int r = json_parse((const char *)mail->payload, mail->frame.length, "commit", &commit, err);
    if (r == 0)
        r = json_get_u64(commit, "epoch", "commit", &epoch, err);
    if (r == 0 && epoch != arrival->next_epoch)
        r = err_set(err, ESTALE, "a commit for epoch %llu, not %llu", (unsigned long long)epoch,
                    (unsigned long long)arrival->next_epoch);
    if (r == 0) {
        if (!arrival_qemu_alive(arrival))
            return refuse(arrival, "QEMU on the destination ended before the guest ran", err);
        arrival->guest_runs = json_bool(commit, "guest_runs", true);
        r = take(arrival, json_object_get(commit, "addresses"), err);
    }
    if (r == 0)
        return END_TAKEN;
    log_error("the commit cannot be taken: %s", err->text);
    return END_NONE;
}

/* Waits a little for the source. -EAGAIN: it is there and silent. */
static enum end listen_to_source(struct arrival *arrival, int *ret_code, struct err *err)
{
    struct mail *mail;
    enum end end = END_NONE;
    *ret_code = session_next(&arrival->session, clock_now() + 200 * NSEC_PER_MSEC, &mail, err);
    if (*ret_code == 0) {
        if (mail->frame.type == FRAME_COMMIT)
            end = on_commit(arrival, mail, err);
        free(mail);
    } else if (arrival->session.peer_failed) {
        end = END_SOURCE_GAVE_UP;
    }
    return end;
}

static enum end wait_commit(struct arrival *arrival, struct err *err)
{
    int64_t refuse_at = clock_now() + HOLD_NS;
    enum end end = END_NONE;
    while (end == END_NONE) {
        int r;
        if (arrival->run_here) {
            arrival->guest_runs = true;
            end = take(arrival, NULL, err) == 0 ? END_TAKEN : END_NONE;
            arrival->run_here = false;
            continue;
        }
        end = listen_to_source(arrival, &r, err);
        if (end != END_NONE || r == 0)
            continue;
        if (r == -EAGAIN && arrival->session.control) {
            refuse_at = clock_now() + HOLD_NS;
            continue;
        }
        if (arrival_take_connection(arrival))
            continue;
        if (arrival->give_up)
            end = refuse(arrival, "cancelled here", err);
        else if (clock_now() > refuse_at)
            end = refuse(arrival, "the source did not come back", err);
        if (end == END_NONE)
            clock_sleep(50 * NSEC_PER_MSEC);
    }
    return end;
}

/* Memory that was to come after the switch came through the orai-vm that crashed. */
static int check_loaded(struct arrival *arrival, struct err *err)
{
    struct qemu_migration migration;
    int r = qemu_migrate_query(machine_qemu(arrival->machine), &migration, err);
    if (r == 0 && strcmp(migration.status, "completed") != 0)
        r = err_set(err, EOWNERDEAD, "its memory was not here yet");
    return r;
}

/* After a crash of orai-vm: the QEMU that had loaded the guest, if it is still there. */
static enum end reopen(struct arrival *arrival, struct err *err)
{
    int r = machine_new(&arrival->host->env, &arrival->config, &arrival->machine, err);
    if (r == 0)
        r = machine_open_disks(arrival->machine, DISK_FROZEN, err);
    if (r == 0)
        r = machine_adopt(arrival->machine, arrival->host->on_qemu_event, arrival->host->arg, err);
    if (r == 0)
        r = check_loaded(arrival, err);
    if (r == 0 && epoch_get(arrival->epoch)->borrowed)
        r = arrival_new_fetch(arrival, err);
    if (r == 0)
        return END_NONE;
    log_warning("the guest that had arrived is lost here (%s): the source will be told to keep it",
                err->text);
    enum end end;
    while ((end = refuse(arrival, "QEMU on the destination ended before the guest ran", err)) == END_NONE)
        clock_sleep(NSEC_PER_SEC);
    return end;
}

int arrival_commit(struct arrival *arrival, struct err *err)
{
    enum end end = arrival->resumed ? reopen(arrival, err) : END_NONE;
    if (end == END_NONE)
        end = wait_commit(arrival, err);
    return end == END_TAKEN ? 0 : -err->code;
}

/* The guest runs here; the source is told, and told again if it asks on a new connection (arrival_answer). */
int arrival_finish(struct arrival *arrival, struct err *err)
{
    struct mail *mail;
    arrival_remove_donors(arrival);
    arrival_remove_checkpoint(arrival);
    int r = arrival_say_running(arrival);
    if (arrival->memory_later) {
        r = arrival_follow(arrival, err);
        if (r < 0)
            return r;
    } else if (r == 0 && session_wait(&arrival->session, FRAME_FINISH, clock_now() + 5 * NSEC_PER_SEC, &mail,
                                      err) == 0) {
        free(mail);
    }
    arrival_keep_workset(arrival);
    return 0;
}
