/* SPDX-License-Identifier: Apache-2.0
 *
 * move: asks for a move, shows how it goes, says what came of it beside what was predicted. The move is the
 * hosts' own: this program may end at any time.
 */
#include "cli/cli.h"
#include "cli/operation.h"
#include "cli/progress.h"
#include "cli/text.h"
#include "cli/verbs.h"

#include "base/clock.h"
#include "base/json.h"
#include "base/macro.h"

#include <stdio.h>
#include <string.h>

static const struct view view_predicted_disks = {
    .columns =
        (const struct column[]){
            {"file", "FILE"}, {"bytes", "TO SEND", COLUMN_BYTES}, {"base", "BASE THERE"}, {0}},
};

static const struct view view_prediction = {
    .columns = (const struct column[]){{"vm", "VM"},
                                       {"from", "From"},
                                       {"to", "To"},
                                       {"predicted.seconds", "Time", COLUMN_SECONDS},
                                       {"predicted.blackout_ms", "Blackout", COLUMN_MSEC},
                                       {"predicted.disk_bytes", "Disk to send", COLUMN_BYTES},
                                       {"disk.full_bytes", "Full disk copy", COLUMN_BYTES},
                                       {"predicted.memory_bytes", "Memory to send", COLUMN_BYTES},
                                       {"predicted.link_bytes_per_second", "Link", COLUMN_RATE},
                                       {"predicted.rtt_ms", "Round trip", COLUMN_MSEC},
                                       {"predicted.dirty_bytes_per_second", "Dirty rate", COLUMN_RATE},
                                       {"predicted.converges", "Converges", COLUMN_BOOL},
                                       {0}},
    .sections = (const struct section[]){{"predicted.disks", "Disks", &view_predicted_disks}, {0}},
};

static const struct view view_result = {
    .columns = (const struct column[]){{"vm", "VM"},
                                       {"from", "From"},
                                       {"to", "To"},
                                       {"state", "State"},
                                       {"seconds", "Time", COLUMN_SECONDS},
                                       {"predicted_seconds", "Predicted", COLUMN_SECONDS},
                                       {"blackout_ms", "Blackout", COLUMN_MSEC},
                                       {"predicted_blackout_ms", "Predicted", COLUMN_MSEC},
                                       {"clock_forward_ms", "Clock set forward by", COLUMN_MSEC},
                                       {"disk_bytes", "Disk", COLUMN_BYTES},
                                       {"predicted_disk_bytes", "Predicted", COLUMN_BYTES},
                                       {"full_disk_bytes", "Full disk copy", COLUMN_BYTES},
                                       {"disk_found_bytes", "Disk found there", COLUMN_BYTES},
                                       {"disk_later_bytes", "Disk to follow", COLUMN_BYTES},
                                       {"memory_bytes", "Memory", COLUMN_BYTES},
                                       {"predicted_memory_bytes", "Predicted", COLUMN_BYTES},
                                       {"memory_found_bytes", "Memory found there", COLUMN_BYTES},
                                       {"memory_zero_bytes", "Memory of zeroes", COLUMN_BYTES},
                                       {"memory_saved_bytes", "Saved by compression", COLUMN_BYTES},
                                       {"memory_later_bytes", "Memory after the switch", COLUMN_BYTES},
                                       {"memory_faults", "Waits for memory", COLUMN_COUNT},
                                       {"memory_fault_ms", "Wait, median", COLUMN_MSEC},
                                       {"memory_verified_bytes", "Memory verified", COLUMN_BYTES},
                                       {"throttle_most", "Slowed down by, %"},
                                       {"running_seconds", "Running there after", COLUMN_SECONDS},
                                       {"error.text", "Error"},
                                       {0}},
};

static int make_request(const struct cli *cli, json_t *body, struct err *err)
{
    static const char *const members[][2] = {
        {"mode", "mode"},
        {"memory", "memory"},
        {"dry_run", "dry-run"},
        {"compare", "compare"},
        {"verify_memory", "verify-memory"},
        {"bandwidth", "bandwidth"},
        {"timeout_ms", "timeout"},
        {"on_timeout", "on-timeout"},
        {"max_blackout_ms", "max-blackout"},
        {"throttle", "throttle"},
        {"connections", "connections"},
    };
    int r = cli_set_operand(cli, body, "to", "HOST", err);
    for (size_t i = 0; r == 0 && i < ARRAY_SIZE(members); i++)
        r = cli_set(cli, body, members[i][0], members[i][1], err);
    return r;
}

static int check_usage(struct cli *cli, struct err *err)
{
    const struct args *args = &cli->args;
    if (args_text(args, "on-timeout") && !args_text(args, "timeout"))
        return cli_usage(cli, err, "--on-timeout says what happens after --timeout, which is missing");
    if (args_flag(args, "dry-run") && args_flag(args, "detach"))
        return cli_usage(cli, err, "--dry-run has a result to wait for; --detach would not show it");
    return 0;
}

static const struct view view_started = {
    .columns = (const struct column[]){{"id", "Operation"}, {"vm", "VM"}, {"state", "State"}, {0}},
};

static int print_detached(const struct cli *cli, const json_t *operation, struct err *err)
{
    const char *name = args_operand(&cli->args, "NAME");
    if (cli->args.format != FORMAT_TABLE)
        return cli_print_object(cli, &view_started, operation, err);
    cli_say(cli, "%s is on its way to %s; watch: orai status %s; stop: orai cancel %s", name,
            args_operand(&cli->args, "HOST"), name, name);
    return 0;
}

static void show_change(void *arg, const json_t *operation)
{
    progress_show(arg, json_object_get(operation, "progress"), clock_now());
}

