/* SPDX-License-Identifier: Apache-2.0
 *
 * budget: the bandwidth that all connections of one move share. A token bucket of 20 ms depth, so that the
 * limit holds over any fraction of a second too. Any thread.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

struct budget;

/* bytes_per_second 0 = unlimited. NULL when out of memory. */
struct budget *budget_new(uint64_t bytes_per_second);
void budget_free(struct budget *budget);
/* How many of `want` bytes may be sent now. 0: none, and *ret_wait_ns says when to ask again. */
size_t budget_take(struct budget *budget, size_t want, int64_t *ret_wait_ns);
/* The same at this moment of clock_now(). */
size_t budget_take_at(struct budget *budget, int64_t now, size_t want, int64_t *ret_wait_ns);
/* Bytes taken so far: what the move has put on the wire. */
uint64_t budget_spent(const struct budget *budget);
