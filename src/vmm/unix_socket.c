/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/unix_socket.h"

#include "base/clock.h"
#include "base/macro.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>

#define RETRY_MSEC 10
#define CONNECT_SECONDS 2 /* connect(2) sleeps while the listener's queue is full */

static int make_address(const char *path, struct sockaddr_un *ret, struct err *err)
{
    *ret = (struct sockaddr_un){.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof ret->sun_path) {
        int r = err_set(err, ENAMETOOLONG, "the socket path %s has more than %zu characters", path,
                        sizeof ret->sun_path - 1);
        err_hint(err, "use a shorter --run-dir");
        return r;
    }
    memcpy(ret->sun_path, path, strlen(path) + 1);
    return 0;
}

int unix_listen(const char *path, uid_t uid, gid_t gid, struct err *err)
{
    struct sockaddr_un address;
    int r = make_address(path, &address, err);
    if (r < 0)
        return r;
    if (unlink(path) < 0 && errno != ENOENT)
        return err_sys(err, errno, "cannot replace %s", path);
    _cleanup_close_ int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof address) < 0)
        return err_sys(err, errno, "cannot listen at %s", path);
    /* The mode first: nobody can connect before listen(). */
    if (chmod(path, 0600) < 0 || (uid && chown(path, uid, gid) < 0) || listen(fd, 16) < 0) {
        r = err_sys(err, errno, "cannot listen at %s", address.sun_path);
        unlink(path);
        return r;
    }
    return TAKE_FD(fd);
}

int unix_connect(const char *path, int64_t deadline, struct err *err)
{
    struct sockaddr_un address;
    int r = make_address(path, &address, err);
    if (r < 0)
        return r;
    for (;;) {
        _cleanup_close_ int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        struct timeval limit = {.tv_sec = CONNECT_SECONDS};
        if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit) < 0)
            return err_sys(err, errno, "cannot make a socket");
        if (connect(fd, (struct sockaddr *)&address, sizeof address) == 0)
            return TAKE_FD(fd);
        if ((errno != ENOENT && errno != ECONNREFUSED && errno != EINTR) || clock_now() >= deadline)
            return err_sys(err, errno, "cannot connect to %s", path);
        clock_sleep(RETRY_MSEC * NSEC_PER_MSEC);
    }
}
