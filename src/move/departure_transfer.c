/* SPDX-License-Identifier: Apache-2.0
 *
 * The source's second and third stage: everything goes over.
 *
 *   transfer   disk rounds until what gets dirty meanwhile is little; then QEMU's memory stream, with small
 *              disk rounds beside it. QEMU may hardly stop the guest (MEMORY_LEAST_MS) before the disk is
 *              ready for it.
 *   pause      QEMU holds the guest ("pre-switchover"). The disk is frozen and sealed for the hand-over, its
 *              last round and QEMU's last pages go over side by side; the destination answers "ready" when
 *              all is durable and loaded.
 *
 * What a round is stands in departure_rounds.c. Rolling back, at any point: QEMU cancels and continues the
 * guest, the disk thaws.
 */
#include "base/clock.h"
#include "base/log.h"
#include "base/macro.h"
#include "base/size.h"
#include "move/departure.h"

#include <errno.h>
#include <limits.h>
#include <string.h>

#define MAX_BULK_ROUNDS 30
#define READY_NS (50 * NSEC_PER_MSEC)       /* the disk is ready for the switch when its rest takes less */
#define SIDE_ROUND_NS (400 * NSEC_PER_MSEC) /* how often a round goes beside memory */
#define JUDGE_NS (100 * NSEC_PER_MSEC)      /* how often the whole map is looked at beside memory */
#define SETTLE_NS (10 * NSEC_PER_SEC)
#define HYBRID_NS (HYBRID_SECONDS * NSEC_PER_SEC)

/* --- time and convergence ------------------------------------------------------------------------------- */

/* The time that the user allowed is over, and this is what shall happen then. */
static bool overdue(const struct departure *departure, enum move_on_timeout policy)
{
    const struct move_options *options = &departure->options;
    return options->timeout_ms && options->on_timeout == policy &&
           clock_now() - departure->began > (int64_t)options->timeout_ms * NSEC_PER_MSEC;
}

int departure_check_time(struct departure *departure, struct err *err)
{
    int r = departure_check(departure, err);
    const struct move_options *options = &departure->options;
    if (r < 0 || !overdue(departure, MOVE_CANCEL))
        return r;
    const char *why = departure->obstacle;
    err_set(err, ETIMEDOUT, "the move took longer than its --timeout of %.0f s%s%s",
            (double)options->timeout_ms / 1000, why[0] ? ": " : "", why);
    return err_hint(
        err, "the guest runs on %s as before; %s", departure->host->name,
        why[0] ? "let memory follow it (--on-timeout postcopy, --memory postcopy), let it stand still "
                 "(--on-timeout pause, --max-blackout), slow it down (--throttle), or give more bandwidth"
               : "allow more time (--timeout), or say what shall happen then (--on-timeout postcopy|pause)");
}

