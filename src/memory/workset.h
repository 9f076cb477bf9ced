/* SPDX-License-Identifier: Apache-2.0
 *
 * workset: the pages that a guest was the first to wait for when its memory followed it, in that order. What
 * it wanted first after one move it mostly wants first after the next (its kernel, the tables of its pages,
 * the programs that run), so they go before the rest then: the working set (P. Denning, "The working set
 * model for program behavior", CACM 1968), as far as faults show it.
 *
 *   memory.workset   0 magic "ORAIWSET"   8 version u32, 1   12 count u32   16 VM's id
 *                   32 bytes of RAM u64   40 XXH3-64 of the pages, its seed that of bytes 0 to 39
 *                   48 count x u32 page
 *
 * Little-endian. It travels with the guest (FRAME_WORKSET: the pages alone) and is only a hint: one that is
 * old, gone or damaged costs time, never a page, so nobody waits until it is durable. Threads: one at a time.
 */
#pragma once

#include "base/err.h"
#include "base/id.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define WORKSET_MOST 8192U /* pages, 32 MiB: what is older is forgotten */
#define WORKSET_MESSAGE ((size_t)4 * WORKSET_MOST)

struct workset;

/* Of a guest with `ram` bytes. */
int workset_new(uint64_t ram, struct workset **ret, struct err *err);
int workset_copy(const struct workset *workset, struct workset **ret, struct err *err);
void workset_free(struct workset *workset);
/* Behind the others. Nothing is done with one that is there, or is none of the guest's, or one too many. */
void workset_add(struct workset *workset, uint64_t page);
/* All of `more`, likewise. */
void workset_add_all(struct workset *workset, const struct workset *more);
size_t workset_count(const struct workset *workset);
uint64_t workset_page(const struct workset *workset, size_t index);

/* FRAME_WORKSET's payload. Returns its size. */
size_t workset_encode(const struct workset *workset, uint8_t ret[WORKSET_MESSAGE]);
/* Adds what a peer says. -EPROTO: it makes no sense, and nothing was added. */
int workset_decode(struct workset *workset, const uint8_t *payload, size_t size, struct err *err);

/* Writes it to the VM's folder, in place of an older one. */
int workset_save(const struct workset *workset, const char *folder, const struct id *vm, struct err *err);
/* Adds what is there. -ENOENT: nothing; -EBADMSG: it is not one of this VM with that much RAM. */
int workset_load(struct workset *workset, const char *folder, const struct id *vm, struct err *err);
