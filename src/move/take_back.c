/* SPDX-License-Identifier: Apache-2.0
 *
 * A guest goes on in a QEMU that is in post-copy, of which no orai-vm has the stream any more. QEMU knows no
 * way back; but it can be recovered, and whoever does that says what the destination has. Told that it has
 * everything, it has nothing to send, and hears that all has arrived: the migration is over, and the guest,
 * which stands still since the switch, may be continued.
 *
 * Whether it may run here is the caller's to know (epoch.h).
 */
#include "move/take_back.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/macro.h"
#include "memory/resync.h"
#include "vmm/unix_socket.h"

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define PAUSE_NS (15 * NSEC_PER_SEC) /* until QEMU has noticed that its connection is gone */
#define POLL_NS (5 * NSEC_PER_MSEC)
#define LOCAL_NS (10 * NSEC_PER_SEC)
#define SETTLE_MSEC 10000

static int accept_qemu(int listener, struct err *err)
{
    struct pollfd p = {.fd = listener, .events = POLLIN};
    int64_t deadline = clock_now() + LOCAL_NS;
    int n;
    while ((n = poll(&p, 1, clock_poll_ms(deadline))) < 0 && errno == EINTR)
        ;
    int fd = n == 1 ? accept4(listener, NULL, NULL, SOCK_CLOEXEC) : -1;
    return fd < 0 ? err_set(err, ETIMEDOUT, "QEMU did not connect for its migration") : fd;
}

int reconnect_qemu(const struct machine *machine, const struct qemu_env *env, struct err *err)
{
    char path[PATH_MAX];
    if (snprintf(path, sizeof path, "%s/migrate.sock", env->run_dir) >= (int)sizeof path)
        return err_set(err, ENAMETOOLONG, "path too long: %s", env->run_dir);
    _cleanup_close_ int listener = unix_listen(path, env->uid, env->gid, err);
    int r = listener < 0 ? listener : qemu_migrate_resume(machine_qemu(machine), err);
    if (r == 0)
        r = accept_qemu(listener, err);
    if (listener >= 0)
        unlink(path);
    return r;
}

static int wait_paused(struct qemu *qemu, struct err *err)
{
    int64_t deadline = clock_now() + PAUSE_NS;
    struct qemu_migration migration;
    for (;;) {
        int r = qemu_migrate_query(qemu, &migration, err);
        if (r < 0 || strcmp(migration.status, "postcopy-paused") == 0)
            return r;
        if (strncmp(migration.status, "postcopy-", 9) != 0) /* it has given up: over, in any case */
            return 1;
        if (clock_now() > deadline)
            return err_set(err, ETIMEDOUT, "QEMU does not pause its migration");
        clock_sleep(POLL_NS);
    }
}

static int add_block(void *arg, const char *name, uint64_t used, struct err *err)
{
    return resync_add_whole(arg, name, used, err);
}

int take_back_guest(const struct machine *machine, const struct qemu_env *env, struct err *err)
{
    struct qemu *qemu = machine_qemu(machine);
    struct resync resync = {0};
    int r = wait_paused(qemu, err);
    if (r == 1)
        return qemu_migrate_settle(qemu, SETTLE_MSEC, err);
    if (r == 0)
        r = qemu_each_block(qemu, add_block, &resync, err);
    int fd = r == 0 ? reconnect_qemu(machine, env, err) : r;
    r = MIN(fd, 0);
    if (r == 0)
        r = resync_source(fd, &resync, clock_now() + LOCAL_NS, err);
    if (r == 0)
        r = resync_end_source(fd, clock_now() + LOCAL_NS, err);
    if (fd >= 0)
        close(fd);
    resync_done(&resync);
    return r < 0 ? r : qemu_migrate_settle(qemu, SETTLE_MSEC, err);
}
