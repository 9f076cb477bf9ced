/* SPDX-License-Identifier: Apache-2.0
 *
 * A shell script plays QEMU, and counts how often it is started.
 */
#include "../scratch.h"

#include "base/file.h"
#include "base/macro.h"
#include "vmm/qemu.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#define FIRST "pc-q35-7.2"
#define SECOND "pc-q35-10.0"

struct play {
    char dir[64], binary[PATH_MAX], count[PATH_MAX], cache[PATH_MAX];
};

/* Another file under the same name, as a package's update makes it. */
static void install(const struct play *play, const char *machine, int status)
{
    char script[2 * PATH_MAX];
    snprintf(script, sizeof script,
             "#!/bin/sh\necho x >> %s\n[ $1 = -version ] && echo 'QEMU emulator version 1.2 (a script)' || "
             "echo '%s a machine'\nexit %d\n",
             play->count, machine, status);
    assert_int_equal(file_replace(play->binary, script, strlen(script), 0700, NULL), 0);
}

static off_t starts(const struct play *play)
{
    struct stat st;
    return stat(play->count, &st) < 0 ? 0 : st.st_size / 2;
}

static int setup(void **state)
{
    struct play *play = calloc(1, sizeof *play);
    assert_int_equal(scratch_make(play->dir, sizeof play->dir), 0);
    snprintf(play->binary, sizeof play->binary, "%s/qemu", play->dir);
    snprintf(play->count, sizeof play->count, "%s/count", play->dir);
    qemu_cache_path(play->dir, play->cache);
    install(play, FIRST, 0);
    *state = play;
    return 0;
}

static int teardown(void **state)
{
    struct play *play = *state;
    int r = file_remove_tree(play->dir, NULL);
    free(play);
    return r;
}

static void probe(const struct play *play, const char *machine)
{
    struct qemu_host host;
    assert_int_equal(qemu_probe_cached(play->binary, play->cache, &host, NULL), 0);
    assert_string_equal(host.version, "1.2");
    assert_int_equal(json_array_size(host.machines), 1);
    assert_string_equal(json_string_value(json_array_get(host.machines, 0)), machine);
    assert_true(host.kvm || host.kvm_why[0]);
    qemu_host_done(&host);
}

static void qemu_is_asked_once(void **state)
{
    struct play *play = *state;
    probe(play, FIRST);
    off_t once = starts(play);
    assert_true(once > 0);
    probe(play, FIRST);
    assert_int_equal(starts(play), once);
}

static void another_qemu_is_asked_anew(void **state)
{
    struct play *play = *state;
    probe(play, FIRST);
    install(play, SECOND, 0);
    probe(play, SECOND);
    probe(play, SECOND);
}

static void a_binary_whose_inode_was_changed_is_asked_anew(void **state)
{
    struct play *play = *state;
    probe(play, FIRST);
    off_t before = starts(play);
    assert_int_equal(chmod(play->binary, 0755), 0);
    probe(play, FIRST);
    assert_true(starts(play) > before);
}

static void a_damaged_cache_is_no_answer(void **state)
{
    static const char *const damage[] = {"", "{", "[]", "{\"binary\": {}, \"machines\": [\"x\"]}",
                                         "\x01\x02"};
    struct play *play = *state;
    for (size_t i = 0; i < ARRAY_SIZE(damage); i++) {
        off_t before = starts(play);
        assert_int_equal(file_replace(play->cache, damage[i], strlen(damage[i]), 0644, NULL), 0);
        probe(play, FIRST);
        assert_true(starts(play) > before);
    }
}

/* The binary is the right one, what it is said to have answered makes no sense. */
static void machines_that_are_no_names_are_no_answer(void **state)
{
    static const char *const damage[] = {"[]", "[1]", "null", "{}"};
    struct play *play = *state;
    probe(play, FIRST);
    for (size_t i = 0; i < ARRAY_SIZE(damage); i++) {
        json_t *json = json_load_file(play->cache, 0, NULL);
        assert_non_null(json);
        json_object_set_new(json, "machines", json_loads(damage[i], JSON_DECODE_ANY, NULL));
        assert_int_equal(json_dump_file(json, play->cache, 0), 0);
        json_decref(json);
        off_t before = starts(play);
        probe(play, FIRST);
        assert_true(starts(play) > before);
    }
}

static void where_nothing_can_be_kept_qemu_is_asked_each_time(void **state)
{
    struct play *play = *state;
    snprintf(play->cache, sizeof play->cache, "/nonexistent/qemu.json");
    probe(play, FIRST);
    off_t before = starts(play);
    probe(play, FIRST);
    assert_true(starts(play) > before);
}

static void a_failure_is_not_kept(void **state)
{
    struct play *play = *state;
    struct qemu_host host;
    install(play, FIRST, 1);
    assert_int_equal(qemu_probe_cached(play->binary, play->cache, &host, NULL), -EIO);
    assert_int_equal(access(play->cache, F_OK), -1);
    install(play, FIRST, 0);
    probe(play, FIRST);
}

static void a_missing_qemu_fails(void **state)
{
    struct play *play = *state;
    struct qemu_host host;
    probe(play, FIRST);
    assert_int_equal(unlink(play->binary), 0);
    assert_int_equal(qemu_probe_cached(play->binary, play->cache, &host, NULL), -ENOENT);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(qemu_is_asked_once),
        TEST(another_qemu_is_asked_anew),
        TEST(a_binary_whose_inode_was_changed_is_asked_anew),
        TEST(a_damaged_cache_is_no_answer),
        TEST(machines_that_are_no_names_are_no_answer),
        TEST(where_nothing_can_be_kept_qemu_is_asked_each_time),
        TEST(a_failure_is_not_kept),
        TEST(a_missing_qemu_fails),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
