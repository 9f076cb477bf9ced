/* SPDX-License-Identifier: Apache-2.0
 *
 * Base images; qemu-img is the real one.
 */
#include "host_test.h"

#include "base/clock.h"
#include "host/image_copy.h"
#include "host/program.h"

#include <fcntl.h>
#include <openssl/sha.h>
#include <sys/stat.h>

static int make_file(struct test_host *t, const char *name, char path[128])
{
    snprintf(path, 128, "%s/%s", t->dir, name);
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    return fd;
}

static void hash_file(const char *path, uint64_t size, char text[HASH_TEXT_SIZE])
{
    uint8_t hash[HASH_SIZE];
    _cleanup_free_ uint8_t *data = calloc(1, size);
    int fd = open(path, O_RDONLY);
    assert_true(read(fd, data, size) >= 0);
    close(fd);
    SHA256(data, size, hash);
    hex_format(hash, sizeof hash, text);
}

/* --- the pass over the bytes ---------------------------------------------------------------------------- */

static void a_pass_copies_hashes_and_keeps_holes(void **state)
{
    struct test_host *t = *state;
    char from_path[128], to_path[128], expected[HASH_TEXT_SIZE], text[HASH_TEXT_SIZE];
    uint8_t hash[HASH_SIZE], data[5000];
    struct err err;
    struct stat st;
    int from = make_file(t, "from", from_path), to = make_file(t, "to", to_path);
    memset(data, 'x', sizeof data);
    assert_int_equal(ftruncate(from, 16 << 20), 0);
    assert_int_equal(pwrite(from, data, sizeof data, 4096), sizeof data);
    assert_int_equal(pwrite(from, data, 100, (16 << 20) - 100), 100);
    struct image_pass pass = {.from = from, .to = to, .size = 16 << 20};
    assert_int_equal(image_pass(&pass, hash, &err), 0);
    hash_file(from_path, 16 << 20, expected);
    assert_string_equal(hex_format(hash, sizeof hash, text), expected);
    hash_file(to_path, 16 << 20, text);
    assert_string_equal(text, expected);
    assert_int_equal(fstat(to, &st), 0);
    assert_true(st.st_blocks * 512 < 128 << 10);
    close(from), close(to);
}

static void zeroes_that_were_written_become_holes(void **state)
{
    struct test_host *t = *state;
    char path[128];
    uint8_t hash[HASH_SIZE];
    struct err err;
    struct stat st;
    int from = make_file(t, "from", path), to = make_file(t, "to", path);
    _cleanup_free_ char *zeroes = calloc(1, 4 << 20);
    assert_int_equal(write(from, zeroes, 4 << 20), 4 << 20);
    struct image_pass pass = {.from = from, .to = to, .size = 4 << 20};
    assert_int_equal(image_pass(&pass, hash, &err), 0);
    assert_int_equal(fstat(to, &st), 0);
    assert_int_equal(st.st_size, 4 << 20);
    assert_true(st.st_blocks * 512 <= 4096);
    close(from), close(to);
}

static void a_size_beyond_the_file_is_filled_with_zeroes(void **state)
{
    struct test_host *t = *state;
    char from_path[128], path[128], a[HASH_TEXT_SIZE], b[HASH_TEXT_SIZE];
    uint8_t hash[HASH_SIZE];
    struct err err;
    int from = make_file(t, "from", from_path), to = make_file(t, "to", path);
    assert_int_equal(write(from, "hello", 5), 5);
    struct image_pass pass = {.from = from, .to = to, .size = 512};
    assert_int_equal(image_pass(&pass, hash, &err), 0);
    hash_file(path, 512, a);
    assert_string_equal(hex_format(hash, sizeof hash, b), a);
    close(from), close(to);
}

static void a_full_disk_ends_the_pass(void **state)
{
    struct test_host *t = *state;
    char path[128];
    uint8_t hash[HASH_SIZE];
    struct err err;
    int from = make_file(t, "from", path), full = open("/dev/full", O_RDWR | O_CLOEXEC);
    assert_int_equal(write(from, "hello", 5), 5);
    struct image_pass pass = {.from = from, .to = full, .size = 512};
    assert_true(image_pass(&pass, hash, &err) < 0);
    close(from), close(full);
}

static void a_pass_can_be_stopped(void **state)
{
    struct test_host *t = *state;
    char path[128];
    uint8_t hash[HASH_SIZE];
    struct err err;
    atomic_bool cancel = true;
    int from = make_file(t, "from", path);
    assert_int_equal(ftruncate(from, 1 << 20), 0);
    struct image_pass pass = {.from = from, .to = -1, .size = 1 << 20, .cancel = &cancel};
    assert_int_equal(image_pass(&pass, hash, &err), -ECANCELED);
    close(from);
}

/* --- programs ------------------------------------------------------------------------------------------- */

