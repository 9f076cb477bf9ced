/* SPDX-License-Identifier: Apache-2.0
 *
 * window: how many bytes of a stream may be on their way at a time, so that the path is full and its queues
 * are short: whoever asks for something waits behind all that is on its way already. Time after time the
 * shortest time from sent to taken of some milliseconds is compared with the shortest ever, which has no
 * queue in it: where it is longer, something always waits, and the window shrinks to what would not; else it
 * grows, doubling until there is a queue for the first time. (The idea of FAST TCP: Wei, Jin, Low and Hegde,
 * IEEE/ACM Transactions on Networking 14/6, 2006; of several times only the shortest counts, for a busy host
 * delays some: Arun and Balakrishnan, "Copa", NSDI 2018.) Pure; times are clock_now()'s.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define WINDOW_MARKS 256U

struct window {
    uint64_t size, most; /* bytes; at most */
    uint64_t sent;
    bool steady;                   /* there has been a queue */
    int64_t shortest, shortest_at; /* from sent to taken; 0: nothing was taken yet */
    uint64_t before;               /* not 0: `size`, which is small now, to see the shortest again */
    /* What is looked at: bytes after this number; since when they come, and the shortest that one took. */
    uint64_t from;
    int64_t since, least;
    uint64_t under_way; /* the most */
    struct window_mark {
        uint64_t end;
        int64_t at;
    } marks[WINDOW_MARKS]; /* when what ends there was sent, oldest first */
    size_t first, count;
};

/* It begins with `size`. */
void window_init(struct window *window, uint64_t size, uint64_t most);
/* Bytes up to number `end` have been sent. */
void window_sent(struct window *window, uint64_t end, int64_t now);
/* The peer says that it has taken all up to number `taken`. */
void window_taken(struct window *window, uint64_t taken, int64_t now);
/* The connection is another: what was sent up to number `taken` was taken, the rest is sent again. */
void window_restart(struct window *window, uint64_t taken);
