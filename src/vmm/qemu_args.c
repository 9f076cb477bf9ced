/* SPDX-License-Identifier: Apache-2.0
 *
 * qemu_args: QEMU's command line, complete and explicit. Both hosts of a move must build the same machine out
 * of the same vm.json, so nothing is left to defaults that differ by host or package: no default devices, no
 * user configuration, PCI slots by number, and no option ROMs for NICs (their size is part of the migrated
 * state).
 *
 * PCI slots: 2 entropy, 3 kept for a display, 4 to 11 NICs, 12 to 27 disks, 28 the controller of CD-ROMs.
 *
 * CD-ROMs are SCSI ones at a virtio controller, which BIOS, UEFI and the kernels of cloud images know; the
 * latter lack a driver for q35's own AHCI.
 */
#include "base/json.h"
#include "vmm/qemu_internal.h"

#include <errno.h>
#include <stdarg.h>
#include <string.h>

#define ARGS_MAX 256
#define SLOT_RNG 2
#define SLOT_NIC 4
#define SLOT_DISK 12
#define SLOT_SCSI 28

/* How long QEMU lets a guest's requests wait for an orai-vm that is gone, before it reports errors. */
#define RECONNECT_SECONDS 3600

struct args {
    char *argv[ARGS_MAX + 1];
    size_t count;
    bool failed;
};

static void add_text(struct args *args, char *text)
{
    if (!text || args->count == ARGS_MAX) {
        args->failed = true;
        free(text);
        return;
    }
    args->argv[args->count++] = text;
}

__attribute__((format(printf, 2, 3))) static void add(struct args *args, const char *format, ...)
{
    char *text = NULL;
    va_list list;
    va_start(list, format);
    if (vasprintf(&text, format, list) < 0)
        text = NULL;
    va_end(list);
    add_text(args, text);
}

/* The portable CPU: the x86-64-v2 level on top of QEMU's oldest 64-bit model, so that every host made since
 * 2010 has it. `enforce` makes a host that lacks a feature refuse to start rather than run a different CPU.
 */
static const char *cpu_model(const char *cpu)
{
    if (strcmp(cpu, "x86-64-v2") == 0)
        return "qemu64,-svm,+ssse3,+sse4.1,+sse4.2,+popcnt,+cx16,+lahf_lm,enforce";
    return cpu;
}

static void add_machine(struct args *args, const struct vm_config *config, const char *accel,
                        const struct qemu_fds *fds)
{
    char uuid[ID_TEXT_SIZE];
    unsigned long long memory = config->memory / MiB;
    char flash[64] = "";
    for (size_t i = 0; i < config->disk_count; i++)
        if (config->disks[i].type == VM_DISK_UEFI_VARS)
            snprintf(flash, sizeof flash, ",pflash0=firmware,pflash1=disk%zu", i);
    id_format(&config->id, uuid);
    add(args, "-nodefaults");
    add(args, "-no-user-config");
    add(args, "-name");
    add(args, "guest=%s,debug-threads=on", config->name);
    add(args, "-uuid");
    add(args, "%.8s-%.4s-%.4s-%.4s-%.12s", uuid, uuid + 8, uuid + 12, uuid + 16, uuid + 20);
    add(args, "-machine");
    add(args, "%s,memory-backend=" QEMU_RAM_BLOCK ",hpet=off,dump-guest-core=off%s", config->machine, flash);
    add(args, "-accel");
    add(args, "%s", accel);
    add(args, "-cpu");
    add(args, "%s", cpu_model(config->cpu));
    add(args, "-smp");
    add(args, "%u", config->cpus);
    add(args, "-m");
    add(args, "size=%lluM", memory);
    add(args, "-object");
    if (fds->ram >= 0) /* aligned so that the kernel can make it of huge pages (QEMU asks it to) */
        add(args,
            "memory-backend-file,id=" QEMU_RAM_BLOCK
            ",size=%lluM,share=on,align=2M,mem-path=/proc/self/fd/%d",
            memory, fds->ram);
    else
        add(args, "memory-backend-ram,id=" QEMU_RAM_BLOCK ",size=%lluM,share=off", memory);
    add(args, "-rtc");
    add(args, "base=utc");
    add(args, "-display");
    add(args, "none");
    add(args, "-vga");
    add(args, "none");
    add(args, "-S");
}

/* The console log is an inherited file: QEMU's user could not open it in the VM's folder. */
static void add_channels(struct args *args, const struct qemu_fds *fds)
{
    add(args, "-chardev");
    add(args, "socket,id=qmp,fd=%d,server=on,wait=off", fds->qmp);
    add(args, "-mon");
    add(args, "chardev=qmp,mode=control");
    add(args, "-chardev");
    add(args, "socket,id=rescue,fd=%d", fds->rescue);
    add(args, "-mon");
    add(args, "chardev=rescue,mode=control");
    add(args, "-add-fd");
    add(args, "fd=%d,set=1", fds->console);
    add(args, "-chardev");
    add(args, "file,id=console,path=/dev/fdset/1,append=on");
    add(args, "-serial");
    add(args, "chardev:console");
    add(args, "-object");
    add(args, "rng-builtin,id=rng");
    add(args, "-device");
    add(args, "virtio-rng-pci,rng=rng,addr=%#x", SLOT_RNG);
}

