/* SPDX-License-Identifier: Apache-2.0
 *
 * The move protocol's frames: what one side encodes the other gets, and everything else is refused with
 * -EPROTO or -EBADMSG and leaves the outputs alone.
 */
// clang-format off
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
// clang-format on

#include "base/endian.h"
#include "base/macro.h"
#include "wire/frame.h"

#include <errno.h>
#include <string.h>
#include <xxhash.h>

#define BLOCK 4096u

/* --- headers -------------------------------------------------------------------------------------------- */

static const struct frame sample = {
    .type = FRAME_RUN,
    .length = 77,
    .vm = {{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}},
    .epoch = UINT64_C(0x0102030405060708),
};

static void encode_sample(uint8_t bytes[FRAME_HEADER_SIZE])
{
    frame_encode(&sample, bytes);
}

static void assert_refused(const uint8_t bytes[FRAME_HEADER_SIZE])
{
    struct frame frame = {.type = FRAME_PING, .length = 4711};
    struct err err = ERR_NONE;
    assert_int_equal(frame_decode(bytes, &frame, &err), -EPROTO);
    assert_int_equal(err.code, EPROTO);
    assert_int_equal(frame.type, FRAME_PING);
    assert_int_equal(frame.length, 4711);
}

static void test_a_header_comes_back(void **state)
{
    uint8_t bytes[FRAME_HEADER_SIZE];
    struct frame frame;
    encode_sample(bytes);
    assert_int_equal(frame_decode(bytes, &frame, NULL), 0);
    assert_int_equal(frame.type, sample.type);
    assert_int_equal(frame.length, sample.length);
    assert_true(id_equal(&frame.vm, &sample.vm));
    assert_int_equal(frame.epoch, sample.epoch);
}

static void test_the_header_has_the_documented_bytes(void **state)
{
    static const uint8_t expected[FRAME_HEADER_SIZE] = {
        'O', 'R', 'F', '1', FRAME_RUN, 0,  0,  0,  77, 0,  0,  0,  0, 0, 0, 0, 1, 2, 3, 4,
        5,   6,   7,   8,   9,         10, 11, 12, 13, 14, 15, 16, 8, 7, 6, 5, 4, 3, 2, 1};
    uint8_t bytes[FRAME_HEADER_SIZE];
    memset(bytes, 0xff, sizeof bytes);
    encode_sample(bytes);
    assert_memory_equal(bytes, expected, sizeof expected);
}

static void test_numbers_of_the_types_never_change(void **state)
{
    assert_int_equal(FRAME_HELLO, 1);
    assert_int_equal(FRAME_RUN, 11);
    assert_int_equal(FRAME_COMMIT, 19);
    assert_int_equal(FRAME_CANCEL, 24);
}

static void test_another_magic_is_refused(void **state)
{
    for (size_t i = 0; i < 4; i++) {
        uint8_t bytes[FRAME_HEADER_SIZE];
        encode_sample(bytes);
        bytes[i] ^= 0x20;
        assert_refused(bytes);
    }
}

static void test_unknown_types_are_refused(void **state)
{
    uint8_t bytes[FRAME_HEADER_SIZE];
    encode_sample(bytes);
    for (unsigned type = 0; type < 256; type++) {
        struct frame frame;
        bytes[4] = (uint8_t)type;
        if (type >= FRAME_HELLO && type < FRAME_TYPE_END)
            assert_int_equal(frame_decode(bytes, &frame, NULL), 0);
        else
            assert_refused(bytes);
    }
}

static void test_the_longest_payload_is_taken_and_a_longer_one_refused(void **state)
{
    uint8_t bytes[FRAME_HEADER_SIZE];
    struct frame frame;
    encode_sample(bytes);
    put_le32(bytes + 8, FRAME_MAX_PAYLOAD);
    assert_int_equal(frame_decode(bytes, &frame, NULL), 0);
    put_le32(bytes + 8, FRAME_MAX_PAYLOAD + 1);
    assert_refused(bytes);
    put_le32(bytes + 8, UINT32_MAX);
    assert_refused(bytes);
}

static void test_each_type_has_a_name(void **state)
{
    for (int type = FRAME_HELLO; type < FRAME_TYPE_END; type++) {
        const char *name = frame_type_name((enum frame_type)type);
        assert_non_null(name);
        assert_string_not_equal(name, "unknown");
    }
    assert_string_equal(frame_type_name((enum frame_type)0), "unknown");
    assert_string_equal(frame_type_name(FRAME_TYPE_END), "unknown");
}

/* --- runs ----------------------------------------------------------------------------------------------- */

