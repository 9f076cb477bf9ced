/* SPDX-License-Identifier: Apache-2.0
 *
 * The source's QEMU and its migration stream. Memory goes before the switch (pre-copy, departure_transfer.c
 * decides when it is over), or after it (also when it was to go before, and the time is over:
 * departure_renew_memory):
 *
 *   transfer  QEMU is told to switch before it is let near the stream (relay_admit), so no page goes
 *   pause     QEMU hears, as if from the destination, which pages will be asked for first; it sends the
 *             device state, then these; the destination loads it and holds the guest, stopped
 *   finish    the guest runs there and asks for pages, and we send the rest (departure_follow)
 *
 * Until the commit this can be taken back, though QEMU knows no such thing once it is in post-copy: our end
 * of its stream stays open whatever becomes of the link, so for QEMU nothing has failed yet. The rest of the
 * stream is thrown away; asked at its end for a page that does not exist, QEMU gives up, and the guest can go
 * on (version 10 continues it by itself). After the commit that must not happen: a guest that QEMU continues
 * is killed.
 *
 * A broken link only makes the guest wait there: the stream lasts (stream.h). So does a lost orai-vm, on
 * either side (departure_recover.c). What dies with a QEMU or a host is the guest's memory, as in every
 * post-copy; its disks are as safe as ever.
 */
#include "base/clock.h"
#include "base/endian.h"
#include "base/json.h"
#include "base/log.h"
#include "base/macro.h"
#include "memory/qstream.h"
#include "memory/requests.h"
#include "move/departure.h"
#include "move/take_back.h"

#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <string.h>

#define AGAIN_NS NSEC_PER_SEC
#define QUIET_NS (100 * NSEC_PER_MSEC)
#define STUCK_NS (500 * NSEC_PER_MSEC)
#define WRITTEN_POLL_NS (5 * NSEC_PER_MSEC)
#define GIVE_UP_MSEC 30000
#define AHEAD_LEAST (4 * MiB)
#define AHEAD_PER_MSEC 4e5 /* bytes */
#define QUEUE_MSEC 30      /* how long what is sent may wait for the link */
#define AHEAD_MOST 64e6
#define SLOWEST_RATE (100 * MiB) /* bytes per second at which QEMU writes its stream to nobody, at least */

/* Bytes that the link holds by what was measured, with a queue that takes `queue_msec` to send. */
static uint64_t link_holds(const struct departure *departure, double queue_msec)
{
    const struct prediction *prediction = &departure->prediction;
    return (uint64_t)((double)prediction->link_rate * (prediction->rtt_ms + queue_msec) / 1000);
}

/* Of what is on its way at the stop, the link's share is waited for in the pause: what fills it, and not much
 * more. What it stands for, unpacked, is limited by the rate that few destinations take faster. */
static struct stream_ahead ahead(const struct departure *departure)
{
    double most = departure->prediction.rtt_ms * AHEAD_PER_MSEC;
    return (struct stream_ahead){.path = link_holds(departure, QUEUE_MSEC),
                                 .most = AHEAD_LEAST + (uint64_t)MIN(most, AHEAD_MOST)};
}

/* Memory goes before the switch. */
static int prepare_before(struct departure *departure, struct stream *stream, struct err *err)
{
    const struct stream_ahead most = ahead(departure);
    if (!departure->packs)
        return 0;
    int r = stream_pack(stream, departure->known, &most, err);
    if (r == 0 && departure_workset(departure)) /* it only saves time: a failure is not one of the move */
        stream_notice(stream, QEMU_RAM_BLOCK, machine_config(departure->machine)->memory, NULL);
    return r;
}

static int prepare_later(struct departure *departure, struct stream *stream, struct err *err)
{
    if (!departure->packs_later)
        return 0;
    int r = stream_pack(stream, departure->known, NULL, err);
    if (r == 0)
        r = stream_hold(stream, QEMU_RAM_BLOCK, machine_config(departure->machine)->memory, err);
    if (r == 0 && departure_workset(departure)) /* likewise */
        stream_prefer(stream, departure_workset(departure), NULL);
    return r;
}

