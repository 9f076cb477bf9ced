/* SPDX-License-Identifier: Apache-2.0
 *
 * Starting an orai-vm and speaking with it. It is started by a double fork with a session of its own, so that
 * it is nobody's child and outlives oraid; its standard error goes to VM_DIR/orai-vm.log. Under systemd
 * oraid.service has KillMode=process for the same end.
 *
 * oraid has threads: between fork and exec only system calls are made.
 */
#include "base/clock.h"
#include "base/file.h"
#include "base/json.h"
#include "base/log.h"
#include "base/macro.h"
#include "base/msg.h"
#include "base/pid.h"
#include "host/vm.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/close_range.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#define LOG_MAX (1U << 20)                   /* a longer orai-vm.log is begun anew, the old one kept once */
#define AWAIT_FIRST_NSEC (2 * NSEC_PER_MSEC) /* most orai-vm are there within 10 ms: a move waits for it */
#define AWAIT_LAST_NSEC (50 * NSEC_PER_MSEC)
#define RIVAL_NSEC NSEC_PER_SEC /* from an orai-vm's lock to its record */

struct report {
    pid_t pid;
    int error; /* of exec; a second report */
};

static int open_log(const char *dir, struct err *err)
{
    char path[PATH_MAX], old[PATH_MAX];
    struct stat st;
    if (snprintf(path, sizeof path, "%s/orai-vm.log", dir) >= (int)sizeof path ||
        snprintf(old, sizeof old, "%s.1", path) >= (int)sizeof old)
        return err_set(err, ENAMETOOLONG, "path too long: %s", dir);
    if (stat(path, &st) == 0 && st.st_size > LOG_MAX)
        rename(path, old); /* NOLINT(readability-suspicious-call-argument): it becomes the old one */
    int fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0640);
    return fd < 0 ? err_sys(err, errno, "cannot open %s", path) : fd;
}

static void reset_signals(void)
{
    struct sigaction action = {.sa_handler = SIG_DFL};
    sigset_t none;
    for (int i = 1; i < NSIG; i++)
        sigaction(i, &action, NULL);
    sigemptyset(&none);
    pthread_sigmask(SIG_SETMASK, &none, NULL);
}

static void say(int fd, struct report report)
{
    while (write(fd, &report, sizeof report) < 0 && errno == EINTR)
        ;
}

/* The grandchild. The reports' pipe becomes descriptor 3 and is closed by exec. */
static _Noreturn void become(char *const *argv, int log_fd, int reports)
{
    int null = open("/dev/null", O_RDWR | O_CLOEXEC), pipe_fd = fcntl(reports, F_DUPFD, 10);
    bool ok = null >= 0 && pipe_fd >= 0 && dup2(null, 0) >= 0 && dup2(log_fd, 2) >= 0 && dup2(null, 1) >= 0 &&
              dup2(pipe_fd, 3) >= 0 && fcntl(3, F_SETFD, FD_CLOEXEC) == 0 &&
              syscall(SYS_close_range, 4U, ~0U, 0U) == 0 && chdir("/") == 0;
    if (ok) {
        reset_signals();
        say(3, (struct report){.pid = getpid()});
        execv(argv[0], argv);
    }
    say(ok ? 3 : reports, (struct report){.pid = getpid(), .error = errno});
    _exit(127);
}

static pid_t fork_twice(char *const *argv, int log_fd, int reports)
{
    pid_t child = fork();
    if (child != 0)
        return child;
    setsid();
    pid_t grandchild = fork();
    if (grandchild == 0)
        become(argv, log_fd, reports);
    _exit(grandchild < 0 ? errno : 0);
}

