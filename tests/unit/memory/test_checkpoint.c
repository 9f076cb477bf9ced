/* SPDX-License-Identifier: Apache-2.0
 *
 * A guest's RAM goes to a file and is told and read from there; and whatever becomes of the file, no wrong
 * page comes.
 */
#include "../folder_test.h"

#include "base/endian.h"
#include "base/macro.h"
#include "memory/checkpoint.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define PAGES 3000U
#define RAM (PAGES * (uint64_t)KNOWN_PAGE)
#define FIRST 4096 /* of the file */

static const struct checkpoint_head head = {.vm = {{1, 2, 3}}, .epoch = 7, .ram = RAM};

/* Pages 1, 2, 700 and the last one are not zero. */
static const uint64_t used[] = {1, 2, 700, PAGES - 1};

static int make_ram(void)
{
    uint8_t page[KNOWN_PAGE];
    int fd = memfd_create("ram", MFD_CLOEXEC);
    assert_int_equal(ftruncate(fd, (off_t)RAM), 0);
    for (size_t i = 0; i < ARRAY_SIZE(used); i++) {
        memset(page, (int)(i + 1), sizeof page);
        assert_int_equal(pwrite(fd, page, sizeof page, (off_t)(used[i] * KNOWN_PAGE)), sizeof page);
    }
    memset(page, 0, sizeof page); /* one that was written, and is zero */
    assert_int_equal(pwrite(fd, page, sizeof page, (off_t)(900 * KNOWN_PAGE)), sizeof page);
    return fd;
}

static void save(void)
{
    int ram = make_ram();
    assert_ok(checkpoint_save(folder, ram, &head, &err));
    struct stat st;
    assert_int_equal(fstat(ram, &st), 0);
    assert_int_equal(st.st_blocks, 0); /* its pages are free again */
    close(ram);
}

/* Opens it and hashes all of it. Returns the number of pages that are told. */
static uint64_t open_and_tell(struct checkpoint **ret)
{
    uint8_t message[KNOWN_MESSAGE];
    size_t size;
    uint64_t told = 0;
    assert_ok(checkpoint_open(folder, &head.vm, RAM, ret, &err));
    assert_ok(checkpoint_hash(*ret, 5, &err));
    while (checkpoint_tell(*ret, message, &size))
        told += size ? (size - 8) / KNOWN_HASH : 0;
    return told;
}

static void damage(uint64_t offset, const void *bytes, size_t size)
{
    int fd = open(in_folder("memory.checkpoint"), O_WRONLY);
    assert_int_equal(pwrite(fd, bytes, size, (off_t)offset), size);
    close(fd);
}

