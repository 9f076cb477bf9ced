/* SPDX-License-Identifier: Apache-2.0
 *
 * nbd_channel: one connection's socket with a receive and a send buffer of fixed size, so that many small
 * requests cost one recv and many small replies one send. One thread uses a channel; another may shut the
 * socket down to end it.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#define NBD_BUFFER_SIZE ((size_t)256 << 10)

struct nbd_channel {
    int fd;           /* blocking; the caller's */
    int64_t deadline; /* clock_now() units; 0 = none. Past it, everything fails with -ETIMEDOUT */
    uint8_t *rx; /* NBD_BUFFER_SIZE bytes, on a page boundary; those in [rx_begin, rx_end) are to be parsed */
    size_t rx_begin, rx_end;
    uint8_t *tx; /* NBD_BUFFER_SIZE bytes; the first tx_end wait to be sent */
    size_t tx_end;
    unsigned short_sleeps; /* so many waits in a row were short: looking again would have beaten sleeping */
};

int nbd_channel_init(struct nbd_channel *channel, int fd);
void nbd_channel_done(struct nbd_channel *channel);

static inline size_t nbd_channel_pending(const struct nbd_channel *channel)
{
    return channel->rx_end - channel->rx_begin;
}

static inline const uint8_t *nbd_channel_data(const struct nbd_channel *channel)
{
    return channel->rx + channel->rx_begin;
}

static inline void nbd_channel_consume(struct nbd_channel *channel, size_t size)
{
    channel->rx_begin += size;
}

/* Receives until at least `want` bytes (<= NBD_BUFFER_SIZE) are pending. -EPIPE at the end of the stream. */
int nbd_channel_fill(struct nbd_channel *channel, size_t want);
/* Throws away `size` bytes of the stream. */
int nbd_channel_discard(struct nbd_channel *channel, uint64_t size);
/* Space for `size` <= NBD_BUFFER_SIZE bytes of replies, sending what is there when it must. To be followed by
 * nbd_channel_commit with what was used of it. */
int nbd_channel_reserve(struct nbd_channel *channel, size_t size, uint8_t **ret);
static inline void nbd_channel_commit(struct nbd_channel *channel, size_t size)
{
    channel->tx_end += size;
}
/* Sends what waits, and `data` (may be NULL) after it. */
int nbd_channel_flush(struct nbd_channel *channel, const void *data, size_t size);
/* Sends what waits, then `size` bytes that lie in the pipe. */
int nbd_channel_splice(struct nbd_channel *channel, int pipe, size_t size);
