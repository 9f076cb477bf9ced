/* SPDX-License-Identifier: Apache-2.0
 *
 * A packet socket keeps messages apart, so nothing is parsed across packets and a broken message harms only
 * itself. What always holds: no call runs longer than its `msec`, however the peer dribbles or stalls; a
 * received descriptor is either handed to the caller or closed; a message that is not exactly one JSON object
 * with at most one descriptor is refused whole. No state of its own: any thread, one conversation per socket.
 */
#include "base/msg.h"

#include "base/clock.h"
#include "base/json.h"
#include "base/macro.h"

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>

#define SPARE_FDS 8 /* room for descriptors that nobody may send: to be closed, not lost count of */

static int64_t deadline_in(int msec)
{
    return msec < 0 ? INT64_MAX : clock_now() + msec * NSEC_PER_MSEC;
}

/* 0 when `socket` may be ready, -ETIMEDOUT at the deadline. */
static int wait_ready(int socket, short events, int64_t deadline)
{
    struct pollfd p = {.fd = socket, .events = events};
    int n = poll(&p, 1, clock_poll_ms(deadline));
    if (n < 0 && errno != EINTR)
        return -errno;
    return n <= 0 && clock_now() >= deadline ? -ETIMEDOUT : 0;
}

static int fill_address(const char *path, struct sockaddr_un *ret, struct err *err)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int length = snprintf(address.sun_path, sizeof address.sun_path, "%s", path);
    if (length <= 0 || length >= (int)sizeof address.sun_path)
        return err_set(err, ENAMETOOLONG, "the socket path %s must have 1 to %zu characters", path,
                       sizeof address.sun_path - 1);
    *ret = address;
    return 0;
}

static int check_replaceable(const char *path, struct err *err)
{
    struct stat st;
    if (lstat(path, &st) < 0)
        return errno == ENOENT ? 0 : err_sys(err, errno, "cannot listen at %s", path);
    if (!S_ISSOCK(st.st_mode))
        return err_set(err, EEXIST, "cannot listen at %s: a file that is no socket is there", path);
    return 0;
}

/* Bound beside its place and then renamed: whoever connects finds the old socket or a listening one, never
 * none. */
int msg_listen(const char *path, struct err *err)
{
    char temporary[PATH_MAX];
    struct sockaddr_un address;
    snprintf(temporary, sizeof temporary, "%s.new", path);
    int r = fill_address(temporary, &address, err);
    if (r == 0)
        r = check_replaceable(path, err);
    if (r < 0)
        return r;
    _cleanup_close_ int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    /* The mode of an unbound socket becomes that of its file: no moment in which others may connect. */
    if (fd < 0 || fchmod(fd, 0600) < 0)
        return err_sys(err, errno, "cannot make a socket");
    if (unlink(temporary) < 0 && errno != ENOENT)
        return err_sys(err, errno, "cannot remove %s", temporary);
    if (bind(fd, (struct sockaddr *)&address, sizeof address) < 0)
        return err_sys(err, errno, "cannot listen at %s", path);
    if (listen(fd, SOMAXCONN) < 0 || rename(temporary, path) < 0) {
        r = err_sys(err, errno, "cannot listen at %s", path);
        unlink(temporary);
        return r;
    }
    return TAKE_FD(fd);
}

/* A full listen queue makes a blocking connect wait, at most as long as SO_SNDTIMEO says. */
static int connect_before(int socket, const struct sockaddr_un *address, int64_t deadline)
{
    for (;;) {
        struct timeval limit = {0}; /* no limit */
        if (deadline != INT64_MAX) {
            int msec = MAX(clock_poll_ms(deadline), 1);
            limit = (struct timeval){.tv_sec = msec / 1000, .tv_usec = msec % 1000 * 1000L};
        }
        if (setsockopt(socket, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit) < 0)
            return -errno;
        if (connect(socket, (const struct sockaddr *)address, sizeof *address) == 0)
            return 0;
        if (errno != EAGAIN && errno != EINTR)
            return -errno;
        if (clock_now() >= deadline)
            return -ETIMEDOUT;
    }
}

int msg_connect(const char *path, int msec, struct err *err)
{
    struct sockaddr_un address;
    int r = fill_address(path, &address, err);
    if (r < 0)
        return r;
    _cleanup_close_ int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return err_sys(err, errno, "cannot make a socket");
    r = connect_before(fd, &address, deadline_in(msec));
    if (r < 0)
        return err_sys(err, r, "cannot connect to %s", path);
    return TAKE_FD(fd);
}

static int send_before(int socket, const struct msghdr *header, int64_t deadline)
{
    for (;;) {
        if (sendmsg(socket, header, MSG_NOSIGNAL | MSG_DONTWAIT) >= 0)
            return 0;
        if (errno == ECONNRESET)
            return -EPIPE;
        if (errno != EAGAIN && errno != EINTR)
            return -errno;
        int r = wait_ready(socket, POLLOUT, deadline);
        if (r < 0)
            return r;
    }
}

