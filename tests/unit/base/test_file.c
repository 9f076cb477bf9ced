/* SPDX-License-Identifier: Apache-2.0 */
#include "unit.h"

#include "base/macro.h"

#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>

static void put(const char *path, const char *text)
{
    assert_int_equal(file_replace(path, text, strlen(text), 0644, NULL), 0);
}

static void assert_content(const char *path, const char *text)
{
    _cleanup_free_ void *data = NULL;
    size_t size = 0;
    assert_int_equal(file_load(path, 1 << 20, &data, &size, NULL), 0);
    assert_int_equal(size, strlen(text));
    assert_memory_equal(data, text, size + 1);
}

static void replace_makes_and_replaces_with_the_mode(void **state)
{
    struct stat st;
    const char *path = in_scratch("f");
    put(path, "old");
    assert_int_equal(file_replace(path, "newer", 5, 0600, NULL), 0);
    assert_content(path, "newer");
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
}

static void replace_gives_the_mode_whatever_the_umask(void **state)
{
    struct stat st;
    mode_t old = umask(077);
    put(in_scratch("f"), "x");
    umask(old);
    assert_int_equal(stat(in_scratch("f"), &st), 0);
    assert_int_equal(st.st_mode & 0777, 0644);
}

static void replace_ignores_a_temporary_file_that_a_crash_left(void **state)
{
    put(in_scratch("f.new"), "half of something longer");
    put(in_scratch("f"), "x");
    assert_content(in_scratch("f"), "x");
    assert_int_equal(access(in_scratch("f.new"), F_OK), -1);
}

static void replace_beyond_a_size_limit_keeps_the_old_file(void **state)
{
    struct rlimit old, limit;
    char data[8192] = {1};
    struct err err = ERR_NONE;
    const char *path = in_scratch("f");
    put(path, "old");
    signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &old);
    limit = (struct rlimit){.rlim_cur = 4096, .rlim_max = old.rlim_max};
    setrlimit(RLIMIT_FSIZE, &limit);
    int r = file_replace(path, data, sizeof data, 0644, &err);
    setrlimit(RLIMIT_FSIZE, &old);
    assert_int_equal(r, -EFBIG);
    assert_non_null(strstr(err.text, path));
    assert_content(path, "old");
    assert_int_equal(access(in_scratch("f.new"), F_OK), -1);
}

/* Runs in a child: its mount must vanish with it. */
static int replace_in_full_tmpfs(void)
{
    static char data[256 * 1024];
    char path[128];
    void *back = NULL;
    size_t size = 0;
    if (unshare(CLONE_NEWNS) < 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
        mount("orai", scratch, "tmpfs", 0, "size=64k") < 0)
        return 77;
    snprintf(path, sizeof path, "%s/f", scratch);
    if (file_replace(path, "old", 3, 0644, NULL) < 0)
        return 1;
    if (file_replace(path, data, sizeof data, 0644, NULL) != -ENOSPC)
        return 2;
    if (file_load(path, 100, &back, &size, NULL) < 0 || size != 3)
        return 3;
    free(back);
    /* The half-written temporary file must not hold the space that others need. */
    return file_replace(path, data, 32 * 1024, 0644, NULL) < 0 ? 4 : 0;
}

static void replace_on_a_full_disk_keeps_the_old_file(void **state)
{
    int status;
    pid_t child = fork();
    if (child == 0)
        _exit(replace_in_full_tmpfs());
    assert_int_equal(waitpid(child, &status, 0), child);
    if (WEXITSTATUS(status) == 77) {
        print_message("skipped: mounting a tmpfs needs root\n");
        skip();
    }
    assert_int_equal(status, 0);
}

static void replace_in_a_missing_folder_fails(void **state)
{
    assert_int_equal(file_replace(in_scratch("none/f"), "x", 1, 0644, NULL), -ENOENT);
}

static void load_of_a_missing_file_is_enoent(void **state)
{
    void *data = NULL;
    size_t size = 7;
    assert_int_equal(file_load(in_scratch("none"), 10, &data, &size, NULL), -ENOENT);
    assert_null(data);
    assert_int_equal(size, 7);
}

static void load_refuses_more_than_the_limit(void **state)
{
    void *data = NULL;
    size_t size = 0;
    put(in_scratch("f"), "12345");
    assert_int_equal(file_load(in_scratch("f"), 4, &data, &size, NULL), -EFBIG);
}

static void load_refuses_what_is_no_regular_file(void **state)
{
    void *data = NULL;
    size_t size = 0;
    assert_int_equal(file_load("/dev/zero", 100, &data, &size, NULL), -EINVAL);
    assert_int_equal(file_load(scratch, 100, &data, &size, NULL), -EINVAL);
}

