/* SPDX-License-Identifier: Apache-2.0 */
#include "base/clock.h"
#include "base/endian.h"
#include "base/json.h"
#include "base/log.h"
#include "base/macro.h"
#include "disk/split.h"
#include "move/fault.h"
#include "move/fetch_private.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define CONNECT_NS (5 * NSEC_PER_SEC)

/* --- what comes, on the links' threads ------------------------------------------------------------------ */

static uint64_t *coming(struct fetch_holder *holder, const struct link *link)
{
    return &holder->coming[link == holder->session.control ? FETCH_URGENT : FETCH_REST];
}

static struct disk *disk_of(struct fetch *fetch, unsigned index, struct err *err)
{
    struct disk *disk = index < fetch->options.disk_count ? fetch->options.disks[index] : NULL;
    if (!disk)
        err_set(err, EPROTO, "blocks came of disk %u, which lacks none", index);
    return disk;
}

static int on_run(struct fetch_holder *holder, const struct link *link, const uint8_t *payload, size_t size,
                  struct err *err)
{
    struct fetch *fetch = holder->fetch;
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
    pthread_mutex_lock(&fetch->lock);
    bool wanted = fetch_order_expects(fetch->order, holder->index, run.disk, &blocks_of);
    pthread_mutex_unlock(&fetch->lock);
    if (!wanted)
        return err_set(err, EPROTO, "block %llu of disk %u came, which was not asked for",
                       (unsigned long long)run.block, run.disk);
    r = disk_fill(disk, &blocks_of, data, err);
    if (r == -ENOSPC)
        err_hint(err, "make room on %s: the fetch goes on by itself", fetch->options.host->name);
    if (r == 0) {
        atomic_fetch_add_explicit(&holder->fetched, data_size, memory_order_relaxed);
        *coming(holder, link) += data_size; /* of this link's thread alone */
    }
    return r;
}

static int on_fetched(struct fetch_holder *holder, const struct link *link, const uint8_t *payload,
                      size_t size, struct err *err)
{
    struct fetch *fetch = holder->fetch;
    struct wire_fetch answered;
    int r = wire_fetch_decode(payload, size, &answered, err);
    struct disk *disk = r < 0 ? NULL : disk_of(fetch, answered.disk, err);
    if (!disk)
        return -err->code;
    uint64_t bytes = *coming(holder, link);
    *coming(holder, link) = 0;
    pthread_mutex_lock(&fetch->lock);
    bool known = fetch_order_answered(fetch->order, holder->index, &answered, bytes, clock_now());
    pthread_mutex_unlock(&fetch->lock);
    if (!known)
        return err_set(err, EPROTO, "an answer to what was not asked");
    r = disk_filled(disk, answered.block, answered.count, err);
    session_wake(&holder->session);
    if (holder->index != FETCH_LENDER && disk_missing(disk) == 0)
        session_wake(&fetch->holders[FETCH_LENDER].session); /* it sees that all is over */
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
    if (count % 4 || count / 4 > WIRE_HOT_MAX_EXTENTS)
        return err_set(err, EPROTO, "the lender says in %zu bytes what is hot on disk %u", count, head.disk);
    count /= 4;
    _cleanup_free_ uint32_t *extents = calloc(count + 1, sizeof *extents);
    if (!extents)
        return err_set(err, ENOMEM, "out of memory");
    for (size_t i = 0; i < count; i++) {
        extents[i] = get_le32(bytes + 4 * i);
        if (extents[i] >= split_extents(disk_blocks(disk)))
            return err_set(err, EPROTO, "extent %u is beyond the end of disk %u", extents[i], head.disk);
    }
    pthread_mutex_lock(&fetch->lock);
    fetch_order_hot(fetch->order, head.disk, extents, count);
    pthread_mutex_unlock(&fetch->lock);
    return 0;
}

