/* SPDX-License-Identifier: Apache-2.0
 *
 * announce: five rounds over 750 ms, since the first frames may be lost by a switch port that is only coming
 * up. A frame that the tap does not take is skipped: the next round repeats it. The thread owns everything
 * after start.
 */
#include "net/announce.h"

#include "base/clock.h"
#include "base/log.h"
#include "base/macro.h"
#include "net/frame.h"
#include "net/tap.h"
#include "net/thread.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/uio.h>

#define NICS_MAX 8
#define HEADER_MAX 16

static const int rounds_msec[] = {0, 50, 150, 350, 750};

struct announce {
    pthread_t thread;
    bool running;
    int stop; /* eventfd */
    int64_t start;
    size_t count;
    struct announce_nic nics[NICS_MAX]; /* with our own descriptors */
};

/* The virtio net header before the frame is all zero: no offload. Its size is QEMU's choice and may change.
 */
static void send_frame(int tap, const uint8_t *frame, size_t size)
{
    static const uint8_t header[HEADER_MAX];
    int header_size = tap_header_size(tap);
    if (header_size < 0 || header_size > HEADER_MAX)
        return;
    struct iovec parts[] = {{(void *)header, (size_t)header_size}, {(void *)frame, size}};
    if (writev(tap, parts, ARRAY_SIZE(parts)) < 0)
        log_debug("cannot announce a guest on its tap: %m");
}

static void send_round(const struct announce_nic *nic)
{
    uint8_t frame[FRAME_MAX];
    send_frame(nic->tap, frame, frame_rarp(nic->mac, frame));
    for (size_t i = 0; i < nic->addresses.count; i++) {
        const struct address *address = &nic->addresses.list[i];
        if (address->ipv6) {
            send_frame(nic->tap, frame, frame_advertisement(nic->mac, address, frame));
        } else {
            send_frame(nic->tap, frame, frame_arp(nic->mac, address, false, frame));
            send_frame(nic->tap, frame, frame_arp(nic->mac, address, true, frame));
        }
    }
}

static void send_all(const struct announce *announce)
{
    for (size_t i = 0; i < announce->count; i++)
        send_round(&announce->nics[i]);
}

static void *announce_main(void *arg)
{
    struct announce *announce = arg;
    for (size_t i = 1; i < ARRAY_SIZE(rounds_msec); i++) {
        struct pollfd p = {.fd = announce->stop, .events = POLLIN};
        if (poll(&p, 1, clock_poll_ms(announce->start + rounds_msec[i] * NSEC_PER_MSEC)) != 0)
            return NULL;
        send_all(announce);
    }
    return NULL;
}

static int start(struct announce *announce, const struct announce_nic *nics, size_t count, struct err *err)
{
    for (size_t i = 0; i < count; i++) {
        struct announce_nic *nic = &announce->nics[announce->count++];
        *nic = nics[i];
        nic->tap = fcntl(nics[i].tap, F_DUPFD_CLOEXEC, 0);
        if (nic->tap < 0)
            return err_sys(err, errno, "cannot announce the guest");
    }
    announce->start = clock_now();
    send_all(announce);
    announce->stop = eventfd(0, EFD_CLOEXEC);
    int r =
        announce->stop < 0 ? -errno : thread_start(&announce->thread, "announce", announce_main, announce);
    if (r < 0)
        return err_sys(err, r, "the guest was announced only once");
    announce->running = true;
    return 0;
}

int announce_start(const struct announce_nic *nics, size_t count, struct announce **ret, struct err *err)
{
    assert(count <= NICS_MAX);
    struct announce *announce = calloc(1, sizeof *announce);
    if (!announce)
        return err_set(err, ENOMEM, "out of memory announcing the guest");
    announce->stop = -1;
    int r = start(announce, nics, count, err);
    if (r < 0) {
        announce_free(announce);
        return r;
    }
    *ret = announce;
    return 0;
}

void announce_free(struct announce *announce)
{
    if (!announce)
        return;
    if (announce->running) {
        eventfd_write(announce->stop, 1);
        pthread_join(announce->thread, NULL);
    }
    for (size_t i = 0; i < announce->count; i++)
        if (announce->nics[i].tap >= 0)
            close(announce->nics[i].tap);
    if (announce->stop >= 0)
        close(announce->stop);
    free(announce);
}
