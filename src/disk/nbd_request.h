/* SPDX-License-Identifier: Apache-2.0
 *
 * nbd_request: requests and replies of NBD's transmission phase. Pure: no I/O.
 *
 *   request            magic:4 flags:2 type:2 cookie:8 offset:8 length:4, then `length` bytes with WRITE
 *   simple reply       magic:4 error:4 cookie:8, then the data of a READ that succeeded
 *   structured chunk   magic:4 flags:2 type:2 cookie:8 length:4 payload
 */
#pragma once

#include "disk/nbd_handshake.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define NBD_REQUEST_SIZE 28
#define NBD_SIMPLE_SIZE 16
#define NBD_CHUNK_SIZE 20
#define NBD_DATA_CHUNK_SIZE (NBD_CHUNK_SIZE + 8)   /* without the data */
#define NBD_HOLE_CHUNK_SIZE (NBD_CHUNK_SIZE + 12)  /* whole */
#define NBD_ERROR_CHUNK_SIZE (NBD_CHUNK_SIZE + 6)  /* whole, without text */
#define NBD_STATUS_CHUNK_SIZE (NBD_CHUNK_SIZE + 4) /* without the descriptors of 8 bytes each */

struct nbd_request {
    uint16_t flags, type;
    uint64_t cookie; /* the client's, in its own byte order: only ever sent back */
    uint64_t offset;
    uint32_t length;
};

/* false when the magic is wrong: the stream is out of step, and nothing after it can be believed. */
bool nbd_request_parse(const uint8_t data[NBD_REQUEST_SIZE], struct nbd_request *ret);
/* NBD_SUCCESS, or the error that answers it. After NBD_SUCCESS the range lies inside the export, the flags
 * belong to the command, READ and WRITE are at most NBD_PAYLOAD_MAX long. A WRITE's payload follows in any
 * case. */
enum nbd_error nbd_request_check(const struct nbd_request *request, const struct nbd_session *session);
/* Does the command change the disk? */
bool nbd_request_modifies(const struct nbd_request *request);
/* Takes errno, positive or negative. */
enum nbd_error nbd_error_from(int errnum);

/* Each writes the bytes that its name's size says, at any alignment. */
void nbd_put_simple(uint8_t *at, const struct nbd_request *request, enum nbd_error error);
void nbd_put_chunk(uint8_t *at, const struct nbd_request *request, enum nbd_chunk_type type, bool done,
                   uint32_t payload);
void nbd_put_data_chunk(uint8_t *at, const struct nbd_request *request, bool done, uint64_t offset,
                        uint32_t length);
void nbd_put_hole_chunk(uint8_t *at, const struct nbd_request *request, bool done, uint64_t offset,
                        uint32_t length);
void nbd_put_error_chunk(uint8_t *at, const struct nbd_request *request, enum nbd_error error);
/* `count` descriptors follow, each through nbd_put_status. */
void nbd_put_status_chunk(uint8_t *at, const struct nbd_request *request, uint32_t count);
void nbd_put_status(uint8_t *at, uint32_t length, uint32_t state);
