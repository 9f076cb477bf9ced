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
 */
#include "move/stream.h"

#include "base/endian.h"
#include "base/macro.h"
#include "move/fault.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#define RING (8U * MiB)
#define NARROW (512U * KiB)
#define TELL (128U * KiB) /* bytes taken until the peer is told */
#define PIECE (256U * KiB)

struct stream {
    struct relay *relay;
    enum frame_type sends;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct link *link; /* NULL: none, or it has failed */
    bool stopped, discard;
    uint8_t *ring; /* NULL: it does not last */
    size_t window; /* how much of it is used */
    uint64_t acked, sent, head;
    bool sending;
    _Atomic uint64_t taken;
    _Atomic uint64_t told;
};

/* --- from QEMU ---------------------------------------------------------------------------------------------
 */

/* With the lock held, which is given up in between. */
static void send_kept(struct stream *stream)
{
    while (stream->link && stream->sent < stream->head) {
        struct link *link = stream->link;
        size_t at = stream->sent % RING, size = MIN(MIN(stream->head - stream->sent, RING - at), PIECE);
        stream->sending = true;
        stream->sent += size;
        pthread_mutex_unlock(&stream->lock);
        int r = link_send(link, stream->sends, NULL, 0, stream->ring + at, size, NULL);
        pthread_mutex_lock(&stream->lock);
        stream->sending = false;
        if (r < 0 && stream->link == link)
            stream->link = NULL;
        pthread_cond_broadcast(&stream->changed);
    }
}

/* With the lock held. */
static int keep_and_send(struct stream *stream, const uint8_t *data, size_t size)
{
    send_kept(stream);
    while (size && !stream->stopped && !stream->discard) {
        size_t at = stream->head % RING;
        size_t room = MIN(stream->window - (stream->head - stream->acked), RING - at);
        size_t some = MIN(size, room);
        if (!room) {
            pthread_cond_wait(&stream->changed, &stream->lock);
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

/* Relay's thread. QEMU's end of the connection says nothing: its MIGRATION events do. */
static int forward(void *arg, const void *data, size_t size)
{
    struct stream *stream = arg;
    if (!data)
        return 0;
    pthread_mutex_lock(&stream->lock);
    while (size && !stream->ring && !stream->link && !stream->stopped && !stream->discard)
        pthread_cond_wait(&stream->changed, &stream->lock);
    struct link *link = stream->link;
    int r = stream->ring ? keep_and_send(stream, data, size) : stream->stopped ? -ECANCELED : 0;
    pthread_mutex_unlock(&stream->lock);
    return r < 0 || stream->ring || !size || !link
               ? r
               : link_send(link, stream->sends, NULL, 0, data, size, NULL);
}

int stream_peer_took(struct stream *stream, const uint8_t *payload, size_t size, struct err *err)
{
    if (!stream || !stream->ring || size != 8)
        return err_set(err, EPROTO, "a \"%s\" out of turn", frame_type_name(FRAME_TAKEN));
    uint64_t taken = get_le64(payload);
    pthread_mutex_lock(&stream->lock);
    bool possible = taken >= stream->acked && taken <= stream->sent;
    if (possible)
        stream->acked = taken;
    pthread_cond_broadcast(&stream->changed);
    pthread_mutex_unlock(&stream->lock);
    return possible ? 0 : err_set(err, EPROTO, "the peer took bytes of QEMU's stream that were not sent");
}

/* --- to QEMU -----------------------------------------------------------------------------------------------
 */

int stream_take(struct stream *stream, struct link *link, const void *data, size_t size, struct err *err)
{
    size_t written = 0;
    int r = relay_write(stream->relay, data, size, &written, err);
    uint64_t taken = atomic_fetch_add(&stream->taken, written) + written;
    if (r < 0 || !stream->ring || taken - stream->told < TELL)
        return r;
    uint8_t bytes[8];
    put_le64(bytes, taken);
    stream->told = taken;
    return link_send(link, FRAME_TAKEN, bytes, sizeof bytes, NULL, 0, err);
}

void stream_widen(struct stream *stream)
{
    pthread_mutex_lock(&stream->lock);
    stream->window = RING;
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
    size_t written;
    return relay_write(stream->relay, data, size, &written, err);
}

/* --- connections -------------------------------------------------------------------------------------------
 */

int stream_attach(struct stream *stream, struct link *link, uint64_t peer_taken, struct err *err)
{
    pthread_mutex_lock(&stream->lock);
    bool possible = peer_taken >= stream->acked && peer_taken <= stream->head && !stream->sending;
    if (possible) {
        stream->acked = stream->sent = peer_taken;
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

/* --- life --------------------------------------------------------------------------------------------------
 */

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
    stream->window = NARROW;
    pthread_mutex_init(&stream->lock, NULL);
    pthread_cond_init(&stream->changed, NULL);
    return stream;
}

int stream_listen(const char *path, uid_t uid, bool lasting, struct stream **ret, struct err *err)
{
    struct stream *stream = stream_new(FRAME_STREAM, lasting, err);
    int r = stream ? relay_listen(path, uid, forward, stream, &stream->relay, err) : -ENOMEM;
    if (r < 0)
        stream_free(stream);
    else
        *ret = stream;
    return r;
}

int stream_connect(const char *path, bool lasting, struct stream **ret, struct err *err)
{
    struct stream *stream = stream_new(FRAME_BACK, lasting, err);
    int r = stream ? relay_connect(path, forward, stream, &stream->relay, err) : -ENOMEM;
    if (r < 0)
        stream_free(stream);
    else
        *ret = stream;
    return r;
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
    pthread_cond_destroy(&stream->changed);
    pthread_mutex_destroy(&stream->lock);
    free(stream->ring);
    free(stream);
}
