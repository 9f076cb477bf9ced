/* SPDX-License-Identifier: Apache-2.0
 *
 * stream: theory of operation
 *
 * Bytes from QEMU are counted from 0. A lasting stream keeps those between `acked` and `head` in a ring, at
 * their number modulo its size:
 *
 *      acked               sent                head
 *   ----|-------------------|-------------------|----
 *        on the way, or here   not given to a link yet
 *
 * The relay's thread puts bytes in and gives to the link what is not `sent`; it alone, and without the lock,
 * for link_send may wait until the link's own thread has sent something, and that thread wants the lock for
 * FRAME_TAKEN. `sent` counts bytes before link_send has them: the peer may be faster than its return. A new
 * link begins with sent = acked = what the peer's QEMU has, and the relay's thread is woken for the rest.
 *
 * A packed stream keeps QEMU's bytes, not packets. The encoder was `fed` those up to there and made packets
 * of those up to `packed`, the rest being the beginning of a record that has not come whole. Bytes before
 * `packed` that have to be sent again go as they are, and so need nothing of what packets need.
 */
#include "move/stream.h"

#include "base/clock.h"
#include "base/endian.h"
#include "base/log.h"
#include "base/macro.h"
#include "memory/again.h"
#include "memory/asked.h"
#include "memory/direct.h"
#include "memory/holes.h"
#include "memory/qstream.h"
#include "move/fault.h"
#include "move/window.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#define RING (16U * MiB)
#define NARROW (512U * KiB)
#define TELL (128U * KiB) /* bytes taken until the peer is told */
#define TELL_LASTING (32U * KiB)
#define PIECE (256U * KiB)
/* A packet is compressed while the link has so much to send anyway: then the time for it is free. */
#define BUSY (128U * KiB)
/* What lies before a page that is asked for when QEMU hears of it: QEMU's socket is full of it, and some is
 * here. QEMU may hear late; until then it goes on with what nobody wants, and gets rid of little of it. */
#define REACH (256U * KiB)
#define LATE_NS (10 * NSEC_PER_MSEC)
#define LATE_REACH (32U * KiB)
/* What nobody has asked for goes after all when this was silent for so long, each time twice as much: nobody
 * waits for ever. */
#define HOLD_NS NSEC_PER_SEC
#define HOLD_LEAST (512U * KiB)
/* Neighbours of a page that is asked for are asked for too, as many as this part of what may be under way: so
 * nobody waits much longer, and often somebody one time less. */
#define NEIGHBOURS_SHARE 8
#define MOST_NEIGHBOURS 64U
/* So many pages of the working set are asked for at once: what the guest asks for is behind them. */
#define PREFERRED_AT_ONCE 32U
#define MOST_EXPANSION 64.0
#define EXPANSION_PACKETS 8 /* over which it is smoothed */

struct stream {
    struct relay *relay;
    enum frame_type sends;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct link *link; /* NULL: none, or it has failed */
    bool stopped, discard;
    uint8_t *ring;        /* NULL: it does not last */
    struct window window; /* how much of it is used, */
    bool wide;            /* which changes from here on */
    uint64_t acked, sent, head;
    bool sending;
    uint64_t fed, packed;        /* of a lasting one, too; */
    bool forget;                 /* what is known; */
    struct again *again;         /* NULL: nobody wants to know; */
    struct asked *asked;         /* NULL: what nobody has asked for goes too, before it is wide; */
    uint64_t reach;              /* up to there it goes while something is asked for; */
    uint64_t let, let_next;      /* up to there in any case; how much more after the next silence */
    struct workset *preferred;   /* NULL: no pages go before the rest; */
    size_t preferred_next;       /* those from there on were not asked for; the link's thread's, as */
    uint8_t owed[REQUESTS_ROOM]; /* a request of ours, as far as QEMU has not taken it */
    size_t owed_size;
    struct stream_ahead ahead; /* of one that does not last; */
    double expansion;          /* QEMU's bytes that a packed one lately stood for; the relay's thread's */
    struct encoder *encoder;   /* NULL: it goes as it is. The relay's thread's, */
    bool strange_told;         /* too */
    struct decoder *decoder;   /* the link's thread's, */
    bool tells;                /* too: the peer wants to hear of what is taken */
    struct stream_count count;
    _Atomic uint64_t taken;
    _Atomic uint64_t told;
    struct holes *_Atomic holes; /* of these two one at most; */
    struct direct *direct;       /* both NULL: QEMU gets all that comes, */
    struct timer *timer;         /* but through this, if it is there; guarded by `timer_lock`, */
    pthread_mutex_t timer_lock;
    bool timer_told; /* too */
};

