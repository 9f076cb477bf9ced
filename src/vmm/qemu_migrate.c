/* SPDX-License-Identifier: Apache-2.0
 *
 * qemu_migrate: QEMU's side of a move, over QMP (docs/devel/migration in QEMU's sources;
 * qapi/migration.json).
 *
 * Both QEMUs get the same capabilities. With return-path the source says "completed" only after the
 * destination has confirmed that it loaded everything; with pause-before-switchover it holds the stopped
 * guest until qemu_migrate_continue; with late-block-activate the destination touches no disk before
 * qemu_cont.
 *
 * qemu_migrate_cancel works in every state but post-copy. A guest that ran before runs again by itself when
 * QEMU has given up; after "completed" it is in "postmigrate", and qemu_cont takes disks and CPUs back.
 */
#include "base/clock.h"
#include "base/file.h"
#include "base/json.h"
#include "vmm/qemu_internal.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>

#define CANCEL_MSEC 30000
#define POLL_MSEC 2
#define UNLIMITED (UINT64_C(1) << 50) /* bytes per second; QEMU's own default would be 128 MiB/s */
#define DOWNTIME_MAX_MSEC 2000000     /* QEMU's bound */

static int set_capability(struct qemu *qemu, const char *name, bool on, struct err *err)
{
    return qmp_execute(qemu->qmp, "migrate-set-capabilities",
                       json_pack("{s:[{s:s, s:b}]}", "capabilities", "capability", name, "state", (int)on),
                       QEMU_COMMAND_MSEC, NULL, err);
}

static int set_capabilities(struct qemu *qemu, struct err *err)
{
    static const char *const wanted[] = {"events", "return-path", "pause-before-switchover",
                                         "late-block-activate"};
    json_t *list = json_array();
    for (size_t i = 0; i < ARRAY_SIZE(wanted); i++)
        json_array_append_new(list, json_pack("{s:s, s:b}", "capability", wanted[i], "state", 1));
    return qmp_execute(qemu->qmp, "migrate-set-capabilities", json_pack("{s:o}", "capabilities", list),
                       QEMU_COMMAND_MSEC, NULL, err);
}

static int refuse_postcopy(struct err *err)
{
    err_set(err, ENOTSUP, "QEMU may not take a guest before its memory there (no userfaultfd)");
    return err_hint(err, "allow it with: sysctl -w vm.unprivileged_userfaultfd=1");
}

int qemu_migrate_allow_postcopy(struct qemu *qemu, struct err *err)
{
    return set_capability(qemu, "postcopy-ram", true, err) == 0 ? 0 : refuse_postcopy(err);
}

/* userfaultfd(2): without the privilege it is a matter of the sysctl. */
int qemu_may_postcopy(uid_t uid, struct err *err)
{
    _cleanup_free_ void *text = NULL;
    size_t size;
    bool allowed = file_load("/proc/sys/vm/unprivileged_userfaultfd", 16, &text, &size, NULL) == 0 && size &&
                   *(const char *)text == '1';
    return uid == 0 || allowed ? 0 : refuse_postcopy(err);
}

/* QEMU listens in its own folder; the socket then moves to ours, where QEMU cannot replace it any more. */
static int take_over_socket(const struct qemu *qemu, const char *theirs, struct err *err)
{
    char path[PATH_MAX];
    struct stat st;
    int r = qemu_path(path, qemu->run_dir, "incoming.sock", err);
    if (r < 0)
        return r;
    if (rename(theirs, path) < 0)
        return err_sys(err, errno, "cannot move %s to %s", theirs, path);
    if (lstat(path, &st) < 0 || !S_ISSOCK(st.st_mode)) {
        unlink(path);
        return err_set(err, EPROTO, "QEMU's incoming.sock is not a socket");
    }
    return 0;
}

