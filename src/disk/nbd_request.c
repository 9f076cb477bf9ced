/* SPDX-License-Identifier: Apache-2.0 */
#include "disk/nbd_request.h"

#include "base/endian.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

bool nbd_request_parse(const uint8_t data[NBD_REQUEST_SIZE], struct nbd_request *ret)
{
    if (get_be32(data) != NBD_REQUEST_MAGIC)
        return false;
    *ret = (struct nbd_request){
        .flags = get_be16(data + 4),
        .type = get_be16(data + 6),
        .offset = get_be64(data + 16),
        .length = get_be32(data + 24),
    };
    memcpy(&ret->cookie, data + 8, sizeof ret->cookie);
    return true;
}

bool nbd_request_modifies(const struct nbd_request *request)
{
    return request->type == NBD_CMD_WRITE || request->type == NBD_CMD_TRIM ||
           request->type == NBD_CMD_WRITE_ZEROES;
}

/* FUA goes with every command, even with those that it means nothing for. */
static unsigned flags_of(uint16_t type, const struct nbd_session *session)
{
    switch (type) {
    case NBD_CMD_READ:
        return NBD_CMD_FLAG_FUA | (session->structured ? NBD_CMD_FLAG_DF : 0U);
    case NBD_CMD_WRITE_ZEROES:
        return NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_NO_HOLE | NBD_CMD_FLAG_FAST_ZERO;
    case NBD_CMD_BLOCK_STATUS:
        return NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_REQ_ONE;
    default:
        return NBD_CMD_FLAG_FUA;
    }
}

static enum nbd_error check_range(const struct nbd_request *request, const struct nbd_session *session)
{
    if (request->offset <= session->size && request->length <= session->size - request->offset)
        return NBD_SUCCESS;
    return request->type == NBD_CMD_WRITE || request->type == NBD_CMD_WRITE_ZEROES ? NBD_ENOSPC : NBD_EINVAL;
}

static enum nbd_error check_length(const struct nbd_request *request)
{
    if (request->type == NBD_CMD_READ && request->length > NBD_PAYLOAD_MAX)
        return NBD_EOVERFLOW;
    if (request->type == NBD_CMD_WRITE && request->length > NBD_PAYLOAD_MAX)
        return NBD_EINVAL;
    if (request->type == NBD_CMD_BLOCK_STATUS && request->length == 0)
        return NBD_EINVAL; /* a reply needs at least one descriptor, of some length */
    return NBD_SUCCESS;
}

enum nbd_error nbd_request_check(const struct nbd_request *request, const struct nbd_session *session)
{
    if (request->type > NBD_CMD_BLOCK_STATUS)
        return NBD_EINVAL;
    if (request->flags & ~flags_of(request->type, session))
        return NBD_EINVAL;
    if (request->type == NBD_CMD_DISC)
        return NBD_SUCCESS; /* it has no reply that could tell of more */
    if (request->type == NBD_CMD_FLUSH)
        return request->offset == 0 && request->length == 0 ? NBD_SUCCESS : NBD_EINVAL;
    if (request->type == NBD_CMD_BLOCK_STATUS && !session->base_allocation)
        return NBD_EINVAL;
    if (session->read_only && nbd_request_modifies(request))
        return NBD_EPERM;
    enum nbd_error error = check_length(request);
    return error ? error : check_range(request, session);
}

enum nbd_error nbd_error_from(int errnum)
{
    switch (abs(errnum)) {
    case 0:
        return NBD_SUCCESS;
    case EPERM:
    case EACCES:
    case EROFS:
        return NBD_EPERM;
    case ENOMEM:
        return NBD_ENOMEM;
    case EINVAL:
        return NBD_EINVAL;
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
        return NBD_ENOSPC;
    case EOVERFLOW:
        return NBD_EOVERFLOW;
    case EOPNOTSUPP:
        return NBD_ENOTSUP;
    case ESHUTDOWN:
        return NBD_ESHUTDOWN;
    default:
        return NBD_EIO;
    }
}

void nbd_put_simple(uint8_t *at, const struct nbd_request *request, enum nbd_error error)
{
    put_be32(at, NBD_SIMPLE_REPLY_MAGIC);
    put_be32(at + 4, error);
    memcpy(at + 8, &request->cookie, 8);
}

void nbd_put_chunk(uint8_t *at, const struct nbd_request *request, enum nbd_chunk_type type, bool done,
                   uint32_t payload)
{
    put_be32(at, NBD_STRUCTURED_REPLY_MAGIC);
    put_be16(at + 4, done ? NBD_REPLY_FLAG_DONE : 0);
    put_be16(at + 6, (uint16_t)type);
    memcpy(at + 8, &request->cookie, 8);
    put_be32(at + 16, payload);
}

void nbd_put_data_chunk(uint8_t *at, const struct nbd_request *request, bool done, uint64_t offset,
                        uint32_t length)
{
    nbd_put_chunk(at, request, NBD_REPLY_TYPE_OFFSET_DATA, done, 8 + length);
    put_be64(at + NBD_CHUNK_SIZE, offset);
}

void nbd_put_hole_chunk(uint8_t *at, const struct nbd_request *request, bool done, uint64_t offset,
                        uint32_t length)
{
    nbd_put_chunk(at, request, NBD_REPLY_TYPE_OFFSET_HOLE, done, 12);
    put_be64(at + NBD_CHUNK_SIZE, offset);
    put_be32(at + NBD_CHUNK_SIZE + 8, length);
}

void nbd_put_error_chunk(uint8_t *at, const struct nbd_request *request, enum nbd_error error)
{
    nbd_put_chunk(at, request, NBD_REPLY_TYPE_ERROR, true, 6);
    put_be32(at + NBD_CHUNK_SIZE, error);
    put_be16(at + NBD_CHUNK_SIZE + 4, 0);
}

void nbd_put_status_chunk(uint8_t *at, const struct nbd_request *request, uint32_t count)
{
    nbd_put_chunk(at, request, NBD_REPLY_TYPE_BLOCK_STATUS, true, 4 + 8 * count);
    put_be32(at + NBD_CHUNK_SIZE, NBD_CONTEXT_ALLOCATION_ID);
}

void nbd_put_status(uint8_t *at, uint32_t length, uint32_t state)
{
    put_be32(at, length);
    put_be32(at + 4, state);
}
