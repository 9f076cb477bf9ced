/* SPDX-License-Identifier: Apache-2.0 */
#include "memory/relay.h"

#include "base/file.h"
#include "base/macro.h"

#include <errno.h>
#include <linux/sockios.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#define RELAY_CHUNK (128U << 10)
#define SHORT_CHUNK (32U << 10)
#define SHORT_QUEUE (32U << 10) /* the kernel takes twice as much, with its own in it */

struct relay {
    pthread_t thread;
    bool started;
    int listener;    /* -1 once QEMU has connected */
    int placeholder; /* fills the listener's queue, so that QEMU has to wait; -1 once it is admitted */
    atomic_int socket;
    int stop;      /* eventfd: readable once the relay must end */
    int kick;      /* eventfd: readable once `forward` must be called */
    int interrupt; /* eventfd: readable while relay_write must not wait */
    _Atomic uint64_t bytes;
    _Atomic size_t chunk; /* bytes to read at once */
    relay_forward_fn *forward;
    void *arg;
    char *first; /* to be forwarded before anything is read */
    size_t first_size;
    char path[sizeof((struct sockaddr_un *)0)->sun_path];
};

static int address_of(const char *path, struct sockaddr_un *ret, struct err *err)
{
    *ret = (struct sockaddr_un){.sun_family = AF_UNIX};
    if (snprintf(ret->sun_path, sizeof ret->sun_path, "%s", path) >= (int)sizeof ret->sun_path)
        return err_set(err, ENAMETOOLONG, "socket path too long: %s", path);
    return 0;
}

/* True when `one` or `other` (-1: there is none) has input; false when the relay must end. */
static bool wait_either(struct relay *relay, int one, int other)
{
    struct pollfd fds[] = {{.fd = one, .events = POLLIN},
                           {.fd = relay->stop, .events = POLLIN},
                           {.fd = other, .events = POLLIN}};
    while (poll(fds, 3, -1) < 0)
        if (errno != EINTR)
            return false;
    return !(fds[1].revents & POLLIN);
}

static bool accept_qemu(struct relay *relay)
{
    if (relay->listener < 0)
        return true;
    if (!wait_either(relay, relay->listener, -1))
        return false;
    int fd = accept4(relay->listener, NULL, NULL, SOCK_CLOEXEC);
    if (fd < 0)
        return false;
    atomic_store(&relay->socket, fd);
    close(TAKE_FD(relay->listener));
    unlink(relay->path);
    return true;
}

/* True when QEMU has sent something, or has closed. */
static bool wait_qemu(struct relay *relay)
{
    eventfd_t ignored;
    while (wait_either(relay, relay->socket, relay->kick)) {
        if (eventfd_read(relay->kick, &ignored) < 0)
            return true;
        if (relay->forward(relay->arg, "", 0) < 0)
            return false;
    }
    return false;
}

static void *relay_run(void *arg)
{
    struct relay *relay = arg;
    char *chunk = malloc(RELAY_CHUNK);
    bool by_us = true; /* the end; QEMU's own may be of one direction only */
    bool goes = !relay->first_size || relay->forward(relay->arg, relay->first, relay->first_size) == 0;
    while (goes && chunk && accept_qemu(relay) && wait_qemu(relay)) {
        ssize_t n = read(relay->socket, chunk, relay->chunk);
        if (n < 0 && errno == EINTR)
            continue;
        by_us = n > 0;
        if (n <= 0)
            break;
        atomic_fetch_add(&relay->bytes, (uint64_t)n);
        if (relay->forward(relay->arg, chunk, (size_t)n) < 0)
            break;
    }
    /* When nobody takes QEMU's bytes any more it must see a broken connection, not a full one. */
    int fd = atomic_load(&relay->socket);
    if (fd >= 0 && by_us)
        shutdown(fd, SHUT_RDWR);
    free(chunk);
    relay->forward(relay->arg, NULL, 0);
    return NULL;
}

static int start(struct relay *relay, struct err *err)
{
    int r = pthread_create(&relay->thread, NULL, relay_run, relay);
    if (r != 0)
        return err_sys(err, r, "cannot start the memory relay");
    relay->started = true;
    return 0;
}

static int relay_new(const char *path, relay_forward_fn *forward, void *arg, struct relay **ret,
                     struct err *err)
{
    struct relay *relay = calloc(1, sizeof *relay);
    if (!relay)
        return err_set(err, ENOMEM, "out of memory");
    relay->listener = relay->placeholder = -1;
    relay->socket = -1;
    relay->chunk = RELAY_CHUNK;
    relay->forward = forward;
    relay->arg = arg;
    snprintf(relay->path, sizeof relay->path, "%s", path);
    relay->stop = eventfd(0, EFD_CLOEXEC);
    relay->kick = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    relay->interrupt = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (relay->stop < 0 || relay->kick < 0 || relay->interrupt < 0) {
        int r = err_sys(err, errno, "cannot make an eventfd");
        relay_free(relay);
        return r;
    }
    *ret = relay;
    return 0;
}

/* A queue for one connection, and ours is in it: connect(2) waits then (unix(7)). */
static int listen_closed(struct relay *relay, const struct sockaddr_un *address, uid_t uid, struct err *err)
{
    relay->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    relay->placeholder = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    unlink(relay->path);
    /* Nobody can connect before listen(2): the file's mode and owner are right by then. */
    if (relay->listener < 0 || relay->placeholder < 0 ||
        bind(relay->listener, (const struct sockaddr *)address, sizeof *address) < 0 ||
        chmod(relay->path, 0600) < 0 || chown(relay->path, uid, (gid_t)-1) < 0 ||
        listen(relay->listener, 0) < 0 ||
        connect(relay->placeholder, (const struct sockaddr *)address, sizeof *address) < 0)
        return err_sys(err, errno, "cannot listen for QEMU at %s", relay->path);
    return 0;
}

