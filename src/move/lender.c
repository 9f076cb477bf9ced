/* SPDX-License-Identifier: Apache-2.0 */
#include "move/lender.h"

#include "base/clock.h"
#include "base/endian.h"
#include "base/json.h"
#include "base/log.h"
#include "base/macro.h"
#include "disk/heat.h"
#include "disk/relocate.h"
#include "disk/split.h"
#include "move/fault.h"
#include "move/porch.h"
#include "move/session.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include <xxhash.h>

#define MAX_CONNECTIONS 8 /* the borrower has two; one that vanished is noticed after MOVE_STALL_MS */
#define MAX_REQUESTS 512  /* unread of one connection; fetch_order.c has at most 256 under way */
#define MAX_REQUEST 4096U /* bytes; a hello is the longest */
#define FAREWELL_NS (2 * NSEC_PER_SEC) /* for what was said before the end */
#define GREET_NS (20 * NSEC_PER_SEC)
#define PIECE_BYTES ((size_t)WIRE_RUN_MAX_BLOCKS * DISK_BLOCK)

struct lender {
    struct lender_options options;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct porch porch;   /* its own lock, never taken with `lock` held */
    unsigned connections; /* threads */
    struct conversation *conversations[MAX_CONNECTIONS];
    bool open, released, confirmed, closing;
    atomic_ullong fetches, bytes;
};

struct conversation {
    struct lender *lender;
    struct tls *tls; /* until the link has it */
    int end;         /* its socket, to shut it down by: a dead link knows no other interruption */
    struct session session;
    bool background; /* the connection for what nobody waits for */
    bool told_hot;
    uint8_t data[PIECE_BYTES];
};

/* --- one request ---------------------------------------------------------------------------------------- */

static int send_piece(struct conversation *conversation, uint16_t disk, const struct relocate_piece *piece,
                      struct err *err)
{
    uint8_t head[WIRE_RUN_SIZE];
    struct wire_run run = {
        .disk = disk,
        .flags = piece->zero ? WIRE_RUN_ZERO : 0,
        .generation = piece->run.generation,
        .block = piece->run.block,
        .count = (uint32_t)piece->run.count,
        .checksum = piece->zero ? 0 : XXH3_64bits(conversation->data, piece->size),
    };
    wire_run_encode(&run, head);
    fault_data(conversation->data, piece->size, "lend.run");
    atomic_fetch_add_explicit(&conversation->lender->bytes, piece->size, memory_order_relaxed);
    return link_send(conversation->session.control, FRAME_RUN, head, sizeof head, conversation->data,
                     piece->size, err);
}

/* A copy is only worth as much as its generation: of a block that was changed here since it says nothing. */
static int check_shared(const struct disk *disk, const struct wire_fetch *fetch, struct err *err)
{
    struct disk_run run;
    if (disk_next_run(disk, fetch->block, fetch->upto, UINT32_MAX, fetch->count, &run) &&
        run.block < fetch->block + fetch->count)
        return err_set(err, ESTALE, "block %llu of %s is not of generation %u any more",
                       (unsigned long long)run.block, disk_path(disk), fetch->upto);
    return 0;
}

static int check_fetch(const struct lender *lender, const struct wire_fetch *fetch, struct err *err)
{
    if (fetch->disk >= lender->options.disk_count)
        return err_set(err, EPROTO, "blocks of disk %u, which the VM does not have", fetch->disk);
    const struct disk *disk = lender->options.disks[fetch->disk];
    if (fetch->block >= disk_blocks(disk) || fetch->count > disk_blocks(disk) - fetch->block)
        return err_set(err, EPROTO, "block %llu is beyond the end of disk %u",
                       (unsigned long long)fetch->block, fetch->disk);
    return lender->options.shares ? check_shared(disk, fetch, err) : 0;
}

