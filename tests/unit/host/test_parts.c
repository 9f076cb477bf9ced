/* SPDX-License-Identifier: Apache-2.0
 *
 * Small parts: the pool, options, opening files in a caller's name.
 */
#include "host_test.h"

#include "base/clock.h"
#include "host/caller.h"
#include "host/options.h"
#include "host/pool.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

static atomic_int counter, taken;

static void count(void *arg)
{
    (void)arg;
    counter++;
}

static void wait_for_it(void *arg)
{
    atomic_bool *go = arg;
    taken++;
    while (!*go)
        clock_sleep(NSEC_PER_MSEC);
    counter++;
}

static void all_work_is_done_before_a_pool_ends(void **state)
{
    struct pool *pool;
    struct err err;
    counter = 0;
    assert_int_equal(pool_new("test", 3, 1000, &pool, &err), 0);
    for (int i = 0; i < 500; i++)
        assert_int_equal(pool_run(pool, count, NULL, &err), 0);
    assert_true(pool_stop(pool, 5000));
    assert_int_equal(counter, 500);
    assert_int_equal(pool_run(pool, count, NULL, &err), -EAGAIN);
    pool_free(pool);
}

static void work_beyond_the_limits_is_refused(void **state)
{
    struct pool *pool;
    struct err err;
    atomic_bool go = false;
    counter = taken = 0;
    assert_int_equal(pool_new("test", 1, 2, &pool, &err), 0);
    assert_int_equal(pool_run(pool, wait_for_it, &go, &err), 0);
    while (!taken)
        clock_sleep(NSEC_PER_MSEC);
    assert_int_equal(pool_run(pool, wait_for_it, &go, &err), 0);
    assert_int_equal(pool_run(pool, wait_for_it, &go, &err), 0);
    assert_int_equal(pool_run(pool, wait_for_it, &go, &err), -EAGAIN);
    assert_false(pool_stop(pool, 50)); /* it says so when it cannot end */
    go = true;
    assert_true(pool_stop(pool, 5000));
    assert_int_equal(counter, 3);
    pool_free(pool);
}

/* --- options -------------------------------------------------------------------------------------------- */

static int parse(struct host_options *ret, const char **text, struct err *err, const char *a, const char *b,
                 const char *c, const char *d)
{
    const char *argv[] = {"oraid", "--qemu-user", "root", a, b, c, d, NULL};
    int argc = 3;
    while (argv[argc])
        argc++;
    return options_parse(argc, (char **)argv, ret, text, err);
}

static void addresses_are_taken_apart(void **state)
{
    static const struct {
        const char *text, *address;
        int port;
    } good[] = {{"127.0.0.1:80", "127.0.0.1", 80},
                {":81", "", 81},
                {"192.0.2.1", "192.0.2.1", 7420},
                {"[::1]:82", "::1", 82},
                {"::1", "::1", 7420},
                {"[2001:db8::1]", "2001:db8::1", 7420},
                {"host.example:0", "host.example", 0}};
    static const char *const bad[] = {"127.0.0.1:", "127.0.0.1:x", "127.0.0.1:65536", "[::1", "h:-1"};
    const char *text;
    struct err err;
    for (size_t i = 0; i < ARRAY_SIZE(good); i++) {
        struct host_options options = {0};
        assert_int_equal(parse(&options, &text, &err, "--listen", good[i].text, "--name", "a"), 0);
        assert_string_equal(options.listen_address, good[i].address);
        assert_int_equal(options.port, good[i].port);
    }
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        struct host_options options = {0};
        assert_int_equal(parse(&options, &text, &err, "--listen", bad[i], NULL, NULL), -EINVAL);
    }
}

static void a_missing_user_is_said_with_the_command_that_makes_it(void **state)
{
    struct host_options options = {0};
    const char *text;
    struct err err;
    assert_int_equal(parse(&options, &text, &err, "--qemu-user", "no-such-user", NULL, NULL), -EINVAL);
    assert_non_null(strstr(err.hint, "useradd"));
}

