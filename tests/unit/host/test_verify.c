/* SPDX-License-Identifier: Apache-2.0
 *
 * What a peer may ask of a copy here when it compares, and what it is told. The copy is real, the peer is
 * not.
 */
#include "host_test.h"

#include "host/verify.h"

#define DISK_SIZE (2 * DIGEST_EXTENT)
#define SEED "0123456789abcdef"

static struct id vm, generation;
static uint32_t sealed;

static void make_disk(const char *dir)
{
    char path[PATH_MAX + 16];
    struct disk *disk;
    struct err err = ERR_NONE;
    snprintf(path, sizeof path, "%s/disk0.raw", dir);
    assert_int_equal(disk_create(path, DISK_SIZE, NULL, NULL, &err), 0);
    assert_int_equal(disk_open(path, 0, &disk, &err), 0);
    assert_int_equal(disk_write(disk, "old", 3, 0, false), 0);
    generation = id_random();
    assert_int_equal(disk_advance(disk, &generation, LINEAGE_HANDOVER, "a", &sealed, &err), 0);
    assert_int_equal(disk_write(disk, "new", 3, DISK_BLOCK, false), 0);
    assert_int_equal(disk_close(disk, &err), 0);
}

/* The VM "web1" with one disk: block 0 is older than the hand-over, block 1 newer. */
static int set_up_vm(void **state)
{
    set_up(state);
    struct test_host *t = *state;
    struct epoch_record record = {.epoch = 1, .role = EPOCH_OWNER};
    struct epoch *epoch = NULL;
    struct err err = ERR_NONE;
    char dir[PATH_MAX];
    struct vm_config config = {.name = "web1",
                               .memory = 64 * MiB,
                               .cpus = 1,
                               .machine = "pc-q35-7.2",
                               .cpu = "max",
                               .accel = "tcg",
                               .disk_count = 1,
                               .disks[0] = {.file = "disk0.raw", .size = DISK_SIZE}};
    config.id = vm = id_random();
    assert_int_equal(vm_dir_begin(&t->host, "web1", dir, &err), 0);
    assert_int_equal(vm_config_save(dir, &config, &err), 0);
    assert_int_equal(epoch_create(dir, &record, &epoch, &err), 0);
    epoch_free(epoch);
    make_disk(dir);
    assert_int_equal(vm_dir_finish(&t->host, "web1", &err), 0);
    assert_int_equal(vm_add(t->host.vms, "web1", &vm, &err), 0);
    return 0;
}

static struct answer ask(struct test_host *t, enum caller caller, const char *method, const char *path,
                         json_t *body)
{
    struct request request = {.method = method, .caller = caller, .body = body, .query = json_object()};
    struct answer answer = {0};
    snprintf(request.path, sizeof request.path, "%s", path);
    strcpy(request.peer.name, "b");
    api_handle(&t->host, &request, &answer);
    request_done(&request);
    return answer;
}

/* A request that is all right. */
static json_t *question(void)
{
    char id[ID_TEXT_SIZE], handover[ID_TEXT_SIZE];
    return json_pack("{s:s, s:i, s:I, s:s, s:s, s:i, s:i}", "vm", id_format(&vm, id), "disk", 0, "generation",
                     (json_int_t)sealed, "generation_id", id_format(&generation, handover), "seed", SEED,
                     "from", 0, "count", 2);
}

static json_t *hashes(struct test_host *t, json_t *body)
{
    struct answer answer = ask(t, CALLER_PEER, "POST", "/v1/vms/web1/hashes", body);
    _cleanup_free_ char *text = json_dumps(answer.body, 0);
    if (answer.status != 200)
        fail_msg("%d: %s", answer.status, text);
    json_t *json = json_incref(answer.body);
    answer_done(&answer);
    return json;
}

static void a_peer_gets_the_sums_that_it_would_have_itself(void **state)
{
    struct test_host *t = *state;
    _cleanup_json_ json_t *got = hashes(t, question());
    _cleanup_(digester_cleanup) struct digester *digester = NULL;
    struct digest_extent extent;
    struct err err = ERR_NONE;
    uint8_t sum[DIGEST_SIZE];
    char text[2 * DIGEST_SIZE + 1];
    assert_int_equal(json_u64(got, "count", 0), 2);
    assert_int_equal(strlen(json_str(got, "sums", "")), 2 * 2 * DIGEST_SIZE);
    assert_int_equal(verify_open(&t->host, "web1", 0, &digester, NULL, &err), 0);
    assert_int_equal(digester_extent(digester, UINT64_C(0xefcdab8967452301), sealed, 0, &extent, &err), 0);
    digest_sum(&extent, extent.changed, UINT64_C(0xefcdab8967452301), sum);
    assert_memory_equal(json_str(got, "sums", ""), hex_format(sum, sizeof sum, text), 2 * sizeof sum);
    /* Block 1 of the first extent was written since. */
    assert_memory_equal(json_str(got, "changed", ""), "0200000000", 10);
    assert_null(json_object_get(got, "blocks"));
}

