/* SPDX-License-Identifier: Apache-2.0
 *
 * The table of VMs, their folders and views, without any orai-vm.
 */
#include "host_test.h"

#include "base/clock.h"
#include "host/vm_create.h"
#include "host/vm_internal.h"

#include <sys/stat.h>

static struct vm_config config_of(const char *name)
{
    struct vm_config config = {
        .memory = 64 * MiB, .cpus = 1, .machine = "pc-q35-7.2", .cpu = "max", .accel = "tcg"};
    snprintf(config.name, sizeof config.name, "%s", name);
    config.id = id_random();
    return config;
}

/* A VM's folder as a creation or arrival leaves it. */
static struct id make_vm(struct test_host *t, const char *name, struct epoch_record record)
{
    struct vm_config config = config_of(name);
    struct epoch *epoch = NULL;
    struct err err = ERR_NONE;
    char dir[PATH_MAX];
    assert_int_equal(vm_dir_begin(&t->host, name, dir, &err), 0);
    assert_int_equal(vm_config_save(dir, &config, &err), 0);
    assert_int_equal(epoch_create(dir, &record, &epoch, &err), 0);
    epoch_free(epoch);
    assert_int_equal(vm_dir_finish(&t->host, name, &err), 0);
    assert_int_equal(vm_add(t->host.vms, name, &config.id, &err), 0);
    return config.id;
}

static void expect_state(struct test_host *t, const char *name, const char *state)
{
    _cleanup_json_ json_t *vm = NULL;
    struct err err = ERR_NONE;
    assert_int_equal(vm_json(&t->host, name, &vm, &err), 0);
    assert_string_equal(json_str(vm, "state", ""), state);
}

static const struct epoch_record owner = {.epoch = 1, .role = EPOCH_OWNER};
static const struct epoch_record replica = {
    .epoch = 2, .role = EPOCH_REPLICA, .peer = {.name = "b", .address = "x"}};
static const struct epoch_record committed = {
    .epoch = 2, .role = EPOCH_COMMITTED, .peer = {.name = "b", .address = "x"}};

static void the_record_says_what_a_resting_vm_is(void **state)
{
    make_vm(*state, "own", owner);
    make_vm(*state, "copy", replica);
    make_vm(*state, "gone", committed);
    expect_state(*state, "own", "stopped");
    expect_state(*state, "copy", "replica");
    expect_state(*state, "gone", "committed");
}

static void a_boot_is_new_until_it_has_been_noted(void **state)
{
    struct test_host *t = *state;
    struct err err;
    char path[PATH_MAX];
    static const char other[] = "{\"boot\": \"00000000-0000-0000-0000-000000000000\"}", damaged[] = "{";
    assert_true(vm_host_has_booted(&t->host));
    assert_int_equal(vm_note_boot(&t->host, &err), 0);
    assert_false(vm_host_has_booted(&t->host));
    snprintf(path, sizeof path, "%s/boot.json", t->dir);
    assert_int_equal(file_replace(path, other, strlen(other), 0600, &err), 0);
    assert_true(vm_host_has_booted(&t->host));
    assert_int_equal(file_replace(path, damaged, strlen(damaged), 0600, &err), 0);
    assert_true(vm_host_has_booted(&t->host));
}

static void a_vm_with_a_damaged_record_is_failed_and_not_guessed(void **state)
{
    struct test_host *t = *state;
    struct err err;
    char path[PATH_MAX];
    make_vm(t, "own", owner);
    snprintf(path, sizeof path, "%s/vms/own/epoch.json", t->dir);
    assert_int_equal(file_replace(path, "{", 1, 0600, &err), 0);
    expect_state(t, "own", "failed");
}

static void names_and_ids_are_taken_once(void **state)
{
    struct test_host *t = *state;
    struct err err;
    struct id id = make_vm(t, "web1", owner), other = id_random();
    assert_int_equal(vm_add(t->host.vms, "web1", &other, &err), -EEXIST);
    assert_int_equal(vm_add(t->host.vms, "web2", &id, &err), -EEXIST);
    assert_non_null(strstr(err.text, "web1"));
}

