/* SPDX-License-Identifier: Apache-2.0
 *
 * The epoch record: durable, never guessed, never going back.
 */
// clang-format off
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
// clang-format on

#include "../scratch.h"

#include "base/file.h"
#include "base/macro.h"
#include "move/epoch.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>

static char folder[64], path[96];

static const struct epoch_record committed = {
    .epoch = 7,
    .role = EPOCH_COMMITTED,
    .guest_runs = true,
    .refused = 3,
    .move = {{1, 2, 3}},
    .peer = {.name = "b", .address = "b.example", .port = 7420, .fingerprint = {{9, 8, 7}}},
    .from = {{6, 5, 4}},
};

static int setup(void **state)
{
    if (scratch_make(folder, sizeof folder) < 0)
        return -1;
    snprintf(path, sizeof path, "%s/epoch.json", folder);
    return 0;
}

static int teardown(void **state)
{
    return file_remove_tree(folder, NULL);
}

static struct epoch *create(const struct epoch_record *record)
{
    struct epoch *epoch = NULL;
    struct err err = ERR_NONE;
    if (epoch_create(folder, record, &epoch, &err) < 0)
        fail_msg("%s", err.text);
    return epoch;
}

static struct epoch *reopen(struct epoch *epoch)
{
    struct err err = ERR_NONE;
    epoch_free(epoch);
    epoch = NULL;
    if (epoch_open(folder, &epoch, &err) < 0)
        fail_msg("%s", err.text);
    return epoch;
}

static void write_text(const char *text)
{
    assert_int_equal(file_replace(path, text, strlen(text), 0600, NULL), 0);
}

static void assert_damaged(const char *text)
{
    struct epoch *epoch = NULL;
    struct err err = ERR_NONE;
    write_text(text);
    if (epoch_open(folder, &epoch, &err) != -EBADMSG)
        fail_msg("accepted: %s", text);
    assert_null(epoch);
    assert_non_null(strstr(err.text, path));
    assert_string_not_equal(err.hint, "");
}

static void test_every_member_survives(void **state)
{
    struct epoch *epoch = reopen(create(&committed));
    const struct epoch_record *got = epoch_get(epoch);
    assert_int_equal(got->epoch, 7);
    assert_int_equal(got->role, EPOCH_COMMITTED);
    assert_false(got->ready);
    assert_true(got->guest_runs);
    assert_false(got->forked);
    assert_int_equal(got->refused, 3);
    assert_true(id_equal(&got->move, &committed.move));
    assert_string_equal(got->peer.name, "b");
    assert_string_equal(got->peer.address, "b.example");
    assert_int_equal(got->peer.port, 7420);
    assert_true(fingerprint_equal(&got->peer.fingerprint, &committed.peer.fingerprint));
    assert_true(fingerprint_equal(&got->from, &committed.from));
    epoch_free(epoch);
}

static void test_a_change_is_there_after_reopening(void **state)
{
    struct epoch *epoch = create(&committed);
    struct epoch_record next = committed;
    next.epoch = 8;
    next.role = EPOCH_OWNER;
    assert_int_equal(epoch_set(epoch, &next, NULL), 0);
    epoch = reopen(epoch);
    assert_int_equal(epoch_get(epoch)->epoch, 8);
    assert_int_equal(epoch_get(epoch)->role, EPOCH_OWNER);
    epoch_free(epoch);
}

static void test_the_record_may_be_set_from_itself(void **state)
{
    struct epoch *epoch = create(&committed);
    assert_int_equal(epoch_set(epoch, epoch_get(epoch), NULL), 0);
    assert_int_equal(epoch_get(epoch)->epoch, 7);
    epoch_free(epoch);
}

static void test_a_missing_record_is_told_apart(void **state)
{
    struct epoch *epoch = NULL;
    assert_int_equal(epoch_open(folder, &epoch, NULL), -ENOENT);
    assert_null(epoch);
}

static void test_an_existing_record_is_never_made_anew(void **state)
{
    struct epoch *epoch = create(&committed), *second = NULL;
    assert_int_equal(epoch_create(folder, &committed, &second, NULL), -EEXIST);
    assert_null(second);
    epoch_free(epoch);
}