static int spawn(char *const *argv, int log_fd, int *ret_pidfd, struct err *err)
{
    int ends[2], status = 0;
    if (pipe2(ends, O_CLOEXEC) < 0)
        return err_sys(err, errno, "cannot make a pipe");
    _cleanup_close_ int in = ends[0];
    _cleanup_close_ int out = ends[1];
    pid_t child = fork_twice(argv, log_fd, out);
    if (child < 0)
        return err_sys(err, errno, "cannot fork");
    close(TAKE_FD(out));
    while (waitpid(child, &status, 0) < 0 && errno == EINTR)
        ;
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
        return err_sys(err, WIFEXITED(status) ? WEXITSTATUS(status) : EIO, "cannot fork");
    struct report report = {0};
    int r = file_read_full(in, &report, sizeof report);
    if (r < 0 || report.error)
        return err_sys(err, r < 0 ? EIO : report.error, "cannot set up the process");
    _cleanup_close_ int pidfd = (int)syscall(SYS_pidfd_open, report.pid, 0);
    if (pidfd < 0 && errno != ESRCH)
        return err_sys(err, errno, "cannot watch the process");
    if (file_read_full(in, &report, sizeof report) == 0)
        return err_sys(err, report.error, "cannot execute %s", argv[0]);
    if (pidfd < 0)
        return err_set(err, ESRCH, "%s ended at once", argv[0]);
    *ret_pidfd = TAKE_FD(pidfd);
    return 0;
}

int vm_spawn(const struct host *host, const char *name, const struct vm_mode *mode, int *ret_pidfd,
             struct err *err)
{
    const struct host_options *o = &host->options;
    char dir[PATH_MAX], run[PATH_MAX], key[HASH_TEXT_SIZE], id[ID_TEXT_SIZE], source[300];
    vm_dir(host, name, dir);
    vm_run_dir(host, name, run);
    int r = file_mkdirs(run, 0711, err);
    if (r < 0)
        return r;
    _cleanup_close_ int log_fd = open_log(dir, err);
    if (log_fd < 0)
        return log_fd;
    const char *argv[26] = {o->orai_vm,  "--state-dir", o->state_dir,  "--vm-dir",   dir,
                            "--run-dir", run,           "--host-name", o->name,      "--qemu",
                            o->qemu,     "--qemu-user", o->qemu_user,  "--firmware", o->firmware};
    size_t count = 15;
    if (o->faults)
        argv[count++] = "--faults";
    if (mode->source) {
        snprintf(source, sizeof source, "%s:%u", mode->source->address, mode->source->port);
        argv[count++] = "--source";
        argv[count++] = source;
    }
    argv[count++] = mode->name;
    if (mode->fork_old_copy)
        argv[count++] = "--fork-old-copy";
    if (mode->source) {
        argv[count++] = fingerprint_format(&mode->source->fingerprint, key);
        argv[count++] = id_format(&mode->vm, id);
    }
    r = spawn((char *const *)argv, log_fd, ret_pidfd, err);
    if (r < 0)
        return err_context(err, "cannot start orai-vm for \"%s\"", name);
    log_info("%s: orai-vm %s", name, mode->name);
    return 0;
}

static int open_record(const struct host *host, const char *name, const char *file, int *ret_pidfd)
{
    char path[PATH_MAX];
    pid_t pid;
    struct err err;
    vm_run_path(host, name, file, path);
    return pid_open_record(path, &pid, ret_pidfd, &err);
}

int vm_process(const struct host *host, const char *name, int *ret_pidfd)
{
    return open_record(host, name, "orai-vm.pid", ret_pidfd);
}

int vm_qemu(const struct host *host, const char *name, int *ret_pidfd)
{
    return open_record(host, name, "qemu.pid", ret_pidfd);
}

int vm_ask(const struct host *host, const char *name, json_t *request, int msec, json_t **ret_answer,
           struct err *err)
{
    char path[PATH_MAX];
    vm_run_path(host, name, "control.sock", path);
    int r = msg_call(path, request, -1, msec, ret_answer, err);
    json_decref(request);
    if (r == -ENOENT || r == -ECONNREFUSED)
        return err_set(err, ENOTCONN, "no orai-vm runs for \"%s\"", name);
    return r;
}

