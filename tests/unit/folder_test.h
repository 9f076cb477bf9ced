/* SPDX-License-Identifier: Apache-2.0
 *
 * What tests share that need files: cmocka, a folder of their own, and calls that must succeed.
 */
#pragma once

#include "base/err.h"
#include "base/file.h"

#include "scratch.h"

// clang-format off
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
// clang-format on
#include <stdio.h>
#include <stdlib.h>

static char folder[64];

#define assert_ok(call)                                       \
    do {                                                      \
        struct err err = ERR_NONE;                            \
        int result_ = (call);                                 \
        if (result_ != 0)                                     \
            fail_msg("%s: %d: %s", #call, result_, err.text); \
    } while (0)

static inline int make_folder(void **state)
{
    (void)state;
    return scratch_make(folder, sizeof folder);
}

static inline int drop_folder(void **state)
{
    (void)state;
    return file_remove_tree(folder, NULL);
}

/* A path in the folder; good until the fourth next call. */
static inline const char *in_folder(const char *name)
{
    static char paths[4][128];
    static unsigned next;
    char *path = paths[next++ % 4];
    snprintf(path, sizeof paths[0], "%s/%s", folder, name);
    return path;
}