static void load_puts_a_nul_behind_an_empty_file(void **state)
{
    put(in_scratch("f"), "");
    assert_content(in_scratch("f"), "");
}

static void read_full_of_a_short_file_is_epipe(void **state)
{
    char data[8];
    put(in_scratch("f"), "1234");
    _cleanup_close_ int fd = open(in_scratch("f"), O_RDONLY);
    assert_int_equal(file_read_full(fd, data, 4), 0);
    assert_int_equal(file_read_full(fd, data, 1), -EPIPE);
    assert_int_equal(file_pread_full(fd, data, 5, 0), -EPIPE);
    assert_int_equal(file_pread_full(fd, data, 2, 2), 0);
    assert_memory_equal(data, "34", 2);
}

static void read_full_joins_what_a_pipe_gives_in_pieces(void **state)
{
    int p[2];
    char data[8];
    assert_int_equal(pipe(p), 0);
    pid_t child = fork();
    if (child == 0) {
        for (int i = 0; i < 8; i++, usleep(1000))
            if (write(p[1], "x", 1) != 1)
                _exit(1);
        _exit(0);
    }
    assert_int_equal(file_read_full(p[0], data, 8), 0);
    waitpid(child, NULL, 0);
    close(p[0]);
    close(p[1]);
}

static void pwrite_full_writes_at_its_offset(void **state)
{
    put(in_scratch("f"), "abcdef");
    _cleanup_close_ int fd = open(in_scratch("f"), O_RDWR);
    assert_int_equal(file_pwrite_full(fd, "XY", 2, 2), 0);
    assert_content(in_scratch("f"), "abXYef");
}

static void mkdirs_makes_all_and_is_content_when_they_are_there(void **state)
{
    struct stat st;
    for (int i = 0; i < 2; i++)
        assert_int_equal(file_mkdirs(in_scratch("a/b/c/"), 0755, NULL), 0);
    assert_int_equal(stat(in_scratch("a/b/c"), &st), 0);
    assert_true(S_ISDIR(st.st_mode));
}

static void mkdirs_fails_when_a_file_is_in_the_way(void **state)
{
    put(in_scratch("f"), "x");
    assert_int_equal(file_mkdirs(in_scratch("f"), 0755, NULL), -ENOTDIR);
    assert_int_equal(file_mkdirs(in_scratch("f/g"), 0755, NULL), -ENOTDIR);
}

static void mkdirs_refuses_an_empty_path(void **state)
{
    assert_int_equal(file_mkdirs("", 0755, NULL), -EINVAL);
}

static void remove_tree_does_not_follow_links(void **state)
{
    put(in_scratch("kept"), "x");
    file_mkdirs(in_scratch("tree/inner"), 0755, NULL);
    assert_int_equal(symlink(scratch, in_scratch("tree/inner/link")), 0);
    assert_int_equal(symlink(in_scratch("kept"), in_scratch("tree/link")), 0);
    assert_int_equal(file_remove_tree(in_scratch("tree"), NULL), 0);
    assert_int_equal(access(in_scratch("tree"), F_OK), -1);
    assert_content(in_scratch("kept"), "x");
}

static void remove_tree_of_nothing_is_fine(void **state)
{
    assert_int_equal(file_remove_tree(in_scratch("none"), NULL), 0);
}

static void sync_parent_takes_paths_without_a_slash_and_at_the_root(void **state)
{
    assert_int_equal(file_sync_parent("x", NULL), 0);
    assert_int_equal(file_sync_parent("/x", NULL), 0);
    assert_int_equal(file_sync_parent(in_scratch("none/x"), NULL), -ENOENT);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, make_scratch, remove_scratch)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(replace_makes_and_replaces_with_the_mode),
        TEST(replace_gives_the_mode_whatever_the_umask),
        TEST(replace_ignores_a_temporary_file_that_a_crash_left),
        TEST(replace_beyond_a_size_limit_keeps_the_old_file),
        TEST(replace_on_a_full_disk_keeps_the_old_file),
        TEST(replace_in_a_missing_folder_fails),
        TEST(load_of_a_missing_file_is_enoent),
        TEST(load_refuses_more_than_the_limit),
        TEST(load_refuses_what_is_no_regular_file),
        TEST(load_puts_a_nul_behind_an_empty_file),
        TEST(read_full_of_a_short_file_is_epipe),
        TEST(read_full_joins_what_a_pipe_gives_in_pieces),
        TEST(pwrite_full_writes_at_its_offset),
        TEST(mkdirs_makes_all_and_is_content_when_they_are_there),
        TEST(mkdirs_fails_when_a_file_is_in_the_way),
        TEST(mkdirs_refuses_an_empty_path),
        TEST(remove_tree_does_not_follow_links),
        TEST(remove_tree_of_nothing_is_fine),
        TEST(sync_parent_takes_paths_without_a_slash_and_at_the_root),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
