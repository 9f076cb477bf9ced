/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/progress.h"

#include "base/clock.h"
#include "base/json.h"
#include "base/macro.h"
#include "base/size.h"
#include "cli/term.h"
#include "cli/text.h"

#include <inttypes.h>
#include <string.h>
#include <time.h>

struct amounts {
    uint64_t total, sent;
};

static struct amounts amounts_of(const json_t *part)
{
    return (struct amounts){.total = json_u64(part, "total_bytes", 0),
                            .sent = json_u64(part, "sent_bytes", 0)};
}

/* The switchover sends what is left of both. */
static struct amounts amounts_in(const json_t *move, const char *phase)
{
    struct amounts disk = amounts_of(json_object_get(move, "disk"));
    struct amounts memory = amounts_of(json_object_get(move, "memory"));
    if (strcmp(phase, "disk") == 0)
        return disk;
    if (strcmp(phase, "memory") == 0)
        return memory;
    return (struct amounts){.total = disk.total + memory.total, .sent = disk.sent + memory.sent};
}

static void put_round(FILE *out, const json_t *move, const char *phase)
{
    uint64_t round = strcmp(phase, "disk") == 0 ? json_u64(json_object_get(move, "disk"), "round", 0)
                     : strcmp(phase, "memory") == 0
                         ? json_u64(json_object_get(move, "memory"), "iteration", 0)
                         : 0;
    if (round > 1)
        fprintf(out, "  round %" PRIu64, round);
}

static void put_rates(FILE *out, const json_t *move)
{
    char text[SIZE_TEXT];
    fprintf(out, "  %s", rate_format(json_double(move, "rate", 0), text));
    double dirty = json_double(move, "dirty_rate", 0);
    if (dirty > 0)
        fprintf(out, "  dirty %s", rate_format(dirty, text));
}

static void put_throttle(FILE *out, const json_t *move)
{
    uint64_t percent = json_u64(move, "throttle", 0);
    if (percent)
        fprintf(out, "  guest slowed by %" PRIu64 " %%", percent);
}

static void put_time_left(FILE *out, const json_t *move)
{
    if (!json_bool(move, "converging", true)) {
        fputs("  not converging", out);
        return;
    }
    uint64_t eta = json_u64(move, "eta_ms", UINT64_MAX);
    if (eta == UINT64_MAX)
        return;
    uint64_t seconds = (eta + 999) / 1000;
    if (seconds < 120)
        fprintf(out, "  %" PRIu64 " s left", seconds);
    else
        fprintf(out, "  %" PRIu64 " min left", (seconds + 59) / 60);
}

static FILE *text_open(char **text, size_t *size)
{
    FILE *out = open_memstream(text, size);
    if (!out)
        abort();
    return out;
}

static char *text_close(FILE *out, char **text)
{
    if (fclose(out) != 0)
        abort();
    _cleanup_free_ char *raw = *text;
    return text_visible(raw);
}

char *progress_text(const json_t *move, const char *phase)
{
    char *text = NULL, done[SIZE_TEXT], total[SIZE_TEXT];
    size_t size;
    FILE *out = text_open(&text, &size);
    const char *current = json_str(move, "phase", "disk");
    phase = phase ? phase : current;
    struct amounts amounts = amounts_in(move, phase);
    fprintf(out, "%-10s", phase);
    put_round(out, move, phase);
    fprintf(out, "  %s of %s", size_format(amounts.sent, done), size_format(amounts.total, total));
    if (amounts.total > 0)
        fprintf(out, "  %.0f %%", 100.0 * (double)MIN(amounts.sent, amounts.total) / (double)amounts.total);
    bool over = strcmp(phase, current) != 0 || strcmp(json_str(move, "state", "running"), "running") != 0;
    if (!over) {
        put_rates(out, move);
        put_throttle(out, move);
        put_time_left(out, move);
    }
    return text_close(out, &text);
}

