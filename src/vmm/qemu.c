/* SPDX-License-Identifier: Apache-2.0
 *
 * qemu: the life of one QEMU process.
 *
 * What it may touch is decided here, by us as root, before it runs as its own user: it gets its RAM, kernel,
 * console log, log, taps and QMP listener as open descriptors, and of the file system only RUN_DIR/qemu, an
 * empty folder of its own, plus the sockets that were given to its user. RUN_DIR itself stays ours, so QEMU
 * cannot replace a socket or pid file that we trust.
 *
 * While QEMU is replaced (qemu_start_next) there are two on the same RAM. qemu.pid names the one that is the
 * guest's, qemu-next.pid the other; exchanging the two names is the switch. All else that a QEMU has of its
 * own bears its pid, or is of no use any more once it runs.
 *
 * QEMU has its own session and outlives us; RUN_DIR/qemu.pid names it (base/pid.h). After our crash
 * qemu_adopt connects to QMP again (QEMU serves one client at a time, and has noticed that the old one is
 * gone) and takes the RAM's descriptor back. While we are QEMU's parent, we reap it.
 *
 * Thread: one at a time, but for qemu_qmp's users.
 */
#include "base/clock.h"
#include "base/file.h"
#include "base/json.h"
#include "base/log.h"
#include "base/pid.h"
#include "vmm/firmware.h"
#include "vmm/qemu_internal.h"
#include "vmm/ram.h"
#include "vmm/unix_socket.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#define START_SECONDS 30 /* until QMP answers; a loaded machine under TCG is slow */
#define ADOPT_SECONDS 10
#define FIRST_FD 3
#define QMP_UNNAMED "qmp.sock" /* until the pid is known */
#define QEMU_NEXT_DIR "qemu-next"

/* --- what QEMU inherits --------------------------------------------------------------------------------- */

/* Our side of the descriptors, in the order in which the child numbers them from FIRST_FD on. */
struct inherited {
    int own[VM_MAX_NICS + 10]; /* those that we close again */
    size_t own_count;
    int all[VM_MAX_NICS + 10];
    size_t count;
};

static void inherited_done(struct inherited *inherited)
{
    for (size_t i = 0; i < inherited->own_count; i++)
        close(inherited->own[i]);
}

/* Returns the number that `fd` will have in QEMU. */
static int inherit(struct inherited *inherited, int fd, bool own)
{
    assert(inherited->count < ARRAY_SIZE(inherited->all));
    if (own)
        inherited->own[inherited->own_count++] = fd;
    inherited->all[inherited->count] = fd;
    return FIRST_FD + (int)inherited->count++;
}

static int open_log(const char *vm_dir, const char *name, struct err *err)
{
    char path[PATH_MAX];
    int r = qemu_path(path, vm_dir, name, err);
    if (r < 0)
        return r;
    int fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0640);
    return fd < 0 ? err_sys(err, errno, "cannot open %s", path) : fd;
}

/* QEMU opens it a second time through /proc/self/fd, for which the file itself must be readable by its group.
 */
static int open_readable(const struct qemu_env *env, const char *name, struct err *err)
{
    char path[PATH_MAX];
    struct stat st;
    int r = qemu_path(path, env->vm_dir, name, err);
    if (r < 0)
        return r;
    _cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0 || fstat(fd, &st) < 0)
        return err_sys(err, errno, "cannot open %s", path);
    if (!S_ISREG(st.st_mode))
        return err_set(err, EINVAL, "%s is not a regular file", path);
    if (env->uid && !(st.st_mode & S_IROTH) &&
        (fchown(fd, (uid_t)-1, env->gid) < 0 || fchmod(fd, (st.st_mode & 0700) | S_IRGRP) < 0))
        return err_sys(err, errno, "cannot let QEMU read %s", path);
    return TAKE_FD(fd);
}

static int inherit_opened(struct inherited *inherited, int fd, int *ret)
{
    if (fd < 0)
        return fd;
    *ret = inherit(inherited, fd, true);
    return 0;
}

