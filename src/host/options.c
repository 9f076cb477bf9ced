/* SPDX-License-Identifier: Apache-2.0 */
#include "host/options.h"

#include "base/macro.h"
#include "host/peer.h"
#include "vmm/firmware.h"

#include <errno.h>
#include <getopt.h>
#include <limits.h>
#include <pwd.h>
#include <stdio.h>
#include <string.h>

#define DEFAULT_STATE "/var/lib/orai"
#define DEFAULT_RUN "/run/orai"
#define DEFAULT_QEMU "qemu-system-x86_64"
#define DEFAULT_USER "orai-qemu"
#define LIBEXEC_ORAI_VM "/usr/libexec/orai/orai-vm"
#define FOLDER_MAX 1024 /* leaves room for what stands below */

const char options_help[] =
    "usage: oraid [OPTION...]\n"
    "\n"
    "Runs on every host of a group that moves VMs between them: serves the API, starts and watches an "
    "orai-vm per VM.\n"
    "\n"
    "  --name NAME            what this host is called (default: its host name)\n"
    "  --listen ADDRESS:PORT  where other hosts reach it (default: every address, port 7420)\n"
    "  --advertise ADDRESS    the address that peers are told (default: where they see us come from)\n"
    "  --state-dir DIR        keys, registry, images, VMs (default " DEFAULT_STATE ")\n"
    "  --run-dir DIR          sockets and pid files (default " DEFAULT_RUN ")\n"
    "  --qemu FILE            QEMU to run (default " DEFAULT_QEMU ")\n"
    "  --qemu-user USER       whom QEMU runs as (default " DEFAULT_USER "; root: do not change, for labs)\n"
    "  --firmware DIR         the UEFI firmware, OVMF_CODE_4M.fd and OVMF_VARS_4M.fd (default " FIRMWARE_DIR
    ")\n"
    "  --orai-vm FILE         the helper to run (default: beside oraid, then " LIBEXEC_ORAI_VM ")\n"
    "  --faults               let tests make moves fail at chosen points\n"
    "  --help, --version\n";

static const char version_text[] = "oraid " ORAI_VERSION "\n";

enum {
    OPT_NAME = 256,
    OPT_LISTEN,
    OPT_ADVERTISE,
    OPT_STATE_DIR,
    OPT_RUN_DIR,
    OPT_QEMU,
    OPT_QEMU_USER,
    OPT_FIRMWARE,
    OPT_ORAI_VM,
    OPT_FAULTS
};

static const struct option long_options[] = {
    {"name", required_argument, NULL, OPT_NAME},
    {"listen", required_argument, NULL, OPT_LISTEN},
    {"advertise", required_argument, NULL, OPT_ADVERTISE},
    {"state-dir", required_argument, NULL, OPT_STATE_DIR},
    {"run-dir", required_argument, NULL, OPT_RUN_DIR},
    {"qemu", required_argument, NULL, OPT_QEMU},
    {"qemu-user", required_argument, NULL, OPT_QEMU_USER},
    {"firmware", required_argument, NULL, OPT_FIRMWARE},
    {"orai-vm", required_argument, NULL, OPT_ORAI_VM},
    {"faults", no_argument, NULL, OPT_FAULTS},
    {"help", no_argument, NULL, 'h'},
    {"version", no_argument, NULL, 'V'},
    {NULL, 0, NULL, 0},
};

/* "ADDRESS:PORT", "[IPV6]:PORT", ":PORT" or an address alone. */
static int parse_listen(const char *text, struct host_options *options, struct err *err)
{
    static char address[256];
    const char *colon = strrchr(text, ':'), *end = colon;
    size_t skip = text[0] == '[';
    if (skip)
        end = strchr(text, ']');
    bool bare = !colon || (skip && colon < end) || (!skip && strchr(text, ':') != colon);
    if (bare) {
        end = skip ? end : text + strlen(text);
        colon = NULL;
    }
    if (!end || (size_t)(end - text) >= sizeof address)
        return err_set(err, EINVAL, "--listen: \"%s\" is not ADDRESS:PORT", text);
    size_t length = (size_t)(end - text) - skip;
    memcpy(address, text + skip, length);
    address[length] = '\0';
    options->listen_address = address;
    if (!colon)
        return 0;
    char *rest;
    unsigned long port = strtoul(colon + 1, &rest, 10);
    if (!colon[1] || *rest || port > UINT16_MAX)
        return err_set(err, EINVAL, "--listen: \"%s\" is not a port", colon + 1);
    options->port = (uint16_t)port;
    return 0;
}

