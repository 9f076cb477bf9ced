/* SPDX-License-Identifier: Apache-2.0
 *
 * client: asks another host's API over mutual TLS. The other side is its pinned key; address and name only
 * lead there. Redirects, proxies and cookies do not exist here.
 *
 * Threads: any; each call is a connection of its own.
 */
#pragma once

#include "base/err.h"
#include "host/host.h"
#include "host/peer.h"

#include <jansson.h>

#define CLIENT_MSEC 10000 /* for what a peer answers from memory */

struct client_call {
    const struct peer *peer; /* address, port, fingerprint; name for the errors */
    const char *method, *path;
    const json_t *body; /* may be NULL */
    int msec;

    /* The outcome. */
    int status;        /* of an answer with 2xx, else 0 */
    json_t *answer;    /* owned by the caller */
    double latency_ms; /* TCP round trip; negative when not known */
    int r;
    struct err err; /* what the peer said, with its host, or why it was not reached */
};

int client_open(void);
/* One call. call->r is returned. */
int client_call(const struct host *host, struct client_call *call);
/* All at once; each has its own outcome. */
void client_calls(const struct host *host, struct client_call *calls, size_t count);