static void vms_are_found_again_after_a_kill(void **state)
{
    struct test_host *t = *state;
    struct err err;
    struct id id = make_vm(t, "web1", owner), back;
    assert_int_equal(vm_set_desired(t->host.vms, "web1", true, &err), 0);
    test_host_reopen(t);
    assert_int_equal(vm_lookup(t->host.vms, "web1", &back, &err), 0);
    assert_true(id_equal(&id, &back));
    assert_true(vm_desired(t->host.vms, "web1"));
}

static void a_folder_without_a_row_and_a_row_without_a_folder_are_mended(void **state)
{
    struct test_host *t = *state;
    struct err err;
    char from[PATH_MAX], to[PATH_MAX];
    make_vm(t, "web1", owner);
    make_vm(t, "web2", owner);
    assert_int_equal(registry_remove(t->host.registry, REGISTRY_VMS, "web1", &err), 0);
    vm_dir(&t->host, "web2", from);
    snprintf(to, sizeof to, "%s/elsewhere", t->dir);
    assert_int_equal(rename(from, to), 0);
    test_host_reopen(t);
    assert_int_equal(vm_lookup(t->host.vms, "web1", NULL, &err), 0);
    assert_int_equal(vm_lookup(t->host.vms, "web2", NULL, &err), -ENOENT);
}

static void half_made_and_half_removed_folders_are_cleaned_up(void **state)
{
    struct test_host *t = *state;
    struct err err;
    char path[PATH_MAX];
    make_vm(t, "web1", owner);
    static const char *const left[] = {".new-web2", ".old-web3"};
    for (size_t i = 0; i < 2; i++) {
        snprintf(path, sizeof path, "%s/vms/%s", t->dir, left[i]);
        assert_int_equal(file_mkdirs(path, 0700, &err), 0);
    }
    test_host_reopen(t);
    for (size_t i = 0; i < 2; i++) {
        snprintf(path, sizeof path, "%s/vms/%s", t->dir, left[i]);
        assert_int_equal(access(path, F_OK), -1);
    }
    assert_int_equal(vm_lookup(t->host.vms, "web1", NULL, &err), 0);
}

static void a_folder_of_the_name_is_never_replaced(void **state)
{
    struct test_host *t = *state;
    struct err err;
    char dir[PATH_MAX];
    make_vm(t, "web1", owner);
    assert_int_equal(vm_dir_begin(&t->host, "web1", dir, &err), 0);
    assert_int_equal(vm_dir_finish(&t->host, "web1", &err), -EEXIST);
    expect_state(t, "web1", "stopped");
}

static void a_claim_keeps_others_out_and_says_why(void **state)
{
    struct test_host *t = *state;
    struct err err;
    assert_int_equal(vm_claim(t->host.vms, "web1", "being started", &err), 0);
    assert_int_equal(vm_claim(t->host.vms, "web1", "being removed", &err), -EBUSY);
    assert_non_null(strstr(err.text, "being started"));
    assert_int_equal(vm_claim(t->host.vms, "web2", "being removed", &err), 0);
    vm_release(t->host.vms, "web1");
    assert_int_equal(vm_claim(t->host.vms, "web1", "being removed", &err), 0);
}

static void a_vm_moves_once_at_a_time(void **state)
{
    struct test_host *t = *state;
    struct err err;
    struct id first = id_random(), second = id_random();
    make_vm(t, "web1", owner);
    assert_int_equal(vm_begin_move(t->host.vms, "web1", &first, &err), 0);
    assert_int_equal(vm_begin_move(t->host.vms, "web1", &second, &err), -EBUSY);
    assert_non_null(strstr(err.hint, "orai status"));
    vm_end_move(t->host.vms, "web1", &second); /* not the one that is under way */
    assert_int_equal(vm_begin_move(t->host.vms, "web1", &second, &err), -EBUSY);
    vm_end_move(t->host.vms, "web1", &first);
    assert_int_equal(vm_begin_move(t->host.vms, "web1", &second, &err), 0);
}

/* --- through the API ------------------------------------------------------------------------------------ */

