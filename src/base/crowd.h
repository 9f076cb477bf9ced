/* SPDX-License-Identifier: Apache-2.0
 *
 * crowd: whose connection ends when more knock than there are places. A connection that has not yet proved
 * who it is holds a place; when all are taken, a newcomer gets the place of the oldest one from wherever most
 * of them come. So a flood from one address closes only its own connections, and a host that proves itself
 * within a round trip or two keeps its place even in a flood from everywhere.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

/* An IPv4 address, the upper half of an IPv6 one (the rest is whatever its owner likes), or a local user. */
struct crowd_origin {
    uint8_t bytes[16];
};

struct crowd_member {
    struct crowd_origin origin;
    int64_t since; /* clock_now() */
};

/* Of a connected socket, from now on. */
struct crowd_member crowd_member(int socket);
/* Index of the member whose place `newcomer` gets; NULL entries may not be asked to go. -1: there is none. */
int crowd_victim(const struct crowd_member *const *members, size_t count,
                 const struct crowd_member *newcomer);
