/* SPDX-License-Identifier: Apache-2.0
 *
 * power: start, stop, kill, rm.
 */
#include "cli/cli.h"
#include "cli/client.h"
#include "cli/verbs.h"
#include "cli/vmview.h"

#include "base/json.h"
#include "base/macro.h"

#define STOP_MS 60000U      /* what oraid waits when it is not told */
#define ANSWER_MARGIN 30000 /* for its own work beside the guest's */

/* Asks for a change of state, says what the VM is then. */
static int change(struct cli *cli, const char *path_format, const json_t *body, struct err *err)
{
    const char *name = args_operand(&cli->args, "NAME");
    _cleanup_free_ char *path = cli_path(path_format, name);
    _cleanup_json_ json_t *vm = NULL;
    int r = cli_call(cli, "POST", path, body, &vm, err);
    if (r == 0)
        cli_say(cli, "%s is %s", name, json_str(vm, "state", "?"));
    return r;
}

static int run_start(struct cli *cli, struct err *err)
{
    _cleanup_json_ json_t *body = json_object();
    int r = cli_set(cli, body, "fork_old_copy", "fork-old-copy", err);
    return r < 0 ? r : change(cli, "/v1/vms/%s/start", body, err);
}

const struct verb verb_start = {
    .name = "start",
    .summary = "Start a VM",
    .operands = {{.name = "NAME", .kind = ARG_VM, .help = "The VM"}},
    .options = {{.name = "fork-old-copy",
                 .kind = ARG_FLAG,
                 .help = "Start this host's old copy although the VM is elsewhere: its data forks"}},
    .run = run_start,
};

static int run_stop(struct cli *cli, struct err *err)
{
    _cleanup_json_ json_t *body = json_object();
    int r = cli_set(cli, body, "timeout_ms", "timeout", err);
    if (r == 0)
        r = cli_connect(cli, err);
    if (r < 0)
        return r;
    client_set_patience(cli->client, args_number(&cli->args, "timeout", STOP_MS) + ANSWER_MARGIN);
    return change(cli, "/v1/vms/%s/stop", body, err);
}

const struct verb verb_stop = {
    .name = "stop",
    .summary = "Press a VM's power button and wait until it is off",
    .operands = {{.name = "NAME", .kind = ARG_VM, .help = "The VM"}},
    .options = {{.name = "timeout",
                 .kind = ARG_DURATION,
                 .value = "TIME",
                 .help = "How long the guest may take (default: 60s; 0: do not wait)"}},
    .run = run_stop,
};

static int run_kill(struct cli *cli, struct err *err)
{
    return change(cli, "/v1/vms/%s/kill", NULL, err);
}

const struct verb verb_kill = {
    .name = "kill",
    .summary = "Switch a VM off at once, as if its power had been cut",
    .operands = {{.name = "NAME", .kind = ARG_VM, .help = "The VM"}},
    .run = run_kill,
};

static int run_rm(struct cli *cli, struct err *err)
{
    const char *name = args_operand(&cli->args, "NAME");
    _cleanup_free_ char *path = cli_path("/v1/vms/%s", name);
    int r = cli_confirm(cli, false, err, "Delete %s and its disks?", name);
    if (r == 0)
        r = cli_call(cli, "DELETE", path, NULL, NULL, err);
    if (r == 0)
        cli_say(cli, "%s deleted", name);
    return r;
}

const struct verb verb_rm = {
    .name = "rm",
    .summary = "Delete a stopped VM and its disks",
    .operands = {{.name = "NAME", .kind = ARG_VM, .help = "The VM"}},
    .options = {{.name = "yes",
                 .kind = ARG_FLAG,
                 .letter = 'y',
                 .help = "Do not ask (without a terminal nothing is asked)"}},
    .run = run_rm,
};
