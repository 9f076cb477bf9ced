/* SPDX-License-Identifier: Apache-2.0
 *
 * list: what VMs there are, and all about one.
 */
#include "cli/cli.h"
#include "cli/verbs.h"
#include "cli/vmview.h"

#include "base/macro.h"

static int run_list(struct cli *cli, struct err *err)
{
    _cleanup_json_ json_t *answer = NULL;
    int r = cli_call(cli, "GET", "/v1/vms", NULL, &answer, err);
    return r < 0 ? r : cli_print_list(cli, &view_vms, json_object_get(answer, "vms"), err);
}

const struct verb verb_list = {
    .name = "list",
    .summary = "List the VMs of this host, and its replicas of VMs that are elsewhere",
    .flags = VERB_FORMATS,
    .run = run_list,
};

static int run_info(struct cli *cli, struct err *err)
{
    _cleanup_free_ char *path = cli_path("/v1/vms/%s", args_operand(&cli->args, "NAME"));
    _cleanup_json_ json_t *vm = NULL;
    int r = cli_call(cli, "GET", path, NULL, &vm, err);
    return r < 0 ? r : cli_print_object(cli, &view_vm, vm, err);
}

const struct verb verb_info = {
    .name = "info",
    .summary = "Show all about one VM",
    .flags = VERB_FORMATS,
    .operands = {{.name = "NAME", .kind = ARG_VM, .help = "The VM"}},
    .run = run_info,
};