/* --- from QEMU ------------------------------------------------------------------------------------------ */

static int send_packet(struct stream *stream, struct link *link, const uint8_t *packet, size_t size)
{
    const char *strange = encoder_strange(stream->encoder);
    if (strange && !stream->strange_told)
        log_info("QEMU's stream goes as it is from here on: %s", strange);
    stream->strange_told = strange;
    pthread_mutex_lock(&stream->lock);
    stream->count.sent += size ? size + FRAME_HEADER_SIZE : 0;
    stream->count.packed = *encoder_count(stream->encoder);
    pthread_mutex_unlock(&stream->lock);
    return size ? link_send(link, FRAME_PACKED, NULL, 0, packet, size, NULL) : 0;
}

/* These three with the lock held, which is given up in between. */
static int send_kept_as_it_is(struct stream *stream, struct link *link)
{
    uint64_t end = stream->encoder ? stream->packed : stream->head;
    size_t at = stream->sent % RING, size = MIN(MIN(end - stream->sent, RING - at), PIECE);
    stream->sent += size;
    stream->count.sent += stream->encoder ? size + FRAME_HEADER_SIZE : 0;
    window_sent(&stream->window, stream->sent, clock_now());
    pthread_mutex_unlock(&stream->lock);
    int r = link_send(link, stream->sends, NULL, 0, stream->ring + at, size, NULL);
    pthread_mutex_lock(&stream->lock);
    return r;
}

static int send_kept_packed(struct stream *stream, struct link *link)
{
    size_t at = stream->fed % RING, size = MIN(MIN(stream->head - stream->fed, RING - at), CODEC_MAX_INPUT);
    size_t packet_size;
    /* Before it is wide the guest stands still for it; then it is worth the time where the path is full. */
    bool compress = !stream->wide || stream->sent - stream->acked >= stream->window.size / 2;
    if (stream->forget)
        encoder_forget(stream->encoder);
    stream->fed += size;
    pthread_mutex_unlock(&stream->lock);
    const uint8_t *packet = encoder_take(stream->encoder, stream->ring + at, size, compress, &packet_size);
    pthread_mutex_lock(&stream->lock);
    if (packet_size) {
        stream->sent = stream->packed += packet_stands_for(packet);
        window_sent(&stream->window, stream->sent, clock_now());
    }
    pthread_mutex_unlock(&stream->lock);
    int r = send_packet(stream, link, packet, packet_size);
    pthread_mutex_lock(&stream->lock);
    return r;
}

static void send_kept(struct stream *stream)
{
    for (;;) {
        bool pack = stream->encoder && stream->sent == stream->packed;
        struct link *link = stream->link;
        if (!link || (pack ? stream->fed : stream->sent) == stream->head)
            break;
        stream->sending = true;
        int r = pack ? send_kept_packed(stream, link) : send_kept_as_it_is(stream, link);
        stream->sending = false;
        if (r < 0 && stream->link == link)
            stream->link = NULL;
        pthread_cond_broadcast(&stream->changed);
    }
}

/* These with the lock held. */
/* Before it is wide. 0: nothing is held; else how long until some of it goes anyway. */
static int64_t holds(struct stream *stream)
{
    uint64_t missing;
    if (!stream->asked || stream->wide)
        return 0;
    switch (asked_state(stream->asked, &missing)) {
    case ASKED_EARLY:
        stream->reach = stream->head + REACH + missing * QSTREAM_PAGE_RECORD;
        return 0;
    case ASKED_MISSING:
        return stream->head < MAX(stream->reach, stream->let) ? 0 : LATE_NS;
    case ASKED_IDLE:
        return stream->head < stream->let ? 0 : HOLD_NS;
    case ASKED_UNSURE:
        break;
    }
    return 0;
}

