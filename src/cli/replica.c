/* SPDX-License-Identifier: Apache-2.0
 *
 * replica: copies of a VM's disk that make its next move cheap.
 */
#include "cli/cli.h"
#include "cli/verbs.h"

#include "base/json.h"
#include "base/macro.h"

#include <string.h>

static const struct view view_replicas = {
    .columns = (const struct column[]){{"host", "HOST"},
                                       {"here", "HERE", COLUMN_BOOL},
                                       {"state", "STATE"},
                                       {"epoch", "EPOCH", COLUMN_COUNT},
                                       {"allocated", "TAKES", COLUMN_BYTES},
                                       {"checkpoint", "MEMORY", COLUMN_BYTES},
                                       {"error.text", "ERROR"},
                                       {0}},
    .empty = "No copies",
};

static const struct view view_copies = {
    .columns = (const struct column[]){{"name", "NAME"},
                                       {"state", "STATE"},
                                       {"peer", "OTHER HOST"},
                                       {"epoch", "EPOCH", COLUMN_COUNT},
                                       {"allocated", "TAKES", COLUMN_BYTES},
                                       {"checkpoint", "MEMORY", COLUMN_BYTES},
                                       {0}},
    .empty = "No copies of VMs that are elsewhere",
};

/* Of all VMs, those of which this host only has a copy. */
static int list_copies(struct cli *cli, struct err *err)
{
    _cleanup_json_ json_t *answer = NULL, *copies = json_array();
    size_t i, k;
    json_t *vm, *disk;
    int r = cli_call(cli, "GET", "/v1/vms", NULL, &answer, err);
    if (r < 0)
        return r;
    json_array_foreach(json_object_get(answer, "vms"), i, vm)
    {
        uint64_t allocated = 0;
        if (strcmp(json_str(vm, "role", ""), "replica") != 0)
            continue;
        json_array_foreach(json_object_get(vm, "disks"), k, disk) allocated += json_u64(disk, "allocated", 0);
        json_array_append_new(
            copies, json_pack("{s:O?, s:O?, s:O?, s:O?, s:I, s:I}", "name", json_object_get(vm, "name"),
                              "state", json_object_get(vm, "state"), "peer", json_object_get(vm, "peer"),
                              "epoch", json_object_get(vm, "epoch"), "allocated", (json_int_t)allocated,
                              "checkpoint", (json_int_t)json_u64(vm, "checkpoint", 0)));
    }
    return cli_print_list(cli, &view_copies, copies, err);
}

static int run_list(struct cli *cli, struct err *err)
{
    if (!args_operand(&cli->args, "NAME"))
        return list_copies(cli, err);
    _cleanup_free_ char *path =
        cli_path(args_flag(&cli->args, "here") ? "/v1/vms/%s/replicas?here=true" : "/v1/vms/%s/replicas",
                 args_operand(&cli->args, "NAME"));
    _cleanup_json_ json_t *answer = NULL;
    int r = cli_call(cli, "GET", path, NULL, &answer, err);
    return r < 0 ? r : cli_print_list(cli, &view_replicas, json_object_get(answer, "replicas"), err);
}

const struct verb verb_replica_list = {
    .group = "replica",
    .name = "list",
    .summary = "List the copies of a VM, here and at the peers; or all copies here",
    .flags = VERB_FORMATS,
    .operands = {{.name = "NAME", .kind = ARG_VM, .help = "The VM", .optional = true}},
    .options = {{.name = "here", .kind = ARG_FLAG, .help = "Do not ask the peers"}},
    .run = run_list,
};

static int run_drop(struct cli *cli, struct err *err)
{
    const char *name = args_operand(&cli->args, "NAME");
    _cleanup_free_ char *path = cli_path(
        args_flag(&cli->args, "force") ? "/v1/vms/%s/replicas/here?force=true" : "/v1/vms/%s/replicas/here",
        name);
    int r = cli_call(cli, "DELETE", path, NULL, NULL, err);
    if (r == 0)
        cli_say(cli, "This host's copy of %s is deleted; a move to here sends all of it again", name);
    return r;
}

const struct verb verb_replica_drop = {
    .group = "replica",
    .name = "drop",
    .summary = "Delete this host's copy of a VM that is elsewhere",
    .operands = {{.name = "NAME", .kind = ARG_VM, .help = "The VM"}},
    .options = {{.name = "force",
                 .kind = ARG_FLAG,
                 .help = "Even if another host still fetches blocks from it, that are nowhere else"}},
    .run = run_drop,
};
