/* SPDX-License-Identifier: Apache-2.0 */
#include "vm/options.h"

#include "base/macro.h"
#include "vmm/firmware.h"

#include <errno.h>
#include <getopt.h>
#include <string.h>

const char options_help[] =
    "usage: orai-vm --state-dir DIR --vm-dir DIR --run-dir DIR --host-name NAME [OPTION...] MODE\n"
    "\n"
    "Runs one virtual machine; oraid starts it. MODE is one of\n"
    "  start [--fork-old-copy]    boots the VM; --fork-old-copy also when this host only has an old copy of "
    "it\n"
    "  arrive FINGERPRINT [VM]    waits for the VM (its id, unless vm.json is there) to be moved here from "
    "that host\n"
    "  share FINGERPRINT          lets that host fetch blocks from the old copy here, while it wants any\n"
    "  resume                     finds a QEMU that still runs, or finishes an interrupted move\n"
    "  keep-ram VM EPOCH BYTES    writes the RAM that is descriptor 3, of a guest that has left, to a "
    "checkpoint; "
    "orai-vm starts it\n"
    "\n"
    "  --state-dir DIR    the host's state: key, certificate, images\n"
    "  --vm-dir DIR       the VM's folder: vm.json, disks\n"
    "  --run-dir DIR      the VM's sockets and pid files\n"
    "  --host-name NAME   what this host is called\n"
    "  --qemu FILE        QEMU to run (default qemu-system-x86_64)\n"
    "  --qemu-user USER   whom QEMU runs as (default orai-qemu if there is such a user)\n"
    "  --source ADDRESS:PORT  arrive: where the source's host listens; blocks are fetched from there\n"
    "  --firmware DIR     folder of the UEFI firmware (default " FIRMWARE_DIR ")\n"
    "  --faults           obey RUN_DIR/fault (tests)\n"
    "  --help, --version\n";

static const char version_text[] = "orai-vm " ORAI_VERSION "\n";

enum {
    OPT_STATE_DIR = 256,
    OPT_VM_DIR,
    OPT_RUN_DIR,
    OPT_HOST_NAME,
    OPT_QEMU,
    OPT_QEMU_USER,
    OPT_SOURCE,
    OPT_FIRMWARE,
    OPT_FAULTS,
    OPT_FORK
};

static const struct option long_options[] = {
    {"state-dir", required_argument, NULL, OPT_STATE_DIR},
    {"vm-dir", required_argument, NULL, OPT_VM_DIR},
    {"run-dir", required_argument, NULL, OPT_RUN_DIR},
    {"host-name", required_argument, NULL, OPT_HOST_NAME},
    {"qemu", required_argument, NULL, OPT_QEMU},
    {"qemu-user", required_argument, NULL, OPT_QEMU_USER},
    {"source", required_argument, NULL, OPT_SOURCE},
    {"firmware", required_argument, NULL, OPT_FIRMWARE},
    {"faults", no_argument, NULL, OPT_FAULTS},
    {"fork-old-copy", no_argument, NULL, OPT_FORK},
    {"help", no_argument, NULL, 'h'},
    {"version", no_argument, NULL, 'V'},
    {NULL, 0, NULL, 0},
};

static int parse_number(const char *text, uint64_t *ret)
{
    char *end;
    errno = 0;
    unsigned long long number = strtoull(text, &end, 10);
    if (errno || end == text || *end || *text == '-')
        return -EINVAL;
    *ret = number;
    return 0;
}