/* How much of what QEMU has sent may be kept, in one piece. */
static size_t room(struct stream *stream)
{
    uint64_t at = stream->head % RING, kept = stream->head - stream->acked;
    if (holds(stream))
        return 0;
    return kept < stream->window.size ? MIN(stream->window.size - kept, RING - at) : 0;
}

static void wait_room(struct stream *stream)
{
    int64_t most = holds(stream), until = clock_now() + most;
    struct timespec deadline = {.tv_sec = until / NSEC_PER_SEC, .tv_nsec = until % NSEC_PER_SEC};
    if (!most) {
        pthread_cond_wait(&stream->changed, &stream->lock);
    } else if (pthread_cond_timedwait(&stream->changed, &stream->lock, &deadline) != ETIMEDOUT) {
        return;
    } else if (most == LATE_NS) {
        stream->reach = stream->head + LATE_REACH;
    } else {
        stream->let = stream->head + stream->let_next;
        stream->let_next *= 2;
    }
}

static int keep_and_send(struct stream *stream, const uint8_t *data, size_t size)
{
    send_kept(stream);
    while (size && !stream->stopped && !stream->discard) {
        size_t at = stream->head % RING, some = MIN(size, room(stream));
        if (!some) {
            wait_room(stream);
            send_kept(stream);
            continue;
        }
        memcpy(stream->ring + at, data, some);
        fault_data(stream->ring + at, some,
                   stream->sends == FRAME_BACK ? "destination.back" : "source.stream");
        stream->head += some;
        data += some;
        size -= some;
        send_kept(stream);
    }
    return stream->stopped ? -ECANCELED : 0;
}

static void note_packet(struct stream *stream, size_t before, size_t after)
{
    double expansion = MIN((double)before / (double)(after + FRAME_HEADER_SIZE), MOST_EXPANSION);
    stream->expansion += (expansion - stream->expansion) / EXPANSION_PACKETS;
}

static uint64_t ahead(const struct stream *stream)
{
    if (!stream->ahead.path)
        return stream->ahead.most;
    uint64_t path = (uint64_t)((double)stream->ahead.path * stream->expansion);
    return MIN(MAX(path, NARROW), stream->ahead.most);
}

/* *ret_full: much of what fills the path is on its way. */
static int wait_ahead(struct stream *stream, size_t size, bool *ret_full)
{
    pthread_mutex_lock(&stream->lock);
    while (stream->head - stream->acked > ahead(stream) && !stream->stopped)
        pthread_cond_wait(&stream->changed, &stream->lock);
    stream->sent = stream->head += size;
    *ret_full = stream->ahead.path &&
                (double)(stream->head - stream->acked) >= (double)stream->ahead.path * stream->expansion / 2;
    int r = stream->stopped ? -ECANCELED : 0;
    pthread_mutex_unlock(&stream->lock);
    return r;
}

static int send_packed(struct stream *stream, struct link *link, const uint8_t *data, size_t size)
{
    bool full;
    int r = wait_ahead(stream, size, &full);
    for (size_t at = 0, some; r == 0 && at < size; at += some) {
        size_t packet_size;
        some = MIN(size - at, (size_t)CODEC_MAX_INPUT);
        bool compress = full || link_queued(link) >= BUSY;
        const uint8_t *packet = encoder_take(stream->encoder, data + at, some, compress, &packet_size);
        note_packet(stream, some, packet_size);
        r = send_packet(stream, link, packet, packet_size);
    }
    return r;
}

/* QEMU has closed its end, in the middle of something. */
static int send_packed_rest(struct stream *stream)
{
    size_t size;
    const uint8_t *packet = encoder_end(stream->encoder, &size);
    pthread_mutex_lock(&stream->lock);
    struct link *link = stream->link;
    if (stream->ring && stream->sent < stream->packed) /* not its turn */
        link = NULL;
    else if (stream->ring && size)
        stream->sent = stream->packed += packet_stands_for(packet);
    pthread_mutex_unlock(&stream->lock);
    return link ? send_packet(stream, link, packet, size) : 0;
}

