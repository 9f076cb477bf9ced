/* SPDX-License-Identifier: Apache-2.0
 *
 * nbd_connection: what lies between one client's socket and the disk.
 *
 *   recv -> [receive buffer] -> every whole request in it, in order -> [send buffer] -> one send
 *
 * A deep queue of small requests thus costs two system calls of the socket for the whole batch instead of two
 * or three for each request; at queue depth 1 a batch is one request. The payload of a small WRITE is written
 * straight from the receive buffer; that of a large one as it arrives, so that no request needs more memory
 * than the two buffers and receiving overlaps with the client's sending.
 *
 * Requests of one connection are carried out in order, one at a time: a FLUSH covers every write before it
 * without further ado. Other connections have threads of their own.
 *
 * The exception is a split disk (split.h): a request that needs missing blocks is parked (nbd_park.h), and
 * the connection goes on with the next. When blocks have come the parked ones are tried again, oldest first;
 * their replies are out of order, as the protocol allows. All that a batch needs is told to the fetcher
 * before the first of it is served, so that fetches overlap. A FLUSH owes nothing to a parked write: it has
 * not been answered. What cannot be parked, a long WRITE or when there is no room, holds up its connection,
 * where the parked ones are still served. Whatever is parked when the connection ends is dropped unanswered,
 * on purpose: QEMU asks again on its next connection, while it would give the guest an error that we send.
 * What has waited for NBD_PARK_NSEC gets one, so that the guest stands still until the blocks come, instead
 * of working with a disk that does not answer.
 *
 * A client that breaks the protocol loses its connection; one that asks for something impossible gets the
 * specification's error. A client that stops reading its replies, or stops in the middle of a request, holds
 * up its own thread only. While the disk is frozen a write blocks the thread inside disk_write.
 */
#include "disk/nbd_connection.h"

#include "base/clock.h"
#include "base/log.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>

/* A WRITE up to this size waits in the receive buffer until it is whole. */
#define INLINE_WRITE (64U << 10)
/* A longer one is written in pieces that end on multiples of this: then the page cache gets folios of this
 * size and not a mixture of small ones (image.c). */
#define LONG_PIECE (64U << 10)
#define INTEND_MAX 128
#define SEND_BUFFER (2 << 20)
#define PIPE_SIZE (1 << 20) /* what the kernel lets everybody have (fs.pipe-max-size) */

/* What a request leads to, beside a negative errno. */
enum { GO_ON, NOT_WHOLE, LEAVE };

static int negotiate(struct nbd_connection *connection, const struct nbd_export *export)
{
    struct nbd_channel *channel = &connection->channel;
    struct nbd_handshake handshake;
    struct nbd_output output;
    uint8_t greeting[NBD_GREETING_SIZE];
    nbd_handshake_init(&handshake, export, greeting);
    int r = nbd_channel_flush(channel, greeting, sizeof greeting);
    while (r == 0) {
        size_t used;
        enum nbd_step step = nbd_handshake_step(&handshake, nbd_channel_data(channel),
                                                nbd_channel_pending(channel), &used, &output);
        nbd_channel_consume(channel, used);
        if (step == NBD_STEP_MORE) {
            r = nbd_channel_fill(channel, nbd_channel_pending(channel) + 1);
            continue;
        }
        r = nbd_channel_flush(channel, output.bytes, output.size);
        if (step == NBD_STEP_CLOSE)
            return r < 0 ? r : -EPIPE;
        if (step == NBD_STEP_GO) {
            connection->session = handshake.session;
            return r;
        }
    }
    return r;
}

/* A long WRITE goes to the disk in the pieces in which it comes, cut at block boundaries. After an error the
 * rest is only thrown away. FUA: the last piece's would not cover those before it, so the whole is flushed.
 */
static int write_long(struct nbd_connection *connection, const struct nbd_request *request)
{
    struct nbd_channel *channel = &connection->channel;
    uint64_t offset = request->offset, end = offset + request->length;
    int r = nbd_channel_flush(channel, NULL, 0);
    while (r == 0 && offset < end) {
        uint64_t to_boundary = MIN(LONG_PIECE - offset % LONG_PIECE, end - offset);
        r = nbd_channel_fill(channel, to_boundary);
        if (r < 0)
            return r;
        uint64_t size = MIN(nbd_channel_pending(channel), end - offset);
        if (offset + size < end)
            size -= (offset + size) % LONG_PIECE;
        int error = disk_write(connection->disk, nbd_channel_data(channel), size, offset, false);
        nbd_channel_consume(channel, size);
        offset += size;
        if (error < 0) {
            r = nbd_channel_discard(channel, end - offset);
            return r < 0 ? r : nbd_serve_reply(connection, request, nbd_error_from(error));
        }
    }
    if (r < 0)
        return r;
    int error = request->flags & NBD_CMD_FLAG_FUA ? disk_flush(connection->disk) : 0;
    return nbd_serve_reply(connection, request, nbd_error_from(error));
}