int msg_send(int socket, const json_t *message, int fd, int msec, struct err *err)
{
    _cleanup_free_ char *text = json_dumps(message, JSON_COMPACT);
    if (!text)
        return err_set(err, EINVAL, "cannot write the message as JSON");
    size_t size = strlen(text);
    if (size > MSG_MAX)
        return err_set(err, EMSGSIZE, "a message of %zu bytes is larger than the %u that one may have", size,
                       MSG_MAX);

    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(sizeof(int))];
    } control = {0};
    struct iovec part = {.iov_base = text, .iov_len = size};
    struct msghdr header = {.msg_iov = &part, .msg_iovlen = 1};
    if (fd >= 0) {
        header.msg_control = &control;
        header.msg_controllen = sizeof control;
        control.header = (struct cmsghdr){
            .cmsg_len = CMSG_LEN(sizeof fd), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
        memcpy(CMSG_DATA(&control.header), &fd, sizeof fd);
    }
    int r = send_before(socket, &header, deadline_in(msec));
    return r < 0 ? err_sys(err, r, "cannot send a message") : 0;
}

/* The first descriptor goes to *ret_fd, all others are closed. Returns how many came. */
static int collect_fds(struct msghdr *header, int *ret_fd)
{
    int count = 0;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(header); c; c = CMSG_NXTHDR(header, c)) {
        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
            continue;
        for (size_t at = 0; at + sizeof(int) <= c->cmsg_len - CMSG_LEN(0); at += sizeof(int)) {
            int fd;
            memcpy(&fd, CMSG_DATA(c) + at, sizeof fd);
            if (count++ == 0)
                *ret_fd = fd;
            else
                close(fd);
        }
    }
    return count;
}

/* One packet into `data`, MSG_MAX bytes large. Returns its size. */
static ssize_t receive_packet(int socket, void *data, int64_t deadline, int *ret_fd, struct err *err)
{
    for (;;) {
        union {
            struct cmsghdr header;
            char space[CMSG_SPACE(SPARE_FDS * sizeof(int))];
        } control;
        struct iovec part = {.iov_base = data, .iov_len = MSG_MAX};
        struct msghdr header = {
            .msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
        ssize_t size = recvmsg(socket, &header, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
        if (size >= 0) {
            int count = collect_fds(&header, ret_fd);
            if (header.msg_flags & MSG_TRUNC)
                return err_set(err, EMSGSIZE, "a message came that is larger than %u bytes", MSG_MAX);
            if (count > 1 || header.msg_flags & MSG_CTRUNC)
                return err_set(err, EPROTO,
                               "a message came whose file descriptors are too many, or were lost "
                               "because this process has too many files open");
            return size;
        }
        /* ECONNRESET: the peer closed without reading all of ours. Said once; what it sent before still
         * follows. */
        if (errno == ECONNRESET)
            continue;
        if (errno != EAGAIN && errno != EINTR)
            return err_sys(err, errno, "cannot receive a message");
        int r = wait_ready(socket, POLLIN, deadline);
        if (r < 0)
            return err_sys(err, r, "no message came");
    }
}

int msg_receive(int socket, int msec, json_t **ret_message, int *ret_fd, struct err *err)
{
    _cleanup_free_ char *data = malloc(MSG_MAX);
    if (!data)
        return err_set(err, ENOMEM, "out of memory receiving a message");
    _cleanup_close_ int fd = -1;
    ssize_t size = receive_packet(socket, data, deadline_in(msec), &fd, err);
    if (size < 0)
        return (int)size;
    if (size == 0)
        return err_set(err, EPIPE, "the other side closed the conversation");
    struct err inner = ERR_NONE;
    _cleanup_json_ json_t *message = NULL;
    if (json_parse(data, (size_t)size, "a message", &message, &inner) < 0)
        return err_set(err, EPROTO, "%s", inner.text);
    if (!json_is_object(message))
        return err_set(err, EPROTO, "a message is not a JSON object");
    *ret_message = TAKE_PTR(message);
    if (ret_fd)
        *ret_fd = TAKE_FD(fd);
    return 0;
}

static int take_answer(json_t *answer, struct err *err)
{
    json_t *ok = json_object_get(answer, "ok");
    if (json_is_true(ok))
        return 0;
    if (!json_is_false(ok))
        return err_set(err, EPROTO, "the answer says neither ok nor error");
    struct err inner = ERR_NONE;
    int r = err_from_json(json_object_get(answer, "error"), &inner);
    if (err)
        *err = inner;
    return r;
}

int msg_call(const char *path, const json_t *request, int fd, int msec, json_t **ret_answer, struct err *err)
{
    int64_t deadline = deadline_in(msec);
    _cleanup_close_ int socket = msg_connect(path, msec, err);
    if (socket < 0)
        return socket;
    _cleanup_json_ json_t *answer = NULL;
    int r = msg_send(socket, request, fd, msec < 0 ? -1 : clock_poll_ms(deadline), err);
    if (r == 0)
        r = msg_receive(socket, msec < 0 ? -1 : clock_poll_ms(deadline), &answer, NULL, err);
    if (r < 0) {
        err_context(err, "asking %s", path);
        return r;
    }
    r = take_answer(answer, err);
    if (r == 0 && ret_answer)
        *ret_answer = TAKE_PTR(answer);
    return r;
}