/* Before that neither the order is there, nor is it settled which disks are split. */
static int check_open(struct fetch_holder *holder, const struct frame *frame, struct err *err)
{
    struct fetch *fetch = holder->fetch;
    if (frame->type != FRAME_RUN && frame->type != FRAME_FETCHED && frame->type != FRAME_HOT &&
        frame->type != FRAME_NEWER)
        return 0;
    pthread_mutex_lock(&fetch->lock);
    bool open = fetch->open;
    pthread_mutex_unlock(&fetch->lock);
    return open ? 0
                : err_set(err, EPROTO, "%s sent \"%s\" before anything was asked for", holder->peer.name,
                          frame_type_name(frame->type));
}

static int on_frame(void *arg, struct link *link, const struct frame *frame, const uint8_t *payload,
                    struct err *err)
{
    struct fetch_holder *holder = arg;
    bool lender = holder->index == FETCH_LENDER;
    int r = check_open(holder, frame, err);
    if (r < 0)
        return r;
    if (frame->type == FRAME_RUN)
        return on_run(holder, link, payload, frame->length, err);
    if (frame->type == FRAME_FETCHED)
        return on_fetched(holder, link, payload, frame->length, err);
    if (frame->type == FRAME_HOT && lender)
        return on_hot(holder->fetch, payload, frame->length, err);
    if (frame->type == FRAME_NEWER && lender)
        return share_newer(holder->fetch, payload, frame->length, err);
    return session_post(&holder->session, link, frame, payload, err);
}

static void on_closed(void *arg, struct link *link, const struct err *err)
{
    struct fetch_holder *holder = arg;
    (void)link;
    session_lost(&holder->session, err);
}

/* --- connections ---------------------------------------------------------------------------------------- */

int holder_init(struct fetch_holder *holder, struct fetch *fetch, unsigned index,
                const struct move_peer *peer, struct err *err)
{
    holder->fetch = fetch;
    holder->index = index;
    holder->peer = *peer;
    return session_init(&holder->session, 0, err);
}

int holder_connect(struct fetch_holder *holder, int index, json_t **ret, struct err *err)
{
    const struct fetch_options *options = &holder->fetch->options;
    const struct move_peer *peer = &holder->peer;
    int64_t deadline = clock_now() + CONNECT_NS;
    char id[ID_TEXT_SIZE], server_name[ID_TEXT_SIZE + 8];
    struct tls *tls;
    struct link *link = NULL, **slot = index == FETCH_URGENT ? &holder->session.control : &link;
    snprintf(server_name, sizeof server_name, "%s.orai", id_format(&options->vm, id));
    int r = tls_connect(options->host->identity, peer->address, peer->port, server_name, &peer->fingerprint,
                        deadline, &tls, err);
    if (r < 0)
        return r;
    struct link_options link_options = {
        .vm = options->vm, .epoch = options->epoch, .heartbeat = true, .stall_ms = MOVE_STALL_MS};
    struct link_handler handler = {.frame = on_frame, .closed = on_closed, .arg = holder};
    holder->coming[index] = 0;
    if ((r = link_start(tls, &link_options, &handler, slot, err)) < 0)
        return r;
    if (link)
        session_add_data(&holder->session, link);
    link = *slot;
    _cleanup_json_ json_t *answer = NULL,
                          *hello =
                              json_pack("{s:i, s:s, s:i, s:s, s:s}", "protocol", MOVE_PROTOCOL_VERSION,
                                        "role", holder->index == FETCH_LENDER ? "fetch" : "share", "index",
                                        index, "host", options->host->name, "version", ORAI_VERSION);
    r = link_send_json(link, FRAME_HELLO, hello, err);
    if (r == 0)
        r = session_wait_json(&holder->session, FRAME_HELLO, deadline, &answer, err);
    if (r == 0 && ret)
        *ret = json_incref(answer);
    return r;
}

void holder_leave(struct fetch_holder *holder)
{
    struct fetch *fetch = holder->fetch;
    session_reset(&holder->session); /* joins those that answer */
    pthread_mutex_lock(&fetch->lock);
    holder->joined = false;
    if (fetch->order)
        fetch_order_leave(fetch->order, holder->index);
    for (size_t i = 0; i < VM_MAX_DISKS; i++)
        holder->newer[i].above = 0;
    if (holder->index == FETCH_LENDER)
        share_ask_again(fetch);
    pthread_mutex_unlock(&fetch->lock);
    fetch_wake(fetch);
}