static int take_option(int option, struct host_options *options, const char **ret_text, struct err *err)
{
    switch (option) {
    case OPT_NAME:
        options->name = optarg;
        return 0;
    case OPT_LISTEN:
        return parse_listen(optarg, options, err);
    case OPT_ADVERTISE:
        options->advertise = optarg;
        return 0;
    case OPT_STATE_DIR:
        options->state_dir = optarg;
        return 0;
    case OPT_RUN_DIR:
        options->run_dir = optarg;
        return 0;
    case OPT_QEMU:
        options->qemu = optarg;
        return 0;
    case OPT_QEMU_USER:
        options->qemu_user = optarg;
        return 0;
    case OPT_FIRMWARE:
        options->firmware = optarg;
        return 0;
    case OPT_ORAI_VM:
        options->orai_vm = optarg;
        return 0;
    case OPT_FAULTS:
        options->faults = true;
        return 0;
    case 'h':
        *ret_text = options_help;
        return 0;
    case 'V':
        *ret_text = version_text;
        return 0;
    default:
        return err_set(err, EINVAL, "unknown option, or one without its value");
    }
}

static const char *find_orai_vm(void)
{
    static char path[PATH_MAX];
    ssize_t length = readlink("/proc/self/exe", path, sizeof path - sizeof "orai-vm");
    char *slash = NULL;
    if (length > 0) {
        path[length] = '\0';
        slash = strrchr(path, '/');
    }
    if (!slash)
        return LIBEXEC_ORAI_VM;
    memcpy(slash + 1, "orai-vm", sizeof "orai-vm");
    return access(path, X_OK) == 0 ? path : LIBEXEC_ORAI_VM;
}

static const char *default_name(void)
{
    static char name[PEER_NAME_SIZE];
    if (gethostname(name, sizeof name) < 0)
        return "";
    name[sizeof name - 1] = '\0';
    name[strcspn(name, ".")] = '\0';
    return name;
}

/* orai-vm has another working directory: what it is given must not depend on ours. */
static int make_absolute(const char **path, const char *what, struct err *err)
{
    char here[PATH_MAX], *full = NULL;
    if ((*path)[0] == '/' || !(*path)[0])
        return (*path)[0] ? 0 : err_set(err, EINVAL, "%s is empty", what);
    if (!getcwd(here, sizeof here) || asprintf(&full, "%s/%s", here, *path) < 0)
        return err_sys(err, errno, "%s", what);
    *path = full;
    return 0;
}

static int check(struct host_options *options, struct err *err)
{
    if (!peer_name_ok(options->name)) {
        err_set(err, EINVAL, "\"%s\" cannot be a host's name: letters, digits, '.', '_', '-', at most 63",
                options->name);
        return err_hint(err, "give another one with --name");
    }
    if (options->advertise && !peer_address_ok(options->advertise))
        return err_set(err, EINVAL, "--advertise: \"%s\" is not an address", options->advertise);
    int r = make_absolute(&options->state_dir, "--state-dir", err);
    if (r == 0)
        r = make_absolute(&options->run_dir, "--run-dir", err);
    if (r == 0 && strchr(options->qemu, '/'))
        r = make_absolute(&options->qemu, "--qemu", err);
    if (r == 0)
        r = make_absolute(&options->firmware, "--firmware", err);
    if (r == 0)
        r = make_absolute(&options->orai_vm, "--orai-vm", err);
    if (r == 0 && (strlen(options->state_dir) > FOLDER_MAX || strlen(options->run_dir) > FOLDER_MAX))
        r = err_set(err, EINVAL, "the paths of --state-dir and --run-dir may have %d characters", FOLDER_MAX);
    if (r < 0)
        return r;
    /* NOLINTNEXTLINE(concurrency-mt-unsafe): there are no threads yet */
    if (strcmp(options->qemu_user, "root") != 0 && !getpwnam(options->qemu_user)) {
        err_set(err, EINVAL, "there is no user \"%s\" for QEMU to run as", options->qemu_user);
        return err_hint(err, "useradd --system --no-create-home --shell /usr/sbin/nologin %s",
                        options->qemu_user);
    }
    return 0;
}

int options_parse(int argc, char **argv, struct host_options *ret, const char **ret_text, struct err *err)
{
    struct host_options options = {
        .name = default_name(),
        .state_dir = DEFAULT_STATE,
        .run_dir = DEFAULT_RUN,
        .listen_address = "",
        .port = DEFAULT_PORT,
        .qemu = DEFAULT_QEMU,
        .qemu_user = DEFAULT_USER,
        .firmware = FIRMWARE_DIR,
        .orai_vm = find_orai_vm(),
    };
    *ret_text = NULL;
    opterr = 0;
    optind = 1;
    /* NOLINTNEXTLINE(concurrency-mt-unsafe): as above */
    for (int option; (option = getopt_long(argc, argv, "hV", long_options, NULL)) != -1;) {
        int r = take_option(option, &options, ret_text, err);
        if (r < 0 || *ret_text)
            return r;
    }
    if (optind < argc)
        return err_set(err, EINVAL, "\"%s\": oraid takes options only", argv[optind]);
    int r = check(&options, err);
    if (r == 0)
        *ret = options;
    return r;
}
