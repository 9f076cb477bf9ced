/* SPDX-License-Identifier: Apache-2.0
 *
 * The guest's clock after a move (memory/timer.h). It counted nothing while the guest stood still, so it is
 * set forward by that time: exactly that, for what the two hosts hold the time of day to be is not asked. The
 * source tells how long the guest had stood still when it spoke (FRAME_CLOCK), and here the rest is
 * counted. What is still to come when the clock is set (QEMU loads what it has not, three durable writes, two
 * hosts that speak) is predicted, a little too long; a guest that could go on earlier waits for that moment.
 *
 * Only for emulated guests: their TSC is this CPU's counter and an offset, which stands beside the clock's.
 */
#include "base/clock.h"
#include "base/log.h"
#include "base/macro.h"
#include "move/arrival.h"

#if defined(__x86_64__)
#include <x86intrin.h>
#endif

/* Guests take a jump of 20 s for a CPU that hangs. */
#define MOST_NS (10 * NSEC_PER_SEC)
/* What is left from there on: devices, of which the pages come over the network; the end of the stream. */
#define LOAD_NS (28 * NSEC_PER_MSEC)
#define LOAD_ROUND_TRIPS 1
#define END_NS (4 * NSEC_PER_MSEC)
#define DURABLE_MOST_NS (8 * NSEC_PER_MSEC)
#define CONT_NS (NSEC_PER_MSEC / 2) /* QEMU's own way from the command to its clock */
#define RECORDS 2                   /* the commit there, the epoch here; and each disk's claim */
#define LOOKS 8
#define MOST_WAIT_NS (200 * NSEC_PER_MSEC)

/* What QEMU lets the guest's TSC count by (its cpu_get_host_ticks). Elsewhere that is no clock. */
static uint64_t ticks_now(void)
{
#if defined(__x86_64__)
    return __rdtsc();
#else
    return 0;
#endif
}

/* Both at the same moment, though this thread may be stopped in between. Returns clock_now(). */
static int64_t look_at_both(uint64_t *ret_ticks)
{
    int64_t best = 0, took = INT64_MAX;
    for (int i = 0; i < LOOKS; i++) {
        int64_t before = clock_now();
        uint64_t ticks = ticks_now();
        int64_t after = clock_now();
        if (after - before >= took)
            continue;
        took = after - before;
        best = before + took / 2;
        *ret_ticks = ticks;
    }
    return best;
}

int arrival_stood_still(struct arrival *arrival, const uint8_t *payload, size_t size, struct err *err)
{
    struct wire_clock clock;
    int r = wire_clock_decode(payload, size, &clock, err);
    if (r < 0)
        return r;
    /* It comes more than once: the one that was on its way for the shortest time is right. */
    int64_t since = clock_now() - clock.stood - clock.round_trip / 2;
    pthread_mutex_lock(&arrival->lock);
    int64_t before = arrival->standstill.since;
    arrival->standstill.since = before ? MIN(before, since) : since;
    arrival->standstill.round_trip = clock.round_trip;
    pthread_mutex_unlock(&arrival->lock);
    return 0;
}

int arrival_record(struct arrival *arrival, const struct epoch_record *record, struct err *err)
{
    int64_t began = clock_now();
    int r = epoch_set(arrival->epoch, record, err);
    arrival->standstill.durable = clock_now() - began;
    return r;
}

static int64_t rest_of(const struct arrival *arrival, bool loads)
{
    int64_t durable = MIN(arrival->standstill.durable, DURABLE_MOST_NS),
            round_trip = arrival->standstill.round_trip;
    int64_t rest = END_NS + round_trip + durable * (RECORDS + (int64_t)arrival->config.disk_count);
    return loads ? rest + LOAD_NS + durable + LOAD_ROUND_TRIPS * round_trip : rest;
}

static struct timer_shift shift(void *arg, bool loads)
{
    struct arrival *arrival = arg;
    uint64_t ticks;
    int64_t now = look_at_both(&ticks), since = arrival->standstill.since,
            goes_on = now + rest_of(arrival, loads);
    if (!since)
        return (struct timer_shift){0};
    if (goes_on - since > MOST_NS) {
        log_warning("the guest stood still for more than %d s: its clock stays behind by that",
                    (int)(MOST_NS / NSEC_PER_SEC));
        return (struct timer_shift){0};
    }
    double counted = (double)(ticks - arrival->standstill.ticks);
    double rate = counted / (double)MAX(now - arrival->standstill.began, INT64_C(1));
    arrival->standstill.forward = goes_on - since;
    arrival->standstill.goes_on = goes_on;
    return (struct timer_shift){.nsec = goes_on - since,
                                .ticks = (int64_t)((double)(goes_on - since) * rate)};
}

int arrival_watch_clock(struct arrival *arrival, struct stream *stream, struct err *err)
{
    if (!arrival->clock || (!arrival->compare_memory && !arrival->memory_later))
        return 0;
    arrival->standstill.began = look_at_both(&arrival->standstill.ticks);
    return stream_set_clock(stream, shift, arrival, err);
}

int arrival_go_on(struct arrival *arrival, struct err *err)
{
    int64_t goes_on = arrival->standstill.goes_on, early = goes_on ? goes_on - CONT_NS - clock_now() : 0;
    if (early > 0)
        clock_sleep(MIN(early, MOST_WAIT_NS));
    int r = qemu_cont(machine_qemu(arrival->machine), err);
    if (r == 0 && goes_on)
        log_info("the guest's clock was set forward by %.1f ms; it could go on %.1f ms %s, and is behind by "
                 "%.1f ms at most",
                 (double)arrival->standstill.forward / NSEC_PER_MSEC,
                 (double)(early < 0 ? -early : early) / NSEC_PER_MSEC, early < 0 ? "too late" : "too early",
                 (double)(clock_now() - goes_on) / NSEC_PER_MSEC);
    return r;
}