/* What was predicted, in the unit of what came; nothing when there was no prediction. */
static void put_predicted_bytes(FILE *out, const json_t *predicted, const char *key)
{
    char text[SIZE_TEXT];
    if (json_is_integer(json_object_get(predicted, key)))
        fprintf(out, " (predicted %s)", size_format(json_u64(predicted, key, 0), text));
}

char *progress_result(const json_t *move)
{
    const json_t *disk = json_object_get(move, "disk"), *memory = json_object_get(move, "memory");
    const json_t *predicted = json_object_get(move, "predicted");
    char *text = NULL, bytes[SIZE_TEXT];
    size_t size;
    FILE *out = text_open(&text, &size);
    fprintf(out, "%s moved from %s to %s in %.1f s", json_str(move, "vm", "?"), json_str(move, "from", "?"),
            json_str(move, "to", "?"), (double)json_u64(move, "elapsed_ms", 0) / 1000);
    if (json_is_number(json_object_get(predicted, "seconds")))
        fprintf(out, " (predicted %.1f s)", json_double(predicted, "seconds", 0));
    if (json_u64(memory, "later_bytes", 0))
        fprintf(out, ", running there after %.2f s", (double)json_u64(move, "running_ms", 0) / 1000);
    fprintf(out, ", blackout %" PRIu64 " ms", json_u64(move, "blackout_ms", 0));
    if (json_is_object(predicted))
        fprintf(out, " (predicted %" PRIu64 " ms)", json_u64(predicted, "blackout_ms", 0));
    fprintf(out, ", disk %s", size_format(json_u64(disk, "sent_bytes", 0), bytes));
    put_predicted_bytes(out, predicted, "disk_bytes");
    if (json_u64(disk, "later_bytes", 0))
        fprintf(out, " and up to %s to follow", size_format(json_u64(disk, "later_bytes", 0), bytes));
    fprintf(out, ", memory %s", size_format(json_u64(memory, "sent_bytes", 0), bytes));
    put_predicted_bytes(out, predicted, "memory_bytes");
    if (json_u64(memory, "found_bytes", 0))
        fprintf(out, " and %s found there", size_format(json_u64(memory, "found_bytes", 0), bytes));
    fprintf(out, "; a full copy of the disk: %s", size_format(json_u64(disk, "full_bytes", 0), bytes));
    return text_close(out, &text);
}

/* json_pack would take a missing member for an error; here it is null. */
static void set_copy(json_t *object, const char *key, const json_t *from, const char *member)
{
    json_t *value = json_object_get(from, member);
    json_object_set_new(object, key, value ? json_incref(value) : json_null());
}

