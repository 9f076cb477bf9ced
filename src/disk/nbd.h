/* SPDX-License-Identifier: Apache-2.0
 *
 * nbd: serves one disk over the NBD protocol on a unix socket (fixed newstyle; the specification is
 * doc/proto.md of the reference implementation).
 */
#pragma once

#include "base/err.h"
#include "disk/disk.h"

struct nbd_server;

struct nbd_options {
    const char *export_name; /* also answers to "" */
    bool read_only;
    bool direct; /* the disk was opened with DISK_DIRECT: long reads may not use the page cache */
    unsigned max_connections; /* further ones wait in the listen queue; 0 = 16 */
};

/* Takes over `listener` (a listening stream socket), on failure too; own threads serve it until
 * nbd_server_free. */
int nbd_server_new(struct disk *disk, int listener, const struct nbd_options *options,
                   struct nbd_server **ret, struct err *err);
/* Stops accepting, answers what was received whole, closes; a client that takes no replies is cut off after 2
 * s. NULL is fine. Statistics that are wanted must be read before. While the disk is frozen this waits for
 * the writes that wait inside disk_write: thaw first, or free the server before freezing, as a move does once
 * QEMU is gone. */
void nbd_server_free(struct nbd_server *server);

/* The sockets of its clients, at most `max`; returns how many. They stay the server's. */
size_t nbd_server_clients(struct nbd_server *server, int *ret, size_t max);

struct nbd_statistics {
    uint64_t connections, reads, writes, flushes, trims, read_bytes, written_bytes, errors;
};
void nbd_server_statistics(const struct nbd_server *server, struct nbd_statistics *ret);
