/* SPDX-License-Identifier: Apache-2.0
 *
 * machine: the parts of one VM on this host as one thing: its disks with their NBD servers, its taps, its QEMU.
 * Starting, arriving and finding again after a crash differ only in the order and flags of these calls; orai-vm's
 * main and the move use nothing else. Not thread-safe: its owner (main thread, or the move while it runs) calls.
 */
#pragma once

#include "disk/disk.h"
#include "disk/nbd.h"
#include "vmm/config.h"
#include "vmm/qemu.h"

struct machine;

/* Strings in `env` must outlive the machine; config is copied. Starts nothing. */
int machine_new(const struct qemu_env *env, const struct vm_config *config, struct machine **ret, struct err *err);
/* Stops nothing but our own threads: QEMU goes on (its NBD client waits for our return); disks are closed. */
void machine_free(struct machine *machine);

/* Opens all disks with `flags` (disk.h) and serves them at run_dir/diskN.sock, owned by QEMU's user. */
int machine_open_disks(struct machine *machine, unsigned flags, struct err *err);
/* Stops the NBD servers and closes the disks (clean stop: everything durable). */
int machine_close_disks(struct machine *machine, struct err *err);
/* Taps and QEMU, CPUs stopped. Disks must be open. */
int machine_start(struct machine *machine, bool incoming, qmp_event_fn *on_event, void *arg, struct err *err);
/* Finds QEMU and its taps again. -ESRCH when QEMU is gone. Disks must be open (QEMU's NBD client reconnects). */
int machine_adopt(struct machine *machine, qmp_event_fn *on_event, void *arg, struct err *err);
/* Ends QEMU, closes the taps. */
int machine_stop(struct machine *machine, int msec, struct err *err);

const struct vm_config *machine_config(const struct machine *machine);
struct qemu *machine_qemu(const struct machine *machine); /* NULL when none runs */
size_t machine_disk_count(const struct machine *machine);
struct disk *machine_disk(const struct machine *machine, size_t index);
void machine_disk_statistics(const struct machine *machine, size_t index, struct nbd_statistics *ret);

/* The guest's addresses as learned from its ARP and IPv6 ND (net/announce.h); JSON so that it can travel. */
json_t *machine_addresses(const struct machine *machine);
/* The guest's cables, in or out, without its noticing. */
void machine_set_network(const struct machine *machine, bool on);
/* Announces the guest here (GARP, RARP, unsolicited NA), `addresses` as above (may be NULL); repeats a few times. */
void machine_announce(struct machine *machine, const json_t *addresses);
