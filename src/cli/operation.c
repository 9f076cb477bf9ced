/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/operation.h"

#include "base/clock.h"
#include "base/json.h"
#include "base/macro.h"
#include "base/size.h"
#include "cli/term.h"

#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdarg.h>
#include <string.h>

#define WAIT_MS 10000 /* one request waits this long for a change */
#define RETRY (NSEC_PER_SEC / 2)
#define PATIENCE (60 * NSEC_PER_SEC) /* for an oraid that is restarting */

static char interrupt_text[512];

/* Everything that is called here is async-signal-safe. */
static void on_signal(int number)
{
    (void)number;
    ssize_t ignored = write(STDERR_FILENO, interrupt_text, strlen(interrupt_text));
    (void)ignored;
    _exit(CLI_INTERRUPTED);
}

void operation_on_interrupt(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(interrupt_text, sizeof interrupt_text, format, args);
    va_end(args);
    const int signals[] = {SIGINT, SIGTERM, SIGHUP};
    struct sigaction action = {.sa_handler = on_signal};
    for (size_t i = 0; i < ARRAY_SIZE(signals); i++) {
        struct sigaction old;
        /* nohup's SIGHUP stays ignored */
        if (sigaction(signals[i], NULL, &old) == 0 && old.sa_handler != SIG_IGN)
            sigaction(signals[i], &action, NULL);
    }
}

static bool has_ended(const json_t *operation)
{
    return strcmp(json_str(operation, "state", ""), "running") != 0;
}

/* One look at the operation. While oraid is away it is asked again until `*patience_end`. */
static int look(struct cli *cli, const char *id, uint64_t version, int64_t *patience_end, json_t **ret,
                struct err *err)
{
    _cleanup_free_ char *place = cli_path("/v1/operations/%s", id), *path = NULL;
    if (asprintf(&path, "%s?wait_ms=%d&since_version=%" PRIu64, place, WAIT_MS, version) < 0)
        abort();
    for (;;) {
        int r = cli_call(cli, "GET", path, NULL, ret, err);
        if (r == 0)
            *patience_end = 0;
        if (r == 0 || cli->exit != CLI_UNREACHABLE)
            return r;
        if (*patience_end == 0)
            *patience_end = clock_now() + PATIENCE;
        else if (clock_now() > *patience_end)
            return r;
        clock_sleep(RETRY);
    }
}

int operation_wait(struct cli *cli, const json_t *operation, operation_change_fn *on_change, void *arg,
                   json_t **ret, struct err *err)
{
    _cleanup_json_ json_t *now = json_incref((json_t *)operation);
    _cleanup_free_ char *id = strdup(json_str(operation, "id", ""));
    int64_t patience_end = 0;
    if (!id)
        abort();
    for (;;) {
        if (on_change)
            on_change(arg, now);
        if (has_ended(now))
            break;
        json_t *next = NULL;
        int r = look(cli, id, json_u64(now, "version", 0), &patience_end, &next, err);
        if (r < 0)
            return r;
        json_decref(now);
        now = next;
    }
    cli->exit = CLI_OK;
    *ret = TAKE_PTR(now);
    return 0;
}

int operation_failure(const json_t *operation, struct err *err)
{
    if (strcmp(json_str(operation, "state", ""), "done") == 0)
        return 0;
    const json_t *error = json_object_get(operation, "error");
    struct err told = ERR_NONE;
    if (json_is_object(error) && err_from_json(error, &told) < 0 && told.code) {
        if (err)
            *err = told;
        return -told.code;
    }
    bool cancelled = strcmp(json_str(operation, "state", ""), "cancelled") == 0;
    return err_set(err, cancelled ? ECANCELED : EIO,
                   cancelled ? "cancelled" : "it failed, and oraid does not say why");
}

/* "copy  1.0 GiB of 2.0 GiB", rewritten; only for someone who watches. */
static void show_work(void *arg, const json_t *operation)
{
    const json_t *progress = json_object_get(operation, "progress");
    char done[SIZE_TEXT], total[SIZE_TEXT];
    bool *shown = arg;
    if (!json_is_object(progress) || has_ended(operation) || !isatty(STDERR_FILENO))
        return;
    size_format(json_u64(progress, "done_bytes", 0), done);
    size_format(json_u64(progress, "total_bytes", 0), total);
    fprintf(stderr, "\r%s  %s of %s\033[K", json_str(progress, "phase", "working"), done, total);
    *shown = true;
}

int operation_run(struct cli *cli, const char *path, const json_t *body, json_t **ret_result, struct err *err)
{
    _cleanup_json_ json_t *started = NULL, *ended = NULL;
    int r = cli_call(cli, "POST", path, body, &started, err);
    if (r < 0)
        return r;
    bool shown = false;
    r = operation_wait(cli, started, show_work, &shown, &ended, err);
    if (shown)
        fputs("\r\033[K", stderr);
    if (r == 0)
        r = operation_failure(ended, err);
    if (r == 0)
        *ret_result = json_incref(json_object_get(ended, "result"));
    return r;
}
