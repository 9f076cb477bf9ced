/* SPDX-License-Identifier: Apache-2.0
 *
 * The headers of map, intent record and record of missing blocks: a file may have been cut, damaged, or made
 * by another version.
 */
#include "disk/genmap.h"
#include "disk/intent.h"
#include "disk/missing.h"

#include "base/endian.h"

// clang-format off
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>
// clang-format on
#include <errno.h>
#include <string.h>
#include <xxhash.h>

static const struct genmap_header map = {
    .map = {{1}}, .disk = {{2}}, .former = {{3}}, .size = 8192 + 512, .current = 9};
static const struct missing_header missing = {
    .map = {{1}}, .boot = {{4}}, .handover = {{5}}, .size = 8192 + 512, .generation = 7};
static const struct intent_header intent = {.map = {{1}}, .boot = {{4}}, .size = 3 << 20, .clean = true};

static void test_a_map_header_comes_back_as_it_was(void **state)
{
    uint8_t bytes[GENMAP_HEADER_SIZE];
    struct genmap_header back = {0};
    genmap_header_encode(&map, bytes);
    assert_int_equal(genmap_header_decode(bytes, sizeof bytes, &back, NULL), 0);
    assert_true(id_equal(&map.map, &back.map) && id_equal(&map.disk, &back.disk) &&
                id_equal(&map.former, &back.former));
    assert_int_equal(back.size, map.size);
    assert_int_equal(back.current, map.current);
}

static void test_an_intent_header_comes_back_as_it_was(void **state)
{
    uint8_t bytes[INTENT_HEADER_SIZE];
    struct intent_header back = {0};
    intent_header_encode(&intent, bytes);
    assert_int_equal(intent_header_decode(bytes, sizeof bytes, &back, NULL), 0);
    assert_true(id_equal(&intent.map, &back.map) && id_equal(&intent.boot, &back.boot));
    assert_int_equal(back.size, intent.size);
    assert_true(back.clean);
}

static void expect_map(size_t offset, uint64_t value, size_t width, int error)
{
    uint8_t bytes[GENMAP_HEADER_SIZE];
    struct genmap_header back = {.size = 77};
    genmap_header_encode(&map, bytes);
    value = htole64(value);
    memcpy(bytes + offset, &value, width);
    put_le64(bytes + 88, XXH3_64bits(bytes, 88));
    assert_int_equal(genmap_header_decode(bytes, sizeof bytes, &back, NULL), error);
    assert_int_equal(back.size, 77);
}

static void test_a_map_header_that_contradicts_itself_is_refused(void **state)
{
    expect_map(0, 'X', 1, -EBADMSG);
    expect_map(8, 2, 4, -EPROTONOSUPPORT);
    expect_map(12, 512, 4, -EBADMSG);
    expect_map(64, 0, 8, -EBADMSG);
    expect_map(64, 8192 + 511, 8, -EBADMSG);
    expect_map(64, UINT64_MAX - 511, 8, -EBADMSG);
    expect_map(72, 4, 8, -EBADMSG);
    expect_map(80, 512, 4, -EBADMSG);
    expect_map(84, UINT32_MAX, 4, -EBADMSG);
}

static void expect_intent(size_t offset, uint64_t value, size_t width, int error)
{
    uint8_t bytes[INTENT_HEADER_SIZE];
    struct intent_header back = {.size = 77};
    intent_header_encode(&intent, bytes);
    value = htole64(value);
    memcpy(bytes + offset, &value, width);
    put_le64(bytes + 72, XXH3_64bits(bytes, 72));
    assert_int_equal(intent_header_decode(bytes, sizeof bytes, &back, NULL), error);
    assert_int_equal(back.size, 77);
}

static void test_an_intent_header_that_contradicts_itself_is_refused(void **state)
{
    expect_intent(0, 'X', 1, -EBADMSG);
    expect_intent(8, 2, 4, -EPROTONOSUPPORT);
    expect_intent(12, 512, 4, -EBADMSG);
    expect_intent(48, 0, 8, -EBADMSG);
    expect_intent(48, UINT64_MAX - 511, 8, -EBADMSG);
    expect_intent(56, 4, 8, -EBADMSG);
    expect_intent(64, 4096, 4, -EBADMSG);
    expect_intent(68, 2, 4, -EBADMSG);
}

