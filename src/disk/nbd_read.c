/* SPDX-License-Identifier: Apache-2.0
 *
 * nbd_read: the replies that carry what is on the disk.
 *
 * With structured replies a READ is answered piece by piece through the send buffer, so its size costs no
 * memory, and each piece is read before its header is written, so an I/O error is still told as one. What is
 * known to be zero goes as a hole chunk: for long reads the file system is asked where the holes are; short
 * ones are read and looked at, which is cheaper than the question.
 *
 * A simple reply, or a structured one that must not be fragmented, says "success" before its data: there the
 * whole READ is read first, and once more to be sent when the send buffer is too small for it. So no READ
 * costs memory: a client that takes no replies would keep it for ever.
 */
#include "base/zero.h"
#include "disk/heat.h"
#include "disk/nbd_connection.h"

#include <errno.h>
#include <fcntl.h>

/* From here on it pays to ask the file system for holes, and to send without copying. */
#define LONG_READ (64U << 10)
#define COPY_MAX \
    (NBD_BUFFER_SIZE - DISK_BLOCK) /* whole blocks that fit into the send buffer beside their header */
#define STATUS_MAX 1024U           /* descriptors in one reply; the client asks again from where they end */

int nbd_serve_reply(struct nbd_connection *connection, const struct nbd_request *request,
                    enum nbd_error error)
{
    bool structured = connection->session.structured &&
                      (request->type == NBD_CMD_READ || request->type == NBD_CMD_BLOCK_STATUS);
    uint8_t *at;
    int r = nbd_channel_reserve(&connection->channel, NBD_ERROR_CHUNK_SIZE, &at);
    if (r < 0)
        return r;
    connection->tally.errors += error != NBD_SUCCESS;
    if (!structured) {
        nbd_put_simple(at, request, error);
        nbd_channel_commit(&connection->channel, NBD_SIMPLE_SIZE);
    } else if (error) {
        nbd_put_error_chunk(at, request, error);
        nbd_channel_commit(&connection->channel, NBD_ERROR_CHUNK_SIZE);
    } else {
        nbd_put_chunk(at, request, NBD_REPLY_TYPE_NONE, true, 0);
        nbd_channel_commit(&connection->channel, NBD_CHUNK_SIZE);
    }
    return 0;
}

/* The header of a reply whose data is one piece: `at` has room for NBD_DATA_CHUNK_SIZE. Returns its size. */
static size_t put_header(struct nbd_connection *connection, const struct nbd_request *request, uint8_t *at)
{
    if (connection->session.structured) {
        nbd_put_data_chunk(at, request, true, request->offset, request->length);
        return NBD_DATA_CHUNK_SIZE;
    }
    nbd_put_simple(at, request, NBD_SUCCESS);
    return NBD_SIMPLE_SIZE;
}

/* Into the send buffer, which is empty, and away again: only whether it can be read. */
static enum nbd_error try_read(struct nbd_connection *connection, const struct nbd_request *request)
{
    uint64_t offset = request->offset, end = offset + request->length;
    enum nbd_error error = NBD_SUCCESS;
    for (uint64_t size; offset < end && !error; offset += size) {
        size = MIN(end - offset, COPY_MAX);
        error = nbd_error_from(disk_read(connection->disk, connection->channel.tx, size, offset));
    }
    return error;
}

/* An error that comes between the two readings finds the reply begun: the connection ends, as the
 * specification demands. */
static int read_whole_large(struct nbd_connection *connection, const struct nbd_request *request)
{
    struct nbd_channel *channel = &connection->channel;
    uint64_t offset = request->offset, end = offset + request->length;
    uint8_t *at;
    int r = nbd_channel_flush(channel, NULL, 0);
    if (r < 0)
        return r;
    enum nbd_error error = try_read(connection, request);
    if (error)
        return nbd_serve_reply(connection, request, error);
    if ((r = nbd_channel_reserve(channel, NBD_DATA_CHUNK_SIZE, &at)) < 0)
        return r;
    nbd_channel_commit(channel, put_header(connection, request, at));
    for (uint64_t size; offset < end; offset += size) {
        size = MIN(end - offset, COPY_MAX);
        if ((r = nbd_channel_reserve(channel, size, &at)) < 0 ||
            (r = disk_read(connection->disk, at, size, offset)) < 0)
            return r;
        nbd_channel_commit(channel, size);
    }
    return 0;
}

