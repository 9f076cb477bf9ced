/* SPDX-License-Identifier: Apache-2.0
 *
 * nbd: accepts clients and gives each a thread.
 *
 * The acceptor thread alone touches the listener and hands out places; a connection's thread only marks its
 * place as left and wakes the acceptor, which joins it and closes the socket. So a descriptor stays open
 * (and its number ours) as long as anybody may shut it down. When every place is taken the listener is not
 * polled: further clients wait in its queue.
 *
 * Stopping: no new clients; each socket is closed for receiving, so that its thread serves what had arrived
 * and ends. A client that does not take its replies within STOP_MSEC is cut off.
 */
#include "disk/nbd.h"

#include "base/clock.h"
#include "base/log.h"
#include "base/macro.h"
#include "disk/nbd_connection.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#define DEFAULT_CONNECTIONS 16
#define MOST_CONNECTIONS 1024
#define STACK_SIZE (256U << 10)
#define STOP_MSEC 2000
#define ACCEPT_PAUSE_MSEC 100 /* after running out of descriptors or memory */

enum place_state { PLACE_FREE, PLACE_TAKEN, PLACE_LEFT };

struct place {
    struct nbd_server *server;
    enum place_state state;
    int fd; /* open while the place is not free */
    pthread_t thread;
};

struct nbd_server {
    struct disk *disk;
    struct nbd_export export;
    char *name;
    int listener;
    int wake; /* eventfd: a place was left, or stop */
    pthread_t acceptor;
    struct nbd_statistics statistics; /* atomic operations only */

    pthread_mutex_t lock; /* innermost: nothing is called with it held */
    bool stopping;
    unsigned count; /* of places */
    struct place *places;
};

static void wake_acceptor(struct nbd_server *server)
{
    uint64_t one = 1;
    ssize_t n = write(server->wake, &one, sizeof one);
    assert(n == sizeof one); /* the counter cannot overflow before it is read */
    (void)n;
}

static void *serve_place(void *argument)
{
    struct place *place = argument;
    struct nbd_server *server = place->server;
    int r = nbd_connection_serve(server->disk, &server->export, NBD_HANDSHAKE_MSEC, place->fd,
                                 &server->statistics);
    if (r < 0) {
        errno = -r;
        log_debug("NBD client of %s dropped: %m", disk_path(server->disk));
    }
    shutdown(place->fd, SHUT_RDWR); /* the client need not wait until the acceptor closes it */
    pthread_mutex_lock(&server->lock);
    place->state = PLACE_LEFT;
    pthread_mutex_unlock(&server->lock);
    wake_acceptor(server);
    return NULL;
}

static int start_thread(pthread_t *thread, void *(*run)(void *), void *argument)
{
    pthread_attr_t attributes;
    sigset_t all, old;
    sigfillset(&all);
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, STACK_SIZE);
    pthread_sigmask(SIG_SETMASK, &all, &old); /* signals are the program's business */
    int r = pthread_create(thread, &attributes, run, argument);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    pthread_attr_destroy(&attributes);
    return -r;
}

static enum place_state state_of(struct place *place)
{
    pthread_mutex_lock(&place->server->lock);
    enum place_state state = place->state;
    pthread_mutex_unlock(&place->server->lock);
    return state;
}

/* Joins the threads that are through. Returns how many places are still taken, and a free one in *ret_free if
 * any. */
static unsigned reap(struct nbd_server *server, struct place **ret_free)
{
    unsigned taken = 0;
    *ret_free = NULL;
    for (unsigned i = 0; i < server->count; i++) {
        struct place *place = &server->places[i];
        enum place_state state = state_of(place);
        if (state == PLACE_LEFT) {
            pthread_join(place->thread, NULL);
            close(place->fd);
            place->state = state = PLACE_FREE;
        }
        if (state == PLACE_TAKEN)
            taken++;
        else
            *ret_free = place;
    }
    return taken;
}

/* Returns how long to leave the listener alone: 0, or after a shortage some milliseconds. */
static int accept_into(struct nbd_server *server, struct place *place)
{
    int fd = accept4(server->listener, NULL, NULL, SOCK_CLOEXEC);
    if (fd < 0) {
        if (errno == EAGAIN || errno == EINTR || errno == ECONNABORTED)
            return 0;
        log_warning("cannot accept an NBD client of %s: %m", disk_path(server->disk));
        return ACCEPT_PAUSE_MSEC;
    }
    place->fd = fd;
    place->state = PLACE_TAKEN;
    int r = start_thread(&place->thread, serve_place, place);
    if (r < 0) {
        errno = -r;
        log_warning("no thread for an NBD client of %s: %m", disk_path(server->disk));
        close(fd);
        place->state = PLACE_FREE;
        return ACCEPT_PAUSE_MSEC;
    }
    __atomic_fetch_add(&server->statistics.connections, 1, __ATOMIC_RELAXED);
    return 0;
}

static void drain_wake(struct nbd_server *server)
{
    uint64_t count;
    ssize_t n = read(server->wake, &count, sizeof count);
    (void)n; /* EAGAIN: nobody had called */
}

static bool is_stopping(struct nbd_server *server)
{
    pthread_mutex_lock(&server->lock);
    bool stopping = server->stopping;
    pthread_mutex_unlock(&server->lock);
    return stopping;
}