int qemu_migrate_incoming(struct qemu *qemu, struct err *err)
{
    char path[PATH_MAX];
    int r = qemu_path(path, qemu->run_dir, "qemu/incoming.sock", err);
    if (r == 0)
        r = set_capabilities(qemu, err);
    if (r < 0)
        return r;
    _cleanup_free_ char *uri = NULL;
    if (asprintf(&uri, "unix:%s", path) < 0)
        return err_set(err, ENOMEM, "out of memory");
    r = qmp_execute(qemu->qmp, "migrate-incoming", json_pack("{s:s}", "uri", uri), QEMU_COMMAND_MSEC, NULL,
                    err);
    return r < 0 ? r : take_over_socket(qemu, path, err);
}

int qemu_migrate_set(struct qemu *qemu, uint64_t bandwidth, uint64_t downtime_ms, struct err *err)
{
    uint64_t rate = bandwidth ? MIN(bandwidth, UNLIMITED) : UNLIMITED;
    uint64_t downtime = MIN(downtime_ms, (uint64_t)DOWNTIME_MAX_MSEC);
    return qmp_execute(
        qemu->qmp, "migrate-set-parameters",
        json_pack("{s:I, s:I}", "max-bandwidth", (json_int_t)rate, "downtime-limit", (json_int_t)downtime),
        QEMU_COMMAND_MSEC, NULL, err);
}

int qemu_migrate_start(struct qemu *qemu, uint64_t bandwidth, uint64_t downtime_ms, bool postcopy,
                       struct err *err)
{
    char path[PATH_MAX];
    int r = qemu_path(path, qemu->run_dir, "migrate.sock", err);
    if (r < 0)
        return r;
    /* The listener is ours; QEMU's user must be able to connect. */
    if (qemu->uid && lchown(path, qemu->uid, qemu->gid) < 0)
        return err_sys(err, errno, "cannot let QEMU connect to %s", path);
    r = set_capabilities(qemu, err);
    if (r == 0) /* an earlier move may have left it on */
        r = set_capability(qemu, "postcopy-ram", postcopy, err);
    if (r == 0)
        r = qemu_migrate_set(qemu, bandwidth, downtime_ms, err);
    if (r < 0)
        return r;
    _cleanup_free_ char *uri = NULL;
    if (asprintf(&uri, "unix:%s", path) < 0)
        return err_set(err, ENOMEM, "out of memory");
    qemu->switching = false;
    return qmp_execute(qemu->qmp, "migrate", json_pack("{s:s}", "uri", uri), QEMU_COMMAND_MSEC, NULL, err);
}

int qemu_migrate_start_postcopy(struct qemu *qemu, struct err *err)
{
    return qmp_execute(qemu->qmp, "migrate-start-postcopy", NULL, QEMU_COMMAND_MSEC, NULL, err);
}

int qemu_migrate_query(struct qemu *qemu, struct qemu_migration *ret, struct err *err)
{
    struct qemu_migration migration = {0};
    _cleanup_json_ json_t *value = NULL;
    int r = qmp_execute(qemu->qmp, "query-migrate", NULL, QEMU_COMMAND_MSEC, &value, err);
    if (r < 0)
        return r;
    /* No member at all: there was none since QEMU started. */
    snprintf(migration.status, sizeof migration.status, "%.31s", json_str(value, "status", "none"));
    snprintf(migration.error, sizeof migration.error, "%.255s", json_str(value, "error-desc", ""));
    const json_t *ram = json_object_get(value, "ram");
    uint64_t page_size = json_u64(ram, "page-size", 4096);
    migration.ram_total = json_u64(ram, "total", 0);
    migration.ram_transferred = json_u64(ram, "transferred", 0);
    migration.ram_remaining = json_u64(ram, "remaining", 0);
    migration.ram_pages = json_u64(ram, "normal", 0) + json_u64(ram, "duplicate", 0);
    if (__builtin_mul_overflow(json_u64(ram, "dirty-pages-rate", 0), page_size, &migration.dirty_rate))
        migration.dirty_rate = UINT64_MAX;
    migration.iterations = json_u64(ram, "dirty-sync-count", 0);
    *ret = migration;
    return 0;
}