/* One header for all of it. */
static int read_whole(struct nbd_connection *connection, const struct nbd_request *request)
{
    size_t header = connection->session.structured ? NBD_DATA_CHUNK_SIZE : NBD_SIMPLE_SIZE;
    if (header + request->length > NBD_BUFFER_SIZE)
        return read_whole_large(connection, request);
    uint8_t *at;
    int r = nbd_channel_reserve(&connection->channel, header + request->length, &at);
    if (r < 0)
        return r;
    enum nbd_error error =
        nbd_error_from(disk_read(connection->disk, at + header, request->length, request->offset));
    if (error)
        return nbd_serve_reply(connection, request, error);
    put_header(connection, request, at);
    nbd_channel_commit(&connection->channel, header + request->length);
    return 0;
}

/* What one content chunk tells of. */
struct piece {
    uint64_t offset;
    uint32_t length;
    bool last; /* of the reply */
};

/* 1 when an error took the chunk's place, and the reply has thereby ended. */
static int put_data(struct nbd_connection *connection, const struct nbd_request *request,
                    const struct piece *piece)
{
    uint8_t *at;
    int r = nbd_channel_reserve(&connection->channel, NBD_DATA_CHUNK_SIZE + piece->length, &at);
    if (r < 0)
        return r;
    uint8_t *data = at + NBD_DATA_CHUNK_SIZE;
    enum nbd_error error = nbd_error_from(disk_read(connection->disk, data, piece->length, piece->offset));
    if (error) {
        r = nbd_serve_reply(connection, request, error);
        return r < 0 ? r : 1;
    }
    if (is_zero(data, piece->length)) {
        nbd_put_hole_chunk(at, request, piece->last, piece->offset, piece->length);
        nbd_channel_commit(&connection->channel, NBD_HOLE_CHUNK_SIZE);
    } else {
        nbd_put_data_chunk(at, request, piece->last, piece->offset, piece->length);
        nbd_channel_commit(&connection->channel, NBD_DATA_CHUNK_SIZE + piece->length);
    }
    return 0;
}

static int put_hole(struct nbd_connection *connection, const struct nbd_request *request,
                    const struct piece *piece)
{
    uint8_t *at;
    int r = nbd_channel_reserve(&connection->channel, NBD_HOLE_CHUNK_SIZE, &at);
    if (r < 0)
        return r;
    nbd_put_hole_chunk(at, request, piece->last, piece->offset, piece->length);
    nbd_channel_commit(&connection->channel, NBD_HOLE_CHUNK_SIZE);
    return 0;
}

/* Takes references to the page cache's pages into the pipe. Returns how many bytes; less than asked for when
 * the pipe is full, or when there is an error, which disk_read will meet again. */
static uint32_t collect(struct nbd_connection *connection, const struct piece *piece)
{
    uint32_t collected = 0;
    off_t offset = (off_t)piece->offset;
    while (collected < piece->length) {
        ssize_t n = splice(disk_fd(connection->disk), &offset, connection->pipe[1], NULL,
                           piece->length - collected, SPLICE_F_NONBLOCK);
        if (n <= 0)
            break;
        collected += (uint32_t)n;
    }
    return collected;
}

/* put_data for what is long enough: the data goes from the page cache to the socket without a copy. Until the
 * client has taken it, it shows later writes, which nobody can tell from writes that overtook the READ.
 * Shortens the piece to what was sent, perhaps to nothing. */