/* Relay's thread. QEMU's end of the connection says nothing: its MIGRATION events do. */
static int forward(void *arg, const void *data, size_t size)
{
    struct stream *stream = arg;
    if (!data)
        return stream->encoder ? send_packed_rest(stream) : 0;
    if (stream->holes && holes_back(stream->holes, data, size, NULL) < 0)
        return -EPIPE;
    pthread_mutex_lock(&stream->lock);
    while (size && !stream->ring && !stream->link && !stream->stopped && !stream->discard)
        pthread_cond_wait(&stream->changed, &stream->lock);
    struct link *link = stream->link;
    int r = stream->ring ? keep_and_send(stream, data, size) : stream->stopped ? -ECANCELED : 0;
    pthread_mutex_unlock(&stream->lock);
    if (r < 0 || stream->ring || !link)
        return r;
    if (stream->encoder)
        return send_packed(stream, link, data, size);
    return size ? link_send(link, stream->sends, NULL, 0, data, size, NULL) : 0;
}

static int write_owed(struct stream *stream, struct err *err)
{
    size_t written = 0;
    int r =
        stream->owed_size ? relay_write(stream->relay, stream->owed, stream->owed_size, &written, err) : 0;
    stream->owed_size -= written;
    memmove(stream->owed, stream->owed + written, stream->owed_size);
    return r;
}

/* Beyond what the destination's QEMU asks for: neighbours of that, and a little of the working set at a time.
 * On the link's thread. */
static int ask_more(struct stream *stream, struct err *err)
{
    pthread_mutex_lock(&stream->lock);
    bool wide = stream->wide && stream->asked;
    uint64_t neighbours = MIN(stream->window.size / NEIGHBOURS_SHARE / QSTREAM_PAGE_SIZE, MOST_NEIGHBOURS);
    pthread_mutex_unlock(&stream->lock);
    int r = write_owed(stream, err);
    while (r == 0 && wide) {
        stream->owed_size = asked_neighbours(stream->asked, neighbours, stream->owed);
        if (!stream->owed_size && stream->preferred)
            stream->owed_size = asked_next(stream->asked, stream->preferred, &stream->preferred_next,
                                           PREFERRED_AT_ONCE, stream->owed);
        if (!stream->owed_size)
            break;
        r = write_owed(stream, err);
    }
    return r;
}

int stream_peer_took(struct stream *stream, const uint8_t *payload, size_t size, struct err *err)
{
    if (!stream || (!stream->ring && !stream->encoder) || size != 8)
        return err_set(err, EPROTO, "a \"%s\" out of turn", frame_type_name(FRAME_TAKEN));
    uint64_t taken = get_le64(payload);
    pthread_mutex_lock(&stream->lock);
    bool possible = taken >= stream->acked && taken <= stream->sent;
    if (possible)
        stream->acked = taken;
    if (possible && stream->wide)
        window_taken(&stream->window, taken, clock_now());
    pthread_cond_broadcast(&stream->changed);
    pthread_mutex_unlock(&stream->lock);
    return possible ? ask_more(stream, err)
                    : err_set(err, EPROTO, "the peer took bytes of QEMU's stream that were not sent");
}

/* --- to QEMU -------------------------------------------------------------------------------------------- */

/* What QEMU has heard from the destination's, or as if from there. */
static void read_along(struct stream *stream, const void *back, size_t size)
{
    if (!stream->asked)
        return;
    asked_hear(stream->asked, back, size);
    pthread_mutex_lock(&stream->lock);
    stream->reach = MAX(stream->reach, stream->head + REACH);
    pthread_cond_broadcast(&stream->changed);
    pthread_mutex_unlock(&stream->lock);
}

/* The return path at the source. Ours stand between the destination's, of which `ret_written` counts bytes.
 */
static int write_back(struct stream *stream, const void *data, size_t size, size_t *ret_written,
                      struct err *err)
{
    int r = write_owed(stream, err);
    if (r < 0)
        return r;
    r = relay_write(stream->relay, data, size, ret_written, err);
    read_along(stream, data, *ret_written);
    return r < 0 ? r : ask_more(stream, err);
}

/* --- at the destination ------------------------------------------------------------------------------------
 */

static int write_to_relay(void *arg, const void *data, size_t size, size_t *ret_written, struct err *err)
{
    return relay_write(arg, data, size, ret_written, err);
}

