/* SPDX-License-Identifier: Apache-2.0
 *
 * nbd_connection: the life of one client, on the thread that calls.
 */
#pragma once

#include "disk/disk.h"
#include "disk/nbd.h"
#include "disk/nbd_channel.h"
#include "disk/nbd_handshake.h"
#include "disk/nbd_park.h"
#include "disk/nbd_request.h"

#include <stdint.h>

/* Negotiation must end within this time: a client that holds a place without using it is not waited for. */
#define NBD_HANDSHAKE_MSEC 10000

struct nbd_connection {
    struct disk *disk;
    struct nbd_session session;
    struct nbd_channel channel;
    struct nbd_parking parking;
    unsigned announced;            /* so many of the next requests have been told to the fetcher, */
    unsigned announced_turn;       /* in this turn of disk_ready */
    int pipe[2];                   /* for long reads; -1 = none, then they are copied */
    struct nbd_statistics *totals; /* the server's, added to with atomic operations */
    struct nbd_statistics tally;   /* ours, not yet among the totals */
};

/* Serves until the client leaves, breaks the protocol, or somebody shuts the socket down. Then the requests
 * that were received whole have been answered. `fd` stays the caller's. `handshake_msec`: see above. */
int nbd_connection_serve(struct disk *disk, const struct nbd_export *export, int handshake_msec, int fd,
                         struct nbd_statistics *totals);

/* nbd_read.c. All return 0, or -errno when the connection cannot go on; what goes wrong on the disk is told
 * to the client. */
int nbd_serve_read(struct nbd_connection *connection, const struct nbd_request *request);
int nbd_serve_block_status(struct nbd_connection *connection, const struct nbd_request *request);
/* The reply that every command may have: an error (structured where the command demands it), or plain
 * success. */
int nbd_serve_reply(struct nbd_connection *connection, const struct nbd_request *request,
                    enum nbd_error error);