struct run_message {
    size_t size;
    uint8_t bytes[WIRE_RUN_SIZE + (WIRE_RUN_MAX_BLOCKS + 1) * BLOCK];
};

static struct run_message message;

static void make_run(uint32_t count, size_t data_size)
{
    uint8_t *data = message.bytes + WIRE_RUN_SIZE;
    for (size_t i = 0; i < data_size; i++)
        data[i] = (uint8_t)(i * 31 + i / BLOCK);
    struct wire_run run = {
        .disk = 3, .generation = 9, .block = 1000, .count = count, .checksum = XXH3_64bits(data, data_size)};
    wire_run_encode(&run, message.bytes);
    message.size = WIRE_RUN_SIZE + data_size;
}

static void make_zero_run(uint64_t block, uint32_t count)
{
    wire_run_encode(&(struct wire_run){.flags = WIRE_RUN_ZERO, .block = block, .count = count},
                    message.bytes);
    message.size = WIRE_RUN_SIZE;
}

static int decode_run(struct wire_run *ret, const uint8_t **ret_data, size_t *ret_size)
{
    /* On the heap and of the exact size, so that the address sanitizer sees a read behind the end. */
    static uint8_t *copy;
    free(copy);
    copy = malloc(message.size);
    memcpy(copy, message.bytes, message.size);
    int r = wire_run_decode(copy, message.size, ret, ret_data, ret_size, NULL);
    if (r == 0 && *ret_data)
        assert_ptr_equal(*ret_data, copy + WIRE_RUN_SIZE);
    return r;
}

static void assert_run_refused(int expected)
{
    struct wire_run run = {.block = 4711};
    const uint8_t *data = message.bytes;
    size_t size = 4711;
    assert_int_equal(decode_run(&run, &data, &size), expected);
    assert_int_equal(run.block, 4711);
    assert_ptr_equal(data, message.bytes);
    assert_int_equal(size, 4711);
}

static void test_a_run_comes_back_with_its_data(void **state)
{
    struct wire_run run;
    const uint8_t *data;
    size_t size;
    make_run(2, 2 * BLOCK);
    assert_int_equal(decode_run(&run, &data, &size), 0);
    assert_int_equal(run.disk, 3);
    assert_int_equal(run.generation, 9);
    assert_int_equal(run.block, 1000);
    assert_int_equal(run.count, 2);
    assert_int_equal(size, 2 * BLOCK);
    assert_memory_equal(data, message.bytes + WIRE_RUN_SIZE, size);
}

static void test_a_short_last_block_is_taken(void **state)
{
    struct wire_run run;
    const uint8_t *data;
    size_t size;
    make_run(2, BLOCK + 512);
    assert_int_equal(decode_run(&run, &data, &size), 0);
    assert_int_equal(size, BLOCK + 512);
    make_run(1, 1);
    assert_int_equal(decode_run(&run, &data, &size), 0);
    assert_int_equal(size, 1);
}

static void test_data_must_be_as_long_as_its_blocks(void **state)
{
    make_run(1, 0);
    assert_run_refused(-EPROTO);
    make_run(2, BLOCK); /* that is one block */
    assert_run_refused(-EPROTO);
    make_run(2, 2 * BLOCK + 1);
    assert_run_refused(-EPROTO);
}

static void test_damaged_data_is_noticed(void **state)
{
    make_run(2, 2 * BLOCK);
    message.bytes[WIRE_RUN_SIZE + 5000] ^= 1;
    assert_run_refused(-EBADMSG);
}

static void test_a_damaged_checksum_is_noticed(void **state)
{
    make_run(1, BLOCK);
    message.bytes[24] ^= 1;
    assert_run_refused(-EBADMSG);
}

static void test_more_blocks_than_a_run_may_have_are_refused(void **state)
{
    struct wire_run run;
    const uint8_t *data;
    size_t size;
    make_run(WIRE_RUN_MAX_BLOCKS, WIRE_RUN_MAX_BLOCKS * BLOCK);
    assert_int_equal(decode_run(&run, &data, &size), 0);
    make_run(WIRE_RUN_MAX_BLOCKS + 1, (WIRE_RUN_MAX_BLOCKS + 1) * BLOCK);
    assert_run_refused(-EPROTO);
}

static void test_an_empty_run_is_refused(void **state)
{
    make_run(0, 0);
    assert_run_refused(-EPROTO);
    make_zero_run(0, 0);
    assert_run_refused(-EPROTO);
}