static int write_to_qemu(void *arg, const void *data, size_t size, size_t *ret_written, struct err *err)
{
    struct stream *stream = arg;
    if (!stream->timer)
        return relay_write(stream->relay, data, size, ret_written, err);
    pthread_mutex_lock(&stream->timer_lock);
    bool over = timer_is_over(stream->timer);
    int r = over ? 0 : timer_take(stream->timer, data, size, err);
    const char *strange = timer_strange(stream->timer);
    if (strange && !stream->timer_told)
        log_warning("the guest's clock stays behind by this move's pause: %s", strange);
    stream->timer_told = strange;
    pthread_mutex_unlock(&stream->timer_lock);
    if (over)
        return relay_write(stream->relay, data, size, ret_written, err);
    *ret_written = r == 0 ? size : 0;
    return r;
}

int stream_take(struct stream *stream, struct link *link, const void *data, size_t size, struct err *err)
{
    size_t written = 0;
    int r;
    if (stream->holes) {
        r = holes_take(stream->holes, data, size, err);
        written = size;
    } else if (stream->direct) {
        r = direct_take(stream->direct, data, size, err);
        written = size;
    } else if (stream->timer) {
        r = write_to_qemu(stream, data, size, &written, err);
    } else {
        r = write_back(stream, data, size, &written, err);
    }
    uint64_t taken = atomic_fetch_add(&stream->taken, written) + written;
    if (r < 0 || !stream->tells || taken - stream->told < (stream->ring ? TELL_LASTING : TELL))
        return r;
    uint8_t bytes[8];
    put_le64(bytes, taken);
    stream->told = taken;
    return link_send(link, FRAME_TAKEN, bytes, sizeof bytes, NULL, 0, err);
}

int stream_take_packed(struct stream *stream, struct link *link, const void *packet, size_t size,
                       struct err *err)
{
    const uint8_t *data;
    size_t data_size;
    if (!stream->decoder)
        return err_set(err, EPROTO, "a \"%s\" out of turn", frame_type_name(FRAME_PACKED));
    stream->tells = true;
    int r = decoder_take(stream->decoder, packet, size, &data, &data_size, err);
    return r < 0 ? r : stream_take(stream, link, data, data_size, err);
}

int stream_set_clock(struct stream *stream, timer_shift_fn *shift, void *arg, struct err *err)
{
    return timer_new(write_to_relay, stream->relay, shift, arg, &stream->timer, err);
}

int stream_let_go(struct stream *stream, struct err *err)
{
    pthread_mutex_lock(&stream->timer_lock);
    int r = stream->timer ? timer_let_go(stream->timer, err) : 0;
    pthread_mutex_unlock(&stream->timer_lock);
    return r;
}

int stream_finish(struct stream *stream, struct err *err)
{
    pthread_mutex_lock(&stream->timer_lock);
    int r = stream->timer ? timer_finish(stream->timer, err) : 0;
    pthread_mutex_unlock(&stream->timer_lock);
    return r;
}

/* Whoever asks watches over a QEMU that may not read any more: it must not wait for the one who writes. */
bool stream_is_awaited(struct stream *stream)
{
    if (pthread_mutex_trylock(&stream->timer_lock) != 0)
        return false;
    bool holds = stream->timer && timer_holds(stream->timer);
    pthread_mutex_unlock(&stream->timer_lock);
    return holds && relay_is_read(stream->relay);
}

int stream_keep_holes(struct stream *stream, const char *block, uint64_t size, struct err *err)
{
    struct holes *holes;
    int r = holes_new(block, size, write_to_qemu, stream, &holes, err);
    if (r == 0)
        stream->holes = holes;
    return r;
}

int stream_put_directly(struct stream *stream, const char *block, int ram, uint64_t size, struct err *err)
{
    return direct_new(block, ram, size, write_to_qemu, stream, &stream->direct, err);
}

bool stream_faults(struct stream *stream, struct faults *ret)
{
    return stream && stream->holes && holes_faults(stream->holes, ret);
}

void stream_touched(struct stream *stream, struct workset *workset)
{
    if (stream && stream->holes)
        holes_asked(stream->holes, workset);
    if (stream && stream->again)
        again_add(stream->again, workset);
}

