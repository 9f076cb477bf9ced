/* SPDX-License-Identifier: Apache-2.0
 *
 * complete: what may stand at the end of a half-typed command line; the shells' scripts in completions/ only
 * hand it over. `orai __complete WORD...` gets the words after "orai", the last one being the one under the
 * cursor (perhaps empty), and prints one proposal per line, "WORD<tab>DESCRIPTION". The line ":file" asks the
 * shell for its own file names. Names of VMs, peers and images come from oraid; when it is silent there are
 * none.
 */
#pragma once

#include "base/err.h"

#include <stdio.h>

/* Gives the names for a "/v1/..." list; NULL members are skipped. May be replaced by tests. */
typedef void complete_names_fn(void *arg, const char *socket, const char *path, const char *list, FILE *out,
                               const char *prefix);

void complete_words(int count, char **words, FILE *out, complete_names_fn *names, void *arg);
/* With oraid as the source of names. Returns an exit code. */
int complete_run(int count, char **words);
