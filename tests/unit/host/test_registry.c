/* SPDX-License-Identifier: Apache-2.0 */
#include "host_test.h"

#include <pthread.h>
#include <sqlite3.h>

static struct registry *registry_of(void **state)
{
    return ((struct test_host *)*state)->host.registry;
}

static json_t *peer_row(const char *name, const char *fingerprint)
{
    return json_pack("{s:s, s:s, s:i, s:s, s:s}", "name", name, "address", "192.0.2.1", "port", 7420,
                     "fingerprint", fingerprint, "since", "2026-01-01T00:00:00.000Z");
}

static int insert_peer(struct registry *registry, const char *name, const char *fingerprint)
{
    struct err err;
    _cleanup_json_ json_t *row = peer_row(name, fingerprint);
    return registry_insert(registry, REGISTRY_PEERS, row, &err);
}

static void rows_come_back_as_they_went_in(void **state)
{
    struct err err;
    _cleanup_json_ json_t *row = peer_row("b", "01");
    _cleanup_json_ json_t *back = NULL;
    _cleanup_json_ json_t *by_key = NULL;
    assert_int_equal(registry_insert(registry_of(state), REGISTRY_PEERS, row, &err), 0);
    assert_int_equal(registry_get(registry_of(state), REGISTRY_PEERS, NULL, "b", &back, &err), 0);
    assert_true(json_equal(row, back));
    assert_int_equal(registry_get(registry_of(state), REGISTRY_PEERS, "fingerprint", "01", &by_key, &err), 0);
    assert_true(json_equal(row, by_key));
}

static void json_and_null_columns_keep_their_types(void **state)
{
    struct err err;
    _cleanup_json_ json_t *back = NULL;
    _cleanup_json_ json_t *row =
        json_pack("{s:s, s:s, s:n, s:s, s:{s:i}, s:n, s:n, s:s, s:n, s:i, s:i}", "id", "1", "kind", "move",
                  "vm", "state", "running", "progress", "bytes", 5, "result", "error", "started", "t",
                  "ended", "version", 1, "age", 1);
    assert_int_equal(registry_insert(registry_of(state), REGISTRY_OPERATIONS, row, &err), 0);
    assert_int_equal(registry_get(registry_of(state), REGISTRY_OPERATIONS, NULL, "1", &back, &err), 0);
    assert_true(json_equal(row, back));
}

static void a_second_row_with_a_unique_member_is_refused(void **state)
{
    struct registry *registry = registry_of(state);
    assert_int_equal(insert_peer(registry, "b", "01"), 0);
    assert_int_equal(insert_peer(registry, "b", "02"), -EEXIST);
    assert_int_equal(insert_peer(registry, "c", "01"), -EEXIST);
    assert_int_equal(insert_peer(registry, "c", "02"), 0);
}

static void a_list_of_changes_happens_wholly_or_not_at_all(void **state)
{
    struct registry *registry = registry_of(state);
    struct err err;
    _cleanup_json_ json_t *c = peer_row("c", "03");
    _cleanup_json_ json_t *back = NULL;
    struct registry_change changes[] = {
        {.verb = REGISTRY_INSERT, .table = REGISTRY_PEERS, .row = c},
        {.verb = REGISTRY_REMOVE, .table = REGISTRY_PEERS, .key = "nobody"},
    };
    assert_int_equal(registry_apply(registry, changes, 2, &err), -ENOENT);
    assert_int_equal(registry_get(registry, REGISTRY_PEERS, NULL, "c", &back, &err), -ENOENT);
    assert_int_equal(registry_apply(registry, changes, 1, &err), 0);
}

static void a_guard_that_does_not_hold_changes_nothing(void **state)
{
    struct registry *registry = registry_of(state);
    struct err err;
    _cleanup_json_ json_t *port = json_pack("{s:i}", "port", 1);
    _cleanup_json_ json_t *wrong = json_pack("{s:i}", "port", 9);
    _cleanup_json_ json_t *right = json_pack("{s:i}", "port", 7420);
    _cleanup_json_ json_t *back = NULL;
    struct registry_change change = {
        .verb = REGISTRY_UPDATE, .table = REGISTRY_PEERS, .key = "b", .row = port, .only_if = wrong};
    assert_int_equal(insert_peer(registry, "b", "01"), 0);
    assert_int_equal(registry_apply(registry, &change, 1, &err), -ESTALE);
    change.only_if = right;
    assert_int_equal(registry_apply(registry, &change, 1, &err), 0);
    assert_int_equal(registry_apply(registry, &change, 1, &err),
                     -ESTALE); /* the same change twice: once only */
    assert_int_equal(registry_get(registry, REGISTRY_PEERS, NULL, "b", &back, &err), 0);
    assert_int_equal(json_u64(back, "port", 0), 1);
}

static void update_and_remove_of_nothing_say_so(void **state)
{
    struct err err;
    _cleanup_json_ json_t *port = json_pack("{s:i}", "port", 1);
    assert_int_equal(registry_update(registry_of(state), REGISTRY_PEERS, "b", port, &err), -ENOENT);
    assert_int_equal(registry_remove(registry_of(state), REGISTRY_PEERS, "b", &err), -ENOENT);
}

static void values_are_never_taken_for_sql(void **state)
{
    struct registry *registry = registry_of(state);
    static const char nasty[] = "x'; DROP TABLE peers; --";
    struct err err;
    _cleanup_json_ json_t *back = NULL;
    assert_int_equal(insert_peer(registry, nasty, "01"), 0);
    assert_int_equal(registry_get(registry, REGISTRY_PEERS, NULL, nasty, &back, &err), 0);
    assert_int_equal(registry_remove(registry, REGISTRY_PEERS, nasty, &err), 0);
}

