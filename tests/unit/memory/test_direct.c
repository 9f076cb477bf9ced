/* SPDX-License-Identifier: Apache-2.0
 *
 * Pages go into RAM past QEMU, and the RAM becomes what it would have become through QEMU alone, however the
 * stream is cut and however late QEMU reads. QEMU is played by a reader of what it got, which writes into
 * the same memfd.
 */
// clang-format off
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
// clang-format on

#include "memory/direct.h"
#include "stream_maker.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define PAGES 64U
#define PAGE QSTREAM_PAGE_SIZE

static struct maker in;
static struct direct *direct;
static struct err err;
static int ram;

/* --- QEMU ----------------------------------------------------------------------------------------------- */

static struct {
    uint8_t bytes[1 << 20];
    size_t size, read;
    bool in_section;
    char block[256];
} qemu;

static int to_qemu(void *arg, const void *data, size_t size, size_t *ret_written, struct err *error)
{
    (void)arg;
    (void)error;
    assert_in_range(qemu.size + size, 0, sizeof qemu.bytes);
    memcpy(qemu.bytes + qemu.size, data, size);
    qemu.size += size;
    *ret_written = size;
    return 0;
}

static void write_page(uint64_t page, const uint8_t *content)
{
    assert_int_equal(pwrite(ram, content, PAGE, (off_t)(page * PAGE)), PAGE);
}

static bool qemu_has(size_t size)
{
    return qemu.size - qemu.read >= size;
}

/* False: not all of it has come. */
static bool read_record(void)
{
    static const uint8_t zeroes[PAGE];
    const uint8_t *at = qemu.bytes + qemu.read;
    if (!qemu_has(8))
        return false;
    uint64_t head = get_be64(at);
    unsigned flags = head % PAGE;
    if (flags == 0x10) {
        if (!qemu_has(13))
            return false;
        assert_int_equal(at[8], 0x7e);
        qemu.read += 13;
        qemu.in_section = false;
        return true;
    }
    size_t name = flags & 0x20 ? 0 : qemu_has(9) ? 1U + at[8] : PAGE;
    size_t content = (flags & ~0x20U) == 2 ? 1 : PAGE;
    assert_true((flags & ~0x20U) == 2 || (flags & ~0x20U) == 8);
    if (!qemu_has(8 + name + content))
        return false;
    if (name)
        snprintf(qemu.block, sizeof qemu.block, "%.*s", at[8], at + 9);
    if (strcmp(qemu.block, "ram") == 0)
        write_page(head / PAGE, content == 1 ? zeroes : at + 8 + name);
    qemu.read += 8 + name + content;
    return true;
}

static void qemu_reads_all(void)
{
    for (;;) {
        if (qemu.in_section) {
            if (!read_record())
                return;
        } else if (qemu_has(5) && qemu.bytes[qemu.read] == 2) {
            qemu.in_section = true;
            qemu.read += 5;
        } else {
            return;
        }
    }
}

/* --- both ways ------------------------------------------------------------------------------------------ */

static size_t flowed;

static int begin(void **state)
{
    (void)state;
    memset(&qemu, 0, sizeof qemu);
    in.size = flowed = 0;
    put_beginning(&in, PAGES);
    ram = memfd_create("test", MFD_CLOEXEC);
    assert_int_equal(ftruncate(ram, PAGES * PAGE), 0);
    return 0;
}

static void start(void)
{
    assert_int_equal(direct_new("ram", ram, PAGES * PAGE, to_qemu, NULL, &direct, &err), 0);
    assert_int_equal(direct_take(direct, in.bytes, in.size, &err), 0);
    assert_int_equal(qemu.size, in.size);
    flowed = qemu.read = in.size;
}

static int end(void **state)
{
    (void)state;
    direct_free(direct);
    direct = NULL;
    close(ram);
    return 0;
}

static void flow(size_t cut)
{
    for (size_t some; flowed < in.size; flowed += some) {
        some = MIN(cut, in.size - flowed);
        assert_int_equal(direct_take(direct, in.bytes + flowed, some, &err), 0);
    }
}

static void put_named(uint64_t page, const char *block, uint64_t content)
{
    uint8_t bytes[PAGE];
    put_u64(&in, page * PAGE | 8);
    put_name(&in, block);
    fill_page(bytes, content);
    put(&in, bytes, PAGE);
}

static void assert_page(uint64_t page, uint64_t content)
{
    uint8_t bytes[PAGE], wanted[PAGE] = {0};
    if (content)
        fill_page(wanted, content);
    assert_int_equal(pread(ram, bytes, PAGE, (off_t)(page * PAGE)), PAGE);
    assert_memory_equal(bytes, wanted, PAGE);
}

static size_t made(void)
{
    struct stat status;
    assert_int_equal(fstat(ram, &status), 0);
    return (size_t)status.st_blocks * 512 / PAGE;
}

/* --- tests ---------------------------------------------------------------------------------------------- */