static int serve_write(struct nbd_connection *connection, const struct nbd_request *request,
                       const uint8_t *data)
{
    bool fua = request->flags & NBD_CMD_FLAG_FUA;
    int error =
        request->length > 0 ? disk_write(connection->disk, data, request->length, request->offset, fua) : 0;
    return nbd_serve_reply(connection, request, nbd_error_from(error));
}

static int serve_zero(struct nbd_connection *connection, const struct nbd_request *request)
{
    connection->tally.writes++;
    unsigned flags = (request->flags & NBD_CMD_FLAG_NO_HOLE ? DISK_ZERO_NO_HOLE : 0U) |
                     (request->flags & NBD_CMD_FLAG_FAST_ZERO ? DISK_ZERO_FAST : 0U) |
                     (request->flags & NBD_CMD_FLAG_FUA ? DISK_ZERO_FUA : 0U);
    int error = request->length ? disk_zero(connection->disk, request->length, request->offset, flags) : 0;
    return nbd_serve_reply(connection, request, nbd_error_from(error));
}

static int serve_trim(struct nbd_connection *connection, const struct nbd_request *request)
{
    connection->tally.trims++;
    bool fua = request->flags & NBD_CMD_FLAG_FUA;
    int error = request->length ? disk_trim(connection->disk, request->length, request->offset, fua) : 0;
    return nbd_serve_reply(connection, request, nbd_error_from(error));
}

static int serve_flush(struct nbd_connection *connection, const struct nbd_request *request)
{
    connection->tally.flushes++;
    return nbd_serve_reply(connection, request, nbd_error_from(disk_flush(connection->disk)));
}

/* Only advice: that the kernel does not take it is no error. */
static int serve_cache(struct nbd_connection *connection, const struct nbd_request *request)
{
    if (request->length > 0)
        posix_fadvise(disk_fd(connection->disk), (off_t)request->offset, request->length,
                      POSIX_FADV_WILLNEED);
    return nbd_serve_reply(connection, request, NBD_SUCCESS);
}

/* `data` is the payload of a WRITE that is whole, else NULL. */
static int dispatch(struct nbd_connection *connection, const struct nbd_request *request, const uint8_t *data)
{
    switch ((enum nbd_command)request->type) {
    case NBD_CMD_READ:
        return nbd_serve_read(connection, request);
    case NBD_CMD_WRITE:
        connection->tally.writes++;
        connection->tally.written_bytes += request->length;
        return data ? serve_write(connection, request, data) : write_long(connection, request);
    case NBD_CMD_FLUSH:
        return serve_flush(connection, request);
    case NBD_CMD_TRIM:
        return serve_trim(connection, request);
    case NBD_CMD_CACHE:
        return serve_cache(connection, request);
    case NBD_CMD_WRITE_ZEROES:
        return serve_zero(connection, request);
    case NBD_CMD_BLOCK_STATUS:
        return nbd_serve_block_status(connection, request);
    case NBD_CMD_DISC:
        break;
    }
    return LEAVE;
}

/* --- requests that wait for missing blocks ------------------------------------------------------------- */

static int retry_parked(struct nbd_connection *connection)
{
    struct nbd_parking *parking = &connection->parking;
    struct nbd_parked *at = NULL, *parked;
    int r = 0;
    while (r == 0 && (parked = nbd_parking_take(parking, &at))) {
        r = dispatch(connection, &parked->request, parked->data);
        free(parked);
    }
    nbd_parking_report(parking);
    return r;
}

/* QEMU stops the guest on the error and asks again when it goes on (rerror=stop, werror=stop). */
static int give_up_parked(struct nbd_connection *connection)
{
    struct nbd_parked *parked;
    int r = 0;
    while (r == 0 && (parked = nbd_parking_expired(&connection->parking, clock_now()))) {
        r = nbd_serve_reply(connection, &parked->request, NBD_EIO);
        free(parked);
    }
    nbd_parking_report(&connection->parking);
    return r;
}

static void drain_wake(struct nbd_connection *connection)
{
    uint64_t count;
    ssize_t n = read(connection->parking.wake, &count, sizeof count);
    (void)n; /* EAGAIN: it did not ring */
}

/* Until the disk rings or, with `client`, the client sends. Serves what was parked. Returns 1 when the client
 * has sent. */