static struct answer ask(struct test_host *t, enum caller caller, const char *method, const char *path,
                         json_t *body)
{
    struct request request = {.method = method, .caller = caller, .body = body, .query = json_object()};
    struct answer answer = {0};
    snprintf(request.path, sizeof request.path, "%s", path);
    strcpy(request.peer.name, "b");
    strcpy(request.peer.address, "192.0.2.2");
    request.credentials = (struct credentials){getpid(), getuid(), getgid()};
    api_handle(&t->host, &request, &answer);
    request_done(&request);
    return answer;
}

static void expect_status(struct test_host *t, enum caller caller, const char *method, const char *path,
                          json_t *body, int status, const char *words)
{
    struct answer answer = ask(t, caller, method, path, body);
    _cleanup_free_ char *text = json_dumps(answer.body, 0);
    if (answer.status != status || (words && !strstr(text, words)))
        fail_msg("%s %s: %d: %s", method, path, answer.status, text);
    answer_done(&answer);
}

static void an_owner_is_removed_and_a_copy_only_dropped(void **state)
{
    struct test_host *t = *state;
    make_vm(t, "own", owner);
    make_vm(t, "copy", replica);
    make_vm(t, "gone", committed);
    expect_status(t, CALLER_LOCAL, "DELETE", "/v1/vms/own/replicas/here", NULL, 409, "orai rm own");
    expect_status(t, CALLER_LOCAL, "DELETE", "/v1/vms/copy", NULL, 409, "orai replica drop copy");
    expect_status(t, CALLER_LOCAL, "DELETE", "/v1/vms/gone", NULL, 409, "orai recover gone");
    expect_status(t, CALLER_LOCAL, "DELETE", "/v1/vms/gone/replicas/here", NULL, 409, "only copy");
    expect_status(t, CALLER_LOCAL, "DELETE", "/v1/vms/own", NULL, 200, NULL);
    expect_status(t, CALLER_LOCAL, "DELETE", "/v1/vms/copy/replicas/here", NULL, 200, NULL);
    expect_status(t, CALLER_LOCAL, "GET", "/v1/vms/own", NULL, 404, NULL);
    test_host_reopen(t);
    expect_status(t, CALLER_LOCAL, "GET", "/v1/vms/own", NULL, 404, NULL);
    expect_status(t, CALLER_LOCAL, "GET", "/v1/vms/copy", NULL, 404, NULL);
    expect_status(t, CALLER_LOCAL, "GET", "/v1/vms/gone", NULL, 200, NULL);
}

static void a_copy_is_started_on_purpose_only(void **state)
{
    make_vm(*state, "copy", replica);
    make_vm(*state, "gone", committed);
    expect_status(*state, CALLER_LOCAL, "POST", "/v1/vms/copy/start", NULL, 409, "--fork-old-copy");
    expect_status(*state, CALLER_LOCAL, "POST", "/v1/vms/gone/start", NULL, 409, "orai recover");
}

