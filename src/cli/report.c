/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/report.h"

#include "base/json.h"
#include "base/macro.h"
#include "cli/text.h"
#include "cli/vmview.h"

static void put_line(FILE *out, const char *label, const char *text)
{
    _cleanup_free_ char *visible = text_visible(text);
    fprintf(out, "orai: %s%s\n", label, visible);
}

void report_error(FILE *out, const struct err *err, const char *whereabouts)
{
    char place[sizeof err->host + sizeof err->stage + 32] = "";
    if (err->host[0] && err->stage[0])
        snprintf(place, sizeof place, "host %s, stage %s: ", err->host, err->stage);
    else if (err->host[0])
        snprintf(place, sizeof place, "host %s: ", err->host);
    else if (err->stage[0])
        snprintf(place, sizeof place, "stage %s: ", err->stage);
    _cleanup_free_ char *visible_place = text_visible(place);
    put_line(out, visible_place, err->text);
    if (whereabouts)
        put_line(out, "", whereabouts);
    if (err->hint[0])
        put_line(out, "next: ", err->hint);
}

/* The first operand that is a VM, unless it is the one that does not exist. */
static const char *vm_in_question(const struct cli *cli)
{
    const struct args *args = &cli->args;
    bool known = cli->exit != CLI_NOT_FOUND && cli->exit != CLI_USAGE && cli->exit != CLI_UNREACHABLE;
    if (!known || !args->verb || !cli->client || args->operand_count == 0)
        return NULL;
    return args->verb->operands[0].kind == ARG_VM ? args->operands[0] : NULL;
}

char *report_whereabouts(struct cli *cli)
{
    const char *name = vm_in_question(cli);
    if (!name)
        return NULL;
    enum cli_exit exit = cli->exit; /* these two questions are not what failed */
    _cleanup_free_ char *path = cli_path("/v1/vms/%s", name);
    _cleanup_json_ json_t *vm = NULL, *host = NULL;
    int r = cli_call(cli, "GET", path, NULL, &vm, NULL);
    if (r == 0)
        r = cli_call(cli, "GET", "/v1/host", NULL, &host, NULL);
    cli->exit = exit;
    return r == 0 ? vm_whereabouts(vm, json_str(host, "name", "this host")) : NULL;
}
