/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/cli.h"
#include "cli/term.h"
#include "cli/verbs.h"

#include "base/json.h"
#include "base/macro.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

static const struct view view_events = {
    .columns = (const struct column[]){{"id", "ID", COLUMN_COUNT, 6},
                                       {"time", "TIME", COLUMN_TIME, 19},
                                       {"type", "EVENT", COLUMN_TEXT, 18},
                                       {"vm", "VM", COLUMN_TEXT, 12},
                                       {"data", "WHAT"},
                                       {0}},
    .empty = "No events",
};

static char *events_path(const struct args *args)
{
    const char *vm = args_text(args, "vm");
    _cleanup_free_ char *of_vm = vm ? cli_path("&vm=%s", vm) : strdup("");
    char *path = NULL;
    if (!of_vm ||
        asprintf(&path, "/v1/events?follow=%s%s", args_flag(args, "follow") ? "true" : "false", of_vm) < 0)
        abort();
    static const char *const numbers[] = {"since", "limit"};
    for (size_t i = 0; i < ARRAY_SIZE(numbers); i++) {
        _cleanup_free_ char *old = path;
        if (!args_text(args, numbers[i])) {
            TAKE_PTR(old);
            continue;
        }
        if (asprintf(&path, "%s&%s=%" PRIu64, old, numbers[i], args_number(args, numbers[i], 0)) < 0)
            abort();
    }
    return path;
}

static int on_event(void *arg, const json_t *event, struct err *err)
{
    const struct style *style = arg;
    int r = format_stream(stdout, style, &view_events, event);
    if (r < 0)
        return err_sys(err, r, "cannot write the events");
    if (strcmp(json_str(event, "type", ""), "events.cut") != 0)
        return 0;
    err_set(err, EPIPE, "events were lost: this reader was too slow");
    return err_hint(err, "orai events --follow --since the last id above");
}

static int follow(struct cli *cli, const char *path, struct err *err)
{
    struct style style = term_style(stdout, cli->args.format);
    int r = format_stream(stdout, &style, &view_events, NULL);
    if (r < 0)
        return err_sys(err, r, "cannot write the events");
    r = cli_stream(cli, path, on_event, &style, err);
    return r < 0 ? r : err_set(err, EPIPE, "oraid has ended the stream of events");
}

static int run_events(struct cli *cli, struct err *err)
{
    _cleanup_free_ char *path = events_path(&cli->args);
    if (args_flag(&cli->args, "follow"))
        return follow(cli, path, err);
    _cleanup_json_ json_t *answer = NULL;
    int r = cli_call(cli, "GET", path, NULL, &answer, err);
    return r < 0 ? r : cli_print_list(cli, &view_events, json_object_get(answer, "events"), err);
}

const struct verb verb_events = {
    .name = "events",
    .summary = "Show what has happened on this host",
    .flags = VERB_FORMATS,
    .options = {{.name = "follow",
                 .kind = ARG_FLAG,
                 .letter = 'f',
                 .help = "Show what happens from now on, until Ctrl-C"},
                {.name = "vm", .kind = ARG_VM, .value = "NAME", .help = "Only events of this VM"},
                {.name = "since",
                 .kind = ARG_COUNT,
                 .value = "ID",
                 .help = "Only events after the one with this number"},
                {.name = "limit",
                 .kind = ARG_COUNT,
                 .value = "N",
                 .help = "At most so many, the newest (default: 100)"}},
    .run = run_events,
};