static int open_stream(struct departure *departure, struct err *err)
{
    char path[PATH_MAX];
    struct stream *stream;
    struct session *session = &departure->session;
    snprintf(path, sizeof path, "%s/migrate.sock", departure->host->env.run_dir);
    int r = stream_listen(path, departure->host->env.uid, departure->memory_later, &stream, err);
    if (r < 0)
        return r;
    pthread_mutex_lock(&session->lock);
    session->stream = stream;
    pthread_mutex_unlock(&session->lock);
    departure->stream_number = departure->last_number = departure->peer_stream = 1;
    return departure->memory_later ? prepare_later(departure, stream, err)
                                   : prepare_before(departure, stream, err);
}

int departure_start_memory(struct departure *departure, struct err *err)
{
    struct session *session = &departure->session;
    struct qemu *qemu = machine_qemu(departure->machine);
    int r = open_stream(departure, err);
    if (r == 0 && !departure->memory_later)
        r = stream_attach(session->stream, session->data[0], 0, err);
    if (r < 0)
        return r;
    departure->numbers.phase = "memory";
    departure->numbers.converging = true;
    departure->memory_began = clock_now();
    departure->migrating = true;
    qemu_migrate_throttle(qemu, departure->options.throttle);
    r = qemu_migrate_start(qemu, 0, MEMORY_LEAST_MS, departure->memory_later, err);
    if (r == 0 && departure->memory_later)
        r = qemu_migrate_start_postcopy(qemu, err);
    if (r == 0)
        r = stream_admit(session->stream, err);
    if (r == 0 && departure_compares(departure))
        departure_view_memory(departure); /* QEMU is busy with its first pass meanwhile */
    return r;
}

int departure_new_known(struct departure *departure, const uint8_t seed[KNOWN_SEED], struct err *err)
{
    struct known *known;
    uint64_t pages = machine_config(departure->machine)->memory / KNOWN_PAGE;
    int r = known_new(pages, get_le64(seed), &known, err);
    if (r < 0)
        return r;
    pthread_mutex_lock(&departure->session.lock);
    departure->known = known;
    pthread_mutex_unlock(&departure->session.lock);
    return 0;
}

int departure_known(struct departure *departure, const uint8_t *payload, size_t size, struct err *err)
{
    pthread_mutex_lock(&departure->session.lock);
    struct known *known = departure->known;
    pthread_mutex_unlock(&departure->session.lock);
    return known ? known_add(known, payload, size, err)
                 : err_set(err, EPROTO, "a \"%s\" out of turn", frame_type_name(FRAME_KNOWN));
}

int departure_faults(struct departure *departure, const uint8_t *payload, size_t size, struct err *err)
{
    _cleanup_json_ json_t *json = NULL;
    int r = json_parse((const char *)payload, size, "the destination's faults", &json, err);
    if (r < 0)
        return r;
    pthread_mutex_lock(&departure->session.lock);
    departure->faults = (struct progress_faults){.count = json_u64(json, "count", 0),
                                                 .median_usec = json_u64(json, "median_usec", 0),
                                                 .p99_usec = json_u64(json, "p99_usec", 0)};
    pthread_mutex_unlock(&departure->session.lock);
    return 0;
}

void departure_count_memory(struct departure *departure)
{
    struct progress_numbers *numbers = &departure->numbers;
    const struct stream_count count = stream_count(departure->session.stream);
    numbers->memory_sent = departure->spent + count.sent;
    numbers->memory_later = departure->follows ? numbers->memory_sent - departure->sent_before : 0;
    numbers->memory_found = count.packed.known_pages * KNOWN_PAGE;
    numbers->memory_zero = count.packed.zero_pages * KNOWN_PAGE;
    numbers->memory_saved = count.packed.before_zstd - count.packed.after_zstd;
    pthread_mutex_lock(&departure->session.lock);
    numbers->faults = departure->faults;
    pthread_mutex_unlock(&departure->session.lock);
}

int departure_watch_memory(struct departure *departure, struct err *err)
{
    struct qemu_migration migration;
    int r = qemu_migrate_query(machine_qemu(departure->machine), &migration, err);
    if (r < 0)
        return r;
    qemu_hurry(machine_qemu(departure->machine),
               true); /* again and again: its migration thread starts when it likes */
    struct progress_numbers *numbers = &departure->numbers;
    numbers->memory_total = migration.ram_total;
    departure_count_memory(departure);
    numbers->memory_remaining = migration.ram_remaining;
    numbers->memory_iterations = migration.iterations;
    numbers->dirty_rate = migration.dirty_rate;
    numbers->throttle = migration.throttle;
    numbers->throttle_most = MAX(numbers->throttle_most, migration.throttle);
    plan_refine(departure);
    if (strcmp(migration.status, "failed") == 0)
        return err_set(err, EIO, "QEMU's migration failed: %s",
                       migration.error[0] ? migration.error : "it does not say why");
    departure_show(departure);
    return 0;
}

