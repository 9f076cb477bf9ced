/* SPDX-License-Identifier: Apache-2.0
 *
 * What goes into the encoder comes out of the decoder; what is known, zero or compressible makes it shorter;
 * and what a hostile source may send is refused.
 */
// clang-format off
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
// clang-format on

#include "memory/codec.h"
#include "stream_maker.h"

#include <errno.h>

#define PAGES 128U
#define SEED 42U

static struct maker maker;
static uint8_t checkpoint[PAGES][KNOWN_PAGE];

static int read_page(void *arg, uint64_t page, uint8_t ret[KNOWN_PAGE], struct err *err)
{
    if (page >= PAGES)
        return err_set(err, EPROTO, "no such page");
    memcpy(ret, checkpoint[page], KNOWN_PAGE);
    return 0;
}

static void tell(struct known *known, uint64_t page, uint64_t content)
{
    uint8_t message[8 + KNOWN_HASH];
    fill_page(checkpoint[page], content);
    put_le64(message, page);
    known_hash(SEED, checkpoint[page], message + 8);
    assert_int_equal(known_add(known, message, sizeof message, NULL), 0);
}

/* Through encoder and decoder in pieces of `cut`; returns the packets' bytes. */
static size_t round_trip(struct known *known, const uint8_t *bytes, size_t size, size_t cut, bool compress,
                         struct codec_count *ret)
{
    struct encoder *encoder;
    struct decoder *decoder;
    size_t out = 0, wire = 0;
    assert_int_equal(encoder_new(known, &encoder, NULL), 0);
    assert_int_equal(decoder_new(read_page, NULL, &decoder, NULL), 0);
    for (size_t at = 0; at <= size; at += cut) {
        const uint8_t *back;
        size_t length, count;
        const uint8_t *packet = encoder_take(encoder, bytes + at, MIN(cut, size - at), compress, &length);
        for (int i = 0; i < 2; i++) {
            if (length) {
                assert_int_equal(decoder_take(decoder, packet, length, &back, &count, NULL), 0);
                assert_true(count <= size - out);
                assert_memory_equal(back, bytes + out, count);
                out += count;
                wire += length;
            }
            if (at + cut <= size || i == 1)
                break;
            packet = encoder_end(encoder, &length);
        }
    }
    assert_int_equal(out, size);
    *ret = *encoder_count(encoder);
    encoder_free(encoder);
    decoder_free(decoder);
    return wire;
}

static void a_stream(uint64_t zeros, uint64_t pages)
{
    maker.size = 0;
    put_beginning(&maker, PAGES);
    put_part(&maker);
    for (uint64_t i = 0; i < zeros; i++)
        put_zero(&maker, i);
    for (uint64_t i = 0; i < pages; i++)
        put_page(&maker, zeros + i, i);
    put_eos(&maker);
    put_end(&maker);
}

static void test_zero_pages_cost_next_to_nothing(void **state)
{
    struct codec_count count;
    a_stream(5000, 0);
    size_t wire = round_trip(NULL, maker.bytes, maker.size, CODEC_MAX_INPUT, false, &count);
    assert_int_equal(count.zero_pages, 5000);
    assert_true(wire < 300);
}

static void test_known_pages_are_named_wherever_they_lie(void **state)
{
    struct codec_count count;
    struct known *known;
    assert_int_equal(known_new(PAGES, SEED, &known, NULL), 0);
    for (uint64_t i = 0; i < 30; i++)
        tell(known, i < 20 ? i : i + 50, i);
    a_stream(0, 40);
    size_t wire = round_trip(known, maker.bytes, maker.size, 10000, false, &count);
    assert_int_equal(count.known_pages, 30);
    assert_in_range(wire, 10 * 4096, 10 * 4096 + 800);
    known_free(known);
}

static void test_what_does_not_shrink_goes_as_it_is(void **state)
{
    struct codec_count count;
    a_stream(0, 20);
    size_t wire = round_trip(NULL, maker.bytes, maker.size, CODEC_MAX_INPUT, true, &count);
    assert_in_range(wire, 20 * 4096, maker.size + 100);
    assert_true(count.before_zstd > 0 && count.after_zstd <= count.before_zstd + 100);
    round_trip(NULL, maker.bytes, maker.size, 2000, true, &count);
    assert_true(count.before_zstd < maker.size / 4); /* it was not tried again each time */
    maker.size = 0;
    put_beginning(&maker, PAGES);
    put_part(&maker);
    for (uint64_t i = 0; i < 20; i++)
        put_page(&maker, i, 7); /* twenty times the same */
    assert_true(round_trip(NULL, maker.bytes, maker.size, CODEC_MAX_INPUT, true, &count) < 3 * 4096);
}

/* Any bytes at all, and streams with bytes changed, in pieces of any size. */
static void test_whatever_goes_in_comes_out(void **state)
{
    struct codec_count count;
    struct known *known;
    assert_int_equal(known_new(PAGES, SEED, &known, NULL), 0);
    for (uint64_t i = 0; i < 10; i++)
        tell(known, i, i);
    srandom(1);
    for (int round = 0; round < 200; round++) {
        a_stream((uint64_t)random() % 50, (uint64_t)random() % 30);
        for (int change = round % 5; change > 0; change--)
            maker.bytes[(size_t)random() % maker.size] ^= (uint8_t)random();
        if (round % 20 == 0)
            for (size_t i = 0; i < maker.size; i++)
                maker.bytes[i] = (uint8_t)random();
        size_t cut = 1 + (size_t)random() % (round % 3 ? CODEC_MAX_INPUT - 1 : 20);
        round_trip(known, maker.bytes, maker.size - (size_t)random() % 20, cut, round % 2, &count);
    }
    known_free(known);
}

