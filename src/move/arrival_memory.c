/* SPDX-License-Identifier: Apache-2.0
 *
 * The destination's part of a move whose memory comes after the switch (departure_memory.c): the guest runs
 * here, and QEMU here gets pages until it has all. The source may come back over new connections at any time;
 * a guest whose memory will never be whole is ended, since it would wait for ever.
 */
#include "base/clock.h"
#include "base/json.h"
#include "base/log.h"
#include "base/macro.h"
#include "move/arrival.h"
#include "move/fault.h"

#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <string.h>

#define FOLLOWING_NS (100 * NSEC_PER_MSEC)
#define TELLING_NS (2 * NSEC_PER_MSEC) /* while pages come that need not */
#define LAST_NS (5 * NSEC_PER_SEC)     /* from the source's "finish" to QEMU's own end of it, and back */

/* Zero pages need no care of QEMU's, and where it is ours, too, the RAM needs none at all. */
static int take_short_cuts(struct arrival *arrival, struct stream *stream, struct err *err)
{
    struct qemu *qemu = machine_qemu(arrival->machine);
    uint64_t size = arrival->config.memory;
    if (arrival->memory_later)
        return stream_keep_holes(stream, QEMU_RAM_BLOCK, size, err);
    return qemu_ram(qemu) == VM_RAM_SHARED
               ? stream_put_directly(stream, QEMU_RAM_BLOCK, qemu_ram_fd(qemu), size, err)
               : 0;
}

int arrival_open_stream(struct arrival *arrival, struct err *err)
{
    char path[PATH_MAX];
    struct stream *stream;
    struct session *session = &arrival->session;
    snprintf(path, sizeof path, "%s/incoming.sock", arrival->host->env.run_dir);
    int r = stream_connect(path, arrival->memory_later, &stream, err);
    if (r == 0) {
        r = arrival_unpack(arrival, stream, err);
        if (r == 0)
            r = take_short_cuts(arrival, stream, err);
        if (r == 0)
            r = arrival_watch_clock(arrival, stream, err);
        if (r < 0)
            stream_free(stream);
    }
    if (r < 0)
        return r;
    pthread_mutex_lock(&arrival->lock);
    session->stream = stream;
    arrival->stream_number = 1;
    if (session->data_count) /* else place() does it */
        r = stream_attach(stream, session->data[0], 0, err);
    pthread_mutex_unlock(&arrival->lock);
    return r;
}

/* The links' threads look at the old stream no more often than a peer that breaks the protocol makes them. */
void arrival_put_stream_away(struct arrival *arrival)
{
    stream_interrupt(arrival->session.stream); /* nothing of it goes back behind our answer */
    stream_stop(arrival->session.stream);
    stream_free(arrival->old_stream);
    pthread_mutex_lock(&arrival->lock);
    arrival->old_stream = TAKE_PTR(arrival->session.stream);
    arrival->stream_number = 0;
    pthread_mutex_unlock(&arrival->lock);
}

static int say_anew(struct arrival *arrival, struct err *err)
{
    _cleanup_json_ json_t *answer = json_pack("{s:s}", "host", arrival->host->name);
    pthread_mutex_lock(&arrival->lock);
    struct link *link = arrival->session.data_count ? arrival->session.data[0] : NULL;
    pthread_mutex_unlock(&arrival->lock);
    return link ? link_send_json(link, FRAME_ANEW, answer, err)
                : err_set(err, EPROTO, "there is no data connection");
}

int arrival_renew(struct arrival *arrival, struct err *err)
{
    int r = fault_point(err, "destination.anew");
    arrival->renewing = true;
    if (r == 0)
        r = machine_stop(arrival->machine, 0, err);
    arrival_put_stream_away(arrival);
    compare_done(&arrival->compare); /* a view of the old one's RAM */
    arrival->compare = (struct compare){0};
    arrival->memory_whole = arrival->memory_failed = false;
    arrival->renewing = false;
    if (r < 0)
        return r;
    pthread_mutex_lock(&arrival->lock);
    arrival->memory_later = true;
    pthread_mutex_unlock(&arrival->lock);
    session_rest(); /* QEMU would inherit it */
    r = arrival_start_qemu(arrival, err);
    session_hurry();
    if (r == 0 && !arrival->memory_later)
        r = err_set(err, ENOTSUP, "memory cannot follow the guest: %s", arrival->no_later);
    if (r < 0)
        return r;
    arrival->anew = false;
    return say_anew(arrival, err);
}

bool arrival_is_renewing(const struct arrival *arrival)
{
    return arrival->renewing;
}

void arrival_qemu_event(struct arrival *arrival, const char *event, const json_t *data)
{
    const char *status = event && strcmp(event, "MIGRATION") == 0 ? json_str(data, "status", "") : "";
    if (strcmp(status, "completed") == 0)
        arrival->memory_whole = true;
    bool paused = strcmp(status, "postcopy-paused") == 0;
    if (strcmp(status, "failed") == 0 || (paused && !arrival->taken))
        arrival->memory_failed = true;
    if (paused || strcmp(status, "postcopy-active") == 0)
        arrival->memory_paused = paused;
    session_wake(&arrival->session);
}

