/* SPDX-License-Identifier: Apache-2.0
 *
 * link: one TLS connection of a move, with a thread of its own that alone touches the TLS session. Others put
 * frames into its bounded queue (and wait while that is full: back-pressure) and get frames by a callback on
 * the link's thread; while the callback blocks, nothing is read (back-pressure the other way). A callback
 * that answers on its own link never waits.
 *
 * A link is alive while bytes arrive: a quiet one sends FRAME_PING every second, and one with `heartbeat`
 * that heard nothing for `stall_ms`, or any that could not send for as long, is closed with -ETIMEDOUT, and
 * the peer's link ends too. After any failure every link_send returns it. The source's data links have no
 * heartbeat: the destination's callback may block on a slow disk, and then sends nothing.
 */
#pragma once

#include "base/err.h"
#include "base/tls.h"
#include "move/budget.h"
#include "wire/frame.h"

#include <jansson.h>
#include <stdbool.h>

struct link;

struct link_handler {
    /* A frame; `payload` lives until the return. A negative return closes the link with that error. */
    int (*frame)(void *arg, struct link *link, const struct frame *frame, const uint8_t *payload,
                 struct err *err);
    /* The link has ended (once, last). err->code 0: the peer closed in order. */
    void (*closed)(void *arg, struct link *link, const struct err *err);
    void *arg;
};

struct link_options {
    struct id vm;
    uint64_t
        epoch; /* of frames sent; link_set_epoch changes it. Received frames of an older one are dropped */
    struct budget *budget; /* NULL = not limited (control) */
    bool heartbeat;        /* judge silence */
    uint64_t stall_ms;
    size_t queue_bytes; /* link_send waits above this; 0 = 1 MiB */
};

/* Owns `tls` from here on, on failure too. *ret is there before the first callback. */
int link_start(struct tls *tls, const struct link_options *options, const struct link_handler *handler,
               struct link **ret, struct err *err);
void link_set_epoch(struct link *link, uint64_t epoch);
/* As link_options' queue_bytes, from here on, and as far as it goes for the kernel's queue too. */
void link_make_prompt(struct link *link, size_t bytes);
/* Queues one frame: `head` (may be NULL) and `body` (may be NULL) one after the other are its payload; both
 * are copied. */
int link_send(struct link *link, enum frame_type type, const void *head, size_t head_size, const void *body,
              size_t body_size, struct err *err);
int link_send_json(struct link *link, enum frame_type type, const json_t *json, struct err *err);
/* A buffer for a payload of up to `size` bytes that link_send_buffer sends without a copy (or
 * link_buffer_free frees). */
uint8_t *link_buffer(size_t size);
void link_buffer_free(uint8_t *payload);
int link_send_buffer(struct link *link, enum frame_type type, uint8_t *payload, size_t size, struct err *err);
/* Waits until all that was queued has been handed to the kernel. */
int link_drain(struct link *link, int64_t deadline, struct err *err);
/* Bytes waiting in the queue. */
size_t link_queued(struct link *link);
/* Ends the thread as soon as it looks; does not wait. */
void link_stop(struct link *link);
/* Stops, joins, waits until threads that are inside link_send or link_drain have left with an error, frees.
 * No call may begin afterwards. Not from the link's own callback. */
void link_free(struct link *link);
