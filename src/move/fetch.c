/* SPDX-License-Identifier: Apache-2.0 */
#include "move/fetch.h"

#include "base/clock.h"
#include "base/log.h"
#include "base/macro.h"
#include "disk/split.h"
#include "move/fault.h"
#include "move/fetch_private.h"

#include <errno.h>
#include <stdlib.h>

#define AGAIN_NS NSEC_PER_SEC
#define RELEASED_NS (10 * NSEC_PER_SEC)

/* --- for every holder's thread -------------------------------------------------------------------------- */

bool fetch_closing(struct fetch *fetch)
{
    pthread_mutex_lock(&fetch->lock);
    bool closing = fetch->closing;
    pthread_mutex_unlock(&fetch->lock);
    return closing;
}

void fetch_wake(struct fetch *fetch)
{
    unsigned count = fetch->holder_count;
    for (unsigned i = 0; i < count; i++)
        session_wake(&fetch->holders[i].session);
}

bool fetch_wait_open(struct fetch *fetch)
{
    pthread_mutex_lock(&fetch->lock);
    while (!fetch->open && !fetch->closing)
        pthread_cond_wait(&fetch->opened, &fetch->lock);
    bool open = fetch->open && !fetch->closing;
    pthread_mutex_unlock(&fetch->lock);
    return open;
}

void fetch_pause(struct fetch_holder *holder)
{
    int64_t until = clock_now() + AGAIN_NS;
    while (clock_now() < until && session_nap(&holder->session, until, NULL) == 0)
        ;
}

/* --- what the guest waits for --------------------------------------------------------------------------- */

/* NBD threads. */
static void on_demand(void *arg, uint64_t block, uint64_t count)
{
    struct fetch_source *source = arg;
    struct fetch *fetch = source->fetch;
    pthread_mutex_lock(&fetch->lock);
    fetch_order_demand(fetch->order, source->index, block, count);
    pthread_mutex_unlock(&fetch->lock);
    fetch_wake(fetch);
}

static void hear_demands(struct fetch *fetch, bool hear)
{
    for (size_t i = 0; i < fetch->options.disk_count; i++)
        if (fetch->options.disks[i])
            disk_on_demand(fetch->options.disks[i], hear ? on_demand : NULL, &fetch->sources[i]);
}

/* --- the lender ----------------------------------------------------------------------------------------- */

static int make_whole(struct fetch *fetch, struct err *err)
{
    int r = fault_point(err, "fetch.whole");
    for (size_t i = 0; r == 0 && i < fetch->options.disk_count; i++)
        if (fetch->options.disks[i])
            r = disk_whole(fetch->options.disks[i], err);
    if (r < 0)
        return r;
    fetch->state = FETCH_WHOLE;
    fetch_wake(fetch);
    log_info("%s: all that was on %s is here", fetch->options.name, fetch->options.lender.name);
    return fault_point(err, "fetch.release");
}

static int release(struct fetch *fetch, struct err *err)
{
    struct session *session = &fetch->holders[FETCH_LENDER].session;
    struct mail *mail = NULL;
    int r = link_send(session->control, FRAME_RELEASE, NULL, 0, NULL, 0, err);
    if (r == 0)
        r = session_wait(session, FRAME_RELEASED, clock_now() + RELEASED_NS, &mail, err);
    if (r < 0)
        return r;
    free(mail);
    fetch->state = FETCH_RELEASED;
    return 0;
}

/* As far as it goes with one pair of connections. They are made while the guest still runs elsewhere, so that
 * its first read finds them there. */
static int turn(struct fetch *fetch, struct err *err)
{
    struct fetch_holder *lender = &fetch->holders[FETCH_LENDER];
    session_reset(&lender->session);
    int r = holder_connect(lender, FETCH_URGENT, NULL, err);
    if (r == 0)
        r = holder_connect(lender, FETCH_REST, NULL, err);
    if (r == 0 && !fetch_wait_open(fetch))
        r = err_set(err, ECANCELED, "the guest did not come");
    if (r == 0 && fetch->state == FETCH_RUNNING) {
        holder_set_why(lender, &ERR_NONE);
        r = fault_point(err, "fetch.begin");
        if (r == 0)
            r = holder_fetch(lender, err);
        if (r == 0)
            r = make_whole(fetch, err);
    }
    return r < 0 ? r : release(fetch, err);
}

static void *lender_thread(void *arg)
{
    struct fetch_holder *lender = arg;
    struct fetch *fetch = lender->fetch;
    session_hurry();
    while (!fetch_closing(fetch)) {
        struct err err = ERR_NONE;
        int r = turn(fetch, &err);
        if (r == 0 || fetch_closing(fetch))
            break;
        session_explain(&lender->session, &err);
        holder_set_why(lender, &err);
        holder_leave(lender);
        fetch_pause(lender);
    }
    session_stop(&lender->session);
    if (fetch->options.host->on_change)
        fetch->options.host->on_change(fetch->options.host->arg);
    return NULL;
}

/* --- the object ----------------------------------------------------------------------------------------- */

