/* SPDX-License-Identifier: Apache-2.0
 *
 * Zero pages are kept away from QEMU until it asks, however the streams are cut. QEMU is played by a reader
 * that counts what is put into which page of which block, and insists on the stream's grammar.
 */
// clang-format off
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
// clang-format on

#include "memory/holes.h"
#include "stream_maker.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#define PAGES 64U
#define PAGE QSTREAM_PAGE_SIZE

static struct maker in;
static struct holes *holes;
static struct err err;

/* --- QEMU ----------------------------------------------------------------------------------------------- */

static struct {
    uint8_t bytes[1 << 20];
    size_t size;
    size_t room; /* bytes until it reads no more for a while */
    unsigned zeros[PAGES], pages[PAGES], other;
} qemu;

static int to_qemu(void *arg, const void *data, size_t size, size_t *ret_written, struct err *error)
{
    (void)arg;
    size_t some = MIN(size, qemu.room);
    assert_in_range(qemu.size + some, 0, sizeof qemu.bytes);
    memcpy(qemu.bytes + qemu.size, data, some);
    qemu.size += some;
    qemu.room -= some;
    *ret_written = some;
    return some < size ? err_set(error, EINTR, "interrupted") : 0;
}

/* Records up to the section's end; `name` is the block of the record before. Returns where it ends. */
static size_t read_records(size_t at, char name[256])
{
    for (;;) {
        uint64_t head = get_be64(qemu.bytes + at);
        unsigned flags = head % PAGE;
        at += 8;
        if (flags == 0x10)
            break;
        if (!(flags & 0x20)) {
            snprintf(name, 256, "%.*s", qemu.bytes[at], qemu.bytes + at + 1);
            at += 1U + qemu.bytes[at];
        }
        bool ours = strcmp(name, "ram") == 0;
        assert_true(!ours || head / PAGE < PAGES);
        qemu.other += !ours;
        if ((flags & ~0x20U) == 2) {
            assert_int_equal(qemu.bytes[at++], 0);
            if (ours)
                qemu.zeros[head / PAGE]++;
        } else {
            uint8_t content[PAGE];
            assert_int_equal(flags & ~0x20U, 8);
            fill_page(content, head / PAGE);
            assert_true(!ours || memcmp(content, qemu.bytes + at, PAGE) == 0);
            at += PAGE;
            if (ours)
                qemu.pages[head / PAGE]++;
        }
        assert_in_range(at, 0, qemu.size);
    }
    assert_int_equal(qemu.bytes[at], 0x7e);
    assert_int_equal(get_be32(qemu.bytes + at + 1), RAM_SECTION);
    return at + 5;
}

/* All that QEMU got, behind put_beginning's bytes. Returns how far it made sense: to the end, or to what does
 * not look like RAM. */
static size_t read_all(size_t beginning)
{
    char name[256] = "";
    size_t at = beginning;
    memset(qemu.zeros, 0, sizeof qemu.zeros);
    memset(qemu.pages, 0, sizeof qemu.pages);
    qemu.other = 0;
    while (at < qemu.size && (qemu.bytes[at] == 2 || qemu.bytes[at] == 3)) {
        assert_int_equal(get_be32(qemu.bytes + at + 1), RAM_SECTION);
        at = read_records(at + 5, name);
    }
    return at;
}

/* --- the two streams ------------------------------------------------------------------------------------ */

static size_t beginning, flowed; /* bytes */

static int begin(void **state)
{
    (void)state;
    memset(&qemu, 0, sizeof qemu);
    qemu.room = sizeof qemu.bytes;
    in.size = flowed = 0;
    put_beginning(&in, PAGES);
    beginning = in.size;
    return holes_new("ram", PAGES * PAGE, to_qemu, NULL, &holes, &err);
}

static int end(void **state)
{
    (void)state;
    holes_free(holes);
    return 0;
}

/* What was made since the last call, cut into pieces. */
static void flow(size_t cut)
{
    for (size_t some; flowed < in.size; flowed += some) {
        some = MIN(cut, in.size - flowed);
        int r = holes_take(holes, in.bytes + flowed, some, &err);
        assert_true(r == 0 || r == -EINTR);
    }
}

static void put_named_zero(uint64_t page, const char *block)
{
    put_u64(&in, page * PAGE | 2);
    put_name(&in, block);
    put_u8(&in, 0);
}