/* An emulated guest may have written to a page after QEMU looked (memory/compare.h): none may have gone. */
static int check_unsent(struct departure *departure, struct err *err)
{
    struct qemu_migration migration;
    int r = qemu_migrate_query(machine_qemu(departure->machine), &migration, err);
    if (r == 0 && migration.ram_pages)
        r = err_set(err, EAGAIN, "QEMU sent %llu pages of memory before the switch",
                    (unsigned long long)migration.ram_pages);
    return r;
}

/* What the devices and the CPUs there will ask for, each time for at least a round trip, is on its way before
 * they do. It only saves time, so a failure is not one of the move. Until the stream is attached nothing
 * comes from the destination, so nobody else writes to QEMU; and it sends no page twice. */
static void request_early(struct departure *departure)
{
    uint8_t request[REQUESTS_ROOM];
    qemu_early_cpus(machine_qemu(departure->machine), machine_config(departure->machine), &departure->early);
    for (size_t i = 0; i < departure->early.count; i++) {
        size_t size = requests_make(request, QEMU_RAM_BLOCK, departure->early.offsets[i], QSTREAM_PAGE_SIZE);
        stream_inject(departure->session.stream, request, size, NULL);
    }
}

int departure_lead_memory(struct departure *departure, struct err *err)
{
    struct session *session = &departure->session;
    int r = check_unsent(departure, err);
    if (r < 0)
        return r;
    request_early(departure);
    return stream_attach(session->stream, session->data[0], 0, err);
}

int departure_wait_completed(struct departure *departure, struct err *err)
{
    int64_t deadline = clock_now() + MOVE_PAUSE_NS;
    while (departure->migration < MIGRATION_COMPLETED) {
        int r = departure_check(departure, err);
        if (r == 0 && clock_now() > deadline)
            r = err_set(err, ETIMEDOUT, "QEMU did not finish its stream within %d s of the pause",
                        (int)(MOVE_PAUSE_NS / NSEC_PER_SEC));
        if (r == 0)
            r = session_nap(&departure->session, clock_now() + 20 * NSEC_PER_MSEC, err);
        if (r < 0)
            return r;
    }
    return departure->migration == MIGRATION_COMPLETED
               ? 0
               : err_set(err, EIO, "QEMU gave the migration up at its end");
}

/* --- rolling back --------------------------------------------------------------------------------------- */

/* 1: QEMU has written all: it counts no page any more, and its stream is silent. 0: it is in post-copy no
 * more. A link that is dead, and not known to be yet, must not hold it up. */
static int wait_written(struct departure *departure, int64_t deadline, struct err *err)
{
    struct qemu_migration migration;
    uint64_t bytes = 0;
    int64_t since = clock_now(), moved = since;
    for (int64_t now = since; now - since < QUIET_NS; clock_sleep(WRITTEN_POLL_NS), now = clock_now()) {
        int r = qemu_migrate_query(machine_qemu(departure->machine), &migration, err);
        if (r < 0 || strcmp(migration.status, "postcopy-active") != 0)
            return r;
        if (now >= deadline)
            return err_set(err, ETIMEDOUT, "QEMU does not come to the end of its stream");
        if (stream_bytes(departure->session.stream) != bytes)
            moved = now;
        if (migration.ram_remaining || moved == now)
            since = now;
        if (now - moved > STUCK_NS)
            session_stop_data(&departure->session);
        bytes = stream_bytes(departure->session.stream);
    }
    return 1;
}

/* No guest has memory where this asks for it. It comes when all is written, since version 7 ends its whole
 * connection after it, and a write that fails would make it pause for ever. */
static int make_give_up(struct departure *departure, struct err *err)
{
    uint8_t request[REQUESTS_ROOM];
    struct qemu *qemu = machine_qemu(departure->machine);
    uint64_t seconds = 30 + machine_config(departure->machine)->memory / SLOWEST_RATE;
    int64_t deadline = clock_now() + (int64_t)MIN(seconds, UINT64_C(3600)) * NSEC_PER_SEC;
    size_t size = requests_make(request, QEMU_RAM_BLOCK, UINT64_C(0x7ffffffffffff000), QSTREAM_PAGE_SIZE);
    stream_discard(departure->session.stream);
    int r = wait_written(departure, deadline, err);
    if (r == 1)
        r = stream_inject(departure->session.stream, request, size, err);
    return r < 0 ? r : qemu_migrate_settle(qemu, GIVE_UP_MSEC, err);
}

