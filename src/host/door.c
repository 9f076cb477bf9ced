/* SPDX-License-Identifier: Apache-2.0 */
#include "host/door.h"

#include "base/clienthello.h"
#include "base/clock.h"
#include "base/crowd.h"
#include "base/log.h"
#include "base/macro.h"
#include "base/msg.h"
#include "base/tcp.h"
#include "host/vm.h"
#include "move/move.h"

#include <errno.h>
#include <grp.h>
#include <limits.h>
#include <netdb.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

/* Only a queue that is full would make us wait, for an orai-vm that does not look into it. */
#define HAND_OVER_MSEC 1
#define LOOK_AGAIN_NSEC (5 * NSEC_PER_MSEC)

/* The fixed descriptors stand first in the poll set. */
enum { POLL_STOP, POLL_SIGNAL, POLL_LOCAL, POLL_PORT, POLL_FIXED };

struct half_open {
    int fd;
    struct crowd_member who;
    size_t seen; /* bytes that were there and not enough */
};

struct door {
    struct host *host;
    struct http *http;
    pthread_t thread;
    bool running;
    int stop, signals, local, port;
    uint16_t port_number;
    char socket_path[PATH_MAX];
    struct half_open half_open[DOOR_MAX_HALF_OPEN];
    unsigned half_open_count;
    bool local_open;      /* the unix socket is listened to */
    int64_t accept_again; /* after EMFILE and the like; 0 = at once */
};

/* For answer_late, whose conversations may outlive the door. Name and identity only. */
static struct move_host late_host;

bool door_vm_name(const char *name, struct id *ret)
{
    char hex[ID_TEXT_SIZE];
    if (strlen(name) != ID_TEXT_SIZE - 1 + sizeof ".orai" - 1 ||
        strcmp(name + ID_TEXT_SIZE - 1, ".orai") != 0)
        return false;
    memcpy(hex, name, ID_TEXT_SIZE - 1);
    hex[ID_TEXT_SIZE - 1] = '\0';
    return id_parse(hex, ret) == 0;
}

/* --- sockets -------------------------------------------------------------------------------------------- */

static void give_to_group(const char *path)
{
    /* NOLINTNEXTLINE(concurrency-mt-unsafe): there are no threads yet */
    struct group *group = getgrnam("orai");
    if (!group)
        log_warning(
            "there is no group \"orai\": only root may use the API (make it with: groupadd --system orai)");
    else if (chown(path, (uid_t)-1, group->gr_gid) < 0 || chmod(path, 0660) < 0)
        log_warning("cannot give %s to the group orai: %m", path);
}

static int listen_local(struct door *door, struct err *err)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int length =
        snprintf(door->socket_path, sizeof door->socket_path, "%s/api.sock", door->host->options.run_dir);
    if (length >= (int)sizeof address.sun_path)
        return err_set(err, ENAMETOOLONG, "the path of the socket, %s, is longer than %zu characters",
                       door->socket_path, sizeof address.sun_path - 1);
    memcpy(address.sun_path, door->socket_path, (size_t)length + 1);
    door->local = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (door->local < 0)
        return err_sys(err, errno, "cannot make a socket");
    unlink(door->socket_path); /* a killed oraid's; a live one holds the lock of the state directory */
    /* The mode of an unbound socket becomes that of its file: no moment in which others may connect. */
    if (fchmod(door->local, 0600) < 0 || bind(door->local, (struct sockaddr *)&address, sizeof address) < 0 ||
        listen(door->local, SOMAXCONN) < 0)
        return err_sys(err, errno, "cannot listen at %s", door->socket_path);
    give_to_group(door->socket_path);
    return 0;
}

static int bind_port(const struct addrinfo *address, int *ret)
{
    int one = 1, zero = 0;
    _cleanup_close_ int fd =
        socket(address->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, address->ai_protocol);
    if (fd < 0)
        return -errno;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (address->ai_family == AF_INET6)
        setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &zero, sizeof zero); /* one socket for both */
    if (bind(fd, address->ai_addr, address->ai_addrlen) < 0 || listen(fd, SOMAXCONN) < 0)
        return -errno;
    *ret = TAKE_FD(fd);
    return 0;
}

static int listen_port(struct door *door, struct err *err)
{
    const struct host_options *options = &door->host->options;
    const char *host = options->listen_address[0] ? options->listen_address : "::";
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE | AI_NUMERICSERV},
                    *list = NULL;
    char port[8];
    snprintf(port, sizeof port, "%u", options->port);
    int r = getaddrinfo(host, port, &hints, &list);
    if (r)
        return err_set(err, EINVAL, "--listen: cannot use the address \"%s\": %s", host, gai_strerror(r));
    r = bind_port(list, &door->port);
    freeaddrinfo(list);
    bool no_ipv6 = r == -EAFNOSUPPORT || r == -EADDRNOTAVAIL;
    if (no_ipv6 && !options->listen_address[0]) {
        struct sockaddr_in any = {.sin_family = AF_INET, .sin_port = htons(options->port)};
        struct addrinfo v4 = {.ai_family = AF_INET, .ai_addr = (void *)&any, .ai_addrlen = sizeof any};
        r = bind_port(&v4, &door->port);
    }
    if (r < 0) {
        err_sys(err, r, "cannot listen at %s port %s", host, port);
        return err_hint(err, "choose another one with --listen ADDRESS:PORT");
    }
    union {
        struct sockaddr any;
        struct sockaddr_in v4;
        struct sockaddr_in6 v6;
    } bound = {0};
    socklen_t size = sizeof bound;
    if (getsockname(door->port, &bound.any, &size) < 0)
        return err_sys(err, errno, "cannot tell the port");
    door->port_number = ntohs(bound.any.sa_family == AF_INET6 ? bound.v6.sin6_port : bound.v4.sin_port);
    return 0;
}