/* A section that begins in our block, by a zero page with its name, which passes. */
static void put_section(void)
{
    put_part(&in);
    put_named_zero(0, "ram");
}

static void ask(uint64_t page, uint32_t count, const char *block, size_t cut)
{
    uint8_t message[64] = {0, 3, 0, (uint8_t)(13 + strlen(block))};
    size_t size = 17 + strlen(block);
    put_be64(message + 4, page * PAGE);
    put_be32(message + 12, count * (uint32_t)PAGE);
    message[16] = (uint8_t)strlen(block);
    memcpy(message + 17, block, strlen(block));
    for (size_t at = 0; at < size; at += cut)
        assert_int_equal(holes_back(holes, message + at, MIN(cut, size - at), &err), 0);
}

/* --- tests ---------------------------------------------------------------------------------------------- */

static void test_zero_pages_are_kept_away(void **state)
{
    (void)state;
    static const size_t cuts[] = {1 << 20, 5000, 4096, 13, 1};
    for (size_t i = 0; i < ARRAY_SIZE(cuts); i++) {
        if (i)
            assert_int_equal(begin(state), 0);
        put_section();
        for (uint64_t page = 1; page < PAGES; page++)
            page % 4 ? put_zero(&in, page) : put_page(&in, page, page);
        put_eos(&in);
        put_end(&in);
        flow(cuts[i]);
        assert_int_equal(holes_kept(holes), 48);
        assert_int_equal(qemu.size, in.size - 48 * QSTREAM_ZERO_RECORD);
        read_all(beginning);
        for (uint64_t page = 1; page < PAGES; page++) {
            assert_int_equal(qemu.zeros[page], 0);
            assert_int_equal(qemu.pages[page], page % 4 == 0);
        }
        if (i + 1 < ARRAY_SIZE(cuts))
            holes_free(holes);
    }
}

/* Between sections there is one for it alone, inside of one it is one record more. */
static void test_who_asks_is_answered(void **state)
{
    (void)state;
    put_section();
    for (uint64_t page = 1; page < 10; page++)
        put_zero(&in, page);
    flow(4096);
    ask(5, 1, "ram", 100);
    assert_int_equal(holes_kept(holes), 8);
    put_eos(&in);
    flow(4096);
    ask(6, 2, "ram", 1);
    ask(6, 2, "ram", 3); /* again: by another CPU */
    ask(9, 1, "rom", 100);
    assert_int_equal(read_all(beginning), qemu.size);
    for (uint64_t page = 1; page < 10; page++)
        assert_int_equal(qemu.zeros[page], page >= 5 && page <= 7);
    put_end(&in);
    flow(4096);
}

/* QEMU's connection broke: another stream brings what is missing, zero pages that had been kept, too. */
static void test_a_stream_that_goes_on(void **state)
{
    size_t size = 0;
    uint32_t section = 0;
    assert_null(holes_blocks(holes, &size, &section));
    put_section();
    put_zero(&in, 1);
    flow(7);
    uint8_t *blocks = holes_blocks(holes, &size, &section);
    assert_int_equal(size, 4);
    assert_memory_equal(blocks, "\3ram", 4);
    free(blocks);
    assert_int_equal(section, RAM_SECTION);
    holes_free(holes);

    assert_int_equal(begin(state), 0);
    holes_goes_on(holes, section);
    in.size = 0;
    put_section();
    put_zero(&in, 1);
    put_zero(&in, 2);
    put_page(&in, 3, 3);
    flow(100);
    ask(2, 1, "ram", 100);
    put_eos(&in);
    flow(100);
    assert_int_equal(holes_kept(holes), 1);
    assert_int_equal(read_all(0), qemu.size);
    assert_int_equal(qemu.zeros[1], 0);
    assert_int_equal(qemu.zeros[2], 1);
    assert_int_equal(qemu.pages[3], 1);
    put_end(&in);
    flow(100);
}

static void test_a_request_without_a_name_goes_on_in_the_block_before(void **state)
{
    (void)state;
    uint8_t message[16] = {0, 4, 0, 12};
    put_section();
    put_zero(&in, 8);
    put_zero(&in, 9);
    flow(4096);
    put_be64(message + 4, 9 * PAGE);
    put_be32(message + 12, PAGE);
    ask(1, 1, "rom", 100);
    assert_int_equal(holes_back(holes, message, sizeof message, &err), 0);
    assert_int_equal(holes_kept(holes), 2);
    ask(1, 1, "ram", 100);
    assert_int_equal(holes_back(holes, message, sizeof message, &err), 0);
    assert_int_equal(holes_kept(holes), 1);
}

