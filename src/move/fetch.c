/* SPDX-License-Identifier: Apache-2.0 */
#include "move/fetch.h"

#include "base/clock.h"
#include "base/endian.h"
#include "base/json.h"
#include "base/log.h"
#include "base/macro.h"
#include "disk/split.h"
#include "move/fault.h"
#include "move/fetch_order.h"
#include "move/session.h"

#include <errno.h>
#include <stdatomic.h>
#include <string.h>

#define CONNECT_NS (5 * NSEC_PER_SEC)
#define AGAIN_NS NSEC_PER_SEC
#define RELEASED_NS (10 * NSEC_PER_SEC)

enum { URGENT, REST }; /* the session's control link, and its data link 0 */

struct fetch_source {
    struct fetch *fetch;
    size_t index;
};

struct fetch {
    struct fetch_options options;
    pthread_t thread;
    struct session session; /* its own lock; only to be waked, cancelled and told of broken links */
    struct fetch_source sources[VM_MAX_DISKS]; /* what disk_on_demand gets */
    uint64_t total;                            /* bytes missing when we began */

    /* Guarded by `lock`: NBD threads demand, links' threads answer. Innermost but for the session's. */
    pthread_mutex_t lock;
    pthread_cond_t opened;
    struct fetch_order *order; /* from fetch_open on */
    bool open, closing;
    uint64_t came; /* bytes of data with the answer that is coming, per link */
    uint64_t came_rest;
    struct err why; /* the last failure; code 0 while all is well */

    atomic_ullong fetched;
    _Atomic enum fetch_state state;
};

/* --- what comes, on the links' threads -------------------------------------------------------------------
 */

static uint64_t *coming(struct fetch *fetch, const struct link *link)
{
    return link == fetch->session.control ? &fetch->came : &fetch->came_rest;
}

static struct disk *disk_of(struct fetch *fetch, unsigned index, struct err *err)
{
    struct disk *disk = index < fetch->options.disk_count ? fetch->options.disks[index] : NULL;
    if (!disk)
        err_set(err, EPROTO, "the lender speaks of disk %u, which lacks nothing", index);
    return disk;
}

static int on_run(struct fetch *fetch, const struct link *link, const uint8_t *payload, size_t size,
                  struct err *err)
{
    struct wire_run run;
    const uint8_t *data;
    size_t data_size;
    int r = wire_run_decode(payload, size, &run, &data, &data_size, err);
    struct disk *disk = r < 0 ? NULL : disk_of(fetch, run.disk, err);
    if (!disk)
        return -err->code;
    uint64_t blocks = disk_blocks(disk);
    if (run.block >= blocks || run.count > blocks - run.block)
        return err_set(err, EPROTO, "block %llu is beyond the end of disk %u", (unsigned long long)run.block,
                       run.disk);
    if (data && data_size != MIN((uint64_t)run.count * DISK_BLOCK, disk_size(disk) - run.block * DISK_BLOCK))
        return err_set(err, EPROTO, "block %llu of disk %u came with %zu bytes",
                       (unsigned long long)run.block, run.disk, data_size);
    struct disk_run blocks_of = {.block = run.block, .count = run.count, .generation = run.generation};
    r = disk_fill(disk, &blocks_of, data, err);
    if (r == -ENOSPC)
        err_hint(err, "make room on %s: the fetch goes on by itself", fetch->options.host->name);
    if (r == 0) {
        atomic_fetch_add_explicit(&fetch->fetched, data_size, memory_order_relaxed);
        *coming(fetch, link) += data_size; /* of this link's thread alone */
    }
    return r;
}

static int on_fetched(struct fetch *fetch, const struct link *link, const uint8_t *payload, size_t size,
                      struct err *err)
{
    struct wire_fetch answered;
    int r = wire_fetch_decode(payload, size, &answered, err);
    struct disk *disk = r < 0 ? NULL : disk_of(fetch, answered.disk, err);
    if (!disk)
        return -err->code;
    uint64_t bytes = *coming(fetch, link);
    *coming(fetch, link) = 0;
    pthread_mutex_lock(&fetch->lock);
    bool known = fetch->order && fetch_order_answered(fetch->order, &answered, bytes, clock_now());
    pthread_mutex_unlock(&fetch->lock);
    if (!known)
        return err_set(err, EPROTO, "the lender answers what was not asked");
    r = disk_filled(disk, answered.block, answered.count, err);
    session_wake(&fetch->session);
    return r;
}

