/* SPDX-License-Identifier: Apache-2.0
 *
 * lab: a folder pair with a small VM's configuration, for tests that run a real QEMU (firmware only, under
 * TCG).
 */
#pragma once

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "vmm/machine.h"

#include <limits.h>

struct lab {
    char dir[64], vm_dir[80], run_dir[80];
    struct qemu_env env; /* as nobody when the tests run as root */
    struct vm_config config;
};

void lab_open(struct lab *lab);
/* Also fails the test when a QEMU of this lab still runs. */
void lab_close(struct lab *lab);
/* Skips the test when there is no QEMU. */
void lab_need_qemu(void);
/* Asserts that query-status says `wanted` within 10 s. */
void lab_wait_status(struct qemu *qemu, const char *wanted);
void lab_wait_migration(struct qemu *qemu, const char *wanted);

/* Carries bytes both ways between migrate.sock (where it listens) of one lab and incoming.sock of another. */
struct pump;
struct pump *pump_start(struct lab *source, struct lab *destination);
void pump_stop(struct pump *pump);
