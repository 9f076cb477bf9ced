/* SPDX-License-Identifier: Apache-2.0 */
/*
 * delay ONE OTHER NANOSECONDS: a long cable. It joins two network interfaces and holds each frame, both ways,
 * for so long; then it says "ready" and goes on until it is killed.
 *
 * One thread per direction. A frame is due at the kernel's own time of its arrival plus the delay, so a
 * thread that is woken late adds nothing to it before that. All are held equally long: the queue is first in,
 * first out, and its head alone is waited for. It has at most QUEUE_BYTES; what comes when it is full is
 * lost.
 *
 * Frames carry the kernel's notes about them (PACKET_VNET_HDR): which checksum is still to be made, and into
 * what a frame of up to 64 KiB is to be cut. So they are passed on whole, as a veth does it, and no offload
 * need be turned off. Only the bits on a real cable are missing: the rate is limited elsewhere (tc).
 */
#include <arpa/inet.h>
#include <err.h>
#include <errno.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/virtio_net.h>
#include <net/if.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define SECOND INT64_C(1000000000)
#define QUEUE_BYTES ((size_t)64 << 20)
#define SOCKET_BYTES (16 << 20)
#define FRAME_BYTES (sizeof(struct virtio_net_hdr) + (128 << 10))

struct frame {
    struct frame *next;
    int64_t due;
    size_t size;
    uint8_t data[];
};

struct direction {
    int from, to;
    int64_t delay;
    struct frame *head, **tail;
    size_t queued; /* bytes */
    uint8_t buffer[FRAME_BYTES];
};

/* The clock of the kernel's time stamps. */
static int64_t now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_REALTIME, &time);
    return (int64_t)time.tv_sec * SECOND + time.tv_nsec;
}

static int64_t arrival_of(struct msghdr *message)
{
    int64_t latest = now();
    struct cmsghdr *note = CMSG_FIRSTHDR(message);
    struct timespec time;
    if (!note || note->cmsg_level != SOL_SOCKET || note->cmsg_type != SCM_TIMESTAMPNS)
        return latest;
    memcpy(&time, CMSG_DATA(note), sizeof time);
    int64_t stamp = (int64_t)time.tv_sec * SECOND + time.tv_nsec;
    return stamp < latest ? stamp : latest; /* the clock may have been set */
}

/* Takes all that has come. */
static void take(struct direction *direction)
{
    for (;;) {
        char notes[CMSG_SPACE(sizeof(struct timespec))];
        struct iovec part = {direction->buffer, sizeof direction->buffer};
        struct msghdr message = {
            .msg_iov = &part, .msg_iovlen = 1, .msg_control = notes, .msg_controllen = sizeof notes};
        ssize_t size = recvmsg(direction->from, &message, MSG_DONTWAIT);
        if (size < 0 && (errno == EAGAIN || errno == ENETDOWN || errno == EINTR))
            return;
        if (size < 0)
            err(1, "recvmsg");
        if (message.msg_flags & MSG_TRUNC || direction->queued + (size_t)size > QUEUE_BYTES)
            continue;
        struct frame *frame = malloc(sizeof *frame + (size_t)size);
        if (!frame)
            continue;
        *frame = (struct frame){.due = arrival_of(&message) + direction->delay, .size = (size_t)size};
        memcpy(frame->data, direction->buffer, (size_t)size);
        *direction->tail = frame;
        direction->tail = &frame->next;
        direction->queued += frame->size;
    }
}

/* Passes on all that is due. What the other end does not take is lost, as on any cable. */
static void give(struct direction *direction)
{
    while (direction->head && direction->head->due <= now()) {
        struct frame *frame = direction->head;
        direction->head = frame->next;
        if (!direction->head)
            direction->tail = &direction->head;
        direction->queued -= frame->size;
        if (send(direction->to, frame->data, frame->size, 0) < 0 && errno == EBADF)
            err(1, "send");
        free(frame);
    }
}

static void *carry(void *arg)
{
    struct direction *direction = arg;
    prctl(PR_SET_TIMERSLACK, 1UL);
    for (;;) {
        struct pollfd input = {.fd = direction->from, .events = POLLIN};
        int64_t rest = direction->head ? direction->head->due - now() : 0;
        struct timespec wait = {.tv_sec = rest > 0 ? rest / SECOND : 0,
                                .tv_nsec = rest > 0 ? rest % SECOND : 0};
        if (ppoll(&input, 1, direction->head ? &wait : NULL, NULL) < 0 && errno != EINTR)
            err(1, "ppoll");
        take(direction);
        give(direction);
    }
}

static void set(int fd, int level, int option, int value)
{
    if (setsockopt(fd, level, option, &value, sizeof value) < 0)
        err(1, "setsockopt %d", option);
}

static int open_end(const char *interface)
{
    /* No protocol yet: else frames of all interfaces would come until it is bound. */
    int fd = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0);
    struct sockaddr_ll address = {.sll_family = AF_PACKET,
                                  .sll_protocol = htons(ETH_P_ALL),
                                  .sll_ifindex = (int)if_nametoindex(interface)};
    if (fd < 0 || address.sll_ifindex == 0)
        err(1, "%s", interface);
    set(fd, SOL_PACKET, PACKET_IGNORE_OUTGOING, 1); /* what we send is not for us */
    set(fd, SOL_PACKET, PACKET_VNET_HDR, 1);
    set(fd, SOL_SOCKET, SO_TIMESTAMPNS, 1);
    set(fd, SOL_SOCKET, SO_RCVBUFFORCE, SOCKET_BYTES);
    set(fd, SOL_SOCKET, SO_SNDBUFFORCE, SOCKET_BYTES);
    if (bind(fd, (struct sockaddr *)&address, sizeof address) < 0)
        err(1, "bind to %s", interface);
    return fd;
}

int main(int argc, char **argv)
{
    int64_t delay = argc == 4 ? strtoll(argv[3], NULL, 10) : 0;
    if (delay <= 0)
        errx(2, "usage: delay ONE OTHER NANOSECONDS");
    static struct direction directions[2];
    int one = open_end(argv[1]), other = open_end(argv[2]);
    pthread_t thread;
    for (int i = 0; i < 2; i++) {
        struct direction *direction = &directions[i];
        direction->from = i ? other : one;
        direction->to = i ? one : other;
        direction->delay = delay;
        direction->tail = &direction->head;
    }
    /* A cable waits for no processor. Less exact without. */
    (void)sched_setscheduler(0, SCHED_RR, &(struct sched_param){.sched_priority = 1});
    if (pthread_create(&thread, NULL, carry, &directions[1]) != 0)
        errx(1, "no thread");
    puts("ready");
    fflush(stdout);
    carry(&directions[0]);
}
