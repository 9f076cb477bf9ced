/* SPDX-License-Identifier: Apache-2.0
 *
 * machine: disks, taps and QEMU of one VM. Every function leaves the machine in a state that the others can
 * deal with: what failed half-way is undone, stopping or closing twice is fine, and machine_free never ends
 * QEMU.
 *
 * Order, upwards: disks and their NBD servers, taps, QEMU; downwards the other way round.
 */
#include "vmm/machine_internal.h"

#include "base/log.h"
#include "base/macro.h"
#include "net/tap.h"
#include "vmm/unix_socket.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

int machine_new(const struct qemu_env *env, const struct vm_config *config, struct machine **ret,
                struct err *err)
{
    struct machine *machine = calloc(1, sizeof *machine);
    if (!machine)
        return err_set(err, ENOMEM, "out of memory for the VM %s", config->name);
    machine->env = *env;
    machine->config = *config;
    for (size_t i = 0; i < VM_MAX_NICS; i++)
        machine->taps[i] = machine->next_taps[i] = -1;
    *ret = machine;
    return 0;
}

/* --- disks ---------------------------------------------------------------------------------------------- */

static void disk_socket(const struct machine *machine, size_t index, char path[PATH_MAX])
{
    snprintf(path, PATH_MAX, "%.4000s/disk%zu.sock", machine->env.run_dir, index);
}

static int serve_disk(struct machine *machine, size_t index, unsigned flags, struct err *err)
{
    char path[PATH_MAX], name[16];
    snprintf(name, sizeof name, "disk%zu", index);
    snprintf(path, sizeof path, "%.4000s/%s", machine->env.vm_dir, machine->config.disks[index].file);
    struct disk **disk = &machine->disks[index].disk;
    enum vm_disk_type type = machine->config.disks[index].type;
    /* QEMU writes all of the variables back after each move. */
    int r = disk_open(path, flags | (type == VM_DISK_UEFI_VARS ? DISK_COMPARE : 0), disk, err);
    if (r < 0)
        return r;
    if (disk_size(*disk) != machine->config.disks[index].size)
        return err_set(err, EINVAL, "%s has %llu bytes, vm.json says %llu", path,
                       (unsigned long long)disk_size(*disk),
                       (unsigned long long)machine->config.disks[index].size);
    disk_socket(machine, index, path);
    int listener = unix_listen(path, machine->env.uid, machine->env.gid, err);
    if (listener < 0)
        return listener;
    struct nbd_options options = {.export_name = name,
                                  .read_only = flags & DISK_READ_ONLY || type == VM_DISK_CDROM};
    return nbd_server_new(*disk, listener, &options, &machine->disks[index].server, err);
}

int machine_open_disks(struct machine *machine, unsigned flags, struct err *err)
{
    for (size_t i = 0; i < machine->config.disk_count; i++) {
        assert(!machine->disks[i].disk);
        int r = serve_disk(machine, i, flags, err);
        if (r < 0) {
            machine_close_disks(machine, NULL);
            return r;
        }
    }
    return 0;
}

int machine_close_disks(struct machine *machine, struct err *err)
{
    int result = 0;
    for (size_t i = 0; i < machine->config.disk_count; i++) {
        char path[PATH_MAX];
        disk_socket(machine, i, path);
        if (machine->disks[i].server)
            unlink(path);
        if (machine->disks[i].disk)
            disk_thaw(machine->disks[i].disk); /* a write that waits would hold up the server's end */
        nbd_server_free(TAKE_PTR(machine->disks[i].server));
        struct disk *disk = TAKE_PTR(machine->disks[i].disk);
        int r = disk ? disk_close(disk, result == 0 ? err : NULL) : 0;
        if (result == 0)
            result = r;
    }
    return result;
}

/* --- network -------------------------------------------------------------------------------------------- */

static void close_taps(struct machine *machine)
{
    announce_free(TAKE_PTR(machine->announce));
    learn_free(TAKE_PTR(machine->learn));
    for (size_t i = 0; i < VM_MAX_NICS; i++)
        if (machine->taps[i] >= 0)
            close(TAKE_FD(machine->taps[i]));
}

/* Learning is a help, not a need: a guest whose addresses are not known is still announced by its MAC. */
static void start_learning(struct machine *machine)
{
    struct learn_nic nics[VM_MAX_NICS];
    char names[VM_MAX_NICS][IFNAMSIZ];
    struct err err = ERR_NONE;
    for (size_t i = 0; i < machine->config.nic_count; i++)
        nics[i] = (struct learn_nic){.tap = tap_name(&machine->config.id, i, names[i]),
                                     .mac = machine->config.nics[i].mac};
    if (machine->config.nic_count && learn_new(nics, machine->config.nic_count, &machine->learn, &err) < 0)
        log_warning("the guest's addresses will not be known: %s", err.text);
}

static int open_taps(struct machine *machine, struct err *err)
{
    for (size_t i = 0; i < machine->config.nic_count; i++) {
        char name[IFNAMSIZ];
        int fd = tap_open(tap_name(&machine->config.id, i, name), machine->config.nics[i].bridge, err);
        if (fd < 0)
            return fd;
        machine->taps[i] = fd;
    }
    start_learning(machine);
    return 0;
}

