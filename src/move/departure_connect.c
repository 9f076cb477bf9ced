/* SPDX-License-Identifier: Apache-2.0
 *
 * The source's connections: one for control, then those for data. Frames that come on them are handed to the
 * walker, but for a few that the link's own thread takes.
 *
 * Over a long link what counts is how many answers are waited for one after the other. So all handshakes run
 * side by side, on threads of their own, and the walker does not wait for the greetings of data connections
 * until it needs these. The destination takes them in their order: each is greeted when the one before it has
 * been answered, by that one's thread.
 */
#include "base/clock.h"
#include "base/json.h"
#include "base/macro.h"
#include "move/departure.h"

#include <errno.h>
#include <string.h>

static int send_hello(struct departure *departure, struct link *link, const char *role, unsigned index,
                      struct err *err)
{
    char move[ID_TEXT_SIZE];
    _cleanup_json_ json_t *hello = json_pack(
        "{s:i, s:s, s:i, s:s, s:s, s:s, s:I}", "protocol", MOVE_PROTOCOL_VERSION, "role", role, "index",
        (int)index, "move", id_format(&departure->options.move, move), "host", departure->host->name,
        "version", ORAI_VERSION, "taken", (json_int_t)stream_taken(departure->session.stream));
    return link_send_json(link, FRAME_HELLO, hello, err);
}

/* A data connection's hello was answered. A link is freed only after the thread of the one before it has
 * ended (session_reset), so the next one is still there. */
static int on_greeted(struct departure *departure, const struct link *link, const uint8_t *payload,
                      size_t size, struct err *err)
{
    struct session *session = &departure->session;
    struct link *next = NULL;
    _cleanup_json_ json_t *hello = NULL;
    int r = json_parse((const char *)payload, size, "the destination's hello", &hello, err);
    if (r < 0)
        return r;
    pthread_mutex_lock(&session->lock);
    unsigned index = departure->greeted;
    bool due = index < session->data_count && session->data[index] == link;
    if (due) {
        departure->greeted++;
        if (index == 0)
            departure->stream_taken = json_u64(hello, "taken", 0);
        departure->known_spoilt = !json_bool(hello, "known", true);
        if (index + 1 < session->data_count)
            next = session->data[index + 1];
    }
    pthread_mutex_unlock(&session->lock);
    if (!due)
        return err_set(err, EPROTO, "a hello out of turn");
    session_wake(session);
    return next ? send_hello(departure, next, "data", index + 1, err) : 0;
}

/* With what comes from QEMU there. While the stream is made anew (departure_renew_memory) nobody wants the
 * old one's, and it cannot be written any more. */
static int on_stream(struct departure *departure, struct link *link, const struct frame *frame,
                     const uint8_t *payload, struct err *err)
{
    struct session *session = &departure->session;
    pthread_mutex_lock(&session->lock);
    struct stream *stream = session->stream;
    pthread_mutex_unlock(&session->lock);
    if (departure->renewing)
        return 0;
    int r = 0;
    if (frame->type == FRAME_TAKEN)
        r = stream_peer_took(stream, payload, frame->length, err);
    else if (stream)
        r = stream_take(stream, link, payload, frame->length, err);
    return departure->renewing ? 0 : r;
}

/* From here on what comes on this connection is the new stream's. */
static int on_anew(struct departure *departure, struct link *link, const struct frame *frame,
                   const uint8_t *payload, struct err *err)
{
    struct session *session = &departure->session;
    if (session_data_index(session, link) != 0 || !departure->renewing)
        return err_set(err, EPROTO, "an \"%s\" out of turn", frame_type_name(frame->type));
    departure->renewing = false;
    return session_post(session, link, frame, payload, err);
}

/* Only return traffic arrives on data links; control frames go to the walker. */
static int on_frame(void *arg, struct link *link, const struct frame *frame, const uint8_t *payload,
                    struct err *err)
{
    struct departure *departure = arg;
    struct session *session = &departure->session;
    struct wire_mark mark;
    switch (frame->type) {
    case FRAME_HELLO:
        return link == session->control ? session_post(session, link, frame, payload, err)
                                        : on_greeted(departure, link, payload, frame->length, err);
    case FRAME_BACK:
    case FRAME_TAKEN:
        return on_stream(departure, link, frame, payload, err);
    case FRAME_ANEW:
        return on_anew(departure, link, frame, payload, err);
    case FRAME_DIFFER:
        return departure_differ(departure, payload, frame->length, err);
    case FRAME_KNOWN:
        return departure_known(departure, payload, frame->length, err);
    case FRAME_FAULTS:
        return departure_faults(departure, payload, frame->length, err);
    case FRAME_CANCEL:
        session_cancel(session);
        return 0;
    case FRAME_MARKED:
        if (wire_mark_decode(payload, frame->length, &mark, err) < 0)
            return -EPROTO;
        pthread_mutex_lock(&session->lock);
        session->marked = mark.sequence;
        pthread_mutex_unlock(&session->lock);
        session_wake(session);
        return 0;
    case FRAME_ERROR: {
        int r = session_post(session, link, frame, payload, err);
        session_stop_data(session); /* the walker may wait there for room that nobody will make */
        return r;
    }
    default:
        return session_post(session, link, frame, payload, err);
    }
}

