/* SPDX-License-Identifier: Apache-2.0
 *
 * qstream: reads along in the migration stream (version 3) that one QEMU sends to another, and says which of
 * its bytes are pages of RAM. It changes nothing: its pieces, one after the other, are the stream.
 *
 *   header, configuration [subsections]
 *   START ram { MEM_SIZE blocks, EOS } footer        elements, with commands between them
 *   PART ram { ZERO | PAGE | XBZRLE ..., EOS } footer, ...
 *   END ram { ... } footer
 *   FULL device ...                                  of no known length: here the reading ends
 *
 * It never fails. Where it meets what it does not know, the rest of the stream is plain bytes, and `strange`
 * says why. All facts are from QEMU's migration/migration.h, savevm.c and ram.c, the same from 7.2 to 10.0.
 * Pure, incremental: the stream may come in pieces of any size. Pages lie in the caller's buffer, but for one
 * that is cut by the buffer's end.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define QSTREAM_PAGE_SIZE 4096U
#define QSTREAM_ZERO_RECORD 9U                       /* be64 page's address and flags, u8 0 */
#define QSTREAM_PAGE_RECORD (8U + QSTREAM_PAGE_SIZE) /* the same be64, then the page */

/* The flags of the records that are told apart: those that go on in the RAM block of the one before. */
#define QSTREAM_CONTINUE 0x20U
#define QSTREAM_ZERO_FLAGS 0x22U
#define QSTREAM_PAGE_FLAGS 0x28U

enum qstream_kind {
    QSTREAM_BYTES, /* anything */
    QSTREAM_ZERO,  /* a whole QSTREAM_ZERO_RECORD */
    QSTREAM_PAGE   /* a whole QSTREAM_PAGE_RECORD */
};

struct qstream_piece {
    enum qstream_kind kind;
    const uint8_t *data; /* valid until the next call */
    size_t size;
};

struct qstream {
    int state;           /* enum state, in qstream.c */
    uint64_t skip;       /* bytes that are passed unread */
    uint64_t ram_left;   /* of the list of RAM blocks, bytes of RAM */
    uint32_t ram;        /* section id */
    bool has_ram;        /* its START has come */
    bool footer_due;     /* the section's last record has come, its footer has not */
    uint8_t block[256];  /* u8 length and name of the RAM block that records go on in */
    bool named;          /* the newest record named it, and has not been reported; */
    uint64_t named_page; /* its page */
    const char *strange; /* why the rest is not read; NULL: nothing is wrong */
    size_t held, taken;  /* bytes of `hold`; those of them that have been given out */
    uint8_t hold[QSTREAM_PAGE_RECORD];
};

void qstream_init(struct qstream *stream);
/* Of a stream that goes on after it was broken in post-copy (resync.h): no header comes, and RAM has the
 * section that it had. */
void qstream_init_resumed(struct qstream *stream, uint32_t ram);
/* The next piece; *data and *size move on. false: all of it was read, and what can only be understood with
 * bytes that are still to come is kept. */
bool qstream_next(struct qstream *stream, const uint8_t **data, size_t *size, struct qstream_piece *ret);
/* Nothing will come: what was kept, if anything. */
bool qstream_end(struct qstream *stream, struct qstream_piece *ret);
/* What may be put between the pieces so far and the next: a record (of whatever block, if the next record is
 * given its own name), or a whole section of RAM's. */
bool qstream_at_record(const struct qstream *stream);
bool qstream_at_element(const struct qstream *stream);
/* The piece was the first that is not read, or one after it. */
bool qstream_is_over(const struct qstream *stream);
/* The next piece is an entry of the list of RAM blocks: u8 length and name, be64 bytes that are used. */
bool qstream_at_block(const struct qstream *stream);
/* Such a section's bytes before and behind its records; their number. */
#define QSTREAM_PART_SIZE 5U
#define QSTREAM_PART_END_SIZE 13U
size_t qstream_make_part(const struct qstream *stream, uint8_t ret[QSTREAM_PART_SIZE]);
size_t qstream_make_part_end(const struct qstream *stream, uint8_t ret[QSTREAM_PART_END_SIZE]);
/* Of a record: the number of its page in its RAM block. */
uint64_t qstream_page(const struct qstream_piece *record);
/* With this piece, the newest one, a page of `block` is whole, also of a record that passes as bytes since it
 * names its block. Once for each. */
bool qstream_page_ends(struct qstream *stream, const struct qstream_piece *piece, uint64_t *ret_page);
