/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A buffer whose every byte is known: page p in version v holds the pattern with the seed (p, v). One thread
 * rewrites pages at the wished rate, each in its next version, and verifies all pages round and round. A page
 * that a move lost, swapped or left behind in an older version is found within seconds, counted once, said on
 * the serial line, and made anew.
 */
#pragma once

#include <stdint.h>

struct memory;

struct memory_status {
    uint64_t errors;
    uint64_t checks; /* pages verified */
};

/* Fills the buffer and starts the thread. Returns NULL when the guest has not that much memory. */
struct memory *memory_start(uint64_t size_mib, uint64_t dirty_mib);
void memory_set_dirty(struct memory *memory, uint64_t mib_per_second);

/* NULL for `memory` gives zeros. */
struct memory_status memory_status(const struct memory *memory);
