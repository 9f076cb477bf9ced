/* SPDX-License-Identifier: Apache-2.0 */
#include "pace.h"

#include <errno.h>
#include <time.h>

static const int64_t forgiven_delay = 50 * MS;

int64_t pace_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * SECOND + now.tv_nsec;
}

void pace_wait(struct pace *pace, int64_t interval)
{
    int64_t now = pace_now();
    pace->next += interval;
    if (pace->next < now - forgiven_delay)
        pace->next = now;
    struct timespec until = {.tv_sec = pace->next / SECOND, .tv_nsec = pace->next % SECOND};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL) == EINTR)
        ;
}
