/* SPDX-License-Identifier: Apache-2.0
 *
 * The destination's connections. oraid hands over sockets (arrival_connection); the porch does the TLS
 * handshake, with the one source that this arrival is for; the first frame must be a hello, which says what
 * the connection is: "control", "data" number N, or "again" (the source asks about its commit after
 * a broken link).
 *
 * Until its hello a link is "unassigned". Links that were turned away stay there until they end and are
 * reaped when the next one comes, or at the end. Lock order: arrival->lock, then session->lock.
 */
#include "base/clock.h"
#include "base/json.h"
#include "base/log.h"
#include "base/macro.h"
#include "move/arrival.h"
#include "move/fault.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>

#define GREET_NS (10 * NSEC_PER_SEC)
#define LITTLE_BYTES (32 * KiB) /* waits in the kernel: what the guest asks for is behind it */

static int say_hello(struct arrival *arrival, struct link *link, struct err *err)
{
    pthread_mutex_lock(&arrival->lock);
    uint64_t taken = stream_taken(arrival->session.stream);
    bool wanted = arrival->memory_later && arrival->ready && !arrival->memory_whole;
    uint64_t number = arrival->stream_number;
    pthread_mutex_unlock(&arrival->lock);
    _cleanup_json_ json_t *hello =
        json_pack("{s:i, s:s, s:s, s:b, s:I, s:b}", "protocol", MOVE_PROTOCOL_VERSION, "host",
                  arrival->host->name, "version", ORAI_VERSION, "memory_wanted", (int)wanted, "taken",
                  (json_int_t)taken, "known", (int)!arrival->checkpoint_spoilt);
    if (arrival->ram_blocks)
        json_object_set_new(hello, "stream", json_integer((json_int_t)number));
    return link_send_json(link, FRAME_HELLO, hello, err);
}

/* The source closes the connection when it hears this. */
static int turn_away(struct arrival *arrival, struct link *link, struct err *why)
{
    err_where(why, arrival->host->name, "prepare");
    _cleanup_json_ json_t *json = err_to_json(why);
    return link_send_json(link, FRAME_ERROR, json, NULL);
}

/* Moves the link out of the unassigned ones. With the lock held. */
static struct link *assigned(struct arrival *arrival, struct link *link)
{
    for (size_t i = 0; i < ARRIVAL_MAX_LINKS; i++)
        if (arrival->unassigned[i].link == link)
            arrival->unassigned[i].link = NULL;
    return link;
}

struct hello {
    const char *role;
    uint64_t protocol, index;
    uint64_t taken; /* of QEMU's return path */
    struct id move;
};

static int read_hello(const json_t *json, struct hello *ret, struct err *err)
{
    int r = json_get_string(json, "role", "hello", &ret->role, err);
    if (r == 0)
        r = json_get_u64(json, "protocol", "hello", &ret->protocol, err);
    if (r == 0)
        r = json_get_id(json, "move", "hello", &ret->move, err);
    ret->index = json_u64(json, "index", 0);
    ret->taken = json_u64(json, "taken", 0);
    return r;
}

/* With the lock held. 1: the walker takes it over, and answers. */
static int place(struct arrival *arrival, struct link *link, const struct hello *hello, struct err *err)
{
    struct session *session = &arrival->session;
    bool same = id_equal(&hello->move, &arrival->move), moving = !arrival->ready && !arrival->closing;
    bool following =
        arrival->ready && !arrival->closing && arrival->memory_later && hello->index == 0 && session->stream;
    if (strcmp(hello->role, "control") == 0 && moving && !arrival->resumed &&
        session_set_control(session, link)) {
        arrival->move = hello->move;
        assigned(arrival, link);
        return 0;
    }
    if (strcmp(hello->role, "data") == 0 && (moving || following) && same &&
        hello->index == session->data_count && hello->index < MOVE_MAX_CONNECTIONS) {
        if (hello->index == 0 && session->stream &&
            stream_attach(session->stream, link, hello->taken, err) < 0)
            return -err->code;
        session_add_data(session, assigned(arrival, link));
        return 0;
    }
    if (strcmp(hello->role, "again") == 0 && same && arrival->ready && !arrival->closing &&
        !arrival->next_control) {
        /* Lost first: once published, the walker may reset the session at any moment. */
        session_lost(session, &(struct err){.code = ECONNRESET, .text = "the source has connected anew"});
        arrival->next_control = assigned(arrival, link);
        return 1;
    }
    return err_set(err, EBUSY, "a connection for another move, or out of turn");
}

