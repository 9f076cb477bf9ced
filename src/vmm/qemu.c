/* SPDX-License-Identifier: Apache-2.0
 *
 * qemu: the life of one QEMU process.
 *
 * What it may touch is decided here, by us as root, before it runs as its own user: it gets its RAM, kernel,
 * console log, log, taps and QMP listener as open descriptors, and of the file system only RUN_DIR/qemu, an
 * empty folder of its own, plus the sockets that were given to its user. RUN_DIR itself stays ours, so QEMU
 * cannot replace a socket or pid file that we trust.
 *
 * QEMU has its own session and outlives us; RUN_DIR/qemu.pid names it (base/pid.h). After our crash
 * qemu_adopt connects to QMP again (QEMU serves one client at a time, and has noticed that the old one is
 * gone) and takes the RAM's descriptor back. While we are QEMU's parent, we reap it.
 *
 * Thread: one at a time, but for qemu_qmp's users.
 */
#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "base/pid.h"
#include "vmm/firmware.h"
#include "vmm/qemu_internal.h"
#include "vmm/unix_socket.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#define START_SECONDS 30 /* until QMP answers; a loaded machine under TCG is slow */
#define ADOPT_SECONDS 10
#define FIRST_FD 3
#define RAM_NAME "orai-ram"

/* --- what QEMU inherits ------------------------------------------------------------------------------------
 */