static void rows_outlive_the_process(void **state)
{
    struct test_host *t = *state;
    struct err err;
    _cleanup_json_ json_t *list = NULL;
    assert_int_equal(insert_peer(t->host.registry, "b", "01"), 0);
    test_host_reopen(t);
    assert_int_equal(registry_list(t->host.registry, REGISTRY_PEERS, &list, &err), 0);
    assert_int_equal(json_array_size(list), 1);
}

static void the_file_of_a_newer_oraid_is_refused(void **state)
{
    struct test_host *t = *state;
    struct registry *registry = NULL;
    struct err err;
    sqlite3 *db;
    char path[128];
    snprintf(path, sizeof path, "%s/newer.db", t->dir);
    assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
    assert_int_equal(sqlite3_exec(db, "PRAGMA user_version = 999", NULL, NULL, NULL), SQLITE_OK);
    sqlite3_close(db);
    assert_int_equal(registry_open_sqlite(path, &registry, &err), -ENOTSUP);
    assert_non_null(strstr(err.text, "newer"));
}

static void a_file_that_is_no_registry_is_refused(void **state)
{
    struct test_host *t = *state;
    struct registry *registry = NULL;
    struct err err;
    char path[128], noise[8192];
    memset(noise, 'x', sizeof noise);
    snprintf(path, sizeof path, "%s/noise.db", t->dir);
    assert_int_equal(file_replace(path, noise, sizeof noise, 0600, &err), 0);
    assert_int_equal(registry_open_sqlite(path, &registry, &err), -EBADMSG);
    assert_null(registry);
}

static uint64_t add_event(struct registry *registry, const char *vm)
{
    struct err err;
    uint64_t id = 0;
    _cleanup_json_ json_t *event =
        json_pack("{s:s, s:s, s:s?, s:{s:i}}", "time", "t", "type", "test", "vm", vm, "data", "n", 1);
    assert_int_equal(registry_event_add(registry, event, &id, &err), 0);
    return id;
}

static void events_come_oldest_first_after_an_id_and_of_one_vm(void **state)
{
    struct registry *registry = registry_of(state);
    struct err err;
    _cleanup_json_ json_t *all = NULL;
    _cleanup_json_ json_t *newest = NULL;
    _cleanup_json_ json_t *web = NULL;
    uint64_t first = add_event(registry, "web1");
    add_event(registry, NULL);
    uint64_t third = add_event(registry, "web1");
    assert_int_equal(registry_events(registry, first, NULL, 10, &all, &err), 0);
    assert_int_equal(json_array_size(all), 2);
    assert_int_equal(json_u64(json_array_get(all, 1), "id", 0), third);
    assert_true(json_is_object(json_object_get(json_array_get(all, 0), "data")));
    assert_int_equal(registry_events(registry, 0, NULL, 1, &newest, &err), 0);
    assert_int_equal(json_u64(json_array_get(newest, 0), "id", 0), third);
    assert_int_equal(registry_events(registry, 0, "web1", 10, &web, &err), 0);
    assert_int_equal(json_array_size(web), 2);
}

struct race {
    struct registry *registry;
    int won, lost;
};

static void *redeem(void *arg)
{
    struct race *race = arg;
    struct err err;
    _cleanup_json_ json_t *used = json_pack("{s:i, s:s}", "used_ms", 1, "used_by", "b");
    _cleanup_json_ json_t *unused = json_pack("{s:i}", "used_ms", 0);
    struct registry_change change = {
        .verb = REGISTRY_UPDATE, .table = REGISTRY_INVITES, .key = "h", .row = used, .only_if = unused};
    int r = registry_apply(race->registry, &change, 1, &err);
    race->won += r == 0;
    race->lost += r == -ESTALE;
    return NULL;
}

static void of_many_at_once_one_redeems_an_invite(void **state)
{
    struct race races[8] = {0};
    pthread_t threads[8];
    struct err err;
    int won = 0, lost = 0;
    _cleanup_json_ json_t *row =
        json_pack("{s:s, s:n, s:i, s:i, s:n}", "hash", "h", "name", "expires_ms", 1, "used_ms", 0, "used_by");
    assert_int_equal(registry_insert(registry_of(state), REGISTRY_INVITES, row, &err), 0);
    for (int i = 0; i < 8; i++) {
        races[i].registry = registry_of(state);
        assert_int_equal(pthread_create(&threads[i], NULL, redeem, &races[i]), 0);
    }
    for (int i = 0; i < 8; i++) {
        pthread_join(threads[i], NULL);
        won += races[i].won, lost += races[i].lost;
    }
    assert_int_equal(won, 1);
    assert_int_equal(lost, 7);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        HOST_TEST(rows_come_back_as_they_went_in),
        HOST_TEST(json_and_null_columns_keep_their_types),
        HOST_TEST(a_second_row_with_a_unique_member_is_refused),
        HOST_TEST(a_list_of_changes_happens_wholly_or_not_at_all),
        HOST_TEST(a_guard_that_does_not_hold_changes_nothing),
        HOST_TEST(update_and_remove_of_nothing_say_so),
        HOST_TEST(values_are_never_taken_for_sql),
        HOST_TEST(rows_outlive_the_process),
        HOST_TEST(the_file_of_a_newer_oraid_is_refused),
        HOST_TEST(a_file_that_is_no_registry_is_refused),
        HOST_TEST(events_come_oldest_first_after_an_id_and_of_one_vm),
        HOST_TEST(of_many_at_once_one_redeems_an_invite),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
