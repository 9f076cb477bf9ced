/* SPDX-License-Identifier: Apache-2.0
 *
 * qemu_internal: what the files behind qemu.h share.
 */
#pragma once

#include "base/macro.h"
#include "vmm/qemu.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>

/* Ordinary commands; a QEMU that is busy with a device or swapped out may need seconds. */
#define QEMU_COMMAND_MSEC 10000

struct qemu {
    pid_t pid;
    int pidfd;
    bool child;         /* ours to reap */
    bool switching;     /* told to leave pre-switchover */
    unsigned throttle;  /* qemu_migrate_throttle */
    bool next;          /* started beside another one, and not yet the one that qemu.pid names */
    struct qmp *qmp;    /* NULL: not connected yet (qemu_adopt_waiting) */
    struct qmp *rescue; /* qemu_rescue.c; NULL: nobody needs it */
    enum vm_ram ram;
    int ram_fd;
    uid_t uid;
    gid_t gid;
    char run_dir[PATH_MAX];
    const char *own_dir; /* in RUN_DIR: its user may write there */
};

/* --- qemu_args.c: the command line ---------------------------------------------------------------------- */

/* Descriptors as they are numbered in QEMU; -1 where the VM has none. */
struct qemu_fds {
    int rescue, ram, qmp, console, kernel, initrd, firmware;
    int taps[VM_MAX_NICS];
};

/* A NULL-terminated argv, to be freed with qemu_args_free; NULL when out of memory. `accel` is "kvm" or
 * "tcg". */
char **qemu_args_build(const struct qemu_env *env, const struct vm_config *config, const char *accel,
                       bool incoming, const struct qemu_fds *fds);
void qemu_args_free(char **argv);

/* --- qemu_rescue.c -------------------------------------------------------------------------------------- */

/* Where QEMU has both ends of the rescue monitor's connection. */
#define QEMU_RESCUE_FD 3
#define QEMU_RESCUE_CLIENT_FD 4

int qemu_rescue_pair(int ret[2], struct err *err);
/* While QEMU's main thread answers: makes the connection one for commands out of band. -ENOTSUP: this QEMU
 * has none. */
int qemu_rescue_open(struct qemu *qemu, struct err *err);
/* As whoever opened it has left it. */
int qemu_rescue_take(struct qemu *qemu, struct err *err);

/* --- qemu_early.c --------------------------------------------------------------------------------------- */

/* The pages of a queue, from QEMU's answer about it (VirtQueueStatus). */
void qemu_early_queue(const struct vm_config *config, const json_t *queue, struct qemu_pages *pages);
/* The pages of all CPUs, from the text of "info registers -a". */
void qemu_early_registers(const struct vm_config *config, int ram_fd, const char *text,
                          struct qemu_pages *pages);

/* --- spawn.c -------------------------------------------------------------------------------------------- */

struct spawn {
    char **argv; /* argv[0] is looked up in PATH */
    uid_t uid;   /* 0 = do not change */
    gid_t gid;
    const int *fds; /* become 3, 4, ... in the process; all others are closed */
    size_t fd_count;
    int log_fd; /* its standard output and error */
    const char *pid_file;
};

/* Starts a process in a session of its own, recorded in pid_file before its first instruction runs. */
int spawn_process(const struct spawn *spawn, pid_t *ret_pid, int *ret_pidfd, struct err *err);

/* --- probe.c -------------------------------------------------------------------------------------------- */

/* Is KVM real here? If not, `why` says so. */
bool kvm_usable(char why[128]);

/* --- qemu_migrate.c ------------------------------------------------------------------------------------- */

/* QEMU listens at `theirs` in its own folder; the socket then moves to incoming.sock in ours, where QEMU
 * cannot replace it any more. */
int qemu_incoming_path(const struct qemu *qemu, char path[PATH_MAX], struct err *err);
int qemu_take_over_socket(const struct qemu *qemu, const char *theirs, struct err *err);

/* --- qemu.c --------------------------------------------------------------------------------------------- */

/* Files of RUN_DIR that a QEMU has for itself: those of the guest's, and of one that is to take its place. */
static inline const char *qemu_record_name(bool next)
{
    return next ? QEMU_NEXT_RECORD : "qemu.pid";
}

static inline int qemu_path(char path[PATH_MAX], const char *dir, const char *name, struct err *err)
{
    if (snprintf(path, PATH_MAX, "%s/%s", dir, name) >= PATH_MAX)
        return err_set(err, ENAMETOOLONG, "path too long: %s/%s", dir, name);
    return 0;
}