void machine_set_network(const struct machine *machine, bool on)
{
    for (size_t i = 0; i < machine->config.nic_count; i++) {
        char name[IFNAMSIZ];
        struct err err = ERR_NONE;
        if (machine->qemu && tap_set(tap_name(&machine->config.id, i, name), on, &err) < 0)
            log_warning("%s", err.text);
    }
}

/* A tap that cannot be had again costs us the announcing, not the guest its network: QEMU holds it. */
static void take_taps(struct machine *machine)
{
    for (size_t i = 0; i < machine->config.nic_count; i++) {
        char name[IFNAMSIZ];
        struct err err = ERR_NONE;
        tap_name(&machine->config.id, i, name);
        int fd = tap_take(qemu_pid(machine->qemu), qemu_pidfd(machine->qemu), name, &err);
        /* Out of use it is when our predecessor died while it replaced QEMU, and the guest stayed in this
         * one. */
        if (fd < 0 || tap_use(fd, true, &err) < 0)
            log_warning("%s", err.text);
        machine->taps[i] = MAX(fd, -1);
    }
    start_learning(machine);
}

json_t *machine_addresses(const struct machine *machine)
{
    return machine->learn ? learn_addresses(machine->learn) : json_array();
}

void machine_announce(struct machine *machine, const json_t *addresses)
{
    struct announce_nic nics[VM_MAX_NICS];
    size_t count = 0;
    struct err err = ERR_NONE;
    if (addresses && machine->learn && learn_add(machine->learn, addresses, &err) < 0)
        log_warning("%s", err.text);
    for (size_t i = 0; i < machine->config.nic_count; i++) {
        struct announce_nic *nic = &nics[count];
        *nic = (struct announce_nic){.tap = machine->taps[i]};
        if (nic->tap < 0 || mac_parse(machine->config.nics[i].mac, nic->mac) < 0)
            continue;
        if (machine->learn)
            learn_get(machine->learn, i, &nic->addresses);
        count++;
    }
    announce_free(TAKE_PTR(machine->announce));
    if (count && announce_start(nics, count, &machine->announce, &err) < 0)
        log_warning("%s", err.text);
}

/* --- QEMU ----------------------------------------------------------------------------------------------- */

int machine_start(struct machine *machine, bool incoming, qmp_event_fn *on_event, void *arg, struct err *err)
{
    assert(!machine->qemu);
    int r = open_taps(machine, err);
    if (r == 0)
        r = qemu_start(&machine->env, &machine->config, incoming, machine->taps, on_event, arg,
                       &machine->qemu, err);
    if (r < 0)
        close_taps(machine);
    return r;
}

int machine_adopt(struct machine *machine, qmp_event_fn *on_event, void *arg, struct err *err)
{
    assert(!machine->qemu);
    int r = qemu_adopt(&machine->env, on_event, arg, &machine->qemu, err);
    if (r < 0)
        return r;
    machine->config.ram = qemu_ram(machine->qemu); /* that is what a second QEMU, and the next host, go by */
    take_taps(machine);
    return 0;
}

int machine_adopt_waiting(struct machine *machine, struct err *err)
{
    assert(!machine->qemu);
    int r = qemu_adopt_waiting(&machine->env, &machine->qemu, err);
    if (r == 0)
        take_taps(machine);
    return r;
}

int machine_connect(struct machine *machine, int msec, qmp_event_fn *on_event, void *arg, struct err *err)
{
    int r = qemu_connect(machine->qemu, msec, on_event, arg, err);
    if (r == 0)
        machine->config.ram = qemu_ram(machine->qemu);
    return r;
}

int machine_stop(struct machine *machine, int msec, struct err *err)
{
    if (machine->qemu) {
        int r = qemu_kill(machine->qemu, msec, err);
        if (r < 0)
            return r;
        qemu_free(TAKE_PTR(machine->qemu));
    }
    close_taps(machine);
    return 0;
}

void machine_free(struct machine *machine)
{
    if (!machine)
        return;
    struct err err = ERR_NONE;
    machine_next_forget(machine);
    qemu_free(TAKE_PTR(machine->qemu));
    close_taps(machine);
    if (machine_close_disks(machine, &err) < 0)
        log_error("closing the disks of %s: %s", machine->config.name, err.text);
    free(machine);
}

/* --- parts ---------------------------------------------------------------------------------------------- */

const struct vm_config *machine_config(const struct machine *machine)
{
    return &machine->config;
}

struct qemu *machine_qemu(const struct machine *machine)
{
    return machine->qemu;
}

size_t machine_disk_count(const struct machine *machine)
{
    return machine->config.disk_count;
}

struct disk *machine_disk(const struct machine *machine, size_t index)
{
    assert(index < machine->config.disk_count);
    return machine->disks[index].disk;
}

void machine_disk_statistics(const struct machine *machine, size_t index, struct nbd_statistics *ret)
{
    assert(index < machine->config.disk_count);
    *ret = (struct nbd_statistics){0};
    if (machine->disks[index].server)
        nbd_server_statistics(machine->disks[index].server, ret);
}

size_t machine_disk_clients(const struct machine *machine, int *ret, size_t max, char ret_path[PATH_MAX])
{
    size_t count = 0;
    for (size_t i = 0; i < machine->config.disk_count; i++) {
        disk_socket(machine, i, ret_path);
        if (machine->disks[i].server)
            count += nbd_server_clients(machine->disks[i].server, ret + count, max - count);
    }
    return count;
}