int qemu_migrate_continue(struct qemu *qemu, struct err *err)
{
    qemu->switching = true;
    return qmp_execute(qemu->qmp, "migrate-continue", json_pack("{s:s}", "state", "pre-switchover"),
                       QEMU_COMMAND_MSEC, NULL, err);
}

static bool over(const char *status)
{
    static const char *const ends[] = {"none", "completed", "failed", "cancelled"};
    for (size_t i = 0; i < ARRAY_SIZE(ends); i++)
        if (strcmp(status, ends[i]) == 0)
            return true;
    return false;
}

/* "cancelled" comes a moment before QEMU lets the guest go on. */
static bool settling(const char *status)
{
    return strcmp(status, "finish-migrate") == 0;
}

/* QEMU's migration thread leaves "pre-switchover" a moment after it was told to: what comes then counts. */
static int query_settled(struct qemu *qemu, struct qemu_migration *ret, struct err *err)
{
    int64_t deadline = clock_now() + CANCEL_MSEC * NSEC_PER_MSEC;
    for (;;) {
        int r = qemu_migrate_query(qemu, ret, err);
        if (r < 0 || !qemu->switching || strcmp(ret->status, "pre-switchover") != 0)
            return r;
        if (clock_now() >= deadline)
            return err_set(err, ETIMEDOUT, "QEMU does not go on with its migration, as it was told to");
        clock_sleep(POLL_MSEC * NSEC_PER_MSEC);
    }
}

/* Version 10 refuses to cancel a post-copy. Version 7 does it by ending its own connection first, which its
 * migration thread may take for a broken link before it knows better: then it pauses, for ever. */
int qemu_migrate_cancel(struct qemu *qemu, struct err *err)
{
    struct qemu_migration migration;
    int r = query_settled(qemu, &migration, err);
    if (r == 0 && strncmp(migration.status, "postcopy-", 9) == 0)
        return err_set(err, EBUSY, "QEMU does not take a post-copy back");
    if (r == 0 && !over(migration.status))
        r = qmp_execute(qemu->qmp, "migrate_cancel", NULL, QEMU_COMMAND_MSEC, NULL, err);
    return r < 0 ? r : qemu_migrate_settle(qemu, CANCEL_MSEC, err);
}

int qemu_migrate_settle(struct qemu *qemu, int msec, struct err *err)
{
    int64_t deadline = clock_now() + msec * NSEC_PER_MSEC;
    struct qemu_migration migration;
    char status[32] = "";
    int r = 0;
    while (r == 0) {
        r = qemu_migrate_query(qemu, &migration, err);
        if (r == 0)
            r = qemu_status(qemu, status, err);
        if (r < 0 || (over(migration.status) && !settling(status)))
            return r;
        if (clock_now() >= deadline)
            return err_set(err, ETIMEDOUT, "QEMU does not end its migration: it is \"%s\", the guest \"%s\"",
                           migration.status, status);
        clock_sleep(POLL_MSEC * NSEC_PER_MSEC);
    }
    return r;
}

/* --- priority ---------------------------------------------------------------------------------------------
 */

#define HURRY_NICE (-10)

/* The migration thread's name is "live_migration" up to QEMU 9, "mig/src/main" and the like later. */
static bool carries_migration(pid_t pid, pid_t thread)
{
    char path[64], name[32] = "";
    snprintf(path, sizeof path, "/proc/%d/task/%d/comm", (int)pid, (int)thread);
    _cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || read(fd, name, sizeof name - 1) < 0)
        return false;
    return thread == pid || strncmp(name, "live_migration", 14) == 0 || strncmp(name, "mig/", 4) == 0;
}

void qemu_hurry(struct qemu *qemu, bool hurry)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/task", (int)qemu->pid);
    DIR *tasks = opendir(path);
    for (struct dirent *entry; tasks && (entry = readdir(tasks));) {
        pid_t thread = (pid_t)strtol(entry->d_name, NULL, 10); /* 0: not a thread */
        if (thread > 0 && carries_migration(qemu->pid, thread))
            setpriority(PRIO_PROCESS, (id_t)thread, hurry ? HURRY_NICE : 0);
    }
    if (tasks)
        closedir(tasks);
}
