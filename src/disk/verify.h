/* SPDX-License-Identifier: Apache-2.0
 *
 * verify: does what lies beside an image fit together, and what is not as it must be? For `orai disk verify`;
 * read-only.
 */
#pragma once

#include "base/err.h"
#include "disk/disk.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct disk_verdict {
    /* Each says what is wrong and what follows from it; one line. */
    size_t count;
    char **findings;

    /* What was seen, as far as the files could be read. */
    uint64_t size;         /* bytes */
    uint64_t written;      /* blocks with a number */
    uint64_t data_unnamed; /* blocks with data but no number */
    uint64_t missing;      /* of a split disk: blocks still on another host; not looked at */
    uint32_t current;      /* generation */
    bool clean;            /* closed in order */
};

/* 0 when the check could be made, whatever it found: verdict->count says. -EBUSY while somebody writes. *ret
 * is to be given to disk_verdict_done. */
int disk_verify(const char *image, struct disk_verdict *ret, struct err *err);
void disk_verdict_done(struct disk_verdict *verdict);