static int on_hot(struct fetch *fetch, const uint8_t *payload, size_t size, struct err *err)
{
    struct wire_claim head;
    const uint8_t *bytes;
    size_t count;
    int r = wire_claim_decode(payload, size, &head, &bytes, &count, err);
    struct disk *disk =
        r < 0 || head.disk >= fetch->options.disk_count ? NULL : fetch->options.disks[head.disk];
    if (r < 0 || !disk)
        return r;
    count /= 4;
    _cleanup_free_ uint32_t *extents = calloc(count + 1, sizeof *extents);
    if (!extents)
        return err_set(err, ENOMEM, "out of memory");
    if (fetch->state != FETCH_RUNNING || !fetch->order)
        return err_set(err, EPROTO, "the lender speaks of heat before it was asked");
    uint64_t end = disk_blocks(disk) / split_extent_blocks(disk_blocks(disk)) + 1;
    for (size_t i = 0; i < count; i++) {
        extents[i] = get_le32(bytes + 4 * i);
        if (extents[i] >= end)
            return err_set(err, EPROTO, "extent %u is beyond the end of disk %u", extents[i], head.disk);
    }
    pthread_mutex_lock(&fetch->lock);
    fetch_order_hot(fetch->order, head.disk, extents, count);
    pthread_mutex_unlock(&fetch->lock);
    return 0;
}

static int on_frame(void *arg, struct link *link, const struct frame *frame, const uint8_t *payload,
                    struct err *err)
{
    struct fetch *fetch = arg;
    switch (frame->type) {
    case FRAME_RUN:
        return on_run(fetch, link, payload, frame->length, err);
    case FRAME_FETCHED:
        return on_fetched(fetch, link, payload, frame->length, err);
    case FRAME_HOT:
        return on_hot(fetch, payload, frame->length, err);
    default:
        return session_post(&fetch->session, link, frame, payload, err);
    }
}

static void on_closed(void *arg, struct link *link, const struct err *err)
{
    struct fetch *fetch = arg;
    (void)link;
    session_lost(&fetch->session, err);
}

/* NBD threads. */
static void on_demand(void *arg, uint64_t block, uint64_t count)
{
    struct fetch_source *source = arg;
    struct fetch *fetch = source->fetch;
    pthread_mutex_lock(&fetch->lock);
    fetch_order_demand(fetch->order, source->index, block, count);
    pthread_mutex_unlock(&fetch->lock);
    session_wake(&fetch->session);
}

/* --- connections -----------------------------------------------------------------------------------------
 */

static int open_link(struct fetch *fetch, int index, struct err *err)
{
    const struct fetch_options *options = &fetch->options;
    const struct move_peer *lender = &options->lender;
    int64_t deadline = clock_now() + CONNECT_NS;
    char id[ID_TEXT_SIZE], server_name[ID_TEXT_SIZE + 8];
    struct tls *tls;
    struct link *link;
    snprintf(server_name, sizeof server_name, "%s.orai", id_format(&options->vm, id));
    int r = tls_connect(options->host->identity, lender->address, lender->port, server_name,
                        &lender->fingerprint, deadline, &tls, err);
    if (r < 0)
        return r;
    struct link_options link_options = {
        .vm = options->vm, .epoch = options->epoch, .heartbeat = true, .stall_ms = MOVE_STALL_MS};
    struct link_handler handler = {.frame = on_frame, .closed = on_closed, .arg = fetch};
    if ((r = link_start(tls, &link_options, &handler, &link, err)) < 0)
        return r;
    if (index == URGENT)
        fetch->session.control = link;
    else
        session_add_data(&fetch->session, link);
    _cleanup_json_ json_t *answer = NULL,
                          *hello = json_pack("{s:i, s:s, s:i, s:s, s:s}", "protocol", MOVE_PROTOCOL_VERSION,
                                             "role", "fetch", "index", index, "host", options->host->name,
                                             "version", ORAI_VERSION);
    r = link_send_json(link, FRAME_HELLO, hello, err);
    return r < 0 ? r : session_wait_json(&fetch->session, FRAME_HELLO, deadline, &answer, err);
}

static int connect_links(struct fetch *fetch, struct err *err)
{
    session_reset(&fetch->session);
    fetch->came = fetch->came_rest = 0;
    int r = open_link(fetch, URGENT, err);
    return r < 0 ? r : open_link(fetch, REST, err);
}