static int answer(struct conversation *conversation, const struct mail *mail, struct err *err)
{
    struct lender *lender = conversation->lender;
    struct wire_fetch fetch;
    int r = wire_fetch_decode(mail->payload, mail->frame.length, &fetch, err);
    if (r < 0 || (r = check_fetch(lender, &fetch, err)) < 0)
        return r;
    atomic_fetch_add_explicit(&lender->fetches, 1, memory_order_relaxed);
    struct disk *disk = lender->options.disks[fetch.disk];
    uint64_t end = fetch.block + fetch.count;
    struct disk_run run;
    /* No upper bound: nothing was written here since, so a number above the hand-over's is the crash rule's,
     * and its block may be one that the borrower lacks. */
    for (uint64_t from = fetch.block; from < end &&
                                      disk_next_run(disk, from, fetch.above, UINT32_MAX, end - from, &run) &&
                                      run.block < end;) {
        struct relocate_piece piece;
        run.count = MIN(run.count, end - run.block);
        run.generation = MIN(run.generation, fetch.upto);
        if ((r = relocate_read(disk, &run, conversation->data, PIECE_BYTES, &piece, err)) < 0 ||
            (r = send_piece(conversation, fetch.disk, &piece, err)) < 0)
            return r;
        from = piece.run.block + piece.run.count;
    }
    return link_send(conversation->session.control, FRAME_FETCHED, mail->payload, mail->frame.length, NULL, 0,
                     err);
}

/* --- one connection ------------------------------------------------------------------------------------- */

static int on_frame(void *arg, struct link *link, const struct frame *frame, const uint8_t *payload,
                    struct err *err)
{
    struct conversation *conversation = arg;
    if (frame->length > MAX_REQUEST)
        return err_set(err, EPROTO, "the borrower sent a \"%s\" of %u bytes", frame_type_name(frame->type),
                       frame->length);
    return session_post(&conversation->session, link, frame, payload, err);
}

static void on_closed(void *arg, struct link *link, const struct err *err)
{
    struct conversation *conversation = arg;
    (void)link;
    session_lost(&conversation->session, err);
}

static int send_lineage(struct conversation *conversation, size_t index, struct err *err)
{
    _cleanup_(lineage_freep) struct lineage *lineage = NULL;
    _cleanup_free_ void *bytes = NULL;
    uint8_t head[WIRE_CLAIM_SIZE];
    size_t size = 0;
    int r = disk_lineage(conversation->lender->options.disks[index], &lineage, err);
    if (r == 0 && (r = lineage_encode(lineage, &bytes, &size)) < 0)
        err_set(err, -r, "out of memory");
    if (r < 0)
        return r;
    wire_claim_encode(&(struct wire_claim){.disk = (uint16_t)index}, head);
    return link_send(conversation->session.control, FRAME_LINEAGE, head, sizeof head, bytes, size, err);
}

static int send_lineages(struct conversation *conversation, struct err *err)
{
    int r = 0;
    for (size_t i = 0; r == 0 && i < conversation->lender->options.disk_count; i++)
        r = send_lineage(conversation, i, err);
    return r;
}

/* Does it ask for what is given here, and of the right hand-over? */
static int check_hello(const struct lender_options *options, const json_t *hello, uint64_t epoch,
                       struct err *err)
{
    const char *role = json_str(hello, "role", "");
    if (strcmp(role, options->shares ? "share" : "fetch") != 0)
        return err_set(err, EBUSY, "a connection that wants %s",
                       strcmp(role, "share") == 0 || strcmp(role, "fetch") == 0
                           ? "other blocks than are to be had here"
                           : "no blocks");
    if (!options->shares && epoch != options->epoch)
        return err_set(err, ESTALE, "blocks of epoch %llu are asked for; what is lent here is of epoch %llu",
                       (unsigned long long)epoch, (unsigned long long)options->epoch);
    return 0;
}

