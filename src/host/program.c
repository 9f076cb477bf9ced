/* SPDX-License-Identifier: Apache-2.0 */
#include "host/program.h"

#include "base/clock.h"
#include "base/macro.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/close_range.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#define OUTPUT_MAX (1U << 20)
#define ERRORS_MAX 2048
#define TICK_MSEC 200

/* A growing buffer that is filled from a pipe; what does not fit is read and dropped. */
struct text {
    char *data;
    size_t used, limit;
};

/* Between fork and exec of a program with threads: system calls only. */
static _Noreturn void become(const struct program *program, int out, int errors)
{
    sigset_t none;
    sigemptyset(&none);
    pthread_sigmask(SIG_SETMASK, &none, NULL);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    int null = open("/dev/null", O_RDONLY),
        high = program->pass_fd < 0 ? -1 : fcntl(program->pass_fd, F_DUPFD, 10);
    int out_high = fcntl(out, F_DUPFD, 10), errors_high = fcntl(errors, F_DUPFD, 10);
    dup2(null, 0);
    dup2(out_high, 1);
    dup2(errors_high, 2);
    if (high >= 0)
        dup2(high, 3);
    syscall(SYS_close_range, high >= 0 ? 4U : 3U, ~0U, 0U);
    struct rlimit memory = {program->max_memory, program->max_memory}, core = {0, 0};
    if (program->max_memory)
        setrlimit(RLIMIT_AS, &memory);
    setrlimit(RLIMIT_CORE, &core);
    execvp(program->argv[0], (char *const *)program->argv);
    dprintf(2, "%m\n");
    _exit(127);
}

/* false at the end of the pipe. */
static bool take(int fd, struct text *text)
{
    char buffer[4096];
    ssize_t n = read(fd, buffer, sizeof buffer);
    if (n < 0)
        return errno == EAGAIN || errno == EINTR;
    size_t room = MIN((size_t)n, text->limit - text->used);
    char *data = realloc(text->data, text->used + room + 1);
    if (data) {
        text->data = data;
        memcpy(data + text->used, buffer, room);
        text->used += room;
        data[text->used] = '\0';
    }
    return n > 0;
}

/* Reads both pipes until they end. Returns why the program must be killed, or 0. */
static int follow(const struct program *program, int out, int errors, struct text texts[2])
{
    struct pollfd fds[2] = {{.fd = out, .events = POLLIN}, {.fd = errors, .events = POLLIN}};
    while (fds[0].fd >= 0 || fds[1].fd >= 0) {
        if (program->cancel && *program->cancel)
            return -ECANCELED;
        if (clock_now() >= program->deadline)
            return -ETIMEDOUT;
        int n = poll(fds, 2, MIN(TICK_MSEC, clock_poll_ms(program->deadline)));
        if (n == 0 && program->tick)
            program->tick(program->arg);
        for (int i = 0; i < 2; i++)
            if (n > 0 && fds[i].revents && !take(fds[i].fd, &texts[i]))
                fds[i].fd = -1;
    }
    return 0;
}

static int verdict(const struct program *program, int status, const struct text *errors, struct err *err)
{
    const char *name = program->argv[0];
    char line[300];
    snprintf(line, sizeof line, "%s", errors->data ? errors->data : "");
    line[strcspn(line, "\n")] = '\0';
    if (WIFSIGNALED(status))
        return err_set(err, EIO, "%s was ended by SIG%s", name, sigabbrev_np(WTERMSIG(status)));
    if (WEXITSTATUS(status) == 127) {
        err_set(err, ENOENT, "cannot run %s: %s", name, line);
        return err_hint(err, "install the package that has %s (Debian: qemu-utils)", name);
    }
    return WEXITSTATUS(status) ? err_set(err, EIO, "%s", line[0] ? line : "it failed without saying why") : 0;
}

int program_run(const struct program *program, char **ret_output, struct err *err)
{
    struct text texts[2] = {{.limit = OUTPUT_MAX}, {.limit = ERRORS_MAX}};
    int out[2], errors[2], status = 0;
    if (pipe2(out, O_CLOEXEC) < 0)
        return err_sys(err, errno, "cannot make a pipe");
    if (pipe2(errors, O_CLOEXEC) < 0) {
        int r = err_sys(err, errno, "cannot make a pipe");
        close(out[0]), close(out[1]);
        return r;
    }
    pid_t pid = fork();
    if (pid == 0)
        become(program, out[1], errors[1]);
    int fork_error = errno;
    close(out[1]), close(errors[1]);
    int r = pid < 0 ? -fork_error : follow(program, out[0], errors[0], texts);
    close(out[0]), close(errors[0]);
    if (pid > 0) {
        if (r < 0)
            kill(pid, SIGKILL);
        while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
            ;
    }
    if (r == -ECANCELED)
        err_set(err, ECANCELED, "%s was stopped", program->argv[0]);
    else if (r < 0)
        err_sys(err, r, "cannot run %s to its end", program->argv[0]);
    else
        r = verdict(program, status, &texts[1], err);
    free(texts[1].data);
    if (r == 0 && ret_output)
        *ret_output = texts[0].data ? texts[0].data : strdup("");
    else
        free(texts[0].data);
    return r;
}