static void test_a_zero_run_has_no_data(void **state)
{
    struct wire_run run;
    const uint8_t *data = message.bytes;
    size_t size = 1;
    make_zero_run(7, UINT32_MAX);
    assert_int_equal(decode_run(&run, &data, &size), 0);
    assert_null(data);
    assert_int_equal(size, 0);
    assert_int_equal(run.count, UINT32_MAX);
    message.size++;
    assert_run_refused(-EPROTO);
}

static void test_a_run_whose_end_overflows_is_refused(void **state)
{
    make_zero_run(UINT64_MAX, 1);
    assert_run_refused(-EPROTO);
    make_zero_run(UINT64_MAX / BLOCK, 1);
    assert_run_refused(-EPROTO);
    make_zero_run(0, UINT32_MAX);
    message.bytes[15] = 0xff; /* the block's highest byte */
    assert_run_refused(-EPROTO);
}

static void test_unknown_flags_of_a_run_are_refused(void **state)
{
    make_run(1, BLOCK);
    message.bytes[2] |= 2;
    assert_run_refused(-EPROTO);
    make_run(1, BLOCK);
    message.bytes[3] |= 0x80;
    assert_run_refused(-EPROTO);
}

static void test_every_truncated_run_is_refused(void **state)
{
    make_run(1, 1);
    for (size_t size = 0; size < WIRE_RUN_SIZE + 1; size++) {
        message.size = size;
        assert_run_refused(-EPROTO);
    }
}

/* --- marks and claims ----------------------------------------------------------------------------------- */

static void test_a_mark_comes_back(void **state)
{
    uint8_t bytes[WIRE_MARK_SIZE];
    struct wire_mark mark;
    wire_mark_encode(&(struct wire_mark){.sequence = 0xfedcba98}, bytes);
    assert_int_equal(wire_mark_decode(bytes, sizeof bytes, &mark, NULL), 0);
    assert_int_equal(mark.sequence, 0xfedcba98);
}

static void test_a_mark_of_another_size_is_refused(void **state)
{
    uint8_t bytes[WIRE_MARK_SIZE + 1] = {0};
    struct wire_mark mark = {.sequence = 5};
    for (size_t size = 0; size <= sizeof bytes; size++)
        if (size != WIRE_MARK_SIZE)
            assert_int_equal(wire_mark_decode(bytes, size, &mark, NULL), -EPROTO);
    assert_int_equal(mark.sequence, 5);
}

static void test_a_claim_comes_back_with_its_lineage(void **state)
{
    uint8_t bytes[WIRE_CLAIM_SIZE + 5] = {0};
    const struct wire_claim sent = {
        .disk = 9, .flags = WIRE_CLAIM_FINAL | WIRE_CLAIM_LAST, .sequence = 70000};
    struct wire_claim claim;
    const uint8_t *lineage;
    size_t size;
    wire_claim_encode(&sent, bytes);
    assert_int_equal(wire_claim_decode(bytes, sizeof bytes, &claim, &lineage, &size, NULL), 0);
    assert_int_equal(claim.disk, 9);
    assert_int_equal(claim.flags, sent.flags);
    assert_int_equal(claim.sequence, 70000);
    assert_ptr_equal(lineage, bytes + WIRE_CLAIM_SIZE);
    assert_int_equal(size, 5);
}

static void test_a_truncated_claim_or_one_with_unknown_flags_is_refused(void **state)
{
    uint8_t bytes[WIRE_CLAIM_SIZE] = {0};
    struct wire_claim claim = {.disk = 1};
    const uint8_t *lineage = NULL;
    size_t size = 4711;
    for (size_t cut = 0; cut < WIRE_CLAIM_SIZE; cut++)
        assert_int_equal(wire_claim_decode(bytes, cut, &claim, &lineage, &size, NULL), -EPROTO);
    bytes[2] = 8;
    assert_int_equal(wire_claim_decode(bytes, sizeof bytes, &claim, &lineage, &size, NULL), -EPROTO);
    assert_int_equal(claim.disk, 1);
    assert_null(lineage);
    assert_int_equal(size, 4711);
}

static const struct wire_fetch some_fetch = {
    .disk = 3, .above = 7, .upto = 9, .count = 256, .block = UINT64_C(1) << 40, .serial = 4711};

static void test_a_fetch_comes_back(void **state)
{
    uint8_t bytes[WIRE_FETCH_SIZE];
    struct wire_fetch fetch;
    wire_fetch_encode(&some_fetch, bytes);
    assert_int_equal(wire_fetch_decode(bytes, sizeof bytes, &fetch, NULL), 0);
    assert_int_equal(fetch.disk, 3);
    assert_int_equal(fetch.above, 7);
    assert_int_equal(fetch.upto, 9);
    assert_int_equal(fetch.count, 256);
    assert_int_equal(fetch.block, UINT64_C(1) << 40);
    assert_int_equal(fetch.serial, 4711);
}

