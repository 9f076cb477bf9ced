/* SPDX-License-Identifier: Apache-2.0
 *
 * tcp: connections between hosts: opened within a deadline, and noticed when the other side vanishes.
 */
#pragma once

#include "base/err.h"

#include <stdint.h>

/* A peer that acknowledges nothing for so long is gone: data that waits fails with ETIMEDOUT, and so does an
 * idle connection (keepalive). */
#define TCP_DEAD_MSEC 30000

/* Connects to address:port (name or number) before `deadline` (clock_now() units), trying each address of a
 * name for its share of the time. The descriptor is non-blocking and prepared. Name look-up counts too. */
int tcp_connect(const char *address, uint16_t port, int64_t deadline, int *ret_socket, struct err *err);
/* Non-blocking, close-on-exec, no Nagle, keepalive and TCP_DEAD_MSEC. 0 or -errno. */
int tcp_prepare(int socket);
