/* SPDX-License-Identifier: Apache-2.0
 *
 * http_exchange: one request and its answer on one connection.
 *
 *   READING -> WORKING -> ANSWERING -> (gone)
 *                 ^  \--> PARKED (long poll; back to WORKING when its operation changes or its time is over)
 *                 \-----> STREAMING (events, without end)
 *
 * Main thread, except that a WORKING exchange belongs to the pool's thread but for `wsi` and `next`. When the
 * connection closes, a WORKING exchange lives on without one (`wsi` NULL) until its handler returns.
 */
#pragma once

#include "host/api.h"

#include <libwebsockets.h>

enum exchange_state {
    EXCHANGE_READING,
    EXCHANGE_WORKING,
    EXCHANGE_PARKED,
    EXCHANGE_ANSWERING,
    EXCHANGE_STREAMING
};

struct exchange {
    struct exchange *next;          /* http's list of all, main thread */
    struct exchange *next_answered; /* http's queue, under its lock */
    struct http *http;
    struct lws *wsi;
    enum exchange_state state;
    bool close_after;
    bool headers_sent;

    char *input; /* the request's body so far */
    size_t input_size, input_expected;
    struct request request;
    struct answer answer;

    char *out; /* LWS_PRE bytes, then what is to be sent */
    size_t out_size, out_sent;
};

/* Fills the request from lws' headers: method, path, query, and who asks. */
int exchange_read_headers(struct exchange *exchange, struct host *host, struct err *err);
/* Parses the body that has come. */
int exchange_read_body(struct exchange *exchange, struct err *err);
/* Turns the answer into bytes. -ENOMEM. */
int exchange_render(struct exchange *exchange);
/* STREAMING, all sent: the next events as chunks. 0 and out_size 0 when there are none yet; sets close_after
 * when this follower is cut. */
int exchange_render_events(struct exchange *exchange, struct events *events);
/* What lws' writable callback does. 0 go on, 1 all sent, -1 close. */
int exchange_write(struct exchange *exchange);
void exchange_free(struct exchange *exchange);
