/* SPDX-License-Identifier: Apache-2.0
 *
 * The source's second and third stage: everything goes over.
 *
 *   transfer   disk rounds until what gets dirty meanwhile is little; then QEMU's memory stream, with small
 * disk rounds beside it. QEMU may not stop the guest (downtime limit 0) before the disk is ready for it.
 *   pause      QEMU holds the guest ("pre-switchover"). The disk is frozen and sealed for the hand-over, its
 * last round and QEMU's last pages go over side by side; the destination answers "ready" when all is durable
 * and loaded.
 *
 * A round: disk_advance seals a generation, relocate walks what the destination lacks up to it, a mark
 * follows on every data connection, and before the mark the claim that the copy there may make once the
 * mark's data is durable. Rolling back, at any point: QEMU cancels and continues the guest, the disk thaws.
 */
#include "base/clock.h"
#include "base/endian.h"
#include "base/log.h"
#include "base/macro.h"
#include "move/departure.h"

#include <errno.h>
#include <limits.h>
#include <string.h>
#include <xxhash.h>

#define PIECE_BYTES ((size_t)WIRE_RUN_MAX_BLOCKS * DISK_BLOCK)
#define SHOW_NS (200 * NSEC_PER_MSEC)
#define MAX_BULK_ROUNDS 30
#define READY_NS (50 * NSEC_PER_MSEC)       /* the disk is ready for the switch when its rest takes less */
#define SIDE_ROUND_NS (400 * NSEC_PER_MSEC) /* how often a round goes beside memory */
#define JUDGE_NS (100 * NSEC_PER_MSEC)      /* how often the whole map is looked at beside memory */
#define MAX_OPEN_MARKS 2            /* a destination with a slow disk is not given more to make durable */
#define CHECKPOINT_BYTES (64 * MiB) /* how often a long round lets the destination claim what it has */
#define PAUSE_LIMIT_NS (20 * NSEC_PER_SEC) /* a pause that takes longer is rolled back */

/* --- disk rounds ------------------------------------------------------------------------------------------
 */

int departure_send_claim(struct departure *departure, size_t i, const struct lineage *claim,
                         uint32_t sequence, unsigned flags, struct err *err)
{
    _cleanup_free_ void *bytes = NULL;
    size_t size;
    uint8_t head[WIRE_CLAIM_SIZE];
    struct wire_claim wire = {.disk = (uint16_t)i, .flags = (uint16_t)flags, .sequence = sequence};
    if (lineage_encode(claim, &bytes, &size) < 0)
        return err_set(err, ENOMEM, "out of memory");
    wire_claim_encode(&wire, head);
    return link_send(departure->session.control, FRAME_LINEAGE, head, sizeof head, bytes, size, err);
}

/* The data connection with the least in its queue: a slow one gets less. */
static struct link *quietest(struct departure *departure)
{
    struct session *session = &departure->session;
    struct link *best = session->data[departure->next_link++ % session->data_count];
    size_t least = link_queued(best);
    for (unsigned i = 0; i < session->data_count && least; i++) {
        size_t queued = link_queued(session->data[i]);
        if (queued < least) {
            least = queued;
            best = session->data[i];
        }
    }
    return best;
}

/* Sends the next piece of disk `i`'s round. 1 = sent, 0 = the round is over. */
static int send_piece(struct departure *departure, size_t i, struct err *err)
{
    uint8_t *payload = link_buffer(WIRE_RUN_SIZE + PIECE_BYTES);
    if (!payload)
        return err_set(err, ENOMEM, "out of memory");
    struct relocate_piece piece;
    int r = relocate_next(departure->relocate[i], payload + WIRE_RUN_SIZE, PIECE_BYTES, &piece, err);
    if (r <= 0) {
        link_buffer_free(payload);
        return r;
    }
    struct wire_run run = {
        .disk = (uint16_t)i,
        .flags = piece.zero ? WIRE_RUN_ZERO : 0,
        .generation = piece.run.generation,
        .block = piece.run.block,
        .count = (uint32_t)piece.run.count,
        .checksum = piece.zero ? 0 : XXH3_64bits(payload + WIRE_RUN_SIZE, piece.size),
    };
    wire_run_encode(&run, payload);
    r = link_send_buffer(quietest(departure), FRAME_RUN, payload, WIRE_RUN_SIZE + piece.size, err);
    if (r < 0)
        return r;
    departure->numbers.disk_sent += WIRE_RUN_SIZE + FRAME_HEADER_SIZE + piece.size;
    return 1;
}

