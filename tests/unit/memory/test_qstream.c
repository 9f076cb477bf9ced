/* SPDX-License-Identifier: Apache-2.0
 *
 * Which bytes of QEMU's stream are pages, however the stream is cut; and that what is not understood passes.
 */
// clang-format off
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
// clang-format on

#include "base/file.h"
#include "memory/qstream.h"
#include "stream_maker.h"

#include <stdio.h>

/* What came of a stream. */
struct seen {
    size_t bytes, zeros, pages;
    uint64_t last_page;
    const char *strange;
};

static void see(struct seen *seen, const struct qstream_piece *piece)
{
    seen->zeros += piece->kind == QSTREAM_ZERO;
    seen->pages += piece->kind == QSTREAM_PAGE;
    seen->bytes += piece->kind == QSTREAM_BYTES ? piece->size : 0;
    if (piece->kind != QSTREAM_BYTES)
        seen->last_page = qstream_page(piece);
    if (piece->kind == QSTREAM_PAGE)
        assert_int_equal(piece->size, QSTREAM_PAGE_RECORD);
}

/* In pieces of `cut` bytes; the pieces that come out are the stream. */
static struct seen read_stream(const uint8_t *bytes, size_t size, size_t cut)
{
    static struct qstream stream;
    struct seen seen = {0};
    struct qstream_piece piece;
    size_t out = 0;
    qstream_init(&stream);
    for (size_t at = 0; at < size; at += cut) {
        const uint8_t *data = bytes + at;
        size_t left = MIN(cut, size - at);
        while (qstream_next(&stream, &data, &left, &piece)) {
            assert_memory_equal(piece.data, bytes + out, piece.size);
            out += piece.size;
            see(&seen, &piece);
        }
        assert_int_equal(left, 0);
    }
    if (qstream_end(&stream, &piece)) {
        assert_memory_equal(piece.data, bytes + out, piece.size);
        out += piece.size;
        seen.bytes += piece.size;
    }
    assert_int_equal(out, size);
    seen.strange = stream.strange;
    return seen;
}

static struct maker maker;

static void a_stream_with_everything(void)
{
    maker.size = 0;
    put_beginning(&maker, 64);
    put_u8(&maker, 8); /* a command: PING */
    put(&maker, "\0\2\0\4\0\0\0\1", 8);
    put_part(&maker);
    put_u64(&maker, 3 * 4096 | 8); /* the first page names its block */
    put_name(&maker, "ram");
    maker.size += 4096;
    put_zero(&maker, 4);
    put_zero(&maker, 5);
    put_page(&maker, 6, 1);
    put_u64(&maker, 7 * 4096 | 0x60); /* XBZRLE */
    put(&maker, "\1\0\3abc", 6);
    put_u64(&maker, 0x200); /* MULTIFD_FLUSH */
    put_page(&maker, 9, 2);
    put_eos(&maker);
    put_end(&maker);
}

static void test_pages_are_found_however_it_is_cut(void **state)
{
    a_stream_with_everything();
    for (size_t cut = 1; cut < 300; cut += 7) {
        struct seen seen = read_stream(maker.bytes, maker.size, cut);
        assert_int_equal(seen.zeros, 2);
        assert_int_equal(seen.pages, 2);
        assert_int_equal(seen.last_page, 9);
        assert_null(seen.strange);
    }
    struct seen seen = read_stream(maker.bytes, maker.size, maker.size);
    assert_int_equal(seen.pages, 2);
}

static void test_a_stream_that_breaks_off_anywhere_is_whole_until_then(void **state)
{
    a_stream_with_everything();
    for (size_t size = 0; size <= maker.size; size += size < 200 ? 1 : 97)
        read_stream(maker.bytes, size, 50);
}

static void test_after_devices_nothing_is_a_page(void **state)
{
    maker.size = 0;
    put_beginning(&maker, 64);
    put_end(&maker);
    put_part(&maker); /* looks like one */
    put_page(&maker, 1, 1);
    assert_int_equal(read_stream(maker.bytes, maker.size, maker.size).pages, 0);
}

static void test_a_package_is_skipped_and_pages_come_after_it(void **state)
{
    maker.size = 0;
    put_beginning(&maker, 64);
    put_u8(&maker, 8);
    put(&maker, "\0\7\0\4\0\0\0\x9", 8);
    put(&maker, "\4anything", 9);
    put_part(&maker);
    put_page(&maker, 1, 1);
    put_eos(&maker);
    struct seen seen = read_stream(maker.bytes, maker.size, 100);
    assert_int_equal(seen.pages, 1);
    assert_null(seen.strange);
}

static void check_strange(const char *what)
{
    struct seen seen = read_stream(maker.bytes, maker.size, 33);
    assert_non_null(seen.strange);
    assert_non_null(strstr(seen.strange, what));
    assert_int_equal(seen.pages, 0);
}

