/* SPDX-License-Identifier: Apache-2.0 */
#include "base/json.h"
#include "base/macro.h"
#include "base/size.h"
#include "move/arrival.h"
#include "vmm/firmware.h"
#include "vmm/ram.h"

#include <errno.h>
#include <limits.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

static int check_role(const struct arrival *arrival, struct err *err)
{
    const struct epoch_record *record = epoch_get(arrival->epoch);
    if (record->role == EPOCH_OWNER && !record->forked) {
        err_set(err, EEXIST, "%s belongs to this host (epoch %llu)", arrival->config.name,
                (unsigned long long)record->epoch);
        return err_hint(err, "it may run in one place only; compare: orai info %s, on both hosts",
                        arrival->config.name);
    }
    if (record->role == EPOCH_COMMITTED) {
        err_set(err, EBUSY, "%s left this host for %s, which has not answered yet", arrival->config.name,
                record->peer.name);
        return err_hint(err, "wait, or decide on this host: orai recover %s", arrival->config.name);
    }
    return 0;
}

static int ask_qemu(const struct arrival *arrival, struct qemu_host *ret, struct err *err)
{
    char cache[PATH_MAX];
    qemu_cache_path(arrival->host->state_dir, cache);
    return qemu_probe_cached(arrival->host->env.binary, cache, ret, err);
}

void arrival_warm_up(const struct arrival *arrival)
{
    struct qemu_host host = {0};
    if (ask_qemu(arrival, &host, NULL) == 0)
        qemu_host_done(&host);
}

static int check_qemu(const struct arrival *arrival, struct err *err)
{
    struct qemu_host host = {0};
    int r = ask_qemu(arrival, &host, err);
    if (r < 0)
        return err_context(err, "QEMU cannot be asked what it can do");
    const struct vm_config *config = &arrival->config;
    bool known = false;
    size_t i;
    json_t *machine;
    json_array_foreach(host.machines, i, machine) known =
        known || strcmp(json_string_value(machine), config->machine) == 0;
    if (!known) {
        r = err_set(err, ENOTSUP, "QEMU %s here does not have the machine type %s", host.version,
                    config->machine);
        err_hint(err, "install a QEMU that has it; the machine type of a VM is chosen at its creation");
    } else if (strcmp(config->accel, "kvm") == 0 && !host.kvm) {
        r = err_set(err, ENOTSUP, "the VM needs KVM, which this host has not: %s", host.kvm_why);
        err_hint(err, "set \"accel\": \"auto\" in its vm.json to allow emulation");
    }
    qemu_host_done(&host);
    return r;
}

/* QEMU loads a stream only into flash memory of the same size. */
static int check_firmware(const struct arrival *arrival, const json_t *prepare, struct err *err)
{
    uint64_t ours = 0, theirs = 0;
    if (!vm_config_uefi(&arrival->config))
        return 0;
    int r = json_get_u64(prepare, "firmware_bytes", "prepare", &theirs, err);
    if (r == 0)
        r = firmware_size(arrival->host->env.firmware_dir, &ours, err);
    if (r < 0 || ours == theirs)
        return r;
    err_set(err, ENOTSUP,
            "the UEFI firmware has %llu bytes here and %llu at the source: the VM cannot run on both",
            (unsigned long long)ours, (unsigned long long)theirs);
    return err_hint(err, "install the same release of the package ovmf on both hosts");
}

static int check_network(const struct arrival *arrival, struct err *err)
{
    for (size_t i = 0; i < arrival->config.nic_count; i++) {
        const char *bridge = arrival->config.nics[i].bridge;
        if (bridge[0] && if_nametoindex(bridge) == 0) {
            err_set(err, ENODEV, "the bridge %s, which network card %zu joins, is not on this host", bridge,
                    i);
            return err_hint(
                err, "make it (ip link add %s type bridge) or change \"bridge\" in the VM's vm.json", bridge);
        }
    }
    return 0;
}

/* What is already here of the disks need not find room again. */
static uint64_t bytes_here(const struct arrival *arrival)
{
    uint64_t bytes = 0;
    for (size_t i = 0; i < arrival->config.disk_count; i++) {
        char path[4096];
        struct stat st;
        snprintf(path, sizeof path, "%s/%s", arrival->host->env.vm_dir, arrival->config.disks[i].file);
        if (stat(path, &st) == 0)
            bytes += S_ISBLK(st.st_mode) ? arrival->config.disks[i].size : (uint64_t)st.st_blocks * 512;
        bytes += donor_bytes(path);
    }
    return bytes;
}

static int check_space(const struct arrival *arrival, uint64_t disk_bytes, struct err *err)
{
    struct statvfs fs;
    char need[SIZE_TEXT], have[SIZE_TEXT];
    if (statvfs(arrival->host->env.vm_dir, &fs) < 0)
        return err_sys(err, errno, "cannot see how much room there is at %s", arrival->host->env.vm_dir);
    uint64_t room = (uint64_t)fs.f_bavail * fs.f_frsize, here = bytes_here(arrival);
    if (disk_bytes <= here || disk_bytes - here <= room)
        return 0;
    err_set(err, ENOSPC, "not enough space: the disks need %s more, %s has %s left",
            size_format(disk_bytes - here, need), arrival->host->env.vm_dir, size_format(room, have));
    return err_hint(err, "make room there, for example by: orai replica list, orai replica drop NAME");
}

static void close_file(FILE **file)
{
    if (*file)
        fclose(*file);
}

static int check_memory(const struct arrival *arrival, struct err *err)
{
    _cleanup_(close_file) FILE *file = fopen("/proc/meminfo", "re");
    char line[128], need[SIZE_TEXT], have[SIZE_TEXT];
    static const char key[] = "MemAvailable:";
    unsigned long long kib = 0;
    if (arrival->config.ram == VM_RAM_HUGE)
        return ram_check(VM_RAM_HUGE, arrival->config.memory, err);
    while (!kib && file && fgets(line, sizeof line, file))
        if (strncmp(line, key, sizeof key - 1) == 0)
            kib = strtoull(line + sizeof key - 1, NULL, 10);
    if (!kib || kib * KiB >= arrival->config.memory)
        return 0;
    err_set(err, ENOMEM, "the VM has %s of memory, this host has %s left",
            size_format(arrival->config.memory, need), size_format(kib * KiB, have));
    return err_hint(err, "stop or move something else there first");
}

int arrival_check(const struct arrival *arrival, const json_t *prepare, struct err *err)
{
    uint64_t disk_bytes;
    int r = json_get_u64(prepare, "disk_bytes", "prepare", &disk_bytes, err);
    if (r < 0 || (r = check_role(arrival, err)) < 0 || (r = check_qemu(arrival, err)) < 0 ||
        (r = check_firmware(arrival, prepare, err)) < 0 || (r = check_network(arrival, err)) < 0 ||
        (r = check_space(arrival, disk_bytes, err)) < 0)
        return r;
    return check_memory(arrival, err);
}