static void a_stopped_vm_does_not_stop_move_or_cancel(void **state)
{
    struct test_host *t = *state;
    struct err err;
    _cleanup_json_ json_t *row = json_pack(
        "{s:s, s:s, s:i, s:s, s:s}", "name", "b", "address", "192.0.2.1", "port", 7420, "fingerprint",
        "0000000000000000000000000000000000000000000000000000000000000001", "since", "t");
    assert_int_equal(registry_insert(t->host.registry, REGISTRY_PEERS, row, &err), 0);
    make_vm(t, "own", owner);
    expect_status(t, CALLER_LOCAL, "POST", "/v1/vms/own/stop", NULL, 409, NULL);
    expect_status(t, CALLER_LOCAL, "POST", "/v1/vms/own/kill", NULL, 409, NULL);
    expect_status(t, CALLER_LOCAL, "POST", "/v1/vms/own/cancel", NULL, 409, NULL);
    expect_status(t, CALLER_LOCAL, "POST", "/v1/vms/own/recover", NULL, 409, "orai start");
    expect_status(t, CALLER_LOCAL, "POST", "/v1/vms/own/move", json_pack("{s:s}", "to", "b"), 409,
                  "orai start");
    expect_status(t, CALLER_LOCAL, "POST", "/v1/vms/own/move", json_pack("{s:s}", "to", "c"), 404,
                  "orai peer invite");
    expect_status(t, CALLER_LOCAL, "POST", "/v1/vms/own/move", json_pack("{s:s}", "to", "a"), 400,
                  "this host");
    expect_status(t, CALLER_LOCAL, "POST", "/v1/vms/own/move",
                  json_pack("{s:s, s:s}", "to", "b", "on_timeout", "x"), 400, NULL);
    expect_status(t, CALLER_LOCAL, "POST", "/v1/vms/own/move",
                  json_pack("{s:s, s:i}", "to", "b", "throttle", 100), 400, NULL);
    expect_status(t, CALLER_LOCAL, "POST", "/v1/vms/own/move",
                  json_pack("{s:s, s:i, s:s}", "to", "b", "throttle", 50, "memory", "postcopy"), 400, NULL);
    expect_status(t, CALLER_LOCAL, "POST", "/v1/vms/own/move",
                  json_pack("{s:s, s:b, s:s, s:i}", "to", "b", "verify_memory", 1, "on_timeout", "postcopy",
                            "timeout_ms", 1000),
                  400, NULL);
}

static void a_config_may_change_but_not_the_vms_identity_or_disks(void **state)
{
    struct test_host *t = *state;
    struct err err;
    char dir[PATH_MAX];
    struct vm_config config;
    make_vm(t, "own", owner);
    make_vm(t, "copy", replica);
    vm_dir(&t->host, "own", dir);
    assert_int_equal(vm_config_load(dir, &config, &err), 0);
    config.memory = 128 * MiB;
    expect_status(t, CALLER_LOCAL, "PUT", "/v1/vms/own/config", vm_config_to_json(&config), 200, NULL);
    expect_status(t, CALLER_LOCAL, "GET", "/v1/vms/own/config", NULL, 200, "134217728");
    expect_status(t, CALLER_LOCAL, "PUT", "/v1/vms/copy/config", vm_config_to_json(&config), 409, NULL);
    config.disk_count = 1;
    config.disks[0] = (struct vm_disk){.file = "disk0.raw", .size = MiB};
    expect_status(t, CALLER_LOCAL, "PUT", "/v1/vms/own/config", vm_config_to_json(&config), 400, "disks");
    config.disk_count = 0;
    strcpy(config.kernel, "kernel");
    expect_status(t, CALLER_LOCAL, "PUT", "/v1/vms/own/config", vm_config_to_json(&config), 400, "no file");
    config.kernel[0] = '\0';
    config.id = id_random();
    expect_status(t, CALLER_LOCAL, "PUT", "/v1/vms/own/config", vm_config_to_json(&config), 400, "id");
    expect_status(t, CALLER_LOCAL, "PUT", "/v1/vms/own/config", json_pack("{s:s}", "name", "own"), 400, NULL);
}

static json_t *arrival(const char *name, const struct id *vm, int epoch, int protocol)
{
    char text[ID_TEXT_SIZE];
    return json_pack("{s:s, s:s, s:s, s:i, s:{s:i, s:i}}", "vm", id_format(vm, text), "name", name, "move",
                     "0123456789abcdef0123456789abcdef", "epoch", epoch, "protocol", "min", protocol, "max",
                     protocol);
}

static void what_belongs_here_does_not_arrive(void **state)
{
    struct test_host *t = *state;
    struct id own = make_vm(t, "own", owner), gone = make_vm(t, "gone", committed),
              copy = make_vm(t, "copy", replica);
    struct id new = id_random();
    expect_status(t, CALLER_PEER, "POST", "/v1/arrivals", arrival("own", &own, 5, 1), 409, "belongs here");
    expect_status(t, CALLER_PEER, "POST", "/v1/arrivals", arrival("own", &new, 5, 1), 409, "another VM");
    expect_status(t, CALLER_PEER, "POST", "/v1/arrivals", arrival("other", &own, 5, 1), 409, "own");
    expect_status(t, CALLER_PEER, "POST", "/v1/arrivals", arrival("gone", &gone, 5, 1), 409, "not finished");
    expect_status(t, CALLER_PEER, "POST", "/v1/arrivals", arrival("copy", &copy, 1, 1), 410, "old copy");
    expect_status(t, CALLER_PEER, "POST", "/v1/arrivals", arrival("new", &new, 1, 99), 400,
                  "version mismatch");
    expect_status(t, CALLER_PEER, "POST", "/v1/arrivals", arrival("../x", &new, 1, 1), 400, NULL);
    expect_status(t, CALLER_PEER, "POST", "/v1/arrivals", arrival("new", &new, 0, 1), 400, NULL);
    expect_state(t, "own", "stopped");
    expect_state(t, "copy", "replica");
}