static int greet(struct conversation *conversation, struct err *err)
{
    const struct lender_options *options = &conversation->lender->options;
    struct session *session = &conversation->session;
    _cleanup_json_ json_t *hello = NULL,
                          *answer = json_pack("{s:i, s:s, s:s, s:I}", "protocol", MOVE_PROTOCOL_VERSION,
                                              "host", options->host->name, "version", ORAI_VERSION, "disks",
                                              (json_int_t)options->disk_count);
    struct mail *mail;
    int r = session_wait(session, FRAME_HELLO, clock_now() + GREET_NS, &mail, err);
    if (r < 0)
        return r;
    uint64_t epoch = mail->frame.epoch;
    r = json_parse((char *)mail->payload, mail->frame.length, "hello", &hello, err);
    free(mail);
    if (r == 0)
        r = check_hello(options, hello, epoch, err);
    if (r < 0)
        return r;
    link_set_epoch(session->control, epoch);
    conversation->background = json_u64(hello, "index", 0) > 0;
    r = link_send_json(session->control, FRAME_HELLO, answer, err);
    if (r == 0 && options->shares && !conversation->background)
        r = send_lineages(conversation, err);
    return r;
}

/* Waits until the hand-over is committed. */
static int wait_open(struct lender *lender, struct err *err)
{
    pthread_mutex_lock(&lender->lock);
    while (!lender->open && !lender->closing)
        pthread_cond_wait(&lender->changed, &lender->lock);
    bool open = lender->open && !lender->closing;
    pthread_mutex_unlock(&lender->lock);
    return open ? 0 : err_set(err, ECANCELED, "the VM was not handed over");
}

static int send_hot(struct conversation *conversation, struct err *err)
{
    const struct lender_options *options = &conversation->lender->options;
    int r = 0;
    if (fault_point(err, "lend.hot") < 0)
        return 0; /* without it the borrower goes by address */
    for (size_t i = 0; r == 0 && i < options->disk_count; i++) {
        uint32_t extents[WIRE_HOT_MAX_EXTENTS];
        uint8_t head[WIRE_CLAIM_SIZE];
        size_t count = disk_hottest(options->disks[i], extents, WIRE_HOT_MAX_EXTENTS);
        for (size_t n = 0; n < count; n++)
            put_le32(&extents[n], extents[n]);
        wire_claim_encode(&(struct wire_claim){.disk = (uint16_t)i}, head);
        r = link_send(conversation->session.control, FRAME_HOT, head, sizeof head, extents,
                      count * sizeof *extents, err);
    }
    return r;
}

/* Told only once our record says durably that nothing is lent. */
static int release(struct conversation *conversation, struct err *err)
{
    struct lender *lender = conversation->lender;
    pthread_mutex_lock(&lender->lock);
    lender->released = true;
    pthread_cond_broadcast(&lender->changed);
    pthread_mutex_unlock(&lender->lock);
    if (lender->options.host->on_change)
        lender->options.host->on_change(lender->options.host->arg);
    pthread_mutex_lock(&lender->lock);
    while (!lender->confirmed && !lender->closing)
        pthread_cond_wait(&lender->changed, &lender->lock);
    bool confirmed = lender->confirmed;
    pthread_mutex_unlock(&lender->lock);
    if (!confirmed)
        return 0;
    int r = link_send(conversation->session.control, FRAME_RELEASED, NULL, 0, NULL, 0, err);
    return r < 0 ? r : link_drain(conversation->session.control, clock_now() + NSEC_PER_SEC, err);
}

static int tell_newer(struct conversation *conversation, const struct mail *mail, struct err *err)
{
    const struct lender *lender = conversation->lender;
    _cleanup_free_ uint8_t *bits = NULL;
    uint8_t head[WIRE_NEWER_SIZE];
    struct wire_newer newer;
    const uint8_t *none;
    size_t size;
    int r = wire_newer_decode(mail->payload, mail->frame.length, &newer, &none, &size, err);
    if (r == 0 && (size > 0 || newer.disk >= lender->options.disk_count))
        r = err_set(err, EPROTO, "what is newer on disk %u, with %zu bytes", newer.disk, size);
    if (r < 0)
        return r;
    r = split_newer(lender->options.disks[newer.disk], newer.above, &bits, &size, err);
    if (r < 0)
        return r;
    wire_newer_encode(&newer, head);
    return link_send(conversation->session.control, FRAME_NEWER, head, sizeof head, bits, size, err);
}

