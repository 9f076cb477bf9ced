/* SPDX-License-Identifier: Apache-2.0
 *
 * session: what both sides of a move share: the control link, the data links, and the mailbox through which
 * link threads hand frames to the one thread that walks the stages.
 *
 * The walker waits in session_wait and session_nap only; both return at once when the move cannot go on: the
 * peer sent FRAME_ERROR, a link broke, or someone cancelled. Lock order: session->lock, then a link's own.
 */
#pragma once

#include "move/budget.h"
#include "move/link.h"
#include "move/stream.h"

#include <pthread.h>

#define MOVE_MAX_CONNECTIONS 8
#define MOVE_PAUSE_NS (20 * NSEC_PER_SEC) /* a pause that takes longer is rolled back */
#define MOVE_STALL_MS 8000                /* silence after which a peer counts as gone */
#define MOVE_DATA_STALL_MS \
    60000 /* a data link may wait that long for the peer's disk; control notices a dead peer */
#define MOVE_ANSWER_MS INT64_C(30000) /* for answers that take the peer some work */
#define MOVE_OPEN_MS 1800000          /* a copy of the base image is made, perhaps on a slow disk */

/* What lies unread, whoever sends it: so many frames, and no more once they have so many bytes. */
#define SESSION_MAX_MAIL 64
#define SESSION_MAX_MAIL_BYTES ((size_t)8 << 20)

struct mail {
    struct mail *next;
    struct link *link;
    struct frame frame;
    uint8_t payload[];
};

struct session {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct mail *first, **last;
    unsigned max_mail; /* unread; a walker that waits for a link must never make that link wait for it */
    struct err lost;   /* code 0 = all links are well */
    bool peer_failed;  /* `lost` is the peer's own error: it has rolled back by itself */
    int64_t lost_at;   /* clock_now() of that */
    bool stopping;     /* between session_stop and the end of its links */
    bool cancelled;
    bool woken;   /* since the walker's last nap */
    bool decided; /* the commit: a cancel changes nothing any more */
    struct link *control;
    struct link *data[MOVE_MAX_CONNECTIONS];
    unsigned data_count;
    struct stream *stream; /* QEMU's: its thread sends on data[0], links' threads write to it */
    struct budget *budget;
    uint32_t marked; /* source: newest mark that the destination made durable */
};

int session_init(struct session *session, uint64_t bandwidth, struct err *err);
/* Stops and joins all links, drops what lies in the mailbox. */
void session_done(struct session *session);
/* The calling thread, and those that it makes, run before others from here on: on a busy host a move must not
 * wait for the guest that it moves. */
void session_hurry(void);
/* The opposite, before it makes what shall run as others do. */
void session_rest(void);
/* Stops all links without joining them: whoever waits inside link_send comes back. Before stream_interrupt.
 */
void session_stop(struct session *session);
/* The same for the data links only: the peer has failed, and reads no more of what waits there. Any thread.
 */
void session_stop_data(struct session *session);
/* The control link, if there is none yet. */
bool session_set_control(struct session *session, struct link *link);
/* One more data link, at most MOVE_MAX_CONNECTIONS. */
void session_add_data(struct session *session, struct link *link);
/* Which of the data links it is; -1: none. */
int session_data_index(struct session *session, const struct link *link);
/* The link is one of its own: none that another has, or nobody yet. */
bool session_has(struct session *session, const struct link *link);
/* Drops links and mail of a broken connection, so that another may be made (after the commit). A stream that
 * lasts is kept. */
void session_reset(struct session *session);

/* For link callbacks: keeps a copy of the frame for the walker. Waits a little while as much lies there
 * unread as may (files may come faster than they are written), then -EMSGSIZE. */
int session_post(struct session *session, struct link *link, const struct frame *frame,
                 const uint8_t *payload, struct err *err);
/* A link has ended; err->code 0 = the peer closed it. */
void session_lost(struct session *session, const struct err *err);
/* Wakes the walker to look at whatever state was changed. */
void session_wake(struct session *session);
/* false: it is too late, the commit has been decided. */
bool session_cancel(struct session *session);
/* From here on a cancel changes nothing: the commit has been decided. */
void session_uncancel(struct session *session);
/* The same in one step with session_check: 0 and decided, or why the move cannot go on (a cancel too),
 * undecided. */
int session_decide(struct session *session, struct err *err);

/* The next frame, which must be of `type`, before `deadline`. The caller frees it. -ETIMEDOUT, -ECANCELED,
 * -EPROTO on another type, the peer's own error, or why the link broke. */
int session_wait(struct session *session, enum frame_type type, int64_t deadline, struct mail **ret,
                 struct err *err);
/* As session_wait, with any type. -EAGAIN (no error text) when `deadline` passes. */
int session_next(struct session *session, int64_t deadline, struct mail **ret, struct err *err);
/* session_wait for a JSON frame, parsed. */
int session_wait_json(struct session *session, enum frame_type type, int64_t deadline, json_t **ret,
                      struct err *err);
/* Waits until `deadline` or a wake, also one since the last nap; 0, or why the move cannot go on. */
int session_nap(struct session *session, int64_t deadline, struct err *err);
/* For a link's thread: waits until `deadline` or a wake; 0, or why the session's links are about to end. */
int session_doze(struct session *session, int64_t deadline, struct err *err);
/* For a walker that has failed with *err and will not go on: the rest of the mailbox is dropped, and if the
 * peer's own error is in it, or comes within a moment of a broken link, it takes the place of *err. */
void session_explain(struct session *session, struct err *err);
/* No link of it has ended. */
bool session_is_well(struct session *session);
/* 0, or why the move cannot go on. */
int session_check(struct session *session, struct err *err);