static int collect_fds(const struct qemu_env *env, const struct vm_config *config, int ram,
                       const int *tap_fds, struct inherited *inherited, struct qemu_fds *fds, struct err *err)
{
    char path[PATH_MAX];
    uint64_t firmware;
    int rescue[2];
    int r = qemu_rescue_pair(rescue, err);
    if (r < 0)
        return r;
    fds->rescue = inherit(inherited, rescue[0], true);
    int client = inherit(inherited, rescue[1], true);
    assert(fds->rescue == QEMU_RESCUE_FD && client == QEMU_RESCUE_CLIENT_FD);
    (void)client;
    fds->ram = ram < 0 ? -1 : inherit(inherited, ram, false);
    r = qemu_path(path, env->run_dir, QMP_UNNAMED, err);
    if (r == 0)
        r = inherit_opened(inherited, unix_listen(path, 0, 0, err), &fds->qmp);
    if (r == 0)
        r = inherit_opened(inherited, open_log(env->vm_dir, "console.log", err), &fds->console);
    if (r == 0 && config->kernel[0])
        r = inherit_opened(inherited, open_readable(env, config->kernel, err), &fds->kernel);
    if (r == 0 && config->initrd[0])
        r = inherit_opened(inherited, open_readable(env, config->initrd, err), &fds->initrd);
    if (r == 0 && vm_config_uefi(config))
        r = inherit_opened(inherited, firmware_open(env->firmware_dir, FIRMWARE_CODE, &firmware, err),
                           &fds->firmware);
    for (size_t i = 0; r == 0 && i < config->nic_count; i++)
        fds->taps[i] = inherit(inherited, tap_fds[i], false);
    return r;
}

/* RUN_DIR may be passed through by QEMU's user, `own` in it is its own, and empty. */
static int prepare_run_dir(const struct qemu_env *env, const char *own, struct err *err)
{
    char path[PATH_MAX];
    int r = qemu_path(path, env->run_dir, own, err);
    if (r == 0)
        r = file_remove_tree(path, err);
    if (r < 0)
        return r;
    if (chmod(env->run_dir, 0711) < 0 || mkdir(path, 0700) < 0 ||
        (env->uid && chown(path, env->uid, env->gid) < 0))
        return err_sys(err, errno, "cannot make %s", path);
    return 0;
}

/* --- why it did not start ------------------------------------------------------------------------------- */

/* QEMU prefixes its messages with its own name, which says nothing new. */
static const char *without_prefix(const char *line)
{
    const char *colon = strstr(line, ": ");
    return colon && strncmp(line, "qemu", 4) == 0 ? colon + 2 : line;
}

/* Puts the last lines of the log that were written since `from` into the error. */
static void append_log_tail(const struct vm_config *config, int log_fd, off_t from, struct err *err)
{
    if (!err)
        return;
    char text[1024], path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", log_fd); /* ours is open for writing only */
    _cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);
    off_t end = fd < 0 ? -1 : lseek(fd, 0, SEEK_END);
    if (end <= from)
        return;
    off_t start = MAX(from, end - (off_t)(sizeof text - 1));
    ssize_t n = pread(fd, text, sizeof text - 1, start);
    if (n <= 0)
        return;
    text[n] = '\0';
    for (char *c = text; *c; c++)
        if ((unsigned char)*c < ' ' && *c != '\n')
            *c = ' ';
    char said[384] = "", *next = text;
    for (char *line; (line = strsep(&next, "\n"));) {
        size_t used = strlen(said);
        if (*line)
            snprintf(said + used, sizeof said - used, "%s%s", used ? "; " : "", without_prefix(line));
    }
    if (said[0])
        err_set(err, err->code, "QEMU did not start (machine %s, CPU %s): %s", config->machine, config->cpu,
                said);
}

/* --- start and adoption --------------------------------------------------------------------------------- */

static struct qemu *qemu_alloc(const struct qemu_env *env)
{
    struct qemu *qemu = calloc(1, sizeof *qemu);
    if (!qemu)
        return NULL;
    qemu->pidfd = qemu->ram_fd = -1;
    qemu->own_dir = "qemu";
    qemu->uid = env->uid;
    qemu->gid = env->gid;
    snprintf(qemu->run_dir, sizeof qemu->run_dir, "%s", env->run_dir);
    return qemu;
}

int qemu_accel(const char *wanted, const char **ret, struct err *err)
{
    char why[128];
    bool kvm = strcmp(wanted, "tcg") != 0 && kvm_usable(why);
    if (strcmp(wanted, "kvm") == 0 && !kvm) {
        int r = err_set(err, EOPNOTSUPP, "KVM cannot be used here: %s", why);
        err_hint(err, "set \"accel\" to \"auto\" or \"tcg\" in vm.json");
        return r;
    }
    *ret = kvm ? "kvm" : "tcg";
    return 0;
}

