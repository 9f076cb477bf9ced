/* SPDX-License-Identifier: Apache-2.0 */
#include "memory/codec.h"

#include "base/endian.h"
#include "base/macro.h"
#include "memory/qstream.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <zstd.h>

#define LEVEL 1    /* 0.4 to 0.8 GB/s per core; the next ones gain little */
#define LITTLE 16U /* a packet that does not shrink by this part is not worth the time */
#define LONGEST_PAUSE 31U
#define FLAG_ZSTD 1U

enum order { ORDER_BYTES, ORDER_ZEROS, ORDER_PAGES, ORDER_KNOWN };

/* What the encoder holds of one packet: all input of a call, and what the reader had kept of the one before.
 * An order is shorter than twice what it stands for: 11 bytes at most for the 9 of a zero page. */
#define MAX_PACKET_STREAM (CODEC_MAX_INPUT + QSTREAM_PAGE_RECORD)
#define MAX_ORDERS (2 * MAX_PACKET_STREAM)
static_assert(MAX_PACKET_STREAM <= CODEC_MAX_STREAM, "the decoder takes what the encoder makes");

/* --- numbers -------------------------------------------------------------------------------------------- */

static uint8_t *put_number(uint8_t *at, uint64_t number)
{
    for (; number >= 0x80; number >>= 7)
        *at++ = (uint8_t)(number | 0x80);
    *at++ = (uint8_t)number;
    return at;
}

/* NULL: there is none. */
static const uint8_t *get_number(const uint8_t *at, const uint8_t *end, uint64_t *ret)
{
    uint64_t number = 0;
    for (unsigned shift = 0; at < end && shift < 64; shift += 7) {
        number |= (uint64_t)(*at & 0x7f) << shift;
        if (!(*at++ & 0x80)) {
            *ret = number;
            return at;
        }
    }
    return NULL;
}

static uint64_t zigzag(uint64_t difference)
{
    return difference << 1 ^ (difference >> 63 ? UINT64_MAX : 0);
}

static uint64_t unzigzag(uint64_t number)
{
    return number >> 1 ^ (number & 1 ? UINT64_MAX : 0);
}

/* --- encoder -------------------------------------------------------------------------------------------- */

struct encoder {
    struct qstream stream;
    struct known *known;
    codec_came_fn *came; /* NULL: nobody looks */
    void *came_arg;
    struct codec_count count;
    ZSTD_CCtx *zstd;
    unsigned pause,
        paused; /* packets that are not compressed after one that did not shrink; so many of them are over */

    /* The packet that is being made. */
    size_t size; /* bytes of the stream that it stands for */
    enum order order;
    uint64_t order_count, order_page,
        order_from; /* the newest order, not written yet; count 0: there is none */
    uint64_t next;  /* page behind the last order that was written */
    uint8_t *data_end, *orders_end;
    uint8_t orders[MAX_ORDERS];
    uint8_t packet[CODEC_HEADER + MAX_PACKET_STREAM + MAX_ORDERS];
    uint8_t packed[CODEC_HEADER + MAX_PACKET_STREAM];
};

int encoder_new(struct known *known, struct encoder **ret, struct err *err)
{
    struct encoder *encoder = malloc(sizeof *encoder);
    if (!encoder)
        return err_set(err, ENOMEM, "out of memory for QEMU's stream");
    memset(encoder, 0, offsetof(struct encoder, orders));
    qstream_init(&encoder->stream);
    encoder->known = known;
    encoder->zstd = ZSTD_createCCtx();
    if (!encoder->zstd) {
        encoder_free(encoder);
        return err_set(err, ENOMEM, "out of memory for QEMU's stream");
    }
    *ret = encoder;
    return 0;
}

void encoder_free(struct encoder *encoder)
{
    if (!encoder)
        return;
    ZSTD_freeCCtx(encoder->zstd);
    free(encoder);
}

void encoder_forget(struct encoder *encoder)
{
    encoder->known = NULL;
}

void encoder_watch(struct encoder *encoder, codec_came_fn *came, void *arg)
{
    encoder->came = came;
    encoder->came_arg = arg;
}

