/* SPDX-License-Identifier: Apache-2.0
 *
 * resync: two QEMUs in post-copy whose stream has broken go on. The destination's says which pages it has,
 * the source's sends the others; nothing of what was on its way is missed.
 *
 *   destination   RECV_BITMAP name...  -->  QEMU     its bitmaps, for each block of RAM
 *                 RESUME               -->  QEMU     RESUME_ACK: it waits for pages again
 *   source        QEMU  -->  RECV_BITMAP name...     is answered with these bitmaps
 *                 QEMU  -->  RESUME                  is acknowledged: it sends pages again
 *
 * QEMU's own way is one conversation between the two. It is held as two, each by an orai-vm with the QEMU of
 * its host, for while a QEMU holds it, it must not break: version 7 then crashes at the destination, and
 * waits for ever at the source (both mended in 8.2). Like this it takes a millisecond and does not hang on
 * the link.
 *
 * In between the destination's QEMU gets no page, so that what it said stays true.
 */
#pragma once

#include "base/err.h"

#include <stddef.h>
#include <stdint.h>

#define RESYNC_NAME 256U /* u8 length and name */
#define RESYNC_MAX_BLOCKS 1024U
#define RESYNC_MAX_MAP (UINT64_C(1) << 30) /* bytes: 32 TiB of RAM */

/* QEMU's words about one block of RAM: be64 bytes of the bitmap, the bitmap, be64 of a mark. */
struct resync_map {
    uint8_t name[RESYNC_NAME];
    uint8_t *bytes; /* NULL: not known yet */
    size_t size, got;
};

struct resync {
    struct resync_map *maps;
    size_t count;
};

/* `names`: each with its u8 length, one behind the other. -EPROTO: that is not what it is. */
int resync_init(struct resync *resync, const uint8_t *names, size_t size, struct err *err);
/* As if a destination had all of the block's `bytes`, in pages of 4 KiB. */
int resync_add_whole(struct resync *resync, const char *name, uint64_t bytes, struct err *err);
void resync_done(struct resync *resync);

/* On a new connection to QEMU, until `deadline` (clock_now() units). *ret_said, to be freed, is what else the
 * destination's said on it: the first requests for pages. */
int resync_destination(int fd, struct resync *resync, int64_t deadline, uint8_t **ret_said,
                       size_t *ret_said_size, struct err *err);
int resync_source(int fd, const struct resync *resync, int64_t deadline, struct err *err);
/* After that the source's has nothing to send, and hears that all is well. */
int resync_end_source(int fd, int64_t deadline, struct err *err);

/* From one host to the other, in pieces: u64 size, u64 offset, name, bytes from there on. The first piece of
 * a block makes it known. */
#define RESYNC_PIECE (256U << 10)
#define RESYNC_HEAD_MAX (16U + RESYNC_NAME)
/* Of map `index`, from *offset on, which moves; the piece's head into `head`, *ret_data to what follows it.
 * Returns the head's size, 0 at the map's end. */
size_t resync_put(const struct resync *resync, size_t index, size_t *offset, uint8_t head[RESYNC_HEAD_MAX],
                  const uint8_t **ret_data, size_t *ret_size);
int resync_take(struct resync *resync, const uint8_t *payload, size_t size, struct err *err);
