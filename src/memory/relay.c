/* SPDX-License-Identifier: Apache-2.0 */
#include "memory/relay.h"

#include "base/file.h"
#include "base/macro.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#define RELAY_CHUNK (128U << 10)

struct relay {
    pthread_t thread;
    bool started;
    int listener; /* -1 once QEMU has connected */
    atomic_int socket;
    int stop; /* eventfd: readable once the relay must end */
    _Atomic uint64_t bytes;
    relay_forward_fn *forward;
    void *arg;
    char path[sizeof((struct sockaddr_un *)0)->sun_path];
};

static int address_of(const char *path, struct sockaddr_un *ret, struct err *err)
{
    *ret = (struct sockaddr_un){.sun_family = AF_UNIX};
    if (snprintf(ret->sun_path, sizeof ret->sun_path, "%s", path) >= (int)sizeof ret->sun_path)
        return err_set(err, ENAMETOOLONG, "socket path too long: %s", path);
    return 0;
}

/* True when `fd` has input; false when the relay must end. */
static bool wait_input(struct relay *relay, int fd)
{
    struct pollfd fds[] = {{.fd = fd, .events = POLLIN}, {.fd = relay->stop, .events = POLLIN}};
    while (poll(fds, 2, -1) < 0)
        if (errno != EINTR)
            return false;
    return !(fds[1].revents & POLLIN);
}

static bool accept_qemu(struct relay *relay)
{
    if (relay->listener < 0)
        return true;
    if (!wait_input(relay, relay->listener))
        return false;
    int fd = accept4(relay->listener, NULL, NULL, SOCK_CLOEXEC);
    if (fd < 0)
        return false;
    close(TAKE_FD(relay->listener));
    unlink(relay->path);
    atomic_store(&relay->socket, fd);
    return true;
}

static void *relay_run(void *arg)
{
    struct relay *relay = arg;
    char *chunk = malloc(RELAY_CHUNK);
    bool by_us = true; /* the end; QEMU's own may be of one direction only */
    while (chunk && accept_qemu(relay) && wait_input(relay, relay->socket)) {
        ssize_t n = read(relay->socket, chunk, RELAY_CHUNK);
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

static int relay_new(int listener, int socket, const char *path, relay_forward_fn *forward, void *arg,
                     struct relay **ret, struct err *err)
{
    struct relay *relay = calloc(1, sizeof *relay);
    if (!relay) {
        close(listener >= 0 ? listener : socket);
        if (listener >= 0)
            unlink(path);
        return err_set(err, ENOMEM, "out of memory");
    }
    relay->listener = listener;
    relay->socket = socket;
    relay->forward = forward;
    relay->arg = arg;
    snprintf(relay->path, sizeof relay->path, "%s", path);
    relay->stop = eventfd(0, EFD_CLOEXEC);
    int r = relay->stop < 0 ? errno : pthread_create(&relay->thread, NULL, relay_run, relay);
    if (r != 0) {
        relay_free(relay);
        return err_sys(err, r, "cannot start the memory relay");
    }
    relay->started = true;
    *ret = relay;
    return 0;
}

int relay_listen(const char *path, uid_t uid, relay_forward_fn *forward, void *arg, struct relay **ret,
                 struct err *err)
{
    struct sockaddr_un address;
    int r = address_of(path, &address, err);
    if (r < 0)
        return r;
    _cleanup_close_ int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    unlink(path);
    /* Nobody can connect before listen(2): the file's mode and owner are right by then, whatever the umask.
     */
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof address) < 0 || chmod(path, 0600) < 0 ||
        chown(path, uid, (gid_t)-1) < 0 || listen(fd, 1) < 0) {
        r = err_sys(err, errno, "cannot listen for QEMU at %s", address.sun_path);
        unlink(path);
        return r;
    }
    return relay_new(TAKE_FD(fd), -1, path, forward, arg, ret, err);
}

int relay_connect(const char *path, relay_forward_fn *forward, void *arg, struct relay **ret, struct err *err)
{
    struct sockaddr_un address;
    int r = address_of(path, &address, err);
    if (r < 0)
        return r;
    _cleanup_close_ int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address) < 0)
        return err_sys(err, errno, "cannot reach QEMU's incoming migration at %s", path);
    return relay_new(-1, TAKE_FD(fd), path, forward, arg, ret, err);
}

int relay_write(struct relay *relay, const void *data, size_t size, struct err *err)
{
    int fd = atomic_load(&relay->socket);
    for (size_t done = 0; done < size;) {
        ssize_t n = fd < 0 ? -1 : send(fd, (const char *)data + done, size - done, MSG_NOSIGNAL);
        if (n < 0 && fd >= 0 && errno == EINTR)
            continue;
        if (n < 0)
            return err_set(err, EPIPE, "QEMU closed its migration socket");
        done += (size_t)n;
    }
    return 0;
}

uint64_t relay_bytes(const struct relay *relay)
{
    return atomic_load(&relay->bytes);
}

void relay_stop(struct relay *relay)
{
    if (!relay)
        return;
    uint64_t one = 1;
    if (write(relay->stop, &one, sizeof one) < 0)
        return; /* an eventfd takes 2^64 - 2 of these */
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
    if (relay->listener >= 0) {
        close(relay->listener);
        unlink(relay->path);
    }
    if (relay->socket >= 0)
        close(relay->socket);
    if (relay->stop >= 0)
        close(relay->stop);
    free(relay);
}
