/* SPDX-License-Identifier: Apache-2.0
 *
 * door: where connections come in. One thread accepts on the unix socket and on the host port. On the host
 * port it looks at the TLS ClientHello without taking it off the socket: a connection for "<vm id>.orai"
 * goes, untouched, to that VM's orai-vm; any other one is an API client.
 *
 * A connection that does not show a whole ClientHello within 5 s is closed; at most 64 may be in that state,
 * so they cost nothing else. One more takes the place of the oldest one from where most of them come
 * (base/crowd.h): nobody waits behind those who stay silent. A silent orai-vm cannot hold the door up: a
 * connection is put into its socket's queue without waiting for the answer.
 */
#pragma once

#include "base/err.h"
#include "host/host.h"
#include "host/http.h"

#define DOOR_MAX_HALF_OPEN 64
#define DOOR_HELLO_MSEC 5000

struct door;

/* Makes RUN/api.sock (group orai, 0660) and binds the host port, so that address errors come early. */
int door_new(struct host *host, struct door **ret, struct err *err);
/* The port that is bound (asked for or chosen by the kernel). */
uint16_t door_port(const struct door *door);
/* Starts the thread: connections go to `http`; SIGTERM and SIGINT (which every thread must block) stop it. */
int door_start(struct door *door, struct http *http, struct err *err);
/* Ends and joins the thread, closes the sockets, removes RUN/api.sock. NULL is fine. */
void door_free(struct door *door);

/* Is `name` "<32 hex digits>.orai"? */
bool door_vm_name(const char *name, struct id *ret);
