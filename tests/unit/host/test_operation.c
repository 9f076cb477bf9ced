/* SPDX-License-Identifier: Apache-2.0
 *
 * Operations and events.
 */
#include "host_test.h"

static json_t *get(struct test_host *t, const struct id *id)
{
    json_t *operation = NULL;
    struct err err;
    assert_int_equal(operation_get(t->host.operations, id, &operation, &err), 0);
    return operation;
}

static struct id begin(struct test_host *t, const char *kind, const char *subject)
{
    struct id id = id_random();
    struct err err;
    assert_int_equal(operation_begin(t->host.operations, &id, kind, subject, &err), 0);
    return id;
}

static void versions_grow_with_each_change_and_across_restarts(void **state)
{
    struct test_host *t = *state;
    struct id id = begin(t, "move", "web1");
    _cleanup_json_ json_t *first = get(t, &id);
    operation_progress(t->host.operations, &id, json_pack("{s:i}", "n", 1));
    _cleanup_json_ json_t *second = get(t, &id);
    assert_true(json_u64(second, "version", 0) > json_u64(first, "version", 0));
    assert_true(operation_changed(t->host.operations, &id, json_u64(first, "version", 0)));
    assert_false(operation_changed(t->host.operations, &id, json_u64(second, "version", 0)));
    test_host_reopen(t);
    operation_progress(t->host.operations, &id, json_pack("{s:i}", "n", 2));
    _cleanup_json_ json_t *third = get(t, &id);
    assert_true(json_u64(third, "version", 0) > json_u64(second, "version", 0));
}

static void the_same_progress_again_is_no_change(void **state)
{
    struct test_host *t = *state;
    struct id id = begin(t, "move", "web1");
    operation_progress(t->host.operations, &id, json_pack("{s:i}", "n", 1));
    _cleanup_json_ json_t *before = get(t, &id);
    operation_progress(t->host.operations, &id, json_pack("{s:i}", "n", 1));
    assert_false(operation_changed(t->host.operations, &id, json_u64(before, "version", 0)));
}

static void an_end_is_kept_and_happens_once(void **state)
{
    struct test_host *t = *state;
    struct id id = begin(t, "image-add", "debian");
    struct err late;
    err_set(&late, EIO, "too late");
    operation_end(t->host.operations, &id, json_pack("{s:s}", "hash", "x"), NULL);
    operation_end(t->host.operations, &id, NULL, &late);
    operation_progress(t->host.operations, &id, json_pack("{s:i}", "n", 1));
    test_host_reopen(t);
    _cleanup_json_ json_t *operation = get(t, &id);
    assert_string_equal(json_str(operation, "state", ""), "done");
    assert_true(json_is_null(json_object_get(operation, "error")));
    assert_true(json_is_null(json_object_get(operation, "progress")));
    assert_non_null(json_str(operation, "ended", NULL));
}

static void a_cancelled_end_has_its_own_state(void **state)
{
    struct test_host *t = *state;
    struct id id = begin(t, "move", "web1");
    struct err cancelled;
    err_set(&cancelled, ECANCELED, "cancelled");
    operation_end(t->host.operations, &id, NULL, &cancelled);
    _cleanup_json_ json_t *operation = get(t, &id);
    assert_string_equal(json_str(operation, "state", ""), "cancelled");
}

static void only_the_work_that_is_meant_is_asked_to_end(void **state)
{
    struct test_host *t = *state;
    struct id mine = begin(t, "verify", "web1"), other = begin(t, "verify", "web2"),
              move = begin(t, "move", "web1");
    assert_true(operation_cancel(t->host.operations, "verify", "web1"));
    assert_true(operation_cancelled(t->host.operations, &mine));
    assert_false(operation_cancelled(t->host.operations, &other));
    assert_false(operation_cancelled(t->host.operations, &move));
    _cleanup_json_ json_t *operation = get(t, &mine);
    assert_null(json_object_get(operation, "cancel")); /* nobody's business */
    operation_end(t->host.operations, &mine, NULL, NULL);
    assert_false(operation_cancel(t->host.operations, "verify", "web1"));
}

static void after_a_kill_moves_go_on_and_own_work_has_failed(void **state)
{
    struct test_host *t = *state;
    struct id move = begin(t, "move", "web1"), add = begin(t, "image-add", "debian"),
              refresh = begin(t, "refresh", "web1");
    struct err err;
    _cleanup_json_ json_t *row = json_pack("{s:s, s:s, s:s}", "name", "web1", "id",
                                           "00000000000000000000000000000001", "desired", "running");
    char dir[PATH_MAX];
    vm_dir(&t->host, "web1", dir);
    assert_int_equal(file_mkdirs(dir, 0700, &err), 0);
    assert_int_equal(registry_insert(t->host.registry, REGISTRY_VMS, row, &err), 0);
    test_host_reopen(t);
    _cleanup_json_ json_t *a = get(t, &move);
    _cleanup_json_ json_t *b = get(t, &add);
    _cleanup_json_ json_t *c = get(t, &refresh);
    assert_string_equal(json_str(a, "state", ""), "running");
    assert_string_equal(json_str(c, "state", ""), "running");
    assert_string_equal(json_str(b, "state", ""), "failed");
    assert_string_equal(json_str(json_object_get(b, "error"), "code", ""), "EOWNERDEAD");
    assert_int_equal(vm_begin_move(t->host.vms, "web1", &add, &err), -EBUSY); /* it is still that move */
}