/* The user allowed to stop the guest once the time is over, whatever the blackout. */
static bool forced(const struct departure *departure)
{
    return overdue(departure, MOVE_PAUSE);
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
        if (overdue(departure, MOVE_FOLLOW) && departure_not_converging(departure))
            break;
        if (pending >= last - last / 10) {
            departure->numbers.converging = departure_not_converging(departure);
            if (!departure->numbers.converging)
                plan_obstacle(
                    departure,
                    "the disks do not converge: the guest writes to them faster than the link carries");
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

/* --- memory --------------------------------------------------------------------------------------------- */

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
    uint64_t wanted = ready ? memory_downtime_ms(departure) : MEMORY_LEAST_MS;
    if (wanted == *downtime_ms)
        return 0;
    *downtime_ms = wanted;
    return qemu_migrate_set(machine_qemu(departure->machine), 0, wanted, err);
}

static void tell_obstacle(struct departure *departure)
{
    const struct progress_numbers *numbers = &departure->numbers;
    char left[SIZE_TEXT], rate[SIZE_TEXT];
    double carried = MAX(rate_of(numbers->memory_sent - departure->spent, departure->memory_began), 1.0);
    plan_obstacle(departure,
                  "memory does not converge: after each pass %s have changed meanwhile, %.1f s at %s, and "
                  "the guest may stand still for %.1f s (--max-blackout)",
                  size_format(numbers->memory_remaining, left), (double)numbers->memory_remaining / carried,
                  rate_format(carried, rate), (double)departure->options.max_blackout_ms / 1000);
}

/* "Not converging" when three passes over memory left as much as they found. Said once, until it does again.
 */
static void judge_memory(struct departure *departure, uint64_t *iteration, uint64_t *least)
{
    struct progress_numbers *numbers = &departure->numbers;
    if (numbers->memory_iterations == *iteration)
        return;
    *iteration = numbers->memory_iterations;
    departure->futile = numbers->memory_remaining < *least - *least / 20 ? 0 : departure->futile + 1;
    *least = MIN(*least, numbers->memory_remaining);
    bool rises = numbers->throttle < departure->options.throttle; /* the guest may be slowed down further */
    bool converging = departure->futile < 3 || rises;
    if (numbers->converging == converging)
        return;
    numbers->converging = converging;
    progress_set(departure->progress, numbers); /* whoever sees the reason has seen that there is one */
    if (converging)
        plan_obstacle(departure, "%s", "");
    else
        tell_obstacle(departure);
    departure_show(departure);
}

/* Memory will follow the guest, so that QEMU stops the guest as soon as it is asked: what is left of the
 * disks must be little by then, or follow too. */
static int settle_disks(struct departure *departure, struct err *err)
{
    bool may_follow = departure->lender && departure->options.mode == MOVE_AUTO;
    const struct round_slice slice = {.max_bytes = UINT64_MAX / 2,
                                      .deadline = clock_now() + (may_follow ? SETTLE_NS / 5 : SETTLE_NS)};
    int r = 0;
    while (r == 0 && !departure->split && !disk_ready(departure)) {
        if (clock_now() > slice.deadline && !departure_not_converging(departure))
            return err_set(
                err, ETIMEDOUT,
                "the time is over, and the guest writes to its disks faster than the link carries");
        if (departure->split)
            break;
        if (!departure->round_open && (r = rounds_wait_marked(departure, 0, err)) == 0)
            r = rounds_begin(departure, LINEAGE_ROUND, err);
        if (r == 0 && (r = rounds_send(departure, &slice, err)) == 1)
            r = rounds_mark(departure, false, err);
    }
    return r == 0 && departure->split ? departure_sync(departure, err) : r;
}

/* What pre-copy has sent of memory is thrown away: it takes the time once more, but nobody waits for it. */
static int follow_instead(struct departure *departure, struct err *err)
{
    char sent[SIZE_TEXT];
    int r = departure_renew_memory(departure, err);
    if (r == 0)
        r = settle_disks(departure, err);
    if (r < 0)
        return r;
    plan_obstacle(departure, "%s", "");
    progress_note(departure->progress,
                  "memory did not converge within the --timeout: it follows the guest (%s had been sent)",
                  size_format(departure->spent, sent));
    return 0;
}

static bool must_follow(const struct departure *departure)
{
    return overdue(departure, MOVE_FOLLOW) && !departure->memory_later;
}

/* Until QEMU holds the guest, or has given up, or must_follow. */
static int watch_stream(struct departure *departure, struct err *err)
{
    uint64_t iteration = 0, least = UINT64_MAX, downtime_ms = MEMORY_LEAST_MS;
    int64_t shown = 0;
    while (!departure_switch_waits(departure) && !must_follow(departure)) {
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
    return 0;
}

static int stream_memory(struct departure *departure, struct err *err)
{
    int r = 0;
    if (!must_follow(departure)) {
        r = departure_start_memory(departure, err);
        if (r == 0)
            r = watch_stream(departure, err);
    }
    if (r == 0 && !departure_switch_waits(departure)) {
        r = follow_instead(departure, err);
        if (r == 0)
            r = departure_start_memory(departure, err);
        if (r == 0)
            r = watch_stream(departure, err);
    }
    if (r < 0)
        return r;
    if (departure->migration == MIGRATION_FAILED) {
        r = departure_watch_memory(departure, err);
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
    return r < 0 ? r : stream_memory(departure, err);
}

/* After this QEMU runs the guest and knows of no migration. */
void departure_untransfer(struct departure *departure)
{
    departure_cancel_memory(departure);
}

/* --- the pause ------------------------------------------------------------------------------------------ */

/* All of memory has gone over. */
static void tell_throttle(struct departure *departure)
{
    struct progress_numbers *numbers = &departure->numbers;
    numbers->memory_remaining = numbers->throttle = 0;
    if (numbers->throttle_most)
        progress_note(
            departure->progress,
            "the guest's CPUs were slowed down by up to %u %% so that memory converged (--throttle)",
            numbers->throttle_most);
}

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
    bool compares = departure_compares(departure), first = compares && departure->clock;
    /* On the one, nothing waits before it; on the other it comes before the devices. */
    int r = departure_tell_clock(departure, departure->session.control, err);
    if (r == 0)
        r = departure_tell_clock(departure, departure->session.data[0], err);
    if (r == 0 && departure->memory_later)
        r = departure_lead_memory(departure, err);
    if (r == 0)
        r = qemu_migrate_continue(qemu, err);
    if (r == 0)
        r = last_round(departure, err);
    if (r == 0 && compares)
        r = departure_hash_memory(departure, err);
    if (r == 0 && first)
        r = departure_compare(departure, err);
    if (r == 0 && !departure->memory_later)
        r = departure_wait_completed(departure, err);
    if (r == 0 && compares && !first)
        r = departure_compare(departure, err);
    if (r == 0)
        r = session_wait_json(&departure->session, FRAME_READY, clock_now() + MOVE_PAUSE_NS, &ready, err);
    departure_count_memory(departure);
    if (r == 0 && !departure->memory_later)
        tell_throttle(departure);
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