void departure_cancel_memory(struct departure *departure)
{
    struct err err = ERR_NONE;
    if (departure->migrating && departure_qemu_alive(departure)) {
        struct qemu *qemu = machine_qemu(departure->machine);
        int r = qemu_migrate_cancel(qemu, &err);
        if (r == -EBUSY && departure->resumed) {
            session_reset(&departure->session);
            stream_stop(departure->session.stream);
            r = take_back_guest(departure->machine, &departure->host->env, &err);
        } else if (r == -EBUSY && departure->session.stream) {
            r = make_give_up(departure, &err);
        }
        if (r < 0)
            log_warning("cannot cancel QEMU's migration: %s", err.text);
        qemu_hurry(qemu, false);
    }
    departure->migrating = false;
    stream_stop(departure->session.stream);
}

/* --- memory that was to go before the switch, and will follow ------------------------------------------- */

#define RENEW_NS (120 * NSEC_PER_SEC) /* what is on its way has to arrive, and QEMU to start */

/* The relay's thread may wait for room there, and the walker will for that thread. */
static int wait_room(struct departure *departure, struct err *err)
{
    int r = departure_check(departure, err);
    while (r == 0 && link_queued(departure->session.data[0]) > MEMORY_PROMPT_BYTES) {
        r = session_nap(&departure->session, clock_now() + 20 * NSEC_PER_MSEC, err);
        if (r == 0)
            r = departure_check(departure, err);
    }
    return r;
}

static int wait_anew(struct departure *departure, struct err *err)
{
    struct session *session = &departure->session;
    int64_t deadline = clock_now() + RENEW_NS;
    struct mail *mail = NULL;
    int r;
    while ((r = departure_check(departure, err)) == 0 &&
           (r = session_next(session, clock_now() + 200 * NSEC_PER_MSEC, &mail, err)) == -EAGAIN)
        if (clock_now() > deadline)
            return err_set(err, ETIMEDOUT, "the destination did not begin again in time");
    if (!mail)
        return r;
    enum frame_type type = mail->frame.type;
    free(mail);
    return type == FRAME_ANEW ? 0
                              : err_set(err, EPROTO, "the destination sent \"%s\" where \"%s\" was due",
                                        frame_type_name(type), frame_type_name(FRAME_ANEW));
}

/* No page may have gone in a stream whose guest goes before its memory: an emulated guest's dirty bits cannot
 * be trusted (memory/compare.h), and in post-copy nothing can be compared; and memory/holes.h counts on it.
 * So QEMU begins with nothing, at both ends. */
int departure_renew_memory(struct departure *departure, struct err *err)
{
    struct session *session = &departure->session;
    departure_count_memory(departure);
    departure->spent = departure->numbers.memory_sent;
    departure->renewing = true;
    departure_cancel_memory(departure);
    int r = session->stream ? wait_room(departure, err) : 0;
    if (r < 0)
        return r;
    stream_interrupt(session->stream); /* nothing of it comes behind "anew" */
    departure_renew_workset(departure);
    ram_view_close(&departure->ram);
    pthread_mutex_lock(&session->lock);
    departure->old_stream = TAKE_PTR(session->stream);
    pthread_mutex_unlock(&session->lock);
    r = fault_point(err, "source.anew");
    if (r == 0)
        r = link_send(session->data[0], FRAME_ANEW, NULL, 0, NULL, 0, err);
    if (r == 0)
        r = wait_anew(departure, err);
    if (r < 0)
        return r;
    for (unsigned i = 0; i < session->data_count; i++)
        link_make_prompt(session->data[i], MEMORY_PROMPT_BYTES);
    departure->memory_later = true;
    departure->migration = MIGRATION_NONE;
    return departure_before_memory(departure, err);
}

/* --- after the switch ----------------------------------------------------------------------------------- */

/* QMP's thread. The guest runs at the destination, so whatever QEMU made of it here must not live. */
void departure_fence(struct departure *departure)
{
    log_error("QEMU continued the guest after the hand-over: it is ended");
    qemu_signal(machine_qemu(departure->machine), SIGKILL);
}

/* The stream, or one that goes on where it has broken, over a new connection, and a new one for control if
 * that is broken too. 1: the destination has no use for it any more. */
