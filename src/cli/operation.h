/* SPDX-License-Identifier: Apache-2.0
 *
 * operation: watching long work that oraid does. The work is oraid's, not ours: it goes on when this program
 * ends, and when oraid itself restarts, so a silent oraid is waited for.
 */
#pragma once

#include "cli/cli.h"

typedef void operation_change_fn(void *arg, const json_t *operation);

/* Watches the operation of a 202 answer until it has ended; on_change gets each new version (may be NULL). On
 * success *ret is the operation as it ended, whatever its state: see operation_failure. */
int operation_wait(struct cli *cli, const json_t *operation, operation_change_fn *on_change, void *arg,
                   json_t **ret, struct err *err);
/* The error of an operation that has ended; 0 when it was done. */
int operation_failure(const json_t *operation, struct err *err);

/* Posts `body`, watches with a line of progress on the terminal, gives the operation's result. */
int operation_run(struct cli *cli, const char *path, const json_t *body, json_t **ret_result,
                  struct err *err);

/* From here on Ctrl-C, a hang-up and SIGTERM end this program with `text` on standard error. */
void operation_on_interrupt(const char *format, ...) __attribute__((format(printf, 1, 2)));