static uint64_t remaining_bytes(const struct departure *departure)
{
    uint64_t blocks = 0;
    for (size_t i = 0; i < departure_disks(departure); i++)
        blocks += relocate_remaining(departure->relocate[i]);
    return blocks * DISK_BLOCK;
}

/* What a round from now on would take, the rest of the one under way included. */
static uint64_t pending_bytes(const struct departure *departure)
{
    uint64_t blocks = 0;
    for (size_t i = 0; i < departure_disks(departure); i++)
        blocks +=
            relocate_pending(departure->relocate[i], disk_generation(machine_disk(departure->machine, i)));
    return blocks * DISK_BLOCK;
}

/* Seals every disk's current generation; what is above the last one is the new round. */
static int begin_round(struct departure *departure, enum lineage_kind kind, struct err *err)
{
    for (size_t i = 0; i < departure_disks(departure); i++) {
        struct id id = id_random();
        int r = disk_advance(machine_disk(departure->machine, i), &id, kind, departure->host->name,
                             &departure->sealed[i], err);
        if (r < 0)
            return r;
        relocate_round(departure->relocate[i], departure->sealed[i]);
    }
    departure->numbers.disk_rounds++;
    departure->round_open = true;
    return 0;
}

/* Marks that the destination has not made durable yet. */
static uint32_t marks_open(struct departure *departure)
{
    pthread_mutex_lock(&departure->session.lock);
    uint32_t open = departure->mark - departure->session.marked;
    pthread_mutex_unlock(&departure->session.lock);
    return open;
}

static int send_round_claim(struct departure *departure, size_t i, uint32_t sequence, unsigned flags,
                            struct err *err)
{
    _cleanup_(lineage_freep) struct lineage *claim = NULL;
    int r = disk_lineage(machine_disk(departure->machine, i), &claim, err);
    if (r < 0)
        return r;
    relocate_claim(departure->relocate[i], claim);
    if (flags & WIRE_CLAIM_FINAL)
        claim->claim = LINEAGE_REPLICA;
    return departure_send_claim(departure, i, claim, sequence, flags, err);
}

/* After whole rounds of all disks. */
static int send_claims(struct departure *departure, bool final, struct err *err)
{
    size_t disks = departure_disks(departure);
    for (size_t i = 0; i < disks; i++) {
        unsigned flags = (final ? WIRE_CLAIM_FINAL : 0) | (i + 1 == disks ? WIRE_CLAIM_LAST : 0);
        int r = send_round_claim(departure, i, departure->mark + 1, flags, err);
        if (r < 0)
            return r;
    }
    return 0;
}

/* The claims of a mark go before it, on the control connection. */
static int send_mark(struct departure *departure, struct err *err)
{
    uint8_t mark[WIRE_MARK_SIZE];
    wire_mark_encode(&(struct wire_mark){.sequence = ++departure->mark}, mark);
    for (unsigned i = 0; i < departure->session.data_count; i++) {
        int r = link_send(departure->session.data[i], FRAME_MARK, mark, sizeof mark, NULL, 0, err);
        if (r < 0)
            return r;
    }
    return 0;
}

static int mark_round(struct departure *departure, bool final, struct err *err)
{
    int r = send_claims(departure, final, err);
    return r < 0 ? r : send_mark(departure, err);
}

/* In the middle of disk `i`'s round: what has gone over counts, should the move end now. A fork's copy must
 * go on saying that it is one until all that it wrote has been replaced. */
static int mark_checkpoint(struct departure *departure, size_t i, struct err *err)
{
    if (departure->forked[i] || marks_open(departure) >= MAX_OPEN_MARKS)
        return 0;
    int r = send_round_claim(departure, i, departure->mark + 1, WIRE_CLAIM_LAST, err);
    return r < 0 ? r : send_mark(departure, err);
}

/* Until at most `open` marks are. */
static int wait_marked(struct departure *departure, uint32_t open, struct err *err)
{
    int64_t deadline = clock_now() + 4 * MOVE_ANSWER_MS * NSEC_PER_MSEC;
    int r = departure_check(departure, err);
    while (r == 0 && marks_open(departure) > open) {
        if (clock_now() > deadline)
            return err_set(err, ETIMEDOUT,
                           "the destination's disk does not keep up: a round was not durable in time");
        r = session_nap(&departure->session, clock_now() + 50 * NSEC_PER_MSEC, err);
    }
    return r;
}

