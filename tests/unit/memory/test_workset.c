/* SPDX-License-Identifier: Apache-2.0
 *
 * A working set is told and kept as it was; whatever a peer says or becomes of the file, no other page gets
 * into it. And where it comes from before anybody has waited: pages that come again.
 */
#include "../folder_test.h"

#include "base/endian.h"
#include "base/macro.h"
#include "memory/again.h"
#include "memory/qstream.h"
#include "memory/workset.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#define PAGES 20000U
#define RAM (PAGES * (uint64_t)QSTREAM_PAGE_SIZE)

static const struct id vm = {{1, 2, 3}}, other_vm = {{1, 2, 4}};
static struct workset *workset;

static int setup(void **state)
{
    return make_folder(state) < 0 ? -1 : workset_new(RAM, &workset, NULL);
}

static int teardown(void **state)
{
    workset_free(workset);
    return drop_folder(state);
}

static void assert_pages(const struct workset *set, const uint64_t *pages, size_t count)
{
    assert_int_equal(workset_count(set), count);
    for (size_t i = 0; i < count; i++)
        assert_int_equal(workset_page(set, i), pages[i]);
}

static void add(const uint64_t *pages, size_t count)
{
    for (size_t i = 0; i < count; i++)
        workset_add(workset, pages[i]);
}

static const uint64_t some[] = {700, 3, PAGES - 1, 0};

static void test_each_page_is_there_once_in_the_order_of_its_coming(void **state)
{
    add(some, ARRAY_SIZE(some));
    add(some + 1, 2);
    workset_add(workset, PAGES);
    workset_add(workset, UINT64_MAX);
    assert_pages(workset, some, ARRAY_SIZE(some));
}

static void test_it_is_bounded(void **state)
{
    for (uint64_t page = PAGES; page-- > 0;)
        workset_add(workset, page);
    assert_int_equal(workset_count(workset), WORKSET_MOST);
    assert_int_equal(workset_page(workset, WORKSET_MOST - 1), PAGES - WORKSET_MOST);
}

static void test_what_is_told_is_the_same_there_behind_what_was(void **state)
{
    static const uint64_t both[] = {5, 3, 700, PAGES - 1, 0};
    uint8_t message[WORKSET_MESSAGE];
    struct workset *there;
    add(some, ARRAY_SIZE(some));
    size_t size = workset_encode(workset, message);
    assert_int_equal(size, 4 * ARRAY_SIZE(some));
    assert_int_equal(workset_new(RAM, &there, NULL), 0);
    workset_add(there, 5);
    workset_add(there, 3);
    assert_int_equal(workset_decode(there, message, size, NULL), 0);
    assert_pages(there, both, ARRAY_SIZE(both));
    workset_free(there);
}

static void test_what_makes_no_sense_adds_nothing(void **state)
{
    static uint8_t message[WORKSET_MESSAGE + 4];
    put_le32(message, 7);
    put_le32(message + 4, PAGES);
    assert_int_equal(workset_decode(workset, message, 8, NULL), -EPROTO);
    assert_int_equal(workset_decode(workset, message, 3, NULL), -EPROTO);
    assert_int_equal(workset_decode(workset, message, sizeof message, NULL), -EPROTO);
    assert_int_equal(workset_count(workset), 0);
    assert_int_equal(workset_decode(workset, message, 0, NULL), 0);
}

static void save(void)
{
    add(some, ARRAY_SIZE(some));
    assert_ok(workset_save(workset, folder, &vm, &err));
}

/* In a new one. */
static int load(const struct id *id, uint64_t ram, size_t count)
{
    struct workset *loaded;
    assert_int_equal(workset_new(ram, &loaded, NULL), 0);
    int r = workset_load(loaded, folder, id, NULL);
    assert_pages(loaded, some, count);
    workset_free(loaded);
    return r;
}

static void test_what_is_kept_is_there_again(void **state)
{
    struct stat st;
    assert_int_equal(load(&vm, RAM, 0), -ENOENT);
    save();
    assert_int_equal(stat(in_folder("memory.workset"), &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    assert_int_equal(st.st_size, 48 + 4 * ARRAY_SIZE(some));
    assert_int_equal(load(&vm, RAM, ARRAY_SIZE(some)), 0);
    save();
    assert_int_equal(load(&vm, RAM, ARRAY_SIZE(some)), 0);
}

static void test_another_guest_s_is_not_taken(void **state)
{
    save();
    assert_int_equal(load(&other_vm, RAM, 0), -EBADMSG);
    assert_int_equal(load(&vm, RAM + QSTREAM_PAGE_SIZE, 0), -EBADMSG);
}

static void test_each_damaged_byte_is_noticed(void **state)
{
    save();
    int fd = open(in_folder("memory.workset"), O_RDWR);
    for (off_t at = 0; at < (off_t)(48 + 4 * ARRAY_SIZE(some)); at++) {
        uint8_t byte, wrong;
        assert_int_equal(pread(fd, &byte, 1, at), 1);
        wrong = byte ^ 0x40;
        assert_int_equal(pwrite(fd, &wrong, 1, at), 1);
        assert_int_equal(load(&vm, RAM, 0), -EBADMSG);
        assert_int_equal(pwrite(fd, &byte, 1, at), 1);
    }
    assert_int_equal(load(&vm, RAM, ARRAY_SIZE(some)), 0);
    assert_int_equal(ftruncate(fd, 30), 0);
    assert_int_equal(load(&vm, RAM, 0), -EBADMSG);
    assert_int_equal(ftruncate(fd, 10 << 20), 0);
    assert_int_equal(load(&vm, RAM, 0), -EFBIG);
    close(fd);
}

/* As on a full disk: some of it is written, then no more. */
static void test_what_cannot_be_written_leaves_the_old_one(void **state)
{
    struct rlimit before, little = {.rlim_cur = 50};
    save();
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    little.rlim_max = before.rlim_max;
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &little), 0);
    workset_add(workset, 9);
    int r = workset_save(workset, folder, &vm, NULL);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
    assert_int_equal(r, -EFBIG);
    assert_int_equal(access(in_folder("memory.workset.new"), F_OK), -1);
    assert_int_equal(load(&vm, RAM, ARRAY_SIZE(some)), 0);
}

static void test_a_page_that_comes_again_is_of_it(void **state)
{
    static const uint8_t ours[] = "\3ram", theirs[] = "\3rom";
    static const uint64_t twice[] = {9, PAGES - 1};
    struct again *again;
    assert_int_equal(again_new("ram", RAM, &again, NULL), 0);
    for (uint64_t page = 0; page <= PAGES; page++)
        again_came(again, ours, page);
    again_came(again, theirs, 5);
    again_came(again, ours, 9);
    again_came(again, ours, PAGES - 1);
    again_came(again, ours, 9);
    again_came(again, ours, PAGES);
    again_add(again, workset);
    assert_pages(workset, twice, ARRAY_SIZE(twice));
    again_free(again);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_each_page_is_there_once_in_the_order_of_its_coming),
        TEST(test_it_is_bounded),
        TEST(test_what_is_told_is_the_same_there_behind_what_was),
        TEST(test_what_makes_no_sense_adds_nothing),
        TEST(test_what_is_kept_is_there_again),
        TEST(test_another_guest_s_is_not_taken),
        TEST(test_each_damaged_byte_is_noticed),
        TEST(test_what_cannot_be_written_leaves_the_old_one),
        TEST(test_a_page_that_comes_again_is_of_it),
    };
    return cmocka_run_group_tests_name("workset", tests, NULL, NULL);
}
