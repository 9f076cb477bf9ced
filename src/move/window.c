/* SPDX-License-Identifier: Apache-2.0 */
#include "move/window.h"

#include "base/clock.h"
#include "base/macro.h"

#include <string.h>

#define LEAST (128 * KiB)            /* a gigabit link's for a millisecond */
#define QUEUE_NS (2 * NSEC_PER_MSEC) /* what the queues may add, or a part of the way's time */
#define QUEUE_SHARE 4
#define LOOK_NS (4 * NSEC_PER_MSEC) /* how long it is looked, or a part of the way's time */
#define LOOK_SHARE 4
#define SHORTEST_NS (10 * NSEC_PER_SEC) /* how long the shortest time counts */
#define STEADY_SHARE 8U                 /* of itself is added at a time once there has been a queue */

void window_init(struct window *window, uint64_t size, uint64_t most)
{
    memset(window, 0, sizeof *window);
    window->size = size;
    window->most = most;
}

/* At what is sent from here on. */
static void look(struct window *window)
{
    window->from = window->sent;
    window->since = window->least = 0;
    window->under_way = 0;
}

void window_restart(struct window *window, uint64_t taken)
{
    window->sent = taken;
    window->count = 0;
    window->shortest = 0;
    if (window->before)
        window->size = window->before;
    window->before = 0;
    look(window);
}

void window_sent(struct window *window, uint64_t end, int64_t now)
{
    window->sent = end;
    if (window->count == WINDOW_MARKS) /* one fewer to judge by */
        return;
    window->marks[(window->first + window->count++) % WINDOW_MARKS] = (struct window_mark){end, now};
}

/* The newest one that was taken; false: none was. */
static bool take_mark(struct window *window, uint64_t taken, struct window_mark *ret)
{
    bool found = false;
    while (window->count && window->marks[window->first].end <= taken) {
        *ret = window->marks[window->first];
        window->first = (window->first + 1) % WINDOW_MARKS;
        window->count--;
        found = true;
    }
    return found;
}

static void resize(struct window *window)
{
    int64_t queue = MAX(QUEUE_NS, window->shortest / QUEUE_SHARE), wanted = window->shortest + queue / 2;
    if (window->least - window->shortest > queue) {
        double part = (double)wanted / (double)window->least;
        window->size = MAX((uint64_t)((double)window->size * MAX(part, 0.5)), LEAST);
        window->steady = true;
    } else if (window->under_way >= window->size / 2) {
        uint64_t more = window->steady ? window->size / STEADY_SHARE : window->size;
        window->size = MIN(window->size + more, window->most);
    }
}

/* Once in a while nothing waits for a moment: a queue that is always there would pass for the way. */
static void judge(struct window *window, int64_t now)
{
    bool anew = window->before > 0;
    if (anew || window->least < window->shortest || !window->shortest) {
        window->shortest = window->least;
        window->shortest_at = now;
    }
    if (anew) {
        window->size = window->before;
        window->before = 0;
    } else if (now - window->shortest_at > SHORTEST_NS) {
        window->before = window->size;
        window->size = MIN(window->size, LEAST);
    } else {
        resize(window);
    }
    look(window);
}

void window_taken(struct window *window, uint64_t taken, int64_t now)
{
    struct window_mark mark;
    if (!take_mark(window, taken, &mark) || mark.end <= window->from)
        return;
    int64_t took = MAX(now - mark.at, INT64_C(1));
    window->since = window->since ? window->since : now;
    window->least = window->least ? MIN(window->least, took) : took;
    window->under_way = MAX(window->under_way, window->sent - taken);
    if (now - window->since >= MAX(LOOK_NS, window->least / LOOK_SHARE))
        judge(window, now);
}
