/* SPDX-License-Identifier: Apache-2.0
 *
 * known: pages that the destination has in its checkpoint (memory/checkpoint.h), by their content, so that
 * the source can name a page instead of sending it. The destination tells their hashes:
 *
 *   0 first page u64   8 n x 16 bytes: XXH3-128 (canonical) of the pages from there on, none of them zero
 *
 * The hashes are seeded with a number that the source has made up for this move: what a guest leaves in its
 * memory today cannot be made to collide with it. Of 2^24 pages two different ones collide by accident with a
 * chance of 2^-81. One thread may add while another finds.
 */
#pragma once

#include "base/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define KNOWN_PAGE 4096U
#define KNOWN_HASH 16U
#define KNOWN_SEED 8U
#define KNOWN_BATCH 1024U /* pages per message */
#define KNOWN_MESSAGE (8 + KNOWN_HASH * (size_t)KNOWN_BATCH)

struct known;

void known_hash(uint64_t seed, const void *page, uint8_t ret[KNOWN_HASH]);

/* Of a guest with `pages` pages of RAM. */
int known_new(uint64_t pages, uint64_t seed, struct known **ret, struct err *err);
void known_free(struct known *known);
/* A message. -EPROTO: pages that the RAM does not have, or that were told before. */
int known_add(struct known *known, const uint8_t *message, size_t size, struct err *err);
/* The checkpoint's page with this content; `hint` itself if it has it. */
bool known_find(struct known *known, const void *page, uint64_t hint, uint64_t *ret);
/* How many were told. */
uint64_t known_count(struct known *known);