static int serve(struct conversation *conversation, const struct mail *mail, struct err *err)
{
    bool shares = conversation->lender->options.shares;
    int r = 0;
    switch (mail->frame.type) {
    case FRAME_FETCH:
        if (conversation->background && !conversation->told_hot && !shares) {
            conversation->told_hot = true; /* not earlier: only who fetches knows what to do with it */
            r = send_hot(conversation, err);
        }
        return r < 0 ? r : answer(conversation, mail, err);
    case FRAME_NEWER:
        if (!shares)
            return tell_newer(conversation, mail, err);
        break;
    case FRAME_RELEASE:
        if (!shares)
            return release(conversation, err);
        break;
    default:
        break;
    }
    return err_set(err, EPROTO, "the borrower sent \"%s\"", frame_type_name(mail->frame.type));
}

static int converse(struct conversation *conversation, struct err *err)
{
    int r = greet(conversation, err);
    if (r == 0)
        r = wait_open(conversation->lender, err);
    while (r == 0) {
        struct mail *mail;
        r = session_next(&conversation->session, INT64_MAX / 2, &mail, err);
        if (r < 0)
            break;
        r = serve(conversation, mail, err);
        free(mail);
    }
    return r;
}

/* The borrower learns why, for example that a block cannot be read. */
static void tell(struct conversation *conversation, struct err *err)
{
    struct link *link = conversation->session.control;
    err_where(err, conversation->lender->options.host->name, "lend");
    _cleanup_json_ json_t *json = err_to_json(err);
    if (link && link_send_json(link, FRAME_ERROR, json, NULL) == 0)
        link_drain(link, clock_now() + NSEC_PER_SEC, NULL);
}

static int connect_link(struct conversation *conversation, struct err *err)
{
    const struct lender_options *options = &conversation->lender->options;
    /* No epoch yet: one that asks for another gets an answer. */
    struct link_options link = {.vm = options->vm, .heartbeat = true, .stall_ms = MOVE_STALL_MS};
    struct link_handler handler = {.frame = on_frame, .closed = on_closed, .arg = conversation};
    return link_start(TAKE_PTR(conversation->tls), &link, &handler, &conversation->session.control, err);
}

static bool enter(struct lender *lender, struct conversation *conversation)
{
    bool room = false;
    pthread_mutex_lock(&lender->lock);
    for (size_t i = 0; !room && !lender->closing && i < MAX_CONNECTIONS; i++)
        if (!lender->conversations[i]) {
            lender->conversations[i] = conversation;
            room = true;
        }
    pthread_mutex_unlock(&lender->lock);
    return room;
}

static void leave(struct lender *lender, const struct conversation *conversation)
{
    pthread_mutex_lock(&lender->lock);
    for (size_t i = 0; i < MAX_CONNECTIONS; i++)
        if (lender->conversations[i] == conversation)
            lender->conversations[i] = NULL;
    pthread_mutex_unlock(&lender->lock);
}

static void discard(struct conversation *conversation)
{
    session_done(&conversation->session);
    tls_close(conversation->tls);
    close_cleanup(&conversation->end);
    free(conversation);
}

static void *converse_thread(void *arg)
{
    struct conversation *conversation = arg;
    struct lender *lender = conversation->lender;
    struct err err = ERR_NONE;
    session_hurry();
    int r = connect_link(conversation, &err);
    if (r == 0)
        r = converse(conversation, &err);
    if (r < 0) {
        log_info("lending: %s", err.text);
        if (r != -ECANCELED && session_is_well(&conversation->session))
            tell(conversation, &err);
    }
    leave(lender, conversation);
    discard(conversation);
    tls_leave_thread();
    pthread_mutex_lock(&lender->lock);
    lender->connections--;
    pthread_cond_broadcast(&lender->changed);
    pthread_mutex_unlock(&lender->lock);
    return NULL;
}