/* Our side of the descriptors, in the order in which the child numbers them from FIRST_FD on. */
struct inherited {
    int own[VM_MAX_NICS + 8]; /* those that we close again */
    size_t own_count;
    int all[VM_MAX_NICS + 8];
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

/* Sealed in size: a QEMU that shrank it would kill whoever reads the guest's memory with SIGBUS. */
static int make_ram(uint64_t size, struct err *err)
{
    _cleanup_close_ int fd = memfd_create(RAM_NAME, MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0 || ftruncate(fd, (off_t)size) < 0 ||
        fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0)
        return err_sys(err, errno, "cannot make the guest's memory of %llu MiB",
                       (unsigned long long)(size / MiB));
    return TAKE_FD(fd);
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
    fds->ram = inherit(inherited, ram, false);
    int r = qemu_path(path, env->run_dir, "qmp.sock", err);
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

/* RUN_DIR may be passed through by QEMU's user, RUN_DIR/qemu is its own, and empty. */
static int prepare_run_dir(const struct qemu_env *env, struct err *err)
{
    char path[PATH_MAX];
    int r = qemu_path(path, env->run_dir, "qemu", err);
    if (r == 0)
        r = file_remove_tree(path, err);
    if (r < 0)
        return r;
    if (chmod(env->run_dir, 0711) < 0 || mkdir(path, 0700) < 0 ||
        (env->uid && chown(path, env->uid, env->gid) < 0))
        return err_sys(err, errno, "cannot make %s", path);
    return 0;
}

/* --- why it did not start ----------------------------------------------------------------------------------
 */

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

/* --- start and adoption ------------------------------------------------------------------------------------
 */

static struct qemu *qemu_alloc(const struct qemu_env *env)
{
    struct qemu *qemu = calloc(1, sizeof *qemu);
    if (!qemu)
        return NULL;
    qemu->pidfd = qemu->ram_fd = -1;
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
        r = prepare_run_dir(env, err);
    }
    if (r == 0)
        r = qemu_path(pid_file, env->run_dir, "qemu.pid", err);
    if (r < 0)
        return r;
    qemu->ram_fd = make_ram(config->memory, err);
    if (qemu->ram_fd < 0)
        return qemu->ram_fd;
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

static int connect_qmp(struct qemu *qemu, int seconds, qmp_event_fn *on_event, void *arg, struct err *err)
{
    char path[PATH_MAX];
    int r = qemu_path(path, qemu->run_dir, "qmp.sock", err);
    if (r < 0)
        return r;
    return qmp_connect(path, clock_now() + seconds * NSEC_PER_SEC, on_event, arg, &qemu->qmp, err);
}

int qemu_start(const struct qemu_env *env, const struct vm_config *config, bool incoming, const int *tap_fds,
               qmp_event_fn *on_event, void *arg, struct qemu **ret, struct err *err)
{
    _cleanup_close_ int log_fd = open_log(env->vm_dir, "qemu.log", err);
    if (log_fd < 0)
        return log_fd;
    off_t log_start = lseek(log_fd, 0, SEEK_END);
    struct qemu *qemu = qemu_alloc(env);
    if (!qemu)
        return err_set(err, ENOMEM, "out of memory starting QEMU");
    int r = launch(qemu, env, config, incoming, tap_fds, log_fd, err);
    if (r == 0) {
        /* The listener is QEMU's alone by now, so its death ends the connection at once. */
        r = connect_qmp(qemu, START_SECONDS, on_event, arg, err);
        if (r < 0) {
            qemu_kill(qemu, 0, NULL);
            append_log_tail(config, log_fd, log_start, err);
            err_hint(err, "see %s/qemu.log", env->vm_dir);
        }
    }
    if (r < 0) {
        qemu_free(qemu);
        return r;
    }
    *ret = qemu;
    return 0;
}

/* The memfd among QEMU's descriptors; -1 when it cannot be had. */
static int take_ram(pid_t pid, int pidfd)
{
    char path[64], target[64];
    int fd = -1;
    snprintf(path, sizeof path, "/proc/%d/fd", (int)pid);
    DIR *dir = opendir(path);
    if (!dir)
        return -1;
    for (struct dirent *entry; fd < 0 && (entry = readdir(dir));) {
        ssize_t n = readlinkat(dirfd(dir), entry->d_name, target, sizeof target - 1);
        target[MAX(n, 0)] = '\0';
        if (strncmp(target, "/memfd:" RAM_NAME " ", strlen("/memfd:" RAM_NAME " ")) == 0)
            fd = (int)syscall(SYS_pidfd_getfd, pidfd, (int)strtol(entry->d_name, NULL, 10), 0);
    }
    closedir(dir);
    return fd;
}

int qemu_adopt(const struct qemu_env *env, qmp_event_fn *on_event, void *arg, struct qemu **ret,
               struct err *err)
{
    char path[PATH_MAX];
    struct qemu *qemu = qemu_alloc(env);
    if (!qemu)
        return err_set(err, ENOMEM, "out of memory looking for QEMU");
    int r = qemu_path(path, env->run_dir, "qemu.pid", err);
    if (r == 0)
        r = pid_open_record(path, &qemu->pid, &qemu->pidfd, err);
    if (r == 0) {
        r = connect_qmp(qemu, ADOPT_SECONDS, on_event, arg, err);
        if (r < 0)
            err_context(err, "QEMU (pid %d) still runs", (int)qemu->pid);
    }
    if (r < 0) {
        qemu_free(qemu);
        return r;
    }
    qemu->ram_fd = take_ram(qemu->pid, qemu->pidfd);
    *ret = qemu;
    return 0;
}

/* --- the end -----------------------------------------------------------------------------------------------
 */

static bool exited(const struct qemu *qemu)
{
    struct pollfd p = {.fd = qemu->pidfd, .events = POLLIN};
    return poll(&p, 1, 0) > 0;
}

static void reap(struct qemu *qemu)
{
    siginfo_t info;
    if (qemu->child && exited(qemu) && waitid(P_PIDFD, (id_t)qemu->pidfd, &info, WEXITED | WNOHANG) == 0)
        qemu->child = false;
}

void qemu_free(struct qemu *qemu)
{
    if (!qemu)
        return;
    qmp_free(qemu->qmp);
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
    static const char *const names[] = {"qmp.sock", "qemu.pid", "incoming.sock"};
    char path[PATH_MAX];
    for (size_t i = 0; i < ARRAY_SIZE(names); i++)
        if (qemu_path(path, qemu->run_dir, names[i], NULL) == 0)
            unlink(path);
    if (qemu_path(path, qemu->run_dir, "qemu", NULL) == 0)
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
    if (!exited(qemu)) {
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

/* --- running -----------------------------------------------------------------------------------------------
 */

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
