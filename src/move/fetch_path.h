/* SPDX-License-Identifier: Apache-2.0
 *
 * fetch_path: how much may be under way to a holder that nobody waits for. One bandwidth-delay product,
 * measured as the best rate and the shortest answer of late, and two milliseconds' worth more, so that the
 * path is full and its queue is short (the idea of BBR: Cardwell et al., "BBR: Congestion-Based Congestion
 * Control", ACM Queue 14/5, 2016). Pure; times are clock_now()'s.
 */
#pragma once

#include <stdint.h>

/* Of a path on which nothing was answered yet all is 0. */
struct fetch_path {
    double best_rate; /* bytes per second */
    int64_t shortest; /* nanoseconds from a request to the end of its answer; 0: nothing was answered */
    int64_t shortest_at, measured_at;
    uint64_t measured_bytes;
    uint64_t rate; /* bytes per second lately */
};

/* An answer with `bytes` of data has come, `took` nanoseconds after it was asked for. */
void fetch_path_answered(struct fetch_path *path, uint64_t bytes, int64_t took, int64_t now);
/* Bytes: from 128 KiB, which is what a path has of which nothing is known, to 16 MiB. */
uint64_t fetch_path_window(const struct fetch_path *path);