static void shut_all(struct nbd_server *server, int how)
{
    for (unsigned i = 0; i < server->count; i++)
        if (state_of(&server->places[i]) == PLACE_TAKEN)
            shutdown(server->places[i].fd, how);
}

/* Returns when the last client is gone. */
static void drain_places(struct nbd_server *server)
{
    struct place *unused;
    int64_t deadline = clock_now() + STOP_MSEC * NSEC_PER_MSEC;
    bool cut = false;
    shut_all(server, SHUT_RD);
    while (reap(server, &unused) > 0) {
        struct pollfd poller = {.fd = server->wake, .events = POLLIN};
        if (poll(&poller, 1, cut ? -1 : clock_poll_ms(deadline)) == 0) {
            shut_all(server, SHUT_RDWR);
            cut = true;
        }
        drain_wake(server);
    }
}

static void *accept_clients(void *argument)
{
    struct nbd_server *server = argument;
    int pause = 0;
    while (!is_stopping(server)) {
        struct place *place;
        reap(server, &place);
        struct pollfd pollers[] = {
            {.fd = server->wake, .events = POLLIN},
            {.fd = place && pause == 0 ? server->listener : -1, .events = POLLIN},
        };
        poll(pollers, ARRAY_SIZE(pollers), pause > 0 ? pause : -1);
        pause = 0;
        drain_wake(server);
        if (place && pollers[1].revents)
            pause = accept_into(server, place);
    }
    drain_places(server);
    return NULL;
}

static void free_parts(struct nbd_server *server)
{
    close(server->listener);
    if (server->wake >= 0)
        close(server->wake);
    pthread_mutex_destroy(&server->lock);
    free(server->places);
    free(server->name);
    free(server);
}

static int check_options(const struct nbd_options *options, struct err *err)
{
    if (options->export_name && strlen(options->export_name) > NBD_NAME_MAX)
        return err_set(err, EINVAL, "the NBD export's name is longer than %u bytes", NBD_NAME_MAX);
    if (options->max_connections > MOST_CONNECTIONS)
        return err_set(err, EINVAL, "more than %u NBD connections", MOST_CONNECTIONS);
    return 0;
}

int nbd_server_new(struct disk *disk, int listener, const struct nbd_options *options,
                   struct nbd_server **ret, struct err *err)
{
    int r = check_options(options, err);
    struct nbd_server *server = r < 0 ? NULL : calloc(1, sizeof *server);
    if (!server) {
        close(listener);
        return r < 0 ? r : err_set(err, ENOMEM, "out of memory");
    }
    server->disk = disk;
    server->listener = listener;
    server->name = strdup(options->export_name ? options->export_name : "");
    server->export = (struct nbd_export){
        .name = server->name,
        .size = disk_size(disk),
        .read_only = options->read_only,
        .direct = options->direct,
    };
    server->count = options->max_connections ? options->max_connections : DEFAULT_CONNECTIONS;
    server->places = calloc(server->count, sizeof *server->places);
    server->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    pthread_mutex_init(&server->lock, NULL);
    for (unsigned i = 0; server->places && i < server->count; i++)
        server->places[i].server = server;

    if (!server->name || !server->places)
        r = err_set(err, ENOMEM, "out of memory");
    else if (server->wake < 0 || fcntl(listener, F_SETFL, O_NONBLOCK) < 0)
        r = err_sys(err, errno, "cannot prepare the NBD server's descriptors");
    else if ((r = start_thread(&server->acceptor, accept_clients, server)) < 0)
        err_sys(err, r, "cannot start the NBD server's thread");
    if (r < 0) {
        free_parts(server);
        return r;
    }
    *ret = server;
    return 0;
}

void nbd_server_free(struct nbd_server *server)
{
    if (!server)
        return;
    pthread_mutex_lock(&server->lock);
    server->stopping = true;
    pthread_mutex_unlock(&server->lock);
    wake_acceptor(server);
    pthread_join(server->acceptor, NULL);
    free_parts(server);
}

size_t nbd_server_clients(struct nbd_server *server, int *ret, size_t max)
{
    size_t count = 0;
    for (unsigned i = 0; i < server->count && count < max; i++)
        if (state_of(&server->places[i]) == PLACE_TAKEN)
            ret[count++] = server->places[i].fd;
    return count;
}

void nbd_server_statistics(const struct nbd_server *server, struct nbd_statistics *ret)
{
    const struct nbd_statistics *statistics = &server->statistics;
    *ret = (struct nbd_statistics){
        .connections = __atomic_load_n(&statistics->connections, __ATOMIC_RELAXED),
        .reads = __atomic_load_n(&statistics->reads, __ATOMIC_RELAXED),
        .writes = __atomic_load_n(&statistics->writes, __ATOMIC_RELAXED),
        .flushes = __atomic_load_n(&statistics->flushes, __ATOMIC_RELAXED),
        .trims = __atomic_load_n(&statistics->trims, __ATOMIC_RELAXED),
        .read_bytes = __atomic_load_n(&statistics->read_bytes, __ATOMIC_RELAXED),
        .written_bytes = __atomic_load_n(&statistics->written_bytes, __ATOMIC_RELAXED),
        .errors = __atomic_load_n(&statistics->errors, __ATOMIC_RELAXED),
    };
}
