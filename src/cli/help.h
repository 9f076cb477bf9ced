/* SPDX-License-Identifier: Apache-2.0
 *
 * help: the texts of --help and `orai help`, made from the verbs' table.
 */
#pragma once

#include "cli/args.h"

#include <stdio.h>

/* Of one verb. */
void help_verb(FILE *out, const struct verb *verb);
/* Of all verbs (wanted NULL), or those of one group. */
void help_overview(FILE *out, const char *wanted);
