/* SPDX-License-Identifier: Apache-2.0
 *
 * progress: what a move shows to people, as one JSON object ("move status", docs/protocol.md). The walker and
 * the link threads count; whoever asks gets a snapshot. Rates are taken over the last second.
 */
#pragma once

#include "base/err.h"
#include "base/id.h"
#include "move/move.h"

#include <jansson.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#define PROGRESS_NOTES 8

struct prediction {
    bool known;
    double seconds, rtt_ms;
    uint64_t blackout_ms, disk_bytes, memory_bytes;
    uint64_t link_rate, dirty_rate; /* bytes per second; dirty_rate of memory */
    bool dirty_rate_known;
    bool converges; /* memory that goes before the switch: each pass is shorter than the one before */
    bool endless;   /* and nothing is to happen if not: neither seconds nor memory_bytes mean anything */
    size_t disk_count;
    struct {
        char file[64];
        uint64_t bytes;
        const char *base; /* "none", "image", "replica", "partial", "fork" */
    } disks[VM_MAX_DISKS];
};

/* Pages that the guest waited for after the switch, and how long. */
struct progress_faults {
    uint64_t count, median_usec, p99_usec;
};

/* What the owner fills; all sizes in bytes. */
struct progress_numbers {
    const char *stage, *phase; /* literals */
    const char *disk_base;
    uint64_t disk_sent, disk_remaining, disk_full, disk_rounds;
    uint64_t disk_found; /* bytes that were not sent because the destination had them in a donor */
    uint64_t disk_later; /* bytes that are fetched after the switch, at most */
    uint64_t memory_total, memory_sent, memory_remaining, memory_iterations;
    uint64_t memory_later;    /* of memory_sent: after the switch */
    uint64_t memory_found;    /* bytes that were not sent because the destination had them in a checkpoint */
    uint64_t memory_zero;     /* bytes that were not sent because they are zero */
    uint64_t memory_saved;    /* by compression */
    uint64_t memory_verified; /* bytes that are known to be the same on both sides */
    struct progress_faults faults;
    uint64_t dirty_rate; /* of disk or memory, whichever the phase sends */
    bool converging;
    unsigned throttle, throttle_most; /* percent of their time that the guest's CPUs are held: now, at most */
    int64_t blackout_ms;              /* -1 = not known yet */
    int64_t clock_forward_ms;         /* what the guest's clock was set forward by there; -1 = it was not */
    int64_t running_ms; /* from the move's beginning until the guest ran there; -1 = it does not yet */
};

struct progress;

struct progress *progress_new(const struct id *move, const char *vm, const char *from, const char *to,
                              bool dry_run);
void progress_free(struct progress *progress);
/* Replaces the numbers; recomputes the rate. */
void progress_set(struct progress *progress, const struct progress_numbers *numbers);
void progress_predict(struct progress *progress, const struct prediction *prediction);
void progress_note(struct progress *progress, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Why the move does not converge, or is not expected to, and what helps; NULL: nothing stands in its way. */
void progress_obstacle(struct progress *progress, const char *text);
/* The end: state "moved", "stayed", "predicted" or "guest-lost", and why if it failed. */
void progress_end(struct progress *progress, enum move_outcome outcome, const struct err *err);
json_t *progress_json(struct progress *progress, const char *role);
const char *move_outcome_name(enum move_outcome outcome);
