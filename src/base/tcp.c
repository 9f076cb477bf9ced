/* SPDX-License-Identifier: Apache-2.0
 *
 * getaddrinfo(3) knows no deadline, so a name (not a numeric address) is looked up on a thread of its own,
 * which is left behind when the time is up. The look-up is then owned by whichever of the two lets go last.
 */
#include "base/tcp.h"

#include "base/clock.h"
#include "base/macro.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#define HOST_NAME_SIZE 256
#define KEEPALIVE_IDLE_SEC 10
#define KEEPALIVE_INTERVAL_SEC 5

struct lookup {
    pthread_mutex_t lock; /* guards all below but host and port */
    pthread_cond_t ended;
    int users; /* the caller, the thread */
    bool done;
    int status; /* EAI_... */
    struct addrinfo *result;
    char host[HOST_NAME_SIZE];
    char port[6];
};

static const struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICSERV};
static const struct addrinfo numeric_hints = {.ai_socktype = SOCK_STREAM,
                                              .ai_flags = AI_NUMERICSERV | AI_NUMERICHOST};

static void addrinfo_cleanup(struct addrinfo **list)
{
    if (*list)
        freeaddrinfo(*list);
}

static void lookup_release(struct lookup *lookup)
{
    pthread_mutex_lock(&lookup->lock);
    bool last = --lookup->users == 0;
    pthread_mutex_unlock(&lookup->lock);
    if (!last)
        return;
    addrinfo_cleanup(&lookup->result);
    pthread_cond_destroy(&lookup->ended);
    pthread_mutex_destroy(&lookup->lock);
    free(lookup);
}

static void *lookup_run(void *argument)
{
    struct lookup *lookup = argument;
    struct addrinfo *result = NULL;
    int status = getaddrinfo(lookup->host, lookup->port, &hints, &result);
    pthread_mutex_lock(&lookup->lock);
    lookup->status = status;
    lookup->result = status == 0 ? result : NULL;
    lookup->done = true;
    pthread_cond_signal(&lookup->ended);
    pthread_mutex_unlock(&lookup->lock);
    lookup_release(lookup);
    return NULL;
}

/* Signals are the program's business: its handlers must not run on this thread. */
static int start_detached(void *(*run)(void *), void *argument)
{
    pthread_t thread;
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &old);
    int r = -pthread_create(&thread, NULL, run, argument);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (r == 0)
        pthread_detach(thread);
    return r;
}

static int lookup_start(const char *host, const char *port, struct lookup **ret)
{
    struct lookup *lookup = calloc(1, sizeof *lookup);
    if (!lookup)
        return -ENOMEM;
    pthread_mutex_init(&lookup->lock, NULL);
    pthread_cond_init(&lookup->ended, NULL);
    lookup->users = 2;
    snprintf(lookup->host, sizeof lookup->host, "%s", host);
    snprintf(lookup->port, sizeof lookup->port, "%s", port);
    int r = start_detached(lookup_run, lookup);
    if (r < 0) {
        lookup->users = 1; /* the thread never was */
        lookup_release(lookup);
        return r;
    }
    *ret = lookup;
    return 0;
}

/* 0 once the look-up ended (*ret_status says how), or -ETIMEDOUT. */
static int lookup_wait(struct lookup *lookup, int64_t deadline, int *ret_status, struct addrinfo **ret_list)
{
    struct timespec until = {.tv_sec = deadline / NSEC_PER_SEC, .tv_nsec = deadline % NSEC_PER_SEC};
    int r = 0;
    pthread_mutex_lock(&lookup->lock);
    while (!lookup->done && r == 0)
        r = -pthread_cond_clockwait(&lookup->ended, &lookup->lock, CLOCK_MONOTONIC, &until);
    if (lookup->done) {
        r = 0;
        *ret_status = lookup->status;
        *ret_list = TAKE_PTR(lookup->result);
    }
    pthread_mutex_unlock(&lookup->lock);
    lookup_release(lookup);
    return r;
}