void holder_set_why(struct fetch_holder *holder, const struct err *err)
{
    struct fetch *fetch = holder->fetch;
    pthread_mutex_lock(&fetch->lock);
    bool news = fetch->open && strcmp(holder->why.text, err->text) != 0;
    holder->why = *err;
    pthread_mutex_unlock(&fetch->lock);
    if (news && err->code)
        log_warning("%s %s %s: %s", fetch->options.name,
                    holder->index == FETCH_LENDER ? "waits for its blocks on" : "gets no blocks from",
                    holder->peer.name, err->text);
    if (news && fetch->options.host->on_change)
        fetch->options.host->on_change(fetch->options.host->arg);
}

/* --- asking --------------------------------------------------------------------------------------------- */

/* Sends what the order says. */
static int ask(struct fetch_holder *holder, int64_t *ret_again, struct err *err)
{
    struct fetch *fetch = holder->fetch;
    int r = holder->index == FETCH_LENDER ? share_ask_newer(holder, err) : 0;
    bool more = true;
    while (r == 0 && more) {
        struct wire_fetch wanted;
        bool urgent;
        uint8_t bytes[WIRE_FETCH_SIZE];
        pthread_mutex_lock(&fetch->lock);
        more = fetch_order_next(fetch->order, holder->index, clock_now(), &wanted, &urgent, ret_again);
        pthread_mutex_unlock(&fetch->lock);
        if (!more)
            break;
        wire_fetch_encode(&wanted, bytes);
        struct link *link = urgent ? holder->session.control : holder->session.data[0];
        r = link_send(link, FRAME_FETCH, bytes, sizeof bytes, NULL, 0, err);
    }
    return r;
}

/* The lender is waited for. Any other must not keep what the lender has. */
static int check_answers(struct fetch_holder *holder, struct err *err)
{
    struct fetch *fetch = holder->fetch;
    if (holder->index == FETCH_LENDER)
        return 0;
    pthread_mutex_lock(&fetch->lock);
    bool late = fetch_order_is_late(fetch->order, holder->index, clock_now());
    pthread_mutex_unlock(&fetch->lock);
    return late ? err_set(err, ETIMEDOUT, "%s answered nothing for %d s", holder->peer.name,
                          (int)(FETCH_PATIENCE_NS / NSEC_PER_SEC))
                : 0;
}

/* Whatever it sends while it is asked for blocks has a place of its own. Mail that nobody takes would hide
 * that the connection has broken. */
static int check_mail(struct fetch_holder *holder, struct err *err)
{
    struct mail *mail;
    int r = session_next(&holder->session, 0, &mail, err);
    if (r == -EAGAIN)
        return 0;
    if (r < 0)
        return r;
    r = err_set(err, EPROTO, "%s sent \"%s\" where blocks were due", holder->peer.name,
                frame_type_name(mail->frame.type));
    free(mail);
    return r;
}

static bool done(struct fetch *fetch)
{
    pthread_mutex_lock(&fetch->lock);
    bool done = fetch_order_done(fetch->order);
    pthread_mutex_unlock(&fetch->lock);
    return done;
}

int holder_fetch(struct fetch_holder *holder, struct err *err)
{
    struct fetch *fetch = holder->fetch;
    int r = 0;
    int64_t shown = 0;
    pthread_mutex_lock(&fetch->lock);
    holder->joined = true;
    fetch_order_join(fetch->order, holder->index);
    pthread_mutex_unlock(&fetch->lock);
    while (r == 0 && fetch->state == FETCH_RUNNING && !done(fetch)) {
        int64_t again = clock_now() + NSEC_PER_SEC;
        r = check_mail(holder, err);
        if (r == 0)
            r = check_answers(holder, err);
        if (r == 0)
            r = ask(holder, &again, err);
        if (r == 0)
            r = session_nap(&holder->session, again, err);
        if (clock_now() - shown > NSEC_PER_SEC && fetch->options.host->on_change) {
            shown = clock_now();
            fetch->options.host->on_change(fetch->options.host->arg);
        }
    }
    return r;
}
