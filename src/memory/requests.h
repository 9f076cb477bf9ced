/* SPDX-License-Identifier: Apache-2.0
 *
 * requests: reads along on the return path, on which the destination's QEMU asks the source's for pages of
 * RAM. Pure, incremental: it may come in pieces of any size. Where it makes no sense nothing more is read
 * (`deaf`).
 *
 *   be16 type, be16 length, data      (QEMU's migration/migration.h, the same from 7.2 to 10.0)
 *   REQ_PAGES_ID  be64 start, be32 length, u8 and name of the block
 *   REQ_PAGES     be64 start, be32 length          of the block of the newest one with a name
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define REQUESTS_HEAD 4U
#define REQUESTS_MOST 512U /* bytes of data */

struct requests {
    uint8_t name[256]; /* u8 length, name of the block that is looked at, and a 0 */
    uint64_t pages;    /* of it */
    uint8_t message[REQUESTS_HEAD + REQUESTS_MOST];
    size_t size;
    bool ours; /* the newest request with a name was for this block */
    bool deaf;
};

struct page_request {
    bool ours;          /* of the block; else the rest says nothing */
    uint64_t page, end; /* the first, and the one behind the last; none of them outside of the block */
};

void requests_init(struct requests *requests, const char *block, uint64_t size);
/* The next request; *data and *size move on. false: all of it was read. */
bool requests_next(struct requests *requests, const uint8_t **data, size_t *size, struct page_request *ret);

/* A request with a name, for a block whose name is short. Returns its size. */
#define REQUESTS_ROOM 64U
size_t requests_make(uint8_t ret[REQUESTS_ROOM], const char *block, uint64_t start, uint32_t size);