static int wait_for_blocks(struct nbd_connection *connection, bool client)
{
    int r = nbd_channel_flush(&connection->channel, NULL, 0);
    struct pollfd pollers[] = {
        {.fd = connection->parking.wake, .events = POLLIN},
        {.fd = connection->channel.fd, .events = client ? POLLIN | POLLRDHUP : POLLRDHUP},
    };
    int timeout = nbd_parking_timeout(&connection->parking);
    if (r < 0 || (poll(pollers, ARRAY_SIZE(pollers), timeout) < 0 && errno != EINTR))
        return r < 0 ? r : -errno;
    if (pollers[1].revents & (POLLRDHUP | POLLHUP | POLLERR) && !client)
        return -ESHUTDOWN; /* the server stops, or the client has gone: nobody waits any more */
    if (pollers[0].revents) {
        drain_wake(connection);
        r = retry_parked(connection);
    }
    if (r == 0)
        r = give_up_parked(connection);
    return r < 0 ? r : pollers[1].revents != 0;
}

/* The request lacks blocks. Returns 1 when it was parked, 0 when it may be carried out now. */
static int park(struct nbd_connection *connection, const struct nbd_request *request, const uint8_t *data,
                unsigned told)
{
    struct nbd_parking *parking = &connection->parking;
    int r = nbd_parking_watch(parking);
    bool may_park = request->type != NBD_CMD_WRITE || (data && request->length <= INLINE_WRITE);
    if (r == 0 && may_park && nbd_parking_add(parking, request, data, told) == 0)
        return 1;
    parking->in_place = clock_now();
    nbd_parking_report(parking);
    while (r == 0 && nbd_parking_lacks(parking, request, &told)) {
        r = wait_for_blocks(connection, false);
        /* In the meantime there may be room. */
        if (r == 0 && may_park && nbd_parking_lacks(parking, request, &told) &&
            nbd_parking_add(parking, request, data, told) == 0)
            r = 1;
    }
    parking->in_place = 0;
    nbd_parking_report(parking);
    return r;
}

/* --- batches ------------------------------------------------------------------------------------------- */

/* Serves a request whose header has been consumed. */
static int serve_checked(struct nbd_connection *connection, const struct nbd_request *request)
{
    struct nbd_channel *channel = &connection->channel;
    bool whole = request->type == NBD_CMD_WRITE && request->length <= nbd_channel_pending(channel);
    const uint8_t *data = whole ? nbd_channel_data(channel) : NULL;
    unsigned told = connection->announced > 0 ? connection->announced_turn : 0;
    int r = 0;
    if (nbd_parking_lacks(&connection->parking, request, &told))
        r = park(connection, request, data, told);
    if (r == 0)
        r = dispatch(connection, request, data);
    if (r < 0)
        return r;
    if (whole)
        nbd_channel_consume(channel, request->length);
    return GO_ON;
}

/* Takes the request at the head of the receive buffer, unless it must wait there for the rest of its payload.
 */
static int serve_request(struct nbd_connection *connection)
{
    struct nbd_channel *channel = &connection->channel;
    struct nbd_request request;
    if (nbd_channel_pending(channel) < NBD_REQUEST_SIZE)
        return NOT_WHOLE;
    if (!nbd_request_parse(nbd_channel_data(channel), &request))
        return -EPROTO;
    bool payload = request.type == NBD_CMD_WRITE;
    if (payload && request.length <= INLINE_WRITE &&
        nbd_channel_pending(channel) < NBD_REQUEST_SIZE + (size_t)request.length)
        return NOT_WHOLE;

    nbd_channel_consume(channel, NBD_REQUEST_SIZE);
    if (request.type == NBD_CMD_DISC)
        return LEAVE;
    enum nbd_error error = nbd_request_check(&request, &connection->session);
    int r;
    if (!error) {
        r = serve_checked(connection, &request);
    } else {
        r = payload ? nbd_channel_discard(channel, request.length) : 0;
        r = r < 0 ? r : nbd_serve_reply(connection, &request, error);
    }
    connection->announced -= connection->announced > 0;
    return r;
}

/* Steps over the request at *at; false where there is none that is whole, but for its payload. */
static bool next_request(const uint8_t **at, size_t *left, struct nbd_request *ret)
{
    if (*left < NBD_REQUEST_SIZE || !nbd_request_parse(*at, ret))
        return false;
    size_t size = NBD_REQUEST_SIZE + (ret->type == NBD_CMD_WRITE ? (size_t)ret->length : 0);
    size = MIN(size, *left);
    *at += size;
    *left -= size;
    return true;
}

/* Tells the fetcher what all requests in the receive buffer lack. One alone does as well by itself. */
static void announce_batch(struct nbd_connection *connection)
{
    const uint8_t *at = nbd_channel_data(&connection->channel);
    size_t left = nbd_channel_pending(&connection->channel);
    struct nbd_request request;
    connection->announced = connection->announced_turn = 0;
    if (!disk_is_split(connection->disk) || left < (size_t)2 * NBD_REQUEST_SIZE)
        return;
    for (; next_request(&at, &left, &request); connection->announced++) {
        unsigned told = 0;
        if (nbd_request_check(&request, &connection->session) == NBD_SUCCESS &&
            nbd_parking_lacks(&connection->parking, &request, &told) && connection->announced_turn == 0)
            connection->announced_turn = told;
    }
}

