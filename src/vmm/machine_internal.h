/* SPDX-License-Identifier: Apache-2.0
 *
 * machine_internal: what machine.c and machine_next.c share.
 */
#pragma once

#include "net/announce.h"
#include "net/learn.h"
#include "vmm/machine.h"

struct machine {
    struct qemu_env env;
    struct vm_config config;
    struct {
        struct disk *disk;
        struct nbd_server *server;
    } disks[VM_MAX_DISKS];
    int taps[VM_MAX_NICS]; /* -1 = none */
    struct learn *learn;
    struct announce *announce;
    struct qemu *qemu;
    struct qemu *next; /* beside it while QEMU is replaced (machine_next.c) */
    int next_taps[VM_MAX_NICS];
};

/* Lets go of the other QEMU and its taps, without touching the process. */
void machine_next_forget(struct machine *machine);