static int check_protocol(const struct hello *hello, const char *version, struct err *err)
{
    if (hello->protocol == MOVE_PROTOCOL_VERSION)
        return 0;
    err_set(err, ENOTSUP,
            "this host speaks version %d of the move protocol, the source version %llu (Orai %s)",
            MOVE_PROTOCOL_VERSION, (unsigned long long)hello->protocol, version);
    return err_hint(err, "upgrade Orai on the older host");
}

static int on_hello(struct arrival *arrival, struct link *link, const struct frame *frame,
                    const uint8_t *payload, struct err *err)
{
    _cleanup_json_ json_t *json = NULL;
    struct hello hello = {.role = ""};
    int r = json_parse((const char *)payload, frame->length, "the source's hello", &json, err);
    if (r == 0)
        r = read_hello(json, &hello, err);
    if (r < 0)
        return r;
    r = check_protocol(&hello, json_str(json, "version", "?"), err);
    if (r == 0) {
        pthread_mutex_lock(&arrival->lock);
        if (!arrival->source_name[0])
            snprintf(arrival->source_name, sizeof arrival->source_name, "%s", json_str(json, "host", "?"));
        r = place(arrival, link, &hello, err);
        pthread_mutex_unlock(&arrival->lock);
    }
    if (r < 0)
        return turn_away(arrival, link, err);
    if (r == 0)
        r = say_hello(arrival, link, err);
    session_wake(&arrival->session);
    return MIN(r, 0);
}

/* --- frames --------------------------------------------------------------------------------------------- */

enum kind { KIND_UNASSIGNED, KIND_CONTROL, KIND_DATA };

/* Whose thread this is. A link that waits in next_control is a control link. */
static enum kind kind_of(struct arrival *arrival, const struct link *link, unsigned *ret_index)
{
    enum kind kind = KIND_CONTROL;
    pthread_mutex_lock(&arrival->lock);
    for (size_t i = 0; i < ARRIVAL_MAX_LINKS; i++)
        if (arrival->unassigned[i].link == link)
            kind = KIND_UNASSIGNED;
    pthread_mutex_unlock(&arrival->lock);
    int index = session_data_index(&arrival->session, link);
    if (index < 0)
        return kind;
    *ret_index = (unsigned)index;
    return KIND_DATA;
}

static int on_mark(struct arrival *arrival, unsigned index, const struct frame *frame, const uint8_t *payload,
                   struct err *err)
{
    struct wire_mark mark;
    int r = wire_mark_decode(payload, frame->length, &mark, err);
    if (r < 0)
        return r;
    pthread_mutex_lock(&arrival->lock);
    arrival->marks[index] = mark.sequence;
    pthread_mutex_unlock(&arrival->lock);
    session_wake(&arrival->session);
    return 0;
}

/* A block may come once in each round, over any connection: what is behind a mark waits until every
 * connection has passed it, or an older state of the block would replace a newer one. The connection that is
 * farthest behind never waits. */
static int await_round(struct arrival *arrival, unsigned index, struct err *err)
{
    pthread_mutex_lock(&arrival->lock);
    uint32_t mark = arrival->marks[index];
    pthread_mutex_unlock(&arrival->lock);
    int r = 0;
    while (r == 0 && (int32_t)(arrival_marked(arrival) - mark) < 0)
        r = session_doze(&arrival->session, clock_now() + 100 * NSEC_PER_MSEC, err);
    return r;
}

static struct stream *stream_of(struct arrival *arrival)
{
    pthread_mutex_lock(&arrival->lock);
    struct stream *stream = arrival->session.stream;
    pthread_mutex_unlock(&arrival->lock);
    return stream;
}

static int on_memory(struct arrival *arrival, struct link *link, unsigned index, const struct frame *frame,
                     const uint8_t *payload, struct err *err)
{
    struct stream *stream = stream_of(arrival);
    bool due = arrival->receiving || arrival->taken; /* the latter alone in an orai-vm that came later */
    if (!due || arrival->anew || !stream || index != 0)
        return err_set(err, EPROTO, "memory came before QEMU was ready for it, or on the wrong connection");
    return frame->type == FRAME_STREAM ? stream_take(stream, link, payload, frame->length, err)
                                       : arrival_packed(arrival, link, payload, frame->length, err);
}

/* Once, for as long as memory goes before the switch. What comes from here on on this connection is not the
 * old stream's. */
static int on_anew(struct arrival *arrival, struct link *link, unsigned index, const struct frame *frame,
                   const uint8_t *payload, struct err *err)
{
    struct stream *stream = stream_of(arrival);
    if (index != 0 || !arrival->receiving || !arrival->may_renew || !stream || stream_is_lasting(stream))
        return err_set(err, EPROTO, "an \"%s\" out of turn", frame_type_name(frame->type));
    arrival->may_renew = false; /* this thread's, since "prepared" */
    arrival->anew = true;
    return session_post(&arrival->session, link, frame, payload, err);
}

