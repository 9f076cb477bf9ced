/* SPDX-License-Identifier: Apache-2.0
 *
 * http: the transport of the API: libwebsockets' event loop on the main thread. Connections come in from the
 * door (door.h), requests go to the request pool, answers come back through a queue.
 */
#pragma once

#include "base/err.h"
#include "host/host.h"

/* Connections on the unix socket, and on the host port. One more takes the place of one that asks nothing, or
 * has not asked to the end (base/crowd.h). */
#define HTTP_MAX_LOCAL 128
#define HTTP_MAX_REMOTE 128

struct http;

int http_new(struct host *host, struct http **ret, struct err *err);
void http_free(struct http *http);

/* Serves until http_stop. Main thread. */
void http_run(struct http *http);
/* Any thread. */
void http_stop(struct http *http);
/* Something happened that a waiting request or a follower of events may want to know. Any thread; cheap. */
void http_wake(struct http *http);
/* Takes over a connection: unix socket, or TCP on which TLS is still to begin. Any thread. */
void http_adopt(struct http *http, int socket);
/* false: so many wait for their turn that those who can should wait in the kernel's queue. Any thread. */
bool http_has_room(struct http *http);
