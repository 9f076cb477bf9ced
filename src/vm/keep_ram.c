/* SPDX-License-Identifier: Apache-2.0
 *
 * keep_ram: what a guest that has left had in its RAM goes to a checkpoint, for its way back. Nobody waits
 * for that: a process of its own does it, at the lowest priority, with the RAM and nothing else of what we
 * hold; we may have ended long before, or have disks to lend for long after, and the RAM is free as soon as
 * it is written. Should the VM come back, or be removed, before it is ready, then there is no checkpoint.
 *
 * That process is `orai-vm keep-ram`, executed anew: a mere copy of us, which has threads, could wait for
 * ever for a lock that one of them held when it was made, with all of the RAM. So between fork and exec there
 * are system calls only.
 */
#include "vm/vm.h"

#include "base/file.h"
#include "base/log.h"
#include "base/macro.h"
#include "memory/checkpoint.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define RAM_FD 3 /* in the new process */
#define REPORT_FD 4
#define NUMBER_SIZE 24

/* --- the process that writes ---------------------------------------------------------------------------- */

int keep_ram(const struct vm_options *options, struct err *err)
{
    const struct checkpoint_head head = {
        .vm = options->vm, .epoch = options->epoch, .ram = options->ram_bytes};
    setpriority(PRIO_PROCESS, 0, 19);
    int r = checkpoint_save(options->vm_dir, RAM_FD, &head, err);
    return r < 0 ? err_context(err, "the memory is not kept for its way back") : 0;
}

/* --- the process that has it written -------------------------------------------------------------------- */

/* The pipe `report` is closed by exec, or carries its errno. */
static _Noreturn void become(char *const *argv, int ram, int report)
{
    sigset_t none;
    sigemptyset(&none);
    pthread_sigmask(SIG_SETMASK, &none, NULL);
    int high_ram = fcntl(ram, F_DUPFD, REPORT_FD + 1), high_report = fcntl(report, F_DUPFD, REPORT_FD + 1);
    if (high_ram >= 0 && high_report >= 0 && dup2(high_ram, RAM_FD) >= 0 &&
        dup2(high_report, REPORT_FD) >= 0 && fcntl(REPORT_FD, F_SETFD, FD_CLOEXEC) == 0 &&
        syscall(SYS_close_range, REPORT_FD + 1U, ~0U, 0U) == 0) {
        report = REPORT_FD;
        execv("/proc/self/exe", argv);
    }
    int error = errno;
    ssize_t ignored = write(report, &error, sizeof error);
    (void)ignored;
    _exit(EXIT_FAILURE);
}

/* As nobody's child, so that we need not reap it. 0 or -errno. */
static int spawn(char *const *argv, int ram)
{
    int ends[2], error = 0, status = 0;
    if (pipe2(ends, O_CLOEXEC) < 0)
        return -errno;
    _cleanup_close_ int in = ends[0];
    _cleanup_close_ int out = ends[1];
    pid_t child = fork();
    if (child == 0) {
        pid_t grandchild = fork();
        if (grandchild == 0)
            become(argv, ram, out);
        _exit(grandchild < 0 ? EXIT_FAILURE : EXIT_SUCCESS);
    }
    close(TAKE_FD(out));
    if (child < 0)
        return -errno;
    while (waitpid(child, &status, 0) < 0 && errno == EINTR)
        ;
    if (!WIFEXITED(status) || WEXITSTATUS(status) != EXIT_SUCCESS)
        return -EAGAIN;
    return file_read_full(in, &error, sizeof error) == 0 ? -error : 0;
}

void vm_keep_ram(const struct vm *vm, int ram)
{
    const struct vm_options *o = &vm->options;
    _cleanup_close_ int owned = ram;
    char id[ID_TEXT_SIZE], epoch[NUMBER_SIZE], bytes[NUMBER_SIZE];
    if (owned < 0)
        return;
    snprintf(epoch, sizeof epoch, "%" PRIu64, epoch_get(vm->epoch)->epoch);
    snprintf(bytes, sizeof bytes, "%" PRIu64, vm->config.memory);
    id_format(&vm->config.id, id);
    const char *argv[] = {"orai-vm",   "--state-dir", o->state_dir,  "--vm-dir",   o->vm_dir,
                          "--run-dir", o->run_dir,    "--host-name", o->host_name, "keep-ram",
                          id,          epoch,         bytes,         NULL};
    struct err err = ERR_NONE;
    int r = spawn((char *const *)argv, owned);
    if (r < 0) {
        err_sys(&err, r, "the memory of %s is not kept for its way back: no process for it", vm->config.name);
        log_warning("%s", err.text);
    }
}
