/* SPDX-License-Identifier: Apache-2.0
 *
 * What the files of fetch share:
 *
 *   fetch.c          the object, and the lender: connecting until everything is here, then releasing it
 *   fetch_holder.c   any host that is asked for blocks: its connections, requests, what comes
 *   fetch_share.c    hosts that only share a copy: what of it can be used
 *   fetch_order.c    what is asked of whom
 */
#pragma once

#include "move/fetch.h"
#include "move/fetch_order.h"
#include "move/session.h"

#include <pthread.h>
#include <stdatomic.h>

enum { FETCH_URGENT, FETCH_REST }; /* a session's control link, and its data link 0 */

/* One host that is asked for blocks. Its thread connects and asks; its links' threads write what comes. */
struct fetch_holder {
    struct fetch *fetch;
    unsigned index; /* FETCH_LENDER, or one that shares a copy */
    struct move_peer peer;
    struct session session; /* its own lock; others only wake and cancel it */
    pthread_t thread;
    uint64_t coming[2]; /* bytes of data with the answer that is coming; of each link's thread alone */
    atomic_ullong fetched;

    /* Guarded by fetch->lock. */
    bool joined;    /* the order may ask it */
    bool ended;     /* its thread has, or is about to */
    struct err why; /* the last failure; code 0 while all is well */
    struct {
        uint32_t above; /* the lender is to say what is newer than this; 0 = nothing */
        bool asked;
    } newer[VM_MAX_DISKS];
};

struct fetch_source {
    struct fetch *fetch;
    size_t index;
};

struct fetch {
    struct fetch_options options;
    struct fetch_source sources[VM_MAX_DISKS]; /* what disk_on_demand gets */
    uint64_t total;                            /* bytes missing when we began */

    /* Guarded by `lock`: NBD threads demand, links' threads answer. Innermost but for the sessions'. */
    pthread_mutex_t lock;
    pthread_cond_t opened;
    struct fetch_order *order; /* from fetch_open on */
    bool open, closing;
    _Atomic unsigned holder_count; /* they are only ever added */
    struct fetch_holder holders[FETCH_MAX_HOLDERS];

    _Atomic enum fetch_state state;
};

/* --- fetch.c --- */

bool fetch_closing(struct fetch *fetch);
/* Every holder looks whether there is something to ask for. */
void fetch_wake(struct fetch *fetch);
/* Waits until the guest is ours. false: it never will be. */
bool fetch_wait_open(struct fetch *fetch);
/* For a while, before the holder is tried again; whatever it is woken for. */
void fetch_pause(struct fetch_holder *holder);

/* --- fetch_holder.c --- */

int holder_init(struct fetch_holder *holder, struct fetch *fetch, unsigned index,
                const struct move_peer *peer, struct err *err);
/* One of its two links; *ret (may be NULL) is the answer to our hello. */
int holder_connect(struct fetch_holder *holder, int index, json_t **ret, struct err *err);
/* Asks for blocks until none is missing: 0, or why it cannot go on. */
int holder_fetch(struct fetch_holder *holder, struct err *err);
/* Its connections are gone: others are asked for what it was to bring. */
void holder_leave(struct fetch_holder *holder);
/* Remembers and tells why it does not go on; code 0: all is well. */
void holder_set_why(struct fetch_holder *holder, const struct err *err);

/* --- fetch_share.c --- */

/* Sends the lender what those that share need to know. On its thread. */
int share_ask_newer(struct fetch_holder *lender, struct err *err);
/* The lender's answer; on its link's thread. */
int share_newer(struct fetch *fetch, const uint8_t *payload, size_t size, struct err *err);
/* The lender's connections are gone, and the questions with them. Locked. */
void share_ask_again(struct fetch *fetch);
