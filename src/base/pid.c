/* SPDX-License-Identifier: Apache-2.0
 *
 * A process is the triple (boot, start time, number): the kernel uses a number again only for a process that
 * started later. The pidfd is opened before the start time is read: while the recorded process's number shows
 * the recorded start time afterwards, no other process can have had that number in between, so the pidfd is
 * the recorded process's, and stays so.
 */
#include "base/pid.h"

#include "base/clock.h"
#include "base/file.h"
#include "base/macro.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>

#define RECORD_MAX 128

struct record {
    pid_t pid;
    unsigned long long start; /* clock ticks since boot */
    char boot[BOOT_ID_SIZE];
};

/* Files of /proc have no size to ask for. Puts a NUL behind; cuts what does not fit. */
static int read_proc(const char *path, char *ret, size_t size)
{
    _cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    ssize_t n;
    do
        n = read(fd, ret, size - 1);
    while (n < 0 && errno == EINTR);
    if (n < 0)
        return -errno;
    ret[n] = '\0';
    return 0;
}

int boot_id_read(char ret[BOOT_ID_SIZE])
{
    char text[BOOT_ID_SIZE + 1] = "";
    int r = read_proc("/proc/sys/kernel/random/boot_id", text, sizeof text);
    if (r < 0)
        return r;
    text[strcspn(text, "\n")] = '\0';
    if (strlen(text) != BOOT_ID_SIZE - 1)
        return -EBADMSG;
    memcpy(ret, text, BOOT_ID_SIZE);
    return 0;
}

/* Decimal digits up to `max`, then `end`, both passed over. */
static bool take_number(const char **text, char end, unsigned long long max, unsigned long long *ret)
{
    char *behind;
    if (**text < '0' || **text > '9')
        return false;
    errno = 0;
    unsigned long long value = strtoull(*text, &behind, 10);
    if (errno != 0 || value > max || *behind != end)
        return false;
    *text = behind + 1;
    *ret = value;
    return true;
}

/* Field 22 of /proc/PID/stat, counted from behind the command's name: that may hold anything, ")" too. */
static int read_start(pid_t pid, unsigned long long *ret)
{
    char path[64], text[1024];
    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    int r = read_proc(path, text, sizeof text);
    if (r < 0)
        return r == -ENOENT ? -ESRCH : r;
    const char *p = strrchr(text, ')');
    for (int field = 2; p && field < 22; field++) {
        p = strchr(p, ' ');
        if (p)
            p++;
    }
    return p && take_number(&p, ' ', ULLONG_MAX, ret) ? 0 : -EBADMSG;
}

static int open_pid(pid_t pid)
{
    int fd = (int)syscall(SYS_pidfd_open, pid, 0); /* close-on-exec by itself */
    return fd < 0 ? -errno : fd;
}

/* 1 when the process has exited (a zombie counts), 0 when not by `deadline`. */
static int wait_exit(int pidfd, int64_t deadline)
{
    struct pollfd p = {.fd = pidfd, .events = POLLIN};
    for (;;) {
        int n = poll(&p, 1, clock_poll_ms(deadline));
        if (n < 0 && errno != EINTR)
            return -errno;
        if (n > 0)
            return 1;
        if (clock_now() >= deadline)
            return 0;
    }
}

int pid_record(const char *path, pid_t pid, struct err *err)
{
    struct record record = {.pid = pid};
    int r = read_start(pid, &record.start);
    if (r == 0)
        r = boot_id_read(record.boot);
    if (r < 0)
        return err_sys(err, r, "cannot record process %d in %s", (int)pid, path);
    char text[RECORD_MAX];
    int size = snprintf(text, sizeof text, "%d %llu %s\n", (int)pid, record.start, record.boot);
    return file_replace(path, text, (size_t)size, 0644, err);
}

static bool parse_record(const char *text, struct record *ret)
{
    unsigned long long pid = 0;
    if (!take_number(&text, ' ', INT_MAX, &pid) || pid == 0 ||
        !take_number(&text, ' ', ULLONG_MAX, &ret->start))
        return false;
    if (strlen(text) != BOOT_ID_SIZE || text[BOOT_ID_SIZE - 1] != '\n')
        return false;
    ret->pid = (pid_t)pid;
    memcpy(ret->boot, text, BOOT_ID_SIZE - 1);
    ret->boot[BOOT_ID_SIZE - 1] = '\0';
    return true;
}

static int load_record(const char *path, struct record *ret, struct err *err)
{
    _cleanup_free_ void *text = NULL;
    size_t size = 0;
    int r = file_load(path, RECORD_MAX, &text, &size, err);
    if (r == -ENOENT)
        return err_set(err, ESRCH, "no process is recorded in %s", path);
    if (r < 0)
        return r;
    if (parse_record(text, ret))
        return 0;
    r = err_set(err, EBADMSG, "%s holds no process record", path);
    err_hint(err, "remove it once you have seen that its process does not run");
    return r;
}

/* A pidfd of the recorded process, or -ESRCH when it is gone. */
static int open_recorded(const struct record *record)
{
    char boot[BOOT_ID_SIZE];
    int r = boot_id_read(boot);
    if (r < 0)
        return r;
    if (strcmp(boot, record->boot) != 0)
        return -ESRCH;
    _cleanup_close_ int pidfd = open_pid(record->pid);
    if (pidfd < 0)
        return pidfd;
    unsigned long long start = 0;
    r = read_start(record->pid, &start);
    if (r < 0)
        return r;
    if (start != record->start)
        return -ESRCH;
    r = wait_exit(pidfd, 0);
    if (r != 0)
        return r < 0 ? r : -ESRCH;
    return TAKE_FD(pidfd);
}

int pid_open_record(const char *path, pid_t *ret_pid, int *ret_pidfd, struct err *err)
{
    struct record record = {0};
    int r = load_record(path, &record, err);
    if (r < 0)
        return r;
    int pidfd = open_recorded(&record);
    /* EINVAL: the number is now a thread's, not a process's. */
    if (pidfd == -ESRCH || pidfd == -EINVAL)
        return err_set(err, ESRCH, "process %d of %s is gone", (int)record.pid, path);
    if (pidfd < 0)
        return err_sys(err, pidfd, "cannot open process %d of %s", (int)record.pid, path);
    *ret_pid = record.pid;
    *ret_pidfd = pidfd;
    return 0;
}

int pid_signal_wait(int pidfd, int signal, int msec)
{
    int64_t deadline = clock_now() + msec * NSEC_PER_MSEC;
    if (syscall(SYS_pidfd_send_signal, pidfd, signal, NULL, 0) < 0)
        return errno == ESRCH ? 0 : -errno;
    int r = wait_exit(pidfd, deadline);
    if (r < 0)
        return r;
    return r > 0 ? 0 : -ETIMEDOUT;
}