/* The last status that is known of the move: the result, or what was last heard. */
static const json_t *last_status(const json_t *operation)
{
    const json_t *result = json_object_get(operation, "result");
    return json_is_object(result) ? result : json_object_get(operation, "progress");
}

static void print_notes(const json_t *move)
{
    size_t i;
    json_t *note;
    json_array_foreach(json_object_get(move, "notes"), i, note)
    {
        _cleanup_free_ char *text = json_is_string(note) ? text_visible(json_string_value(note)) : NULL;
        if (text)
            fprintf(stderr, "Note: %s\n", text);
    }
}

static int print_prediction(const struct cli *cli, const json_t *move, struct err *err)
{
    cli_say(cli, "Nothing was moved; every check passed on both hosts. A move now would be:");
    return cli_print_object(cli, &view_prediction, move, err);
}

static int print_result(const struct cli *cli, const json_t *move, bool moved, struct err *err)
{
    if (cli->args.format != FORMAT_TABLE) {
        _cleanup_json_ json_t *result = progress_result_json(move);
        return cli_print_object(cli, &view_result, result, err);
    }
    if (moved) {
        _cleanup_free_ char *text = progress_result(move);
        cli_say(cli, "%s", text);
    }
    return 0;
}

static int print_outcome(struct cli *cli, const json_t *operation, struct err *err)
{
    const json_t *move = last_status(operation);
    int failure = operation_failure(operation, err);
    bool dry_run = args_flag(&cli->args, "dry-run");
    print_notes(move);
    if (failure < 0)
        cli->exit = strcmp(json_str(move, "state", "stayed"), "stayed") == 0 ? CLI_STAYED : CLI_FAILED;
    struct err writing = ERR_NONE;
    int r = failure == 0 && dry_run ? print_prediction(cli, move, &writing)
                                    : print_result(cli, move, failure == 0, &writing);
    if (failure == 0 && r < 0)
        *err = writing;
    return failure < 0 ? failure : r;
}

/* Losing sight of the move is not its failure. */
static int lost_sight(struct cli *cli, int r, struct err *err)
{
    const char *name = args_operand(&cli->args, "NAME");
    err_context(err, "the move of %s goes on without being watched", name);
    err_hint(err, "orai status %s", name);
    return r;
}

static int run_move(struct cli *cli, struct err *err)
{
    const char *name = args_operand(&cli->args, "NAME");
    _cleanup_free_ char *path = cli_path("/v1/vms/%s/move", name);
    _cleanup_json_ json_t *body = json_object(), *started = NULL, *ended = NULL;
    int r = check_usage(cli, err);
    if (r == 0)
        r = make_request(cli, body, err);
    if (r == 0)
        r = cli_call(cli, "POST", path, body, &started, err);
    if (r < 0)
        return r;
    if (args_flag(&cli->args, "detach"))
        return print_detached(cli, started, err);
    operation_on_interrupt("\norai: the move of %s goes on; watch: orai status %s; stop: orai cancel %s\n",
                           name, name, name);
    struct progress progress;
    progress_init(&progress, cli->args.format == FORMAT_TABLE ? stdout : stderr);
    r = operation_wait(cli, started, show_change, &progress, &ended, err);
    if (r == 0)
        progress_show_obstacle(&progress, last_status(ended));
    progress_end(&progress);
    return r < 0 ? lost_sight(cli, r, err) : print_outcome(cli, ended, err);
}

const struct verb verb_move = {
    .name = "move",
    .summary = "Move a running VM to another host",
    .flags = VERB_FORMATS,
    .operands = {{.name = "NAME", .kind = ARG_VM, .help = "The VM"},
                 {.name = "HOST", .kind = ARG_PEER, .help = "Where to: a name in `orai peer list`"}},
    .options =
        {{.name = "mode",
          .kind = ARG_CHOICE,
          .value = "auto|precopy|postcopy|hybrid",
          .help = "Send the disks before the switch, after it, or what goes in 20 s before (default: auto)"},
         {.name = "memory",
          .kind = ARG_CHOICE,
          .value = "precopy|postcopy",
          .help = "Send memory before the switch, or after it (default: precopy)"},
         {.name = "compare",
          .kind = ARG_FLAG,
          .help = "Trust no copy of its disks there: compare, and send what differs"},
         {.name = "verify-memory",
          .kind = ARG_FLAG,
          .help = "Compare all of memory before the guest goes on there; it stays if anything differs"},
         {.name = "dry-run", .kind = ARG_FLAG, .help = "Only check and predict; nothing is moved"},
         {.name = "bandwidth",
          .kind = ARG_RATE,
          .value = "RATE",
          .help = "Send no faster: 500M is 500 Mbit/s, 60MB/s bytes (default: unlimited)"},
         {.name = "max-blackout",
          .kind = ARG_DURATION,
          .value = "TIME",
          .help = "How long the guest may stand still (default: 300ms)"},
         {.name = "timeout",
          .kind = ARG_DURATION,
          .value = "TIME",
          .help = "How long the move may take (default: no limit)"},
         {.name = "on-timeout",
          .kind = ARG_CHOICE,
          .value = "cancel|pause|postcopy",
          .help = "Then give up, pause the guest to finish, or let its memory follow it (default: cancel)"},
         {.name = "throttle",
          .kind = ARG_COUNT,
          .value = "PERCENT",
          .help = "Slow the guest's CPUs down by up to that, if it writes too fast (default: never)"},
         {.name = "connections", .kind = ARG_COUNT, .value = "N", .help = "Data connections, up to 8"},
         {.name = "detach", .kind = ARG_FLAG, .help = "Do not wait for its end"}},
    .run = run_move,
};
