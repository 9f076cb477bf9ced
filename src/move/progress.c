/* SPDX-License-Identifier: Apache-2.0 */
#include "move/progress.h"

#include "base/clock.h"
#include "base/macro.h"

#include <stdarg.h>
#include <stdio.h>

#define RATE_WINDOW_NS NSEC_PER_SEC
#define MAX_ETA_MSEC INT64_C(31536000000) /* a year says no more than "never" */

struct progress {
    pthread_mutex_t lock;
    char move[ID_TEXT_SIZE], vm[64], from[64], to[64];
    bool dry_run;
    int64_t started, ended; /* clock_now(); ended 0 = not yet */
    enum move_outcome outcome;
    struct err error;
    struct progress_numbers now;
    struct prediction prediction;
    json_t *notes;
    char obstacle[512];

    /* The rate: bytes at the window's beginning. */
    int64_t window_began;
    uint64_t window_bytes;
    double rate;
};

static const char *const outcome_names[] = {
    [MOVE_RUNNING] = "running",     [MOVE_STAYED] = "stayed",         [MOVE_MOVED] = "moved",
    [MOVE_PREDICTED] = "predicted", [MOVE_GUEST_LOST] = "guest-lost",
};
static_assert(ARRAY_SIZE(outcome_names) == MOVE_GUEST_LOST + 1, "a name for each outcome");

const char *move_outcome_name(enum move_outcome outcome)
{
    return outcome_names[outcome];
}

struct progress *progress_new(const struct id *move, const char *vm, const char *from, const char *to,
                              bool dry_run)
{
    struct progress *progress = calloc(1, sizeof *progress);
    if (!progress)
        return NULL;
    pthread_mutex_init(&progress->lock, NULL);
    id_format(move, progress->move);
    snprintf(progress->vm, sizeof progress->vm, "%s", vm);
    snprintf(progress->from, sizeof progress->from, "%s", from);
    snprintf(progress->to, sizeof progress->to, "%s", to);
    progress->dry_run = dry_run;
    progress->started = progress->window_began = clock_now();
    progress->now = (struct progress_numbers){.stage = "prepare",
                                              .phase = "disk",
                                              .disk_base = "none",
                                              .converging = true,
                                              .blackout_ms = -1,
                                              .running_ms = -1};
    progress->notes = json_array();
    return progress;
}

void progress_free(struct progress *progress)
{
    if (!progress)
        return;
    json_decref(progress->notes);
    pthread_mutex_destroy(&progress->lock);
    free(progress);
}

void progress_set(struct progress *progress, const struct progress_numbers *numbers)
{
    pthread_mutex_lock(&progress->lock);
    int64_t now = clock_now(), elapsed = now - progress->window_began;
    uint64_t bytes = numbers->disk_sent + numbers->memory_sent;
    if (elapsed >= RATE_WINDOW_NS || (progress->rate == 0 && elapsed >= RATE_WINDOW_NS / 5)) {
        progress->rate =
            (double)(bytes - MIN(bytes, progress->window_bytes)) * NSEC_PER_SEC / (double)elapsed;
        progress->window_began = now;
        progress->window_bytes = bytes;
    }
    progress->now = *numbers;
    pthread_mutex_unlock(&progress->lock);
}

void progress_predict(struct progress *progress, const struct prediction *prediction)
{
    pthread_mutex_lock(&progress->lock);
    progress->prediction = *prediction;
    pthread_mutex_unlock(&progress->lock);
}

void progress_note(struct progress *progress, const char *format, ...)
{
    char text[256];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    pthread_mutex_lock(&progress->lock);
    if (json_array_size(progress->notes) < PROGRESS_NOTES)
        json_array_append_new(progress->notes, json_string(text));
    pthread_mutex_unlock(&progress->lock);
}

void progress_obstacle(struct progress *progress, const char *text)
{
    pthread_mutex_lock(&progress->lock);
    snprintf(progress->obstacle, sizeof progress->obstacle, "%s", text ? text : "");
    pthread_mutex_unlock(&progress->lock);
}

void progress_end(struct progress *progress, enum move_outcome outcome, const struct err *err)
{
    pthread_mutex_lock(&progress->lock);
    progress->outcome = outcome;
    progress->ended = clock_now();
    if (err)
        progress->error = *err;
    pthread_mutex_unlock(&progress->lock);
}

