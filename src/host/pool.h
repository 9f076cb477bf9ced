/* SPDX-License-Identifier: Apache-2.0
 *
 * pool: threads for work that may block. They are started when there is work and no thread is free, at most
 * `max_threads`, and end when they had nothing to do for a while: an idle oraid has none.
 */
#pragma once

#include "base/err.h"

#include <stdbool.h>

struct pool;

typedef void pool_work_fn(void *arg);

/* `max_waiting`: work that may wait for a thread; more is refused. */
int pool_new(const char *name, unsigned max_threads, unsigned max_waiting, struct pool **ret,
             struct err *err);
/* Takes no more work, runs what waits, and waits up to `msec` for all threads. false: some still run (then
 * the process must end without freeing what they use). */
bool pool_stop(struct pool *pool, int msec);
/* Only after pool_stop returned true. NULL is fine. */
void pool_free(struct pool *pool);

/* -EAGAIN when too much waits already, or the pool stops: then `run` is not called. */
int pool_run(struct pool *pool, pool_work_fn *run, void *arg, struct err *err);