uint8_t *stream_blocks(struct stream *stream, size_t *ret_size, uint32_t *ret_section)
{
    return stream && stream->holes ? holes_blocks(stream->holes, ret_size, ret_section) : NULL;
}

void stream_widen(struct stream *stream, uint64_t path)
{
    pthread_mutex_lock(&stream->lock);
    window_init(&stream->window, MIN(MAX(path, NARROW), RING), RING);
    window_restart(&stream->window, stream->sent);
    stream->wide = true;
    pthread_cond_broadcast(&stream->changed);
    pthread_mutex_unlock(&stream->lock);
}

void stream_discard(struct stream *stream)
{
    pthread_mutex_lock(&stream->lock);
    stream->discard = true;
    stream->link = NULL;
    pthread_cond_broadcast(&stream->changed);
    pthread_mutex_unlock(&stream->lock);
}

int stream_inject(struct stream *stream, const void *data, size_t size, struct err *err)
{
    size_t written = 0;
    int r = relay_write(stream->relay, data, size, &written, err);
    read_along(stream, data, written);
    return r;
}

/* --- connections ---------------------------------------------------------------------------------------- */

int stream_attach(struct stream *stream, struct link *link, uint64_t peer_taken, struct err *err)
{
    pthread_mutex_lock(&stream->lock);
    uint64_t most = stream->ring && stream->encoder ? stream->packed : stream->head;
    bool possible = peer_taken >= stream->acked && peer_taken <= most && !stream->sending;
    if (possible) {
        stream->acked = stream->sent = peer_taken;
        window_restart(&stream->window, peer_taken);
        stream->told = atomic_load(&stream->taken);
        stream->link = link;
        pthread_cond_broadcast(&stream->changed);
        relay_kick(stream->relay);
    }
    pthread_mutex_unlock(&stream->lock);
    return possible ? 0
                    : err_set(err, EPROTO, "the peer cannot have taken %llu bytes of QEMU's stream",
                              (unsigned long long)peer_taken);
}

void stream_interrupt(struct stream *stream)
{
    if (!stream)
        return;
    if (!stream->ring) {
        stream_stop(stream);
        relay_join(stream->relay);
        return;
    }
    relay_interrupt(stream->relay, true);
    pthread_mutex_lock(&stream->lock);
    stream->link = NULL;
    while (stream->sending)
        pthread_cond_wait(&stream->changed, &stream->lock);
    pthread_mutex_unlock(&stream->lock);
}

void stream_detach(struct stream *stream)
{
    if (stream && stream->ring)
        relay_interrupt(stream->relay, false);
}

bool stream_is_lasting(const struct stream *stream)
{
    return stream && stream->ring;
}

uint64_t stream_taken(const struct stream *stream)
{
    return stream ? atomic_load(&stream->taken) : 0;
}

uint64_t stream_bytes(const struct stream *stream)
{
    return stream ? relay_bytes(stream->relay) : 0;
}

struct stream_count stream_count(struct stream *stream)
{
    if (!stream)
        return (struct stream_count){0};
    pthread_mutex_lock(&stream->lock);
    struct stream_count count = stream->count;
    pthread_mutex_unlock(&stream->lock);
    if (!stream->encoder)
        count.sent = stream_bytes(stream);
    return count;
}

/* --- life ----------------------------------------------------------------------------------------------- */

static struct stream *stream_new(enum frame_type sends, bool lasting, struct err *err)
{
    struct stream *stream = calloc(1, sizeof *stream);
    if (stream && lasting)
        stream->ring = malloc(RING);
    if (!stream || (lasting && !stream->ring)) {
        free(stream);
        err_set(err, ENOMEM, "out of memory for QEMU's stream");
        return NULL;
    }
    stream->sends = sends;
    stream->tells = lasting;
    window_init(&stream->window, NARROW, RING);
    pthread_mutex_init(&stream->lock, NULL);
    pthread_mutex_init(&stream->timer_lock, NULL);
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&stream->changed, &attr);
    pthread_condattr_destroy(&attr);
    return stream;
}

/* `r` is what came of its relay. */
static int opened(struct stream *stream, int r, struct stream **ret)
{
    if (r < 0) {
        stream_free(stream);
        return r;
    }
    if (stream->ring)
        relay_keep_short(stream->relay);
    *ret = stream;
    return 0;
}

