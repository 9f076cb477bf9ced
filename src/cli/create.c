/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/cli.h"
#include "cli/operation.h"
#include "cli/verbs.h"
#include "cli/vmview.h"

#include "base/json.h"
#include "base/macro.h"

#include <errno.h>

/* Option and its member of the API's VMRequest. */
static const char *const members[][2] = {
    {"image", "image"},   {"memory", "memory"}, {"cpus", "cpus"},           {"kernel", "kernel"},
    {"initrd", "initrd"}, {"append", "append"}, {"machine", "machine"},     {"cpu", "cpu"},
    {"accel", "accel"},   {"ram", "ram"},       {"autostart", "autostart"}, {"cdrom", "cdrom"},
    {"uefi", "uefi"},
};

static int set_disks(const struct cli *cli, json_t *body, struct err *err)
{
    const struct arg_value *value;
    _cleanup_json_ json_t *disks = json_array();
    for (size_t i = 0; (value = args_nth(&cli->args, "disk", i)); i++) {
        bool device = value->text[0] == '/';
        json_t *disk = device ? json_pack("{s:s}", "device", value->text)
                              : json_pack("{s:I}", "size", (json_int_t)value->number);
        if (!disk)
            return err_set(err, EINVAL, "--disk: the device's name is not UTF-8 text");
        json_array_append_new(disks, disk);
    }
    return json_array_size(disks) ? json_object_set(body, "disks", disks) : 0;
}

/* The n-th --bridge and the n-th --mac are of one card. */
static int set_nics(const struct cli *cli, json_t *body, struct err *err)
{
    const struct arg_value *bridge, *mac;
    _cleanup_json_ json_t *nics = json_array();
    for (size_t i = 0;
         bridge = args_nth(&cli->args, "bridge", i), mac = args_nth(&cli->args, "mac", i), bridge || mac;
         i++) {
        json_t *nic =
            json_pack("{s:s*, s:s*}", "bridge", bridge ? bridge->text : NULL, "mac", mac ? mac->text : NULL);
        if (!nic)
            return err_set(err, EINVAL, "network card %zu: its bridge or MAC is not UTF-8 text", i + 1);
        json_array_append_new(nics, nic);
    }
    return json_array_size(nics) ? json_object_set(body, "nics", nics) : 0;
}

static int set_config(const struct cli *cli, json_t *body, struct err *err)
{
    const char *file = args_text(&cli->args, "config");
    json_t *config = NULL;
    int r = file ? json_read_file(file, &config, err) : 0;
    if (r == 0 && config)
        json_object_set_new(body, "config", config);
    return r;
}

static int run_create(struct cli *cli, struct err *err)
{
    _cleanup_json_ json_t *body = json_object(), *vm = NULL;
    int r = cli_set_operand(cli, body, "name", "NAME", err);
    for (size_t i = 0; r == 0 && i < ARRAY_SIZE(members); i++)
        r = cli_set(cli, body, members[i][1], members[i][0], err);
    if (r == 0)
        r = set_disks(cli, body, err);
    if (r == 0)
        r = set_nics(cli, body, err);
    if (r == 0)
        r = set_config(cli, body, err);
    if (r < 0)
        return r;
    const char *name = args_operand(&cli->args, "NAME");
    operation_on_interrupt("\norai: %s is still being created; see: orai list\n", name);
    r = operation_run(cli, "/v1/vms", body, &vm, err);
    if (r < 0)
        return r;
    if (cli->args.format != FORMAT_TABLE)
        return cli_print_object(cli, &view_vm, vm, err);
    cli_say(cli, "%s created; start it with: orai start %s", name, name);
    return 0;
}

const struct verb verb_create = {
    .name = "create",
    .summary = "Make a VM",
    .flags = VERB_FORMATS,
    .operands = {{.name = "NAME", .kind = ARG_TEXT, .help = "What the VM is to be called"}},
    .options = {{.name = "image",
                 .kind = ARG_IMAGE,
                 .value = "IMAGE",
                 .help = "Base image of the first disk (default: an empty disk)"},
                {.name = "memory", .kind = ARG_SIZE, .value = "SIZE", .help = "Memory (default: 512M)"},
                {.name = "cpus", .kind = ARG_COUNT, .value = "N", .help = "Virtual CPUs (default: 1)"},
                {.name = "disk",
                 .kind = ARG_DISK,
                 .value = "SIZE|DEVICE",
                 .help =
                     "Size of the disk (default: the image's), or a block device; once more for each further "
                     "disk",
                 .many = true},
                {.name = "bridge",
                 .kind = ARG_TEXT,
                 .value = "BRIDGE",
                 .help = "Network card on this bridge of the host; once more for each further card",
                 .many = true},
                {.name = "mac",
                 .kind = ARG_TEXT,
                 .value = "MAC",
                 .help = "Its address (default: made up); the first is the first card's, and so on",
                 .many = true},
                {.name = "cdrom",
                 .kind = ARG_FILE,
                 .value = "FILE",
                 .help = "CD-ROM image; it is copied, and travels with the VM"},
                {.name = "uefi", .kind = ARG_FLAG, .help = "Boot by UEFI instead of BIOS"},
                {.name = "kernel",
                 .kind = ARG_FILE,
                 .value = "FILE",
                 .help = "Boot this kernel; it travels with the VM"},
                {.name = "initrd", .kind = ARG_FILE, .value = "FILE", .help = "Its initial RAM disk"},
                {.name = "append", .kind = ARG_TEXT, .value = "TEXT", .help = "Its command line"},
                {.name = "machine",
                 .kind = ARG_TEXT,
                 .value = "TYPE",
                 .help = "QEMU machine type (default: the newest that all reachable peers have)"},
                {.name = "cpu",
                 .kind = ARG_TEXT,
                 .value = "MODEL",
                 .help = "QEMU CPU model (default: x86-64-v2, which moves everywhere)"},
                {.name = "accel",
                 .kind = ARG_CHOICE,
                 .value = "auto|kvm|tcg",
                 .help = "How the guest's code is run (default: auto)"},
                {.name = "ram",
                 .kind = ARG_CHOICE,
                 .value = "shared|private|huge",
                 .help = "What its memory is made of (default: shared)"},
                {.name = "autostart", .kind = ARG_FLAG, .help = "Start it whenever its host has booted"},
                {.name = "config",
                 .kind = ARG_FILE,
                 .value = "FILE",
                 .help = "A VM config (JSON) for the rest; the options win over it"}},
    .run = run_create,
};