static json_t *prediction_json(const struct prediction *p)
{
    if (!p->known)
        return json_null();
    json_t *disks = json_array();
    for (size_t i = 0; i < p->disk_count; i++)
        json_array_append_new(disks, json_pack("{s:s, s:I, s:s}", "file", p->disks[i].file, "bytes",
                                               (json_int_t)p->disks[i].bytes, "base", p->disks[i].base));
    json_t *dirty = p->dirty_rate_known ? json_integer((json_int_t)p->dirty_rate) : json_null();
    json_t *seconds = p->endless ? json_null() : json_real(p->seconds);
    json_t *memory = p->endless ? json_null() : json_integer((json_int_t)p->memory_bytes);
    return json_pack("{s:o, s:I, s:I, s:o, s:I, s:o, s:b, s:f, s:o}", "seconds", seconds, "blackout_ms",
                     (json_int_t)p->blackout_ms, "disk_bytes", (json_int_t)p->disk_bytes, "memory_bytes",
                     memory, "link_bytes_per_second", (json_int_t)p->link_rate, "dirty_bytes_per_second",
                     dirty, "converges", (int)p->converges, "rtt_ms", p->rtt_ms, "disks", disks);
}

/* Milliseconds to the end of the phase at today's rate, or null. */
static json_t *eta_json(const struct progress *progress)
{
    const struct progress_numbers *n = &progress->now;
    uint64_t left = n->disk_remaining + n->memory_remaining;
    double gain = progress->rate - (double)n->dirty_rate;
    if (progress->outcome != MOVE_RUNNING || gain <= 0)
        return json_null();
    double msec = (double)left / gain * 1000;
    return msec < (double)MAX_ETA_MSEC ? json_integer((json_int_t)msec) : json_null();
}

json_t *progress_json(struct progress *progress, const char *role)
{
    pthread_mutex_lock(&progress->lock);
    const struct progress_numbers *n = &progress->now;
    int64_t end = progress->ended ? progress->ended : clock_now();
    uint64_t disk_total = n->disk_sent + n->disk_remaining;
    json_t *json =
        json_pack("{s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:b}", "move", progress->move, "vm", progress->vm,
                  "from", progress->from, "to", progress->to, "role", role, "stage", n->stage, "phase",
                  n->phase, "state", move_outcome_name(progress->outcome), "dry_run", progress->dry_run);
    json_object_set_new(
        json, "disk",
        json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:s}", "total_bytes", (json_int_t)disk_total,
                  "sent_bytes", (json_int_t)n->disk_sent, "remaining_bytes", (json_int_t)n->disk_remaining,
                  "round", (json_int_t)n->disk_rounds, "full_bytes", (json_int_t)n->disk_full, "later_bytes",
                  (json_int_t)n->disk_later, "found_bytes", (json_int_t)n->disk_found, "base", n->disk_base));
    json_object_set_new(
        json, "memory",
        json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:f, s:f}", "total_bytes",
                  (json_int_t)n->memory_total, "sent_bytes", (json_int_t)n->memory_sent, "remaining_bytes",
                  (json_int_t)n->memory_remaining, "iteration", (json_int_t)n->memory_iterations,
                  "later_bytes", (json_int_t)n->memory_later, "found_bytes", (json_int_t)n->memory_found,
                  "zero_bytes", (json_int_t)n->memory_zero, "saved_bytes", (json_int_t)n->memory_saved,
                  "verified_bytes", (json_int_t)n->memory_verified, "faults", (json_int_t)n->faults.count,
                  "fault_ms", (double)n->faults.median_usec / 1000, "fault_p99_ms",
                  (double)n->faults.p99_usec / 1000));
    json_object_set_new(json, "rate", json_integer((json_int_t)progress->rate));
    json_object_set_new(json, "dirty_rate", json_integer((json_int_t)n->dirty_rate));
    json_object_set_new(json, "eta_ms", eta_json(progress));
    json_object_set_new(json, "converging", json_boolean(n->converging));
    json_object_set_new(json, "obstacle",
                        progress->obstacle[0] ? json_string(progress->obstacle) : json_null());
    json_object_set_new(json, "throttle",
                        json_integer(progress->ended ? 0 : n->throttle)); /* QEMU has let go of them */
    json_object_set_new(json, "throttle_most", json_integer(n->throttle_most));
    json_object_set_new(json, "elapsed_ms", json_integer((end - progress->started) / NSEC_PER_MSEC));
    json_object_set_new(json, "blackout_ms", n->blackout_ms < 0 ? json_null() : json_integer(n->blackout_ms));
    json_object_set_new(json, "clock_forward_ms",
                        n->clock_forward_ms < 0 ? json_null() : json_integer(n->clock_forward_ms));
    json_object_set_new(json, "running_ms", n->running_ms < 0 ? json_null() : json_integer(n->running_ms));
    json_object_set_new(json, "predicted", prediction_json(&progress->prediction));
    json_object_set_new(json, "notes", json_deep_copy(progress->notes));
    json_object_set_new(json, "error", progress->error.code ? err_to_json(&progress->error) : json_null());
    pthread_mutex_unlock(&progress->lock);
    return json;
}
