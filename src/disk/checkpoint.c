/* SPDX-License-Identifier: Apache-2.0
 *
 * Checkpoints: make image and map durable and forget the intents that this settles. A thread of its own does
 * so every CHECKPOINT_SECONDS while there are intents, so that a power cut costs a later transfer what was
 * written in the last two intervals, not since the disk was opened. Extents that are written all the time
 * keep their bits.
 *
 * The order is the crash rule: bits are cleared only after image *and* map are durable. The image too,
 * because a block that a transfer has read from the page cache and a power cut takes back differs from the
 * copy. Of a split disk the blocks that have come since count as here after that, and not before.
 */
#include "disk/private.h"

#include "base/clock.h"
#include "base/macro.h"

#include <errno.h>
#include <signal.h>

#define CHECKPOINT_SECONDS 10
#define STACK_SIZE (128 * KiB)

static int sync_both(struct disk *disk)
{
    int r = image_sync(&disk->image);
    return r == 0 ? genmap_sync(disk->map) : r;
}

/* A bit is cleared before its change is marked, and a write that finds it clear takes no lock: it may be
 * acknowledged, and its flush be here, between the two. Both happen with the stripe's lock held. */
static void begin_settling(struct missing *split)
{
    pthread_mutex_lock(&split->settling);
    for (size_t i = 0; i < MISSING_STRIPES; i++) {
        pthread_mutex_lock(&split->stripes[i]);
        pthread_mutex_unlock(&split->stripes[i]);
    }
}

/* With `settling` held. A block's number must be durable before its presence: a later move would else take
 * what was fetched for old. */
static int carry_over(struct disk *disk, struct missing *split)
{
    struct missing_picture *picture = NULL;
    int r = missing_take(split, &picture);
    if (r < 0)
        return r;
    r = sync_both(disk);
    if (picture && r == 0)
        r = missing_put(split, picture);
    else
        missing_put_back(split, picture);
    return r;
}

/* Without a change there is nothing to carry over: whoever wrote it down before us has ended, for he held the
 * lock until then. */
int flush_split(struct disk *disk, struct missing *split)
{
    begin_settling(split);
    bool changed = missing_has_changed(split);
    int r = changed ? carry_over(disk, split) : 0;
    pthread_mutex_unlock(&split->settling);
    return changed ? r : image_sync(&disk->image);
}

void distrust(struct disk *disk)
{
    struct missing *split = atomic_load(&disk->split);
    intent_distrust(&disk->intent);
    if (split)
        missing_distrust(split);
}

int make_durable(struct disk *disk)
{
    struct missing *split = atomic_load(&disk->split);
    if (split)
        begin_settling(split);
    int r = split ? carry_over(disk, split) : sync_both(disk);
    if (split)
        pthread_mutex_unlock(&split->settling);
    if (r < 0 && r != -ENOMEM)
        distrust(disk);
    return r;
}

static int checkpoint(struct disk *disk, bool keep_hot)
{
    if (disk->read_only)
        return 0;
    pthread_mutex_lock(&disk->control);
    intent_turn(&disk->intent);
    gate_drain(&disk->gate);
    int r = make_durable(disk);
    if (r == 0)
        r = intent_settle(&disk->intent, keep_hot);
    genmap_drop(disk->map);
    pthread_mutex_unlock(&disk->control);
    return r;
}

int disk_checkpoint(struct disk *disk)
{
    return checkpoint(disk, true);
}

int disk_sync(struct disk *disk, struct err *err)
{
    int r = checkpoint(disk, false);
    return r < 0 ? err_sys(err, r, "cannot make %s durable", disk->path) : 0;
}

/* --- the thread ---------------------------------------------------------------------------------------- */

/* Sleeps one interval; false when the disk is being closed. */
static bool next_interval(struct disk *disk)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += CHECKPOINT_SECONDS;
    int r = 0;
    pthread_mutex_lock(&disk->stop_lock);
    while (!disk->stopping && r == 0)
        r = pthread_cond_timedwait(&disk->stop, &disk->stop_lock, &until);
    bool go_on = !disk->stopping;
    pthread_mutex_unlock(&disk->stop_lock);
    return go_on;
}

static void *run(void *arg)
{
    struct disk *disk = arg;
    while (next_interval(disk)) {
        struct missing *split = atomic_load(&disk->split);
        heat_age(&disk->heat, clock_now());
        if (intent_next(&disk->intent, 0) < disk->intent.extents || (split && missing_has_changed(split)))
            (void)disk_checkpoint(disk); /* a failure meets the guest at its next flush */
        else if (atomic_load(&disk->map->touched) > 0)
            genmap_drop(disk->map);
    }
    return NULL;
}

int checkpointer_start(struct disk *disk, struct err *err)
{
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&disk->stop, &monotonic);
    pthread_condattr_destroy(&monotonic);

    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, STACK_SIZE);
    sigset_t all, old; /* signals are for the program's own threads */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int r = pthread_create(&disk->checkpointer, &attributes, run, disk);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    pthread_attr_destroy(&attributes);
    if (r != 0) {
        pthread_cond_destroy(&disk->stop);
        return err_sys(err, r, "cannot start the checkpoint thread of %s", disk->path);
    }
    disk->has_checkpointer = true;
    return 0;
}

void checkpointer_stop(struct disk *disk)
{
    if (!disk->has_checkpointer)
        return;
    pthread_mutex_lock(&disk->stop_lock);
    disk->stopping = true;
    pthread_cond_signal(&disk->stop);
    pthread_mutex_unlock(&disk->stop_lock);
    pthread_join(disk->checkpointer, NULL);
    pthread_cond_destroy(&disk->stop);
    disk->has_checkpointer = false;
}
