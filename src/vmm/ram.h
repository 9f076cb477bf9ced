/* SPDX-License-Identifier: Apache-2.0
 *
 * ram: what a VM's RAM is made of (config.h, enum vm_ram), as far as this host is concerned with it.
 *
 *              is                                             who else has it          pages of
 *   shared     a memfd that we make and QEMU maps             we, and a second QEMU    4 KiB
 *   private    memory of QEMU's own                           nobody                   what the kernel likes
 *   huge       a memfd of huge pages that the host has set    we, and a second QEMU    2 MiB
 *              aside for such uses
 *
 * Hence what private RAM cannot have: another QEMU in its place (qemu_start_next), a checkpoint
 * (memory/checkpoint.h), a comparison (memory/compare.h). QEMU's stream is the same for all three, except
 * that in post-copy it tells of each block whose pages are not the host's.
 *
 * Huge pages are reserved as soon as the RAM is made: QEMU gets no SIGBUS later because there are too few.
 */
#pragma once

#include "base/err.h"
#include "vmm/config.h"

#include <stdint.h>
#include <sys/types.h>

#define RAM_HUGE_PAGE (UINT64_C(2) << 20) /* each VM's memory is a multiple of it */

/* Makes RAM of `size` bytes, sealed in size. *ret is -1 for private RAM, which QEMU makes. -ENOMEM when the
 * host has too few huge pages left: the hint says what to do. */
int ram_make(enum vm_ram kind, uint64_t size, int *ret, struct err *err);
/* Could it be made at this moment? Says nothing about ordinary pages. */
int ram_check(enum vm_ram kind, uint64_t size, struct err *err);
/* A running QEMU's RAM, among its descriptors; -1 when there is none that can be had. */
int ram_take(pid_t pid, int pidfd);
/* Of a descriptor of ram_make or ram_take. */
enum vm_ram ram_kind(int fd);