struct slice {
    uint64_t max_bytes; /* stop after that many */
    bool until_switch;  /* stop as soon as QEMU holds the guest */
};

static bool switch_waits(const struct departure *departure)
{
    return departure->migration >= MIGRATION_PRE_SWITCHOVER;
}

/* Goes on with the open round. 1 = it is over, 0 = the slice is. */
static int send_slice(struct departure *departure, const struct slice *slice, struct err *err)
{
    uint64_t until = departure->numbers.disk_sent + slice->max_bytes;
    uint64_t checkpoint = departure->numbers.disk_sent + CHECKPOINT_BYTES;
    int64_t shown = clock_now();
    for (size_t i = 0; i < departure_disks(departure); i++) {
        int r;
        while ((r = send_piece(departure, i, err)) == 1) {
            if (departure->numbers.disk_sent >= until || (slice->until_switch && switch_waits(departure)))
                return 0;
            if (departure->numbers.disk_sent >= checkpoint) {
                checkpoint += CHECKPOINT_BYTES;
                r = mark_checkpoint(departure, i, err);
            }
            if (r >= 0 && clock_now() - shown > SHOW_NS) {
                shown = clock_now();
                departure->numbers.disk_remaining = remaining_bytes(departure);
                plan_refine(departure);
                departure_show(departure);
                r = departure_check_time(departure, err);
            }
            if (r < 0)
                return r;
        }
        if (r < 0)
            return r;
    }
    departure->round_open = false;
    departure->round_ended = clock_now();
    return 1;
}

/* The destination makes a round durable while the next one, or memory, goes over. */
static int whole_round(struct departure *departure, struct err *err)
{
    const struct slice all = {.max_bytes = UINT64_MAX / 2};
    int r = wait_marked(departure, MAX_OPEN_MARKS - 1, err);
    if (r == 0)
        r = begin_round(departure, LINEAGE_ROUND, err);
    if (r == 0)
        r = send_slice(departure, &all, err);
    return r < 0 ? r : mark_round(departure, false, err);
}

/* --- time and convergence --------------------------------------------------------------------------------
 */

int departure_check_time(struct departure *departure, struct err *err)
{
    int r = departure_check(departure, err);
    const struct move_options *options = &departure->options;
    if (r < 0 || !options->timeout_ms || options->pause_on_timeout ||
        clock_now() - departure->began < (int64_t)options->timeout_ms * NSEC_PER_MSEC)
        return r;
    err_set(err, ETIMEDOUT, "the move took longer than its --timeout of %.0f s%s",
            (double)options->timeout_ms / 1000,
            departure->numbers.converging
                ? ""
                : ": not converging, the guest writes faster than the link carries");
    return err_hint(
        err,
        "the guest runs on %s as before; allow more time (--timeout), or let the guest stand still for it "
        "(--on-timeout pause)",
        departure->host->name);
}

/* The user allowed to stop the guest once the time is over, whatever the blackout. */
static bool forced(const struct departure *departure)
{
    return departure->options.timeout_ms && departure->options.pause_on_timeout &&
           clock_now() - departure->began > (int64_t)departure->options.timeout_ms * NSEC_PER_MSEC;
}

static double rate_of(uint64_t bytes, int64_t since)
{
    return (double)bytes * NSEC_PER_SEC / (double)MAX(clock_now() - since, INT64_C(1));
}

/* Rounds until the rest is little or shrinks no more. */
static int bulk_rounds(struct departure *departure, struct err *err)
{
    uint64_t last = UINT64_MAX;
    for (int round = 0; round < MAX_BULK_ROUNDS; round++) {
        int64_t began = clock_now();
        uint64_t sent = departure->numbers.disk_sent;
        int r = whole_round(departure, err);
        if (r < 0)
            return r;
        uint64_t pending = pending_bytes(departure);
        double rate = rate_of(departure->numbers.disk_sent - sent, began);
        departure->numbers.dirty_rate = (uint64_t)rate_of(pending, began);
        departure->numbers.disk_remaining = pending;
        departure_show(departure);
        if ((double)pending * NSEC_PER_SEC <= MAX(rate, (double)departure->prediction.link_rate) * READY_NS ||
            forced(departure))
            break;
        if (pending >= last - last / 10) {
            departure->numbers.converging = false;
            departure_show(departure);
            break;
        }
        last = pending;
    }
    return 0;
}

/* --- memory ----------------------------------------------------------------------------------------------
 */