static int resolve(const char *host, const char *port, int64_t deadline, struct addrinfo **ret,
                   struct err *err)
{
    if (!host[0] || strlen(host) >= HOST_NAME_SIZE)
        return err_set(err, EINVAL, "\"%.40s\" is no host name or address", host);
    int status = getaddrinfo(host, port, &numeric_hints, ret);
    if (status == EAI_NONAME) {
        struct lookup *lookup = NULL;
        int r = lookup_start(host, port, &lookup);
        if (r == 0)
            r = lookup_wait(lookup, deadline, &status, ret);
        if (r < 0)
            return err_sys(err, r, "cannot look up the name %s", host);
    }
    if (status == 0)
        return 0;
    if (status == EAI_SYSTEM)
        return err_sys(err, EIO, "cannot look up the name %s", host);
    err_set(err, EHOSTUNREACH, "cannot look up the name %s: %s", host, gai_strerror(status));
    err_hint(err, "getent hosts %s", host);
    return -EHOSTUNREACH;
}

static int set(int socket, int level, int option, int value)
{
    return setsockopt(socket, level, option, &value, sizeof value) < 0 ? -errno : 0;
}

int tcp_prepare(int socket)
{
    static const struct {
        int level, option, value;
    } options[] = {
        {IPPROTO_TCP, TCP_NODELAY, 1},
        {SOL_SOCKET, SO_KEEPALIVE, 1},
        {IPPROTO_TCP, TCP_KEEPIDLE, KEEPALIVE_IDLE_SEC},
        {IPPROTO_TCP, TCP_KEEPINTVL, KEEPALIVE_INTERVAL_SEC},
        {IPPROTO_TCP, TCP_KEEPCNT, (TCP_DEAD_MSEC / 1000 - KEEPALIVE_IDLE_SEC) / KEEPALIVE_INTERVAL_SEC},
        {IPPROTO_TCP, TCP_USER_TIMEOUT, TCP_DEAD_MSEC},
    };
    int flags = fcntl(socket, F_GETFL);
    if (flags < 0 || fcntl(socket, F_SETFL, flags | O_NONBLOCK) < 0 || fcntl(socket, F_SETFD, FD_CLOEXEC) < 0)
        return -errno;
    for (size_t i = 0; i < ARRAY_SIZE(options); i++) {
        int r = set(socket, options[i].level, options[i].option, options[i].value);
        if (r < 0)
            return r;
    }
    return 0;
}

static int wait_connected(int socket, int64_t deadline)
{
    struct pollfd p = {.fd = socket, .events = POLLOUT};
    int n;
    do
        n = poll(&p, 1, clock_poll_ms(deadline));
    while ((n < 0 && errno == EINTR) || (n == 0 && clock_now() < deadline));
    if (n <= 0)
        return n == 0 ? -ETIMEDOUT : -errno;
    int error = 0;
    socklen_t size = sizeof error;
    if (getsockopt(socket, SOL_SOCKET, SO_ERROR, &error, &size) < 0)
        return -errno;
    return -error;
}

static int connect_one(const struct addrinfo *address, int64_t deadline, int *ret_socket)
{
    _cleanup_close_ int fd = socket(address->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -errno;
    int r = tcp_prepare(fd);
    if (r == 0 && connect(fd, address->ai_addr, address->ai_addrlen) < 0)
        r = errno == EINPROGRESS || errno == EINTR ? wait_connected(fd, deadline) : -errno;
    if (r < 0)
        return r;
    *ret_socket = TAKE_FD(fd);
    return 0;
}

int tcp_connect(const char *address, uint16_t port, int64_t deadline, int *ret_socket, struct err *err)
{
    _cleanup_(addrinfo_cleanup) struct addrinfo *list = NULL;
    char service[6];
    snprintf(service, sizeof service, "%u", port);
    int r = resolve(address, service, deadline, &list, err);
    if (r < 0)
        return r;

    int left = 0;
    for (const struct addrinfo *a = list; a; a = a->ai_next)
        left++;
    /* An address that answers nothing must not eat the time of those behind it. */
    for (const struct addrinfo *a = list; a; a = a->ai_next, left--) {
        int64_t now = clock_now();
        r = connect_one(a, now + (deadline - now) / left, ret_socket);
        if (r == 0)
            return 0;
    }
    err_sys(err, r, "cannot reach %s port %u", address, port);
    err_hint(err, "check that oraid runs there and that no firewall closes port %u", port);
    return r;
}
