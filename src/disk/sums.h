/* SPDX-License-Identifier: Apache-2.0
 *
 * sums: what a block holds, in 16 bytes, so that two hosts can find out what they both have without sending
 * it. Unlike a comparison that only reports (digest.h), a block that is believed to be there is not sent: two
 * blocks with one sum would be a damaged disk. So it is a real keyed hash, BLAKE2b (RFC 7693) with a key that
 * is made anew for each move: nobody can prepare two blocks beforehand, and by accident it does not happen.
 */
#pragma once

#include "base/err.h"

#include <stddef.h>
#include <stdint.h>

#define SUMS_KEY 32U
#define SUMS_SIZE 16U

struct sums;

/* Copies the key. */
int sums_new(const uint8_t key[SUMS_KEY], struct sums **ret, struct err *err);
void sums_free(struct sums *sums); /* NULL is allowed */
/* One sum for each block of `data`, the last of which may be short. Any thread. */
int sums_make(const struct sums *sums, const void *data, size_t size, uint8_t (*ret)[SUMS_SIZE],
              struct err *err);