static void on_closed(void *arg, struct link *link, const struct err *err)
{
    struct departure *departure = arg;
    (void)link;
    session_lost(&departure->session, err);
}

#define WARM_BYTES (256 * KiB)

/* A tenth of a second of a limited bandwidth: what is queued delays a cancel, and the switch. Or what the
 * guest waits for there. */
static size_t queue_bytes(const struct departure *departure)
{
    uint64_t bandwidth = departure->options.bandwidth;
    if (departure->memory_later)
        return MEMORY_PROMPT_BYTES;
    return bandwidth ? MIN(MAX(bandwidth / 10, 256 * KiB), 2 * MiB) : 2 * MiB;
}

/* A connection's handshakes, which may run on a thread of their own; `err` and `tls` are what came of it. */
struct departure_opening {
    struct departure *departure;
    int64_t deadline;
    struct tls *tls; /* NULL: failed */
    struct err err;
    pthread_t thread;
    bool running;
};

static void *shake_hands(void *arg)
{
    struct departure_opening *opening = arg;
    const struct departure *departure = opening->departure;
    const struct move_peer *peer = &departure->options.peer;
    char id[ID_TEXT_SIZE], server_name[ID_TEXT_SIZE + 8];
    snprintf(server_name, sizeof server_name, "%s.orai",
             id_format(&machine_config(departure->machine)->id, id));
    if (tls_connect(departure->host->identity, peer->address, peer->port, server_name, &peer->fingerprint,
                    opening->deadline, &opening->tls, &opening->err) < 0)
        opening->tls = NULL;
    return NULL;
}

static int start_link(struct departure *departure, bool control, struct tls *tls, struct link **ret,
                      struct err *err)
{
    struct link_options options = {
        .vm = machine_config(departure->machine)->id,
        .epoch = departure->next_epoch,
        .budget = departure->session.budget, /* control too: files and probes are not small */
        .heartbeat = control,
        .stall_ms = control ? MOVE_STALL_MS : MOVE_DATA_STALL_MS,
        .queue_bytes = control ? 0 : queue_bytes(departure),
    };
    struct link_handler handler = {.frame = on_frame, .closed = on_closed, .arg = departure};
    int r = link_start(tls, &options, &handler, ret, err);
    if (r == 0 && !control && departure->memory_later)
        link_make_prompt(*ret, MEMORY_PROMPT_BYTES);
    return r;
}

/* What the destination can do. */
static int take_opened(struct departure *departure, const struct mail *mail, struct err *err)
{
    _cleanup_json_ json_t *opened = NULL;
    int r = json_parse((const char *)mail->payload, mail->frame.length, "opened", &opened, err);
    if (r < 0)
        return r;
    departure->opened = true;
    if (!departure->memory_later || json_bool(opened, "memory_later", false))
        return 0;
    departure->memory_later = false;
    progress_note(departure->progress, "memory goes before the switch: %s",
                  json_str(opened, "why", "the destination cannot take it later"));
    return 0;
}

int departure_await(struct departure *departure, enum frame_type type, int64_t deadline, struct mail **ret,
                    struct err *err)
{
    for (;;) {
        struct mail *mail;
        int r = session_next(&departure->session, deadline, &mail, err);
        if (r == -EAGAIN)
            return err_set(err, ETIMEDOUT, "the destination did not answer in time (waiting for \"%s\")",
                           frame_type_name(type));
        if (r < 0)
            return r;
        enum frame_type came = mail->frame.type;
        r = came == FRAME_OPENED ? take_opened(departure, mail, err) : 0;
        if (r == 0 && came == type && ret)
            *ret = TAKE_PTR(mail);
        free(mail);
        if (r < 0 || came == type)
            return r;
        if (came != FRAME_OPENED)
            return err_set(err, EPROTO, "the destination sent \"%s\" where \"%s\" was due",
                           frame_type_name(came), frame_type_name(type));
    }
}