static void begin_packet(struct encoder *encoder)
{
    encoder->size = 0;
    encoder->order_count = encoder->next = 0;
    encoder->data_end = encoder->packet + CODEC_HEADER;
    encoder->orders_end = encoder->orders;
}

/* Writes the newest order down. */
static void end_order(struct encoder *encoder)
{
    if (encoder->order_count == 0)
        return;
    uint8_t *at = put_number(encoder->orders_end, encoder->order_count << 2 | encoder->order);
    if (encoder->order != ORDER_BYTES) {
        at = put_number(at, zigzag(encoder->order_page - encoder->next));
        encoder->next = encoder->order_page + encoder->order_count;
    }
    if (encoder->order == ORDER_KNOWN)
        at = put_number(at, zigzag(encoder->order_from - encoder->order_page));
    encoder->orders_end = at;
    encoder->order_count = 0;
}

/* One more record, or `count` bytes: in the newest order if it goes on with it. */
static void order(struct encoder *encoder, enum order what, uint64_t count, uint64_t page, uint64_t from)
{
    uint64_t past = encoder->order_count;
    bool goes_on = past && encoder->order == what &&
                   (what == ORDER_BYTES || encoder->order_page + past == page) &&
                   (what != ORDER_KNOWN || encoder->order_from + past == from);
    if (!goes_on) {
        end_order(encoder);
        encoder->order = what;
        encoder->order_page = page;
        encoder->order_from = from;
    }
    encoder->order_count += count;
}

static void put_data(struct encoder *encoder, const uint8_t *data, size_t size)
{
    memcpy(encoder->data_end, data, size);
    encoder->data_end += size;
}

static void put_page(struct encoder *encoder, const struct qstream_piece *piece)
{
    uint64_t page = qstream_page(piece), from;
    const uint8_t *content = piece->data + 8;
    if (encoder->known && known_find(encoder->known, content, page, &from)) {
        encoder->count.known_pages++;
        order(encoder, ORDER_KNOWN, 1, page, from);
        return;
    }
    order(encoder, ORDER_PAGES, 1, page, 0);
    put_data(encoder, content, QSTREAM_PAGE_SIZE);
}

static void put_piece(struct encoder *encoder, const struct qstream_piece *piece)
{
    encoder->size += piece->size;
    uint64_t page;
    if (encoder->came && qstream_page_ends(&encoder->stream, piece, &page))
        encoder->came(encoder->came_arg, encoder->stream.block, page);
    switch (piece->kind) {
    case QSTREAM_ZERO:
        encoder->count.zero_pages++;
        order(encoder, ORDER_ZEROS, 1, qstream_page(piece), 0);
        break;
    case QSTREAM_PAGE:
        put_page(encoder, piece);
        break;
    case QSTREAM_BYTES:
        order(encoder, ORDER_BYTES, piece->size, 0, 0);
        put_data(encoder, piece->data, piece->size);
        break;
    }
}

/* What did not shrink is mostly followed by more of it: the next try comes later each time. */
static bool is_worth_a_try(struct encoder *encoder)
{
    if (encoder->paused == encoder->pause)
        return true;
    encoder->paused++;
    return false;
}

static void learn(struct encoder *encoder, size_t before, size_t after)
{
    bool shrinks = before - MIN(after, before) >= before / LITTLE;
    encoder->pause = shrinks ? 0 : MIN(2 * encoder->pause + 1, LONGEST_PAUSE);
    encoder->paused = 0;
}

/* NULL: it does not get smaller. */
static const uint8_t *compress_body(struct encoder *encoder, size_t *size)
{
    size_t body = *size - CODEC_HEADER;
    if (body > MAX_PACKET_STREAM || !is_worth_a_try(encoder))
        return NULL;
    size_t packed = ZSTD_compressCCtx(encoder->zstd, encoder->packed + CODEC_HEADER, body,
                                      encoder->packet + CODEC_HEADER, body, LEVEL);
    packed = ZSTD_isError(packed) ? body : packed;
    learn(encoder, body, packed);
    encoder->count.before_zstd += body;
    encoder->count.after_zstd += packed;
    if (packed == body)
        return NULL;
    memcpy(encoder->packed, encoder->packet, CODEC_HEADER);
    put_le32(encoder->packed + 12, FLAG_ZSTD);
    *size = CODEC_HEADER + packed;
    return encoder->packed;
}