static void bad_names_and_words_are_refused(void **state)
{
    struct host_options options = {0};
    const char *text;
    struct err err;
    assert_int_equal(parse(&options, &text, &err, "--name", "a b", NULL, NULL), -EINVAL);
    assert_int_equal(parse(&options, &text, &err, "extra", NULL, NULL, NULL), -EINVAL);
    assert_int_equal(parse(&options, &text, &err, "--no-such", NULL, NULL, NULL), -EINVAL);
    assert_int_equal(parse(&options, &text, &err, "--help", NULL, NULL, NULL), 0);
    assert_non_null(strstr(text, "usage"));
}

static void relative_folders_become_absolute(void **state)
{
    struct host_options options = {0};
    const char *text;
    struct err err;
    assert_int_equal(parse(&options, &text, &err, "--state-dir", "some/where", "--name", "a"), 0);
    assert_int_equal(options.state_dir[0], '/');
    free((char *)options.state_dir);
}

/* --- files in the caller's name ------------------------------------------------------------------------- */

static int open_as(uid_t uid, const char *path, int *ret, struct err *err)
{
    struct credentials caller = {getpid(), uid, uid};
    return caller_open(&caller, path, "the file", ret, err);
}

static void a_caller_reads_what_it_may_and_no_more(void **state)
{
    struct test_host *t = *state;
    struct err err;
    char path[128];
    int fd = -1;
    if (getuid() != 0)
        skip(); /* only root can act for others */
    snprintf(path, sizeof path, "%s/secret", t->dir);
    assert_int_equal(chmod(t->dir, 0755), 0);
    assert_int_equal(file_replace(path, "x", 1, 0600, &err), 0);
    assert_int_equal(open_as(65534, path, &fd, &err), -EACCES);
    assert_int_equal(open_as(0, path, &fd, &err), 0);
    close(fd);
    assert_int_equal(chmod(path, 0644), 0);
    assert_int_equal(open_as(65534, path, &fd, &err), 0);
    close(fd);
    /* And we are ourselves again. */
    assert_int_equal(chmod(path, 0600), 0);
    fd = open(path, O_RDONLY);
    assert_true(fd >= 0);
    close(fd);
}

static void only_files_and_block_devices_are_opened(void **state)
{
    struct test_host *t = *state;
    struct err err;
    char fifo[128];
    int fd = -1;
    snprintf(fifo, sizeof fifo, "%s/fifo", t->dir);
    assert_int_equal(mkfifo(fifo, 0600), 0);
    assert_int_equal(open_as(getuid(), fifo, &fd, &err), -EINVAL);
    assert_int_equal(open_as(getuid(), t->dir, &fd, &err), -EINVAL);
    assert_int_equal(open_as(getuid(), "/dev/zero", &fd, &err), -EINVAL);
    assert_int_equal(open_as(getuid(), "relative", &fd, &err), -EINVAL);
    assert_int_equal(fd, -1);
}

static void a_device_is_for_those_who_may_write_to_it(void **state)
{
    struct test_host *t = *state;
    struct credentials nobody = {getpid(), 65534, 65534}, root = {getpid(), 0, 0};
    struct err err;
    char path[128];
    uint64_t size = 1;
    dev_t device;
    if (getuid() != 0)
        skip(); /* only root can make a device, and act for others */
    snprintf(path, sizeof path, "%s/device", t->dir);
    assert_int_equal(chmod(t->dir, 0755), 0);
    assert_int_equal(mknod(path, S_IFBLK | 0600, makedev(7, 0)), 0);
    assert_int_equal(caller_check_device(&nobody, path, &size, &device, &err), -EACCES);
    assert_int_equal(caller_check_device(&root, "/dev/zero", &size, &device, &err), -EINVAL);
    assert_int_equal(caller_check_device(&root, "dev/loop0", &size, &device, &err), -EINVAL);
    assert_int_equal(size, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(all_work_is_done_before_a_pool_ends),
        cmocka_unit_test(work_beyond_the_limits_is_refused),
        cmocka_unit_test(addresses_are_taken_apart),
        cmocka_unit_test(a_missing_user_is_said_with_the_command_that_makes_it),
        cmocka_unit_test(bad_names_and_words_are_refused),
        cmocka_unit_test(relative_folders_become_absolute),
        HOST_TEST(a_caller_reads_what_it_may_and_no_more),
        HOST_TEST(only_files_and_block_devices_are_opened),
        HOST_TEST(a_device_is_for_those_who_may_write_to_it),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