static void test_a_fetch_that_makes_no_sense_is_refused(void **state)
{
    uint8_t bytes[WIRE_FETCH_SIZE];
    struct wire_fetch fetch = {.disk = 1};
    const struct wire_fetch strange[] = {
        {.count = 0},
        {.count = WIRE_FETCH_MAX_BLOCKS + 1},
        {.count = 1, .block = UINT64_MAX},
        {.count = 1, .block = UINT64_MAX / 4096},
    };
    for (size_t i = 0; i < sizeof strange / sizeof *strange; i++) {
        wire_fetch_encode(&strange[i], bytes);
        assert_int_equal(wire_fetch_decode(bytes, sizeof bytes, &fetch, NULL), -EPROTO);
    }
    wire_fetch_encode(&some_fetch, bytes);
    assert_int_equal(wire_fetch_decode(bytes, sizeof bytes - 1, &fetch, NULL), -EPROTO);
    bytes[2] = 1;
    assert_int_equal(wire_fetch_decode(bytes, sizeof bytes, &fetch, NULL), -EPROTO);
    assert_int_equal(fetch.disk, 1);
}

static void test_sums_and_their_answer_come_back(void **state)
{
    uint8_t bytes[WIRE_SUMS_SIZE + 3 * WIRE_SUM_SIZE] = {0}, answer[WIRE_DIFFER_SIZE];
    const uint8_t(*each)[WIRE_SUM_SIZE];
    struct wire_sums sums;
    struct wire_differ differ;
    wire_sums_encode(
        &(struct wire_sums){
            .disk = 3, .generation = 7, .count = 3, .block = UINT64_C(1) << 40, .ticket = 4711},
        bytes);
    bytes[sizeof bytes - 1] = 9;
    assert_int_equal(wire_sums_decode(bytes, sizeof bytes, &sums, &each, NULL), 0);
    assert_int_equal(sums.disk, 3);
    assert_int_equal(sums.generation, 7);
    assert_int_equal(sums.count, 3);
    assert_int_equal(sums.block, UINT64_C(1) << 40);
    assert_int_equal(sums.ticket, 4711);
    assert_int_equal(each[2][WIRE_SUM_SIZE - 1], 9);

    wire_differ_encode(&(struct wire_differ){.ticket = 4711, .bits = UINT64_C(1) << 63 | 5}, answer);
    assert_int_equal(wire_differ_decode(answer, sizeof answer, &differ, NULL), 0);
    assert_int_equal(differ.ticket, 4711);
    assert_true(differ.bits == (UINT64_C(1) << 63 | 5));
    assert_int_equal(wire_differ_decode(answer, sizeof answer - 1, &differ, NULL), -EPROTO);
    answer[4] = 1;
    assert_int_equal(wire_differ_decode(answer, sizeof answer, &differ, NULL), -EPROTO);
}

static void test_a_standstill_comes_back_as_it_was(void **state)
{
    (void)state;
    struct wire_clock clock;
    uint8_t bytes[WIRE_CLOCK_SIZE + 1];
    wire_clock_encode(&(struct wire_clock){.stood = 123456789012, .round_trip = 40000}, bytes);
    assert_int_equal(wire_clock_decode(bytes, WIRE_CLOCK_SIZE, &clock, NULL), 0);
    assert_int_equal(clock.stood, 123456789012);
    assert_int_equal(clock.round_trip, 40000);
    assert_int_equal(wire_clock_decode(bytes, WIRE_CLOCK_SIZE - 1, &clock, NULL), -EPROTO);
    assert_int_equal(wire_clock_decode(bytes, sizeof bytes, &clock, NULL), -EPROTO);
    for (int at = 7; at < WIRE_CLOCK_SIZE; at += 8) { /* longer than a day */
        wire_clock_encode(&(struct wire_clock){0}, bytes);
        bytes[at] = 0x80;
        assert_int_equal(wire_clock_decode(bytes, WIRE_CLOCK_SIZE, &clock, NULL), -EPROTO);
    }
}

