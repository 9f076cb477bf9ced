/* SPDX-License-Identifier: Apache-2.0
 *
 * wait: who needs missing blocks of a split disk meets who fetches them. The first come with what they need
 * (a demand), park, and watch; the second clears bits and wakes them. The public half is in split.h.
 *
 * Threads: all functions from any. The lock is innermost, and not held while a demand is being told.
 */
#pragma once

#include "disk/split.h"

#include <pthread.h>
#include <stdatomic.h>

struct watcher {
    int fd;
    int64_t since; /* clock_now() of the oldest that waits there, 0 = nobody */
};

struct waiting {
    pthread_mutex_t lock;
    pthread_cond_t told; /* the last call of a demand function has returned */
    disk_demand_fn *fn;
    void *arg;
    unsigned calls;   /* under way */
    atomic_uint turn; /* grows whenever there is a new function to ask; never 0 */
    struct watcher *watchers;
    atomic_size_t count; /* of watchers; changed under the lock */
};

void waiting_init(struct waiting *waiting);
void waiting_done(struct waiting *waiting);

/* Tells the fetcher, if there is one. Returns the turn in which that was. */
unsigned waiting_tell(struct waiting *waiting, const struct disk_need *needs, size_t count);
unsigned waiting_turn(const struct waiting *waiting);
/* Some bits have been cleared. */
void waiting_wake(struct waiting *waiting);