static int greet_control(struct departure *departure, const char *role, int64_t deadline, struct err *err)
{
    struct mail *mail = NULL;
    _cleanup_json_ json_t *hello = NULL;
    int r = send_hello(departure, departure->session.control, role, 0, err);
    if (r == 0)
        r = departure_await(departure, FRAME_HELLO, deadline, &mail, err);
    if (r == 0)
        r = json_parse((const char *)mail->payload, mail->frame.length, "the destination's hello", &hello,
                       err);
    free(mail);
    departure->memory_wanted = json_bool(hello, "memory_wanted", false);
    departure->peer_recovers = json_object_get(hello, "stream");
    if (strcmp(role, "again") == 0)
        departure->peer_stream = json_u64(hello, "stream", departure->stream_number);
    return r;
}

int departure_connect(struct departure *departure, bool again, int64_t deadline, struct err *err)
{
    struct departure_opening opening = {.departure = departure, .deadline = deadline};
    shake_hands(&opening);
    if (!opening.tls) {
        *err = opening.err;
        return -err->code;
    }
    int r = start_link(departure, true, opening.tls, &departure->session.control, err);
    return r < 0 ? r : greet_control(departure, again ? "again" : "control", deadline, err);
}

/* --- data ----------------------------------------------------------------------------------------------- */

int departure_open_data(struct departure *departure, struct err *err)
{
    unsigned count = departure->options.connections;
    assert(count <= MOVE_MAX_CONNECTIONS);
    departure->openings = calloc(count, sizeof *departure->openings);
    if (!departure->openings)
        return err_set(err, ENOMEM, "out of memory");
    departure->opening_count = count;
    for (unsigned i = 0; i < count; i++) {
        struct departure_opening *opening = &departure->openings[i];
        *opening =
            (struct departure_opening){.departure = departure, .deadline = clock_now() + MOVE_CONNECT_NS};
        opening->running = pthread_create(&opening->thread, NULL, shake_hands, opening) == 0;
        if (!opening->running)
            shake_hands(opening);
    }
    return 0;
}

void departure_drop_openings(struct departure *departure)
{
    for (unsigned i = 0; i < departure->opening_count; i++) {
        struct departure_opening *opening = &departure->openings[i];
        if (opening->running)
            pthread_join(opening->thread, NULL);
        tls_close(opening->tls);
    }
    departure->opening_count = 0;
    free(TAKE_PTR(departure->openings));
}

static int add_data(struct departure *departure, struct departure_opening *opening, struct err *err)
{
    struct link *link = NULL;
    if (opening->running)
        pthread_join(opening->thread, NULL);
    opening->running = false;
    if (!opening->tls) {
        *err = opening->err;
        return -err->code;
    }
    int r = start_link(departure, false, TAKE_PTR(opening->tls), &link, err);
    if (r == 0)
        session_add_data(&departure->session, link);
    return r;
}

int departure_connect_data(struct departure *departure, struct err *err)
{
    int r = departure->openings ? 0 : departure_open_data(departure, err);
    departure->greeted = 0;
    for (unsigned i = 0; r == 0 && i < departure->opening_count; i++)
        r = add_data(departure, &departure->openings[i], err);
    departure_drop_openings(departure);
    return r < 0 ? r : send_hello(departure, departure->session.data[0], "data", 0, err);
}

int departure_wait_greeted(struct departure *departure, struct err *err)
{
    struct session *session = &departure->session;
    int64_t deadline = clock_now() + MOVE_CONNECT_NS;
    for (;;) {
        pthread_mutex_lock(&session->lock);
        bool done = departure->greeted == session->data_count;
        pthread_mutex_unlock(&session->lock);
        if (done)
            break;
        if (clock_now() > deadline)
            return err_set(err, ETIMEDOUT, "the destination did not answer on a data connection in time");
        int r = session_nap(session, clock_now() + 20 * NSEC_PER_MSEC, err);
        if (r < 0)
            return r;
    }
    for (unsigned i = 0; i < session->data_count; i++) /* it may have been chosen since they were made */
        link_set_epoch(session->data[i], departure->next_epoch);
    if (session->stream && departure->known_spoilt)
        stream_forget_known(session->stream);
    /* It goes on where it was. */
    return session->stream ? stream_attach(session->stream, session->data[0], departure->stream_taken, err)
                           : 0;
}

/* TCP trusts a new connection with 14 KB, then with twice as much each round trip. The guest will stand still
 * until its device state, some 200 KB of one burst, is there: so bytes that mean nothing go first. */
int departure_warm(struct departure *departure, struct err *err)
{
    static const uint8_t nothing[WARM_BYTES / 4];
    int r = 0;
    for (int i = 0; r == 0 && i < 4; i++)
        r = link_send(departure->session.data[0], FRAME_PING, NULL, 0, nothing, sizeof nothing, err);
    return r;
}
