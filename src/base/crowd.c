/* SPDX-License-Identifier: Apache-2.0 */
#include "base/crowd.h"

#include "base/clock.h"

#include <netinet/in.h>
#include <stdbool.h>
#include <string.h>
#include <sys/socket.h>

#define NETWORK_BYTES 8 /* of an IPv6 address */

struct crowd_member crowd_member(int socket)
{
    struct crowd_member member = {.since = clock_now()};
    union {
        struct sockaddr any;
        struct sockaddr_in v4;
        struct sockaddr_in6 v6;
    } from = {0};
    struct ucred user;
    socklen_t size = sizeof from, user_size = sizeof user;
    uint8_t *bytes = member.origin.bytes;
    if (getpeername(socket, &from.any, &size) < 0)
        return member;
    if (from.any.sa_family == AF_INET)
        memcpy(bytes + 12, &from.v4.sin_addr, 4);
    else if (from.any.sa_family == AF_INET6 && IN6_IS_ADDR_V4MAPPED(&from.v6.sin6_addr))
        memcpy(bytes + 12, from.v6.sin6_addr.s6_addr + 12, 4);
    else if (from.any.sa_family == AF_INET6)
        memcpy(bytes, from.v6.sin6_addr.s6_addr, NETWORK_BYTES);
    else if (getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &user, &user_size) == 0)
        memcpy(bytes, &user.uid, sizeof user.uid);
    return member;
}

static bool same(const struct crowd_member *a, const struct crowd_member *b)
{
    return memcmp(&a->origin, &b->origin, sizeof a->origin) == 0;
}

int crowd_victim(const struct crowd_member *const *members, size_t count, const struct crowd_member *newcomer)
{
    int victim = -1;
    size_t most = 0;
    for (size_t i = 0; i < count; i++) {
        if (!members[i])
            continue;
        size_t alike = same(members[i], newcomer);
        for (size_t j = 0; j < count; j++)
            alike += members[j] && same(members[i], members[j]);
        if (alike > most || (alike == most && members[i]->since < members[victim]->since)) {
            most = alike;
            victim = (int)i;
        }
    }
    return victim;
}
