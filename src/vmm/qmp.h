/* SPDX-License-Identifier: Apache-2.0
 *
 * qmp: a client of QEMU's machine protocol on a unix socket. A reader thread of its own takes answers and events;
 * any thread may execute commands, one at a time each.
 */
#pragma once

#include "base/err.h"

#include <jansson.h>

struct qmp;

/* Called on the reader thread; must not execute commands itself. `event` NULL: the connection is gone (once, last). */
typedef void qmp_event_fn(void *arg, const char *event, const json_t *data);

/* Connects to a listener that is there, takes the greeting, for which it waits until `deadline`: QEMU may only be starting.
 * -ECONNREFUSED when it has ended. */
int qmp_connect(const char *path, int64_t deadline, qmp_event_fn *on_event, void *arg, struct qmp **ret,
                struct err *err);
/* On a connected socket, which is owned from here on, of a monitor that hears commands out of band: from its greeting
 * on; or as somebody else has left it, who had opened it so. */
int qmp_open_oob(int socket, int64_t deadline, struct qmp **ret, struct err *err);
int qmp_take_oob(int socket, struct qmp **ret, struct err *err);
/* The connection ends for whoever else has its socket, too. */
void qmp_free(struct qmp *qmp);
/* From here on events go to another function (NULL: to nobody); the one before is not running any more. When the
 * connection has ended already, the new one hears that at once. Not to be called by such a function. */
void qmp_redirect(struct qmp *qmp, qmp_event_fn *on_event, void *arg);
/* `arguments` (may be NULL) is consumed. QEMU's {"error"} becomes -EREMOTEIO with its text. ret_value may be NULL.
 * -ENOTCONN when QEMU is gone and has not had the command, -ECONNRESET when it may have had it, -ETIMEDOUT after `msec`. */
int qmp_execute(struct qmp *qmp, const char *command, json_t *arguments, int msec, json_t **ret_value, struct err *err);
/* QEMU carries it out at once, whatever its main thread waits for; commands that allow it only. */
int qmp_execute_oob(struct qmp *qmp, const char *command, json_t *arguments, int msec, struct err *err);
