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
 * What a round is stands in departure_rounds.c. Rolling back, at any point: QEMU cancels and continues the
 * guest, the disk thaws.
 */
#include "base/clock.h"
#include "base/log.h"
#include "base/macro.h"
#include "move/departure.h"

#include <errno.h>
#include <limits.h>
#include <string.h>

#define MAX_BULK_ROUNDS 30
#define READY_NS (50 * NSEC_PER_MSEC)       /* the disk is ready for the switch when its rest takes less */
#define SIDE_ROUND_NS (400 * NSEC_PER_MSEC) /* how often a round goes beside memory */
#define JUDGE_NS (100 * NSEC_PER_MSEC)      /* how often the whole map is looked at beside memory */
#define HYBRID_NS (HYBRID_SECONDS * NSEC_PER_SEC)

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
        int r = rounds_whole(departure, err);
        if (r < 0)
            return r;
        uint64_t pending = rounds_pending(departure);
        double rate = rate_of(departure->numbers.disk_sent - sent, began);
        departure->numbers.dirty_rate = (uint64_t)rate_of(pending, began);
        departure->numbers.disk_remaining = pending;
        departure_show(departure);
        if ((double)pending * NSEC_PER_SEC <= MAX(rate, (double)departure->prediction.link_rate) * READY_NS ||
            forced(departure))
            break;
        if (pending >= last - last / 10) {
            departure->numbers.converging = departure_not_converging(departure);
            departure_show(departure);
            break;
        }
        last = pending;
    }
    return 0;
}

/* What a hybrid move sends before the switch: as much as goes in a bounded time. The round stays open. */
static int bounded_round(struct departure *departure, struct err *err)
{
    const struct round_slice slice = {.max_bytes = UINT64_MAX / 2, .deadline = clock_now() + HYBRID_NS};
    int r = rounds_begin(departure, LINEAGE_ROUND, err);
    if (r == 0)
        r = rounds_send(departure, &slice, err);
    return r == 1 ? rounds_mark(departure, false, err) : r;
}

/* --- memory ----------------------------------------------------------------------------------------------
 */

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

/* A round beside memory, a little at a time, so that the switch never waits long for it. */
static int side_round(struct departure *departure, struct err *err)
{
    const struct round_slice little = {.max_bytes = 8 * MiB, .until_switch = true};
    int r = 0;
    if (!departure->round_open && rounds_open_marks(departure) < MAX_OPEN_MARKS &&
        clock_now() - departure->round_ended > SIDE_ROUND_NS)
        r = rounds_begin(departure, LINEAGE_ROUND, err);
    if (r < 0 || !departure->round_open)
        return r;
    r = rounds_send(departure, &little, err);
    if (r == 1)
        r = rounds_mark(departure, false, err);
    return r;
}

/* Looks at the whole map, which takes a moment. */
static bool disk_ready(struct departure *departure)
{
    uint64_t pending = rounds_pending(departure);
    double rate = (double)MAX(departure->prediction.link_rate, UINT64_C(1));
    bool little = (double)pending * NSEC_PER_SEC <= rate * READY_NS || pending <= MiB;
    departure->numbers.disk_remaining = pending;
    /* What was sent and is not durable there yet would be waited for with the guest standing still. */
    return (little && rounds_open_marks(departure) == 0) || forced(departure);
}

/* QEMU may stop the guest when the disk's rest would go over in a moment, or when the user said so. */
static int allow_switch(struct departure *departure, uint64_t *downtime_ms, struct err *err)
{
    if (clock_now() - departure->switch_judged < JUDGE_NS)
        return 0;
    departure->switch_judged = clock_now();
    bool ready = departure->split || disk_ready(departure);
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
    while (!departure_switch_waits(departure)) {
        int r = departure_check_time(departure, err);
        if (r == 0)
            r = allow_switch(departure, &downtime_ms, err);
        if (r == 0 && clock_now() - shown > SHOW_NS) {
            shown = clock_now();
            r = departure_watch_memory(departure, err);
            judge_memory(departure, &iteration, &least);
        }
        if (r == 0 && departure->migration != MIGRATION_FAILED && !departure->split)
            r = side_round(departure, err);
        if (r < 0)
            return r;
        if (!departure_switch_waits(departure) && !departure_fill_view(departure))
            r = session_nap(&departure->session, clock_now() + 10 * NSEC_PER_MSEC, err);
        if (r < 0)
            return r;
    }
    if (departure->migration == MIGRATION_FAILED) {
        int r = departure_watch_memory(departure, err);
        return r < 0 ? r : err_set(err, EIO, "QEMU gave the migration up");
    }
    departure->numbers.phase = "switchover";
    return 0;
}

int departure_transfer(struct departure *departure, struct err *err)
{
    departure->numbers.phase = "disk";
    int r = 0;
    if (departure->split && departure->options.mode == MOVE_HYBRID)
        r = bounded_round(departure, err);
    else if (!departure->split)
        r = bulk_rounds(departure, err);
    if (r == 0 && departure->split)
        r = departure_sync(departure, err); /* so that little is left to do in the pause */
    if (r == 0)
        r = fault_point(err, "source.transfer.memory");
    if (r == 0)
        r = departure_start_memory(departure, err);
    return r < 0 ? r : stream_memory(departure, err);
}

/* After this QEMU runs the guest and knows of no migration. */
void departure_untransfer(struct departure *departure)
{
    departure_cancel_memory(departure);
}

/* --- the pause -------------------------------------------------------------------------------------------
 */

static int last_round(struct departure *departure, struct err *err)
{
    const struct round_slice all = {.max_bytes = UINT64_MAX / 2};
    for (size_t i = 0; i < departure_disks(departure); i++)
        disk_freeze(machine_disk(departure->machine, i));
    departure->frozen = true;
    int r = rounds_begin(departure, LINEAGE_HANDOVER, err);
    if (r == 0)
        r = departure->split ? departure_send_missing(departure, err) : rounds_send(departure, &all, err);
    return r < 0 ? r : rounds_mark(departure, true, err);
}

int departure_pause(struct departure *departure, struct err *err)
{
    _cleanup_json_ json_t *ready = NULL;
    struct qemu *qemu = machine_qemu(departure->machine);
    int r = departure->memory_later ? departure_lead_memory(departure, err) : 0;
    if (r == 0)
        r = qemu_migrate_continue(qemu, err);
    if (r == 0)
        r = last_round(departure, err);
    if (r == 0 && departure_compares(departure))
        r = departure_hash_memory(departure, err);
    if (r == 0 && !departure->memory_later)
        r = departure_wait_completed(departure, err);
    if (r == 0 && departure_compares(departure))
        r = departure_compare(departure, err);
    if (r == 0)
        r = session_wait_json(&departure->session, FRAME_READY, clock_now() + MOVE_PAUSE_NS, &ready, err);
    departure->numbers.memory_sent = stream_bytes(departure->session.stream);
    if (r == 0 && !departure->memory_later)
        departure->numbers.memory_remaining = 0;
    if (r == 0)
        departure->numbers.disk_remaining = 0;
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