static int run(const char *const *argv, int64_t msec, char **ret_output, struct err *err)
{
    struct program program = {.argv = argv, .pass_fd = -1, .deadline = clock_now() + msec * NSEC_PER_MSEC};
    return program_run(&program, ret_output, err);
}

static void a_programs_output_and_failure_come_back(void **state)
{
    static const char *const echo[] = {"echo", "a b;c", NULL};
    static const char *const bad[] = {"sh", "-c", "echo reason >&2; exit 3", NULL};
    static const char *const none[] = {"no-such-program-here", NULL};
    _cleanup_free_ char *output = NULL;
    struct err err;
    assert_int_equal(run(echo, 5000, &output, &err), 0);
    assert_string_equal(output, "a b;c\n");
    assert_int_equal(run(bad, 5000, NULL, &err), -EIO);
    assert_string_equal(err.text, "reason");
    assert_int_equal(run(none, 5000, NULL, &err), -ENOENT);
}

static void a_program_that_takes_too_long_is_ended(void **state)
{
    static const char *const slow[] = {"sleep", "60", NULL};
    struct err err;
    int64_t begun = clock_now();
    assert_int_equal(run(slow, 300, NULL, &err), -ETIMEDOUT);
    assert_true(clock_now() - begun < 5 * NSEC_PER_SEC);
}

static void a_program_inherits_the_one_descriptor(void **state)
{
    static const char *const list[] = {"sh", "-c", "ls /proc/self/fd | wc -l; cat <&3", NULL};
    struct test_host *t = *state;
    char path[128];
    _cleanup_free_ char *output = NULL;
    struct err err;
    int fd = make_file(t, "in", path);
    assert_int_equal(write(fd, "inside", 6), 6);
    lseek(fd, 0, SEEK_SET);
    struct program program = {.argv = list, .pass_fd = fd, .deadline = clock_now() + 5 * NSEC_PER_SEC};
    assert_int_equal(program_run(&program, &output, &err), 0);
    assert_string_equal(output, "5\ninside"); /* 0 to 3, and the folder that ls reads */
    close(fd);
}

/* --- adding and removing -------------------------------------------------------------------------------- */

static json_t *add(struct test_host *t, const char *name, const char *path)
{
    struct id id;
    struct err err = ERR_NONE;
    json_t *operation = NULL;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    assert_true(fd >= 0);
    assert_int_equal(image_add(&t->host, name, fd, &id, &err), 0);
    while (!operation_changed(t->host.operations, &id, INT64_MAX))
        clock_sleep(NSEC_PER_SEC / 100);
    assert_int_equal(operation_get(t->host.operations, &id, &operation, &err), 0);
    return operation;
}

static void expect_failed(struct test_host *t, const char *path, const char *words)
{
    _cleanup_json_ json_t *operation = add(t, "bad", path);
    const char *text = json_str(json_object_get(operation, "error"), "text", "");
    assert_string_equal(json_str(operation, "state", ""), "failed");
    if (!strstr(text, words))
        fail_msg("\"%s\" does not say \"%s\"", text, words);
}

static void raw_and_qcow2_of_the_same_bytes_are_one_image(void **state)
{
    struct test_host *t = *state;
    char raw[128], qcow2[128], expected[HASH_TEXT_SIZE];
    struct err err;
    int fd = make_file(t, "raw", raw);
    snprintf(qcow2, sizeof qcow2, "%s/qcow2", t->dir);
    assert_int_equal(ftruncate(fd, 8 << 20), 0);
    assert_int_equal(pwrite(fd, "data", 4, 5 << 20), 4);
    close(fd);
    const char *const argv[] = {"qemu-img", "convert", "-O", "qcow2", raw, qcow2, NULL};
    assert_int_equal(run(argv, 20000, NULL, &err), 0);
    hash_file(raw, 8 << 20, expected);
    _cleanup_json_ json_t *first = add(t, "first", raw);
    const json_t *image = json_object_get(first, "result");
    assert_string_equal(json_str(image, "hash", ""), expected);
    assert_int_equal(json_u64(image, "virtual_size", 0), 8 << 20);
    _cleanup_json_ json_t *second = add(t, "second", qcow2);
    assert_string_equal(json_str(json_object_get(second, "error"), "code", ""), "EEXIST");
    assert_int_equal(image_remove(&t->host, "first", false, &err), 0);
    _cleanup_json_ json_t *third = add(t, "third", qcow2);
    assert_string_equal(json_str(json_object_get(third, "result"), "hash", ""), expected);
}