/* Relay's thread: QEMU's stream goes out on the first data connection, in order. */
static int forward_stream(void *arg, const void *data, size_t size)
{
    struct departure *departure = arg;
    if (!data)
        return 0; /* QEMU closed: its MIGRATION event says how it ended */
    return link_send(departure->session.data[0], FRAME_STREAM, NULL, 0, data, size, NULL);
}

/* What QEMU may plan for its last pass: a tenth of the blackout that the user allows, since QEMU's own idea
 * of the bandwidth is too good and device state, fsyncs and the commit come on top; more after each pass that
 * gained nothing, up to a half. */
static uint64_t memory_downtime_ms(const struct departure *departure)
{
    uint64_t allowed = departure->options.max_blackout_ms;
    if (forced(departure))
        return 3600000;
    return MAX(MIN(allowed / 10 << MIN(departure->futile, 4), allowed / 2), UINT64_C(5));
}

static int start_memory(struct departure *departure, struct err *err)
{
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/migrate.sock", departure->host->env.run_dir);
    int r = relay_listen(path, departure->host->env.uid, forward_stream, departure, &departure->session.relay,
                         err);
    if (r < 0)
        return r;
    departure->numbers.phase = "memory";
    departure->numbers.converging = true;
    departure->migrating = true;
    r = qemu_migrate_start(machine_qemu(departure->machine), 0, 0, err);
    if (r == 0 && departure_emulated(departure))
        departure_view_memory(departure); /* QEMU is busy with its first pass meanwhile */
    return r;
}

