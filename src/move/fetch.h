/* SPDX-License-Identifier: Apache-2.0
 *
 * fetch: the destination after a post-copy hand-over. The guest runs here, its disks are split
 * (disk/split.h): what they lack is fetched from the lender (lender.h) in this order:
 *
 *   1. what the guest waits for, at once, on a connection of its own
 *   2. what follows where the guest reads on and on
 *   3. what it read most on the other host, hottest first
 *   4. the rest, by address
 *
 * and only as much of 2 to 4 is under way at a time as the path carries without a queue, none while 1 has
 * anything to do, so that the guest never waits behind what nobody waits for.
 *
 * The guest's reads wait while the lender cannot be reached; connections are made anew each second, and the
 * fetch goes on with what is missing then. What was made durable is never fetched again. When nothing is
 * missing the disks become whole, durably, and the lender is told that it lends nothing more.
 *
 * Other hosts may have a copy of an earlier state: what the lender has not written since may come from any of
 * them (fetch_share), from whoever answers soonest what the guest waits for, the rest from all at once. They
 * may come and go; only the lender is needed.
 *
 * One thread per host asks (fetch_private.h); the threads of its two links write what comes.
 */
#pragma once

#include "disk/disk.h"
#include "move/move.h"

struct fetch;

enum fetch_state {
    FETCH_RUNNING,  /* something is missing */
    FETCH_WHOLE,    /* everything is here, durably; the lender has not heard it yet */
    FETCH_RELEASED, /* and now it has */
};

struct fetch_options {
    const struct move_host *host;
    struct id vm;
    char name[VM_NAME_SIZE]; /* the VM's */
    uint64_t epoch;          /* the hand-over that brought the guest here */
    struct move_peer lender;
    struct disk *disks[VM_MAX_DISKS]; /* those that are whole are left alone; borrowed */
    size_t disk_count;
};
/* Starts the thread; nothing is asked for before fetch_open. */
int fetch_new(const struct fetch_options *options, struct fetch **ret, struct err *err);
/* The guest is ours, the disks' claim is "split". */
int fetch_open(struct fetch *fetch, struct err *err);
/* After fetch_open: `peer` may have blocks too. Without effect when it is being asked already, or all is
 * here. -ENOSPC when there are too many. */
int fetch_share(struct fetch *fetch, const struct move_peer *peer, struct err *err);
enum fetch_state fetch_state(const struct fetch *fetch);
/* The lender is there, and nothing holds up what is asked for. */
bool fetch_connected(const struct fetch *fetch);
/* {"from","state","missing_bytes","total_bytes","fetched_bytes","demands","rate","demand_ms","shares","error"?}:
 * docs/protocol.md, "split status". */
json_t *fetch_status(const struct fetch *fetch);
/* Stops asking; what has come is kept. NULL is fine. */
void fetch_free(struct fetch *fetch);
