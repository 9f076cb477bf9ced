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
/* The same for a QEMU whose main thread may wait for memory (qemu_adopt_waiting); machine_connect tries for `msec`. */
int machine_adopt_waiting(struct machine *machine, struct err *err);
int machine_connect(struct machine *machine, int msec, qmp_event_fn *on_event, void *arg, struct err *err);
/* Ends QEMU, closes the taps. */
int machine_stop(struct machine *machine, int msec, struct err *err);

/* --- replacing QEMU under the running guest (machine_next.c): start, let it have the taps, take, end ---
 * Until machine_next_take the guest is the first QEMU's, from then on the second's: at no time may both run it. */

/* Starts a second QEMU, the program `binary`, on the same RAM, disks and taps: it waits for the state of the devices, and
 * gets no frames yet. -ENOTSUP where RAM or taps cannot be shared. */
int machine_next_start(struct machine *machine, const char *binary, qmp_event_fn *on_event, void *arg,
                       struct err *err);
struct qemu *machine_next(const struct machine *machine); /* NULL when there is none */
/* Frames to the guest go to the second QEMU, or again to the first; what waits in the other's queue is lost. Either sends. */
int machine_next_use_taps(struct machine *machine, bool next, struct err *err);
/* The durable switch: from here on machine_qemu is the second one, and machine_next the one before. Also back, as long
 * as the guest has not run in the second. */
int machine_next_take(struct machine *machine, struct err *err);
/* Ends the one of the two that is not machine_qemu. On failure it may live on, and its record with it. */
int machine_next_end(struct machine *machine, struct err *err);
/* Ends what a crash left of a second QEMU, which is not the guest's. Without a machine: before one is adopted or started. */
int machine_end_leftover(const char *run_dir, struct err *err);

const struct vm_config *machine_config(const struct machine *machine);
struct qemu *machine_qemu(const struct machine *machine); /* NULL when none runs */
size_t machine_disk_count(const struct machine *machine);
struct disk *machine_disk(const struct machine *machine, size_t index);
void machine_disk_statistics(const struct machine *machine, size_t index, struct nbd_statistics *ret);

/* The sockets of the disks' clients, at most `max`, and the path of the socket that is served last; returns how many. */
size_t machine_disk_clients(const struct machine *machine, int *ret, size_t max, char ret_path[PATH_MAX]);

/* The guest's addresses as learned from its ARP and IPv6 ND (net/announce.h); JSON so that it can travel. */
json_t *machine_addresses(const struct machine *machine);
/* The guest's cables, in or out, without its noticing. */
void machine_set_network(const struct machine *machine, bool on);
/* Announces the guest here (GARP, RARP, unsolicited NA), `addresses` as above (may be NULL); repeats a few times. */
void machine_announce(struct machine *machine, const json_t *addresses);
