/* SPDX-License-Identifier: Apache-2.0
 *
 * checkpoint: the RAM that a VM had when it left this host, in a sparse file of the VM's folder, so that most
 * of it need not be sent when the VM comes back (Knauth and Fetzer, VeCycle, Middleware 2015).
 *
 *   memory.checkpoint   0 magic "ORAICKPT"   8 version u32, 1   12 reserved u32, 0   16 VM's id
 *                      32 epoch u64, in which it left           40 bytes of RAM u64
 *                    4096 the RAM; holes where its pages are zero
 *
 * Little-endian. Nothing is synced and nothing in it is trusted: a checkpoint that is old, cut or damaged
 * costs bytes, never a page. The destination tells hashes of what it reads at the beginning of a move, and
 * what it reads again when the source names a page must have that hash. Mode 0600: it holds all secrets that
 * the guest held.
 */
#pragma once

#include "base/err.h"
#include "base/id.h"
#include "memory/known.h"

#include <stdbool.h>
#include <stdint.h>

/* What it is about. */
struct checkpoint_head {
    struct id vm;
    uint64_t epoch, ram; /* bytes */
};

/* Writes the memfd `ram_fd` to the folder, in place of an older one, and takes its pages from it on the way,
 * so that not twice as much memory is needed: nothing may use it any more. -ENOSPC also when less than a
 * tenth of the file system would stay free. Fails without leaving one, nor an older one. */
int checkpoint_save(const char *folder, int ram_fd, const struct checkpoint_head *head, struct err *err);
/* Bytes that it takes; 0: there is none. */
uint64_t checkpoint_bytes(const char *folder);
void checkpoint_remove(const char *folder);

struct checkpoint;

/* -ENOENT: there is none; -EBADMSG: it is not one of this VM with that much RAM. */
int checkpoint_open(const char *folder, const struct id *vm, uint64_t ram, struct checkpoint **ret,
                    struct err *err);
/* Begins to hash its pages, on a thread of its own. */
int checkpoint_hash(struct checkpoint *checkpoint, uint64_t seed, struct err *err);
/* The next message of known.h; *ret_size 0: none now. false: there will be none. One thread at a time. */
bool checkpoint_tell(struct checkpoint *checkpoint, uint8_t ret[KNOWN_MESSAGE], size_t *ret_size);
/* Reads a page that was told (codec_page_fn, `arg` is the checkpoint). -EBADMSG: it has changed since;
 * -EPROTO: it was not told. */
int checkpoint_page(void *arg, uint64_t page, uint8_t ret[KNOWN_PAGE], struct err *err);
void checkpoint_close(struct checkpoint *checkpoint);
