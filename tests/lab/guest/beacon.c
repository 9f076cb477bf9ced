/* SPDX-License-Identifier: Apache-2.0 */
#include "beacon.h"

#include "pace.h"

#include <arpa/inet.h>
#include <endian.h>
#include <errno.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

struct beacon {
    int fd;
    struct sockaddr_in target;
    uint64_t boot;
    _Atomic uint64_t sent;
};

static int parse_target(struct sockaddr_in *ret_target, const char *text)
{
    char address[16];
    uint16_t port;
    struct sockaddr_in target = {.sin_family = AF_INET};
    if (sscanf(text, "%15[0-9.]:%hu", address, &port) != 2 ||
        inet_pton(AF_INET, address, &target.sin_addr) != 1)
        return -EINVAL;
    target.sin_port = htons(port);
    *ret_target = target;
    return 0;
}

static void *beacon_thread(void *arg)
{
    struct beacon *beacon = arg;
    struct pace pace = {0};
    for (;;) {
        pace_wait(&pace, 10 * MS);
        uint64_t packet[2] = {htobe64(beacon->sent), htobe64(beacon->boot)};
        ssize_t n = sendto(beacon->fd, packet, sizeof(packet), 0, (const struct sockaddr *)&beacon->target,
                           sizeof(beacon->target));
        if (n == sizeof(packet))
            atomic_fetch_add(&beacon->sent, 1);
    }
    return NULL;
}

int beacon_start(struct beacon **ret_beacon, const char *target, uint64_t boot)
{
    struct beacon *beacon = calloc(1, sizeof(*beacon));
    if (beacon == NULL)
        return -ENOMEM;
    beacon->boot = boot;
    beacon->fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    int r = beacon->fd < 0 ? -errno : parse_target(&beacon->target, target);

    pthread_t thread;
    if (r == 0)
        r = -pthread_create(&thread, NULL, beacon_thread, beacon);
    if (r < 0) {
        if (beacon->fd >= 0)
            close(beacon->fd);
        free(beacon);
        return r;
    }
    *ret_beacon = beacon;
    return 0;
}

uint64_t beacon_sent(const struct beacon *beacon)
{
    return beacon != NULL ? beacon->sent : 0;
}
