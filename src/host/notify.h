/* SPDX-License-Identifier: Apache-2.0
 *
 * notify: tells systemd how we are (the protocol of sd_notify(3): one datagram to NOTIFY_SOCKET), without its
 * library.
 */
#pragma once

/* "READY=1". Does nothing when nobody wants to know. */
void notify(const char *state);
