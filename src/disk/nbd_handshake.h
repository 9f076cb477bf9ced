/* SPDX-License-Identifier: Apache-2.0
 *
 * nbd_handshake: the negotiation of one NBD connection, from the greeting to the transmission phase.
 *
 * Pure: bytes in, bytes out, no I/O and no memory of its own; the caller moves the bytes and keeps the
 * deadline. Each step takes at most one message of the client (its flags, or one option with its data), and
 * what it answers always fits in `struct nbd_output`: a client gets at most as many answers as it sends
 * messages.
 */
#pragma once

#include "disk/nbd_protocol.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The one export, which answers to its name and to "". */
struct nbd_export {
    const char *name; /* at most NBD_NAME_MAX bytes */
    uint64_t size;
    bool read_only;
    bool direct; /* reads must not fill the page cache */
};

/* What the transmission phase needs to know of the negotiation. */
struct nbd_session {
    uint64_t size;
    bool read_only;
    bool structured;      /* structured replies */
    bool base_allocation; /* BLOCK_STATUS is allowed */
};

struct nbd_handshake {
    const struct nbd_export *export;
    struct nbd_session session;
    bool flags_known;
    bool no_zeroes;
    uint32_t skip; /* bytes of an oversize option still to be thrown away */
    uint32_t skip_option;
};

#define NBD_GREETING_SIZE 18
#define NBD_OUTPUT_MAX 8192

struct nbd_output {
    size_t size;
    uint8_t bytes[NBD_OUTPUT_MAX];
};

enum nbd_step {
    NBD_STEP_MORE,  /* nothing to answer; more bytes are needed */
    NBD_STEP_REPLY, /* send the output, go on */
    NBD_STEP_GO,    /* send the output, then the transmission phase begins */
    NBD_STEP_CLOSE, /* send the output (perhaps empty), then close */
};

/* Starts; `ret_greeting` goes to the client. */
void nbd_handshake_init(struct nbd_handshake *handshake, const struct nbd_export *export,
                        uint8_t ret_greeting[NBD_GREETING_SIZE]);
/* Takes *ret_used of `size` bytes. An option is complete at the latest with 16 + NBD_OPTION_MAX bytes. */
enum nbd_step nbd_handshake_step(struct nbd_handshake *handshake, const uint8_t *data, size_t size,
                                 size_t *ret_used, struct nbd_output *ret_output);
