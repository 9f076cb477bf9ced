/* SPDX-License-Identifier: Apache-2.0
 *
 * image_copy: the two passes over an image's bytes. Holes stay holes; long runs of zeroes become holes.
 */
#pragma once

#include "base/err.h"
#include "base/id.h"

#include <stdatomic.h>
#include <stdint.h>

struct image_pass {
    int from;      /* file or block device */
    int to;        /* -1: only hash */
    uint64_t size; /* bytes of the result; beyond the end of `from` they are zero */
    atomic_bool *cancel;
    void (*tick)(void *arg, uint64_t done); /* now and then */
    void *arg;
};

/* Reads `from`, writes what is not zero to the empty file `to`, hashes all. -ECANCELED. */
int image_pass(const struct image_pass *pass, uint8_t ret_hash[HASH_SIZE], struct err *err);
