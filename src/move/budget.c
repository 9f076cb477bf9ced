/* SPDX-License-Identifier: Apache-2.0 */
#include "move/budget.h"

#include "base/clock.h"
#include "base/macro.h"

#include <pthread.h>

#define DEPTH_NS (20 * NSEC_PER_MSEC)
#define MIN_GRANT 1400U /* less is not worth a record */

struct budget {
    uint64_t rate;
    pthread_mutex_t lock; /* held for the arithmetic only */
    double tokens;        /* bytes that may be sent now */
    int64_t filled;       /* clock_now() of the last refill */
    uint64_t spent;
};

struct budget *budget_new(uint64_t bytes_per_second)
{
    struct budget *budget = calloc(1, sizeof *budget);
    if (!budget)
        return NULL;
    budget->rate = bytes_per_second;
    budget->filled = clock_now();
    pthread_mutex_init(&budget->lock, NULL);
    return budget;
}

void budget_free(struct budget *budget)
{
    if (!budget)
        return;
    pthread_mutex_destroy(&budget->lock);
    free(budget);
}

static void refill(struct budget *budget, int64_t now)
{
    if (now <= budget->filled)
        return; /* another thread looked at the clock later, and was here first */
    double depth = MAX((double)budget->rate * DEPTH_NS / NSEC_PER_SEC, 2.0 * MIN_GRANT);
    budget->tokens += (double)budget->rate * (double)(now - budget->filled) / NSEC_PER_SEC;
    budget->tokens = MIN(budget->tokens, depth);
    budget->filled = now;
}

size_t budget_take(struct budget *budget, size_t want, int64_t *ret_wait_ns)
{
    return budget_take_at(budget, clock_now(), want, ret_wait_ns);
}

size_t budget_take_at(struct budget *budget, int64_t now, size_t want, int64_t *ret_wait_ns)
{
    pthread_mutex_lock(&budget->lock);
    size_t granted = want;
    if (budget->rate) {
        refill(budget, now);
        double least = (double)MIN(want, (size_t)MIN_GRANT);
        if (budget->tokens < least) {
            *ret_wait_ns = (int64_t)((least - budget->tokens) / (double)budget->rate * NSEC_PER_SEC) + 1;
            granted = 0;
        } else if ((double)want > budget->tokens) {
            granted = (size_t)budget->tokens;
        }
        budget->tokens -= (double)granted;
    }
    budget->spent += granted;
    pthread_mutex_unlock(&budget->lock);
    return granted;
}

uint64_t budget_spent(const struct budget *budget)
{
    struct budget *b = (struct budget *)budget;
    pthread_mutex_lock(&b->lock);
    uint64_t spent = b->spent;
    pthread_mutex_unlock(&b->lock);
    return spent;
}
