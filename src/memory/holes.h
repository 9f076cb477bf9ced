/* SPDX-License-Identifier: Apache-2.0
 *
 * holes: keeps zero pages away from a QEMU that takes a guest's memory after the switch. QEMU would put each
 * of them into the guest's RAM, one system call after the other, and all of them would get allocated. Nobody
 * needs them: what no page was put into reads as zeroes once the migration is over. Until then whoever
 * touches such a page waits, so QEMU asks for it, and is answered from here.
 *
 *   stream         --holes_take-->  without the zero pages of one RAM block  --write-->  QEMU
 *   return path    <--------------  holes_back reads along                   <---------  QEMU
 *
 * Only for a migration in which no page goes before the switch: there RAM begins as one hole
 * (QEMU's postcopy_ram_incoming_init). Whatever of either stream is not understood passes as it is, and then
 * no zero page is kept any more.
 *
 * Two threads: one for each direction.
 */
#pragma once

#include "base/err.h"
#include "memory/faults.h"
#include "memory/workset.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct holes;

/* Writes to QEMU. *ret_written counts also when it fails. -EINTR: later. */
typedef int holes_write_fn(void *arg, const void *data, size_t size, size_t *ret_written, struct err *err);

/* Of the block of that name with `size` bytes. */
int holes_new(const char *block, uint64_t size, holes_write_fn *write, void *arg, struct holes **ret,
              struct err *err);
/* Before the first byte: it is one that goes on after it was broken (resync.h). */
void holes_goes_on(struct holes *holes, uint32_t ram_section);
/* What a stream that goes on after this one has to be told: the section of RAM, and the blocks' names, each
 * with its u8 length, of `ret_size` bytes, to be freed. NULL: not known (yet). */
uint8_t *holes_blocks(struct holes *holes, size_t *ret_size, uint32_t *ret_section);
/* Takes bytes of the stream. All are taken, whatever is returned: when `write` says -EINTR, what it did not
 * write is kept for the next call. */
int holes_take(struct holes *holes, const void *data, size_t size, struct err *err);
/* Looks at bytes of the return path, in order, and writes what holes_take could not (perhaps again in vain).
 * An error is one of `write`. */
int holes_back(struct holes *holes, const void *data, size_t size, struct err *err);
/* Zero pages that QEMU does not have now. */
uint64_t holes_kept(struct holes *holes);
/* How long what QEMU asked for took to come, until it was written to QEMU. false: it cannot be said now. */
bool holes_faults(struct holes *holes, struct faults *ret);
/* Adds what QEMU asked for, in the order in which it first did. */
void holes_asked(struct holes *holes, struct workset *workset);
void holes_free(struct holes *holes);