int stream_listen(const char *path, uid_t uid, bool lasting, struct stream **ret, struct err *err)
{
    struct stream *stream = stream_new(FRAME_STREAM, lasting, err);
    int r = stream ? relay_listen(path, uid, forward, stream, &stream->relay, err) : -ENOMEM;
    return opened(stream, r, ret);
}

int stream_connect(const char *path, bool lasting, struct stream **ret, struct err *err)
{
    struct stream *stream = stream_new(FRAME_BACK, lasting, err);
    int r = stream ? relay_connect(path, forward, stream, &stream->relay, err) : -ENOMEM;
    return opened(stream, r, ret);
}

int stream_adopt(int fd, enum frame_type sends, const void *first, size_t first_size,
                 const struct stream_ram *ram, struct stream **ret, struct err *err)
{
    struct stream *stream = stream_new(sends, true, err);
    if (!stream) {
        close(fd);
        return -ENOMEM;
    }
    int r = ram ? stream_keep_holes(stream, ram->block, ram->size, err) : 0;
    if (r < 0)
        close(fd);
    if (r == 0 && ram)
        holes_goes_on(stream->holes, ram->section);
    if (r == 0) /* with all of the above in place: it begins at once */
        r = relay_adopt(fd, first, first_size, forward, stream, &stream->relay, err);
    if (r < 0)
        stream_free(stream);
    else
        *ret = stream;
    return r;
}

int stream_pack(struct stream *stream, struct known *known, const struct stream_ahead *ahead, struct err *err)
{
    assert(!stream->ring == (ahead != NULL));
    if (ahead)
        stream->ahead = *ahead;
    stream->expansion = 1;
    return encoder_new(known, &stream->encoder, err);
}

static void note_asked(void *arg, const uint8_t *block, uint64_t page)
{
    asked_came(arg, block, page);
}

int stream_hold(struct stream *stream, const char *block, uint64_t size, struct err *err)
{
    assert(stream->ring && stream->encoder);
    int r = asked_new(block, size, &stream->asked, err);
    if (r < 0)
        return r;
    stream->let_next = HOLD_LEAST;
    encoder_watch(stream->encoder, note_asked, stream->asked);
    return 0;
}

static void note_again(void *arg, const uint8_t *block, uint64_t page)
{
    again_came(arg, block, page);
}

int stream_notice(struct stream *stream, const char *block, uint64_t size, struct err *err)
{
    assert(!stream->ring && stream->encoder);
    int r = again_new(block, size, &stream->again, err);
    if (r == 0)
        encoder_watch(stream->encoder, note_again, stream->again);
    return r;
}

int stream_prefer(struct stream *stream, const struct workset *workset, struct err *err)
{
    assert(stream->asked);
    return workset_copy(workset, &stream->preferred, err);
}

void stream_forget_known(struct stream *stream)
{
    pthread_mutex_lock(&stream->lock);
    stream->forget = true;
    pthread_mutex_unlock(&stream->lock);
}

int stream_unpack(struct stream *stream, codec_page_fn *page, void *arg, struct err *err)
{
    return decoder_new(page, arg, &stream->decoder, err);
}

int stream_admit(struct stream *stream, struct err *err)
{
    return relay_admit(stream->relay, err);
}

void stream_stop(struct stream *stream)
{
    if (!stream)
        return;
    pthread_mutex_lock(&stream->lock);
    stream->stopped = true;
    pthread_cond_broadcast(&stream->changed);
    pthread_mutex_unlock(&stream->lock);
    relay_stop(stream->relay);
}

void stream_free(struct stream *stream)
{
    if (!stream)
        return;
    if (stream->relay)
        stream_stop(stream);
    relay_free(stream->relay);
    encoder_free(stream->encoder);
    again_free(stream->again);
    asked_free(stream->asked);
    workset_free(stream->preferred);
    decoder_free(stream->decoder);
    pthread_cond_destroy(&stream->changed);
    pthread_mutex_destroy(&stream->lock);
    pthread_mutex_destroy(&stream->timer_lock);
    holes_free(stream->holes);
    direct_free(stream->direct);
    timer_free(stream->timer);
    free(stream->ring);
    free(stream);
}
