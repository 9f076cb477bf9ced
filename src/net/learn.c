/* SPDX-License-Identifier: Apache-2.0
 *
 * learn: a packet socket per tap, with a filter in the kernel that lets only this through, from the guest's
 * own MAC: ARP, ICMPv6 133 to 136 without extension headers, and IPv4 for as long as no IPv4 address is known
 * (a guest that we found again after a restart may do no ARP for a while; once an address is known the filter
 * is changed, so that ordinary traffic never wakes us).
 *
 * The thread owns the sockets; the tables are guarded by the mutex. A tap that is down (tap_set) is silent;
 * an error of a socket ends listening on it: what is known stays.
 */
#include "net/learn.h"

#include "base/json.h"
#include "base/log.h"
#include "base/macro.h"
#include "net/frame.h"
#include "net/thread.h"

#include <arpa/inet.h>
#include <errno.h>
#include <linux/filter.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#define NICS_MAX 8
#define SNAP_SIZE 128U /* enough for an IPv6 header and any of the four messages' fixed part */

struct nic {
    int socket;  /* -1 once it failed */
    bool narrow; /* the filter leaves plain IPv4 out */
    uint8_t mac[MAC_SIZE];
    char mac_text[18];
    char tap[IFNAMSIZ];
    struct addresses addresses; /* mutex */
};

struct learn {
    pthread_t thread;
    bool running;
    int stop; /* eventfd */
    pthread_mutex_t mutex;
    size_t count;
    struct nic nics[NICS_MAX];
};

/* Only frames from `mac`; of them ARP, IPv6 neighbour discovery, and IPv4 if `plain`. */
static int set_filter(int socket, const uint8_t mac[MAC_SIZE], bool plain)
{
    uint32_t high = (uint32_t)mac[0] << 24 | (uint32_t)mac[1] << 16 | (uint32_t)mac[2] << 8 | mac[3];
    uint32_t low = (uint32_t)mac[4] << 8 | mac[5];
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 6),                           /* 0: sender, first 4 bytes */
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, high, 0, 12),                /* 1 */
        BPF_STMT(BPF_LD | BPF_H | BPF_ABS, 10),                          /* 2: the other 2 */
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, low, 0, 10),                 /* 3 */
        BPF_STMT(BPF_LD | BPF_H | BPF_ABS, 12),                          /* 4: type */
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ETH_P_ARP, 7, 0),            /* 5 */
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ETH_P_IP, plain ? 6 : 7, 0), /* 6 */
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ETH_P_IPV6, 0, 6),           /* 7 */
        BPF_STMT(BPF_LD | BPF_B | BPF_ABS, 14 + 6),                      /* 8: next header */
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, IPPROTO_ICMPV6, 0, 4),       /* 9 */
        BPF_STMT(BPF_LD | BPF_B | BPF_ABS, 14 + 40),                     /* 10: ICMPv6 type */
        BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, 133, 0, 2),                  /* 11 */
        BPF_JUMP(BPF_JMP | BPF_JGT | BPF_K, 136, 1, 0),                  /* 12 */
        BPF_STMT(BPF_RET | BPF_K, SNAP_SIZE),                            /* 13 */
        BPF_STMT(BPF_RET | BPF_K, 0),                                    /* 14 */
    };
    struct sock_fprog program = {.len = ARRAY_SIZE(code), .filter = code};
    return setsockopt(socket, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program) < 0 ? -errno : 0;
}

/* Made without a protocol it receives nothing until it is bound, so no frame slips past the filter. */
static int listen_on(struct nic *nic, struct err *err)
{
    int yes = 1;
    struct sockaddr_ll address = {.sll_family = AF_PACKET,
                                  .sll_protocol = htons(ETH_P_ALL),
                                  .sll_ifindex = (int)if_nametoindex(nic->tap)};
    if (address.sll_ifindex == 0)
        return err_sys(err, errno, "cannot find the tap %s", nic->tap);
    nic->socket = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (nic->socket < 0)
        return err_sys(err, errno, "cannot listen on the tap %s", nic->tap);
    int r = set_filter(nic->socket, nic->mac, true);
    if (r < 0 || setsockopt(nic->socket, SOL_PACKET, PACKET_IGNORE_OUTGOING, &yes, sizeof yes) < 0 ||
        bind(nic->socket, (struct sockaddr *)&address, sizeof address) < 0)
        return err_sys(err, r < 0 ? r : errno, "cannot listen on the tap %s", nic->tap);
    return 0;
}

