/* SPDX-License-Identifier: Apache-2.0
 *
 * compare: makes the RAM of the QEMU that has loaded the guest equal to that of the QEMU that has sent it,
 * while the guest stands still on both sides, by hashes of its pages.
 *
 * For emulated (TCG) guests, because QEMU's dirty tracking of those loses writes: before 9.0 a dirty bit may
 * be cleared without the TLB's entry being reset ("physmem: Fix migration dirty bitmap coherency with TCG
 * memory access"), and in every version the reset may come between a virtual CPU's look at the bit and its
 * marking of the entry as dirty. A guest that moved often enough under load panicked. KVM's dirty log has no
 * such hole: such a guest's memory is compared when the user wants it verified, and what differs is an error.
 *
 * The devices are loaded after this (memory/timer.h holds them back): they look at the rings of their virtio
 * queues, which may be among what was lost (42 of 650 moves of a guest on a host with six times the load
 * that it can bear). Where the peer's Orai is older they are loaded before, which does no harm: QEMU's own
 * writes are never lost, and what only the guest wrote there it reads again once the guest goes on.
 *
 *   source                                  destination
 *   hashes of pages that are not zero  ->  compares with its own; what lies between them must be zero
 *                                        <- numbers of the pages that differ
 *   those pages ->                          writes them
 *
 * XXH3-64: an accident with 2^18 pages has a chance of 2^-46; a guest that makes collisions on purpose only
 * hurts itself. The RAM is a memfd. It is mapped, and the mapping filled, before the guest stands still, so
 * that the pause pays for one pass over memory and nothing else: about 0.1 s per GiB on each side. One thread
 * at a time per object.
 */
#pragma once

#include "base/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define COMPARE_PAGE 4096U
#define COMPARE_BATCH 1024U /* pages per message */
#define COMPARE_MESSAGE (8 + 8 * (size_t)COMPARE_BATCH)

/* A memfd's pages, to read. */
struct ram_view {
    int fd; /* borrowed */
    const uint8_t *bytes;
    uint64_t pages;
    uint64_t populated; /* pages */
    /* With `sparse`, what was never made is not made by a look at it, but known to be zero: pages `data` up
     * to `hole` are the stretch of made ones that was found last. */
    bool sparse;
    uint64_t data, hole;
};

/* Maps `size` bytes, a multiple of COMPARE_PAGE. `sparse` costs a walk over the memfd's pages later, which
 * only pays where pages are missing: not at the source, whose QEMU has looked at all of them. */
int ram_view_open(struct ram_view *view, int fd, uint64_t size, bool sparse, struct err *err);
/* Fills a further piece of the mapping's page tables, some milliseconds' worth; false: all are filled that
 * can be. Unless `sparse`, what nobody wrote gets allocated, as QEMU's own look at it does: all of an empty
 * GiB takes a second or two, in which, were it one piece, no other thread could change its mappings, or even
 * begin. */
bool ram_view_populate(struct ram_view *view);
void ram_view_close(struct ram_view *view); /* also when it was never opened */

/* --- source --- */
/* The next message: u64 number of the first page, then a u64 hash for each following page, little-endian.
 * `*page` is where to look from, and moves on; *ret_size 8 says that all pages were told (the first number is
 * then the RAM's end). */
void compare_hashes(struct ram_view *ram, uint64_t *page, uint8_t ret[COMPARE_MESSAGE], size_t *ret_size);

/* --- destination --- */
struct compare {
    struct ram_view ram;
    uint64_t next;    /* all pages below are done */
    uint64_t *differ; /* numbers of pages, ascending */
    size_t count, room;
};

void compare_done(struct compare *compare);
/* Replaces a page below ram.pages. */
int compare_write(struct compare *compare, uint64_t page, const uint8_t bytes[COMPARE_PAGE], struct err *err);
/* Takes a message of compare_hashes. -EPROTO when it is out of order or out of range. *ret_end: it was the
 * last one. */
int compare_check(struct compare *compare, const uint8_t *message, size_t size, bool *ret_end,
                  struct err *err);
