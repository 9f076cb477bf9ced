/* SPDX-License-Identifier: Apache-2.0
 *
 * unit: what the tests of src/base share: cmocka in the order that it wants, and a scratch folder.
 */
#pragma once

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/file.h"

#include "../scratch.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char scratch[64];

static inline int make_scratch(void **state)
{
    (void)state;
    return scratch_make(scratch, sizeof scratch);
}

static inline int remove_scratch(void **state)
{
    (void)state;
    return file_remove_tree(scratch, NULL);
}

/* A path inside the scratch folder; good until the fourth next call. */
static inline const char *in_scratch(const char *name)
{
    static char paths[4][256];
    static unsigned next;
    char *path = paths[next++ % 4];
    snprintf(path, sizeof paths[0], "%s/%s", scratch, name);
    return path;
}

static inline int count_open_fds(void)
{
    int count = 0;
    DIR *dir = opendir("/proc/self/fd");
    while (readdir(dir))
        count++;
    closedir(dir);
    return count;
}
