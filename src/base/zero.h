/* SPDX-License-Identifier: Apache-2.0
 *
 * zero: is there nothing but zeroes? Most data differs within its first bytes; the rest is compared with
 * itself, one step apart, at memcmp's speed.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

static inline bool is_zero(const void *data, size_t size)
{
    const uint8_t *bytes = data;
    size_t head = size < 16 ? size : 16;
    for (size_t i = 0; i < head; i++)
        if (bytes[i])
            return false;
    return size <= head || memcmp(bytes, bytes + head, size - head) == 0;
}