/* The request is on its way to the source, which will answer it with the record. */
static void test_what_was_asked_for_before_it_came_is_let_through(void **state)
{
    (void)state;
    ask(7, 1, "ram", 100);
    put_section();
    for (uint64_t page = 6; page < 9; page++)
        put_zero(&in, page);
    put_eos(&in);
    flow(10);
    assert_int_equal(read_all(beginning), qemu.size);
    assert_int_equal(qemu.zeros[7], 1);
    assert_int_equal(holes_kept(holes), 2);
    ask(7, 1, "ram", 100);
    assert_int_equal(read_all(beginning), qemu.size);
    assert_int_equal(qemu.zeros[7], 1);
}

/* QEMU's block is ours after our record; the stream goes on in its own. */
static void test_a_record_after_ours_gets_its_name_back(void **state)
{
    (void)state;
    put_section();
    put_zero(&in, 3);
    put_named_zero(0, "vga");
    put_zero(&in, 1);
    flow(4096);
    ask(3, 1, "ram", 100);
    put_zero(&in, 2);
    put_page(&in, 4, 4);
    put_eos(&in);
    flow(1);
    ask(1, 1, "ram", 100); /* was never there */
    assert_int_equal(read_all(beginning), qemu.size);
    assert_int_equal(qemu.zeros[3], 1);
    assert_int_equal(qemu.zeros[1] + qemu.zeros[2], 0);
    assert_int_equal(qemu.other, 4);
}

/* Nothing is put inside of what is not RAM, nor between a section's end and its footer. */
static void test_an_answer_waits_for_its_place(void **state)
{
    (void)state;
    put_section();
    put_zero(&in, 3);
    put_u64(&in, 0x10);
    flow(4096);
    size_t before = qemu.size;
    ask(3, 1, "ram", 100);
    assert_int_equal(qemu.size, before);
    put_u8(&in, 0x7e);
    put_u32(&in, RAM_SECTION);
    put_u8(&in, 8); /* a package of 40 bytes */
    put(&in, "\0\7\0\4\0\0\0\50", 8);
    flow(4096);
    assert_int_equal(holes_kept(holes), 0);
    assert_int_equal(qemu.bytes[before + 5], 2);
    put_zero(&in, 4); /* whatever that is in there */
    flow(4096);
    before = qemu.size;
    ask(4, 1, "ram", 100);
    assert_int_equal(qemu.size, before);
}

static void test_a_strange_stream_gets_all(void **state)
{
    (void)state;
    put_section();
    for (uint64_t page = 1; page < 20; page++)
        put_zero(&in, page);
    put_eos(&in);
    flow(100);
    assert_int_equal(holes_kept(holes), 19);
    put(&in, "\x55what is this?", 14);
    flow(100);
    assert_int_equal(holes_kept(holes), 0);
    assert_int_equal(read_all(beginning), qemu.size - 14);
    for (uint64_t page = 1; page < 20; page++)
        assert_int_equal(qemu.zeros[page], 1);
    assert_memory_equal(qemu.bytes + qemu.size - 14, "\x55what is this?", 14);
}

static void test_a_strange_record_gets_all(void **state)
{
    (void)state;
    put_section();
    put_zero(&in, 11);
    flow(100);
    put_u64(&in, 12 * PAGE | 0x820);
    flow(3);
    assert_int_equal(holes_kept(holes), 0);
    assert_int_equal(get_be64(qemu.bytes + qemu.size - 8), 12 * PAGE | 0x820);
    assert_int_equal(get_be64(qemu.bytes + qemu.size - 21), 11 * PAGE | 2);
}