static void test_what_was_saved_is_told_and_read(void **state)
{
    struct checkpoint *checkpoint;
    struct stat st;
    uint8_t page[KNOWN_PAGE];
    save();
    assert_int_equal(stat(in_folder("memory.checkpoint"), &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    assert_int_equal(st.st_size, FIRST + RAM);
    assert_int_equal(checkpoint_bytes(folder), (uint64_t)st.st_blocks * 512);
    assert_in_range(st.st_blocks * 512, 5 * 4096, 64 * 4096); /* holes */
    assert_int_equal(open_and_tell(&checkpoint), ARRAY_SIZE(used));
    for (size_t i = 0; i < ARRAY_SIZE(used); i++) {
        assert_ok(checkpoint_page(checkpoint, used[i], page, &err));
        assert_int_equal(page[0], i + 1);
        assert_int_equal(page[KNOWN_PAGE - 1], i + 1);
    }
    checkpoint_close(checkpoint);
    checkpoint_remove(folder);
    assert_int_equal(checkpoint_bytes(folder), 0);
}

static void test_pages_that_were_not_told_are_not_given(void **state)
{
    struct checkpoint *checkpoint;
    uint8_t page[KNOWN_PAGE];
    save();
    open_and_tell(&checkpoint);
    const uint64_t wrong[] = {0, 900, PAGES, UINT64_MAX};
    for (size_t i = 0; i < ARRAY_SIZE(wrong); i++)
        assert_int_equal(checkpoint_page(checkpoint, wrong[i], page, NULL), -EPROTO);
    checkpoint_close(checkpoint);
}

static void test_a_page_that_changed_since_it_was_told_is_not_given(void **state)
{
    struct checkpoint *checkpoint;
    uint8_t page[KNOWN_PAGE];
    struct err why = ERR_NONE;
    save();
    open_and_tell(&checkpoint);
    damage(FIRST + 2 * KNOWN_PAGE + 77, "x", 1);
    assert_int_equal(checkpoint_page(checkpoint, 1, page, NULL), 0);
    assert_int_equal(checkpoint_page(checkpoint, 2, page, &why), -EBADMSG);
    assert_non_null(strstr(why.text, "memory.checkpoint"));
    assert_int_equal(truncate(in_folder("memory.checkpoint"), 5000), 0);
    assert_int_equal(checkpoint_page(checkpoint, 700, page, NULL), -EBADMSG);
    checkpoint_close(checkpoint);
}

static void check_useless(const struct id *vm, uint64_t ram)
{
    struct checkpoint *checkpoint;
    assert_int_equal(checkpoint_open(folder, vm, ram, &checkpoint, NULL), -EBADMSG);
}

static void test_one_that_is_not_right_is_not_opened(void **state)
{
    const struct id other = {{9}};
    struct checkpoint *checkpoint;
    assert_int_equal(checkpoint_open(folder, &head.vm, RAM, &checkpoint, NULL), -ENOENT);
    save();
    check_useless(&other, RAM);
    check_useless(&head.vm, RAM + KNOWN_PAGE);
    assert_int_equal(truncate(in_folder("memory.checkpoint"), FIRST + 100), 0);
    check_useless(&head.vm, RAM);
    assert_int_equal(truncate(in_folder("memory.checkpoint"), 3), 0);
    check_useless(&head.vm, RAM);
    save();
    damage(8, "\2", 1);
    check_useless(&head.vm, RAM);
    save();
    damage(0, "x", 1);
    check_useless(&head.vm, RAM);
    checkpoint_remove(folder);
    assert_int_equal(symlink("/dev/zero", in_folder("memory.checkpoint")), 0);
    assert_true(checkpoint_open(folder, &head.vm, RAM, &checkpoint, NULL) < 0);
    assert_int_equal(checkpoint_bytes(folder), 0);
}

static void test_a_cut_one_tells_what_it_still_has(void **state)
{
    struct checkpoint *checkpoint;
    save();
    assert_ok(checkpoint_open(folder, &head.vm, RAM, &checkpoint, &err));
    assert_int_equal(truncate(in_folder("memory.checkpoint"), FIRST + 600 * (off_t)KNOWN_PAGE), 0);
    assert_ok(checkpoint_hash(checkpoint, 5, &err));
    uint8_t message[KNOWN_MESSAGE];
    size_t size, told = 0;
    while (checkpoint_tell(checkpoint, message, &size))
        told += size ? (size - 8) / KNOWN_HASH : 0;
    assert_int_equal(told, 2);
    checkpoint_close(checkpoint);
}

static void test_without_a_folder_or_with_too_little_ram_there_is_none(void **state)
{
    int ram = make_ram();
    assert_int_equal(checkpoint_save("/nowhere", ram, &head, NULL), -ENOENT);
    struct checkpoint_head large = head;
    large.ram += KNOWN_PAGE;
    assert_int_equal(checkpoint_save(folder, ram, &large, NULL), -EINVAL);
    assert_int_equal(access(in_folder("memory.checkpoint.new"), F_OK), -1);
    assert_int_equal(checkpoint_bytes(folder), 0);
    close(ram);
}

static void test_closing_ends_the_hashing(void **state)
{
    struct checkpoint *checkpoint;
    save();
    assert_ok(checkpoint_open(folder, &head.vm, RAM, &checkpoint, &err));
    assert_ok(checkpoint_hash(checkpoint, 5, &err));
    checkpoint_close(checkpoint);
    checkpoint_close(NULL);
}

int main(void)
{
#define IN_FOLDER(test) cmocka_unit_test_setup_teardown(test, make_folder, drop_folder)
    const struct CMUnitTest tests[] = {
        IN_FOLDER(test_what_was_saved_is_told_and_read),
        IN_FOLDER(test_pages_that_were_not_told_are_not_given),
        IN_FOLDER(test_a_page_that_changed_since_it_was_told_is_not_given),
        IN_FOLDER(test_one_that_is_not_right_is_not_opened),
        IN_FOLDER(test_a_cut_one_tells_what_it_still_has),
        IN_FOLDER(test_without_a_folder_or_with_too_little_ram_there_is_none),
        IN_FOLDER(test_closing_ends_the_hashing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
