/* SPDX-License-Identifier: Apache-2.0
 *
 * progress: how a move goes, in words, from its status (docs/protocol.md, "move status"). Numbers that are
 * missing or odd count as 0: a younger or older host must not make the watcher fail.
 */
#pragma once

#include "cli/format.h"

#include <jansson.h>
#include <stdint.h>

/* "disk  round 2  40.0 MiB of 41.0 MiB  97 %  940 Mbit/s  dirty 12 Mbit/s  1 s left  not converging": of
 * `phase`
 * ("disk", "memory", "switchover"; NULL = the current one). malloc'ed. */
char *progress_text(const json_t *move, const char *phase);
/* The whole move in one line: from, to, seconds, blackout, bytes, what a full copy would have been, the
 * prediction beside each. malloc'ed. */
char *progress_result(const json_t *move);
/* The same as one flat JSON object, for --format json|yaml|csv. */
json_t *progress_result_json(const json_t *move);

struct progress {
    FILE *out;
    struct style
        style;      /* width 0: no terminal, so lines with the time instead of one rewritten line per phase */
    char phase[16]; /* the last one that was shown */
    char obstacle[512]; /* likewise */
    bool open;          /* the terminal's cursor stands in a line that may be rewritten */
    int64_t shown_at;   /* clock_now() of the last line */
};

void progress_init(struct progress *progress, FILE *out);
/* Shows `move` (may be NULL: nothing known yet) as it is at `now`; without a terminal at most once per
 * second, and at each change of phase. */
void progress_show(struct progress *progress, const json_t *move, int64_t now);
/* Why there is no end in sight, in a line of its own, whenever that is something new. */
void progress_show_obstacle(struct progress *progress, const json_t *move);
/* Ends the rewritten line, so that other text can follow. */
void progress_end(struct progress *progress);
