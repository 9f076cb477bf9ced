/* SPDX-License-Identifier: Apache-2.0 */
#include "disk/nbd_channel.h"

#include "base/clock.h"
#include "base/macro.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/uio.h>

#define LOOK_NSEC (INT64_C(50) * 1000) /* about what a sleep and a wake-up cost on a virtual machine */
#define SHORT_SLEEPS 4
#define SHORT_SLEEP_NSEC                                                              \
    (INT64_C(100) * 1000) /* a sleep, with its wake-up, that a look would have spared \
                           */

int nbd_channel_init(struct nbd_channel *channel, int fd)
{
    uint8_t *buffers =
        mmap(NULL, 2 * NBD_BUFFER_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (buffers == MAP_FAILED)
        return -errno;
    *channel = (struct nbd_channel){.fd = fd, .rx = buffers, .tx = buffers + NBD_BUFFER_SIZE};
    return 0;
}

void nbd_channel_done(struct nbd_channel *channel)
{
    munmap(channel->rx, 2 * NBD_BUFFER_SIZE);
    channel->rx = channel->tx = NULL;
}

/* Without a deadline the socket itself blocks, which saves the call. */
static int wait_until(struct nbd_channel *channel, short events)
{
    if (channel->deadline == 0)
        return 0;
    struct pollfd poller = {.fd = channel->fd, .events = events};
    int n = poll(&poller, 1, clock_poll_ms(channel->deadline));
    if (n < 0 && errno != EINTR)
        return -errno;
    return n == 0 ? -ETIMEDOUT : 0;
}

/* Looks for bytes for LOOK_NSEC without sleeping. Returns what recv(2) does. */
static ssize_t look_again(struct nbd_channel *channel, void *data, size_t size)
{
    int64_t end = clock_now() + LOOK_NSEC;
    ssize_t n;
    do
        n = recv(channel->fd, data, size, MSG_DONTWAIT);
    while (n < 0 && errno == EAGAIN && clock_now() < end);
    return n;
}

/* recv(2) for the transmission phase. At queue depth 1 most of a request's time is two sleeps and wake-ups,
 * the client's and ours; ours is saved while the client answers quickly. A look in vain (the client pauses,
 * or it waits for this very processor) is not repeated before some sleeps have been short again. */
static ssize_t receive_eagerly(struct nbd_channel *channel, void *data, size_t size)
{
    ssize_t n = recv(channel->fd, data, size, MSG_DONTWAIT);
    if (n >= 0 || errno != EAGAIN)
        return n;
    if (channel->short_sleeps >= SHORT_SLEEPS) {
        n = look_again(channel, data, size);
        if (n >= 0 || errno != EAGAIN)
            return n;
        channel->short_sleeps = 0;
    }
    int64_t begin = clock_now();
    n = recv(channel->fd, data, size, 0);
    channel->short_sleeps = clock_now() - begin < SHORT_SLEEP_NSEC ? channel->short_sleeps + 1 : 0;
    return n;
}

/* At least one byte, at most `size`. */
static int receive_some(struct nbd_channel *channel, void *data, size_t size, size_t *ret_size)
{
    for (;;) {
        int r = wait_until(channel, POLLIN);
        if (r < 0)
            return r;
        ssize_t n = channel->deadline ? recv(channel->fd, data, size, MSG_DONTWAIT)
                                      : receive_eagerly(channel, data, size);
        if (n == 0)
            return -EPIPE;
        if (n > 0) {
            *ret_size = (size_t)n;
            return 0;
        }
        if (errno != EINTR && errno != EAGAIN)
            return -errno;
    }
}

int nbd_channel_fill(struct nbd_channel *channel, size_t want)
{
    if (channel->rx_begin == channel->rx_end)
        channel->rx_begin = channel->rx_end = 0;
    if (channel->rx_begin + want > NBD_BUFFER_SIZE) {
        memmove(channel->rx, channel->rx + channel->rx_begin, nbd_channel_pending(channel));
        channel->rx_end -= channel->rx_begin;
        channel->rx_begin = 0;
    }
    while (nbd_channel_pending(channel) < want) {
        size_t size = 0;
        int r =
            receive_some(channel, channel->rx + channel->rx_end, NBD_BUFFER_SIZE - channel->rx_end, &size);
        if (r < 0)
            return r;
        channel->rx_end += size;
    }
    return 0;
}

int nbd_channel_discard(struct nbd_channel *channel, uint64_t size)
{
    while (size > 0) {
        if (nbd_channel_pending(channel) == 0) {
            int r = nbd_channel_fill(channel, 1);
            if (r < 0)
                return r;
        }
        size_t part = MIN(size, nbd_channel_pending(channel));
        nbd_channel_consume(channel, part);
        size -= part;
    }
    return 0;
}

static int send_all(struct nbd_channel *channel, struct iovec *parts, size_t count, int flags)
{
    while (count > 0) {
        int r = wait_until(channel, POLLOUT);
        if (r < 0)
            return r;
        struct msghdr message = {.msg_iov = parts, .msg_iovlen = count};
        ssize_t n =
            sendmsg(channel->fd, &message, flags | MSG_NOSIGNAL | (channel->deadline ? MSG_DONTWAIT : 0));
        if (n < 0 && (errno == EINTR || errno == EAGAIN))
            continue;
        if (n < 0)
            return -errno;
        size_t sent = (size_t)n;
        for (; count > 0 && sent >= parts->iov_len; parts++, count--)
            sent -= parts->iov_len;
        if (count > 0) {
            parts->iov_base = (uint8_t *)parts->iov_base + sent;
            parts->iov_len -= sent;
        }
    }
    return 0;
}

int nbd_channel_flush(struct nbd_channel *channel, const void *data, size_t size)
{
    struct iovec parts[] = {{channel->tx, channel->tx_end}, {(void *)data, size}};
    channel->tx_end = 0;
    if (parts[0].iov_len + size == 0)
        return 0;
    return send_all(channel, parts, size > 0 ? 2 : 1, 0);
}

int nbd_channel_reserve(struct nbd_channel *channel, size_t size, uint8_t **ret)
{
    assert(size <= NBD_BUFFER_SIZE);
    if (channel->tx_end + size > NBD_BUFFER_SIZE) {
        int r = nbd_channel_flush(channel, NULL, 0);
        if (r < 0)
            return r;
    }
    *ret = channel->tx + channel->tx_end;
    return 0;
}

int nbd_channel_splice(struct nbd_channel *channel, int pipe, size_t size)
{
    struct iovec part = {channel->tx, channel->tx_end};
    channel->tx_end = 0;
    int r = send_all(channel, &part, part.iov_len > 0, MSG_MORE);
    while (r == 0 && size > 0) {
        ssize_t n = splice(pipe, NULL, channel->fd, NULL, size, 0);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? -errno : -EIO;
        size -= (size_t)n;
    }
    return r;
}
