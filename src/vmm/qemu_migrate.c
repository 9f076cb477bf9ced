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
#include "base/json.h"
#include "base/log.h"
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
#define REFRESH_DOWNTIME_MSEC 1000    /* without RAM there is nothing that QEMU could wait for */
#define DOWNTIME_MAX_MSEC 2000000     /* QEMU's bound */
#define THROTTLE_STEP 20 /* percent: at first, and more after each two passes that gained little */

static int set_capability(struct qemu *qemu, const char *name, bool on, struct err *err)
{
    return qmp_execute(qemu->qmp, "migrate-set-capabilities",
                       json_pack("{s:[{s:s, s:b}]}", "capabilities", "capability", name, "state", (int)on),
                       QEMU_COMMAND_MSEC, NULL, err);
}

/* `shared`: the RAM is in both QEMUs already and does not go over. Said each time: an earlier migration may
 * have left it otherwise. */
static int set_capabilities(struct qemu *qemu, bool shared, struct err *err)
{
    static const char *const wanted[] = {"events", "return-path", "pause-before-switchover",
                                         "late-block-activate"};
    json_t *list = json_array();
    for (size_t i = 0; i < ARRAY_SIZE(wanted); i++)
        json_array_append_new(list, json_pack("{s:s, s:b}", "capability", wanted[i], "state", 1));
    json_array_append_new(list,
                          json_pack("{s:s, s:b}", "capability", "x-ignore-shared", "state", (int)shared));
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
    struct err why;
    if (set_capability(qemu, "postcopy-ram", true, err) < 0)
        return refuse_postcopy(err);
    if (qemu_rescue_open(qemu, &why) < 0)
        log_warning("the guest would not outlive orai-vm while its memory follows: %s", why.text);
    return 0;
}

/* userfaultfd(2): without the privilege it is a matter of the sysctl. */
int qemu_may_postcopy(uid_t uid, struct err *err)
{
    char value = '0'; /* a file in /proc has no size: file_load finds nothing in it */
    _cleanup_close_ int fd = open("/proc/sys/vm/unprivileged_userfaultfd", O_RDONLY | O_CLOEXEC);
    bool allowed = fd >= 0 && read(fd, &value, 1) == 1 && value == '1';
    return uid == 0 || allowed ? 0 : refuse_postcopy(err);
}

int qemu_take_over_socket(const struct qemu *qemu, const char *theirs, struct err *err)
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

int qemu_incoming_path(const struct qemu *qemu, char path[PATH_MAX], struct err *err)
{
    if (snprintf(path, PATH_MAX, "%s/%s/incoming.sock", qemu->run_dir, qemu->own_dir) >= PATH_MAX)
        return err_set(err, ENAMETOOLONG, "path too long: %s/%s/incoming.sock", qemu->run_dir, qemu->own_dir);
    return 0;
}