static int launch(struct qemu *qemu, const struct qemu_env *env, const struct vm_config *config,
                  bool incoming, const int *tap_fds, int log_fd, struct err *err)
{
    char pid_file[PATH_MAX];
    const char *accel = NULL;
    struct qemu_fds fds = {.kernel = -1, .initrd = -1, .firmware = -1};
    _cleanup_(inherited_done) struct inherited inherited = {0};
    int r = qemu_accel(config->accel, &accel, err);
    if (r == 0) {
        log_info("QEMU runs with %s%s", accel,
                 strcmp(accel, "tcg") == 0 ? ": without real KVM the guest is emulated" : "");
        r = prepare_run_dir(env, qemu->own_dir, err);
    }
    if (r == 0)
        r = qemu_path(pid_file, env->run_dir, qemu_record_name(qemu->next), err);
    if (r < 0)
        return r;
    r = collect_fds(env, config, qemu->ram_fd, tap_fds, &inherited, &fds, err);
    if (r < 0)
        return r;
    char **argv = qemu_args_build(env, config, accel, incoming, &fds);
    if (!argv)
        return err_set(err, ENOMEM, "QEMU's command line cannot be built: out of memory, or too long");
    struct spawn spawn = {.argv = argv,
                          .uid = env->uid,
                          .gid = env->gid,
                          .fds = inherited.all,
                          .fd_count = inherited.count,
                          .log_fd = log_fd,
                          .pid_file = pid_file};
    r = spawn_process(&spawn, &qemu->pid, &qemu->pidfd, err);
    qemu_args_free(argv);
    qemu->child = r == 0;
    return r;
}

static int qmp_path(const struct qemu *qemu, char path[PATH_MAX], struct err *err)
{
    char name[32];
    snprintf(name, sizeof name, "qmp-%d.sock", (int)qemu->pid);
    return qemu_path(path, qemu->run_dir, name, err);
}

/* Its socket gets its name once its pid is known, by us or, after a crash in between, by who comes next. */
static int name_qmp(const struct qemu *qemu, struct err *err)
{
    char unnamed[PATH_MAX], path[PATH_MAX];
    int r = qemu_path(unnamed, qemu->run_dir, QMP_UNNAMED, err);
    if (r == 0)
        r = qmp_path(qemu, path, err);
    if (r == 0 && access(path, F_OK) < 0 && rename(unnamed, path) < 0)
        r = err_sys(err, errno, "QEMU (pid %d) has no control socket %s", (int)qemu->pid, path);
    return r;
}

static int connect_qmp(struct qemu *qemu, int msec, qmp_event_fn *on_event, void *arg, struct err *err)
{
    char path[PATH_MAX];
    int r = name_qmp(qemu, err);
    if (r == 0)
        r = qmp_path(qemu, path, err);
    if (r < 0)
        return r;
    return qmp_connect(path, clock_now() + msec * NSEC_PER_MSEC, on_event, arg, &qemu->qmp, err);
}

/* Owns `qemu`, whose RAM is there. */
static int start(struct qemu *qemu, const struct qemu_env *env, const struct vm_config *config, bool incoming,
                 const int *tap_fds, qmp_event_fn *on_event, void *arg, struct err *err)
{
    _cleanup_close_ int log_fd = open_log(env->vm_dir, "qemu.log", err);
    if (log_fd < 0)
        return log_fd;
    off_t log_start = lseek(log_fd, 0, SEEK_END);
    int r = launch(qemu, env, config, incoming, tap_fds, log_fd, err);
    if (r == 0) {
        /* The listener is QEMU's alone by now, so its death ends the connection at once. */
        r = connect_qmp(qemu, START_SECONDS * 1000, on_event, arg, err);
        if (r < 0) {
            qemu_kill(qemu, 0, NULL);
            if (r == -ECONNREFUSED)
                err_set(err, ECONNREFUSED, "%s ended as soon as it was started", env->binary);
            append_log_tail(config, log_fd, log_start, err);
            err_hint(err, "see %s/qemu.log", env->vm_dir);
        }
    }
    return r;
}

static int out_of_memory(struct err *err)
{
    return err_set(err, ENOMEM, "out of memory for QEMU");
}

int qemu_start(const struct qemu_env *env, const struct vm_config *config, bool incoming, const int *tap_fds,
               qmp_event_fn *on_event, void *arg, struct qemu **ret, struct err *err)
{
    struct qemu *qemu = qemu_alloc(env);
    if (!qemu)
        return out_of_memory(err);
    qemu->ram = config->ram;
    int r = ram_make(config->ram, config->memory, &qemu->ram_fd, err);
    if (r == 0)
        r = start(qemu, env, config, incoming, tap_fds, on_event, arg, err);
    if (r < 0)
        qemu_free(qemu);
    else
        *ret = qemu;
    return r;
}

