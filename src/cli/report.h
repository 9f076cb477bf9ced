/* SPDX-License-Identifier: Apache-2.0
 *
 * report: how a failure is told, once, on standard error: where it happened, what and why, where the VM is
 * now, what to do next.
 */
#pragma once

#include "cli/cli.h"

#include <stdio.h>

/* `whereabouts` may be NULL. */
void report_error(FILE *out, const struct err *err, const char *whereabouts);
/* Where the VM that the verb was about is now, by asking oraid; NULL when that is not the question or not
 * known. malloc'ed. */
char *report_whereabouts(struct cli *cli);
