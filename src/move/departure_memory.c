/* SPDX-License-Identifier: Apache-2.0
 *
 * The source's QEMU and its migration stream. Memory goes before the switch (pre-copy, departure_transfer.c
 * decides when it is over), or after it:
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
 * A broken link only makes the guest wait there: the stream lasts (stream.h). What dies with an orai-vm, a
 * QEMU or a host is the guest's memory, as in every post-copy; its disks are as safe as ever.
 */
#include "base/clock.h"
#include "base/endian.h"
#include "base/log.h"
#include "base/macro.h"
#include "move/departure.h"

#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <string.h>

#define AGAIN_NS NSEC_PER_SEC
#define QUIET_NS (100 * NSEC_PER_MSEC)
#define STUCK_NS (500 * NSEC_PER_MSEC)
#define WRITTEN_POLL_NS (5 * NSEC_PER_MSEC)
#define GIVE_UP_MSEC 30000
#define SLOWEST_RATE (100 * MiB) /* bytes per second at which QEMU writes its stream to nobody, at least */

int departure_start_memory(struct departure *departure, struct err *err)
{
    char path[PATH_MAX];
    struct session *session = &departure->session;
    struct qemu *qemu = machine_qemu(departure->machine);
    snprintf(path, sizeof path, "%s/migrate.sock", departure->host->env.run_dir);
    int r = stream_listen(path, departure->host->env.uid, departure->memory_later, &session->stream, err);
    if (r == 0 && !departure->memory_later)
        r = stream_attach(session->stream, session->data[0], 0, err);
    if (r < 0)
        return r;
    departure->numbers.phase = "memory";
    departure->numbers.converging = true;
    departure->migrating = true;
    r = qemu_migrate_start(qemu, 0, 0, departure->memory_later, err);
    if (r == 0 && departure->memory_later)
        r = qemu_migrate_start_postcopy(qemu, err);
    if (r == 0)
        r = stream_admit(session->stream, err);
    if (r == 0 && departure_compares(departure))
        departure_view_memory(departure); /* QEMU is busy with its first pass meanwhile */
    return r;
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
    numbers->memory_sent = stream_bytes(departure->session.stream);
    numbers->memory_remaining = migration.ram_remaining;
    numbers->memory_iterations = migration.iterations;
    numbers->dirty_rate = migration.dirty_rate;
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

#define REQUEST_SIZE 20

/* MIG_RP_MSG_REQ_PAGES_ID (QEMU's migration/migration.h): be16 type 3, be16 length, be64 start, be32 length,
 * u8 and name of the block. */
static void put_request(uint8_t ret[REQUEST_SIZE], uint64_t start)
{
    static const uint8_t request[REQUEST_SIZE] = {0, 3, 0, 16, 0,    0, 0, 0,   0,   0,
                                                  0, 0, 0, 0,  0x10, 0, 3, 'r', 'a', 'm'};
    memcpy(ret, request, sizeof request);
    for (int i = 0; i < 8; i++)
        ret[4 + i] = (uint8_t)(start >> (56 - 8 * i));
}

/* What the devices and the CPUs there will ask for, each time for at least a round trip, is on its way before
 * they do. It only saves time, so a failure is not one of the move. Until the stream is attached nothing
 * comes from the destination, so nobody else writes to QEMU; and it sends no page twice. */
static void request_early(struct departure *departure)
{
    uint8_t requests[ARRAY_SIZE(departure->early.offsets)][REQUEST_SIZE];
    qemu_early_cpus(machine_qemu(departure->machine), machine_config(departure->machine), &departure->early);
    for (size_t i = 0; i < departure->early.count; i++)
        put_request(requests[i], departure->early.offsets[i]);
    stream_inject(departure->session.stream, requests, departure->early.count * REQUEST_SIZE, NULL);
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

/* --- rolling back ------------------------------------------------------------------------------------------
 */

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
    uint8_t request[REQUEST_SIZE];
    struct qemu *qemu = machine_qemu(departure->machine);
    uint64_t seconds = 30 + machine_config(departure->machine)->memory / SLOWEST_RATE;
    int64_t deadline = clock_now() + (int64_t)MIN(seconds, UINT64_C(3600)) * NSEC_PER_SEC;
    put_request(request, UINT64_C(0x7ffffffffffff000));
    stream_discard(departure->session.stream);
    int r = wait_written(departure, deadline, err);
    if (r == 1)
        r = stream_inject(departure->session.stream, request, sizeof request, err);
    return r < 0 ? r : qemu_migrate_settle(qemu, GIVE_UP_MSEC, err);
}

void departure_cancel_memory(struct departure *departure)
{
    struct err err = ERR_NONE;
    if (departure->migrating && departure_qemu_alive(departure)) {
        struct qemu *qemu = machine_qemu(departure->machine);
        int r = qemu_migrate_cancel(qemu, &err);
        if (r == -EBUSY && departure->session.stream)
            r = make_give_up(departure, &err);
        if (r < 0)
            log_warning("cannot cancel QEMU's migration: %s", err.text);
        qemu_hurry(qemu, false);
    }
    departure->migrating = false;
    stream_stop(departure->session.stream);
}

/* --- after the switch --------------------------------------------------------------------------------------
 */

/* QMP's thread. The guest runs at the destination, so whatever QEMU made of it here must not live. */
void departure_fence(struct departure *departure)
{
    log_error("QEMU continued the guest after the hand-over: it is ended");
    qemu_signal(machine_qemu(departure->machine), SIGKILL);
}

/* The stream over a new connection, and a new one for control if that is broken too. 1: the destination has
 * no use for it any more. */
static int connect_anew(struct departure *departure, struct err *err)
{
    int r = 0;
    if (!departure->session.control || session_check(&departure->session, NULL) < 0)
        r = departure_ask_again(departure, err);
    if (r == 0 && !departure->memory_wanted)
        return 1;
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

int departure_follow(struct departure *departure, struct err *err)
{
    bool told = false;
    int64_t shown = 0;
    uint64_t before = departure->numbers.memory_sent; /* when the destination was ready */
    /* QEMU is still far from its end. Should it ever continue the guest, nobody hears that. */
    machine_set_network(departure->machine, false);
    stream_widen(departure->session.stream);
    departure->numbers.phase = "memory";
    departure->options.connections = 1;
    while (departure->migration < MIGRATION_COMPLETED && departure_qemu_alive(departure)) {
        if (departure->run_here)
            return departure_keep(departure, EINTR, "a human decided that the guest runs here", err);
        int r = session_nap(&departure->session, clock_now() + 50 * NSEC_PER_MSEC, NULL);
        if (r < 0 || departure->session.data_count == 0) {
            if (departure->session.peer_failed || keep_connected(departure, &told) == 1)
                break;
        } else if (clock_now() - shown > SHOW_NS) {
            shown = clock_now();
            departure_watch_memory(departure, NULL);
        }
    }
    if (departure->migration == MIGRATION_COMPLETED)
        departure->numbers.memory_remaining = 0;
    else
        progress_note(departure->progress, "QEMU gave up sending memory: what %s lacks of it is lost",
                      departure->options.peer.name);
    departure->numbers.memory_sent = stream_bytes(departure->session.stream);
    departure->numbers.memory_later = departure->numbers.memory_sent - before;
    departure_show(departure);
    return 0;
}