int qemu_start_next(const struct qemu *qemu, const struct qemu_env *env, const struct vm_config *config,
                    const int *tap_fds, qmp_event_fn *on_event, void *arg, struct qemu **ret, struct err *err)
{
    if (qemu->ram_fd < 0)
        return err_set(err, ENOTSUP, "the guest's memory cannot be shared with a second QEMU");
    struct qemu *next = qemu_alloc(env);
    if (!next)
        return out_of_memory(err);
    next->next = true;
    next->ram = qemu->ram;
    next->own_dir = QEMU_NEXT_DIR;
    next->ram_fd = fcntl(qemu->ram_fd, F_DUPFD_CLOEXEC, 0);
    int r = next->ram_fd < 0 ? err_sys(err, errno, "cannot share the guest's memory")
                             : start(next, env, config, true, tap_fds, on_event, arg, err);
    if (r < 0)
        qemu_free(next);
    else
        *ret = next;
    return r;
}

int qemu_take_place(struct qemu *next, struct qemu *qemu, struct err *err)
{
    char record[PATH_MAX], other[PATH_MAX];
    int r = qemu_path(record, qemu->run_dir, qemu_record_name(false), err);
    if (r == 0)
        r = qemu_path(other, qemu->run_dir, qemu_record_name(true), err);
    if (r < 0)
        return r;
    if (renameat2(AT_FDCWD, record, AT_FDCWD, other, RENAME_EXCHANGE) < 0)
        return err_sys(err, errno, "cannot exchange %s and %s", record, other);
    next->next = false;
    qemu->next = true;
    return 0;
}

/* Without a descriptor it is QEMU's word; if that cannot be had either, nothing of value can come of it. */
static enum vm_ram ask_ram(struct qemu *qemu)
{
    _cleanup_json_ json_t *list = NULL;
    if (qemu->ram_fd >= 0)
        return ram_kind(qemu->ram_fd);
    if (!qemu->qmp || qmp_execute(qemu->qmp, "query-memdev", NULL, QEMU_COMMAND_MSEC, &list, NULL) < 0)
        return VM_RAM_SHARED;
    return json_bool(json_array_get(list, 0), "share", true) ? VM_RAM_SHARED : VM_RAM_PRIVATE;
}

static int find(const struct qemu_env *env, struct qemu **ret, struct err *err)
{
    char path[PATH_MAX];
    struct qemu *qemu = qemu_alloc(env);
    if (!qemu)
        return err_set(err, ENOMEM, "out of memory looking for QEMU");
    int r = qemu_path(path, env->run_dir, qemu_record_name(false), err);
    if (r == 0)
        r = pid_open_record(path, &qemu->pid, &qemu->pidfd, err);
    if (r < 0)
        qemu_free(qemu);
    else
        *ret = qemu;
    return r;
}

/* `r` is what came of speaking to it. */
static int adopted(struct qemu *qemu, int r, struct qemu **ret)
{
    if (r < 0) {
        qemu_free(qemu);
        return r;
    }
    qemu->ram_fd = ram_take(qemu->pid, qemu->pidfd);
    qemu->ram = ask_ram(qemu);
    *ret = qemu;
    return 0;
}

int qemu_adopt_waiting(const struct qemu_env *env, struct qemu **ret, struct err *err)
{
    struct qemu *qemu = NULL;
    int r = find(env, &qemu, err);
    if (r == 0)
        r = qemu_rescue_take(qemu, err);
    return adopted(qemu, r, ret);
}

int qemu_connect(struct qemu *qemu, int msec, qmp_event_fn *on_event, void *arg, struct err *err)
{
    int r = qemu->qmp ? 0 : connect_qmp(qemu, msec, on_event, arg, err);
    qemu->ram = ask_ram(qemu);
    return r;
}

bool qemu_connected(const struct qemu *qemu)
{
    return qemu->qmp;
}

int qemu_adopt(const struct qemu_env *env, qmp_event_fn *on_event, void *arg, struct qemu **ret,
               struct err *err)
{
    struct qemu *qemu = NULL;
    int r = find(env, &qemu, err);
    if (r == 0) {
        r = connect_qmp(qemu, ADOPT_SECONDS * 1000, on_event, arg, err);
        if (r < 0)
            err_context(err, "QEMU (pid %d) still runs", (int)qemu->pid);
    }
    return adopted(qemu, r, ret);
}