static const uint8_t *end_packet(struct encoder *encoder, bool compress, size_t *ret_size)
{
    *ret_size = 0;
    if (encoder->size == 0)
        return encoder->packet;
    end_order(encoder);
    size_t data = (size_t)(encoder->data_end - encoder->packet - CODEC_HEADER);
    size_t orders = (size_t)(encoder->orders_end - encoder->orders);
    memcpy(encoder->data_end, encoder->orders, orders);
    put_le32(encoder->packet, (uint32_t)encoder->size);
    put_le32(encoder->packet + 4, (uint32_t)data);
    put_le32(encoder->packet + 8, (uint32_t)orders);
    put_le32(encoder->packet + 12, 0);
    *ret_size = CODEC_HEADER + data + orders;
    const uint8_t *packed = compress ? compress_body(encoder, ret_size) : NULL;
    return packed ? packed : encoder->packet;
}

const uint8_t *encoder_take(struct encoder *encoder, const void *data, size_t size, bool compress,
                            size_t *ret_size)
{
    struct qstream_piece piece;
    const uint8_t *at = data;
    assert(size <= CODEC_MAX_INPUT);
    begin_packet(encoder);
    while (qstream_next(&encoder->stream, &at, &size, &piece))
        put_piece(encoder, &piece);
    return end_packet(encoder, compress, ret_size);
}

const uint8_t *encoder_end(struct encoder *encoder, size_t *ret_size)
{
    struct qstream_piece piece;
    begin_packet(encoder);
    if (qstream_end(&encoder->stream, &piece))
        put_piece(encoder, &piece);
    return end_packet(encoder, false, ret_size);
}

size_t packet_stands_for(const uint8_t *packet)
{
    return get_le32(packet);
}

const char *encoder_strange(const struct encoder *encoder)
{
    return encoder->stream.strange;
}

const struct codec_count *encoder_count(const struct encoder *encoder)
{
    return &encoder->count;
}

/* --- decoder -------------------------------------------------------------------------------------------- */

struct decoder {
    codec_page_fn *page;
    void *arg;
    ZSTD_DCtx *zstd;
    uint8_t body[CODEC_MAX_STREAM];
    uint8_t stream[CODEC_MAX_STREAM];
};

int decoder_new(codec_page_fn *page, void *arg, struct decoder **ret, struct err *err)
{
    struct decoder *decoder = malloc(sizeof *decoder);
    if (!decoder)
        return err_set(err, ENOMEM, "out of memory for QEMU's stream");
    decoder->page = page;
    decoder->arg = arg;
    decoder->zstd = ZSTD_createDCtx();
    if (!decoder->zstd) {
        decoder_free(decoder);
        return err_set(err, ENOMEM, "out of memory for QEMU's stream");
    }
    *ret = decoder;
    return 0;
}

void decoder_free(struct decoder *decoder)
{
    if (!decoder)
        return;
    ZSTD_freeDCtx(decoder->zstd);
    free(decoder);
}

static int nonsense(struct err *err)
{
    return err_set(err, EPROTO, "a packet of QEMU's stream makes no sense");
}

/* A packet under way: what is left of its parts. */
struct decoding {
    struct decoder *decoder;
    const uint8_t *data, *data_end, *orders, *orders_end;
    uint8_t *at, *end; /* of the stream */
    uint64_t next;
};

static int copy_data(struct decoding *decoding, size_t size, struct err *err)
{
    if ((size_t)(decoding->data_end - decoding->data) < size || (size_t)(decoding->end - decoding->at) < size)
        return nonsense(err);
    memcpy(decoding->at, decoding->data, size);
    decoding->at += size;
    decoding->data += size;
    return 0;
}