/* Everybody who waits asks again. */
static void hear_demands(struct fetch *fetch)
{
    for (size_t i = 0; i < fetch->options.disk_count; i++)
        if (fetch->options.disks[i]) {
            disk_on_demand(fetch->options.disks[i], NULL, NULL);
            disk_on_demand(fetch->options.disks[i], on_demand, &fetch->sources[i]);
        }
}

static void hear_no_demands(struct fetch *fetch)
{
    for (size_t i = 0; i < fetch->options.disk_count; i++)
        if (fetch->options.disks[i])
            disk_on_demand(fetch->options.disks[i], NULL, NULL);
}

/* --- the thread ------------------------------------------------------------------------------------------
 */

static bool closing(struct fetch *fetch)
{
    pthread_mutex_lock(&fetch->lock);
    bool closing = fetch->closing;
    pthread_mutex_unlock(&fetch->lock);
    return closing;
}

static void set_why(struct fetch *fetch, const struct err *err)
{
    pthread_mutex_lock(&fetch->lock);
    bool news = fetch->open && strcmp(fetch->why.text, err->text) != 0;
    fetch->why = *err;
    pthread_mutex_unlock(&fetch->lock);
    if (news && err->code)
        log_warning("%s waits for its blocks on %s: %s", fetch->options.name, fetch->options.lender.name,
                    err->text);
    if (news && fetch->options.host->on_change)
        fetch->options.host->on_change(fetch->options.host->arg);
}

/* Sends what the order says. */
static int ask(struct fetch *fetch, int64_t *ret_again, struct err *err)
{
    int r = 0;
    bool more = true;
    while (r == 0 && more) {
        struct wire_fetch wanted;
        bool urgent;
        uint8_t bytes[WIRE_FETCH_SIZE];
        pthread_mutex_lock(&fetch->lock);
        more = fetch_order_next(fetch->order, clock_now(), &wanted, &urgent, ret_again);
        pthread_mutex_unlock(&fetch->lock);
        if (!more)
            break;
        wire_fetch_encode(&wanted, bytes);
        struct link *link = urgent ? fetch->session.control : fetch->session.data[0];
        r = link_send(link, FRAME_FETCH, bytes, sizeof bytes, NULL, 0, err);
    }
    return r;
}

static bool done(struct fetch *fetch)
{
    pthread_mutex_lock(&fetch->lock);
    bool done = fetch_order_done(fetch->order);
    pthread_mutex_unlock(&fetch->lock);
    return done;
}

static int fetch_rest(struct fetch *fetch, struct err *err)
{
    int r = fault_point(err, "fetch.begin");
    int64_t shown = 0;
    while (r == 0 && !done(fetch)) {
        int64_t again = clock_now() + NSEC_PER_SEC;
        r = ask(fetch, &again, err);
        if (r == 0)
            r = session_nap(&fetch->session, again, err);
        if (clock_now() - shown > NSEC_PER_SEC && fetch->options.host->on_change) {
            shown = clock_now();
            fetch->options.host->on_change(fetch->options.host->arg);
        }
    }
    return r;
}

static int make_whole(struct fetch *fetch, struct err *err)
{
    int r = fault_point(err, "fetch.whole");
    for (size_t i = 0; r == 0 && i < fetch->options.disk_count; i++)
        if (fetch->options.disks[i])
            r = disk_whole(fetch->options.disks[i], err);
    if (r < 0)
        return r;
    fetch->state = FETCH_WHOLE;
    log_info("%s: all that was on %s is here", fetch->options.name, fetch->options.lender.name);
    return fault_point(err, "fetch.release");
}

static int release(struct fetch *fetch, struct err *err)
{
    struct mail *mail = NULL;
    int r = link_send(fetch->session.control, FRAME_RELEASE, NULL, 0, NULL, 0, err);
    if (r == 0)
        r = session_wait(&fetch->session, FRAME_RELEASED, clock_now() + RELEASED_NS, &mail, err);
    if (r < 0)
        return r;
    free(mail);
    fetch->state = FETCH_RELEASED;
    return 0;
}

/* The connections are made while the guest still runs elsewhere, so that its first read finds them there. */
static bool wait_open(struct fetch *fetch)
{
    pthread_mutex_lock(&fetch->lock);
    while (!fetch->open && !fetch->closing)
        pthread_cond_wait(&fetch->opened, &fetch->lock);
    bool open = fetch->open && !fetch->closing;
    pthread_mutex_unlock(&fetch->lock);
    return open;
}

