/* SPDX-License-Identifier: Apache-2.0
 *
 * pid: a process that may outlive us, named so that a reused number is never mistaken for it.
 *
 * The record on disk is "PID START\n", START being the process's start time in clock ticks since boot
 * (/proc/PID/stat, field 22) and the boot's id; a record from an earlier boot names no process.
 */
#pragma once

#include "base/err.h"

#include <sys/types.h>

/* Writes the record of `pid` (a live process) to `path`, replacing it. */
int pid_record(const char *path, pid_t pid, struct err *err);
/* Opens the process that the record names. *ret_pidfd polls readable when it exits.
 * -ESRCH when there is no record or its process is gone: not an error to report. */
int pid_open_record(const char *path, pid_t *ret_pid, int *ret_pidfd, struct err *err);
/* Sends `signal` through the pidfd, waits up to `msec` for the exit. 0, or -ETIMEDOUT, or another errno. */
int pid_signal_wait(int pidfd, int signal, int msec);
/* "3f2a..." of /proc/sys/kernel/random/boot_id, 36 characters and NUL. */
#define BOOT_ID_SIZE 37
int boot_id_read(char ret[BOOT_ID_SIZE]);
