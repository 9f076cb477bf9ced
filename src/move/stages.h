/* SPDX-License-Identifier: Apache-2.0
 *
 * stages: a move on one page. Both sides walk the same table, each its own column; stages.c holds it.
 *
 * When a stage fails before the commit, the rollbacks of that stage and of all before it run, newest first:
 * the guest then runs on the source as if nothing had been. From the commit on there is no way back, only
 * forward; a commit that the peer durably refused counts as "before".
 */
#pragma once

#include "base/err.h"

#include <stdbool.h>
#include <stddef.h>

struct departure;
struct arrival;

struct stage {
    const char *name;
    const char *what; /* for people who read the log */
    int (*source)(struct departure *departure, struct err *err);
    void (*source_rollback)(struct departure *departure);
    int (*destination)(struct arrival *arrival, struct err *err);
    void (*destination_rollback)(struct arrival *arrival);
};

enum stage_number { STAGE_PREPARE, STAGE_TRANSFER, STAGE_PAUSE, STAGE_COMMIT, STAGE_FINISH, STAGE_COUNT };

extern const struct stage stages[STAGE_COUNT];

/* Walk one column from `first` to `last`, with the fault points "source.NAME.begin" and "source.NAME.end" (or
 * "destination..."), and roll back on failure. The error carries the stage. */
int stages_walk_source(struct departure *departure, enum stage_number first, enum stage_number last,
                       struct err *err);
int stages_walk_destination(struct arrival *arrival, enum stage_number first, enum stage_number last,
                            struct err *err);
