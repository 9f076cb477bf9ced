/* SPDX-License-Identifier: Apache-2.0
 *
 * qemu_rescue: how a QEMU is spoken to whose main thread waits for memory of its guest.
 *
 * In post-copy any thread of the destination's QEMU may touch a page that is still away. When the main thread
 * does, and the stream has ended with the orai-vm that carried it, QEMU answers nobody: a new connection to
 * its monitor gets no further than the greeting. Only an old one will do, on which commands out of band were
 * agreed upon: migrate-recover is one, and what comes of it runs on the monitor's own thread.
 *
 * So each QEMU has a second monitor, and is itself the keeper of the client's end of its connection: both
 * ends of a socket pair are among the descriptors that it inherits, of which it knows only its own. As long
 * as it lives nothing closes the other one, and whoever comes takes that as the RAM's (pidfd_getfd(2)).
 * Nothing is gained by that for a QEMU that is not what it should be: it could have said the same to itself.
 *
 * Where no memory follows nobody ever speaks on it, and QEMU says nothing but its greeting.
 */
#include "base/clock.h"
#include "vmm/qemu_internal.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#define OPEN_NS (5 * NSEC_PER_SEC)
#define RECOVER_MSEC 5000

int qemu_rescue_pair(int ret[2], struct err *err)
{
    return socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ret) < 0
               ? err_sys(err, errno, "cannot make a socket pair for QEMU")
               : 0;
}

static bool has_value(int fd, int option, int value)
{
    int is = -1;
    socklen_t size = sizeof is;
    return getsockopt(fd, SOL_SOCKET, option, &is, &size) == 0 && is == value;
}

/* That of a QEMU which an older Orai has started is something else. */
static int take_client(const struct qemu *qemu, struct err *err)
{
    _cleanup_close_ int fd = (int)syscall(SYS_pidfd_getfd, qemu->pidfd, QEMU_RESCUE_CLIENT_FD, 0);
    if (fd < 0)
        return err_sys(err, errno, "cannot take a descriptor of QEMU (pid %d)", (int)qemu->pid);
    if (!has_value(fd, SO_DOMAIN, AF_UNIX) || !has_value(fd, SO_TYPE, SOCK_STREAM) ||
        !has_value(fd, SO_ACCEPTCONN, 0))
        return err_set(err, ENOTSUP, "QEMU (pid %d) was started by an older Orai", (int)qemu->pid);
    return TAKE_FD(fd);
}

int qemu_rescue_open(struct qemu *qemu, struct err *err)
{
    int fd = take_client(qemu, err);
    return fd < 0 ? fd : qmp_open_oob(fd, clock_now() + OPEN_NS, &qemu->rescue, err);
}

int qemu_rescue_take(struct qemu *qemu, struct err *err)
{
    int fd = take_client(qemu, err);
    return fd < 0 ? fd : qmp_take_oob(fd, &qemu->rescue, err);
}

int qemu_migrate_recover(struct qemu *qemu, struct err *err)
{
    char path[PATH_MAX];
    _cleanup_free_ char *uri = NULL;
    int r = qemu_incoming_path(qemu, path, err);
    if (r < 0)
        return r;
    if (asprintf(&uri, "unix:%s", path) < 0)
        return err_set(err, ENOMEM, "out of memory");
    r = qmp_execute_oob(qemu->rescue, "migrate-recover", json_pack("{s:s}", "uri", uri), RECOVER_MSEC, err);
    return r < 0 ? r : qemu_take_over_socket(qemu, path, err);
}
