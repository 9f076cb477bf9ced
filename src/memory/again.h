/* SPDX-License-Identifier: Apache-2.0
 *
 * again: which pages of a guest came more than once. While memory goes over before the switch QEMU sends a
 * page once more when the guest has written to it: those are of its working set (memory/workset.h) whether
 * anybody ever waited for them or not. Threads: any.
 */
#pragma once

#include "memory/workset.h"

struct again;

/* Of the RAM block `block` of `ram` bytes. */
int again_new(const char *block, uint64_t ram, struct again **ret, struct err *err);
void again_free(struct again *again);
/* A page of the stream has come whole; its block, u8 length and name. */
void again_came(struct again *again, const uint8_t *block, uint64_t page);
/* Adds those that came more than once, in that order. */
void again_add(struct again *again, struct workset *workset);
