/* SPDX-License-Identifier: Apache-2.0
 *
 * fault: named points at which a test may make a move fail, so that every stage is tested with every fault.
 *
 * Off unless orai-vm was started with --faults. Then the file RUN_DIR/fault holds one line "POINT ACTION";
 * the process that reaches POINT writes the name to RUN_DIR/fault.reached and does ACTION:
 *
 *   hold  waits until RUN_DIR/fault is removed
 *   kill  SIGKILL to itself
 *   stop  SIGSTOP to itself
 *   fail  the stage fails with -EIO
 *   flip  turns over one bit of the data that passes there, and removes RUN_DIR/fault (fault_data)
 */
#pragma once

#include "base/err.h"

#include <stddef.h>

/* Before any thread is started. */
void fault_enable(const char *run_dir);
/* "source.pause.begin" and the like. 0, or the wanted failure. */
int fault_point(struct err *err, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* A point that data passes, after its checksum was made: what a bad memory or cable does. */
void fault_data(void *data, size_t size, const char *point);