static void test_what_is_unknown_passes_with_a_reason(void **state)
{
    maker.size = 0;
    put(&maker, "QEVM\0\0\0\4 and so on", 18);
    check_strange("version 3");

    maker.size = 0;
    put_beginning(&maker, 64);
    put_u8(&maker, 0x55);
    put_page(&maker, 1, 1);
    check_strange("unknown element");

    maker.size = 0;
    put_beginning(&maker, 64);
    put_part(&maker);
    put_u64(&maker, 0x1000 | 0xa0); /* RDMA's hook */
    put_page(&maker, 1, 1);
    check_strange("unknown record");

    maker.size = 0;
    put_beginning(&maker, 64);
    put_u8(&maker, 1);
    put_u32(&maker, 9);
    put_name(&maker, "dirty-bitmap");
    put_u32(&maker, 0);
    put_u32(&maker, 1);
    check_strange("other than RAM");

    maker.size = 0;
    put(&maker, "QEVM\0\0\0\3\7\0\0\0\1x", 14);
    put_u8(&maker, 5);
    put_name(&maker, "configuration/target-page-bits");
    put_u32(&maker, 1);
    put_u32(&maker, 16);
    check_strange("configuration");

    maker.size = 0;
    put(&maker, "QEVM\0\0\0\3\4", 9);
    put_u32(&maker, 1);
    check_strange("before RAM");
}

static void test_a_list_of_blocks_that_makes_no_sense_passes(void **state)
{
    maker.size = 0;
    put_beginning(&maker, 64);
    put_be64(maker.bytes + 55, UINT64_C(1) << 40); /* the block's length */
    check_strange("blocks");
}

static void test_it_may_end_its_records_with_a_fill_byte_that_is_not_zero(void **state)
{
    maker.size = 0;
    put_beginning(&maker, 64);
    put_part(&maker);
    put_u64(&maker, 4096 | QSTREAM_ZERO_FLAGS);
    put_u8(&maker, 0xcc);
    put_zero(&maker, 2);
    assert_int_equal(read_stream(maker.bytes, maker.size, maker.size).zeros, 1);
}

/* Recorded from QEMU, with most pages cut out. */
static void check_recording(const char *name, size_t zeros, size_t pages)
{
    char path[256];
    void *bytes;
    size_t size;
    snprintf(path, sizeof path, "%s/tests/fuzz/corpus/codec/%s", getenv("ORAI_SOURCE"), name);
    assert_int_equal(file_load(path, 1 << 20, &bytes, &size, NULL), 0);
    struct seen seen = read_stream(bytes, size, 1000);
    assert_null(seen.strange);
    assert_int_equal(seen.zeros, zeros);
    assert_int_equal(seen.pages, pages);
    free(bytes);
}

static void test_recordings_of_real_qemus(void **state)
{
    check_recording("precopy-7.2", 17, 3);
    check_recording("precopy-10.0-xbzrle", 27, 3);
    check_recording("postcopy-7.2", 21, 3);
    check_recording("postcopy-10.0", 12, 3);
}

/* Also those that pass as bytes, since they name their block: once each, when the last byte has come. */
static void test_every_page_is_reported_when_it_is_whole(void **state)
{
    (void)state;
    static struct qstream stream;
    static const uint8_t content[QSTREAM_PAGE_SIZE] = {1};
    maker.size = 0;
    put_beginning(&maker, 64);
    put_part(&maker);
    put_u64(&maker, 7 * QSTREAM_PAGE_SIZE | 8);
    put_name(&maker, "ram");
    put(&maker, content, sizeof content);
    size_t first_ends = maker.size;
    put_page(&maker, 8, 8);
    put_zero(&maker, 9);
    put_u64(&maker, 10 * QSTREAM_PAGE_SIZE | 2);
    put_name(&maker, "vga.vram");
    put_u8(&maker, 0);
    put_eos(&maker);
    for (size_t cut = 1; cut < 2 * QSTREAM_PAGE_SIZE; cut += 97) {
        uint64_t next = 7, page;
        struct qstream_piece piece;
        qstream_init(&stream);
        for (size_t at = 0; at < maker.size; at += cut) {
            const uint8_t *data = maker.bytes + at;
            size_t left = MIN(cut, maker.size - at);
            while (qstream_next(&stream, &data, &left, &piece)) {
                if (!qstream_page_ends(&stream, &piece, &page))
                    continue;
                assert_int_equal(page, next++);
                assert_string_equal((const char *)stream.block + 1, page == 10 ? "vga.vram" : "ram");
                assert_true(data >= maker.bytes + first_ends);
            }
        }
        assert_int_equal(next, 11);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pages_are_found_however_it_is_cut),
        cmocka_unit_test(test_a_stream_that_breaks_off_anywhere_is_whole_until_then),
        cmocka_unit_test(test_after_devices_nothing_is_a_page),
        cmocka_unit_test(test_a_package_is_skipped_and_pages_come_after_it),
        cmocka_unit_test(test_what_is_unknown_passes_with_a_reason),
        cmocka_unit_test(test_a_list_of_blocks_that_makes_no_sense_passes),
        cmocka_unit_test(test_it_may_end_its_records_with_a_fill_byte_that_is_not_zero),
        cmocka_unit_test(test_every_page_is_reported_when_it_is_whole),
        cmocka_unit_test(test_recordings_of_real_qemus),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