bool vm_process_ends(int pidfd, int msec)
{
    struct pollfd p = {.fd = pidfd, .events = POLLIN};
    return pidfd >= 0 && poll(&p, 1, msec) == 1;
}

/* Ours found the VM's lock taken and ended without a word: the keeper, or whoever came before us, has started
 * one that has not recorded itself yet. */
static bool rival_lives(const struct host *host, const char *name)
{
    for (int64_t until = clock_now() + RIVAL_NSEC;; clock_sleep(AWAIT_FIRST_NSEC)) {
        _cleanup_close_ int pidfd = -1;
        if (vm_process(host, name, &pidfd) == 0)
            return true;
        if (clock_now() >= until)
            return false;
    }
}

bool vm_last_words(const struct host *host, const char *name, struct err *ret)
{
    char path[PATH_MAX];
    _cleanup_json_ json_t *failure = NULL;
    struct err unused;
    vm_run_path(host, name, "failure.json", path);
    return json_read_file(path, &failure, &unused) == 0 && err_from_json(failure, ret) < 0;
}

/* Why it ended. 0: another one lives. */
static int why_ended(const struct host *host, const char *name, struct err *err)
{
    if (vm_last_words(host, name, err))
        return -err->code;
    if (rival_lives(host, name))
        return 0;
    err_set(err, EIO, "orai-vm of \"%s\" ended without saying why", name);
    return err_hint(err, "see its log, %s/vms/%s/orai-vm.log", host->options.state_dir, name);
}

static bool listed(const char *state, const char *const *states)
{
    for (; states && *states; states++)
        if (strcmp(*states, state) == 0)
            return true;
    return !states;
}

int vm_await(const struct host *host, const char *name, int pidfd, const char *const *states,
             int64_t deadline, struct err *err)
{
    for (int64_t step = AWAIT_FIRST_NSEC;; step = MIN(2 * step, AWAIT_LAST_NSEC)) {
        _cleanup_json_ json_t *answer = NULL;
        struct err silent = ERR_NONE;
        bool ended = vm_process_ends(pidfd, 0); /* before the question, so that its last answer counts */
        int r = vm_ask(host, name, json_pack("{s:s}", "do", "status"), VM_ASK_MSEC, &answer, &silent);
        if (r == 0 && listed(json_str(answer, "state", ""), states))
            return 0;
        if (ended && (r = why_ended(host, name, err)) < 0)
            return r;
        if (clock_now() >= deadline)
            return r == 0 ? err_set(err, ETIMEDOUT, "\"%s\" is still %s", name,
                                    json_str(answer, "state", "unknown"))
                          : err_set(err, ETIMEDOUT, "orai-vm of \"%s\" does not answer: %.400s", name,
                                    silent.text);
        clock_sleep(step);
    }
}

int vm_end_lending(const struct host *host, const char *name, struct err *err)
{
    _cleanup_close_ int pidfd = -1;
    if (vm_process(host, name, &pidfd) < 0)
        return 0;
    int r = vm_ask(host, name, json_pack("{s:s}", "do", "release"), VM_TELL_MSEC, NULL, err);
    if (r == 0 && !vm_process_ends(pidfd, VM_YIELD_MSEC))
        r = err_set(err, EBUSY, "orai-vm of \"%s\" does not stop lending", name);
    return r;
}

int vm_end_sharing(const struct host *host, const char *name, struct err *err)
{
    _cleanup_close_ int pidfd = -1;
    _cleanup_json_ json_t *status = NULL;
    if (vm_process(host, name, &pidfd) < 0)
        return 0;
    int r = vm_ask(host, name, json_pack("{s:s}", "do", "status"), VM_TELL_MSEC, &status, NULL);
    return r == 0 && json_is_object(json_object_get(status, "shares")) ? vm_end_lending(host, name, err) : 0;
}