static void a_first_progress_outlives_a_kill_until_there_is_a_second(void **state)
{
    struct test_host *t = *state;
    struct id id = id_random();
    struct err err;
    json_t *first = json_pack("{s:s}", "replaces", "12 34 56");
    assert_int_equal(operation_begin_with(t->host.operations, &id, "refresh", "web1", first, &err), 0);
    test_host_reopen(t);
    _cleanup_json_ json_t *after = get(t, &id);
    assert_string_equal(json_str(json_object_get(after, "progress"), "replaces", ""), "12 34 56");
    operation_progress(t->host.operations, &id, json_pack("{s:i}", "n", 1));
    _cleanup_json_ json_t *now = get(t, &id);
    assert_int_equal(json_u64(json_object_get(now, "progress"), "n", 0), 1);
}

static void a_move_of_a_vm_that_is_gone_has_failed_after_a_kill(void **state)
{
    struct test_host *t = *state;
    struct id move = begin(t, "move", "web1");
    test_host_reopen(t);
    _cleanup_json_ json_t *operation = get(t, &move);
    assert_string_equal(json_str(operation, "state", ""), "failed");
}

static void lists_are_newest_first_and_by_subject(void **state)
{
    struct test_host *t = *state;
    struct id old = begin(t, "move", "web1"), other = begin(t, "move", "web2"),
              new = begin(t, "vm-create", "web1");
    _cleanup_json_ json_t *list = NULL;
    _cleanup_json_ json_t *newest = NULL;
    struct err err;
    char text[ID_TEXT_SIZE];
    assert_int_equal(operation_list(t->host.operations, "web1", 10, &list, &err), 0);
    assert_int_equal(json_array_size(list), 2);
    assert_string_equal(json_str(json_array_get(list, 0), "id", ""), id_format(&new, text));
    assert_int_equal(operation_newest(t->host.operations, "move", "web1", &newest, &err), 0);
    assert_string_equal(json_str(newest, "id", ""), id_format(&old, text));
    assert_false(id_equal(&old, &other));
}

/* --- events --------------------------------------------------------------------------------------------- */

static void followers_read_each_event_once_in_order(void **state)
{
    struct test_host *t = *state;
    uint64_t cursor = events_newest(t->host.events);
    char *line = NULL;
    assert_int_equal(events_next(t->host.events, NULL, &cursor, &line), -EAGAIN);
    event_add(t->host.events, "first", "web1", NULL);
    event_add(t->host.events, "second", NULL, NULL);
    assert_int_equal(events_next(t->host.events, NULL, &cursor, &line), 0);
    assert_non_null(strstr(line, "\"first\""));
    free(line);
    assert_int_equal(events_next(t->host.events, NULL, &cursor, &line), 0);
    assert_non_null(strstr(line, "\"second\""));
    free(line);
    assert_int_equal(events_next(t->host.events, NULL, &cursor, &line), -EAGAIN);
}

static void a_follower_of_one_vm_hears_of_that_only(void **state)
{
    struct test_host *t = *state;
    uint64_t cursor = events_newest(t->host.events);
    char *line = NULL;
    event_add(t->host.events, "x", "web2", NULL);
    event_add(t->host.events, "x", "web1", NULL);
    assert_int_equal(events_next(t->host.events, "web1", &cursor, &line), 0);
    assert_non_null(strstr(line, "web1"));
    free(line);
    assert_int_equal(events_next(t->host.events, "web1", &cursor, &line), -EAGAIN);
}

static void a_follower_that_falls_behind_is_told(void **state)
{
    struct test_host *t = *state;
    uint64_t cursor = events_newest(t->host.events), begun = cursor;
    char *line = NULL;
    for (int i = 0; i < EVENT_RING + 1; i++)
        event_add(t->host.events, "x", NULL, NULL);
    assert_int_equal(events_next(t->host.events, NULL, &cursor, &line), -EOVERFLOW);
    assert_non_null(strstr(line, "events.cut"));
    free(line);
    cursor = begun + 1; /* one further: just in the ring */
    assert_int_equal(events_next(t->host.events, NULL, &cursor, &line), 0);
    free(line);
}

static void ids_go_on_after_a_restart(void **state)
{
    struct test_host *t = *state;
    event_add(t->host.events, "x", NULL, NULL);
    uint64_t before = events_newest(t->host.events);
    test_host_reopen(t);
    assert_int_equal(events_newest(t->host.events), before);
    event_add(t->host.events, "x", NULL, NULL);
    assert_int_equal(events_newest(t->host.events), before + 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        HOST_TEST(versions_grow_with_each_change_and_across_restarts),
        HOST_TEST(the_same_progress_again_is_no_change),
        HOST_TEST(an_end_is_kept_and_happens_once),
        HOST_TEST(a_cancelled_end_has_its_own_state),
        HOST_TEST(only_the_work_that_is_meant_is_asked_to_end),
        HOST_TEST(after_a_kill_moves_go_on_and_own_work_has_failed),
        HOST_TEST(a_first_progress_outlives_a_kill_until_there_is_a_second),
        HOST_TEST(a_move_of_a_vm_that_is_gone_has_failed_after_a_kill),
        HOST_TEST(lists_are_newest_first_and_by_subject),
        HOST_TEST(followers_read_each_event_once_in_order),
        HOST_TEST(a_follower_of_one_vm_hears_of_that_only),
        HOST_TEST(a_follower_that_falls_behind_is_told),
        HOST_TEST(ids_go_on_after_a_restart),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