static int watch_memory(struct departure *departure, struct err *err)
{
    struct qemu_migration migration;
    int r = qemu_migrate_query(machine_qemu(departure->machine), &migration, err);
    if (r < 0)
        return r;
    qemu_hurry(machine_qemu(departure->machine),
               true); /* again and again: its migration thread starts when it likes */
    struct progress_numbers *numbers = &departure->numbers;
    numbers->memory_total = migration.ram_total;
    numbers->memory_sent = relay_bytes(departure->session.relay);
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

/* A round beside memory, a little at a time, so that the switch never waits long for it. */
static int side_round(struct departure *departure, struct err *err)
{
    const struct slice little = {.max_bytes = 8 * MiB, .until_switch = true};
    int r = 0;
    if (!departure->round_open && marks_open(departure) < MAX_OPEN_MARKS &&
        clock_now() - departure->round_ended > SIDE_ROUND_NS)
        r = begin_round(departure, LINEAGE_ROUND, err);
    if (r < 0 || !departure->round_open)
        return r;
    r = send_slice(departure, &little, err);
    if (r == 1)
        r = mark_round(departure, false, err);
    return r;
}

/* QEMU may stop the guest when the disk's rest would go over in a moment, or when the user said so. */
static int allow_switch(struct departure *departure, uint64_t *downtime_ms, struct err *err)
{
    if (clock_now() - departure->switch_judged < JUDGE_NS)
        return 0;
    departure->switch_judged = clock_now();
    uint64_t pending = pending_bytes(departure);
    double rate = (double)MAX(departure->prediction.link_rate, UINT64_C(1));
    bool little = (double)pending * NSEC_PER_SEC <= rate * READY_NS || pending <= MiB;
    /* What was sent and is not durable there yet would be waited for with the guest standing still. */
    bool ready = (little && marks_open(departure) == 0) || forced(departure);
    departure->numbers.disk_remaining = pending;
    uint64_t wanted = ready ? memory_downtime_ms(departure) : 0;
    if (wanted == *downtime_ms)
        return 0;
    *downtime_ms = wanted;
    return qemu_migrate_set(machine_qemu(departure->machine), 0, wanted, err);
}

/* Says "not converging" when three passes over memory left as much as they found. */
static void judge_memory(struct departure *departure, uint64_t *iteration, uint64_t *least)
{
    struct progress_numbers *numbers = &departure->numbers;
    if (numbers->memory_iterations == *iteration)
        return;
    *iteration = numbers->memory_iterations;
    departure->futile = numbers->memory_remaining < *least - *least / 20 ? 0 : departure->futile + 1;
    *least = MIN(*least, numbers->memory_remaining);
    numbers->converging = departure->futile < 3;
}

static int stream_memory(struct departure *departure, struct err *err)
{
    uint64_t iteration = 0, least = UINT64_MAX, downtime_ms = 0;
    int64_t shown = 0;
    while (!switch_waits(departure)) {
        int r = departure_check_time(departure, err);
        if (r == 0)
            r = allow_switch(departure, &downtime_ms, err);
        if (r == 0 && clock_now() - shown > SHOW_NS) {
            shown = clock_now();
            r = watch_memory(departure, err);
            judge_memory(departure, &iteration, &least);
        }
        if (r == 0 && departure->migration != MIGRATION_FAILED)
            r = side_round(departure, err);
        if (r < 0)
            return r;
        if (!switch_waits(departure))
            r = session_nap(&departure->session, clock_now() + 10 * NSEC_PER_MSEC, err);
        if (r < 0)
            return r;
    }
    if (departure->migration == MIGRATION_FAILED) {
        int r = watch_memory(departure, err);
        return r < 0 ? r : err_set(err, EIO, "QEMU gave the migration up");
    }
    departure->numbers.phase = "switchover";
    return 0;
}

int departure_transfer(struct departure *departure, struct err *err)
{
    departure->numbers.phase = "disk";
    int r = bulk_rounds(departure, err);
    if (r == 0)
        r = fault_point(err, "source.transfer.memory");
    if (r == 0)
        r = start_memory(departure, err);
    return r < 0 ? r : stream_memory(departure, err);
}

/* After this QEMU runs the guest and knows of no migration. */
void departure_untransfer(struct departure *departure)
{
    struct err err;
    if (departure->migrating && departure_qemu_alive(departure) &&
        qemu_migrate_cancel(machine_qemu(departure->machine), &err) < 0)
        log_warning("cannot cancel QEMU's migration: %s", err.text);
    if (departure->migrating && departure_qemu_alive(departure))
        qemu_hurry(machine_qemu(departure->machine), false);
    departure->migrating = false;
    if (departure->session.relay)
        relay_stop(departure->session.relay);
}

/* --- the pause -------------------------------------------------------------------------------------------
 */

static int last_round(struct departure *departure, struct err *err)
{
    const struct slice all = {.max_bytes = UINT64_MAX / 2};
    for (size_t i = 0; i < departure_disks(departure); i++)
        disk_freeze(machine_disk(departure->machine, i));
    departure->frozen = true;
    int r = begin_round(departure, LINEAGE_HANDOVER, err);
    if (r == 0)
        r = send_slice(departure, &all, err);
    return r < 0 ? r : mark_round(departure, true, err);
}

static int wait_completed(struct departure *departure, struct err *err)
{
    int64_t deadline = clock_now() + PAUSE_LIMIT_NS;
    while (departure->migration < MIGRATION_COMPLETED) {
        int r = departure_check(departure, err);
        if (r == 0 && clock_now() > deadline)
            r = err_set(err, ETIMEDOUT, "QEMU did not finish its stream within %d s of the pause",
                        (int)(PAUSE_LIMIT_NS / NSEC_PER_SEC));
        if (r == 0)
            r = session_nap(&departure->session, clock_now() + 20 * NSEC_PER_MSEC, err);
        if (r < 0)
            return r;
    }
    return departure->migration == MIGRATION_COMPLETED
               ? 0
               : err_set(err, EIO, "QEMU gave the migration up at its end");
}

int departure_pause(struct departure *departure, struct err *err)
{
    _cleanup_json_ json_t *ready = NULL;
    int r = qemu_migrate_continue(machine_qemu(departure->machine), err);
    if (r == 0)
        r = last_round(departure, err);
    if (r == 0 && departure_emulated(departure))
        r = departure_hash_memory(departure, err);
    if (r == 0)
        r = wait_completed(departure, err);
    if (r == 0 && departure_emulated(departure))
        r = departure_compare(departure, err);
    if (r == 0)
        r = session_wait_json(&departure->session, FRAME_READY, clock_now() + PAUSE_LIMIT_NS, &ready, err);
    departure->numbers.memory_sent = relay_bytes(departure->session.relay);
    if (r == 0)
        departure->numbers.disk_remaining = departure->numbers.memory_remaining = 0;
    return r;
}

/* The hand-over's generation is sealed already: what the guest writes from now on is above all that the
 * destination may claim. */
void departure_unpause(struct departure *departure)
{
    struct err err;
    departure_untransfer(departure);
    for (size_t i = 0; departure->frozen && i < departure_disks(departure); i++)
        disk_thaw(machine_disk(departure->machine, i));
    departure->frozen = false;
    if (departure->guest_runs && departure_qemu_alive(departure) &&
        qemu_cont(machine_qemu(departure->machine), &err) < 0)
        log_error("cannot continue the guest: %s", err.text);
}
