/* SPDX-License-Identifier: Apache-2.0 */
/* Regular intervals that do not drift, and do not burst after the guest stood still (a move's blackout). */
#pragma once

#include <stdint.h>

enum { MS = 1000 * 1000, SECOND = 1000 * MS };

struct pace {
    int64_t next; /* CLOCK_MONOTONIC, ns; 0 before the first wait */
};

int64_t pace_now(void);

/* Sleeps until `interval` ns after the previous wait ended or should have ended. */
void pace_wait(struct pace *pace, int64_t interval);
