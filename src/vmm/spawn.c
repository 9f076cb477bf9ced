/* SPDX-License-Identifier: Apache-2.0
 *
 * spawn: starts a process that may outlive us, with no more than it needs.
 *
 * The two are joined by a socket pair that exec closes. The child waits, before exec, for a byte from us; we
 * send it once its pid stands in the pid file. If we are killed in between, the child sees our end close and
 * exits: there is never a process that no record names. On the way back the socket carries the failed step
 * and its errno.
 *
 * We may have threads, so between fork and exec the child only makes system calls.
 */
#include "base/pid.h"
#include "vmm/qemu_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/close_range.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#define FIRST_FD 3
#define MAX_GROUP 1048576 /* bytes of its entry: a group may have very many members */
#define HIGH_FD 200       /* above every number that the child's descriptors get */

enum step { STEP_FDS, STEP_LIMITS, STEP_USER, STEP_EXEC };

static const char *const step_texts[] = {
    [STEP_FDS] = "cannot hand over descriptors",
    [STEP_LIMITS] = "cannot give up privileges",
    [STEP_USER] = "cannot become its user",
    [STEP_EXEC] = "cannot execute it",
};
static_assert(ARRAY_SIZE(step_texts) == STEP_EXEC + 1, "a text for each step");

struct failure {
    enum step step;
    int error;
};

static void reset_signals(void)
{
    struct sigaction action = {.sa_handler = SIG_DFL};
    for (int i = 1; i < NSIG; i++)
        sigaction(i, &action, NULL);
    sigset_t none;
    sigemptyset(&none);
    pthread_sigmask(SIG_SETMASK, &none, NULL);
}

/* First all of them up out of the way, then down to their places. */
static int place_fds(const struct spawn *spawn, int *parent)
{
    int high[ARRAY_SIZE(((struct qemu_fds *)0)->taps) + 10];
    assert(spawn->fd_count <= ARRAY_SIZE(high));
    int log_fd = fcntl(spawn->log_fd, F_DUPFD_CLOEXEC, HIGH_FD);
    int null = open("/dev/null", O_RDONLY | O_CLOEXEC);
    int moved = fcntl(*parent, F_DUPFD_CLOEXEC, HIGH_FD);
    if (moved < 0 || log_fd < 0 || null < 0)
        return -errno;
    *parent = moved;
    for (size_t i = 0; i < spawn->fd_count; i++)
        if ((high[i] = fcntl(spawn->fds[i], F_DUPFD_CLOEXEC, HIGH_FD)) < 0)
            return -errno;
    if (dup2(null, 0) < 0 || dup2(log_fd, 1) < 0 || dup2(log_fd, 2) < 0)
        return -errno;
    for (size_t i = 0; i < spawn->fd_count; i++)
        if (dup2(high[i], FIRST_FD + (int)i) < 0)
            return -errno;
    return close_range(FIRST_FD + (unsigned)spawn->fd_count, ~0U, CLOSE_RANGE_CLOEXEC) < 0 ? -errno : 0;
}

/* Raw system calls: glibc's wrappers would signal threads that this process does not have. */
static int become(const struct spawn *spawn, const gid_t *kvm_group)
{
    if (spawn->uid == 0)
        return 0;
    if (syscall(SYS_setgroups, kvm_group ? 1 : 0, kvm_group) < 0 ||
        syscall(SYS_setresgid, spawn->gid, spawn->gid, spawn->gid) < 0 ||
        syscall(SYS_setresuid, spawn->uid, spawn->uid, spawn->uid) < 0)
        return -errno;
    return 0;
}

__attribute__((noreturn)) static void child(const struct spawn *spawn, const gid_t *kvm_group, int parent)
{
    static char language[] = "LANG=C", path[] = "PATH=/usr/sbin:/usr/bin:/sbin:/bin";
    static char *const environment[] = {language, path, NULL};
    struct failure failure = {.step = STEP_FDS};
    char byte;
    reset_signals();
    setsid();
    int r = place_fds(spawn, &parent);
    if (r == 0 && read(parent, &byte, 1) != 1)
        _exit(0); /* our parent died, or gave up */
    if (r == 0) {
        failure.step = STEP_LIMITS;
        umask(077);
        if (chdir("/") < 0 || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
            r = -errno;
    }
    if (r == 0) {
        failure.step = STEP_USER;
        r = become(spawn, kvm_group);
    }
    if (r == 0) {
        failure.step = STEP_EXEC;
        execvpe(spawn->argv[0], spawn->argv, environment);
        r = -errno;
    }
    failure.error = -r;
    ssize_t n = write(parent, &failure, sizeof failure);
    _exit(n < 0 ? 126 : 127);
}

/* Records the child and lets it go; reports what it could not do. */
static int release(const struct spawn *spawn, pid_t pid, int socket, struct err *err)
{
    struct failure failure;
    int r = pid_record(spawn->pid_file, pid, err);
    if (r < 0)
        return r;
    if (send(socket, "g", 1, MSG_NOSIGNAL) != 1 && errno != EPIPE)
        return err_sys(err, errno, "cannot start %s", spawn->argv[0]);
    ssize_t n = read(socket, &failure, sizeof failure);
    if (n == 0)
        return 0; /* closed by a successful exec */
    if (n != sizeof failure)
        return err_set(err, EIO, "cannot start %s: it died at once", spawn->argv[0]);
    r = err_sys(err, failure.error, "cannot start %s: %s", spawn->argv[0], step_texts[failure.step]);
    if (failure.step == STEP_EXEC && failure.error == ENOENT)
        err_hint(err, "install it: apt-get install qemu-system-x86");
    return r;
}

/* 0 when there is no such group. */
static gid_t find_group(const char *name)
{
    for (size_t size = 1024; size <= MAX_GROUP; size *= 4) {
        _cleanup_free_ char *text = malloc(size);
        struct group group, *found = NULL;
        int r = text ? getgrnam_r(name, &group, text, size, &found) : ENOMEM;
        if (r != ERANGE)
            return r == 0 && found ? found->gr_gid : 0;
    }
    return 0;
}

int spawn_process(const struct spawn *spawn, pid_t *ret_pid, int *ret_pidfd, struct err *err)
{
    int pair[2];
    /* The lookup may use NSS: not after fork. */
    gid_t kvm_group = find_group("kvm");
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
        return err_sys(err, errno, "cannot start %s", spawn->argv[0]);
    _cleanup_close_ int ours = pair[0];
    pid_t pid = fork();
    if (pid == 0) {
        close(ours); /* else the child would hold up its own end of file */
        child(spawn, kvm_group ? &kvm_group : NULL, pair[1]);
    }
    close(pair[1]);
    if (pid < 0)
        return err_sys(err, errno, "cannot start %s", spawn->argv[0]);

    _cleanup_close_ int pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
    int r =
        pidfd < 0 ? err_sys(err, errno, "cannot watch %s", spawn->argv[0]) : release(spawn, pid, ours, err);
    if (r < 0) {
        kill(pid, SIGKILL); /* not reaped yet, so the number is still its own */
        waitpid(pid, NULL, 0);
        unlink(spawn->pid_file);
        return r;
    }
    *ret_pid = pid;
    *ret_pidfd = TAKE_FD(pidfd);
    return 0;
}