#define GOOD                                                                                           \
    "{\"format\":\"orai-epoch-1\",\"epoch\":7,\"role\":\"owner\",\"ready\":false,\"guest_runs\":true," \
    "\"forked\":false,\"refused\":0,\"move\":\"00000000000000000000000000000000\"}"

static void assert_damaged_when(const char *from, const char *to)
{
    char text[1024];
    const char *at = strstr(GOOD, from);
    assert_non_null(at);
    snprintf(text, sizeof text, "%.*s%s%s", (int)(at - GOOD), GOOD, to, at + strlen(from));
    assert_damaged(text);
}

static void test_the_sample_is_good(void **state)
{
    write_text(GOOD);
    epoch_free(reopen(NULL));
}

static void test_a_damaged_file_is_refused_and_never_guessed(void **state)
{
    assert_damaged("");
    assert_damaged("{");
    assert_damaged("[]");
    assert_damaged("{}");
    assert_damaged_when("\"epoch\":7,", "");
    assert_damaged_when("\"epoch\":7,", "\"epoch\":\"7\",");
    assert_damaged_when("\"epoch\":7,", "\"epoch\":-7,");
    assert_damaged_when("\"epoch\":7,", "\"epoch\":9223372036854775807,");
    assert_damaged_when("orai-epoch-1", "orai-epoch-2");
    assert_damaged_when("\"owner\"", "\"king\"");
    assert_damaged_when("\"owner\"", "null");
    assert_damaged_when("\"forked\":false", "\"forked\":\"no\"");
    assert_damaged_when("\"guest_runs\":true", "\"guest_runs\":1");
    assert_damaged_when("\"refused\":0", "\"refused\":[]");
    assert_damaged_when("\"refused\":0", "\"was\":8");
    assert_damaged_when("\"move\":\"00", "\"move\":\"");
}

static void test_every_cut_of_the_file_is_refused(void **state)
{
    char text[sizeof GOOD];
    for (size_t size = 0; size < strlen(GOOD); size++) {
        snprintf(text, sizeof text, "%.*s", (int)size, GOOD);
        assert_damaged(text);
    }
}

static void test_a_commit_without_its_peer_is_refused(void **state)
{
    assert_damaged_when("\"owner\"", "\"committed\"");
    assert_damaged("{\"format\":\"orai-epoch-1\",\"epoch\":7,\"role\":\"arriving\",\"ready\":true,"
                   "\"move\":\"00000000000000000000000000000000\"}");
    assert_damaged_when("\"refused\":0", "\"peer\":{\"name\":\"b\",\"address\":\"b\",\"port\":7420,"
                                         "\"fingerprint\":\"12\"}");
}

static void test_a_source_that_is_no_key_is_refused(void **state)
{
    assert_damaged_when("\"refused\":0", "\"from\":\"12\"");
    assert_damaged_when("\"refused\":0", "\"from\":12");
}

static void test_a_file_that_cannot_be_read_is_not_called_damaged(void **state)
{
    struct epoch *epoch = NULL;
    assert_int_equal(file_mkdirs(path, 0700, NULL), 0);
    int r = epoch_open(folder, &epoch, NULL);
    assert_true(r == -EISDIR || r == -EINVAL);
}

static void test_the_epoch_never_shrinks(void **state)
{
    struct epoch *epoch = create(&committed);
    struct epoch_record older = committed;
    older.epoch = 6;
    assert_int_equal(epoch_set(epoch, &older, NULL), -EINVAL);
    epoch = reopen(epoch);
    assert_int_equal(epoch_get(epoch)->epoch, 7);
    epoch_free(epoch);
}

static void test_what_was_refused_stays_refused(void **state)
{
    struct epoch *epoch = create(&committed);
    struct epoch_record forgetful = committed;
    forgetful.refused = 2;
    assert_int_equal(epoch_set(epoch, &forgetful, NULL), -EINVAL);
    epoch_free(epoch);
}

static void test_a_hoped_for_epoch_may_be_given_up(void **state)
{
    struct epoch_record record = committed;
    record.role = EPOCH_ARRIVING;
    struct epoch *epoch = create(&record);
    record.role = EPOCH_REPLICA;
    record.epoch = 6;
    assert_int_equal(epoch_set(epoch, &record, NULL), 0);
    assert_int_equal(epoch_get(epoch)->epoch, 6);
    epoch_free(epoch);
}

