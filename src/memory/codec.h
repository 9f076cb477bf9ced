/* SPDX-License-Identifier: Apache-2.0
 *
 * codec: QEMU's migration stream, said shorter. The encoder (source) takes bytes of the stream and makes
 * packets; the decoder (destination) makes the same bytes of them. Pages that the destination has in its
 * checkpoint are named, zero pages are counted, the rest is compressed when there is time for it. Whatever
 * the bytes are, what comes out is what went in: qstream.h only says where there is something to gain.
 *
 *   0 size u32    bytes of the stream that it stands for
 *   4 data u32    bytes of data           8 orders u32   bytes of orders
 *  12 flags u32   1: what follows is one zstd frame
 *  16 data, orders
 *
 * Orders are LEB128 numbers. The first of each is count << 2 and what to do:
 *
 *   0 BYTES                 `count` bytes of data
 *   1 ZEROS    page         `count` records of zero pages
 *   2 PAGES    page         `count` records of pages, with contents from data
 *   3 KNOWN    page, from   `count` records of pages, with contents from the checkpoint
 *
 * `page` is the number of the first one, less that of the page behind the last record (0 at the packet's
 * beginning); `from` is the first one's number in the checkpoint, less `page`; both signed (zigzag). Packets
 * do not depend on each other. Pure: no I/O but through `codec_page_fn`.
 */
#pragma once

#include "base/err.h"
#include "memory/known.h"

#define CODEC_MAX_INPUT (UINT32_C(128) << 10)  /* of one call of the encoder */
#define CODEC_MAX_STREAM (UINT32_C(256) << 10) /* of one packet, decoded */
#define CODEC_HEADER 16U

struct codec_count {
    uint64_t zero_pages, known_pages;
    uint64_t before_zstd, after_zstd; /* bytes that were compressed, and what they became */
};

struct encoder;

/* `known` is borrowed; NULL: nothing is. */
int encoder_new(struct known *known, struct encoder **ret, struct err *err);
void encoder_free(struct encoder *encoder);
/* From here on nothing is known. */
void encoder_forget(struct encoder *encoder);
/* A page of the stream has come whole; its block, u8 length and name. */
typedef void codec_came_fn(void *arg, const uint8_t *block, uint64_t page);
/* Before the first byte: `came` hears of each page. */
void encoder_watch(struct encoder *encoder, codec_came_fn *came, void *arg);
/* Takes up to CODEC_MAX_INPUT bytes; what came of them, valid until the next call. *ret_size 0: nothing, it
 * waits for more. */
const uint8_t *encoder_take(struct encoder *encoder, const void *data, size_t size, bool compress,
                            size_t *ret_size);
/* The stream has ended: what it was still waiting with. */
const uint8_t *encoder_end(struct encoder *encoder, size_t *ret_size);
/* Bytes of the stream that a packet stands for. */
size_t packet_stands_for(const uint8_t *packet);
/* Why the stream passes without being understood; NULL: it does not. */
const char *encoder_strange(const struct encoder *encoder);
const struct codec_count *encoder_count(const struct encoder *encoder);

/* Reads page `page` of the checkpoint; negative: there is none, or it is not what it was. */
typedef int codec_page_fn(void *arg, uint64_t page, uint8_t ret[KNOWN_PAGE], struct err *err);

struct decoder;

/* `page` NULL: there is no checkpoint. */
int decoder_new(codec_page_fn *page, void *arg, struct decoder **ret, struct err *err);
void decoder_free(struct decoder *decoder);
/* The packet may be anything: -EPROTO. *ret is valid until the next call. */
int decoder_take(struct decoder *decoder, const uint8_t *packet, size_t size, const uint8_t **ret,
                 size_t *ret_size, struct err *err);