static void add_blockdev(struct args *args, json_t *json)
{
    add(args, "-blockdev");
    add_text(args, json ? json_dumps(json, JSON_COMPACT) : NULL);
    json_decref(json);
}

static void add_node(struct args *args, const struct qemu_env *env, const char *node, bool read_only)
{
    char path[PATH_MAX];
    if (snprintf(path, sizeof path, "%s/%s.sock", env->run_dir, node) >= (int)sizeof path)
        args->failed = true;
    add_blockdev(args, json_pack("{s:s, s:s, s:{s:s, s:s}, s:s, s:i, s:b, s:s, s:s}", "driver", "nbd",
                                 "node-name", node, "server", "type", "unix", "path", path, "export", node,
                                 "reconnect-delay", RECONNECT_SECONDS, "read-only", read_only, "discard",
                                 "unmap", "detect-zeroes", "off"));
}

static unsigned count_before(const struct vm_config *config, size_t index, enum vm_disk_type type)
{
    unsigned count = 0;
    for (size_t i = 0; i < index; i++)
        count += config->disks[i].type == type;
    return count;
}

/* The first plain disk is tried first, then CD-ROMs: so a CD-ROM installs a system that is then booted. 0 =
 * never. */
static unsigned boot_index(const struct vm_config *config, size_t index)
{
    enum vm_disk_type type = config->disks[index].type;
    unsigned before = count_before(config, index, type);
    if (config->kernel[0])
        return 0;
    if (type == VM_DISK_CDROM)
        return 2 + before;
    return before == 0 ? 1 : 0;
}

static void add_disk(struct args *args, const struct qemu_env *env, const struct vm_config *config,
                     size_t index)
{
    enum vm_disk_type type = config->disks[index].type;
    char node[32], boot[24] = "";
    snprintf(node, sizeof node, "disk%zu", index);
    add_node(args, env, node, type == VM_DISK_CDROM);
    if (type == VM_DISK_UEFI_VARS) /* the machine itself takes it */
        return;
    if (type == VM_DISK_CDROM && count_before(config, index, type) == 0) {
        add(args, "-device");
        add(args, "virtio-scsi-pci,id=scsi,addr=%#x", SLOT_SCSI);
    }
    unsigned order = boot_index(config, index);
    if (order)
        snprintf(boot, sizeof boot, ",bootindex=%u", order);
    add(args, "-device");
    if (type == VM_DISK_CDROM)
        add(args, "scsi-cd,id=cd%zu,bus=scsi.0,scsi-id=%zu,drive=%s,serial=%s,rerror=stop%s", index, index,
            node, node, boot);
    else
        add(args, "virtio-blk-pci,id=vd%zu,drive=%s,serial=%s,rerror=stop,werror=stop,addr=%#zx%s", index,
            node, node, SLOT_DISK + index, boot);
}

static void add_firmware(struct args *args, int fd)
{
    add(args, "-add-fd");
    add(args, "fd=%d,set=2", fd);
    add_blockdev(args, json_pack("{s:s, s:s, s:s, s:b, s:s}", "driver", "file", "node-name", "firmware",
                                 "filename", "/dev/fdset/2", "read-only", true, "locking", "off"));
}

static void add_nic(struct args *args, const struct vm_nic *nic, size_t index, int tap)
{
    add(args, "-netdev");
    add(args, "tap,id=net%zu,fd=%d", index, tap);
    add(args, "-device");
    add(args, "virtio-net-pci,id=nic%zu,netdev=net%zu,mac=%s,romfile=,addr=%#zx", index, index, nic->mac,
        SLOT_NIC + index);
}

static void add_kernel(struct args *args, const struct vm_config *config, const struct qemu_fds *fds)
{
    add(args, "-kernel");
    add(args, "/proc/self/fd/%d", fds->kernel);
    if (config->initrd[0]) {
        add(args, "-initrd");
        add(args, "/proc/self/fd/%d", fds->initrd);
    }
    if (config->append[0]) {
        add(args, "-append");
        add(args, "%s", config->append);
    }
}

char **qemu_args_build(const struct qemu_env *env, const struct vm_config *config, const char *accel,
                       bool incoming, const struct qemu_fds *fds)
{
    struct args *args = calloc(1, sizeof *args);
    if (!args)
        return NULL;
    add(args, "%s", env->binary);
    add_machine(args, config, accel, fds);
    add_channels(args, fds);
    add(args, "-sandbox");
    add(args, "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");
    for (size_t i = 0; i < config->disk_count; i++)
        add_disk(args, env, config, i);
    if (fds->firmware >= 0)
        add_firmware(args, fds->firmware);
    for (size_t i = 0; i < config->nic_count; i++)
        add_nic(args, &config->nics[i], i, fds->taps[i]);
    if (config->kernel[0])
        add_kernel(args, config, fds);
    if (incoming) {
        add(args, "-incoming");
        add(args, "defer");
    }
    if (args->failed) {
        qemu_args_free(args->argv);
        return NULL;
    }
    return args->argv; /* the first member of *args */
}

void qemu_args_free(char **argv)
{
    for (size_t i = 0; argv && argv[i]; i++)
        free(argv[i]);
    free(argv);
}
