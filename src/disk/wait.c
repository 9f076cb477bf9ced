/* SPDX-License-Identifier: Apache-2.0
 *
 * Nobody sleeps in here: whoever waits does so in its own poll, on its own eventfd.
 *
 * No wake-up is lost: a watcher is counted, then looks at the bits; a filler clears bits, then looks at the
 * count (both sequentially consistent). So either the watcher sees the cleared bit, or the filler sees the
 * watcher.
 */
#include "disk/wait.h"

#include "base/macro.h"
#include "disk/private.h"

#include <errno.h>
#include <limits.h>
#include <unistd.h>

void waiting_init(struct waiting *waiting)
{
    *waiting = (struct waiting){.turn = 1};
    pthread_mutex_init(&waiting->lock, NULL);
    pthread_cond_init(&waiting->told, NULL);
}

void waiting_done(struct waiting *waiting)
{
    pthread_cond_destroy(&waiting->told);
    pthread_mutex_destroy(&waiting->lock);
    free(waiting->watchers);
}

/* --- demands ------------------------------------------------------------------------------------------- */

unsigned waiting_turn(const struct waiting *waiting)
{
    return atomic_load(&waiting->turn);
}

unsigned waiting_tell(struct waiting *waiting, const struct disk_need *needs, size_t count)
{
    pthread_mutex_lock(&waiting->lock);
    disk_demand_fn *fn = waiting->fn;
    void *arg = waiting->arg;
    unsigned turn = atomic_load(&waiting->turn);
    waiting->calls += fn != NULL;
    pthread_mutex_unlock(&waiting->lock);
    if (!fn)
        return turn;
    for (size_t i = 0; i < count; i++)
        fn(arg, needs[i].block, needs[i].count);
    pthread_mutex_lock(&waiting->lock);
    if (--waiting->calls == 0)
        pthread_cond_broadcast(&waiting->told);
    pthread_mutex_unlock(&waiting->lock);
    return turn;
}

void disk_on_demand(struct disk *disk, disk_demand_fn *fn, void *arg)
{
    struct waiting *waiting = &disk->waiting;
    pthread_mutex_lock(&waiting->lock);
    waiting->fn = fn;
    waiting->arg = arg;
    if (fn && atomic_fetch_add(&waiting->turn, 1) == UINT_MAX)
        atomic_store(&waiting->turn, 1);
    while (!fn && waiting->calls > 0)
        pthread_cond_wait(&waiting->told, &waiting->lock);
    pthread_mutex_unlock(&waiting->lock);
    if (fn)
        waiting_wake(waiting); /* they find that this turn has not been told */
}

/* --- watchers ------------------------------------------------------------------------------------------ */

static void ring(int fd)
{
    uint64_t one = 1;
    ssize_t n = write(fd, &one, sizeof one);
    (void)n; /* EAGAIN: it has been rung more often than anybody counts */
}

void waiting_wake(struct waiting *waiting)
{
    if (atomic_load(&waiting->count) == 0)
        return;
    pthread_mutex_lock(&waiting->lock);
    for (size_t i = 0; i < atomic_load(&waiting->count); i++)
        ring(waiting->watchers[i].fd);
    pthread_mutex_unlock(&waiting->lock);
}

int disk_watch(struct disk *disk, int eventfd)
{
    struct waiting *waiting = &disk->waiting;
    pthread_mutex_lock(&waiting->lock);
    size_t count = atomic_load(&waiting->count);
    struct watcher *watchers = realloc(waiting->watchers, (count + 1) * sizeof *watchers);
    if (watchers) {
        watchers[count] = (struct watcher){.fd = eventfd};
        waiting->watchers = watchers;
        atomic_store(&waiting->count, count + 1);
    }
    pthread_mutex_unlock(&waiting->lock);
    if (!watchers)
        return -ENOMEM;
    ring(eventfd); /* what came just before counts too */
    return 0;
}

/* Under the lock. NULL = it watches no more. */
static struct watcher *find(struct waiting *waiting, int eventfd)
{
    for (size_t i = 0; i < atomic_load(&waiting->count); i++)
        if (waiting->watchers[i].fd == eventfd)
            return &waiting->watchers[i];
    return NULL;
}

void disk_unwatch(struct disk *disk, int eventfd)
{
    struct waiting *waiting = &disk->waiting;
    pthread_mutex_lock(&waiting->lock);
    struct watcher *watcher = find(waiting, eventfd);
    if (watcher) {
        size_t count = atomic_load(&waiting->count) - 1;
        *watcher = waiting->watchers[count];
        atomic_store(&waiting->count, count);
    }
    pthread_mutex_unlock(&waiting->lock);
}

void disk_waits(struct disk *disk, int eventfd, int64_t since)
{
    struct waiting *waiting = &disk->waiting;
    pthread_mutex_lock(&waiting->lock);
    struct watcher *watcher = find(waiting, eventfd);
    if (watcher)
        watcher->since = since;
    pthread_mutex_unlock(&waiting->lock);
}

int64_t disk_waiting_since(const struct disk *disk)
{
    struct waiting *waiting = (struct waiting *)&disk->waiting; /* locking does not change the disk */
    int64_t oldest = 0;
    pthread_mutex_lock(&waiting->lock);
    for (size_t i = 0; i < atomic_load(&waiting->count); i++) {
        int64_t since = waiting->watchers[i].since;
        if (since != 0 && (oldest == 0 || since < oldest))
            oldest = since;
    }
    pthread_mutex_unlock(&waiting->lock);
    return oldest;
}