int qemu_migrate_incoming(struct qemu *qemu, struct err *err)
{
    char path[PATH_MAX];
    int r = qemu_incoming_path(qemu, path, err);
    if (r == 0)
        r = set_capabilities(qemu, qemu->next, err);
    if (r < 0)
        return r;
    _cleanup_free_ char *uri = NULL;
    if (asprintf(&uri, "unix:%s", path) < 0)
        return err_set(err, ENOMEM, "out of memory");
    r = qmp_execute(qemu->qmp, "migrate-incoming", json_pack("{s:s}", "uri", uri), QEMU_COMMAND_MSEC, NULL,
                    err);
    return r < 0 ? r : qemu_take_over_socket(qemu, path, err);
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

void qemu_migrate_throttle(struct qemu *qemu, unsigned percent)
{
    qemu->throttle = MIN(percent, (unsigned)QEMU_THROTTLE_MAX);
}

/* Said each time, as the capabilities are. QEMU lets go of the CPUs at the migration's end, whatever that is.
 */
static int set_throttle(struct qemu *qemu, unsigned percent, struct err *err)
{
    int most = (int)percent, step = (int)MIN(percent, (unsigned)THROTTLE_STEP);
    int r = set_capability(qemu, "auto-converge", percent > 0, err);
    if (r < 0 || percent == 0)
        return r;
    return qmp_execute(qemu->qmp, "migrate-set-parameters",
                       json_pack("{s:i, s:i, s:i}", "cpu-throttle-initial", step, "cpu-throttle-increment",
                                 step, "max-cpu-throttle", most),
                       QEMU_COMMAND_MSEC, NULL, err);
}

/* Sends the stream to the unix socket `path`. */
static int migrate(struct qemu *qemu, const char *path, bool shared, uint64_t bandwidth, uint64_t downtime_ms,
                   bool postcopy, struct err *err)
{
    /* An earlier move may have left either on, to here or from here, and QEMU refuses both at once. */
    int r = postcopy ? 0 : set_capability(qemu, "postcopy-ram", false, err);
    if (r == 0)
        r = set_capabilities(qemu, shared, err);
    if (r == 0 && postcopy)
        r = set_capability(qemu, "postcopy-ram", true, err);
    if (r == 0)
        r = set_throttle(qemu, shared || postcopy ? 0 : qemu->throttle, err);
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
    return migrate(qemu, path, false, bandwidth, downtime_ms, postcopy, err);
}

int qemu_migrate_resume(struct qemu *qemu, struct err *err)
{
    char path[PATH_MAX];
    _cleanup_free_ char *uri = NULL;
    int r = qemu_path(path, qemu->run_dir, "migrate.sock", err);
    if (r < 0)
        return r;
    if (asprintf(&uri, "unix:%s", path) < 0)
        return err_set(err, ENOMEM, "out of memory");
    return qmp_execute(qemu->qmp, "migrate", json_pack("{s:s, s:b}", "uri", uri, "resume", 1),
                       QEMU_COMMAND_MSEC, NULL, err);
}

int qemu_migrate_to_next(struct qemu *qemu, struct err *err)
{
    char path[PATH_MAX];
    int r = qemu_path(path, qemu->run_dir, "incoming.sock", err);
    return r < 0 ? r : migrate(qemu, path, true, 0, REFRESH_DOWNTIME_MSEC, false, err);
}

int qemu_migrate_start_postcopy(struct qemu *qemu, struct err *err)
{
    return qmp_execute(qemu->qmp, "migrate-start-postcopy", NULL, QEMU_COMMAND_MSEC, NULL, err);
}

int qemu_migrate_query(struct qemu *qemu, struct qemu_migration *ret, struct err *err)
{
    return qemu_migrate_query_for(qemu, QEMU_COMMAND_MSEC, ret, err);
}

int qemu_migrate_query_for(struct qemu *qemu, int msec, struct qemu_migration *ret, struct err *err)
{
    struct qemu_migration migration = {0};
    _cleanup_json_ json_t *value = NULL;
    int r = qmp_execute(qemu->qmp, "query-migrate", NULL, msec, &value, err);
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
    migration.throttle = (unsigned)MIN(json_u64(value, "cpu-throttle-percentage", 0), UINT64_C(100));
    *ret = migration;
    return 0;
}

/* "info ramblock": a line of titles, then name, size of a page with its unit, offset, used... */
int qemu_each_block(struct qemu *qemu, qemu_block_fn *each, void *arg, struct err *err)
{
    _cleanup_json_ json_t *text = NULL;
    int r = qmp_execute(qemu->qmp, "human-monitor-command",
                        json_pack("{s:s}", "command-line", "info ramblock"), QEMU_COMMAND_MSEC, &text, err);
    const char *line = json_string_value(text);
    for (; r == 0 && line && *line; line = strchr(line, '\n'), line += line ? 1 : 0) {
        char name[256];
        unsigned long long used;
        /* NOLINTNEXTLINE(cert-err34-c): what does not fit into the number is no block's size */
        if (sscanf(line, " %255s %*u %*s %*x %llx", name, &used) == 2)
            r = each(arg, name, used, err);
    }
    return r;
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

/* --- priority ------------------------------------------------------------------------------------------- */

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