static int connect_anew(struct departure *departure, struct err *err)
{
    int r = 0;
    if (!departure->session.control || session_check(&departure->session, NULL) < 0)
        r = departure_ask_again(departure, err);
    if (r == 0 && !departure->memory_wanted)
        return 1;
    if (r == 0 && (departure->peer_stream != departure->stream_number || !departure->stream_number))
        r = departure_recover(departure, err);
    if (r < 0)
        return r;
    r = departure_connect_data(departure, err);
    if (r == 0)
        r = departure_wait_greeted(departure, err);
    if (r < 0) /* one that was not greeted carries nothing, and would look like one that does */
        session_reset(&departure->session);
    return r;
}

static int keep_connected(struct departure *departure, bool *told)
{
    struct err err = ERR_NONE;
    int r = connect_anew(departure, &err);
    if (r >= 0) {
        if (*told)
            log_info("the memory of %s follows it again", machine_config(departure->machine)->name);
        *told = false;
        return r;
    }
    if (!*told) {
        log_warning("the memory of %s cannot follow it: %s; trying again",
                    machine_config(departure->machine)->name, err.text);
        progress_note(departure->progress,
                      "the guest waits on %s for the rest of its memory, which cannot get there (%s)",
                      departure->options.peer.name, err.text);
    }
    *told = true;
    for (int64_t until = clock_now() + AGAIN_NS; clock_now() < until && !departure->run_here;)
        clock_sleep(20 * NSEC_PER_MSEC);
    return 0;
}

/* The guest there waits for what will never come, and nobody but us can say so: over a connection that has
 * just carried a question and its answer, for an older one may be dead. departure_finish then says it. */
static int reach_waiting_guest(struct departure *departure, struct err *err)
{
    while (departure_ask_again(departure, err) < 0) {
        session_reset(&departure->session);
        for (int64_t until = clock_now() + AGAIN_NS; clock_now() < until; clock_sleep(20 * NSEC_PER_MSEC))
            if (departure->run_here)
                return departure_keep(departure, EINTR, "a human decided that the guest runs here", err);
    }
    return 0;
}

void departure_widen_memory(struct departure *departure)
{
    stream_widen(departure->session.stream, link_holds(departure, 0));
}

/* While nobody watched QEMU may have given up and continued the guest. */
void departure_fence_resumed(struct departure *departure)
{
    char status[32];
    if (departure_qemu_alive(departure) && qemu_status(machine_qemu(departure->machine), status, NULL) == 0 &&
        strcmp(status, "running") == 0)
        departure_fence(departure);
}

int departure_follow(struct departure *departure, struct err *err)
{
    bool told = false, waits = true; /* the guest there, for more */
    int64_t shown = 0;
    departure->sent_before = departure->numbers.memory_sent; /* when the destination was ready */
    departure->follows = true;
    /* QEMU is still far from its end. Should it ever continue the guest, nobody hears that. */
    machine_set_network(departure->machine, false);
    if (!departure->resumed)
        departure_widen_memory(departure);
    departure->numbers.phase = "memory";
    departure->options.connections = 1;
    while (departure->migration < MIGRATION_COMPLETED && departure_qemu_alive(departure)) {
        if (departure->run_here)
            return departure_keep(departure, EINTR, "a human decided that the guest runs here", err);
        int r = session_nap(&departure->session, clock_now() + 50 * NSEC_PER_MSEC, NULL);
        if (r < 0 || departure->session.data_count == 0) {
            waits = !departure->session.peer_failed && keep_connected(departure, &told) != 1;
            if (!waits)
                break;
        } else if (departure->migration ==
                   MIGRATION_PAUSED) { /* it could not read its peer: nothing mends that */
            atomic_store(&departure->migration, MIGRATION_FAILED);
        } else if (clock_now() - shown > SHOW_NS) {
            shown = clock_now();
            departure_watch_memory(departure, NULL);
        }
    }
    int r = 0;
    if (departure->migration == MIGRATION_COMPLETED) {
        departure->numbers.memory_remaining = 0;
    } else if (waits || departure->session.peer_failed || !departure->resumed) {
        progress_note(departure->progress, "QEMU gave up sending memory: what %s lacks of it is lost",
                      departure->options.peer.name);
        r = waits ? reach_waiting_guest(departure, err) : 0;
    }
    departure_count_memory(departure);
    departure_show(departure);
    return r;
}