/* --- the end -------------------------------------------------------------------------------------------- */

bool qemu_ended(const struct qemu *qemu)
{
    struct pollfd p = {.fd = qemu->pidfd, .events = POLLIN};
    return poll(&p, 1, 0) > 0;
}

static void reap(struct qemu *qemu)
{
    siginfo_t info;
    if (qemu->child && qemu_ended(qemu) && waitid(P_PIDFD, (id_t)qemu->pidfd, &info, WEXITED | WNOHANG) == 0)
        qemu->child = false;
}

void qemu_free(struct qemu *qemu)
{
    if (!qemu)
        return;
    qmp_free(qemu->qmp);
    qmp_free(qemu->rescue);
    if (qemu->pidfd >= 0) {
        reap(qemu);
        close(qemu->pidfd);
    }
    if (qemu->ram_fd >= 0)
        close(qemu->ram_fd);
    free(qemu);
}

/* Its sockets and record, once it is gone. */
static void remove_traces(const struct qemu *qemu)
{
    const char *names[] = {qemu_record_name(qemu->next), QMP_UNNAMED, "incoming.sock"};
    char path[PATH_MAX];
    for (size_t i = 0; i < ARRAY_SIZE(names); i++)
        if (qemu_path(path, qemu->run_dir, names[i], NULL) == 0)
            unlink(path);
    if (qmp_path(qemu, path, NULL) == 0)
        unlink(path);
    if (qemu_path(path, qemu->run_dir, qemu->own_dir, NULL) == 0)
        file_remove_tree(path, NULL);
}

int qemu_kill(struct qemu *qemu, int msec, struct err *err)
{
    enum { SIGKILL_MSEC = 10000 };
    int64_t deadline = clock_now() + msec * NSEC_PER_MSEC;
    if (qemu->qmp && msec > 0) {
        /* Its answer may be lost in the exit, which is what counts. */
        qmp_execute(qemu->qmp, "quit", NULL, msec, NULL, NULL);
        struct pollfd p = {.fd = qemu->pidfd, .events = POLLIN};
        while (poll(&p, 1, clock_poll_ms(deadline)) < 0 && errno == EINTR)
            ;
    }
    if (!qemu_ended(qemu)) {
        int r = pid_signal_wait(qemu->pidfd, SIGKILL, SIGKILL_MSEC);
        if (r < 0)
            return err_sys(err, r, "cannot end QEMU (pid %d)", (int)qemu->pid);
    }
    reap(qemu);
    remove_traces(qemu);
    return 0;
}

void qemu_signal(struct qemu *qemu, int number)
{
    syscall(SYS_pidfd_send_signal, qemu->pidfd, number, NULL, 0);
}

int qemu_pidfd(const struct qemu *qemu)
{
    return qemu->pidfd;
}

pid_t qemu_pid(const struct qemu *qemu)
{
    return qemu->pid;
}

struct qmp *qemu_qmp(const struct qemu *qemu)
{
    return qemu->qmp;
}

int qemu_ram_fd(const struct qemu *qemu)
{
    return qemu->ram_fd;
}

enum vm_ram qemu_ram(const struct qemu *qemu)
{
    return qemu->ram;
}

/* --- running -------------------------------------------------------------------------------------------- */

int qemu_status(struct qemu *qemu, char ret[32], struct err *err)
{
    _cleanup_json_ json_t *value = NULL;
    int r = qmp_execute(qemu->qmp, "query-status", NULL, QEMU_COMMAND_MSEC, &value, err);
    if (r < 0)
        return r;
    const char *status = json_string_value(json_object_get(value, "status"));
    if (!status)
        return err_set(err, EPROTO, "QEMU's status has no \"status\"");
    snprintf(ret, 32, "%.31s", status);
    return 0;
}

int qemu_cont(struct qemu *qemu, struct err *err)
{
    return qmp_execute(qemu->qmp, "cont", NULL, QEMU_COMMAND_MSEC, NULL, err);
}

int qemu_pause(struct qemu *qemu, struct err *err)
{
    return qmp_execute(qemu->qmp, "stop", NULL, QEMU_COMMAND_MSEC, NULL, err);
}

int qemu_powerdown(struct qemu *qemu, struct err *err)
{
    return qmp_execute(qemu->qmp, "system_powerdown", NULL, QEMU_COMMAND_MSEC, NULL, err);
}
