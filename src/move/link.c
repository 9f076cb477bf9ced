/* SPDX-License-Identifier: Apache-2.0 */
#include "move/link.h"

#include "base/clock.h"
#include "base/macro.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <string.h>
#include <sys/eventfd.h>

#define QUEUE_DEFAULT (1U << 20)
#define READ_SIZE (64U << 10)
#define SEND_SLICE (64U << 10)
#define TURN 64 /* reads, and writes, before the other direction has its turn */
#define PING_NS NSEC_PER_SEC

/* A queued frame: the header is written right before the payload, so that both leave in one piece. */
struct packet {
    struct packet *next;
    size_t size; /* header and payload */
    uint8_t bytes[];
};

struct link {
    struct tls *tls;
    struct link_options options;
    struct link_handler handler;
    pthread_t thread;
    int wake; /* eventfd: the queue or `stopping` has changed */

    pthread_mutex_t lock; /* guards what follows; never held across I/O or a callback */
    pthread_cond_t room;  /* the queue has shrunk, the link has ended, or the last user has left */
    unsigned users;       /* threads inside link_send or link_drain: waited for before all this is freed */
    pthread_t self;       /* the link's thread, once `running` */
    bool running;
    struct packet *first, **last;
    size_t queued;
    uint64_t epoch;
    bool stopping, ended;
    struct err error; /* why it ended */

    /* The thread's own. */
    size_t sent;    /* bytes of `first` that are gone */
    size_t granted; /* further bytes of it that the budget has granted */
    int64_t last_heard, last_progress, budget_wait;
    uint8_t *in; /* one frame: header and payload */
    size_t in_used;
    struct frame in_frame;
    bool in_header;
};

static void wake(struct link *link)
{
    uint64_t one = 1;
    if (write(link->wake, &one, sizeof one) < 0)
        return; /* full means that it is readable already */
}

/* --- the queue: any thread --- */

uint8_t *link_buffer(size_t size)
{
    struct packet *packet = malloc(sizeof *packet + FRAME_HEADER_SIZE + size);
    return packet ? packet->bytes + FRAME_HEADER_SIZE : NULL;
}

static struct packet *packet_of(uint8_t *payload)
{
    return (struct packet *)(void *)(payload - FRAME_HEADER_SIZE - offsetof(struct packet, bytes));
}

void link_buffer_free(uint8_t *payload)
{
    if (payload)
        free(packet_of(payload));
}

static int failure(const struct link *link, struct err *err)
{
    if (err)
        *err = link->error;
    if (link->error.code)
        return -link->error.code;
    return err_set(err, ECONNRESET, "the connection was closed");
}

/* These three with the lock held. */
static void enter(struct link *link)
{
    link->users++;
}

static void leave(struct link *link)
{
    if (--link->users == 0)
        pthread_cond_broadcast(&link->room);
}

static void append(struct link *link, enum frame_type type, struct packet *packet)
{
    struct frame frame = {
        .type = type,
        .length = (uint32_t)(packet->size - FRAME_HEADER_SIZE),
        .vm = link->options.vm,
        .epoch = link->epoch,
    };
    frame_encode(&frame, packet->bytes);
    *link->last = packet;
    link->last = &packet->next;
    link->queued += packet->size;
    wake(link);
}

int link_send_buffer(struct link *link, enum frame_type type, uint8_t *payload, size_t size, struct err *err)
{
    assert(size <= FRAME_MAX_PAYLOAD);
    struct packet *packet = packet_of(payload);
    packet->next = NULL;
    packet->size = FRAME_HEADER_SIZE + size;

    pthread_mutex_lock(&link->lock);
    enter(link);
    /* The link's own thread (a callback that answers, a ping) may not wait for room that only it can make. */
    bool own = link->running && pthread_equal(link->self, pthread_self());
    while (!own && !link->ended && !link->stopping && link->queued > link->options.queue_bytes)
        pthread_cond_wait(&link->room, &link->lock);
    int r = link->ended || link->stopping ? failure(link, err) : 0;
    if (r == 0)
        append(link, type, packet);
    leave(link);
    pthread_mutex_unlock(&link->lock);
    if (r < 0)
        free(packet);
    return r;
}

