/* SPDX-License-Identifier: Apache-2.0
 *
 * options: oraid's command line.
 */
#pragma once

#include "base/err.h"
#include "host/host.h"

extern const char options_help[];

/* 0, or -EINVAL with what is wrong. *ret_text: what --help or --version print, else NULL. Strings that are
 * not from argv live as long as the process. */
int options_parse(int argc, char **argv, struct host_options *ret, const char **ret_text, struct err *err);