static int parse_mode(int count, char **words, struct vm_options *options, struct err *err)
{
    static const char *const names[] = {[MODE_START] = "start",
                                        [MODE_ARRIVE] = "arrive",
                                        [MODE_RESUME] = "resume",
                                        [MODE_SHARE] = "share",
                                        [MODE_KEEP_RAM] = "keep-ram"};
    static_assert(ARRAY_SIZE(names) == MODE_KEEP_RAM + 1, "a name for each mode");
    size_t mode = 0;
    while (count > 0 && mode < ARRAY_SIZE(names) && strcmp(words[0], names[mode]) != 0)
        mode++;
    if (count == 0 || mode == ARRAY_SIZE(names))
        return err_set(err, EINVAL, "the mode must be start, arrive, share, resume or keep-ram");
    options->mode = (enum vm_mode)mode;
    if (mode == MODE_ARRIVE || mode == MODE_SHARE) {
        if (count < 2 || count > 3 || fingerprint_parse(words[1], &options->source.fingerprint) < 0)
            return err_set(err, EINVAL, "%s needs the fingerprint of the other host: 64 hex digits",
                           words[0]);
        if (count == 3 && id_parse(words[2], &options->vm) < 0)
            return err_set(err, EINVAL, "\"%s\" is not the id of a VM: 32 hex digits", words[2]);
    } else if (mode == MODE_KEEP_RAM) {
        if (count != 4 || id_parse(words[1], &options->vm) < 0 ||
            parse_number(words[2], &options->epoch) < 0 || parse_number(words[3], &options->ram_bytes) < 0)
            return err_set(err, EINVAL, "keep-ram needs the VM's id, its epoch and the RAM's bytes");
    } else if (count > 1) {
        return err_set(err, EINVAL, "unexpected argument \"%s\"", words[1]);
    }
    if (options->fork_old_copy && mode != MODE_START)
        return err_set(err, EINVAL, "--fork-old-copy goes with start only");
    return 0;
}

/* ADDRESS:PORT; the address may have colons of its own. */
static int parse_source(const char *text, struct move_peer *ret)
{
    const char *colon = strrchr(text, ':');
    char *end;
    if (!colon || colon == text || (size_t)(colon - text) >= sizeof ret->address)
        return -EINVAL;
    unsigned long port = strtoul(colon + 1, &end, 10);
    if (end == colon + 1 || *end || port == 0 || port > UINT16_MAX)
        return -EINVAL;
    snprintf(ret->address, sizeof ret->address, "%.*s", (int)(colon - text), text);
    ret->port = (uint16_t)port;
    return 0;
}

static int check_required(const struct vm_options *options, struct err *err)
{
    const struct {
        const char *value, *name;
    } required[] = {
        {options->state_dir, "--state-dir"},
        {options->vm_dir, "--vm-dir"},
        {options->run_dir, "--run-dir"},
        {options->host_name, "--host-name"},
    };
    for (size_t i = 0; i < ARRAY_SIZE(required); i++)
        if (!required[i].value || !required[i].value[0])
            return err_set(err, EINVAL, "%s is missing", required[i].name);
    return 0;
}

int options_parse(int argc, char **argv, struct vm_options *ret, const char **ret_text, struct err *err)
{
    struct vm_options options = {.qemu = "qemu-system-x86_64", .firmware = FIRMWARE_DIR};
    int c;
    optind = 1;
    opterr = 0;
    /* NOLINTNEXTLINE(concurrency-mt-unsafe): there are no threads yet */
    while ((c = getopt_long(argc, argv, "", long_options, NULL)) != -1) {
        switch (c) {
        case OPT_STATE_DIR:
            options.state_dir = optarg;
            break;
        case OPT_VM_DIR:
            options.vm_dir = optarg;
            break;
        case OPT_RUN_DIR:
            options.run_dir = optarg;
            break;
        case OPT_HOST_NAME:
            options.host_name = optarg;
            break;
        case OPT_QEMU:
            options.qemu = optarg;
            break;
        case OPT_QEMU_USER:
            options.qemu_user = optarg;
            break;
        case OPT_SOURCE:
            if (parse_source(optarg, &options.source) < 0)
                return err_set(err, EINVAL, "--source needs ADDRESS:PORT, not \"%s\"", optarg);
            break;
        case OPT_FIRMWARE:
            options.firmware = optarg;
            break;
        case OPT_FAULTS:
            options.faults = true;
            break;
        case OPT_FORK:
            options.fork_old_copy = true;
            break;
        case 'h':
            *ret_text = options_help;
            return 0;
        case 'V':
            *ret_text = version_text;
            return 0;
        default:
            return err_set(err, EINVAL, "unknown option, or one without its value: %s", argv[optind - 1]);
        }
    }
    int r = parse_mode(argc - optind, argv + optind, &options, err);
    if (r == 0)
        r = check_required(&options, err);
    if (r < 0)
        return r;
    *ret_text = NULL;
    *ret = options;
    return 0;
}