/* --- half-open connections ------------------------------------------------------------------------------ */

static void drop(struct door *door, unsigned index)
{
    door->half_open[index] = door->half_open[--door->half_open_count];
}

/* No orai-vm runs: the guest has been stopped here, or has gone on. A source that asks what became of its
 * move is told by us. */
static void answer_late(struct door *door, const struct id *vm, int fd)
{
    char name[VM_NAME_SIZE];
    struct epoch_record record;
    struct err err = ERR_NONE;
    if (vm_name_of(door->host->vms, vm, name) < 0 || vm_record(door->host, name, &record, &err) < 0) {
        close(fd);
        return;
    }
    arrival_answer(&late_host, vm, &record, fd);
}

/* Puts the connection into the queue of the VM's orai-vm. The answer is not waited for: when orai-vm cannot
 * use the connection it closes it, and the sender sees that. Consumes `fd`. */
static void hand_over(struct door *door, const struct id *vm, int fd)
{
    static struct log_limit limit;
    _cleanup_close_ int owned = fd;
    char path[PATH_MAX], text[ID_TEXT_SIZE];
    struct err err = ERR_NONE;
    if (vm_control_path(door->host->vms, vm, path) < 0) {
        log_limited(&limit, LOG_LEVEL_WARNING, "a connection for the VM %s, which is not here, is closed",
                    id_format(vm, text));
        return;
    }
    _cleanup_json_ json_t *request = json_pack("{s:s}", "do", "accept");
    _cleanup_close_ int socket = msg_connect(path, HAND_OVER_MSEC, &err);
    int r = socket < 0 ? socket : msg_send(socket, request, fd, HAND_OVER_MSEC, &err);
    if (r == -ENOENT || r == -ECONNREFUSED)
        answer_late(door, vm, TAKE_FD(owned));
    else if (r < 0)
        log_limited(&limit, LOG_LEVEL_WARNING, "a connection for the VM %s is closed: %s",
                    id_format(vm, text), err.text);
}

/* Decides where the connection goes once its ClientHello is there. true: it is not half-open any more. */
static bool route(struct door *door, struct half_open *half)
{
    uint8_t hello[CLIENTHELLO_MAX];
    char name[SERVER_NAME_SIZE];
    struct id vm;
    ssize_t size = recv(half->fd, hello, sizeof hello, MSG_PEEK | MSG_DONTWAIT);
    if (size < 0 && (errno == EAGAIN || errno == EINTR))
        return false;
    int r = size <= 0 ? -EPROTO : clienthello_server_name(hello, (size_t)size, name);
    bool more = r == -EAGAIN && (size_t)size > half->seen && (size_t)size < sizeof hello;
    /* Readable again only when more has come, else poll would return at once for ever. */
    int low_water = more ? (int)size + 1 : 1;
    setsockopt(half->fd, SOL_SOCKET, SO_RCVLOWAT, &low_water, sizeof low_water);
    if (more) {
        half->seen = (size_t)size;
        return false;
    }
    if (r < 0) {
        log_debug("a connection without a TLS ClientHello is closed");
        close(half->fd);
    } else if (door_vm_name(name, &vm)) {
        hand_over(door, &vm, half->fd);
    } else {
        http_adopt(door->http, half->fd);
    }
    return true;
}

/* All places are taken: somebody has to go, but not always the same one. */
static void make_room(struct door *door, const struct crowd_member *newcomer)
{
    const struct crowd_member *members[DOOR_MAX_HALF_OPEN];
    for (unsigned i = 0; i < door->half_open_count; i++)
        members[i] = &door->half_open[i].who;
    int victim = crowd_victim(members, door->half_open_count, newcomer);
    close(door->half_open[victim].fd);
    drop(door, (unsigned)victim);
}

static void take_connection(struct door *door, int listener)
{
    int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0) {
        /* EMFILE and its like: the connection stays in the queue; trying at once again would spin. */
        if (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS)
            door->accept_again = clock_now() + NSEC_PER_SEC;
        return;
    }
    if (listener == door->local) {
        http_adopt(door->http, fd);
        return;
    }
    tcp_prepare(fd);
    struct half_open half = {.fd = fd, .who = crowd_member(fd)};
    if (route(door, &half)) /* mostly the hello is there already */
        return;
    if (door->half_open_count == DOOR_MAX_HALF_OPEN)
        make_room(door, &half.who);
    door->half_open[door->half_open_count++] = half;
}