int link_send(struct link *link, enum frame_type type, const void *head, size_t head_size, const void *body,
              size_t body_size, struct err *err)
{
    uint8_t *payload = link_buffer(head_size + body_size);
    if (!payload)
        return err_set(err, ENOMEM, "out of memory");
    if (head_size)
        memcpy(payload, head, head_size);
    if (body_size)
        memcpy(payload + head_size, body, body_size);
    return link_send_buffer(link, type, payload, head_size + body_size, err);
}

int link_send_json(struct link *link, enum frame_type type, const json_t *json, struct err *err)
{
    _cleanup_free_ char *text = json_dumps(json, JSON_COMPACT);
    if (!text)
        return err_set(err, ENOMEM, "out of memory");
    size_t size = strlen(text);
    if (size > FRAME_MAX_JSON)
        return err_set(err, EMSGSIZE, "a %s message of %zu bytes is too long", frame_type_name(type), size);
    return link_send(link, type, NULL, 0, text, size, err);
}

size_t link_queued(struct link *link)
{
    pthread_mutex_lock(&link->lock);
    size_t queued = link->queued;
    pthread_mutex_unlock(&link->lock);
    return queued;
}

int link_drain(struct link *link, int64_t deadline, struct err *err)
{
    struct timespec until = {.tv_sec = deadline / NSEC_PER_SEC, .tv_nsec = deadline % NSEC_PER_SEC};
    int timed_out = 0, r = 0;
    pthread_mutex_lock(&link->lock);
    enter(link);
    while (link->queued && !link->ended && !timed_out)
        timed_out = pthread_cond_timedwait(&link->room, &link->lock, &until);
    if (link->queued && link->ended)
        r = failure(link, err);
    else if (link->queued)
        r = err_set(err, ETIMEDOUT, "the peer does not read");
    leave(link);
    pthread_mutex_unlock(&link->lock);
    return r;
}

void link_set_epoch(struct link *link, uint64_t epoch)
{
    pthread_mutex_lock(&link->lock);
    link->epoch = epoch;
    pthread_mutex_unlock(&link->lock);
}

void link_make_prompt(struct link *link, size_t bytes)
{
    const int most = (int)bytes;
    setsockopt(tls_socket(link->tls), IPPROTO_TCP, TCP_NOTSENT_LOWAT, &most, sizeof most);
    pthread_mutex_lock(&link->lock);
    link->options.queue_bytes = bytes;
    pthread_cond_broadcast(&link->room);
    pthread_mutex_unlock(&link->lock);
}

/* --- the link's thread --- */

static struct packet *first_packet(struct link *link)
{
    pthread_mutex_lock(&link->lock);
    struct packet *packet = link->first;
    pthread_mutex_unlock(&link->lock);
    return packet;
}

static void drop_first(struct link *link)
{
    pthread_mutex_lock(&link->lock);
    struct packet *packet = link->first;
    link->first = packet->next;
    if (!link->first)
        link->last = &link->first;
    link->queued -= packet->size;
    pthread_cond_broadcast(&link->room);
    pthread_mutex_unlock(&link->lock);
    free(packet);
    link->sent = 0;
}

enum send_result { SEND_EMPTY, SEND_BLOCKED, SEND_MORE };

/* Sends what the budget and the socket allow, one turn at most: the queue may be filled as fast as it is
 * emptied. BLOCKED is by socket or budget. What the budget granted and the socket did not take stays granted:
 * TLS wants a blocked write repeated with no fewer bytes. */
static int send_some(struct link *link, struct err *err)
{
    link->budget_wait = 0;
    struct packet *packet;
    for (int writes = 0; (packet = first_packet(link)); writes++) {
        if (writes == TURN)
            return SEND_MORE;
        if (!link->granted) {
            link->granted = MIN(packet->size - link->sent, (size_t)SEND_SLICE);
            if (link->options.budget)
                link->granted = budget_take(link->options.budget, link->granted, &link->budget_wait);
        }
        if (!link->granted) {
            link->last_progress = clock_now(); /* our own limit holds us up, not the peer */
            return SEND_BLOCKED;
        }
        ssize_t n = tls_write(link->tls, packet->bytes + link->sent, link->granted);
        if (n == -EAGAIN)
            return SEND_BLOCKED;
        if (n <= 0)
            return err_sys(err, n ? (int)-n : ECONNRESET, "sending to the peer");
        link->last_progress = clock_now();
        link->granted -= (size_t)n;
        link->sent += (size_t)n;
        if (link->sent == packet->size)
            drop_first(link);
    }
    return SEND_EMPTY;
}

