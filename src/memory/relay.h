/* SPDX-License-Identifier: Apache-2.0
 *
 * relay: carries QEMU's migration stream between QEMU's unix socket and the move's connections, both ways.
 *
 *   source:       QEMU --migrate.sock--> relay --`forward`--> link 0 ... FRAME_STREAM
 *                 QEMU <--migrate.sock-- relay_write <-- FRAME_BACK
 *   destination:  FRAME_STREAM --> relay_write --incoming.sock--> QEMU
 *                 FRAME_BACK <--`forward`-- relay <--incoming.sock-- QEMU
 *
 * Bytes pass through untouched and are never buffered here beyond one read: when `forward` blocks, QEMU
 * blocks, so QEMU's own idea of the bandwidth stays right. One thread per relay reads; relay_write is for one
 * caller at a time and blocks while QEMU does not read.
 */
#pragma once

#include "base/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct relay;

/* Takes bytes read from QEMU, or none (relay_kick); called on the relay's thread. `data` NULL: QEMU closed
 * its end (once, last). A negative return ends the relay. */
typedef int relay_forward_fn(void *arg, const void *data, size_t size);

/* Listens at `path` for QEMU's single connection (the file is readable for `uid` only), which has to wait:
 * QEMU's connect(2) does not return before relay_admit. From then on, accepting and reading go on in the
 * background. */
int relay_listen(const char *path, uid_t uid, relay_forward_fn *forward, void *arg, struct relay **ret,
                 struct err *err);
int relay_admit(struct relay *relay, struct err *err);
/* Connects to the socket at `path` where QEMU listens. */
int relay_connect(const char *path, relay_forward_fn *forward, void *arg, struct relay **ret,
                  struct err *err);
/* Goes on with a connection to QEMU that is there, which it owns; `forward` gets `first` (is copied) before
 * what comes. */
int relay_adopt(int fd, const void *first, size_t first_size, relay_forward_fn *forward, void *arg,
                struct relay **ret, struct err *err);
/* From here on little waits between QEMU and us: what somebody has asked for is behind it. */
void relay_keep_short(struct relay *relay);
/* Makes the relay's thread call `forward` with no bytes, soon. */
void relay_kick(struct relay *relay);
/* *ret_written counts also when it fails: -EPIPE when QEMU is gone, -EINTR when interrupted. */
int relay_write(struct relay *relay, const void *data, size_t size, size_t *ret_written, struct err *err);
/* QEMU has read all that was written to it. */
bool relay_is_read(const struct relay *relay);
/* Makes relay_write return, now and as long as it is on. */
void relay_interrupt(struct relay *relay, bool on);
/* Bytes that went from QEMU to `forward`. */
uint64_t relay_bytes(const struct relay *relay);
/* Wakes and ends both directions (callable while another thread is inside relay_write). */
void relay_stop(struct relay *relay);
/* Stops, and returns once `forward` will not be called any more (what it waits for must have been ended).
 * relay_write stays callable, and fails. */
void relay_join(struct relay *relay);
/* Joins, frees. */
void relay_free(struct relay *relay);
