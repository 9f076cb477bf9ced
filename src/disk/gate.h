/* SPDX-License-Identifier: Apache-2.0
 *
 * gate: every write passes through it, so that one can wait for all writes that are under way without
 * stopping new ones, or hold new ones back.
 *
 * Two counters of writes under way, one per parity of a phase number that grows by one at each drain: the
 * idea of sleepable RCU (P. McKenney, "Sleepable RCU", 2006). A writer enters the counter of the phase that
 * it sees and looks again; a drain starts the next phase and waits until the old counter is zero.
 *
 * Threads: enter and exit from any; drain, freeze and thaw from one at a time (the disk's control lock).
 */
#pragma once

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

struct gate {
    atomic_uint state; /* phase * 2 + frozen */
    atomic_uint under_way[2];
    atomic_bool draining;
    pthread_mutex_t lock; /* only for sleeping and waking */
    pthread_cond_t changed;
};

void gate_init(struct gate *gate);
void gate_done(struct gate *gate);

/* Waits while the gate is frozen. Returns what gate_exit wants back. */
unsigned gate_enter(struct gate *gate);
void gate_exit(struct gate *gate, unsigned slot);

/* Returns once every write that entered before the call has left. */
void gate_drain(struct gate *gate);
/* Holds new writes back, then drains. Freezing twice is freezing once. */
void gate_freeze(struct gate *gate);
void gate_thaw(struct gate *gate);
bool gate_is_frozen(const struct gate *gate);