static void test_what_is_newer_comes_back_as_it_was(void **state)
{
    uint8_t bytes[WIRE_NEWER_SIZE + 3] = {0};
    struct wire_newer newer;
    const uint8_t *bits;
    size_t size;
    wire_newer_encode(&(struct wire_newer){.disk = 3, .above = 4711}, bytes);
    assert_int_equal(wire_newer_decode(bytes, WIRE_NEWER_SIZE, &newer, &bits, &size, NULL), 0);
    assert_int_equal(newer.disk, 3);
    assert_int_equal(newer.above, 4711);
    assert_int_equal(size, 0);
    assert_int_equal(wire_newer_decode(bytes, sizeof bytes, &newer, &bits, &size, NULL), 0);
    assert_int_equal(size, 3);
    assert_ptr_equal(bits, bytes + WIRE_NEWER_SIZE);
    assert_int_equal(wire_newer_decode(bytes, WIRE_NEWER_SIZE - 1, &newer, &bits, &size, NULL), -EPROTO);
    bytes[2] = 1;
    assert_int_equal(wire_newer_decode(bytes, sizeof bytes, &newer, &bits, &size, NULL), -EPROTO);
}

static void test_sums_that_make_no_sense_are_refused(void **state)
{
    uint8_t bytes[WIRE_SUMS_SIZE + (WIRE_RUN_MAX_BLOCKS + 1) * WIRE_SUM_SIZE] = {0};
    const uint8_t(*each)[WIRE_SUM_SIZE] = NULL;
    struct wire_sums sums = {.disk = 1};
    const struct wire_sums strange[] = {
        {.count = 0},
        {.count = WIRE_RUN_MAX_BLOCKS + 1},
        {.count = 1, .block = UINT64_MAX},
        {.count = 1, .block = UINT64_MAX / 4096},
    };
    for (size_t i = 0; i < sizeof strange / sizeof *strange; i++) {
        wire_sums_encode(&strange[i], bytes);
        size_t size = WIRE_SUMS_SIZE + strange[i].count * WIRE_SUM_SIZE;
        assert_int_equal(wire_sums_decode(bytes, size, &sums, &each, NULL), -EPROTO);
    }
    wire_sums_encode(&(struct wire_sums){.count = 2}, bytes);
    for (size_t size = 0; size <= WIRE_SUMS_SIZE + 3 * WIRE_SUM_SIZE; size++)
        if (size != WIRE_SUMS_SIZE + 2 * WIRE_SUM_SIZE)
            assert_int_equal(wire_sums_decode(bytes, size, &sums, &each, NULL), -EPROTO);
    bytes[2] = 1;
    assert_int_equal(wire_sums_decode(bytes, WIRE_SUMS_SIZE + 2 * WIRE_SUM_SIZE, &sums, &each, NULL),
                     -EPROTO);
    assert_int_equal(sums.disk, 1);
    assert_null(each);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_header_comes_back),
        cmocka_unit_test(test_sums_and_their_answer_come_back),
        cmocka_unit_test(test_what_is_newer_comes_back_as_it_was),
        cmocka_unit_test(test_a_standstill_comes_back_as_it_was),
        cmocka_unit_test(test_sums_that_make_no_sense_are_refused),
        cmocka_unit_test(test_the_header_has_the_documented_bytes),
        cmocka_unit_test(test_numbers_of_the_types_never_change),
        cmocka_unit_test(test_another_magic_is_refused),
        cmocka_unit_test(test_unknown_types_are_refused),
        cmocka_unit_test(test_the_longest_payload_is_taken_and_a_longer_one_refused),
        cmocka_unit_test(test_each_type_has_a_name),
        cmocka_unit_test(test_a_run_comes_back_with_its_data),
        cmocka_unit_test(test_a_short_last_block_is_taken),
        cmocka_unit_test(test_data_must_be_as_long_as_its_blocks),
        cmocka_unit_test(test_damaged_data_is_noticed),
        cmocka_unit_test(test_a_damaged_checksum_is_noticed),
        cmocka_unit_test(test_more_blocks_than_a_run_may_have_are_refused),
        cmocka_unit_test(test_an_empty_run_is_refused),
        cmocka_unit_test(test_a_zero_run_has_no_data),
        cmocka_unit_test(test_a_run_whose_end_overflows_is_refused),
        cmocka_unit_test(test_unknown_flags_of_a_run_are_refused),
        cmocka_unit_test(test_every_truncated_run_is_refused),
        cmocka_unit_test(test_a_mark_comes_back),
        cmocka_unit_test(test_a_mark_of_another_size_is_refused),
        cmocka_unit_test(test_a_claim_comes_back_with_its_lineage),
        cmocka_unit_test(test_a_fetch_comes_back),
        cmocka_unit_test(test_a_fetch_that_makes_no_sense_is_refused),
        cmocka_unit_test(test_a_truncated_claim_or_one_with_unknown_flags_is_refused),
    };
    return cmocka_run_group_tests_name("frame", tests, NULL, NULL);
}
