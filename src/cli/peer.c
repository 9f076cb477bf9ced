/* SPDX-License-Identifier: Apache-2.0
 *
 * peer: hosts that trust each other.
 */
#include "cli/cli.h"
#include "cli/verbs.h"

#include "base/json.h"
#include "base/macro.h"

#include <stdio.h>

static const struct view view_invite = {
    .columns = (const struct column[]){{"token", "Token"}, {"expires", "Expires", COLUMN_TIME}, {0}},
};

/* The token alone on standard output, so that it can be piped; what a person wants to know besides, on the
 * other. */
static int run_invite(struct cli *cli, struct err *err)
{
    _cleanup_json_ json_t *body = json_object(), *invite = NULL;
    int r = cli_set(cli, body, "name", "name", err);
    if (r == 0 && args_text(&cli->args, "expires"))
        json_object_set_new(body, "ttl_s",
                            json_integer((json_int_t)(args_number(&cli->args, "expires", 0) / 1000)));
    if (r == 0)
        r = cli_call(cli, "POST", "/v1/invites", body, &invite, err);
    if (r < 0)
        return r;
    if (cli->args.format != FORMAT_TABLE)
        return cli_print_object(cli, &view_invite, invite, err);
    printf("%s\n", json_str(invite, "token", ""));
    _cleanup_free_ char *expires = format_cell(invite, &view_invite.columns[1], FORMAT_TABLE);
    fprintf(stderr, "On the other host: orai peer join TOKEN (once, until %s; whoever has it can join)\n",
            expires);
    return 0;
}

const struct verb verb_peer_invite = {
    .group = "peer",
    .name = "invite",
    .summary = "Make a token with which one other host may join this one",
    .flags = VERB_FORMATS,
    .options = {{.name = "name",
                 .kind = ARG_TEXT,
                 .value = "NAME",
                 .help = "What this host calls the other one (default: its own name)"},
                {.name = "expires",
                 .kind = ARG_DURATION,
                 .value = "TIME",
                 .help = "How long the token can be used (default: 10m)"}},
    .run = run_invite,
};

static int run_join(struct cli *cli, struct err *err)
{
    _cleanup_json_ json_t *body = json_object(), *peer = NULL;
    int r = cli_set_operand(cli, body, "token", "TOKEN", err);
    if (r == 0)
        r = cli_set(cli, body, "name", "name", err);
    if (r == 0)
        r = cli_call(cli, "POST", "/v1/peers/join", body, &peer, err);
    if (r < 0)
        return r;
    cli_say(cli, "%s at %s and this host now trust each other", json_str(peer, "name", "?"),
            json_str(peer, "address", "?"));
    return 0;
}

const struct verb verb_peer_join = {
    .group = "peer",
    .name = "join",
    .summary = "Trust the host that made a token, and be trusted by it",
    .operands = {{.name = "TOKEN",
                  .kind = ARG_TEXT,
                  .help = "What `orai peer invite` printed on the other host"}},
    .options = {{.name = "name",
                 .kind = ARG_TEXT,
                 .value = "NAME",
                 .help = "What this host calls the other one (default: its own name)"}},
    .run = run_join,
};

static const struct view view_peers = {
    .columns = (const struct column[]){{"name", "NAME"},
                                       {"address", "ADDRESS"},
                                       {"port", "PORT", COLUMN_COUNT},
                                       {"since", "SINCE", COLUMN_TIME},
                                       {"fingerprint", "FINGERPRINT"},
                                       {0}},
    .empty = "No peers yet; make a token with: orai peer invite",
};

static const struct view view_probed = {
    .columns = (const struct column[]){{"name", "NAME"},
                                       {"address", "ADDRESS"},
                                       {"port", "PORT", COLUMN_COUNT},
                                       {"probe.reachable", "REACHABLE", COLUMN_BOOL},
                                       {"probe.latency_ms", "LATENCY", COLUMN_MSEC},
                                       {"probe.version", "VERSION"},
                                       {"probe.error.text", "WHY NOT"},
                                       {0}},
    .empty = "No peers yet; make a token with: orai peer invite",
};

static int run_list(struct cli *cli, struct err *err)
{
    _cleanup_json_ json_t *answer = NULL;
    bool probe = args_flag(&cli->args, "probe");
    int r = cli_call(cli, "GET", probe ? "/v1/peers?probe=true" : "/v1/peers", NULL, &answer, err);
    if (r < 0)
        return r;
    return cli_print_list(cli, probe ? &view_probed : &view_peers, json_object_get(answer, "peers"), err);
}

const struct verb verb_peer_list = {
    .group = "peer",
    .name = "list",
    .summary = "List the hosts that this one trusts",
    .flags = VERB_FORMATS,
    .options = {{.name = "probe", .kind = ARG_FLAG, .help = "Ask each one whether it is there"}},
    .run = run_list,
};

static int run_remove(struct cli *cli, struct err *err)
{
    const char *name = args_operand(&cli->args, "PEER");
    _cleanup_free_ char *path = cli_path("/v1/peers/%s", name);
    int r = cli_call(cli, "DELETE", path, NULL, NULL, err);
    if (r == 0)
        cli_say(cli, "This host no longer trusts %s; on %s, remove this host too", name, name);
    return r;
}

const struct verb verb_peer_remove = {
    .group = "peer",
    .name = "remove",
    .summary = "Stop trusting a host",
    .operands = {{.name = "PEER", .kind = ARG_PEER, .help = "Its name in `orai peer list`"}},
    .run = run_remove,
};
