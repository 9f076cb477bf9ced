/* SPDX-License-Identifier: Apache-2.0
 *
 * announce: tells a segment that a guest is here now. The frames go into the guest's tap as if the guest had
 * sent them, so bridges, this host's too, learn its new port, and neighbours that hold its address renew it.
 */
#pragma once

#include "net/address.h"

struct announce;

struct announce_nic {
    int tap; /* duplicated */
    uint8_t mac[MAC_SIZE];
    struct addresses addresses;
};

/* Sends the first round before it returns (it never blocks), the others after 50, 150, 350 and 750 ms from a
 * thread. At most 8 NICs. */
int announce_start(const struct announce_nic *nics, size_t count, struct announce **ret, struct err *err);
/* Ends the rounds that are left. */
void announce_free(struct announce *announce);
