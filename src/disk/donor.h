/* SPDX-License-Identifier: Apache-2.0
 *
 * donor: an image that lies where a copy of a disk is about to be built, and that has no history in common
 * with it: brought there by hand, or a copy whose lineage was lost. It is put aside as IMAGE.donor; the copy
 * is built from nothing, as always, and what is found in the donor (sums.h) is written to it instead of being
 * sent. So nothing that a copy claims ever rests on what the donor was.
 *
 * What the new copy durably has is punched out of it: both together need little more room than one. It stays
 * when a move ends early, and the next try goes on with both.
 */
#pragma once

#include "disk/disk.h"
#include "disk/sums.h"

#include <stdbool.h>

#define DONOR_BLOCKS 64U /* at most so many are looked for at once */

struct donor;

/* Is there one, or what could become one? A block device cannot. */
bool donor_possible(const char *image);
/* The room that one from an earlier try takes; 0: there is none. */
uint64_t donor_bytes(const char *image);
/* Makes room where the copy will be built. An image becomes the donor, unless there is one from an earlier
 * try: then it was only begun, and goes. */
int donor_put_aside(const char *image, struct err *err);
/* -ENOENT when there is none. */
int donor_open(const char *image, struct donor **ret, struct err *err);
void donor_close(struct donor *donor); /* NULL is allowed */
/* Removes it. */
void donor_remove(const char *image);

/* Which of the `count` blocks (`size` bytes) from `block` on are not the ones that `wanted` describes: bit n
 * of *ret for block + n. `data` gets what the donor holds there. Any thread. */
int donor_look(const struct donor *donor, const struct sums *sums, uint64_t block, unsigned count,
               size_t size, const uint8_t (*wanted)[SUMS_SIZE], void *data, uint64_t *ret, struct err *err);
/* The blocks below `end` are needed no more. */
void donor_punch(const struct donor *donor, uint64_t end);
