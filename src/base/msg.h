/* SPDX-License-Identifier: Apache-2.0
 *
 * msg: JSON messages, perhaps with one file descriptor, over unix SOCK_SEQPACKET sockets: how oraid and the
 * command line speak with orai-vm. One message = one packet, at most MSG_MAX bytes.
 *
 * A request is {"do": VERB, ...}. Its answer is {"ok": true, ...} or {"ok": false, "error": ERR}
 * (err_to_json). After {"do": "watch"} the server sends {"event": NAME, ...} packets until the client closes.
 */
#pragma once

#include "base/err.h"

#include <jansson.h>
#include <stdbool.h>

#define MSG_MAX (192U << 10)

/* Listens at `path` (an old socket file is replaced), mode 0600. Returns the descriptor or -errno. */
int msg_listen(const char *path, struct err *err);
/* Connects within `msec`. -ENOENT or -ECONNREFUSED when nobody listens. */
int msg_connect(const char *path, int msec, struct err *err);

/* Sends one packet within `msec`; fd -1 = none. The fd stays the caller's. */
int msg_send(int socket, const json_t *message, int fd, int msec, struct err *err);
/* Receives one packet; waits up to `msec` (-1 = for ever). -EPIPE at the end of the conversation. ret_fd may
 * be NULL (then a descriptor that came along is closed), otherwise -1 when none came. */
int msg_receive(int socket, int msec, json_t **ret_message, int *ret_fd, struct err *err);

/* Request and answer on a fresh connection. An answer {"ok": false} becomes the error it carries.
 * `ret_answer` may be NULL. */
int msg_call(const char *path, const json_t *request, int fd, int msec, json_t **ret_answer, struct err *err);