static bool outdated(struct link *link, const struct frame *frame)
{
    pthread_mutex_lock(&link->lock);
    /* An error counts whatever the epoch: the peer may not know yet which one was agreed on. */
    bool old = !id_equal(&frame->vm, &link->options.vm) ||
               (frame->epoch < link->epoch && frame->type != FRAME_ERROR);
    pthread_mutex_unlock(&link->lock);
    return old;
}

/* One whole frame lies in link->in. */
static int take_frame(struct link *link, struct err *err)
{
    link->in_header = false;
    link->in_used = 0;
    if (link->in_frame.type == FRAME_PING || outdated(link, &link->in_frame))
        return 0;
    int r = link->handler.frame(link->handler.arg, link, &link->in_frame, link->in + FRAME_HEADER_SIZE, err);
    link->last_heard = clock_now(); /* while the callback took its time nobody listened */
    return r;
}

/* 1: nothing more to read now, or enough for one turn (sending must not starve); 0: the peer closed in order.
 */
static int receive_some(struct link *link, struct err *err)
{
    for (int reads = 0; reads < TURN; reads++) {
        size_t whole = FRAME_HEADER_SIZE + (link->in_header ? link->in_frame.length : 0);
        ssize_t n =
            tls_read(link->tls, link->in + link->in_used, MIN(whole - link->in_used, (size_t)READ_SIZE));
        if (n == -EAGAIN)
            return 1;
        if (n == 0)
            return 0;
        if (n < 0)
            return err_sys(err, (int)-n, "receiving from the peer");
        link->last_heard = clock_now();
        link->in_used += (size_t)n;
        if (link->in_used == FRAME_HEADER_SIZE && !link->in_header) {
            int r = frame_decode(link->in, &link->in_frame, err);
            if (r < 0)
                return r;
            link->in_header = true;
            whole += link->in_frame.length;
        }
        if (link->in_header && link->in_used == whole) {
            int r = take_frame(link, err);
            if (r < 0)
                return r;
        }
    }
    return 1;
}

static int check_alive(struct link *link, struct err *err)
{
    int64_t now = clock_now(), stall = (int64_t)link->options.stall_ms * NSEC_PER_MSEC;
    if (!first_packet(link))
        link->last_progress = MAX(link->last_progress, now - PING_NS);
    if (link->options.heartbeat && now - link->last_heard > stall)
        return err_set(err, ETIMEDOUT, "heard nothing from the peer for %.1f s",
                       (double)(now - link->last_heard) / NSEC_PER_SEC);
    if (first_packet(link) && now - link->last_progress > stall + PING_NS)
        return err_set(err, ETIMEDOUT, "could send nothing to the peer for %.1f s",
                       (double)(now - link->last_progress) / NSEC_PER_SEC);
    return 0;
}

/* A quiet link says that it lives; a queue with anything in it is proof enough. */
static int ping_if_quiet(struct link *link, int64_t *last_ping, struct err *err)
{
    if (clock_now() - *last_ping < PING_NS || first_packet(link))
        return 0;
    *last_ping = clock_now();
    return link_send(link, FRAME_PING, NULL, 0, NULL, 0, err);
}

static void wait_work(struct link *link, int sent, int timeout_ms)
{
    struct pollfd fds[2] = {
        {.fd = tls_socket(link->tls), .events = tls_read_events(link->tls)},
        {.fd = link->wake, .events = POLLIN},
    };
    if (sent == SEND_BLOCKED && link->budget_wait == 0)
        fds[0].events = (short)(fds[0].events | tls_write_events(link->tls));
    if (link->budget_wait > 0) {
        struct timespec t = {.tv_nsec = (long)MIN(link->budget_wait, NSEC_PER_SEC - 1)};
        ppoll(fds, 1, &t, NULL); /* more in the queue changes nothing while the budget is empty */
        return;
    }
    if (poll(fds, 2, timeout_ms) > 0 && (fds[1].revents & POLLIN)) {
        uint64_t count;
        if (read(link->wake, &count, sizeof count) < 0)
            return; /* nothing to clear */
    }
}

