/* SPDX-License-Identifier: Apache-2.0
 *
 * refresh: has QEMU replaced under a running guest, or under all of this host's, one after the other.
 */
#include "cli/cli.h"
#include "cli/operation.h"
#include "cli/verbs.h"

#include "base/json.h"
#include "base/macro.h"

#include <errno.h>
#include <string.h>

static const struct view view_refresh = {
    .columns = (const struct column[]){{"vm", "VM"},
                                       {"state", "STATE"},
                                       {"blackout_ms", "BLACKOUT", COLUMN_MSEC},
                                       {"silence_ms", "DISK SILENCE", COLUMN_MSEC},
                                       {"qemu", "QEMU"},
                                       {"error.text", "ERROR"},
                                       {0}},
};

/* What came of it, whether good or not; an error only when that is not known. */
static int refresh_one(struct cli *cli, const char *name, const json_t *body, json_t **ret, struct err *err)
{
    _cleanup_free_ char *path = cli_path("/v1/vms/%s/refresh", name);
    _cleanup_json_ json_t *started = NULL, *ended = NULL;
    int r = cli_call(cli, "POST", path, body, &started, err);
    if (r == 0)
        r = operation_wait(cli, started, NULL, NULL, &ended, err);
    if (r == 0)
        r = operation_failure(ended, err);
    json_t *result = json_deep_copy(json_object_get(ended, "result"));
    if (!json_is_object(result)) {
        json_decref(result);
        result = json_pack("{s:s, s:s}", "vm", name, "state", "stayed");
    }
    if (r < 0)
        json_object_set_new(result, "error", err_to_json(err));
    *ret = result;
    return r;
}

static int refresh_named(struct cli *cli, const json_t *body, struct err *err)
{
    _cleanup_json_ json_t *result = NULL;
    int r = refresh_one(cli, args_operand(&cli->args, "NAME"), body, &result, err);
    if (cli->args.format != FORMAT_TABLE) {
        struct err ignored = ERR_NONE;
        int printed = cli_print_object(cli, &view_refresh, result, r < 0 ? &ignored : err);
        return r < 0 ? r : printed;
    }
    if (r < 0)
        return r;
    const json_t *silence = json_object_get(result, "silence_ms"),
                 *blackout = json_object_get(result, "blackout_ms");
    if (json_is_number(silence))
        cli_say(cli, "orai-vm of %s is replaced; its disks waited %.0f ms", json_str(result, "vm", "?"),
                json_number_value(silence));
    else if (!json_object_get(result, "qemu")) /* oraid was restarted meanwhile: nobody measured */
        cli_say(cli, "orai-vm of %s is replaced", json_str(result, "vm", "?"));
    else if (json_is_number(blackout))
        cli_say(cli, "%s runs in QEMU %s; it stood still for %.1f ms", json_str(result, "vm", "?"),
                json_str(result, "qemu", "?"), json_number_value(blackout));
    else
        cli_say(cli, "%s is in QEMU %s, and as still as before", json_str(result, "vm", "?"),
                json_str(result, "qemu", "?"));
    return 0;
}

static bool runs(const json_t *vm)
{
    const char *state = json_str(vm, "state", "");
    return strcmp(state, "running") == 0 || strcmp(state, "paused") == 0;
}

/* One at a time: what fails at the first of a host's VMs would fail at many at once otherwise. */
static int refresh_all(struct cli *cli, const json_t *body, struct err *err)
{
    _cleanup_json_ json_t *answer = NULL, *results = json_array();
    size_t index, failed = 0;
    json_t *vm;
    int r = cli_call(cli, "GET", "/v1/vms", NULL, &answer, err);
    if (r < 0)
        return r;
    json_array_foreach(json_object_get(answer, "vms"), index, vm)
    {
        json_t *result = NULL;
        struct err why = ERR_NONE;
        if (!runs(vm))
            continue;
        failed += refresh_one(cli, json_str(vm, "name", ""), body, &result, &why) < 0;
        json_array_append_new(results, result);
    }
    r = cli_print_list(cli, &view_refresh, results, err);
    if (r < 0 || failed == 0)
        return r;
    cli->exit = CLI_FAILED;
    return err_set(err, EIO, "%zu of %zu VMs were not refreshed", failed, json_array_size(results));
}

static int run_refresh(struct cli *cli, struct err *err)
{
    _cleanup_json_ json_t *body = json_object();
    bool all = args_flag(&cli->args, "all");
    if (all == (args_operand(&cli->args, "NAME") != NULL))
        return cli_usage(cli, err, all ? "NAME and --all do not go together" : "which VM? NAME, or --all");
    int r = cli_set(cli, body, "qemu", "qemu", err);
    if (r == 0)
        r = cli_set(cli, body, "helper", "helper", err);
    if (r < 0)
        return r;
    return all ? refresh_all(cli, body, err) : refresh_named(cli, body, err);
}

const struct verb verb_refresh = {
    .name = "refresh",
    .summary = "Replace QEMU under a running VM, as after a package upgrade",
    .flags = VERB_FORMATS,
    .operands = {{.name = "NAME", .kind = ARG_VM, .help = "The VM", .optional = true}},
    .options = {{.name = "all",
                 .kind = ARG_FLAG,
                 .help = "All VMs that run on this host, one after the other"},
                {.name = "qemu",
                 .kind = ARG_FILE,
                 .value = "FILE",
                 .help = "The program to go on in (default: the host's QEMU)"},
                {.name = "helper", .kind = ARG_FLAG, .help = "Replace the VM's orai-vm instead; QEMU stays"}},
    .run = run_refresh,
};
