/* SPDX-License-Identifier: Apache-2.0
 *
 * recover: after a move that was torn apart. With --run-here a human takes the decision that Orai never takes
 * by itself: that the other host does not run the guest, and never will again.
 */
#include "cli/cli.h"
#include "cli/verbs.h"
#include "cli/vmview.h"

#include "base/json.h"
#include "base/macro.h"

static const struct view view_recovered = {
    .columns = (const struct column[]){{"vm.name", "Name"},
                                       {"vm.state", "State"},
                                       {"vm.reason", "Reason"},
                                       {"vm.role", "This copy"},
                                       {"vm.peer", "Other host"},
                                       {"vm.epoch", "Epoch", COLUMN_COUNT},
                                       {"vm.forked", "Forked", COLUMN_BOOL},
                                       {0}},
};

static int confirm_run_here(struct cli *cli, const char *name, struct err *err)
{
    if (!args_flag(&cli->args, "run-here"))
        return 0;
    return cli_confirm(
        cli, true, err,
        "If %s still runs on the other host, there will be two of it, and what one of them writes from\n"
        "now on will be lost. Run %s here?",
        name, name);
}

static int run_recover(struct cli *cli, struct err *err)
{
    const char *name = args_operand(&cli->args, "NAME");
    _cleanup_free_ char *path = cli_path("/v1/vms/%s/recover", name);
    _cleanup_json_ json_t *body = json_object(), *status = NULL;
    int r = confirm_run_here(cli, name, err);
    if (r == 0)
        r = cli_set(cli, body, "run_here", "run-here", err);
    if (r == 0)
        r = cli_call(cli, "POST", path, body, &status, err);
    return r < 0 ? r : cli_print_object(cli, &view_recovered, status, err);
}

const struct verb verb_recover = {
    .name = "recover",
    .summary = "Bring a VM whose move was torn apart back into a known state",
    .flags = VERB_FORMATS,
    .operands = {{.name = "NAME", .kind = ARG_VM, .help = "The VM"}},
    .options =
        {{.name = "run-here",
          .kind = ARG_FLAG,
          .help = "Run the guest on this host: you know that the other one does not run it"},
         {.name = "yes", .kind = ARG_FLAG, .letter = 'y', .help = "Do not ask; needed without a terminal"}},
    .run = run_recover,
};
