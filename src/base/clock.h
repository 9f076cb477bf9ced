/* SPDX-License-Identifier: Apache-2.0
 *
 * clock: monotonic time in nanoseconds, for deadlines and rates; wall time only for people.
 */
#pragma once

#include <stdint.h>
#include <time.h>

#define NSEC_PER_MSEC INT64_C(1000000)
#define NSEC_PER_SEC INT64_C(1000000000)

static inline int64_t clock_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * NSEC_PER_SEC + t.tv_nsec;
}

/* Milliseconds since 1970. */
static inline int64_t clock_wall_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return t.tv_sec * INT64_C(1000) + t.tv_nsec / NSEC_PER_MSEC;
}

static inline void clock_sleep(int64_t nsec)
{
    struct timespec t = {.tv_sec = nsec / NSEC_PER_SEC, .tv_nsec = nsec % NSEC_PER_SEC};
    nanosleep(&t, NULL);
}

/* Milliseconds from now until `deadline`, rounded up, at least 0: what poll(2) wants. */
static inline int clock_poll_ms(int64_t deadline)
{
    int64_t left = deadline - clock_now();
    if (left <= 0)
        return 0;
    left = (left + NSEC_PER_MSEC - 1) / NSEC_PER_MSEC;
    return left > 1000000 ? 1000000 : (int)left;
}