static void an_image_that_names_other_files_is_refused(void **state)
{
    struct test_host *t = *state;
    char base[128], top[128], vmdk[128];
    struct err err;
    close(make_file(t, "base", base));
    assert_int_equal(truncate(base, 1 << 20), 0);
    snprintf(top, sizeof top, "%s/top", t->dir);
    snprintf(vmdk, sizeof vmdk, "%s/disk.vmdk", t->dir);
    const char *const overlay[] = {"qemu-img", "create", "-f", "qcow2", "-b", base, "-F", "raw", top, NULL};
    const char *const other[] = {"qemu-img", "create", "-f", "vmdk", vmdk, "1M", NULL};
    assert_int_equal(run(overlay, 20000, NULL, &err), 0);
    assert_int_equal(run(other, 20000, NULL, &err), 0);
    expect_failed(t, top, "needs another file");
    expect_failed(t, vmdk, "vmdk");
    char data_file[160], external[128];
    snprintf(external, sizeof external, "%s/external", t->dir);
    snprintf(data_file, sizeof data_file, "data_file=%s,data_file_raw=on", base);
    const char *const with_data[] = {"qemu-img", "create", "-f", "qcow2", "-o",
                                     data_file,  external, "1M", NULL};
    assert_int_equal(run(with_data, 20000, NULL, &err), 0);
    expect_failed(t, external, "needs another file");
}

static void an_empty_file_is_refused_and_leaves_nothing(void **state)
{
    struct test_host *t = *state;
    char path[128], tmp[128];
    close(make_file(t, "empty", path));
    expect_failed(t, path, "empty");
    snprintf(tmp, sizeof tmp, "%s/images/tmp", t->dir);
    assert_int_equal(rmdir(tmp), 0); /* nothing lies in it */
}

static void a_damaged_qcow2_is_refused(void **state)
{
    struct test_host *t = *state;
    char path[128];
    int fd = make_file(t, "damaged", path);
    uint8_t header[512] = {'Q', 'F', 'I', 0xfb, 0, 0, 0, 3};
    memset(header + 8, 0xff, sizeof header - 8);
    assert_int_equal(write(fd, header, sizeof header), sizeof header);
    close(fd);
    _cleanup_json_ json_t *operation = add(t, "bad", path);
    assert_string_equal(json_str(operation, "state", ""), "failed");
}

static void names_are_taken_once(void **state)
{
    struct test_host *t = *state;
    char path[128];
    struct err err;
    struct id id;
    int fd = make_file(t, "raw", path);
    assert_int_equal(write(fd, "x", 1), 1);
    close(fd);
    _cleanup_json_ json_t *operation = add(t, "debian", path);
    assert_string_equal(json_str(operation, "state", ""), "done");
    assert_int_equal(image_add(&t->host, "debian", open(path, O_RDONLY), &id, &err), -EEXIST);
}

static void images_and_rows_are_brought_together_at_start(void **state)
{
    struct test_host *t = *state;
    char path[128], tmp[160];
    struct err err;
    _cleanup_json_ json_t *image = NULL;
    _cleanup_json_ json_t *gone = NULL;
    int fd = make_file(t, "raw", path);
    assert_int_equal(write(fd, "x", 1), 1);
    close(fd);
    _cleanup_json_ json_t *operation = add(t, "debian", path);
    char hash[HASH_TEXT_SIZE];
    snprintf(hash, sizeof hash, "%s", json_str(json_object_get(operation, "result"), "hash", ""));
    assert_int_equal(registry_remove(t->host.registry, REGISTRY_IMAGES, hash, &err), 0);
    snprintf(tmp, sizeof tmp, "%s/images/tmp/unfinished", t->dir);
    assert_int_equal(file_mkdirs(tmp, 0700, &err), 0);
    test_host_reopen(t);
    assert_int_equal(image_find(&t->host, "debian", &image, &err), 0);
    assert_int_equal(access(tmp, F_OK), -1);
    snprintf(tmp, sizeof tmp, "%s/images/%s", t->dir, hash);
    assert_int_equal(file_remove_tree(tmp, &err), 0);
    test_host_reopen(t);
    assert_int_equal(image_find(&t->host, "debian", &gone, &err), -ENOENT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        HOST_TEST(a_pass_copies_hashes_and_keeps_holes),
        HOST_TEST(zeroes_that_were_written_become_holes),
        HOST_TEST(a_size_beyond_the_file_is_filled_with_zeroes),
        HOST_TEST(a_full_disk_ends_the_pass),
        HOST_TEST(a_pass_can_be_stopped),
        HOST_TEST(a_programs_output_and_failure_come_back),
        HOST_TEST(a_program_that_takes_too_long_is_ended),
        HOST_TEST(a_program_inherits_the_one_descriptor),
        HOST_TEST(raw_and_qcow2_of_the_same_bytes_are_one_image),
        HOST_TEST(an_image_that_names_other_files_is_refused),
        HOST_TEST(an_empty_file_is_refused_and_leaves_nothing),
        HOST_TEST(a_damaged_qcow2_is_refused),
        HOST_TEST(names_are_taken_once),
        HOST_TEST(images_and_rows_are_brought_together_at_start),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
