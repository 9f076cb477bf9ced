/* SPDX-License-Identifier: Apache-2.0
 *
 * nbd_park: the requests of one connection that wait for missing blocks of a split disk, in the order in
 * which they came. Bounded: NBD_PARK_MAX requests with NBD_PARK_BYTES of payload. One thread, the
 * connection's.
 */
#pragma once

#include "base/clock.h"
#include "disk/nbd_request.h"
#include "disk/split.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define NBD_PARK_MAX 256U
#define NBD_PARK_BYTES ((size_t)1 << 20)
#define NBD_PARK_NSEC (30 * NSEC_PER_SEC) /* then it gets an I/O error, on which QEMU stops the guest */

struct nbd_parked {
    struct nbd_parked *next;
    struct nbd_request request;
    int64_t since;  /* clock_now() */
    unsigned told;  /* see disk_ready */
    uint8_t data[]; /* of a WRITE: its payload */
};

struct nbd_parking {
    struct disk *disk;
    int wake; /* eventfd; the disk rings it once we watch */
    bool watching;
    size_t count, bytes;
    struct nbd_parked *first, **end;
    int64_t in_place;   /* since when the connection itself has waited, 0 = it does not */
    int64_t told_since; /* what the disk was told last */
};

int nbd_parking_init(struct nbd_parking *parking, struct disk *disk);
/* What is parked is not answered. */
void nbd_parking_done(struct nbd_parking *parking);

/* Does the request lack blocks? Then who fetches them has been told, unless *told says so already. */
bool nbd_parking_lacks(struct nbd_parking *parking, const struct nbd_request *request, unsigned *told);
/* Must be called before anybody polls `wake`. */
int nbd_parking_watch(struct nbd_parking *parking);
/* Copies the payload of a WRITE. -ENOBUFS when there is no room, -ENOMEM. */
int nbd_parking_add(struct nbd_parking *parking, const struct nbd_request *request, const void *data,
                    unsigned told);
/* The first request behind *at (NULL = the beginning) that lacks nothing any more; the caller's to free. *at
 * becomes the one before it. NULL when there is none. */
struct nbd_parked *nbd_parking_take(struct nbd_parking *parking, struct nbd_parked **at);
/* The oldest request, once it has waited for NBD_PARK_NSEC; the caller's to free. */
struct nbd_parked *nbd_parking_expired(struct nbd_parking *parking, int64_t now);
/* Milliseconds until there may be one, for poll(2); -1 = nothing is parked. */
int nbd_parking_timeout(const struct nbd_parking *parking);
/* Tells the disk since when somebody waits here. */
void nbd_parking_report(struct nbd_parking *parking);
