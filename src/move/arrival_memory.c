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

#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <string.h>

#define LAST_NS (5 * NSEC_PER_SEC) /* from the source's "finish" to QEMU's own end of it, and back */

int arrival_open_stream(struct arrival *arrival, struct err *err)
{
    char path[PATH_MAX];
    struct stream *stream;
    struct session *session = &arrival->session;
    snprintf(path, sizeof path, "%s/incoming.sock", arrival->host->env.run_dir);
    int r = stream_connect(path, arrival->memory_later, &stream, err);
    if (r < 0)
        return r;
    pthread_mutex_lock(&arrival->lock);
    session->stream = stream;
    if (session->data_count) /* else place() does it */
        r = stream_attach(stream, session->data[0], 0, err);
    pthread_mutex_unlock(&arrival->lock);
    return r;
}

void arrival_qemu_event(struct arrival *arrival, const char *event, const json_t *data)
{
    const char *status = event && strcmp(event, "MIGRATION") == 0 ? json_str(data, "status", "") : "";
    if (strcmp(status, "completed") == 0)
        arrival->memory_whole = true;
    if (strcmp(status, "failed") == 0 || strcmp(status, "postcopy-paused") == 0)
        arrival->memory_failed = true;
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
        clock_sleep(NSEC_PER_MSEC);
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

int arrival_follow(struct arrival *arrival, struct err *err)
{
    struct session *session = &arrival->session;
    while (!arrival->memory_whole) {
        struct mail *mail;
        if (!arrival_qemu_alive(arrival)) { /* killed, crashed or shut down: as at any other time */
            note_whole(arrival);
            return 0;
        }
        if (arrival->memory_failed)
            return lose(arrival, "QEMU could not read what came", err);
        int r = session_next(session, clock_now() + 100 * NSEC_PER_MSEC, &mail, NULL);
        if (r == 0) {
            enum frame_type type = mail->frame.type;
            free(mail);
            if (type == FRAME_FINISH)
                return finish(arrival, err);
            if (type == FRAME_COMMIT) /* asked over a new connection */
                arrival_say_running(arrival);
        } else if (session->peer_failed) {
            return lose(arrival, "it does not come any more", err);
        } else if (r != -EAGAIN && !arrival_take_connection(arrival)) {
            clock_sleep(20 * NSEC_PER_MSEC);
        }
    }
    note_whole(arrival);
    wait_finish(arrival);
    return 0;
}
