/* SPDX-License-Identifier: Apache-2.0
 *
 * refresh: QEMU is replaced under the running guest, on the same host: after a package upgrade, by another
 * program, or with other options. A second QEMU is started on the same RAM, disks and taps, takes the state
 * of the devices from the first, and goes on with the guest. Only that state travels, so the guest stands
 * still for some milliseconds.
 *
 * Until the guest has gone on in the second QEMU every failure brings it back in the first, as it was.
 */
#pragma once

#include "move/move.h"

struct refresh;

enum refresh_outcome {
    REFRESH_RUNNING = 0, /* not over yet */
    REFRESH_DONE,        /* the guest is in the new QEMU */
    REFRESH_STAYED,      /* failed; it is in the old one as before */
    REFRESH_GUEST_LOST,  /* its QEMU has ended meanwhile */
};

/* Starts the thread; `machine` is the refresh's until it is over. `binary`: the new QEMU. `running`: does the
 * guest run? A paused one stays paused. */
int refresh_start(const struct move_host *host, struct machine *machine, const char *binary, bool running,
                  struct refresh **ret, struct err *err);
enum refresh_outcome refresh_outcome(const struct refresh *refresh);
/* {"state": "running"|"done"|"stayed"|"lost", "stage", "qemu", "from", "blackout_ms", "seconds", "error"}:
 * protocol.md. */
json_t *refresh_status(struct refresh *refresh);
void refresh_free(struct refresh *refresh); /* joins the thread: only when the outcome is known */
