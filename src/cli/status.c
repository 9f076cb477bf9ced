/* SPDX-License-Identifier: Apache-2.0
 *
 * status: how moves go; cancel: back out of one. Both work on either of the two hosts.
 */
#include "cli/cli.h"
#include "cli/operation.h"
#include "cli/progress.h"
#include "cli/verbs.h"
#include "cli/vmview.h"

#include "base/clock.h"
#include "base/json.h"
#include "base/macro.h"

#include <stdio.h>
#include <string.h>

#define LOOK_AGAIN (NSEC_PER_SEC / 2)

static const struct view view_all = {
    .columns = (const struct column[]){{"name", "NAME"},
                                       {"state", "STATE"},
                                       {"move.from", "FROM"},
                                       {"move.to", "TO"},
                                       {"move.state", "MOVE"},
                                       {"move.phase", "PHASE"},
                                       {"move.disk.remaining_bytes", "DISK LEFT", COLUMN_BYTES},
                                       {"move.memory.remaining_bytes", "MEMORY LEFT", COLUMN_BYTES},
                                       {"move.rate", "RATE", COLUMN_RATE},
                                       {"move.eta_ms", "TIME LEFT", COLUMN_MSEC},
                                       {"move.converging", "CONVERGING", COLUMN_BOOL},
                                       {0}},
    .empty = "No VMs on this host",
};

static const struct view view_borrows = {
    .columns = (const struct column[]){{"from", "From"},
                                       {"state", "State"},
                                       {"missing_bytes", "Missing", COLUMN_BYTES},
                                       {"total_bytes", "Of", COLUMN_BYTES},
                                       {"fetched_bytes", "Fetched", COLUMN_BYTES},
                                       {"rate", "Rate", COLUMN_RATE},
                                       {"demands", "Waited for", COLUMN_COUNT},
                                       {"demand_ms", "Wait", COLUMN_MSEC},
                                       {"error.text", "Held up by"},
                                       {0}},
};

static const struct view view_from = {
    .columns = (const struct column[]){{"from", "FROM"},
                                       {"connected", "CONNECTED", COLUMN_BOOL},
                                       {"fetched_bytes", "FETCHED", COLUMN_BYTES},
                                       {"rate", "RATE", COLUMN_RATE},
                                       {"error.text", "HELD UP BY"},
                                       {0}},
    .empty = "No other host shares a copy",
};

static const struct view view_lends = {
    .columns = (const struct column[]){{"to", "To"},
                                       {"connections", "Connections", COLUMN_COUNT},
                                       {"fetches", "Requests", COLUMN_COUNT},
                                       {"bytes", "Sent", COLUMN_BYTES},
                                       {0}},
};

static const struct view view_status = {
    .columns = (const struct column[]){{"vm.name", "Name"},
                                       {"vm.state", "State"},
                                       {"vm.reason", "Reason"},
                                       {"vm.role", "This copy"},
                                       {"vm.peer", "Other host"},
                                       {"vm.epoch", "Epoch", COLUMN_COUNT},
                                       {"operation.id", "Operation"},
                                       {"operation.state", "Operation is"},
                                       {0}},
    .sections = (const struct section[]){{"vm.borrows", "Blocks that are fetched", &view_borrows},
                                         {"vm.borrows.shares", "Other hosts with blocks", &view_from},
                                         {"vm.lends", "Blocks that are lent", &view_lends},
                                         {"vm.shares", "Blocks that are shared", &view_lends},
                                         {"vm.move", "Newest move", &view_move},
                                         {0}},
};

static const json_t *move_of(const json_t *status)
{
    return format_member(status, "vm.move");
}

static bool is_moving(const json_t *status)
{
    return strcmp(json_str(move_of(status), "state", ""), "running") == 0;
}

static int print_status(const struct cli *cli, const json_t *status, struct err *err)
{
    int r = cli_print_object(cli, &view_status, status, err);
    if (r == 0 && is_moving(status)) {
        _cleanup_free_ char *text = progress_text(move_of(status), NULL);
        cli_say(cli, "\n%s", text);
    }
    return r;
}

/* By asking again and again, so that it works on the destination too, which has no operation to wait for. */
static int follow(struct cli *cli, const char *path, json_t **status, struct err *err)
{
    struct progress progress;
    progress_init(&progress, cli->args.format == FORMAT_TABLE ? stdout : stderr);
    operation_on_interrupt("\n");
    int r = 0;
    while (r == 0 && is_moving(*status)) {
        progress_show(&progress, move_of(*status), clock_now());
        clock_sleep(LOOK_AGAIN);
        json_t *next = NULL;
        r = cli_call(cli, "GET", path, NULL, &next, err);
        if (r == 0) {
            json_decref(*status);
            *status = next;
        }
    }
    progress_end(&progress);
    return r;
}

static int run_all(struct cli *cli, struct err *err)
{
    _cleanup_json_ json_t *answer = NULL;
    if (args_flag(&cli->args, "follow"))
        return cli_usage(cli, err, "--follow needs the NAME of a VM");
    int r = cli_call(cli, "GET", "/v1/vms", NULL, &answer, err);
    return r < 0 ? r : cli_print_list(cli, &view_all, json_object_get(answer, "vms"), err);
}

static int run_status(struct cli *cli, struct err *err)
{
    const char *name = args_operand(&cli->args, "NAME");
    if (!name)
        return run_all(cli, err);
    _cleanup_free_ char *path = cli_path("/v1/vms/%s/status", name);
    _cleanup_json_ json_t *status = NULL;
    int r = cli_call(cli, "GET", path, NULL, &status, err);
    if (r == 0 && args_flag(&cli->args, "follow"))
        r = follow(cli, path, &status, err);
    return r < 0 ? r : print_status(cli, status, err);
}

const struct verb verb_status = {
    .name = "status",
    .summary = "Show where VMs are and how their moves go",
    .flags = VERB_FORMATS,
    .operands = {{.name = "NAME", .kind = ARG_VM, .help = "Only this VM, in full", .optional = true}},
    .options = {{.name = "follow",
                 .kind = ARG_FLAG,
                 .letter = 'f',
                 .help = "Show its move until it has ended; Ctrl-C does not stop the move"}},
    .run = run_status,
};

static int run_cancel(struct cli *cli, struct err *err)
{
    const char *name = args_operand(&cli->args, "NAME");
    _cleanup_free_ char *path = cli_path("/v1/vms/%s/cancel", name);
    _cleanup_json_ json_t *status = NULL;
    int r = cli_call(cli, "POST", path, NULL, &status, err);
    if (r < 0)
        return r;
    if (cli->args.format != FORMAT_TABLE)
        return cli_print_object(cli, &view_status, status, err);
    if (strcmp(json_str(json_object_get(status, "operation"), "kind", ""), "verify") == 0)
        cli_say(cli, "The comparison of %s is being stopped", name);
    else if (is_moving(status))
        cli_say(cli, "The move of %s is being taken back; see: orai status %s", name, name);
    else
        cli_say(cli, "The move of %s was cancelled; the guest goes on where it was", name);
    return 0;
}

const struct verb verb_cancel = {
    .name = "cancel",
    .summary = "Cancel a VM's move, on either host, or its comparison; the guest goes on where it was",
    .flags = VERB_FORMATS,
    .operands = {{.name = "NAME", .kind = ARG_VM, .help = "The VM"}},
    .run = run_cancel,
};