static int on_data(struct arrival *arrival, struct link *link, unsigned index, const struct frame *frame,
                   const uint8_t *payload, struct err *err)
{
    int r;
    switch (frame->type) {
    case FRAME_RUN:
        r = fault_point(err, "destination.run.%u", index);
        if (r == 0)
            r = await_round(arrival, index, err);
        return r < 0 ? r : arrival_run(arrival, payload, frame->length, err);
    case FRAME_SUMS:
        r = await_round(arrival, index, err);
        return r < 0 ? r : arrival_sums(arrival, link, payload, frame->length, err);
    case FRAME_MARK:
        return on_mark(arrival, index, frame, payload, err);
    case FRAME_STREAM:
    case FRAME_PACKED:
        return on_memory(arrival, link, index, frame, payload, err);
    case FRAME_TAKEN:
        return stream_peer_took(stream_of(arrival), payload, frame->length, err);
    case FRAME_ANEW:
        return on_anew(arrival, link, index, frame, payload, err);
    case FRAME_CLOCK:
        return arrival_stood_still(arrival, payload, frame->length, err);
    case FRAME_HASHES:
    case FRAME_PAGE:
        if (!arrival->comparing || index != 0)
            return err_set(err, EPROTO, "memory is compared out of turn, or on the wrong connection");
        return frame->type == FRAME_HASHES ? arrival_hashes(arrival, link, payload, frame->length, err)
                                           : arrival_page(arrival, payload, frame->length, err);
    default:
        return err_set(err, EPROTO, "\"%s\" on a data connection", frame_type_name(frame->type));
    }
}

static void on_progress(struct arrival *arrival, const struct frame *frame, const uint8_t *payload)
{
    json_t *json;
    if (json_parse((const char *)payload, frame->length, "progress", &json, NULL) < 0)
        return; /* it is for show only */
    pthread_mutex_lock(&arrival->lock);
    json_decref(arrival->shown);
    arrival->shown = json;
    pthread_mutex_unlock(&arrival->lock);
    if (arrival->host->on_change)
        arrival->host->on_change(arrival->host->arg);
}

/* Somebody here wants the move over; only the source may roll it back. */
static int ask_to_cancel(struct arrival *arrival, struct link *link, struct err *err)
{
    if (!arrival->give_up || arrival->cancel_asked)
        return 0;
    arrival->cancel_asked = true;
    return link_send(link, FRAME_CANCEL, NULL, 0, NULL, 0, err);
}

static int on_control(struct arrival *arrival, struct link *link, const struct frame *frame,
                      const uint8_t *payload, struct err *err)
{
    int r = ask_to_cancel(arrival, link, err);
    if (r < 0)
        return r;
    switch (frame->type) {
    case FRAME_PROBE: /* the source measures the link; the first byte of the last one is 1 */
        return frame->length && payload[0] ? link_send(link, FRAME_PROBED, NULL, 0, NULL, 0, err) : 0;
    case FRAME_PROGRESS:
        on_progress(arrival, frame, payload);
        return 0;
    case FRAME_CLOCK:
        return arrival_stood_still(arrival, payload, frame->length, err);
    case FRAME_WORKSET:
        return arrival_workset(arrival, payload, frame->length, err);
    case FRAME_HELLO:
    case FRAME_RUN:
    case FRAME_MARK:
    case FRAME_STREAM:
    case FRAME_ANEW:
        return err_set(err, EPROTO, "\"%s\" on the control connection", frame_type_name(frame->type));
    default:
        return session_post(&arrival->session, link, frame, payload, err);
    }
}

static int on_frame(void *arg, struct link *link, const struct frame *frame, const uint8_t *payload,
                    struct err *err)
{
    struct arrival *arrival = arg;
    unsigned index = 0;
    /* The source learns while it prepares which epoch this is about. From its first frame of that on, answers
     * are of it too; older frames do not get here. */
    link_set_epoch(link, frame->epoch);
    switch (kind_of(arrival, link, &index)) {
    case KIND_UNASSIGNED:
        return frame->type == FRAME_HELLO ? on_hello(arrival, link, frame, payload, err)
                                          : err_set(err, EPROTO, "the first frame is not a hello");
    case KIND_CONTROL:
        return on_control(arrival, link, frame, payload, err);
    case KIND_DATA:
        return on_data(arrival, link, index, frame, payload, err);
    }
    return -EPROTO;
}

