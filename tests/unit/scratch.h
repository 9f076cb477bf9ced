/* SPDX-License-Identifier: Apache-2.0
 *
 * scratch: a folder for a test's files, in $TMPDIR or /var/tmp, which is a disk on most machines.
 */
#pragma once

#include <stdio.h>
#include <stdlib.h>

/* 0, or -1 with errno. */
static inline int scratch_make(char *ret, size_t size)
{
    const char *parent = getenv("TMPDIR");
    snprintf(ret, size, "%s/orai-test-XXXXXX", parent ? parent : "/var/tmp");
    return mkdtemp(ret) ? 0 : -1;
}