/* Declares the writes that wait in the receive buffer, so that they share one intent record. */
static void intend_batch(struct nbd_connection *connection)
{
    struct disk_range ranges[INTEND_MAX];
    size_t count = 0;
    const uint8_t *at = nbd_channel_data(&connection->channel);
    size_t left = nbd_channel_pending(&connection->channel);
    struct nbd_request request;
    while (count < INTEND_MAX && next_request(&at, &left, &request)) {
        if (nbd_request_modifies(&request) && request.length > 0 &&
            nbd_request_check(&request, &connection->session) == NBD_SUCCESS)
            ranges[count++] = (struct disk_range){request.offset, request.length};
    }
    /* One alone does as well by itself. An error comes back with the writes, which try again. */
    if (count > 1)
        disk_intend(connection->disk, ranges, count);
}

/* Moves our figures to the server's totals; the number of errors and so on is nobody's synchronisation. */
static void publish_tally(struct nbd_connection *connection)
{
    struct nbd_statistics *totals = connection->totals, *tally = &connection->tally;
    __atomic_fetch_add(&totals->reads, tally->reads, __ATOMIC_RELAXED);
    __atomic_fetch_add(&totals->writes, tally->writes, __ATOMIC_RELAXED);
    __atomic_fetch_add(&totals->flushes, tally->flushes, __ATOMIC_RELAXED);
    __atomic_fetch_add(&totals->trims, tally->trims, __ATOMIC_RELAXED);
    __atomic_fetch_add(&totals->read_bytes, tally->read_bytes, __ATOMIC_RELAXED);
    __atomic_fetch_add(&totals->written_bytes, tally->written_bytes, __ATOMIC_RELAXED);
    __atomic_fetch_add(&totals->errors, tally->errors, __ATOMIC_RELAXED);
    *tally = (struct nbd_statistics){0};
}

static int serve_batch(struct nbd_connection *connection)
{
    announce_batch(connection);
    if (!connection->session.read_only)
        intend_batch(connection);
    int r;
    do
        r = serve_request(connection);
    while (r == GO_ON);
    publish_tally(connection);
    if (r < 0 && r != -EPROTO)
        return r;
    int flushed = nbd_channel_flush(&connection->channel, NULL, 0);
    return flushed < 0 ? flushed : r;
}

static int transmit(struct nbd_connection *connection)
{
    for (;;) {
        int r = serve_batch(connection);
        if (r != NOT_WHOLE)
            return MIN(r, 0);
        r = connection->parking.count > 0 ? wait_for_blocks(connection, true) : 1;
        if (r > 0)
            r = nbd_channel_fill(&connection->channel, nbd_channel_pending(&connection->channel) + 1);
        if (r < 0)
            return r == -EPIPE ? 0 : r;
    }
}

/* What makes long reads fast, and is no loss when it cannot be had: a pipe to splice through, and a send
 * buffer in which a whole piece finds room, so that the two sides do not wake each other at every few pages.
 */
static void prepare_long_reads(struct nbd_connection *connection, const struct nbd_export *export)
{
    int size = SEND_BUFFER;
    if (setsockopt(connection->channel.fd, SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof size) < 0)
        setsockopt(connection->channel.fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
    if (!connection->session.structured || export->direct || pipe2(connection->pipe, O_CLOEXEC) < 0)
        return;
    fcntl(connection->pipe[1], F_SETPIPE_SZ, PIPE_SIZE);
}

int nbd_connection_serve(struct disk *disk, const struct nbd_export *export, int handshake_msec, int fd,
                         struct nbd_statistics *totals)
{
    struct nbd_connection connection = {.disk = disk, .totals = totals, .pipe = {-1, -1}};
    int r = nbd_channel_init(&connection.channel, fd);
    if (r < 0)
        return r;
    if ((r = nbd_parking_init(&connection.parking, disk)) < 0) {
        nbd_channel_done(&connection.channel);
        return r;
    }
    connection.channel.deadline = clock_now() + handshake_msec * NSEC_PER_MSEC;
    r = negotiate(&connection, export);
    if (r == 0) {
        connection.channel.deadline = 0;
        prepare_long_reads(&connection, export);
        r = transmit(&connection);
    }
    nbd_parking_done(&connection.parking);
    close_cleanup(&connection.pipe[0]);
    close_cleanup(&connection.pipe[1]);
    nbd_channel_done(&connection.channel);
    return r;
}