int relay_listen(const char *path, uid_t uid, relay_forward_fn *forward, void *arg, struct relay **ret,
                 struct err *err)
{
    struct relay *relay;
    struct sockaddr_un address;
    int r = address_of(path, &address, err);
    if (r < 0 || (r = relay_new(path, forward, arg, &relay, err)) < 0)
        return r;
    if ((r = listen_closed(relay, &address, uid, err)) < 0)
        relay_free(relay);
    else
        *ret = relay;
    return r;
}

int relay_admit(struct relay *relay, struct err *err)
{
    int fd = accept4(relay->listener, NULL, NULL, SOCK_CLOEXEC);
    if (fd < 0)
        return err_sys(err, errno, "cannot take QEMU's connection at %s", relay->path);
    close(fd);
    close(TAKE_FD(relay->placeholder));
    return start(relay, err);
}

int relay_connect(const char *path, relay_forward_fn *forward, void *arg, struct relay **ret, struct err *err)
{
    struct relay *relay;
    struct sockaddr_un address;
    int r = address_of(path, &address, err);
    if (r < 0 || (r = relay_new(path, forward, arg, &relay, err)) < 0)
        return r;
    relay->socket = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (relay->socket < 0 || connect(relay->socket, (struct sockaddr *)&address, sizeof address) < 0)
        r = err_sys(err, errno, "cannot reach QEMU's incoming migration at %s", path);
    if (r == 0)
        r = start(relay, err);
    if (r < 0)
        relay_free(relay);
    else
        *ret = relay;
    return r;
}

int relay_adopt(int fd, const void *first, size_t first_size, relay_forward_fn *forward, void *arg,
                struct relay **ret, struct err *err)
{
    struct relay *relay;
    int r = relay_new("", forward, arg, &relay, err);
    if (r < 0) {
        close(fd);
        return r;
    }
    relay->socket = fd;
    if (first_size && !(relay->first = malloc(first_size)))
        r = err_set(err, ENOMEM, "out of memory");
    if (r == 0) {
        if (first_size)
            memcpy(relay->first, first, first_size);
        relay->first_size = first_size;
        r = start(relay, err);
    }
    if (r < 0)
        relay_free(relay);
    else
        *ret = relay;
    return r;
}

/* 0 once QEMU may take more. */
static int wait_room(const struct relay *relay, int fd, struct err *err)
{
    struct pollfd fds[] = {{.fd = fd, .events = POLLOUT}, {.fd = relay->interrupt, .events = POLLIN}};
    while (poll(fds, 2, -1) < 0)
        if (errno != EINTR)
            return err_sys(err, errno, "cannot wait for QEMU");
    return fds[1].revents ? err_set(err, EINTR, "interrupted") : 0;
}

int relay_write(struct relay *relay, const void *data, size_t size, size_t *ret_written, struct err *err)
{
    int fd = atomic_load(&relay->socket), r = 0;
    size_t done = 0;
    while (r == 0 && done < size) {
        ssize_t n =
            fd < 0 ? -1 : send(fd, (const char *)data + done, size - done, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n >= 0)
            done += (size_t)n;
        else if (fd >= 0 && errno == EAGAIN)
            r = wait_room(relay, fd, err);
        else if (fd < 0 || errno != EINTR)
            r = err_set(err, EPIPE, "QEMU closed its migration socket");
    }
    *ret_written = done;
    return r;
}

bool relay_is_read(const struct relay *relay)
{
    int fd = atomic_load(&relay->socket), unread;
    return fd >= 0 && ioctl(fd, SIOCOUTQ, &unread) == 0 && unread == 0;
}

void relay_keep_short(struct relay *relay)
{
    const int queue = SHORT_QUEUE;
    int fd = atomic_load(&relay->socket);
    atomic_store(&relay->chunk, SHORT_CHUNK);
    if (fd >= 0) /* only slower without */
        setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &queue, sizeof queue);
}

void relay_kick(struct relay *relay)
{
    eventfd_write(relay->kick, 1);
}

void relay_interrupt(struct relay *relay, bool on)
{
    eventfd_t ignored;
    if (on)
        eventfd_write(relay->interrupt, 1);
    else
        eventfd_read(relay->interrupt, &ignored);
}

uint64_t relay_bytes(const struct relay *relay)
{
    return atomic_load(&relay->bytes);
}

void relay_stop(struct relay *relay)
{
    if (!relay)
        return;
    eventfd_write(relay->stop, 1);
    int fd = atomic_load(&relay->socket);
    if (fd >= 0)
        shutdown(fd, SHUT_RDWR);
}

void relay_join(struct relay *relay)
{
    if (!relay || !relay->started)
        return;
    relay_stop(relay);
    pthread_join(relay->thread, NULL);
    relay->started = false;
}

void relay_free(struct relay *relay)
{
    if (!relay)
        return;
    relay_join(relay);
    if (relay->listener >= 0)
        unlink(relay->path);
    const int fds[] = {relay->listener, relay->placeholder, relay->socket,
                       relay->stop,     relay->kick,        relay->interrupt};
    for (size_t i = 0; i < ARRAY_SIZE(fds); i++)
        if (fds[i] >= 0)
            close(fds[i]);
    free(relay->first);
    free(relay);
}
