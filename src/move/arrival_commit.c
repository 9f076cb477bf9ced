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

static bool qemu_alive(const struct arrival *arrival)
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
    record.forked = false;
    record.epoch = arrival->next_epoch - 1;
    record.refused = arrival->next_epoch;
    return epoch_set(arrival->epoch, &record, err);
}

static int answer(struct arrival *arrival, enum frame_type type)
{
    _cleanup_json_ json_t *json =
        json_pack("{s:s, s:I}", "host", arrival->host->name, "epoch", (json_int_t)arrival->next_epoch);
    struct link *control = arrival->session.control;
    int r = control ? link_send_json(control, type, json, NULL) : -ENOTCONN;
    return r < 0 ? r : link_drain(control, clock_now() + 2 * NSEC_PER_SEC, NULL);
}

/* The disks become the newest there are. Failing here loses nothing: a later start of the owner's disk does
 * it again. */
static void own_disks(struct arrival *arrival)
{
    struct err err;
    for (size_t i = 0; i < machine_disk_count(arrival->machine); i++) {
        struct disk *disk = machine_disk(arrival->machine, i);
        _cleanup_(lineage_freep) struct lineage *lineage = NULL;
        int r = disk_lineage(disk, &lineage, &err);
        if (r == 0) {
            lineage->claim = LINEAGE_OWNER;
            r = disk_set_lineage(disk, lineage, &err);
        }
        if (r < 0)
            log_warning("%s", err.text);
        disk_thaw(disk);
    }
}

/* The commit is ours: durable first, then the guest runs. */
static int take(struct arrival *arrival, const json_t *addresses, struct err *err)
{
    struct epoch_record record = *epoch_get(arrival->epoch);
    record.role = EPOCH_OWNER;
    record.ready = false;
    record.forked = false;
    int r = epoch_set(arrival->epoch, &record, err);
    if (r < 0)
        return r;
    arrival->taken = true;
    r = fault_point(err, "destination.commit.written");
    own_disks(arrival);
    if (arrival->guest_runs && (r = qemu_cont(machine_qemu(arrival->machine), err)) < 0)
        log_error("the guest is here but does not run: %s", err->text);
    machine_announce(arrival->machine, addresses);
    return 0;
}

static int on_commit(struct arrival *arrival, const struct mail *mail, struct err *err)
{
    _cleanup_json_ json_t *commit = NULL;
    uint64_t epoch;
    int r = json_parse((const char *)mail->payload, mail->frame.length, "commit", &commit, err);
    if (r == 0)
        r = json_get_u64(commit, "epoch", "commit", &epoch, err);
    if (r == 0 && epoch != arrival->next_epoch)
        r = err_set(err, ESTALE, "a commit for epoch %llu, not %llu", (unsigned long long)epoch,
                    (unsigned long long)arrival->next_epoch);
    if (r < 0)
        return r;
    arrival->guest_runs = json_bool(commit, "guest_runs", true);
    if (!qemu_alive(arrival)) {
        r = arrival_refuse(arrival, err);
        if (r == 0)
            answer(arrival, FRAME_REFUSED);
        return r < 0
                   ? r
                   : err_set(err, EOWNERDEAD, "QEMU on the destination ended before the guest ran: refused");
    }
    return take(arrival, json_object_get(commit, "addresses"), err);
}

/* Before any commit was heard of. 0 = the guest is ours. */
static int wait_commit(struct arrival *arrival, struct err *err)
{
    int64_t refuse_at = clock_now() + HOLD_NS;
    for (;;) {
        if (arrival->run_here) {
            arrival->guest_runs = true;
            return take(arrival, NULL, err);
        }
        struct mail *mail;
        int r = session_next(&arrival->session, clock_now() + 200 * NSEC_PER_MSEC, &mail, err);
        if (r == 0) {
            if (mail->frame.type == FRAME_COMMIT)
                r = on_commit(arrival, mail, err);
            enum frame_type type = mail->frame.type;
            free(mail);
            if (type == FRAME_COMMIT && (r == 0 || arrival_may_roll_back(arrival)))
                return r;
            continue;
        }
        if (r == -EAGAIN && arrival->session.control) {
            refuse_at = clock_now() + HOLD_NS;
            continue;
        }
        if (arrival->session.peer_failed)
            return r; /* the source has rolled back by its own word */
        if (arrival_take_connection(arrival))
            continue;
        if (r == -ECANCELED || arrival->give_up || clock_now() > refuse_at) {
            int refused = arrival_refuse(arrival, err);
            if (refused == 0)
                return err_set(err, ETIMEDOUT,
                               arrival->give_up ? "cancelled here: refused durably"
                                                : "the source did not come back: refused durably");
        }
        clock_sleep(50 * NSEC_PER_MSEC);
    }
}

static int reopen(struct arrival *arrival, struct err *err)
{
    int r = machine_new(&arrival->host->env, &arrival->config, &arrival->machine, err);
    if (r == 0)
        r = machine_open_disks(arrival->machine, DISK_FROZEN, err);
    if (r == 0)
        r = machine_adopt(arrival->machine, arrival->host->on_qemu_event, arrival->host->arg, err);
    if (r == 0)
        return 0;
    log_warning("the guest that had arrived is lost here (%s): the source will be told to keep it",
                err->text);
    int refused = arrival_refuse(arrival, err);
    return refused < 0
               ? refused
               : err_set(err, EOWNERDEAD, "QEMU on the destination ended before the guest ran: refused");
}

int arrival_commit(struct arrival *arrival, struct err *err)
{
    int r = arrival->resumed ? reopen(arrival, err) : 0;
    return r < 0 ? r : wait_commit(arrival, err);
}

/* The guest runs here; the source is told, and told again if it asks on a new connection (arrival_answer). */
int arrival_finish(struct arrival *arrival, struct err *err)
{
    struct mail *mail;
    if (answer(arrival, FRAME_RUNNING) < 0)
        return 0;
    if (session_wait(&arrival->session, FRAME_FINISH, clock_now() + 5 * NSEC_PER_SEC, &mail, err) == 0)
        free(mail);
    return 0;
}
