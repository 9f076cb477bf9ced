/* SPDX-License-Identifier: Apache-2.0
 *
 * host: this host, and the versions.
 */
#include "cli/cli.h"
#include "cli/verbs.h"

#include "base/json.h"
#include "base/macro.h"

static const struct view view_host = {
    .columns = (const struct column[]){{"name", "Name"},
                                       {"version", "Version"},
                                       {"address", "Address"},
                                       {"port", "Port", COLUMN_COUNT},
                                       {"fingerprint", "Fingerprint"},
                                       {"started", "Running since", COLUMN_TIME},
                                       {"cpus", "CPUs", COLUMN_COUNT},
                                       {"memory.available", "Memory free", COLUMN_BYTES},
                                       {"memory.total", "Memory", COLUMN_BYTES},
                                       {"space.free", "Disk space free", COLUMN_BYTES},
                                       {"space.total", "Disk space", COLUMN_BYTES},
                                       {"qemu.version", "QEMU"},
                                       {"qemu.kvm", "KVM", COLUMN_BOOL},
                                       {"qemu.why", "Why not KVM"},
                                       {"qemu.machines", "Machine types", COLUMN_LIST},
                                       {"protocol.min", "Oldest protocol", COLUMN_COUNT},
                                       {"protocol.max", "Newest protocol", COLUMN_COUNT},
                                       {0}},
};

static int run_host(struct cli *cli, struct err *err)
{
    _cleanup_json_ json_t *host = NULL;
    int r = cli_call(cli, "GET", "/v1/host", NULL, &host, err);
    return r < 0 ? r : cli_print_object(cli, &view_host, host, err);
}

const struct verb verb_host = {
    .name = "host",
    .summary = "Show this host: name, fingerprint, space, QEMU",
    .flags = VERB_FORMATS,
    .run = run_host,
};

static const struct view view_version = {
    .columns = (const struct column[]){{"orai", "orai"}, {"oraid", "oraid"}, {0}},
};

/* Its own version is known without oraid, so that a silent one is no failure here. */
static int run_version(struct cli *cli, struct err *err)
{
    _cleanup_json_ json_t *host = NULL, *versions = NULL;
    int r = cli_call(cli, "GET", "/v1/host", NULL, &host, NULL);
    const char *oraid = r == 0 ? json_str(host, "version", NULL) : NULL;
    versions = json_pack("{s:s, s:s?}", "orai", ORAI_VERSION, "oraid", oraid);
    return cli_print_object(cli, &view_version, versions, err);
}

const struct verb verb_version = {
    .name = "version",
    .summary = "Show the versions of orai and oraid",
    .flags = VERB_FORMATS,
    .run = run_version,
};
