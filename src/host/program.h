/* SPDX-License-Identifier: Apache-2.0
 *
 * program: runs a helper program (qemu-img) without a shell, within limits, and takes what it prints.
 */
#pragma once

#include "base/err.h"

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

struct program {
    const char *const *argv; /* argv[0] is looked up in PATH; NULL at the end */
    int pass_fd;             /* inherited as descriptor 3; -1 = none */
    int64_t deadline;        /* clock_now() */
    uint64_t max_memory;     /* address space, bytes; 0 = unlimited */
    atomic_bool *cancel;     /* ends the program when it becomes true; may be NULL */
    /* Called about five times per second while it runs; may be NULL. */
    void (*tick)(void *arg);
    void *arg;
};

/* Runs it to its end. *ret_output (may be NULL) is what it wrote to standard output, at most 1 MiB, malloc'ed
 * with a NUL. A failure carries the first line of its standard error. -ECANCELED when cancelled. */
int program_run(const struct program *program, char **ret_output, struct err *err);