static void an_arrival_whose_orai_vm_does_not_start_is_an_error(void **state)
{
    struct id new = id_random();
    expect_status(*state, CALLER_PEER, "POST", "/v1/arrivals", arrival("new", &new, 1, 1), 500, "orai-vm");
}

/* --- creation ------------------------------------------------------------------------------------------- */

static void machine_types_are_chosen_that_every_peer_has(void **state)
{
    _cleanup_json_ json_t *own =
        json_pack("[s, s, s, s]", "pc-i440fx-9.0", "pc-q35-9.0", "pc-q35-7.2", "pc-q35-6.0");
    _cleanup_json_ json_t *older = json_pack("[s, s]", "pc-q35-7.2", "pc-q35-6.0");
    _cleanup_json_ json_t *odd = json_pack("[s, i]", "pc-q35-6.0", 3);
    _cleanup_json_ json_t *other = json_pack("[s]", "virt-7.2");
    const json_t *silent[] = {NULL}, *one[] = {older}, *two[] = {older, odd}, *none[] = {older, other};
    assert_string_equal(vm_pick_machine(own, NULL, 0), "pc-q35-9.0");
    assert_string_equal(vm_pick_machine(own, silent, 1), "pc-q35-9.0");
    assert_string_equal(vm_pick_machine(own, one, 1), "pc-q35-7.2");
    assert_string_equal(vm_pick_machine(own, two, 2), "pc-q35-6.0");
    assert_null(vm_pick_machine(own, none, 2));
    assert_null(vm_pick_machine(NULL, NULL, 0));
}

static void a_bad_request_is_refused_at_once(void **state)
{
    static const struct {
        const char *body, *words;
    } bad[] = {
        {"{}", "name"},
        {"{\"name\": \"a/b\"}", "not a name"},
        {"{\"name\": \"x\", \"memory\": 1000}", "memory"},
        {"{\"name\": \"x\", \"memory\": \"1G\"}", "memory"},
        {"{\"name\": \"x\", \"cpus\": 0}", "cpus"},
        {"{\"name\": \"x\", \"image\": \"none\"}", "no image"},
        {"{\"name\": \"x\", \"nics\": [{\"mac\": \"01:00:00:00:00:00\"}]}", "mac"},
        {"{\"name\": \"x\", \"nics\": [{}, {\"address\": \"1\"}]}", "nics: entry 1"},
        {"{\"name\": \"x\", \"disks\": {}}", "must be a list"},
        {"{\"name\": \"x\", \"disks\": [4096]}", "disks: entry 0"},
        {"{\"name\": \"x\", \"disks\": [{\"size\": 4096}, {}]}", "disk 1"},
        {"{\"name\": \"x\", \"disks\": [{\"size\": 4096, \"file\": \"vm.json\"}]}", "file"},
        {"{\"name\": \"x\", \"config\": {\"disks\": [1]}}", "disk 0"},
        {"{\"name\": \"x\", \"config\": {\"disks\": [{\"size\": 4096, \"type\": \"cdrom\"}]}}", "--cdrom"},
        {"{\"name\": \"x\", \"disks\": [{\"device\": \"dev/sda\"}]}", "absolute"},
        {"{\"name\": \"x\", \"disks\": [{\"device\": \"/no/such/device\"}]}", "/no/such/device"},
        {"{\"name\": \"x\", \"disks\": [{\"device\": \"/dev/null\"}]}", "not a block device"},
        {"{\"name\": \"x\", \"disks\": [{\"device\": 1}]}", "device"},
        {"{\"name\": \"x\", \"cdrom\": \"/dev/null\"}", "cdrom"},
        {"{\"name\": \"x\", \"uefi\": 1}", "uefi"},
        {"{\"name\": \"x\", \"accel\": \"xen\"}", "accel"},
        {"{\"name\": \"x\", \"ram\": \"sheep\"}", "ram"},
        {"{\"name\": \"x\", \"kernel\": \"relative\"}", "absolute"},
        {"{\"name\": \"x\", \"kernel\": \"/no/such/file\"}", "kernel"},
        {"{\"name\": \"x\", \"kernel\": \"/dev/null\"}", "neither a file"},
        {"{\"name\": \"x\", \"config\": {\"kernel\": \"../../etc/shadow\"}}", "kernel"},
        {"{\"name\": \"x\", \"config\": {\"colour\": \"red\"}}", "colour"},
        {"{\"name\": \"x\", \"append\": \"quiet\"}", "kernel"},
    };
    struct test_host *t = *state;
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        json_t *body = json_loads(bad[i].body, 0, NULL);
        struct answer answer = ask(t, CALLER_LOCAL, "POST", "/v1/vms", body);
        _cleanup_free_ char *text = json_dumps(answer.body, 0);
        if ((answer.status != 400 && answer.status != 404) || !strstr(text, bad[i].words))
            fail_msg("%s: %d %s", bad[i].body, answer.status, text);
        answer_done(&answer);
    }
}