/* On a thread of the porch: the borrower's key is proved. */
static void greeted(void *arg, struct tls *tls, const struct err *why)
{
    static struct log_limit limit;
    struct lender *lender = arg;
    struct err err = ERR_NONE;
    pthread_t thread;
    if (!tls) {
        log_limited(&limit, LOG_LEVEL_INFO, "lending: %s", why->text);
        return;
    }
    struct conversation *conversation = calloc(1, sizeof *conversation);
    if (!conversation || session_init(&conversation->session, 0, &err) < 0) {
        free(conversation);
        tls_close(tls);
        return;
    }
    conversation->lender = lender;
    conversation->tls = tls;
    conversation->end = fcntl(tls_socket(tls), F_DUPFD_CLOEXEC, 0);
    conversation->session.max_mail = MAX_REQUESTS; /* its thread waits for the link while it answers */
    if (conversation->end < 0 || !enter(lender, conversation))
        goto refuse;
    pthread_mutex_lock(&lender->lock);
    lender->connections++;
    pthread_mutex_unlock(&lender->lock);
    if (pthread_create(&thread, NULL, converse_thread, conversation) == 0) {
        pthread_detach(thread);
        return;
    }
    leave(lender, conversation);
    pthread_mutex_lock(&lender->lock);
    lender->connections--;
    pthread_mutex_unlock(&lender->lock);
refuse:
    discard(conversation);
}

void lender_connection(struct lender *lender, int socket)
{
    porch_knock(&lender->porch, &(struct porch_knock){.socket = socket,
                                                      .identity = lender->options.host->identity,
                                                      .expected = lender->options.borrower,
                                                      .other = lender->options.borrower,
                                                      .arg = lender});
}

/* --- the object ----------------------------------------------------------------------------------------- */

int lender_new(const struct lender_options *options, struct lender **ret, struct err *err)
{
    struct lender *lender = calloc(1, sizeof *lender);
    if (!lender)
        return err_set(err, ENOMEM, "out of memory");
    lender->options = *options;
    pthread_mutex_init(&lender->lock, NULL);
    porch_init(&lender->porch, MAX_CONNECTIONS, GREET_NS, greeted);
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&lender->changed, &monotonic);
    pthread_condattr_destroy(&monotonic);
    *ret = lender;
    return 0;
}

void lender_open(struct lender *lender)
{
    pthread_mutex_lock(&lender->lock);
    lender->open = true;
    pthread_cond_broadcast(&lender->changed);
    pthread_mutex_unlock(&lender->lock);
}

bool lender_released(const struct lender *lender)
{
    pthread_mutex_t *lock = (pthread_mutex_t *)&lender->lock; /* locking does not change the lender */
    pthread_mutex_lock(lock);
    bool released = lender->released;
    pthread_mutex_unlock(lock);
    return released;
}

void lender_confirm(struct lender *lender)
{
    pthread_mutex_lock(&lender->lock);
    lender->confirmed = true;
    pthread_cond_broadcast(&lender->changed);
    pthread_mutex_unlock(&lender->lock);
}

void lender_numbers(const struct lender *lender, struct lender_numbers *ret)
{
    pthread_mutex_t *lock = (pthread_mutex_t *)&lender->lock;
    pthread_mutex_lock(lock);
    ret->connections = lender->connections;
    pthread_mutex_unlock(lock);
    ret->fetches = atomic_load(&lender->fetches);
    ret->bytes = atomic_load(&lender->bytes);
}

void lender_free(struct lender *lender)
{
    if (!lender)
        return;
    porch_close(&lender->porch);
    int64_t until = clock_now() + FAREWELL_NS;
    const struct timespec at = {.tv_sec = until / NSEC_PER_SEC, .tv_nsec = until % NSEC_PER_SEC};
    pthread_mutex_lock(&lender->lock);
    lender->closing = true;
    pthread_cond_broadcast(&lender->changed);
    for (size_t i = 0; i < MAX_CONNECTIONS; i++)
        if (lender->conversations[i])
            session_cancel(&lender->conversations[i]->session);
    while (lender->connections && pthread_cond_timedwait(&lender->changed, &lender->lock, &at) == 0)
        ;
    for (size_t i = 0; i < MAX_CONNECTIONS; i++)
        if (lender->conversations[i])
            shutdown(lender->conversations[i]->end, SHUT_RDWR);
    while (lender->connections)
        pthread_cond_wait(&lender->changed, &lender->lock);
    pthread_mutex_unlock(&lender->lock);
    porch_free(&lender->porch);
    pthread_cond_destroy(&lender->changed);
    pthread_mutex_destroy(&lender->lock);
    free(lender);
}
