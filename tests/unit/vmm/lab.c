/* SPDX-License-Identifier: Apache-2.0 */
#include "lab.h"

#include "../scratch.h"

#include "base/clock.h"
#include "base/file.h"
#include "base/macro.h"
#include "base/pid.h"
#include "net/thread.h"
#include "vmm/firmware.h"
#include "vmm/unix_socket.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>

#define NOBODY 65534
#define PATIENCE (20 * NSEC_PER_SEC)

void lab_open(struct lab *lab)
{
    *lab = (struct lab){0};
    assert_int_equal(scratch_make(lab->dir, sizeof lab->dir), 0);
    assert_int_equal(chmod(lab->dir, 0711), 0);
    snprintf(lab->vm_dir, sizeof lab->vm_dir, "%s/vm", lab->dir);
    snprintf(lab->run_dir, sizeof lab->run_dir, "%s/run", lab->dir);
    assert_int_equal(mkdir(lab->vm_dir, 0700), 0);
    assert_int_equal(mkdir(lab->run_dir, 0700), 0);
    uid_t user = getuid() == 0 ? NOBODY : 0;
    lab->env = (struct qemu_env){.binary = "qemu-system-x86_64",
                                 .firmware_dir = FIRMWARE_DIR,
                                 .vm_dir = lab->vm_dir,
                                 .run_dir = lab->run_dir,
                                 .uid = user,
                                 .gid = user};
    lab->config = (struct vm_config){.name = "lab",
                                     .id = id_random(),
                                     .memory = 128 * MiB,
                                     .cpus = 1,
                                     .machine = "pc-q35-7.2",
                                     .cpu = "x86-64-v2",
                                     .accel = "tcg"};
}

void lab_close(struct lab *lab)
{
    char path[PATH_MAX];
    pid_t pid;
    int pidfd;
    snprintf(path, sizeof path, "%s/qemu.pid", lab->run_dir);
    int r = pid_open_record(path, &pid, &pidfd, NULL);
    if (r == 0) {
        pid_signal_wait(pidfd, SIGKILL, 5000);
        close(pidfd);
    }
    assert_int_equal(file_remove_tree(lab->dir, NULL), 0);
    assert_int_equal(r, -ESRCH);
}

void lab_need_qemu(void)
{
    struct qemu_host host;
    struct err err = ERR_NONE;
    if (qemu_probe("qemu-system-x86_64", &host, &err) < 0) {
        print_message("skipped: %s\n", err.text);
        skip();
    }
    qemu_host_done(&host);
}

void lab_wait_status(struct qemu *qemu, const char *wanted)
{
    char status[32] = "";
    for (int64_t deadline = clock_now() + PATIENCE; clock_now() < deadline; clock_sleep(5 * NSEC_PER_MSEC)) {
        assert_int_equal(qemu_status(qemu, status, NULL), 0);
        if (strcmp(status, wanted) == 0)
            return;
    }
    assert_string_equal(status, wanted);
}

void lab_wait_migration(struct qemu *qemu, const char *wanted)
{
    struct qemu_migration migration = {0};
    for (int64_t deadline = clock_now() + PATIENCE; clock_now() < deadline; clock_sleep(2 * NSEC_PER_MSEC)) {
        assert_int_equal(qemu_migrate_query(qemu, &migration, NULL), 0);
        if (strcmp(migration.status, wanted) == 0)
            return;
    }
    assert_string_equal(migration.status, wanted);
}

/* --- pump ----------------------------------------------------------------------------------------------- */

struct pump {
    pthread_t thread;
    int listener;
    int stop[2];
    char incoming[PATH_MAX];
};

static bool stopped(struct pump *pump, struct pollfd *p, nfds_t count)
{
    p[count] = (struct pollfd){.fd = pump->stop[0], .events = POLLIN};
    return poll(p, count + 1, -1) <= 0 || p[count].revents;
}

/* What one side has ended is ended for the other: QEMU 10 notices a lost peer by nothing else. */
static bool copy_once(int from, int to)
{
    char data[65536];
    ssize_t n = recv(from, data, sizeof data, 0);
    if (n > 0 && send(to, data, (size_t)n, MSG_NOSIGNAL) == n)
        return true;
    shutdown(to, SHUT_RDWR);
    shutdown(from, SHUT_RDWR);
    return false;
}

static void *pump_main(void *arg)
{
    struct pump *pump = arg;
    struct pollfd p[3] = {{.fd = pump->listener, .events = POLLIN}};
    if (stopped(pump, p, 1))
        return NULL;
    _cleanup_close_ int source = accept4(pump->listener, NULL, NULL, SOCK_CLOEXEC);
    _cleanup_close_ int destination = unix_connect(pump->incoming, clock_now() + PATIENCE, NULL);
    p[0].fd = source;
    p[1] = (struct pollfd){.fd = destination, .events = POLLIN};
    while (!stopped(pump, p, 2)) {
        if (p[0].revents && !copy_once(source, destination))
            p[0].fd = -1;
        if (p[1].revents && !copy_once(destination, source))
            p[1].fd = -1;
    }
    return NULL;
}

struct pump *pump_start(struct lab *source, struct lab *destination)
{
    char path[PATH_MAX];
    struct pump *pump = calloc(1, sizeof *pump);
    snprintf(path, sizeof path, "%s/migrate.sock", source->run_dir);
    snprintf(pump->incoming, sizeof pump->incoming, "%s/incoming.sock", destination->run_dir);
    pump->listener = unix_listen(path, 0, 0, NULL);
    assert_true(pump->listener >= 0);
    assert_int_equal(pipe(pump->stop), 0);
    assert_int_equal(thread_start(&pump->thread, "pump", pump_main, pump), 0);
    return pump;
}

void pump_stop(struct pump *pump)
{
    close(pump->stop[1]);
    pthread_join(pump->thread, NULL);
    close(pump->stop[0]);
    close(pump->listener);
    free(pump);
}