int fetch_new(const struct fetch_options *options, struct fetch **ret, struct err *err)
{
    struct fetch *fetch = calloc(1, sizeof *fetch);
    if (!fetch)
        return err_set(err, ENOMEM, "out of memory");
    fetch->options = *options;
    struct fetch_holder *lender = &fetch->holders[FETCH_LENDER];
    int r = holder_init(lender, fetch, FETCH_LENDER, &options->lender, err);
    if (r < 0) {
        free(fetch);
        return r;
    }
    fetch->holder_count = 1;
    pthread_mutex_init(&fetch->lock, NULL);
    pthread_cond_init(&fetch->opened, NULL);
    r = pthread_create(&lender->thread, NULL, lender_thread, lender);
    if (r != 0) {
        lender->thread = 0;
        fetch_free(fetch);
        return err_sys(err, r, "cannot start the thread that fetches blocks");
    }
    *ret = fetch;
    return 0;
}

int fetch_open(struct fetch *fetch, struct err *err)
{
    uint64_t missing = 0;
    for (size_t i = 0; i < fetch->options.disk_count; i++) {
        struct disk *disk = fetch->options.disks[i];
        if (disk && !disk_is_split(disk))
            disk = fetch->options.disks[i] = NULL;
        if (disk)
            missing += disk_missing(disk) * DISK_BLOCK;
        fetch->sources[i] = (struct fetch_source){fetch, i};
    }
    struct fetch_order *order;
    int r = fetch_order_new(fetch->options.disks, fetch->options.disk_count, &order, err);
    if (r < 0)
        return r;
    pthread_mutex_lock(&fetch->lock);
    fetch->order = order;
    fetch->total = missing;
    fetch->open = true;
    pthread_cond_broadcast(&fetch->opened);
    pthread_mutex_unlock(&fetch->lock);
    hear_demands(fetch, true);
    return 0;
}

enum fetch_state fetch_state(const struct fetch *fetch)
{
    return fetch->state;
}

bool fetch_connected(const struct fetch *fetch)
{
    pthread_mutex_t *lock = (pthread_mutex_t *)&fetch->lock; /* locking does not change the fetch */
    pthread_mutex_lock(lock);
    bool connected = fetch->holders[FETCH_LENDER].why.code == 0;
    pthread_mutex_unlock(lock);
    return connected;
}

/* Locked. */
static json_t *shares(const struct fetch *fetch)
{
    json_t *list = json_array();
    unsigned count = fetch->holder_count;
    for (unsigned i = FETCH_LENDER + 1; i < count; i++) {
        const struct fetch_holder *holder = &fetch->holders[i];
        json_t *json = json_pack("{s:s, s:b, s:I, s:I}", "from", holder->peer.name, "connected",
                                 holder->joined, "fetched_bytes", (json_int_t)atomic_load(&holder->fetched),
                                 "rate", (json_int_t)fetch_order_rate(fetch->order, i));
        if (holder->why.code)
            json_object_set_new(json, "error", err_to_json(&holder->why));
        json_array_append_new(list, json);
    }
    return list;
}

json_t *fetch_status(const struct fetch *fetch)
{
    static const char *const names[] = {
        [FETCH_RUNNING] = "fetching", [FETCH_WHOLE] = "releasing", [FETCH_RELEASED] = "whole"};
    pthread_mutex_t *lock = (pthread_mutex_t *)&fetch->lock; /* locking does not change the fetch */
    const struct fetch_holder *lender = &fetch->holders[FETCH_LENDER];
    struct fetch_order_numbers numbers = {0};
    uint64_t missing = 0, fetched = 0;
    pthread_mutex_lock(lock);
    for (size_t i = 0; fetch->open && i < fetch->options.disk_count; i++)
        if (fetch->options.disks[i])
            missing += disk_missing(fetch->options.disks[i]) * DISK_BLOCK;
    if (fetch->order)
        fetch_order_numbers(fetch->order, &numbers);
    unsigned count = fetch->holder_count;
    for (unsigned i = 0; i < count; i++)
        fetched += atomic_load(&fetch->holders[i].fetched);
    json_t *json = json_pack("{s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:f, s:o}", "from", lender->peer.name,
                             "state", names[fetch->state], "missing_bytes", (json_int_t)missing,
                             "total_bytes", (json_int_t)fetch->total, "fetched_bytes", (json_int_t)fetched,
                             "demands", (json_int_t)numbers.demands, "rate", (json_int_t)numbers.rate,
                             "demand_ms", numbers.demand_seconds * 1000, "shares", shares(fetch));
    if (lender->why.code)
        json_object_set_new(json, "error", err_to_json(&lender->why));
    pthread_mutex_unlock(lock);
    return json;
}

void fetch_free(struct fetch *fetch)
{
    if (!fetch)
        return;
    unsigned count = fetch->holder_count;
    pthread_mutex_lock(&fetch->lock);
    fetch->closing = true;
    pthread_cond_broadcast(&fetch->opened);
    pthread_mutex_unlock(&fetch->lock);
    if (fetch->open)
        hear_demands(fetch, false);
    for (unsigned i = 0; i < count; i++)
        session_cancel(&fetch->holders[i].session);
    for (unsigned i = 0; i < count; i++)
        if (fetch->holders[i].thread)
            pthread_join(fetch->holders[i].thread, NULL);
    for (unsigned i = 0; i < count; i++)
        session_done(&fetch->holders[i].session);
    fetch_order_free(fetch->order);
    pthread_cond_destroy(&fetch->opened);
    pthread_mutex_destroy(&fetch->lock);
    free(fetch);
}
