/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The 4 KiB records that pulse writes to its disk. Pure: no I/O. check-records has the same rules in Python.
 *
 *     bytes   0..7     magic "ORAIPULS"
 *             8..15    number, from 1
 *            16..23    slot: where it belongs, in units of 4 KiB
 *            24..31    random id of the boot that wrote it
 *            32..39    FNV-1a of bytes 0..31
 *            40..4095  pattern (see pattern.h) with the number as seed
 *
 * All integers are little-endian. The sum need not cover the pattern: its every byte follows from the number.
 * Numbers are spread over the slots by a hash, and a newer record overwrites an older one of the same slot.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

enum { RECORD_SIZE = 4096 };

struct record {
    uint64_t magic, number, slot, boot;
    uint64_t sum;
    uint64_t filler[RECORD_SIZE / 8 - 5];
};

uint64_t record_slot(uint64_t number, uint64_t slots);
void record_make(struct record *record, uint64_t number, uint64_t slot, uint64_t boot);

/* Is it undamaged? Says nothing about which record it is. */
bool record_valid(const struct record *record);
