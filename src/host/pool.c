/* SPDX-License-Identifier: Apache-2.0 */
#include "host/pool.h"

#include "base/clock.h"
#include "base/macro.h"
#include "base/tls.h"

#include <errno.h>
#include <malloc.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#define IDLE_SEC 10
#define STACK_SIZE (512U << 10) /* handlers hold a few PATH_MAX buffers and an err per frame */

struct work {
    struct work *next;
    pool_work_fn *run;
    void *arg;
};

struct pool {
    pthread_mutex_t lock;
    pthread_cond_t arrived, left; /* work for a thread; a thread has ended */
    char name[16];
    unsigned max_threads, max_waiting;
    unsigned threads, idle, waiting;
    bool stopping;
    struct work *first, **last;
};

static void init_cond(pthread_cond_t *cond)
{
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(cond, &attributes);
    pthread_condattr_destroy(&attributes);
}

int pool_new(const char *name, unsigned max_threads, unsigned max_waiting, struct pool **ret, struct err *err)
{
    struct pool *pool = calloc(1, sizeof *pool);
    if (!pool)
        return err_set(err, ENOMEM, "out of memory");
    pthread_mutex_init(&pool->lock, NULL);
    init_cond(&pool->arrived);
    init_cond(&pool->left);
    snprintf(pool->name, sizeof pool->name, "%s", name);
    pool->max_threads = max_threads;
    pool->max_waiting = max_waiting;
    pool->last = &pool->first;
    *ret = pool;
    return 0;
}

static struct timespec monotonic(int64_t when)
{
    return (struct timespec){.tv_sec = when / NSEC_PER_SEC, .tv_nsec = when % NSEC_PER_SEC};
}

/* NULL when the thread has idled long enough, or the pool stops and is empty. Locked. */
static struct work *next_work(struct pool *pool)
{
    struct timespec until = monotonic(clock_now() + IDLE_SEC * NSEC_PER_SEC);
    while (!pool->first) {
        if (pool->stopping)
            return NULL;
        pool->idle++;
        int r = pthread_cond_timedwait(&pool->arrived, &pool->lock, &until);
        pool->idle--;
        if (r == ETIMEDOUT && !pool->first)
            return NULL;
    }
    struct work *work = pool->first;
    pool->first = work->next;
    if (!pool->first)
        pool->last = &pool->first;
    pool->waiting--;
    return work;
}

static void *worker(void *arg)
{
    struct pool *pool = arg;
    pthread_mutex_lock(&pool->lock);
    for (struct work *work; (work = next_work(pool));) {
        pthread_mutex_unlock(&pool->lock);
        work->run(work->arg);
        free(work);
        pthread_mutex_lock(&pool->lock);
    }
    tls_leave_thread(); /* most of its work is done over TLS */
    bool last = --pool->threads == 0;
    pthread_cond_broadcast(&pool->left);
    pthread_mutex_unlock(&pool->lock);
    /* The pool may be gone from here on. */
    if (last)
        malloc_trim(0); /* what the busy time took goes back to the system */
    return NULL;
}

/* Locked. A failure matters only when no thread is there at all. */
static int start_thread(struct pool *pool)
{
    pthread_attr_t attributes;
    pthread_t thread;
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attributes, STACK_SIZE);
    int r = pthread_create(&thread, &attributes, worker, pool);
    pthread_attr_destroy(&attributes);
    if (r)
        return -r;
    pthread_setname_np(thread, pool->name);
    pool->threads++;
    return 0;
}

static int enqueue(struct pool *pool, struct work *work, struct err *err)
{
    if (pool->stopping)
        return err_set(err, EAGAIN, "oraid is stopping");
    if (pool->waiting >= pool->max_waiting)
        return err_set(err, EAGAIN, "too many requests wait already: try again later");
    if (pool->idle <= pool->waiting && pool->threads < pool->max_threads) {
        int r = start_thread(pool);
        if (r < 0 && pool->threads == 0)
            return err_sys(err, r, "cannot start a thread");
    }
    *pool->last = work;
    pool->last = &work->next;
    pool->waiting++;
    pthread_cond_signal(&pool->arrived);
    return 0;
}

int pool_run(struct pool *pool, pool_work_fn *run, void *arg, struct err *err)
{
    struct work *work = malloc(sizeof *work);
    if (!work)
        return err_set(err, ENOMEM, "out of memory");
    *work = (struct work){NULL, run, arg};
    pthread_mutex_lock(&pool->lock);
    int r = enqueue(pool, work, err);
    pthread_mutex_unlock(&pool->lock);
    if (r < 0)
        free(work);
    return r;
}

bool pool_stop(struct pool *pool, int msec)
{
    struct timespec until = monotonic(clock_now() + msec * NSEC_PER_MSEC);
    pthread_mutex_lock(&pool->lock);
    pool->stopping = true;
    pthread_cond_broadcast(&pool->arrived);
    int r = 0;
    while (pool->threads > 0 && r != ETIMEDOUT)
        r = pthread_cond_timedwait(&pool->left, &pool->lock, &until);
    bool stopped = pool->threads == 0;
    pthread_mutex_unlock(&pool->lock);
    return stopped;
}

void pool_free(struct pool *pool)
{
    if (!pool)
        return;
    assert(pool->threads == 0 && !pool->first);
    pthread_cond_destroy(&pool->arrived);
    pthread_cond_destroy(&pool->left);
    pthread_mutex_destroy(&pool->lock);
    free(pool);
}