/* As far as it goes with one pair of connections. */
static int turn(struct fetch *fetch, struct err *err)
{
    int r = connect_links(fetch, err);
    if (r == 0 && !wait_open(fetch))
        r = err_set(err, ECANCELED, "the guest did not come");
    if (r == 0 && fetch->state == FETCH_RUNNING) {
        set_why(fetch, &ERR_NONE);
        hear_demands(fetch);
        r = fetch_rest(fetch, err);
        hear_no_demands(fetch);
    }
    if (r == 0 && fetch->state == FETCH_RUNNING)
        r = make_whole(fetch, err);
    return r < 0 ? r : release(fetch, err);
}

static void *fetch_thread(void *arg)
{
    struct fetch *fetch = arg;
    session_hurry();
    while (!closing(fetch)) {
        struct err err = ERR_NONE;
        int r = turn(fetch, &err);
        if (r == 0 || closing(fetch))
            break;
        session_explain(&fetch->session, &err);
        set_why(fetch, &err);
        session_reset(&fetch->session); /* joins those that answer */
        pthread_mutex_lock(&fetch->lock);
        if (fetch->order)
            fetch_order_reset(fetch->order);
        pthread_mutex_unlock(&fetch->lock);
        session_nap(&fetch->session, clock_now() + AGAIN_NS, &err);
    }
    session_stop(&fetch->session);
    if (fetch->options.host->on_change)
        fetch->options.host->on_change(fetch->options.host->arg);
    return NULL;
}

/* --- the object ------------------------------------------------------------------------------------------
 */

int fetch_new(const struct fetch_options *options, struct fetch **ret, struct err *err)
{
    struct fetch *fetch = calloc(1, sizeof *fetch);
    if (!fetch || session_init(&fetch->session, 0, err) < 0) {
        free(fetch);
        return err_set(err, ENOMEM, "out of memory");
    }
    fetch->options = *options;
    pthread_mutex_init(&fetch->lock, NULL);
    pthread_cond_init(&fetch->opened, NULL);
    int r = pthread_create(&fetch->thread, NULL, fetch_thread, fetch);
    if (r != 0) {
        fetch->thread = 0;
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
    bool connected = fetch->why.code == 0;
    pthread_mutex_unlock(lock);
    return connected;
}

json_t *fetch_status(const struct fetch *fetch)
{
    static const char *const names[] = {
        [FETCH_RUNNING] = "fetching", [FETCH_WHOLE] = "releasing", [FETCH_RELEASED] = "whole"};
    pthread_mutex_t *lock = (pthread_mutex_t *)&fetch->lock; /* locking does not change the fetch */
    struct fetch_order_numbers numbers = {0};
    uint64_t missing = 0;
    pthread_mutex_lock(lock);
    for (size_t i = 0; fetch->open && i < fetch->options.disk_count; i++)
        if (fetch->options.disks[i])
            missing += disk_missing(fetch->options.disks[i]) * DISK_BLOCK;
    if (fetch->order)
        fetch_order_numbers(fetch->order, &numbers);
    json_t *json = json_pack("{s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:f}", "from", fetch->options.lender.name,
                             "state", names[fetch->state], "missing_bytes", (json_int_t)missing,
                             "total_bytes", (json_int_t)fetch->total, "fetched_bytes",
                             (json_int_t)atomic_load(&fetch->fetched), "demands", (json_int_t)numbers.demands,
                             "rate", (json_int_t)numbers.rate, "demand_ms", numbers.demand_seconds * 1000);
    if (fetch->why.code)
        json_object_set_new(json, "error", err_to_json(&fetch->why));
    pthread_mutex_unlock(lock);
    return json;
}

void fetch_free(struct fetch *fetch)
{
    if (!fetch)
        return;
    pthread_mutex_lock(&fetch->lock);
    fetch->closing = true;
    pthread_cond_broadcast(&fetch->opened);
    pthread_mutex_unlock(&fetch->lock);
    session_cancel(&fetch->session);
    if (fetch->thread)
        pthread_join(fetch->thread, NULL);
    session_done(&fetch->session);
    fetch_order_free(fetch->order);
    pthread_cond_destroy(&fetch->opened);
    pthread_mutex_destroy(&fetch->lock);
    free(fetch);
}