static void what_the_asker_leaves_out_is_left_out(void **state)
{
    char bits[2 * 2 * DIGEST_BITS_SIZE + 1];
    memset(bits, '0', sizeof bits - 1);
    bits[sizeof bits - 1] = '\0';
    bits[1] = '1'; /* block 0 */
    _cleanup_json_ json_t *all = hashes(*state, question());
    json_t *body = question();
    json_object_set_new(body, "changed", json_string(bits));
    _cleanup_json_ json_t *less = hashes(*state, body);
    assert_string_not_equal(json_str(all, "sums", ""), json_str(less, "sums", ""));
    assert_memory_equal(json_str(less, "changed", ""), "0300000000", 10);
}

static void block_hashes_are_given_for_one_extent(void **state)
{
    json_t *body = question();
    json_object_set_new(body, "detail", json_true());
    struct answer answer = ask(*state, CALLER_PEER, "POST", "/v1/vms/web1/hashes", json_incref(body));
    assert_int_equal(answer.status, 400);
    answer_done(&answer);
    json_object_set_new(body, "count", json_integer(1));
    _cleanup_json_ json_t *got = hashes(*state, body);
    assert_int_equal(strlen(json_str(got, "blocks", "")), 2 * DIGEST_SIZE * DIGEST_EXTENT_BLOCKS);
}

static void odd_requests_for_hashes_are_refused(void **state)
{
    static const struct {
        const char *member, *json;
        int status;
    } odd[] = {
        {"vm", "\"00000000000000000000000000000001\"", 409},
        {"disk", "1", 400},
        {"disk", "16", 400},
        {"generation", "0", 400},
        {"generation", "77", 410},
        {"generation_id", "\"00000000000000000000000000000001\"", 410},
        {"generation_id", "5", 400},
        {"seed", "\"12\"", 400},
        {"seed", "\"0123456789abcdeg\"", 400},
        {"from", "2", 400},
        {"from", "-1", 400},
        {"count", "0", 400},
        {"count", "3", 400},
        {"count", "4294967297", 400},
        {"changed", "\"00\"", 400},
        {"rate", "1", 400},
        {"detail", "1", 400},
        {"more", "1", 400},
    };
    for (size_t i = 0; i < ARRAY_SIZE(odd); i++) {
        json_t *body = question();
        json_object_set_new(body, odd[i].member, json_loads(odd[i].json, JSON_DECODE_ANY, NULL));
        struct answer answer = ask(*state, CALLER_PEER, "POST", "/v1/vms/web1/hashes", body);
        _cleanup_free_ char *text = json_dumps(answer.body, 0);
        if (answer.status != odd[i].status)
            fail_msg("%s %s: %d: %s", odd[i].member, odd[i].json, answer.status, text);
        answer_done(&answer);
    }
}

static void a_copy_is_described_to_peers(void **state)
{
    struct answer answer = ask(*state, CALLER_PEER, "GET", "/v1/vms/web1/copy", NULL);
    _cleanup_(lineage_cleanup) struct lineage *lineage = NULL;
    uint8_t bytes[4096];
    struct err err = ERR_NONE;
    assert_int_equal(answer.status, 200);
    assert_int_equal(json_u64(answer.body, "size", 0), DISK_SIZE);
    const char *text = json_str(answer.body, "lineage", "");
    assert_int_equal(hex_parse(text, bytes, strlen(text) / 2), 0);
    assert_int_equal(lineage_decode(bytes, strlen(text) / 2, &lineage, &err), 0);
    assert_true(lineage_holds(lineage, sealed, &generation));
    answer_done(&answer);
}

static void only_the_host_itself_starts_a_comparison_and_only_a_peer_asks_for_hashes(void **state)
{
    struct answer answer = ask(*state, CALLER_PEER, "POST", "/v1/vms/web1/verify", NULL);
    assert_int_equal(answer.status, 403);
    answer_done(&answer);
    answer = ask(*state, CALLER_LOCAL, "POST", "/v1/vms/web1/hashes", NULL);
    assert_int_equal(answer.status, 403);
    answer_done(&answer);
}

static void a_comparison_that_makes_no_sense_is_refused_at_once(void **state)
{
    static const struct {
        const char *body;
        int status;
    } odd[] = {
        {"{}", 400},
        {"{\"against\": \"a\"}", 400}, /* this host */
        {"{\"against\": \"nobody\"}", 404},
        {"{\"against\": \"nobody\", \"rate\": 5}", 400},
        {"{\"against\": \"nobody\", \"fast\": true}", 400},
    };
    for (size_t i = 0; i < ARRAY_SIZE(odd); i++) {
        struct answer answer =
            ask(*state, CALLER_LOCAL, "POST", "/v1/vms/web1/verify", json_loads(odd[i].body, 0, NULL));
        if (answer.status != odd[i].status)
            fail_msg("%s: %d", odd[i].body, answer.status);
        answer_done(&answer);
    }
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, set_up_vm, tear_down)
    const struct CMUnitTest tests[] = {
        T(a_peer_gets_the_sums_that_it_would_have_itself),
        T(what_the_asker_leaves_out_is_left_out),
        T(block_hashes_are_given_for_one_extent),
        T(odd_requests_for_hashes_are_refused),
        T(a_copy_is_described_to_peers),
        T(only_the_host_itself_starts_a_comparison_and_only_a_peer_asks_for_hashes),
        T(a_comparison_that_makes_no_sense_is_refused_at_once),
    };
    return cmocka_run_group_tests_name("host verify", tests, NULL, NULL);
}
