/* SPDX-License-Identifier: Apache-2.0 */
#include "base/endian.h"
#include "base/macro.h"
#include "vmm/qemu_internal.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static const struct vm_config small = {.memory = 1 * GiB, .machine = "pc-q35-7.2"};
static const struct vm_config large = {.memory = 8 * GiB, .machine = "pc-q35-7.2"};

static struct qemu_pages queue_at(const struct vm_config *config, uint64_t address, unsigned count)
{
    struct qemu_pages pages = {0};
    _cleanup_json_ json_t *queue = json_pack(
        "{s:i, s:I, s:I, s:I}", "vring-num", (int)count, "vring-desc", (json_int_t)address, "vring-avail",
        (json_int_t)(address + 16 * count), "vring-used", (json_int_t)(address + 16 * count + 0x240));
    qemu_early_queue(config, queue, &pages);
    return pages;
}

static void assert_pages(const struct qemu_pages *pages, size_t count, const uint64_t *offsets)
{
    assert_int_equal(pages->count, count);
    for (size_t i = 0; i < count; i++)
        assert_int_equal(pages->offsets[i], offsets[i]);
}

static void test_a_queue_has_the_pages_of_its_rings_once_each(void **state)
{
    (void)state;
    struct qemu_pages pages = queue_at(&small, 0x261e000, 256);
    assert_pages(&pages, 2, (const uint64_t[]){0x261f000, 0x261e000});
}

static void test_above_four_gigabytes_ram_goes_on_where_it_stopped(void **state)
{
    (void)state;
    struct qemu_pages pages = queue_at(&large, 0x123456000, 64);
    assert_pages(&pages, 1, (const uint64_t[]){0x80000000 + 0x23456000});
    struct vm_config old = large;
    snprintf(old.machine, sizeof old.machine, "pc-i440fx-7.2");
    pages = queue_at(&old, 0x123456000, 64);
    assert_pages(&pages, 1, (const uint64_t[]){UINT64_C(0xc0000000) + 0x23456000});
}

static void test_what_is_no_ram_is_left_out(void **state)
{
    (void)state;
    const uint64_t addresses[] = {1 * GiB, 0xfee00000, 16 * GiB, UINT64_C(0x7ffffffffffff000)};
    for (size_t i = 0; i < ARRAY_SIZE(addresses); i++)
        assert_int_equal(queue_at(&small, addresses[i], 256).count, 0);
    assert_int_equal(queue_at(&small, 0, 256).count, 0);
    assert_int_equal(queue_at(&small, 0x1000, 0).count, 0);
    assert_int_equal(queue_at(&small, 0x1000, 1000000).count, 0);
    struct qemu_pages pages = {0};
    qemu_early_queue(&small, NULL, &pages);
    assert_int_equal(pages.count, 0);
}

/* --- CPUs --- */

static void put(int fd, uint64_t at, uint64_t value)
{
    uint8_t bytes[8];
    put_le64(bytes, value);
    assert_int_equal(pwrite(fd, bytes, sizeof bytes, (off_t)at), sizeof bytes);
}

/* The top table at 0x1000 and those below it map the first 4 KiB of 0x40000000 to 0x9000, and its second 2
 * MiB, as one, to 0x600000. */
static int guest_memory(void)
{
    int fd = memfd_create("ram", MFD_CLOEXEC);
    assert_true(fd >= 0);
    assert_int_equal(ftruncate(fd, 16 * MiB), 0);
    put(fd, 0x1000, 0x2003);
    put(fd, 0x2000 + 8, 0x3003);
    put(fd, 0x3000, 0x4003);
    put(fd, 0x3000 + 8, 0x600083);
    put(fd, 0x4000, 0x9003);
    return fd;
}

#define TEXT                                                                                 \
    "\r\nCPU#0\r\nRAX=0 RSP=%s\r\nRIP=%s RFL=00000246\r\nGS =0000 0000000000000000 0000\r\n" \
    "TR =0040 0000000040200f00 00004087\r\nGDT=     0000000000000000 0000007f\r\n"           \
    "IDT=     00000000dead0000 00000fff\r\nCR0=80050033 CR3=0000000000001000 CR4=000006b0\r\nEFER=%s\r\n"

static struct qemu_pages pages_of(const char *stack, const char *code, const char *efer)
{
    char text[512];
    struct qemu_pages pages = {0};
    int fd = guest_memory();
    put(fd, 0x600f04, 0x40000800); /* the task's stack */
    snprintf(text, sizeof text, TEXT, stack, code, efer);
    qemu_early_registers(&small, fd, text, &pages);
    close(fd);
    return pages;
}

static void test_a_cpu_needs_code_stack_and_the_tables_to_them(void **state)
{
    (void)state;
    struct qemu_pages pages = pages_of("0000000040201008", "0000000040000123", "0000000000000d01");
    assert_pages(&pages, 7, (const uint64_t[]){0x1000, 0x2000, 0x3000, 0x4000, 0x9000, 0x601000, 0x600000});
}

static void test_a_cpu_without_long_mode_is_left_out(void **state)
{
    (void)state;
    assert_int_equal(pages_of("0000000040201008", "0000000040000123", "0000000000000000").count, 0);
}

static void test_tables_that_lead_nowhere_are_followed_no_further(void **state)
{
    (void)state;
    struct qemu_pages pages = {0};
    int fd = guest_memory();
    put(fd, 0x1000, 0x7ffffffff003); /* no RAM there */
    qemu_early_registers(&small, fd,
                         "CPU#0\r\nRIP=0000000040000123\r\nCR3=0000000000001000\r\nEFER=0000000000000d01\r\n",
                         &pages);
    assert_pages(&pages, 1, (const uint64_t[]){0x1000});
    put(fd, 0x1000, 0x1003); /* a table of itself: as deep as there are levels */
    qemu_early_registers(&small, fd, "CPU#0\r\nRIP=0\r\nCR3=1000\r\nEFER=d01\r\nCPU#1\r\nCPU#2 EFER=d01",
                         &pages);
    assert_true(pages.count <= 3);
    close(fd);
}

static void test_text_that_is_not_understood_gives_nothing(void **state)
{
    (void)state;
    struct qemu_pages pages = {0};
    const char *const texts[] = {"", "CPU#", "CPU#0\r\nTR =", "unknown command: 'info registers'",
                                 "CPU#0\r\nTR =  "};
    for (size_t i = 0; i < ARRAY_SIZE(texts); i++)
        qemu_early_registers(&small, -1, texts[i], &pages);
    assert_int_equal(pages.count, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_queue_has_the_pages_of_its_rings_once_each),
        cmocka_unit_test(test_above_four_gigabytes_ram_goes_on_where_it_stopped),
        cmocka_unit_test(test_what_is_no_ram_is_left_out),
        cmocka_unit_test(test_a_cpu_needs_code_stack_and_the_tables_to_them),
        cmocka_unit_test(test_a_cpu_without_long_mode_is_left_out),
        cmocka_unit_test(test_tables_that_lead_nowhere_are_followed_no_further),
        cmocka_unit_test(test_text_that_is_not_understood_gives_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
