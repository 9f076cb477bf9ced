/* SPDX-License-Identifier: Apache-2.0
 *
 * endian: numbers at unaligned addresses. Disk formats and Orai's own wire are little-endian, NBD and
 * QEMU's stream big-endian.
 */
#pragma once

#include <endian.h>
#include <stdint.h>
#include <string.h>

#define ENDIAN_ACCESS(bits, order, prefix)                           \
    static inline uint##bits##_t get_##prefix##bits(const void *p)   \
    {                                                                \
        uint##bits##_t v;                                            \
        memcpy(&v, p, sizeof v);                                     \
        return order##bits##toh(v);                                  \
    }                                                                \
    static inline void put_##prefix##bits(void *p, uint##bits##_t v) \
    {                                                                \
        v = hto##order##bits(v);                                     \
        memcpy(p, &v, sizeof v);                                     \
    }

ENDIAN_ACCESS(16, le, le)
ENDIAN_ACCESS(32, le, le)
ENDIAN_ACCESS(64, le, le)
ENDIAN_ACCESS(16, be, be)
ENDIAN_ACCESS(32, be, be)
ENDIAN_ACCESS(64, be, be)
#undef ENDIAN_ACCESS
