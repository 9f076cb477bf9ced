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

/* Connects (retrying until `deadline`, for a QEMU that is only starting), takes the greeting. */
int qmp_connect(const char *path, int64_t deadline, qmp_event_fn *on_event, void *arg, struct qmp **ret,
                struct err *err);
void qmp_free(struct qmp *qmp);
/* `arguments` (may be NULL) is consumed. QEMU's {"error"} becomes -EREMOTEIO with its text. ret_value may be NULL.
 * -ENOTCONN when QEMU is gone, -ETIMEDOUT after `msec`. */
int qmp_execute(struct qmp *qmp, const char *command, json_t *arguments, int msec, json_t **ret_value, struct err *err);
