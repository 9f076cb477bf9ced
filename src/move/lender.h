/* SPDX-License-Identifier: Apache-2.0
 *
 * lender: the source after a post-copy hand-over. The guest runs elsewhere; what of its disks has not gone
 * over lies here only, and the borrower (fetch.h) asks for it block by block. The disks are frozen, so
 * answers never change: a borrower that lost its connection, or this host its power, begins again where it
 * was.
 *
 * A host that merely has a copy of an earlier state may *share* it in the same way: it says what its copy is,
 * and answers for blocks that it has as of the generation that is asked for. Nobody depends on it.
 *
 * One thread per connection, each with a session of its own; requests of one connection are answered in
 * order. The borrower opens two, so that what the guest waits for does not queue behind what nobody waits
 * for.
 */
#pragma once

#include "disk/disk.h"
#include "move/move.h"

struct lender;

/* `disks` are borrowed and outlive the lender. `epoch`: the hand-over that they are lent for (`shares`: of no
 * meaning); `borrower`: the only host that may ask. Nothing is answered before lender_open: the guest still
 * runs here. */
struct lender_options {
    const struct move_host *host;
    struct id vm;
    uint64_t epoch;
    struct fingerprint borrower;
    struct disk *disks[VM_MAX_DISKS];
    size_t disk_count;
    bool shares;
};
int lender_new(const struct lender_options *options, struct lender **ret, struct err *err);
/* The hand-over is committed, the disks are frozen: requests are answered from here on. */
void lender_open(struct lender *lender);
/* A connection that oraid handed over (TLS not begun). Owns `socket` from here on. */
void lender_connection(struct lender *lender, int socket);
/* The borrower has said that it wants nothing more. Its word is kept waiting until lender_confirm. */
bool lender_released(const struct lender *lender);
/* That is durable here: the borrower is told. */
void lender_confirm(struct lender *lender);
struct lender_numbers {
    unsigned connections;
    uint64_t fetches, bytes; /* sent, data only */
};
void lender_numbers(const struct lender *lender, struct lender_numbers *ret);
/* Ends all connections. NULL is fine. */
void lender_free(struct lender *lender);