static void test_a_header_of_missing_blocks_comes_back_as_it_was(void **state)
{
    uint8_t bytes[MISSING_HEADER_SIZE];
    struct missing_header back = {0};
    missing_header_encode(&missing, bytes);
    assert_int_equal(missing_header_decode(bytes, sizeof bytes, &back, NULL), 0);
    assert_true(id_equal(&missing.map, &back.map) && id_equal(&missing.boot, &back.boot) &&
                id_equal(&missing.handover, &back.handover));
    assert_int_equal(back.size, missing.size);
    assert_int_equal(back.generation, missing.generation);
}

static void expect_missing(size_t offset, uint64_t value, size_t width, int error)
{
    uint8_t bytes[MISSING_HEADER_SIZE];
    struct missing_header back = {.size = 77};
    missing_header_encode(&missing, bytes);
    value = htole64(value);
    memcpy(bytes + offset, &value, width);
    put_le64(bytes + 88, XXH3_64bits(bytes, 88));
    assert_int_equal(missing_header_decode(bytes, sizeof bytes, &back, NULL), error);
    assert_int_equal(back.size, 77);
}

static void test_a_header_of_missing_blocks_that_contradicts_itself_is_refused(void **state)
{
    expect_missing(0, 'X', 1, -EBADMSG);
    expect_missing(8, 2, 4, -EPROTONOSUPPORT);
    expect_missing(12, 512, 4, -EBADMSG);
    expect_missing(64, 0, 8, -EBADMSG);
    expect_missing(64, 8192 + 511, 8, -EBADMSG);
    expect_missing(64, UINT64_MAX - 511, 8, -EBADMSG);
    expect_missing(72, 4, 8, -EBADMSG);
    expect_missing(80, 512, 4, -EBADMSG);
    expect_missing(84, 0, 4, -EBADMSG);
    expect_missing(84, UINT32_MAX, 4, -EBADMSG);
}

static void test_flipped_bits_and_cuts_are_noticed(void **state)
{
    uint8_t m[GENMAP_HEADER_SIZE], i[INTENT_HEADER_SIZE], n[MISSING_HEADER_SIZE];
    struct genmap_header map_back;
    struct intent_header intent_back;
    struct missing_header missing_back;
    missing_header_encode(&missing, n);
    genmap_header_encode(&map, m);
    intent_header_encode(&intent, i);
    for (size_t at = 0; at < 96; at++) {
        m[at] ^= 1;
        assert_true(genmap_header_decode(m, sizeof m, &map_back, NULL) < 0);
        m[at] ^= 1;
        assert_int_equal(genmap_header_decode(m, at, &map_back, NULL), -EBADMSG);
        n[at] ^= 1;
        assert_true(missing_header_decode(n, sizeof n, &missing_back, NULL) < 0);
        n[at] ^= 1;
        assert_int_equal(missing_header_decode(n, at, &missing_back, NULL), -EBADMSG);
    }
    for (size_t at = 0; at < 80; at++) {
        i[at] ^= 1;
        assert_true(intent_header_decode(i, sizeof i, &intent_back, NULL) < 0);
        i[at] ^= 1;
        assert_int_equal(intent_header_decode(i, at, &intent_back, NULL), -EBADMSG);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_map_header_comes_back_as_it_was),
        cmocka_unit_test(test_an_intent_header_comes_back_as_it_was),
        cmocka_unit_test(test_a_map_header_that_contradicts_itself_is_refused),
        cmocka_unit_test(test_an_intent_header_that_contradicts_itself_is_refused),
        cmocka_unit_test(test_a_header_of_missing_blocks_comes_back_as_it_was),
        cmocka_unit_test(test_a_header_of_missing_blocks_that_contradicts_itself_is_refused),
        cmocka_unit_test(test_flipped_bits_and_cuts_are_noticed),
    };
    return cmocka_run_group_tests_name("disk headers", tests, NULL, NULL);
}
