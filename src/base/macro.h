/* SPDX-License-Identifier: Apache-2.0
 *
 * macro: the few macros that every file may use. `_cleanup_(f)` runs f(&variable) when it goes out of scope.
 */
#pragma once

#include <assert.h>
#include <jansson.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <unistd.h>

#define _cleanup_(f) __attribute__((cleanup(f)))
#define ARRAY_SIZE(a) (sizeof(a) / sizeof *(a))
#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))
#define KiB UINT64_C(1024)
#define MiB (KiB * 1024)
#define GiB (MiB * 1024)

static inline void free_cleanup(void *p)
{
    free(*(void **)p);
}

static inline void close_cleanup(int *fd)
{
    if (*fd >= 0)
        close(*fd);
}

static inline void json_cleanup(json_t **json)
{
    json_decref(*json);
}

#define _cleanup_free_ _cleanup_(free_cleanup)
#define _cleanup_close_ _cleanup_(close_cleanup)
#define _cleanup_json_ _cleanup_(json_cleanup)

/* Hands an owned pointer or descriptor on, leaving NULL or -1 behind for the cleanup. */
#define TAKE_PTR(p)                 \
    ({                              \
        __typeof__(p) taken_ = (p); \
        (p) = NULL;                 \
        taken_;                     \
    })
#define TAKE_FD(fd)        \
    ({                     \
        int taken_ = (fd); \
        (fd) = -1;         \
        taken_;            \
    })