/* Takes a bounded number of frames, so that one flooding guest NIC cannot starve the others. */
static void take_frames(struct learn *learn, struct nic *nic)
{
    uint8_t frame[SNAP_SIZE];
    for (int i = 0; i < 64; i++) {
        struct address address;
        bool plain;
        ssize_t n = recv(nic->socket, frame, sizeof frame, 0);
        if (n < 0 &&
            (errno == EAGAIN || errno == EINTR || errno == ENETDOWN)) /* down: it may come up again */
            return;
        if (n < 0) {
            log_info("stopped to learn addresses on %s: %m", nic->tap);
            close(nic->socket);
            nic->socket = -1;
            return;
        }
        if (!frame_learn(nic->mac, frame, (size_t)n, &address, &plain))
            continue;
        pthread_mutex_lock(&learn->mutex);
        bool knew = addresses_have_ipv4(&nic->addresses);
        if (!plain || !knew)
            addresses_see(&nic->addresses, &address);
        pthread_mutex_unlock(&learn->mutex);
        if (!address.ipv6 && !nic->narrow)
            nic->narrow = set_filter(nic->socket, nic->mac, false) == 0;
    }
}

static void *learn_main(void *arg)
{
    struct learn *learn = arg;
    for (;;) {
        struct pollfd p[NICS_MAX + 1];
        for (size_t i = 0; i < learn->count; i++)
            p[i] = (struct pollfd){.fd = learn->nics[i].socket, .events = POLLIN};
        p[learn->count] = (struct pollfd){.fd = learn->stop, .events = POLLIN};
        if (poll(p, learn->count + 1, -1) < 0 && errno != EINTR)
            return NULL;
        if (p[learn->count].revents)
            return NULL;
        for (size_t i = 0; i < learn->count; i++)
            if (p[i].revents)
                take_frames(learn, &learn->nics[i]);
    }
}

static int start(struct learn *learn, const struct learn_nic *nics, size_t count, struct err *err)
{
    for (size_t i = 0; i < count; i++) {
        struct nic *nic = &learn->nics[learn->count++];
        nic->socket = -1;
        snprintf(nic->tap, sizeof nic->tap, "%s", nics[i].tap);
        snprintf(nic->mac_text, sizeof nic->mac_text, "%s", nics[i].mac);
        if (mac_parse(nics[i].mac, nic->mac) < 0)
            return err_set(err, EINVAL, "\"%s\" is not a MAC address", nics[i].mac);
        int r = listen_on(nic, err);
        if (r < 0)
            return r;
    }
    learn->stop = eventfd(0, EFD_CLOEXEC);
    int r = learn->stop < 0 ? -errno : thread_start(&learn->thread, "learn", learn_main, learn);
    if (r < 0)
        return err_sys(err, r, "cannot start a thread that learns addresses");
    learn->running = true;
    return 0;
}

int learn_new(const struct learn_nic *nics, size_t count, struct learn **ret, struct err *err)
{
    assert(count <= NICS_MAX);
    struct learn *learn = calloc(1, sizeof *learn);
    if (!learn)
        return err_set(err, ENOMEM, "out of memory");
    learn->stop = -1;
    pthread_mutex_init(&learn->mutex, NULL);
    int r = start(learn, nics, count, err);
    if (r < 0) {
        learn_free(learn);
        return r;
    }
    *ret = learn;
    return 0;
}

void learn_free(struct learn *learn)
{
    if (!learn)
        return;
    if (learn->running) {
        eventfd_write(learn->stop, 1);
        pthread_join(learn->thread, NULL);
    }
    for (size_t i = 0; i < learn->count; i++)
        if (learn->nics[i].socket >= 0)
            close(learn->nics[i].socket);
    if (learn->stop >= 0)
        close(learn->stop);
    pthread_mutex_destroy(&learn->mutex);
    free(learn);
}

json_t *learn_addresses(struct learn *learn)
{
    json_t *list = json_array();
    for (size_t i = 0; i < learn->count; i++) {
        struct addresses addresses;
        learn_get(learn, i, &addresses);
        json_array_append_new(list, addresses_to_json(learn->nics[i].mac_text, &addresses));
    }
    return list;
}

void learn_get(struct learn *learn, size_t index, struct addresses *ret)
{
    assert(index < learn->count);
    pthread_mutex_lock(&learn->mutex);
    *ret = learn->nics[index].addresses;
    pthread_mutex_unlock(&learn->mutex);
}

int learn_add(struct learn *learn, const json_t *addresses, struct err *err)
{
    if (!json_is_array(addresses) || json_array_size(addresses) > NICS_MAX)
        return err_set(err, EINVAL, "a guest's addresses: not a list of at most %d NICs", NICS_MAX);
    for (size_t i = 0; i < json_array_size(addresses); i++) {
        struct addresses entry;
        uint8_t mac[MAC_SIZE];
        int r = addresses_from_json(json_array_get(addresses, i), mac, &entry, err);
        if (r < 0)
            return r;
        pthread_mutex_lock(&learn->mutex);
        for (size_t n = 0; n < learn->count; n++)
            for (size_t a = 0; memcmp(learn->nics[n].mac, mac, MAC_SIZE) == 0 && a < entry.count; a++)
                addresses_see(&learn->nics[n].addresses, &entry.list[a]);
        pthread_mutex_unlock(&learn->mutex);
    }
    return 0;
}
