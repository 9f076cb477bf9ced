/* SPDX-License-Identifier: Apache-2.0 */
#include "move/stages.h"

#include "base/log.h"
#include "base/macro.h"
#include "move/arrival.h"
#include "move/departure.h"
#include "move/fault.h"

#include <errno.h>

/* clang-format off */
const struct stage stages[STAGE_COUNT] = {
    [STAGE_PREPARE] = {
        "prepare", "the destination checks and reserves all that it needs",
        departure_prepare, departure_unprepare, arrival_prepare, arrival_unprepare},
    [STAGE_TRANSFER] = {
        "transfer", "disk, then memory, go over while the guest runs",
        departure_transfer, departure_untransfer, arrival_transfer, NULL},
    [STAGE_PAUSE] = {
        "pause", "the guest stands still; the last changes go over and are made durable",
        departure_pause, departure_unpause, arrival_pause, NULL},
    [STAGE_COMMIT] = {
        "commit", "the epoch changes hands, the guest runs at the destination",
        departure_commit, NULL, arrival_commit, NULL},
    [STAGE_FINISH] = {
        "finish", "the source becomes a replica",
        departure_finish, NULL, arrival_finish, NULL},
};
/* clang-format on */

/* One way to walk both columns: `side` says which. */
static int run(bool source, void *move, enum stage_number number, struct err *err)
{
    const struct stage *stage = &stages[number];
    const char *side = source ? "source" : "destination";
    log_info("%s, stage %s: %s", side, stage->name, stage->what);
    int r = fault_point(err, "%s.%s.begin", side, stage->name);
    if (r == 0)
        r = source ? stage->source(move, err) : stage->destination(move, err);
    if (r == 0)
        r = fault_point(err, "%s.%s.end", side, stage->name);
    return r;
}

static void rollback(bool source, void *move, enum stage_number failed)
{
    for (int number = (int)failed; number >= 0; number--) {
        const struct stage *stage = &stages[number];
        if (source && stage->source_rollback)
            stage->source_rollback(move);
        if (!source && stage->destination_rollback)
            stage->destination_rollback(move);
    }
}

static struct session *session_of(bool source, void *move)
{
    return source ? &((struct departure *)move)->session : &((struct arrival *)move)->session;
}

static int walk(bool source, void *move, enum stage_number first, enum stage_number last, struct err *err)
{
    for (enum stage_number number = first; number <= last; number++) {
        if (source)
            departure_enter(move, stages[number].name);
        else
            arrival_enter(move, stages[number].name);
        int r = run(source, move, number, err);
        if (r == 0)
            continue;
        bool undo = source ? departure_may_roll_back(move) : arrival_may_roll_back(move);
        if (undo && r != -ECANCELED)
            session_explain(session_of(source, move), err);
        err_where(err, NULL, stages[number].name);
        log_warning("%s, stage %s: %s%s", source ? "source" : "destination", stages[number].name, err->text,
                    undo ? "; rolling back" : "");
        if (source)
            departure_failed(move, err);
        else
            arrival_failed(move, err);
        if (undo)
            rollback(source, move, number);
        return -err->code;
    }
    return 0;
}

int stages_walk_source(struct departure *departure, enum stage_number first, enum stage_number last,
                       struct err *err)
{
    return walk(true, departure, first, last, err);
}

int stages_walk_destination(struct arrival *arrival, enum stage_number first, enum stage_number last,
                            struct err *err)
{
    return walk(false, arrival, first, last, err);
}
