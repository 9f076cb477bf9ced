/* SPDX-License-Identifier: Apache-2.0
 *
 * What tests share that need a migration stream like QEMU's: its elements, one after the other in a buffer.
 */
#pragma once

#include "base/endian.h"
#include "base/macro.h"
#include "memory/qstream.h"

#include <stdint.h>
#include <string.h>

#define RAM_SECTION 2U

struct maker {
    size_t size;
    uint8_t bytes[1 << 20];
};

static inline void put(struct maker *maker, const void *data, size_t size)
{
    assert(size <= sizeof maker->bytes - maker->size);
    memcpy(maker->bytes + maker->size, data, size);
    maker->size += size;
}

static inline void put_u8(struct maker *maker, uint8_t value)
{
    put(maker, &value, 1);
}

static inline void put_u32(struct maker *maker, uint32_t value)
{
    uint8_t bytes[4];
    put_be32(bytes, value);
    put(maker, bytes, sizeof bytes);
}

static inline void put_u64(struct maker *maker, uint64_t value)
{
    uint8_t bytes[8];
    put_be64(bytes, value);
    put(maker, bytes, sizeof bytes);
}

static inline void put_name(struct maker *maker, const char *name)
{
    put_u8(maker, (uint8_t)strlen(name));
    put(maker, name, strlen(name));
}

static inline void put_eos(struct maker *maker)
{
    put_u64(maker, 0x10);
    put_u8(maker, 0x7e);
    put_u32(maker, RAM_SECTION);
}

/* Header, configuration, RAM's START with one block of `pages`. */
static inline void put_beginning(struct maker *maker, uint64_t pages)
{
    put(maker, "QEVM\0\0\0\3", 8);
    put_u8(maker, 7);
    put_u32(maker, 10);
    put(maker, "pc-q35-7.2", 10);
    put_u8(maker, 1);
    put_u32(maker, RAM_SECTION);
    put_name(maker, "ram");
    put_u32(maker, 0);
    put_u32(maker, 4);
    put_u64(maker, pages * QSTREAM_PAGE_SIZE | 4);
    put_name(maker, "ram");
    put_u64(maker, pages * QSTREAM_PAGE_SIZE);
    put_eos(maker);
}

static inline void put_part(struct maker *maker)
{
    put_u8(maker, 2);
    put_u32(maker, RAM_SECTION);
}

static inline void put_zero(struct maker *maker, uint64_t page)
{
    put_u64(maker, page * QSTREAM_PAGE_SIZE | QSTREAM_ZERO_FLAGS);
    put_u8(maker, 0);
}

/* Bytes that say which page it is, and do not compress to nothing. */
static inline void fill_page(uint8_t page[QSTREAM_PAGE_SIZE], uint64_t number)
{
    uint64_t x = number * 2654435761U + 1;
    for (size_t i = 0; i < QSTREAM_PAGE_SIZE; i += 8) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        put_le64(page + i, x);
    }
}

static inline void put_page(struct maker *maker, uint64_t page, uint64_t content)
{
    uint8_t bytes[QSTREAM_PAGE_SIZE];
    fill_page(bytes, content);
    put_u64(maker, page * QSTREAM_PAGE_SIZE | QSTREAM_PAGE_FLAGS);
    put(maker, bytes, sizeof bytes);
}

/* RAM's END, a device, the end. */
static inline void put_end(struct maker *maker)
{
    put_u8(maker, 3);
    put_u32(maker, RAM_SECTION);
    put_eos(maker);
    put_u8(maker, 4);
    put_u32(maker, 7);
    put(maker, "a device's state, of no known length", 36);
    put_u8(maker, 0);
}