static void test_a_strange_return_path_gets_all(void **state)
{
    (void)state;
    static const struct {
        const char *bytes;
        size_t size;
    } strange[] = {
        {"\0\11\0\4aaaa", 8},                           /* an unknown message */
        {"\0\0\0\0", 4},                                /* none */
        {"\0\3\0\6aaaaaa", 10},                         /* too short */
        {"\0\3\0\21aaaaaaaaaaaa\3ramx", 21},            /* its name is shorter than it says */
        {"\0\4\0\4aaaa", 8},                            /* too short */
        {"\0\1\2\1", 4},                                /* too long */
        {"\0\5\0\4\3ram\0\0\0\0\0\0\0\10aaaaaaaa", 24}, /* a bitmap, of a recovery */
    };
    for (size_t i = 0; i < ARRAY_SIZE(strange); i++) {
        if (i)
            assert_int_equal(begin(state), 0);
        put_section();
        put_zero(&in, 1);
        put_zero(&in, 2);
        flow(100);
        assert_int_equal(holes_kept(holes), 2);
        for (size_t at = 0; at < strange[i].size; at++)
            assert_int_equal(holes_back(holes, strange[i].bytes + at, 1, &err), 0);
        assert_int_equal(holes_kept(holes), 0);
        put_zero(&in, 3);
        put_eos(&in);
        flow(100);
        assert_int_equal(read_all(beginning), qemu.size);
        for (uint64_t page = 1; page < 4; page++)
            assert_int_equal(qemu.zeros[page], 1);
        if (i + 1 < ARRAY_SIZE(strange))
            holes_free(holes);
    }
}

/* Other messages are none of ours. */
static void test_other_messages_pass(void **state)
{
    (void)state;
    put_section();
    put_zero(&in, 1);
    flow(100);
    assert_int_equal(holes_back(holes, "\0\2\0\4\0\0\0\1\0\1\0\4\0\0\0\0", 16, &err), 0); /* PONG 1, SHUT 0 */
    assert_int_equal(holes_kept(holes), 1);
    ask(1, 1, "ram", 100);
    assert_int_equal(holes_kept(holes), 0);
}

/* While connections change nobody may wait for QEMU: what it does not read is kept, in order. */
static void test_what_could_not_be_written_comes_later(void **state)
{
    (void)state;
    put_section();
    put_zero(&in, 1);
    for (uint64_t page = 8; page < 16; page++)
        put_page(&in, page, page);
    put_eos(&in);
    qemu.room = beginning + 6000;
    assert_int_equal(holes_take(holes, in.bytes, in.size, &err), -EINTR);
    assert_int_equal(qemu.size, beginning + 6000);
    ask(1, 1, "ram", 100);
    qemu.room = 10000;
    assert_int_equal(holes_take(holes, "", 0, &err), -EINTR);
    qemu.room = sizeof qemu.bytes - qemu.size;
    assert_int_equal(holes_back(holes, "", 0, &err), 0);
    assert_int_equal(read_all(beginning), qemu.size);
    assert_int_equal(qemu.zeros[1], 1);
    for (uint64_t page = 8; page < 16; page++)
        assert_int_equal(qemu.pages[page], 1);
}

static void test_pages_beyond_the_block_pass(void **state)
{
    (void)state;
    put_section();
    put_zero(&in, PAGES);
    flow(100);
    assert_int_equal(holes_kept(holes), 0);
    assert_int_equal(qemu.size, in.size);
    ask(PAGES, 1, "ram", 100);
    ask(UINT64_MAX / PAGE, 1, "ram", 100);
    ask(PAGES - 1, UINT32_MAX / PAGE, "ram", 100);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, begin, end)

static void test_waits_are_counted(void **state)
{
    (void)state;
    struct faults faults;
    ask(4, 2, "ram", 100); /* on its way: a page and a zero */
    ask(9, 1, "rom", 100);
    put_section();
    put_page(&in, 3, 3);
    put_page(&in, 4, 4);
    put_zero(&in, 5);
    put_zero(&in, 6);
    flow(1000);
    ask(6, 1, "ram", 100); /* is here */
    ask(3, 1, "ram", 100); /* QEMU has it, and will see so */
    assert_true(holes_faults(holes, &faults));
    assert_int_equal(faults.count, 3);
    assert_int_equal(faults.pending_count, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_zero_pages_are_kept_away),
        TEST(test_who_asks_is_answered),
        TEST(test_a_stream_that_goes_on),
        TEST(test_a_request_without_a_name_goes_on_in_the_block_before),
        TEST(test_what_was_asked_for_before_it_came_is_let_through),
        TEST(test_a_record_after_ours_gets_its_name_back),
        TEST(test_an_answer_waits_for_its_place),
        TEST(test_a_strange_stream_gets_all),
        TEST(test_a_strange_record_gets_all),
        TEST(test_a_strange_return_path_gets_all),
        TEST(test_other_messages_pass),
        TEST(test_what_could_not_be_written_comes_later),
        TEST(test_pages_beyond_the_block_pass),
        TEST(test_waits_are_counted),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