static bool stop_wanted(struct link *link)
{
    pthread_mutex_lock(&link->lock);
    bool stopping = link->stopping;
    pthread_mutex_unlock(&link->lock);
    return stopping;
}

/* A peer that was silent hears at once that nobody listens here, and not only when the link is freed: it may
 * have nothing to send, and would think that all is well. Any other end it hears of without that: the
 * connection broke, or a callback failed, and then its owner says why before it closes. */
static void end(struct link *link, const struct err *err)
{
    if (err->code == ETIMEDOUT)
        shutdown(tls_socket(link->tls), SHUT_RDWR);
    pthread_mutex_lock(&link->lock);
    link->error = *err;
    link->ended = true;
    pthread_cond_broadcast(&link->room);
    pthread_mutex_unlock(&link->lock);
    link->handler.closed(link->handler.arg, link, err);
}

static void *link_run(void *arg)
{
    struct link *link = arg;
    struct err err = ERR_NONE;
    int64_t last_ping = clock_now();
    link->last_heard = link->last_progress = last_ping;
    pthread_mutex_lock(&link->lock);
    link->self = pthread_self();
    link->running = true;
    pthread_mutex_unlock(&link->lock);
    while (!stop_wanted(link)) {
        int received = receive_some(link, &err);
        if (received <= 0)
            break;
        int sent = send_some(link, &err);
        if (sent < 0 || check_alive(link, &err) < 0 || ping_if_quiet(link, &last_ping, &err) < 0)
            break;
        if (!tls_pending(link->tls) && sent != SEND_MORE)
            wait_work(link, sent, 250);
    }
    end(link, &err);
    return NULL;
}

static struct link *link_alloc(struct tls *tls, const struct link_options *options,
                               const struct link_handler *handler)
{
    struct link *link = calloc(1, sizeof *link);
    if (!link)
        return NULL;
    link->tls = tls;
    link->options = *options;
    link->handler = *handler;
    link->epoch = options->epoch;
    if (!link->options.queue_bytes)
        link->options.queue_bytes = QUEUE_DEFAULT;
    link->last = &link->first;
    link->in = malloc(FRAME_HEADER_SIZE + FRAME_MAX_PAYLOAD);
    link->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    pthread_mutex_init(&link->lock, NULL);
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&link->room, &attr);
    pthread_condattr_destroy(&attr);
    return link;
}

static void link_release(struct link *link)
{
    while (link->first)
        drop_first(link);
    pthread_cond_destroy(&link->room);
    pthread_mutex_destroy(&link->lock);
    if (link->wake >= 0)
        close(link->wake);
    tls_close(link->tls);
    free(link->in);
    free(link);
}

int link_start(struct tls *tls, const struct link_options *options, const struct link_handler *handler,
               struct link **ret, struct err *err)
{
    struct link *link = link_alloc(tls, options, handler);
    if (!link) {
        tls_close(tls);
        return err_set(err, ENOMEM, "out of memory");
    }
    struct link *before = *ret;
    *ret = link; /* the callbacks may compare it with theirs */
    int r = !link->in || link->wake < 0 ? ENOMEM : pthread_create(&link->thread, NULL, link_run, link);
    if (r != 0) {
        *ret = before;
        link_release(link);
        return err_sys(err, r, "cannot start a connection's thread");
    }
    return 0;
}

void link_stop(struct link *link)
{
    if (!link)
        return;
    pthread_mutex_lock(&link->lock);
    link->stopping = true;
    pthread_cond_broadcast(&link->room);
    pthread_mutex_unlock(&link->lock);
    wake(link);
}

void link_free(struct link *link)
{
    if (!link)
        return;
    link_stop(link);
    pthread_join(link->thread, NULL);
    pthread_mutex_lock(&link->lock);
    while (link->users)
        pthread_cond_wait(&link->room, &link->lock);
    pthread_mutex_unlock(&link->lock);
    link_release(link);
}