static void on_closed(void *arg, struct link *link, const struct err *err)
{
    struct arrival *arrival = arg;
    if (err->code)
        log_info("connection from %s: %s", arrival->source_name, err->text);
    pthread_mutex_lock(&arrival->lock);
    for (size_t i = 0; i < ARRIVAL_MAX_LINKS; i++)
        if (arrival->unassigned[i].link == link)
            arrival->unassigned[i].ended = true;
    pthread_mutex_unlock(&arrival->lock);
    if (session_has(&arrival->session, link))
        session_lost(&arrival->session, err);
}

/* --- greeting ------------------------------------------------------------------------------------------- */

/* Frees those that were turned away and have ended. Joining a thread that wants our lock must not be done
 * under it. */
static void reap(struct arrival *arrival)
{
    struct link *ended[ARRIVAL_MAX_LINKS] = {0};
    pthread_mutex_lock(&arrival->lock);
    for (size_t i = 0; i < ARRIVAL_MAX_LINKS; i++)
        if (arrival->unassigned[i].ended) {
            ended[i] = arrival->unassigned[i].link;
            arrival->unassigned[i] = (struct unassigned){0};
        }
    pthread_mutex_unlock(&arrival->lock);
    for (size_t i = 0; i < ARRIVAL_MAX_LINKS; i++)
        link_free(ended[i]);
}

static void keep_link(struct arrival *arrival, struct tls *tls)
{
    struct err err = ERR_NONE;
    struct link_handler handler = {.frame = on_frame, .closed = on_closed, .arg = arrival};
    reap(arrival);
    const int little = LITTLE_BYTES;
    setsockopt(tls_socket(tls), IPPROTO_TCP, TCP_NOTSENT_LOWAT, &little, sizeof little);
    pthread_mutex_lock(&arrival->lock);
    struct link_options options = {.vm = arrival->config.id, .heartbeat = true, .stall_ms = MOVE_STALL_MS};
    struct link **slot = NULL;
    for (size_t i = 0; i < ARRIVAL_MAX_LINKS && !slot && !arrival->closing; i++)
        if (!arrival->unassigned[i].link)
            slot = &arrival->unassigned[i].link;
    if (!slot)
        tls_close(tls);
    else if (link_start(tls, &options, &handler, slot, &err) < 0)
        log_warning("%s", err.text);
    pthread_mutex_unlock(&arrival->lock);
}

/* On a thread of the porch. */
static void greeted(void *arg, struct tls *tls, const struct err *err)
{
    static struct log_limit limit;
    if (!tls) {
        log_limited(&limit, LOG_LEVEL_WARNING, "a connection for this VM was turned away: %s", err->text);
        return;
    }
    session_hurry(); /* and with it the link's own thread; not before it is known who comes */
    keep_link(arg, tls);
}

void arrival_open_porch(struct arrival *arrival)
{
    porch_init(&arrival->porch, ARRIVAL_MAX_LINKS, GREET_NS, greeted);
}

void arrival_connection(struct arrival *arrival, int socket)
{
    const struct fingerprint *source = &arrival->source.fingerprint;
    porch_knock(&arrival->porch, &(struct porch_knock){.socket = socket,
                                                       .identity = arrival->host->identity,
                                                       .expected = *source,
                                                       .other = *source,
                                                       .arg = arrival});
}

bool arrival_take_connection(struct arrival *arrival)
{
    struct err err = ERR_NONE;
    pthread_mutex_lock(&arrival->lock);
    struct link *link = arrival->next_control;
    pthread_mutex_unlock(&arrival->lock);
    if (!link)
        return false;
    session_reset(&arrival->session);
    pthread_mutex_lock(&arrival->lock);
    arrival->session.control = link;
    arrival->next_control = NULL;
    pthread_mutex_unlock(&arrival->lock);
    if (say_hello(arrival, link, &err) < 0) /* it has ended before it was ours to hear of */
        session_lost(&arrival->session, &err);
    return true;
}

void arrival_close_links(struct arrival *arrival)
{
    pthread_mutex_lock(&arrival->lock);
    arrival->closing = true;
    pthread_mutex_unlock(&arrival->lock);
    porch_close(&arrival->porch);
    pthread_mutex_lock(&arrival->lock);
    struct link *left[ARRIVAL_MAX_LINKS + 1] = {[ARRIVAL_MAX_LINKS] = arrival->next_control};
    for (size_t i = 0; i < ARRIVAL_MAX_LINKS; i++)
        left[i] = arrival->unassigned[i].link;
    memset(arrival->unassigned, 0, sizeof arrival->unassigned);
    arrival->next_control = NULL;
    pthread_mutex_unlock(&arrival->lock);
    session_reset(&arrival->session);
    for (size_t i = 0; i <= ARRIVAL_MAX_LINKS; i++)
        link_free(left[i]);
}