/* --- hostile packets --- */

static int take(const void *body, uint32_t size, uint32_t data, uint32_t orders, uint32_t flags)
{
    uint8_t packet[CODEC_HEADER + 64] = {0}, *bytes = packet;
    struct decoder *decoder;
    const uint8_t *ret;
    size_t count;
    put_le32(bytes, size);
    put_le32(bytes + 4, data);
    put_le32(bytes + 8, orders);
    put_le32(bytes + 12, flags);
    size_t length = MIN(data + orders, 64U);
    memcpy(packet + CODEC_HEADER, body, length);
    assert_int_equal(decoder_new(read_page, NULL, &decoder, NULL), 0);
    int r = decoder_take(decoder, packet, CODEC_HEADER + length, &ret, &count, NULL);
    decoder_free(decoder);
    return r;
}

static void test_hostile_packets_are_refused(void **state)
{
    static const char body[64] = "ab\x08";
    assert_int_equal(take(body, 2, 2, 1, 0), 0); /* BYTES 2 */
    assert_int_equal(take(body, 3, 2, 1, 0), -EPROTO);
    assert_int_equal(take(body, 1, 2, 1, 0), -EPROTO);
    assert_int_equal(take(body, 2, 2, 1, 2), -EPROTO);
    assert_int_equal(take(body, 2, 2, 1, 1), -EPROTO); /* not zstd */
    assert_int_equal(take(body, CODEC_MAX_STREAM + 1, 2, 1, 0), -EPROTO);
    assert_int_equal(take(body, 2, UINT32_MAX, 1, 0), -EPROTO);
    assert_int_equal(take(body, 2, UINT32_MAX, UINT32_MAX, 1), -EPROTO);
    assert_int_equal(take("ab\x0c", 2, 2, 1, 0), -EPROTO);                   /* BYTES 3 */
    assert_int_equal(take("\x05\x00", 9, 0, 2, 0), 0);                       /* ZEROS 1 */
    assert_int_equal(take("\x05", 9, 0, 1, 0), -EPROTO);                     /* without a page */
    assert_int_equal(take("\xff\xff\xff\xff\x7d\x00", 9, 0, 6, 0), -EPROTO); /* very many */
    assert_int_equal(take("\x06\x00", 4104, 0, 2, 0), -EPROTO);              /* a page without data */
    assert_int_equal(take("\x07\x00\x02", 4104, 0, 3, 0), 0);                /* page 1 of the checkpoint */
    assert_int_equal(take("\x07\x00\xff\xff\x7f", 4104, 0, 5, 0), -EPROTO);
    assert_int_equal(take("\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", 9, 0, 11, 0), -EPROTO);
    assert_int_equal(take("", 0, 0, 0, 0), 0);
}

static void test_a_page_of_a_checkpoint_that_is_not_here_is_refused(void **state)
{
    struct decoder *decoder;
    const uint8_t *ret;
    size_t count;
    uint8_t packet[CODEC_HEADER + 3] = {8, 16, [8] = 3, [CODEC_HEADER] = 7, 0, 0};
    assert_int_equal(decoder_new(NULL, NULL, &decoder, NULL), 0);
    assert_int_equal(decoder_take(decoder, packet, sizeof packet, &ret, &count, NULL), -EPROTO);
    decoder_free(decoder);
}

/* --- what is told --- */

static int add(struct known *known, uint64_t first, size_t size)
{
    static uint8_t message[KNOWN_MESSAGE + 64];
    memset(message, 0x5a, sizeof message);
    put_le64(message, first);
    return known_add(known, message, size, NULL);
}

static void test_hostile_lists_are_refused(void **state)
{
    struct known *known;
    assert_int_equal(known_new(PAGES, SEED, &known, NULL), 0);
    assert_int_equal(add(known, 0, 0), -EPROTO);
    assert_int_equal(add(known, 0, 8), -EPROTO);
    assert_int_equal(add(known, 0, 8 + 15), -EPROTO);
    assert_int_equal(add(known, PAGES, 8 + 16), -EPROTO);
    assert_int_equal(add(known, UINT64_MAX, 8 + 16), -EPROTO);
    assert_int_equal(add(known, PAGES - 1, 8 + 32), -EPROTO);
    assert_int_equal(add(known, 0, KNOWN_MESSAGE + 16), -EPROTO);
    assert_int_equal(known_count(known), 0);
    assert_int_equal(add(known, 0, 8 + 16), 0);
    assert_int_equal(add(known, 0, 8 + 16), -EPROTO);
    assert_int_equal(known_count(known), 1);
    known_free(known);
    assert_int_equal(known_new(UINT64_MAX / 4, SEED, &known, NULL), -ENOMEM);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_zero_pages_cost_next_to_nothing),
        cmocka_unit_test(test_known_pages_are_named_wherever_they_lie),
        cmocka_unit_test(test_what_does_not_shrink_goes_as_it_is),
        cmocka_unit_test(test_whatever_goes_in_comes_out),
        cmocka_unit_test(test_hostile_packets_are_refused),
        cmocka_unit_test(test_a_page_of_a_checkpoint_that_is_not_here_is_refused),
        cmocka_unit_test(test_hostile_lists_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