static void test_an_epoch_beyond_json_is_refused(void **state)
{
    struct epoch *epoch = create(&committed);
    struct epoch_record huge = committed;
    huge.epoch = UINT64_MAX;
    assert_int_equal(epoch_set(epoch, &huge, NULL), -EINVAL);
    assert_int_equal(epoch_get(epoch)->epoch, 7);
    epoch_free(epoch);
}

/* A record without its peer would be a commit that nobody can ever be asked about. */
static void test_a_name_that_is_not_text_is_an_error_not_a_lost_peer(void **state)
{
    struct epoch *epoch = create(&committed);
    struct epoch_record record = committed;
    record.epoch = 8;
    strcpy(record.peer.name, "caf\xc3"); /* cut in the middle of a character */
    assert_int_equal(epoch_set(epoch, &record, NULL), -EINVAL);
    epoch = reopen(epoch);
    assert_int_equal(epoch_get(epoch)->epoch, 7);
    assert_string_equal(epoch_get(epoch)->peer.name, "b");
    epoch_free(epoch);
}

static void test_a_peer_without_a_name_is_kept(void **state)
{
    struct epoch_record record = committed;
    record.peer.name[0] = '\0';
    struct epoch *epoch = reopen(create(&record));
    assert_true(fingerprint_equal(&epoch_get(epoch)->peer.fingerprint, &committed.peer.fingerprint));
    epoch_free(epoch);
}

static void fill_disk(void)
{
    static const char block[65536] = {1};
    char name[128];
    snprintf(name, sizeof name, "%s/ballast", folder);
    int fd = open(name, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    for (size_t size = sizeof block; size; size /= 2)
        while (write(fd, block, size) > 0)
            ;
    close(fd);
}

static void test_a_full_disk_leaves_the_old_record(void **state)
{
    if (mount("none", folder, "tmpfs", 0, "size=256k") < 0)
        skip(); /* only root may mount */
    struct epoch *epoch = create(&committed);
    struct epoch_record next = committed;
    struct err err = ERR_NONE;
    fill_disk();
    next.epoch = 8;
    int r = epoch_set(epoch, &next, &err);
    uint64_t in_memory = epoch_get(epoch)->epoch;
    epoch = reopen(epoch);
    uint64_t on_disk = epoch_get(epoch)->epoch;
    epoch_free(epoch);
    umount2(folder, MNT_DETACH);
    assert_int_equal(r, -ENOSPC);
    assert_int_equal(in_memory, 7);
    assert_int_equal(on_disk, 7);
}

static void test_roles_have_names(void **state)
{
    assert_string_equal(epoch_role_name(EPOCH_OWNER), "owner");
    assert_string_equal(epoch_role_name(EPOCH_ARRIVING), "arriving");
    assert_string_equal(epoch_role_name((enum epoch_role)0), "unknown");
    assert_string_equal(epoch_role_name((enum epoch_role)99), "unknown");
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_every_member_survives),
        TEST(test_a_change_is_there_after_reopening),
        TEST(test_the_record_may_be_set_from_itself),
        TEST(test_a_missing_record_is_told_apart),
        TEST(test_an_existing_record_is_never_made_anew),
        TEST(test_the_sample_is_good),
        TEST(test_a_damaged_file_is_refused_and_never_guessed),
        TEST(test_every_cut_of_the_file_is_refused),
        TEST(test_a_commit_without_its_peer_is_refused),
        TEST(test_a_source_that_is_no_key_is_refused),
        TEST(test_a_file_that_cannot_be_read_is_not_called_damaged),
        TEST(test_the_epoch_never_shrinks),
        TEST(test_what_was_refused_stays_refused),
        TEST(test_a_hoped_for_epoch_may_be_given_up),
        TEST(test_an_epoch_beyond_json_is_refused),
        TEST(test_a_name_that_is_not_text_is_an_error_not_a_lost_peer),
        TEST(test_a_peer_without_a_name_is_kept),
        TEST(test_a_full_disk_leaves_the_old_record),
        TEST(test_roles_have_names),
    };
    return cmocka_run_group_tests_name("epoch", tests, NULL, NULL);
}
