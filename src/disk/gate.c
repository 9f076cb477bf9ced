/* SPDX-License-Identifier: Apache-2.0
 *
 * All atomics here are sequentially consistent. Two pairs rely on it: a writer counts itself, then looks at
 * the phase, while a drain changes the phase, then looks at the count; and the last writer counts itself out,
 * then looks whether someone drains, while a drain says that it drains, then looks at the count.
 */
#include "disk/gate.h"

#define FROZEN 1U
#define PHASE 2U /* one step */

void gate_init(struct gate *gate)
{
    *gate = (struct gate){0};
    pthread_mutex_init(&gate->lock, NULL);
    pthread_cond_init(&gate->changed, NULL);
}

void gate_done(struct gate *gate)
{
    pthread_cond_destroy(&gate->changed);
    pthread_mutex_destroy(&gate->lock);
}

static unsigned slot_of(unsigned state)
{
    return state / PHASE & 1;
}

static void wait_for_thaw(struct gate *gate)
{
    pthread_mutex_lock(&gate->lock);
    while (atomic_load(&gate->state) & FROZEN)
        pthread_cond_wait(&gate->changed, &gate->lock);
    pthread_mutex_unlock(&gate->lock);
}

unsigned gate_enter(struct gate *gate)
{
    for (;;) {
        unsigned state = atomic_load(&gate->state);
        if (state & FROZEN) {
            wait_for_thaw(gate);
            continue;
        }
        unsigned slot = slot_of(state);
        atomic_fetch_add(&gate->under_way[slot], 1);
        if (atomic_load(&gate->state) == state)
            return slot;
        gate_exit(gate, slot);
    }
}

void gate_exit(struct gate *gate, unsigned slot)
{
    if (atomic_fetch_sub(&gate->under_way[slot], 1) != 1 || !atomic_load(&gate->draining))
        return;
    pthread_mutex_lock(&gate->lock);
    pthread_cond_broadcast(&gate->changed);
    pthread_mutex_unlock(&gate->lock);
}

/* Starts the next phase, with or without the gate frozen, and waits for the writes of the one before. Those
 * of still earlier phases were waited for when that one began. */
static void next_phase(struct gate *gate, unsigned frozen)
{
    unsigned old = atomic_load(&gate->state);
    atomic_store(&gate->draining, true);
    atomic_store(&gate->state, ((old & ~FROZEN) + PHASE) | frozen);
    pthread_mutex_lock(&gate->lock);
    while (atomic_load(&gate->under_way[slot_of(old)]) != 0)
        pthread_cond_wait(&gate->changed, &gate->lock);
    pthread_mutex_unlock(&gate->lock);
    atomic_store(&gate->draining, false);
}

void gate_drain(struct gate *gate)
{
    next_phase(gate, atomic_load(&gate->state) & FROZEN);
}

void gate_freeze(struct gate *gate)
{
    next_phase(gate, FROZEN);
}

void gate_thaw(struct gate *gate)
{
    pthread_mutex_lock(&gate->lock);
    atomic_fetch_and(&gate->state, ~FROZEN);
    pthread_cond_broadcast(&gate->changed);
    pthread_mutex_unlock(&gate->lock);
}

bool gate_is_frozen(const struct gate *gate)
{
    return atomic_load(&gate->state) & FROZEN;
}