static int make_record(struct decoding *decoding, enum order what, uint64_t page, uint64_t from,
                       struct err *err)
{
    struct decoder *decoder = decoding->decoder;
    size_t size = what == ORDER_ZEROS ? QSTREAM_ZERO_RECORD : QSTREAM_PAGE_RECORD;
    if ((size_t)(decoding->end - decoding->at) < size)
        return nonsense(err);
    put_be64(decoding->at,
             page * QSTREAM_PAGE_SIZE | (what == ORDER_ZEROS ? QSTREAM_ZERO_FLAGS : QSTREAM_PAGE_FLAGS));
    decoding->at += 8;
    if (what == ORDER_PAGES)
        return copy_data(decoding, QSTREAM_PAGE_SIZE, err);
    if (what == ORDER_ZEROS)
        *decoding->at = 0;
    else if (!decoder->page)
        return err_set(err, EPROTO, "the source names a page of a checkpoint that is not here");
    int r = what == ORDER_KNOWN ? decoder->page(decoder->arg, from, decoding->at, err) : 0;
    decoding->at += size - 8;
    return r;
}

static int obey(struct decoding *decoding, struct err *err)
{
    uint64_t head, page = 0, from = 0;
    const uint8_t *end = decoding->orders_end, *at = get_number(decoding->orders, end, &head);
    if (!at)
        return nonsense(err);
    enum order what = (enum order)(head & 3);
    uint64_t count = head >> 2;
    if (what == ORDER_BYTES) {
        decoding->orders = at;
        return count > CODEC_MAX_STREAM ? nonsense(err) : copy_data(decoding, count, err);
    }
    if (!(at = get_number(at, end, &page)) || (what == ORDER_KNOWN && !(at = get_number(at, end, &from))))
        return nonsense(err);
    page = unzigzag(page) + decoding->next;
    from = unzigzag(from) + page;
    decoding->orders = at;
    decoding->next = page + count;
    int r = 0;
    for (uint64_t i = 0; r == 0 && i < count; i++)
        r = make_record(decoding, what, page + i, from + i, err);
    return r;
}

/* Its data and orders, one after the other. */
static int unpack(struct decoder *decoder, const uint8_t *packet, size_t size, const uint8_t **ret,
                  struct err *err)
{
    uint64_t body = (uint64_t)get_le32(packet + 4) + get_le32(packet + 8);
    if (get_le32(packet + 12) == 0) {
        *ret = packet + CODEC_HEADER;
        return body == size - CODEC_HEADER ? 0 : nonsense(err);
    }
    if (get_le32(packet + 12) != FLAG_ZSTD || body > CODEC_MAX_STREAM)
        return nonsense(err);
    *ret = decoder->body;
    return ZSTD_decompressDCtx(decoder->zstd, decoder->body, body, packet + CODEC_HEADER,
                               size - CODEC_HEADER) == body
               ? 0
               : nonsense(err);
}

int decoder_take(struct decoder *decoder, const uint8_t *packet, size_t size, const uint8_t **ret,
                 size_t *ret_size, struct err *err)
{
    const uint8_t *body = NULL;
    if (size < CODEC_HEADER || get_le32(packet) > CODEC_MAX_STREAM)
        return nonsense(err);
    int r = unpack(decoder, packet, size, &body, err);
    if (r < 0)
        return r;
    const uint8_t *orders = body + get_le32(packet + 4);
    struct decoding decoding = {.decoder = decoder,
                                .data = body,
                                .data_end = orders,
                                .orders = orders,
                                .orders_end = orders + get_le32(packet + 8),
                                .at = decoder->stream,
                                .end = decoder->stream + get_le32(packet)};
    while (r == 0 && decoding.orders < decoding.orders_end)
        r = obey(&decoding, err);
    if (r == 0 && (decoding.at != decoding.end || decoding.data != decoding.data_end))
        r = nonsense(err);
    if (r < 0)
        return r;
    *ret = decoder->stream;
    *ret_size = get_le32(packet);
    return 0;
}
