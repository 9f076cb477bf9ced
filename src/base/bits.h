/* SPDX-License-Identifier: Apache-2.0
 *
 * bits: sets of numbers, a bit for each, lowest first.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

static inline bool get_bit(const uint8_t *bits, uint64_t number)
{
    return bits[number / 8] >> number % 8 & 1;
}

static inline void set_bit(uint8_t *bits, uint64_t number, bool on)
{
    bits[number / 8] = (uint8_t)((bits[number / 8] & ~(1U << number % 8)) | (unsigned)on << number % 8);
}
