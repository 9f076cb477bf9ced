/* SPDX-License-Identifier: Apache-2.0
 *
 * Memory follows the guest, and an orai-vm that carried it has ended, here or there. What was on its way in
 * it is lost; both QEMUs have noticed, and wait. Whoever is started again knows from its epoch record that
 * this is so (`memory_away`), and finds its QEMU. The source leads, once it has a control connection:
 *
 *   source                                            destination
 *   ends what it still has of its stream              -
 *   recover ----------------------------------------> the same; its QEMU listens again (vmm/qemu_rescue.c)
 *   <-------------------- received..., recover        its QEMU says what it has, and waits for more
 *   its QEMU hears that, and sends the rest           (memory/resync.h)
 *
 * and then the stream goes over a new data connection, as one that lasts and has just begun. The streams are
 * numbered, and either side says in its hello which it is in. Where the two differ, for whatever reason, that
 * is what is done; so it may break off anywhere, and be begun again.
 *
 * One case is beyond it: QEMU has sent its last byte and only waits to hear that it has arrived. In this
 * state it knows no pause. If what is missing was lost with an orai-vm, so is the guest's memory.
 */
#include "base/clock.h"
#include "base/json.h"
#include "base/log.h"
#include "base/macro.h"
#include "memory/resync.h"
#include "move/departure.h"
#include "move/take_back.h"

#include <errno.h>
#include <string.h>

#define PAUSE_NS (15 * NSEC_PER_SEC) /* until QEMU has noticed that its connection is gone */
#define POLL_NS (5 * NSEC_PER_MSEC)
#define ANSWER_NS (60 * NSEC_PER_SEC)
#define LOCAL_NS (10 * NSEC_PER_SEC)

/* No link but that for control is left. */
static void put_stream_away(struct departure *departure)
{
    struct session *session = &departure->session;
    departure->stream_number = 0;
    stream_interrupt(session->stream);
    stream_stop(session->stream);
    stream_free(departure->old_stream);
    pthread_mutex_lock(&session->lock);
    departure->old_stream = TAKE_PTR(session->stream);
    pthread_mutex_unlock(&session->lock);
}

/* 1: it is over, well or badly. */
static int look(struct departure *departure, struct err *err)
{
    struct qemu_migration migration;
    int r = qemu_migrate_query(machine_qemu(departure->machine), &migration, err);
    if (r < 0)
        return r;
    if (strcmp(migration.status, "postcopy-paused") == 0)
        return 0;
    if (strncmp(migration.status, "postcopy-", 9) == 0)
        return -EAGAIN;
    bool completed = strcmp(migration.status, "completed") == 0;
    atomic_store(&departure->migration, completed ? MIGRATION_COMPLETED : MIGRATION_FAILED);
    return err_set(err, EALREADY, "QEMU's migration is over: it is \"%s\"", migration.status);
}

static int wait_paused(struct departure *departure, struct err *err)
{
    int64_t deadline = clock_now() + PAUSE_NS;
    int r;
    while ((r = look(departure, err)) == -EAGAIN) {
        if (!departure_qemu_alive(departure))
            return err_set(err, EOWNERDEAD, "the guest's QEMU has ended");
        if (clock_now() > deadline) {
            atomic_store(&departure->migration, MIGRATION_FAILED);
            return err_set(err, EOWNERDEAD, "QEMU has sent all, and cannot send anything again");
        }
        clock_sleep(POLL_NS);
    }
    return r;
}

static int ask_destination(struct departure *departure, uint64_t number, struct resync *resync,
                           struct err *err)
{
    struct session *session = &departure->session;
    _cleanup_json_ json_t *json = json_pack("{s:I}", "stream", (json_int_t)number);
    int64_t deadline = clock_now() + ANSWER_NS;
    int r = link_send_json(session->control, FRAME_RECOVER, json, err);
    while (r == 0) {
        struct mail *mail;
        r = session_next(session, deadline, &mail, err);
        if (r == -EAGAIN)
            return err_set(err, ETIMEDOUT, "the destination did not recover its QEMU in time");
        if (r < 0)
            return r;
        enum frame_type type = mail->frame.type;
        if (type == FRAME_RECEIVED)
            r = resync_take(resync, mail->payload, mail->frame.length, err);
        else if (type != FRAME_RECOVER)
            r = err_set(err, EPROTO, "the destination sent \"%s\" where \"%s\" was due",
                        frame_type_name(type), frame_type_name(FRAME_RECOVER));
        free(mail);
        if (type == FRAME_RECOVER)
            break;
    }
    return r;
}

/* What QEMU says of itself comes a moment after what it says to its peer. */
static void wait_active(struct departure *departure)
{
    int64_t deadline = clock_now() + LOCAL_NS;
    while (departure->migration == MIGRATION_PAUSED && departure_qemu_alive(departure) &&
           clock_now() < deadline)
        clock_sleep(NSEC_PER_MSEC);
}

static int go_on(struct departure *departure, uint64_t number, const struct resync *resync, struct err *err)
{
    struct session *session = &departure->session;
    struct stream *stream = NULL;
    int fd = reconnect_qemu(departure->machine, &departure->host->env, err);
    if (fd < 0)
        return fd;
    int r = resync_source(fd, resync, clock_now() + LOCAL_NS, err);
    if (r < 0)
        close(fd);
    else
        r = stream_adopt(fd, FRAME_STREAM, NULL, 0, NULL, &stream, err);
    if (r < 0)
        return r;
    wait_active(departure);
    pthread_mutex_lock(&session->lock);
    session->stream = stream;
    pthread_mutex_unlock(&session->lock);
    departure->stream_number = departure->last_number = departure->peer_stream = number;
    departure_widen_memory(departure);
    return 0;
}

int departure_recover(struct departure *departure, struct err *err)
{
    struct resync resync = {0};
    uint64_t number = MAX(departure->last_number, departure->peer_stream) + 1;
    put_stream_away(departure);
    if (!departure->peer_recovers) {
        atomic_store(&departure->migration, MIGRATION_FAILED);
        return err_set(err, ENOTSUP, "%s cannot go on with another stream", departure->options.peer.name);
    }
    int r = wait_paused(departure, err);
    if (r == 0)
        r = fault_point(err, "source.recover.begin");
    if (r == 0)
        r = ask_destination(departure, number, &resync, err);
    if (r == 0)
        r = fault_point(err, "source.recover.asked");
    if (r == 0)
        r = go_on(departure, number, &resync, err);
    if (r == 0)
        r = fault_point(err, "source.recover.end");
    resync_done(&resync);
    if (r == 0)
        log_info("QEMU goes on with the memory of %s, from what %s has",
                 machine_config(departure->machine)->name, departure->options.peer.name);
    return r;
}