static int splice_data(struct nbd_connection *connection, const struct nbd_request *request,
                       struct piece *piece)
{
    uint8_t *at;
    uint32_t collected = collect(connection, piece);
    piece->last = piece->last && collected == piece->length;
    piece->length = collected;
    if (collected == 0)
        return 0;
    int r = nbd_channel_reserve(&connection->channel, NBD_DATA_CHUNK_SIZE, &at);
    if (r < 0)
        return r;
    nbd_put_data_chunk(at, request, piece->last, piece->offset, collected);
    nbd_channel_commit(&connection->channel, NBD_DATA_CHUNK_SIZE);
    return nbd_channel_splice(&connection->channel, connection->pipe[0], collected);
}

/* As put_data; may shorten the piece. */
static int put_piece(struct nbd_connection *connection, const struct nbd_request *request,
                     struct piece *piece, bool hole)
{
    if (hole)
        return put_hole(connection, request, piece);
    if (piece->length >= LONG_READ && connection->pipe[0] >= 0) {
        struct piece spliced = *piece;
        int r = splice_data(connection, request, &spliced);
        if (r < 0 || spliced.length > 0) {
            *piece = spliced;
            return r;
        }
    }
    if (piece->length > COPY_MAX) {
        piece->length = COPY_MAX;
        piece->last = false;
    }
    return put_data(connection, request, piece);
}

static int read_chunks(struct nbd_connection *connection, const struct nbd_request *request)
{
    uint64_t offset = request->offset, end = offset + request->length;
    struct disk_extent extent = {.length = 0};
    while (offset < end) {
        if (extent.length == 0 &&
            (request->length < LONG_READ || disk_extent(connection->disk, offset, end - offset, &extent) < 0))
            extent = (struct disk_extent){.length = end - offset}; /* unknown = data */
        struct piece piece = {offset, (uint32_t)extent.length, offset + extent.length == end};
        int r = put_piece(connection, request, &piece, extent.hole);
        if (r != 0)
            return MIN(r, 0);
        offset += piece.length;
        extent.length -= piece.length;
    }
    return 0;
}

int nbd_serve_read(struct nbd_connection *connection, const struct nbd_request *request)
{
    if (request->length == 0)
        return nbd_serve_reply(connection, request, NBD_SUCCESS);
    connection->tally.reads++;
    connection->tally.read_bytes += request->length;
    disk_heat(connection->disk, request->length, request->offset);
    if (connection->session.structured && !(request->flags & NBD_CMD_FLAG_DF))
        return read_chunks(connection, request);
    return read_whole(connection, request);
}

/* Fills in descriptors from the request's offset on, neighbours of one kind as one. Returns how many, or
 * -errno. */
static int put_extents(struct disk *disk, const struct nbd_request *request, uint8_t *at)
{
    uint32_t max = request->flags & NBD_CMD_FLAG_REQ_ONE ? 1 : STATUS_MAX, count = 0;
    uint64_t offset = request->offset, end = offset + request->length, length = 0;
    bool hole = false;
    while (offset < end) {
        struct disk_extent extent;
        int r = disk_extent(disk, offset, end - offset, &extent);
        if (r < 0)
            return r;
        if (count == 0 || extent.hole != hole) {
            if (count == max)
                break;
            count++;
            length = 0;
            hole = extent.hole;
        }
        length += extent.length;
        offset += extent.length;
        nbd_put_status(at + (size_t)8 * (count - 1), (uint32_t)length,
                       hole ? NBD_STATE_HOLE | NBD_STATE_ZERO : 0);
    }
    return (int)count;
}

int nbd_serve_block_status(struct nbd_connection *connection, const struct nbd_request *request)
{
    uint8_t *at;
    int r = nbd_channel_reserve(&connection->channel, NBD_STATUS_CHUNK_SIZE + 8 * STATUS_MAX, &at);
    if (r < 0)
        return r;
    int count = put_extents(connection->disk, request, at + NBD_STATUS_CHUNK_SIZE);
    if (count < 0)
        return nbd_serve_reply(connection, request, nbd_error_from(count));
    nbd_put_status_chunk(at, request, (uint32_t)count);
    nbd_channel_commit(&connection->channel, NBD_STATUS_CHUNK_SIZE + 8 * (size_t)count);
    return 0;
}