static int64_t deadline(const struct half_open *half)
{
    return half->who.since + DOOR_HELLO_MSEC * NSEC_PER_MSEC;
}

static void serve_half_open(struct door *door, const struct pollfd *polled, unsigned count)
{
    int64_t now = clock_now();
    for (unsigned i = count; i-- > 0;) { /* backwards: drop() moves the last one into the gap */
        struct half_open *half = &door->half_open[i];
        if (polled[i].revents && route(door, half)) {
            drop(door, i);
        } else if (now >= deadline(half)) {
            close(half->fd);
            drop(door, i);
        }
    }
}

/* --- the thread ----------------------------------------------------------------------------------------- */

static int poll_timeout(const struct door *door)
{
    int64_t next = door->accept_again ? door->accept_again : INT64_MAX;
    if (!door->local_open)
        next = MIN(next, clock_now() + LOOK_AGAIN_NSEC);
    for (unsigned i = 0; i < door->half_open_count; i++)
        next = MIN(next, deadline(&door->half_open[i]));
    return next == INT64_MAX ? -1 : clock_poll_ms(next);
}

static void fill_poll(struct door *door, struct pollfd *fds)
{
    if (door->accept_again && clock_now() >= door->accept_again)
        door->accept_again = 0;
    bool open = !door->accept_again;
    /* Local clients are all of one kind: one that waits in the kernel's queue keeps its turn. */
    door->local_open = http_has_room(door->http);
    fds[POLL_STOP] = (struct pollfd){.fd = door->stop, .events = POLLIN};
    fds[POLL_SIGNAL] = (struct pollfd){.fd = door->signals, .events = POLLIN};
    fds[POLL_LOCAL] = (struct pollfd){.fd = open && door->local_open ? door->local : -1, .events = POLLIN};
    fds[POLL_PORT] = (struct pollfd){.fd = open ? door->port : -1, .events = POLLIN};
    for (unsigned i = 0; i < door->half_open_count; i++)
        fds[POLL_FIXED + i] = (struct pollfd){.fd = door->half_open[i].fd, .events = POLLIN};
}

static void *serve(void *arg)
{
    struct door *door = arg;
    for (;;) {
        struct pollfd fds[POLL_FIXED + DOOR_MAX_HALF_OPEN];
        unsigned count = door->half_open_count;
        fill_poll(door, fds);
        if (poll(fds, POLL_FIXED + count, poll_timeout(door)) < 0 && errno != EINTR)
            log_error("door: poll: %m");
        if (fds[POLL_STOP].revents)
            return NULL;
        if (fds[POLL_SIGNAL].revents) {
            struct signalfd_siginfo signal;
            if (read(door->signals, &signal, sizeof signal) == sizeof signal)
                log_info("SIG%s: stopping; the VMs go on", sigabbrev_np((int)signal.ssi_signo));
            http_stop(door->http);
        }
        serve_half_open(door, fds + POLL_FIXED, count);
        if (fds[POLL_LOCAL].revents)
            take_connection(door, door->local);
        if (fds[POLL_PORT].revents)
            take_connection(door, door->port);
    }
}

static int make_signals(struct door *door, struct err *err)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    door->signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    door->stop = eventfd(0, EFD_CLOEXEC);
    return door->signals < 0 || door->stop < 0 ? err_sys(err, errno, "cannot wait for signals") : 0;
}

int door_new(struct host *host, struct door **ret, struct err *err)
{
    struct door *door = calloc(1, sizeof *door);
    if (!door)
        return err_set(err, ENOMEM, "out of memory");
    door->host = host;
    late_host = (struct move_host){.name = host->options.name, .identity = host->identity};
    door->stop = door->signals = door->local = door->port = -1;
    int r = make_signals(door, err);
    if (r == 0)
        r = listen_port(door, err);
    if (r == 0)
        r = listen_local(door, err);
    if (r < 0) {
        door_free(door);
        return r;
    }
    *ret = door;
    return 0;
}

uint16_t door_port(const struct door *door)
{
    return door->port_number;
}

int door_start(struct door *door, struct http *http, struct err *err)
{
    door->http = http;
    int r = pthread_create(&door->thread, NULL, serve, door);
    if (r)
        return err_sys(err, r, "cannot start a thread");
    pthread_setname_np(door->thread, "door");
    door->running = true;
    return 0;
}

void door_free(struct door *door)
{
    if (!door)
        return;
    if (door->running) {
        eventfd_write(door->stop, 1);
        pthread_join(door->thread, NULL);
        unlink(door->socket_path);
    }
    for (unsigned i = 0; i < door->half_open_count; i++)
        close(door->half_open[i].fd);
    close_cleanup(&door->stop);
    close_cleanup(&door->signals);
    close_cleanup(&door->local);
    close_cleanup(&door->port);
    free(door);
}
