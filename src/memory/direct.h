/* SPDX-License-Identifier: Apache-2.0
 *
 * direct: the pages of a guest's memory that come before the switch go straight into its RAM, which is a
 * memfd that we hold too. QEMU gets the rest of its stream without them: it need not read and copy what
 * would pass through its socket, nor look whether the page is zero whose record says so. That look would
 * make the kernel allocate the page: what a guest never used stays unmade.
 *
 *   stream  --direct_take-->  pages of one RAM block  --pwritev-->  memfd
 *                             all else                --write---->  QEMU
 *
 * Only for a migration that QEMU loads before the guest runs: until then nothing but the stream changes its
 * RAM. One thread at a time. Whatever is not understood goes to QEMU as it is.
 */
#pragma once

#include "base/err.h"

#include <stddef.h>
#include <stdint.h>

struct direct;

/* Writes to QEMU; less than all only if it fails. */
typedef int direct_write_fn(void *arg, const void *data, size_t size, size_t *ret_written, struct err *err);

/* The block of that name with `size` bytes is the memfd `ram` (borrowed), which QEMU has set up. It must know
 * write(2): one of huge pages does not. */
int direct_new(const char *block, int ram, uint64_t size, direct_write_fn *write, void *arg,
               struct direct **ret, struct err *err);
/* Takes bytes of the stream; on return, what could be told apart is where it belongs. */
int direct_take(struct direct *direct, const void *data, size_t size, struct err *err);
/* Pages that were put into RAM; a page that came twice counts twice. */
uint64_t direct_pages(const struct direct *direct);
void direct_free(struct direct *direct);