json_t *progress_result_json(const json_t *move)
{
    const json_t *disk = json_object_get(move, "disk"), *memory = json_object_get(move, "memory");
    const json_t *predicted = json_object_get(move, "predicted");
    json_t *result = json_object();
    static const char *const plain[] = {"move", "vm", "from", "to", "state", "dry_run"};
    for (size_t i = 0; i < ARRAY_SIZE(plain); i++)
        set_copy(result, plain[i], move, plain[i]);
    json_object_set_new(result, "seconds", json_real((double)json_u64(move, "elapsed_ms", 0) / 1000));
    set_copy(result, "blackout_ms", move, "blackout_ms");
    set_copy(result, "clock_forward_ms", move, "clock_forward_ms");
    set_copy(result, "disk_bytes", disk, "sent_bytes");
    set_copy(result, "memory_bytes", memory, "sent_bytes");
    set_copy(result, "full_disk_bytes", disk, "full_bytes");
    set_copy(result, "disk_later_bytes", disk, "later_bytes");
    set_copy(result, "memory_later_bytes", memory, "later_bytes");
    set_copy(result, "memory_found_bytes", memory, "found_bytes");
    set_copy(result, "memory_zero_bytes", memory, "zero_bytes");
    set_copy(result, "memory_saved_bytes", memory, "saved_bytes");
    set_copy(result, "memory_faults", memory, "faults");
    set_copy(result, "memory_fault_ms", memory, "fault_ms");
    set_copy(result, "memory_fault_p99_ms", memory, "fault_p99_ms");
    set_copy(result, "memory_verified_bytes", memory, "verified_bytes");
    json_object_set_new(result, "running_seconds",
                        json_is_integer(json_object_get(move, "running_ms"))
                            ? json_real((double)json_u64(move, "running_ms", 0) / 1000)
                            : json_null());
    set_copy(result, "disk_found_bytes", disk, "found_bytes");
    set_copy(result, "disk_base", disk, "base");
    set_copy(result, "disk_rounds", disk, "round");
    set_copy(result, "predicted_seconds", predicted, "seconds");
    set_copy(result, "predicted_blackout_ms", predicted, "blackout_ms");
    set_copy(result, "predicted_disk_bytes", predicted, "disk_bytes");
    set_copy(result, "predicted_memory_bytes", predicted, "memory_bytes");
    set_copy(result, "predicted", move, "predicted");
    set_copy(result, "throttle_most", move, "throttle_most");
    set_copy(result, "obstacle", move, "obstacle");
    set_copy(result, "notes", move, "notes");
    set_copy(result, "error", move, "error");
    return result;
}

void progress_init(struct progress *progress, FILE *out)
{
    *progress = (struct progress){.out = out, .style = term_style(out, FORMAT_TABLE)};
}

static void rewrite_line(struct progress *progress, const json_t *move, const char *phase)
{
    _cleanup_free_ char *text = progress_text(move, phase);
    /* The last column stays free: a cursor beyond it would have moved to the next line. */
    text_cut(text, progress->style.width - 1);
    bool is_current = strcmp(json_str(move, "phase", ""), phase) == 0;
    bool warn = progress->style.colour && is_current && !json_bool(move, "converging", true);
    fprintf(progress->out, "\r%s%s%s\033[K", warn ? "\033[33m" : "", text, warn ? "\033[0m" : "");
    progress->open = true;
}

static void put_line(struct progress *progress, const json_t *move)
{
    _cleanup_free_ char *text = progress_text(move, NULL);
    time_t now = time(NULL);
    struct tm tm;
    char date[40] = "";
    if (localtime_r(&now, &tm))
        strftime(date, sizeof date, "%Y-%m-%dT%H:%M:%S%z ", &tm);
    fprintf(progress->out, "%s%s\n", date, text);
}

void progress_show_obstacle(struct progress *progress, const json_t *move)
{
    const char *obstacle = json_str(move, "obstacle", "");
    if (strncmp(progress->obstacle, obstacle, sizeof progress->obstacle - 1) == 0)
        return;
    snprintf(progress->obstacle, sizeof progress->obstacle, "%s", obstacle);
    _cleanup_free_ char *text = text_visible(progress->obstacle);
    if (!text[0])
        return;
    progress_end(progress);
    fprintf(progress->out, "%s\n", text);
}

void progress_show(struct progress *progress, const json_t *move, int64_t now)
{
    const char *phase = json_str(move, "phase", NULL);
    if (!phase)
        return;
    bool new_phase = strcmp(progress->phase, phase) != 0;
    progress_show_obstacle(progress, move);
    if (progress->style.width) {
        if (new_phase && progress->phase[0]) {
            rewrite_line(progress, move, progress->phase); /* what it came to in the end */
            progress_end(progress);
        }
        rewrite_line(progress, move, phase);
    } else if (new_phase || now - progress->shown_at >= NSEC_PER_SEC) {
        put_line(progress, move);
        progress->shown_at = now;
    }
    snprintf(progress->phase, sizeof progress->phase, "%s", phase);
    fflush(progress->out);
}

void progress_end(struct progress *progress)
{
    if (progress->open)
        fputc('\n', progress->out);
    progress->open = false;
}