static void pages_go_past_qemu_and_zero_pages_nowhere(void **state)
{
    static const size_t cuts[] = {1 << 20, 5000, 4096, 13, 1};
    for (size_t i = 0; i < ARRAY_SIZE(cuts); i++) {
        if (i)
            begin(state);
        start();
        put_part(&in);
        put_named(0, "ram", 100);
        for (uint64_t page = 1; page < PAGES; page++)
            page % 4 ? put_zero(&in, page) : put_page(&in, page, page);
        put_eos(&in);
        flow(cuts[i]);
        assert_int_equal(direct_pages(direct), 15);
        qemu_reads_all();
        assert_int_equal(qemu.read, qemu.size);
        for (uint64_t page = 1; page < PAGES; page++)
            assert_page(page, page % 4 ? 0 : page);
        assert_page(0, 100);
        assert_int_equal(made(), 16);
        if (i + 1 < ARRAY_SIZE(cuts))
            end(state);
    }
}

static void what_was_there_before_is_overwritten_with_zeroes(void **state)
{
    (void)state;
    uint8_t firmware[PAGE];
    fill_page(firmware, 7);
    write_page(9, firmware);
    start();
    put_part(&in);
    put_named(0, "ram", 100);
    put_zero(&in, 9);
    put_page(&in, 10, 10);
    put_eos(&in);
    put_part(&in);
    put_named(0, "ram", 100);
    put_zero(&in, 10);
    put_zero(&in, 11);
    put_eos(&in);
    flow(3000);
    assert_page(9, 0);
    assert_page(10, 0);
    qemu_reads_all();
    assert_int_equal(made(), 3);
}

static void other_blocks_and_pages_out_of_range_are_qemu_s(void **state)
{
    (void)state;
    start();
    put_part(&in);
    put_named(1, "vga.vram", 1);
    put_page(&in, 2, 2);
    put_named(3, "ram", 3);
    put_page(&in, PAGES, 4);
    size_t before = in.size;
    put_eos(&in);
    flow(4096);
    assert_int_equal(qemu.size, before + 13);
    assert_int_equal(direct_pages(direct), 0);
    assert_int_equal(made(), 0);
}

static void what_is_not_understood_is_qemu_s(void **state)
{
    (void)state;
    start();
    put_part(&in);
    put_named(0, "ram", 1);
    put_u64(&in, 5 * PAGE | 0x800 | QSTREAM_CONTINUE);
    size_t strange = in.size;
    put_page(&in, 6, 6);
    flow(4096);
    assert_int_equal(qemu.size, in.size);
    assert_true(strange < qemu.size);
    assert_int_equal(direct_pages(direct), 0);
}

/* What a QEMU that reads late would put over newer pages. */
static void whatever_the_order_ram_becomes_what_qemu_would_have_made(void **state)
{
    for (unsigned seed = 1; seed <= 300; seed++) {
        uint64_t wanted[PAGES] = {0}, content = 1;
        bool named = false;
        if (seed > 1)
            begin(state);
        srandom(seed);
        start();
        for (int section = 0; section < 4; section++) {
            put_part(&in);
            named = false;
            for (long count = random() % 30; count >= 0; count--) {
                uint64_t page = (uint64_t)random() % PAGES;
                bool other = random() % 8 == 0;
                content++;
                if (other || !named || random() % 8 == 0) {
                    named = !other;
                    put_named(page, other ? "other" : "ram", content);
                    if (!other)
                        wanted[page] = content;
                } else if (random() % 3) {
                    put_page(&in, page, wanted[page] = content);
                } else {
                    put_zero(&in, page);
                    wanted[page] = 0;
                }
            }
            put_eos(&in);
            flow((size_t)(1 + random() % 9000));
            if (random() % 2)
                qemu_reads_all();
        }
        qemu_reads_all();
        assert_int_equal(qemu.read, qemu.size);
        for (uint64_t page = 0; page < PAGES; page++)
            assert_page(page, wanted[page]);
        if (seed < 300)
            end(state);
    }
}

static void ram_that_cannot_be_written_is_an_error(void **state)
{
    (void)state;
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", ram);
    int writable = ram;
    ram = open(path, O_RDONLY | O_CLOEXEC);
    start();
    put_part(&in);
    put_named(0, "ram", 1);
    put_page(&in, 1, 1);
    assert_int_equal(direct_take(direct, in.bytes + flowed, in.size - flowed, &err), -EBADF);
    assert_non_null(strstr(err.text, "memory"));
    close(writable);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, begin, end)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(pages_go_past_qemu_and_zero_pages_nowhere),
        TEST(what_was_there_before_is_overwritten_with_zeroes),
        TEST(other_blocks_and_pages_out_of_range_are_qemu_s),
        TEST(what_is_not_understood_is_qemu_s),
        TEST(whatever_the_order_ram_becomes_what_qemu_would_have_made),
        TEST(ram_that_cannot_be_written_is_an_error),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