int arrival_kill(struct arrival *arrival, struct err *err)
{
    if (arrival->outcome != MOVE_RUNNING || !arrival->taken)
        return err_set(err, EBUSY, "%s is not here yet", arrival->config.name);
    qemu_signal(machine_qemu(arrival->machine), SIGKILL);
    session_wake(&arrival->session);
    return 0;
}

#define MOST_RELAPSES 5

/* QEMU could not read what came: once more from what it has. 1: enough of that. */
static int relapse(struct arrival *arrival)
{
    if (!arrival->ram_blocks || ++arrival->relapses > MOST_RELAPSES)
        return 1;
    log_warning("QEMU could not read what came of the guest's memory");
    session_reset(&arrival->session); /* the source comes again, and hears that our stream is gone */
    arrival_put_stream_away(arrival);
    return 0;
}

/* 1: the source has nothing more to say. */
static int take_mail(struct arrival *arrival, const struct mail *mail)
{
    struct err err = ERR_NONE;
    if (mail->frame.type == FRAME_COMMIT) /* asked over a new connection */
        arrival_say_running(arrival);
    if (mail->frame.type == FRAME_RECOVER && arrival_recover(arrival, mail, &err) < 0) {
        log_warning("the memory of %s does not come yet: %s", arrival->config.name, err.text);
        session_reset(&arrival->session); /* the source comes again */
    }
    return mail->frame.type == FRAME_FINISH;
}

/* Nothing of the guest depends on this orai-vm any more. Tried until it works, for whoever finds the old
 * record ends the guest. */
static void note_whole(struct arrival *arrival)
{
    struct err err = ERR_NONE;
    struct epoch_record record = *epoch_get(arrival->epoch);
    record.memory_away = false;
    for (int tries = 0; epoch_set(arrival->epoch, &record, &err) < 0; tries++) {
        if (tries == 0)
            log_error("the memory is here, but that is not on record: %s; trying again each second",
                      err.text);
        if (!arrival_qemu_alive(arrival))
            return;
        clock_sleep(NSEC_PER_SEC);
    }
}

static int lose(struct arrival *arrival, const char *why, struct err *err)
{
    qemu_signal(machine_qemu(arrival->machine), SIGKILL);
    note_whole(arrival);
    err_set(err, EOWNERDEAD, "the guest has crashed: its memory was still on %s, and %s",
            arrival->source_name, why);
    return err_hint(err, "start it again with: orai start %s", arrival->config.name);
}

/* The source has nothing more to say. */
static int finish(struct arrival *arrival, struct err *err)
{
    for (int64_t until = clock_now() + LAST_NS; !arrival->memory_whole && clock_now() < until;)
        clock_sleep(NSEC_PER_MSEC), arrival_look_at_memory(arrival);
    if (!arrival->memory_whole)
        return lose(arrival, "it was lost there", err);
    note_whole(arrival);
    return 0;
}

static void wait_finish(struct arrival *arrival)
{
    struct mail *mail;
    if (session_wait(&arrival->session, FRAME_FINISH, clock_now() + LAST_NS, &mail, NULL) == 0)
        free(mail);
}

/* For those who watch at the source. */
static void tell_faults(struct arrival *arrival, uint64_t *told)
{
    struct faults faults;
    if (!arrival->tells_faults || !arrival->session.control ||
        !stream_faults(arrival->session.stream, &faults) || faults.count == *told)
        return;
    *told = faults.count;
    _cleanup_json_ json_t *json =
        json_pack("{s:I, s:I, s:I}", "count", (json_int_t)faults.count, "median_usec",
                  (json_int_t)faults_took(&faults, 0.5), "p99_usec", (json_int_t)faults_took(&faults, 0.99));
    link_send_json(arrival->session.control, FRAME_FAULTS, json, NULL);
}

int arrival_follow(struct arrival *arrival, struct err *err)
{
    struct session *session = &arrival->session;
    uint64_t told = 0;
    while (!arrival->memory_whole) {
        struct mail *mail;
        if (session_is_well(session)) /* else it is met below */
            arrival_tell_checkpoint(arrival, NULL);
        if (!arrival_qemu_alive(arrival)) { /* killed, crashed or shut down: as at any other time */
            note_whole(arrival);
            return 0;
        }
        tell_faults(arrival, &told);
        arrival_look_at_memory(arrival);
        bool broken = arrival->memory_paused && arrival->stream_number;
        if (arrival->memory_failed || (broken && relapse(arrival)))
            return lose(arrival, "QEMU could not read what came", err);
        int64_t wait = arrival->telling ? TELLING_NS : FOLLOWING_NS;
        int r = session_next(session, clock_now() + wait, &mail, NULL);
        if (r == 0) {
            bool last = take_mail(arrival, mail);
            free(mail);
            if (last)
                return finish(arrival, err);
        } else if (session->peer_failed) {
            return lose(arrival, "it does not come any more", err);
        } else if (!arrival_take_connection(arrival) && r != -EAGAIN) {
            session_reset(session); /* for the source all may be well: it hears of this, and comes again */
        }
    }
    tell_faults(arrival, &told);
    note_whole(arrival);
    wait_finish(arrival);
    return 0;
}
