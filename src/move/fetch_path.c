/* SPDX-License-Identifier: Apache-2.0 */
#include "move/fetch_path.h"

#include "base/clock.h"
#include "base/macro.h"

#define WINDOW_MIN (128 * KiB)
#define WINDOW_MAX (16 * MiB)
#define QUEUE_NS (2 * NSEC_PER_MSEC)    /* what the rest may add to the way of what somebody waits for */
#define RATE_NS (200 * NSEC_PER_MSEC)   /* over which the rate is measured */
#define SHORTEST_NS (10 * NSEC_PER_SEC) /* how long the shortest answer counts */

void fetch_path_answered(struct fetch_path *path, uint64_t bytes, int64_t took, int64_t now)
{
    if (path->shortest == 0 || took < path->shortest || now - path->shortest_at > SHORTEST_NS) {
        path->shortest = MAX(took, INT64_C(1));
        path->shortest_at = now;
    }
    path->measured_bytes += bytes;
    if (path->measured_at == 0)
        path->measured_at = now - took;
    int64_t span = now - path->measured_at;
    if (span < RATE_NS)
        return;
    double rate = (double)path->measured_bytes * NSEC_PER_SEC / (double)span;
    path->best_rate = MAX(rate, path->best_rate * 0.9);
    path->rate = (uint64_t)rate;
    path->measured_bytes = 0;
    path->measured_at = now;
}

uint64_t fetch_path_window(const struct fetch_path *path)
{
    double seconds = (double)(path->shortest + QUEUE_NS) / NSEC_PER_SEC;
    return MIN(MAX((uint64_t)(path->best_rate * seconds), WINDOW_MIN), WINDOW_MAX);
}
