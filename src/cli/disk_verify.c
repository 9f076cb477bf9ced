/* SPDX-License-Identifier: Apache-2.0
 *
 * `orai disk verify`: of a FILE without oraid (disk.c), or of a VM's copy here against the one on another
 * host, which oraid compares by hashes. What differs is the result, on standard output; that something does
 * is the error.
 */
#include "cli/cli.h"
#include "cli/operation.h"
#include "cli/verbs.h"

#include "base/json.h"
#include "base/macro.h"

#include <errno.h>
#include <inttypes.h>

static const struct view view_disks = {
    .columns = (const struct column[]){{"file", "DISK"},
                                       {"equal", "EQUAL", COLUMN_BOOL},
                                       {"generation", "GENERATION", COLUMN_COUNT},
                                       {"sealed", "OF", COLUMN_TIME},
                                       {"sealed_at", "SEALED AT"},
                                       {"compared", "COMPARED", COLUMN_BYTES},
                                       {"changed", "CHANGED SINCE", COLUMN_BYTES},
                                       {"different", "BLOCKS THAT DIFFER", COLUMN_COUNT},
                                       {0}},
};

static const struct view view_differences = {
    .columns = (const struct column[]){{"file", "DISK"},
                                       {"block", "BLOCK", COLUMN_COUNT},
                                       {"count", "BLOCKS", COLUMN_COUNT},
                                       {"offset", "AT BYTE", COLUMN_COUNT},
                                       {0}},
    .empty = "None",
};

static const struct view view_comparison = {
    .columns = (const struct column[]){{"vm", "VM"},
                                       {"here", "Here"},
                                       {"against", "Against"},
                                       {"equal", "Equal", COLUMN_BOOL},
                                       {"different", "Blocks that differ", COLUMN_COUNT},
                                       {"more", "More than are listed", COLUMN_BOOL},
                                       {0}},
    .sections = (const struct section[]){{"disks", "Disks", &view_disks},
                                         {"differences", "Differences", &view_differences},
                                         {0}},
};

static int judge(struct cli *cli, const json_t *result, struct err *err)
{
    const char *name = args_operand(&cli->args, "FILE"), *here = json_str(result, "here", "this host"),
               *there = args_text(&cli->args, "against");
    if (json_bool(result, "equal", false))
        return 0;
    err_set(err, EUCLEAN,
            "%" PRIu64
            " blocks of %s are not the same on %s and on %s, and neither has written them since both "
            "were equal: one of the two is damaged",
            json_u64(result, "different", 0), name, here, there);
    return err_hint(err,
                    "a third copy, or a backup, says which: orai disk verify %s --against OTHER; a damaged "
                    "replica goes by `orai replica drop %s` on its host",
                    name, name);
}

static int compare(struct cli *cli, struct err *err)
{
    const char *name = args_operand(&cli->args, "FILE");
    _cleanup_free_ char *path = cli_path("/v1/vms/%s/verify", name);
    _cleanup_json_ json_t *body = json_object(), *result = NULL;
    int r = cli_set(cli, body, "against", "against", err);
    if (r == 0)
        r = cli_set(cli, body, "rate", "rate", err);
    if (r < 0)
        return r;
    operation_on_interrupt("\norai: the comparison goes on; stop it: orai cancel %s\n", name);
    r = operation_run(cli, path, body, &result, err);
    if (r == 0)
        r = cli_print_object(cli, &view_comparison, result, err);
    return r < 0 ? r : judge(cli, result, err);
}

static int run_verify(struct cli *cli, struct err *err)
{
    if (args_text(&cli->args, "against"))
        return compare(cli, err);
    if (args_text(&cli->args, "rate"))
        return cli_usage(cli, err, "--rate goes with --against");
    return cli_verify_file(args_operand(&cli->args, "FILE"), err);
}

const struct verb verb_disk_verify = {
    .group = "disk",
    .name = "verify",
    .summary = "Check a raw image's generation map, or compare a VM's copies on two hosts",
    .flags = VERB_FORMATS,
    .operands = {{.name = "FILE", .kind = ARG_FILE, .help = "The image; with --against: the name of a VM"}},
    .options = {{.name = "against",
                 .kind = ARG_PEER,
                 .value = "HOST",
                 .help = "Compare the VM's copy here with the one on HOST, by hashes"},
                {.name = "rate",
                 .kind = ARG_RATE,
                 .value = "RATE",
                 .help = "With --against: read no faster on either host (default: 200 MiB/s)"}},
    .run = run_verify,
};