static void a_creation_that_fails_leaves_nothing(void **state)
{
    struct test_host *t = *state;
    struct err err;
    struct id id;
    char path[PATH_MAX];
    struct answer answer = ask(t, CALLER_LOCAL, "POST", "/v1/vms",
                               json_pack("{s:s, s:[{s:i}]}", "name", "x", "disks", "size", 4096));
    assert_int_equal(answer.status, 202);
    assert_int_equal(id_parse(json_str(answer.body, "id", ""), &id), 0);
    answer_done(&answer);
    while (!operation_changed(t->host.operations, &id, INT64_MAX))
        clock_sleep(NSEC_PER_SEC / 100);
    _cleanup_json_ json_t *operation = NULL;
    assert_int_equal(operation_get(t->host.operations, &id, &operation, &err), 0);
    assert_string_equal(json_str(operation, "state", ""), "failed"); /* there is no such QEMU */
    vm_dir(&t->host, "x", path);
    assert_int_equal(access(path, F_OK), -1);
    assert_int_equal(vm_claim(t->host.vms, "x", "again", &err), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        HOST_TEST(the_record_says_what_a_resting_vm_is),
        HOST_TEST(a_boot_is_new_until_it_has_been_noted),
        HOST_TEST(a_vm_with_a_damaged_record_is_failed_and_not_guessed),
        HOST_TEST(names_and_ids_are_taken_once),
        HOST_TEST(vms_are_found_again_after_a_kill),
        HOST_TEST(a_folder_without_a_row_and_a_row_without_a_folder_are_mended),
        HOST_TEST(half_made_and_half_removed_folders_are_cleaned_up),
        HOST_TEST(a_folder_of_the_name_is_never_replaced),
        HOST_TEST(a_claim_keeps_others_out_and_says_why),
        HOST_TEST(a_vm_moves_once_at_a_time),
        HOST_TEST(an_owner_is_removed_and_a_copy_only_dropped),
        HOST_TEST(a_copy_is_started_on_purpose_only),
        HOST_TEST(a_stopped_vm_does_not_stop_move_or_cancel),
        HOST_TEST(a_config_may_change_but_not_the_vms_identity_or_disks),
        HOST_TEST(what_belongs_here_does_not_arrive),
        HOST_TEST(an_arrival_whose_orai_vm_does_not_start_is_an_error),
        cmocka_unit_test(machine_types_are_chosen_that_every_peer_has),
        HOST_TEST(a_bad_request_is_refused_at_once),
        HOST_TEST(a_creation_that_fails_leaves_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
