/* SPDX-License-Identifier: Apache-2.0
 *
 * A real lender, and a real sharer, over real TLS on loopback: asked by a borrower who misbehaves in all ways
 * that it can, and after each by an honest one, which must get its blocks.
 */
#include "lend_test.h"

#include <stdatomic.h>

/* --- a host that lends or shares ------------------------------------------------------------------------ */

struct house {
    bool shares;
    struct lender *lender;
    int listener;
    uint16_t port;
    pthread_t thread;
};

static void *let_in(void *arg)
{
    struct house *house = arg;
    int fd;
    while ((fd = accept4(house->listener, NULL, NULL, SOCK_CLOEXEC)) >= 0)
        lender_connection(house->lender, fd);
    return NULL;
}

static void open_house(struct house *house, bool shares)
{
    house->shares = shares;
    house->lender = new_lender(shares);
    lender_open(house->lender);
    house->listener = listen_on_loopback(&house->port);
    assert_int_equal(pthread_create(&house->thread, NULL, let_in, house), 0);
}

/* Returns how long the lender took to end. */
static int64_t close_house(struct house *house)
{
    shutdown(house->listener, SHUT_RDWR);
    pthread_join(house->thread, NULL);
    close(house->listener);
    int64_t began = clock_now();
    lender_free(house->lender);
    return clock_now() - began;
}

static struct lender_numbers numbers_of(const struct house *house)
{
    struct lender_numbers numbers;
    lender_numbers(house->lender, &numbers);
    return numbers;
}

/* --- a borrower ----------------------------------------------------------------------------------------- */

struct caller {
    struct link *link;
    atomic_uint hellos, lineages, runs, fetched, news, hot, released, failed, closed;
    char why[512]; /* the lender's last words, once `failed` */
};

static int on_frame(void *arg, struct link *link, const struct frame *frame, const uint8_t *payload,
                    struct err *err)
{
    struct caller *caller = arg;
    _cleanup_json_ json_t *json = NULL;
    struct err said = ERR_NONE;
    caller->hellos += frame->type == FRAME_HELLO;
    caller->lineages += frame->type == FRAME_LINEAGE;
    caller->runs += frame->type == FRAME_RUN;
    caller->fetched += frame->type == FRAME_FETCHED;
    caller->news += frame->type == FRAME_NEWER;
    caller->hot += frame->type == FRAME_HOT;
    caller->released += frame->type == FRAME_RELEASED;
    if (frame->type == FRAME_ERROR &&
        json_parse((const char *)payload, frame->length, "error", &json, &said) == 0) {
        err_from_json(json, &said);
        snprintf(caller->why, sizeof caller->why, "%s", said.text);
        caller->failed++;
    }
    return 0;
}

static void on_closed(void *arg, struct link *link, const struct err *err)
{
    struct caller *caller = arg;
    caller->closed++;
}

static int call_tls(const struct tls_identity *caller, const struct house *house, struct tls **ret)
{
    const struct tls_identity *called = house->shares ? host_c : host_b;
    return tls_connect(caller, "127.0.0.1", house->port, "vm.orai", tls_identity_fingerprint(called),
                       clock_now() + 5 * NSEC_PER_SEC, ret, NULL);
}

static void talk(struct caller *caller, struct tls *tls, uint64_t epoch)
{
    const struct link_options options = {.vm = vm, .epoch = epoch, .stall_ms = MOVE_STALL_MS};
    const struct link_handler handler = {.frame = on_frame, .closed = on_closed, .arg = caller};
    *caller = (struct caller){0};
    assert_ok(link_start(tls, &options, &handler, &caller->link, &err));
}

static void greet(struct caller *caller, const char *role, int index)
{
    _cleanup_json_ json_t *hello =
        json_pack("{s:i, s:s, s:i}", "protocol", MOVE_PROTOCOL_VERSION, "role", role, "index", index);
    link_send_json(caller->link, FRAME_HELLO, hello, NULL); /* it may have been refused already */
}

/* An honest one, greeted and answered. */
static void call(struct caller *caller, const struct house *house, int index)
{
    struct tls *tls;
    assert_true(eventually(numbers_of(house).connections < 8)); /* those that broke listen on for a moment */
    assert_int_equal(call_tls(host_a, house, &tls), 0);
    talk(caller, tls, LENT_EPOCH);
    greet(caller, house->shares ? "share" : "fetch", index);
    assert_true(eventually(caller->hellos == 1 || caller->closed > 0));
}

static void hang_up(struct caller *caller)
{
    link_free(TAKE_PTR(caller->link));
}

static void ask(struct caller *caller, uint64_t block, uint32_t count)
{
    static uint64_t serial;
    uint8_t bytes[WIRE_FETCH_SIZE];
    wire_fetch_encode(
        &(struct wire_fetch){
            .above = base_generation, .upto = handover, .block = block, .count = count, .serial = ++serial},
        bytes);
    link_send(caller->link, FRAME_FETCH, bytes, sizeof bytes, NULL, 0, NULL);
}

static void assert_answers(const struct house *house, const char *after)
{
    struct caller honest;
    call(&honest, house, 0);
    if (honest.hellos == 1)
        ask(&honest, 2 * EXTENT, 16);
    if (!eventually(honest.fetched == 1 || honest.closed > 0) || honest.fetched != 1 || honest.runs < 1)
        fail_msg("after %s an honest borrower gets no answer: %s", after, honest.why);
    hang_up(&honest);
}

/* --- honest ones ---------------------------------------------------------------------------------------- */

static void test_heat_goes_to_who_fetches_in_the_background_and_lineages_to_the_first(void **state)
{
    struct house lends, shares;
    struct caller first, second;
    open_house(&lends, false);
    call(&first, &lends, 0);
    call(&second, &lends, 1);
    ask(&first, EXTENT, 1);
    ask(&second, EXTENT, 1);
    assert_true(eventually(first.fetched == 1 && second.fetched == 1));
    assert_int_equal(first.hot, 0);
    assert_int_equal(second.hot, 1);
    assert_int_equal(first.lineages, 0);
    hang_up(&first);
    hang_up(&second);
    assert_true(close_house(&lends) < NSEC_PER_SEC);

    open_house(&shares, true);
    call(&first, &shares, 0);
    call(&second, &shares, 1);
    assert_true(eventually(first.lineages == 1));
    assert_int_equal(second.lineages, 0);
    assert_true(close_house(&shares) < NSEC_PER_SEC); /* though both are there */
    hang_up(&first);
    hang_up(&second);
}

static void test_as_many_requests_as_may_be_under_way_are_answered(void **state)
{
    struct house house;
    struct caller caller;
    open_house(&house, false);
    call(&caller, &house, 1);
    int64_t began = clock_now();
    for (unsigned i = 0; i < 256; i++)
        ask(&caller, EXTENT + 16 * (i % 32), 16);
    assert_true(eventually(caller.fetched == 256 || caller.closed > 0));
    assert_int_equal(caller.fetched, 256);
    assert_true(clock_now() - began < 4 * NSEC_PER_SEC);
    hang_up(&caller);
    close_house(&house);
}

static void test_release_is_told_once_it_is_durable_however_often_it_is_said(void **state)
{
    struct house house;
    struct caller first, second;
    open_house(&house, false);
    call(&first, &house, 0);
    call(&second, &house, 0);
    assert_false(lender_released(house.lender));
    link_send(first.link, FRAME_RELEASE, NULL, 0, NULL, 0, NULL);
    link_send(second.link, FRAME_RELEASE, NULL, 0, NULL, 0, NULL);
    assert_true(eventually(lender_released(house.lender)));
    clock_sleep(50 * NSEC_PER_MSEC);
    assert_int_equal(first.released + second.released, 0);
    hang_up(&first);
    lender_confirm(house.lender);
    assert_true(eventually(second.released == 1));
    assert_answers(&house, "a release");
    hang_up(&second);
    assert_true(close_house(&house) < NSEC_PER_SEC);
}

static void test_a_release_that_is_never_durable_holds_up_nothing(void **state)
{
    struct house house;
    struct caller caller;
    open_house(&house, false);
    call(&caller, &house, 0);
    link_send(caller.link, FRAME_RELEASE, NULL, 0, NULL, 0, NULL);
    assert_true(eventually(lender_released(house.lender)));
    assert_answers(&house, "a release that is not durable");
    assert_true(close_house(&house) < NSEC_PER_SEC);
    assert_true(eventually(caller.closed > 0));
    assert_int_equal(caller.released, 0);
    hang_up(&caller);
}

/* --- wrong requests ------------------------------------------------------------------------------------- */

struct request {
    const char *name;
    bool shares;
    enum frame_type type;
    struct wire_fetch fetch;
    struct wire_newer newer;
    size_t size; /* where it is not what it should be */
    const char *why;
};

static const struct request requests[] = {
    {"a disk that there is not", false, FRAME_FETCH, {.disk = 1, .count = 1}, .why = "does not have"},
    {"a disk that there cannot be", true, FRAME_FETCH, {.disk = 65535, .count = 1}, .why = "does not have"},
    {"a block beyond the end",
     false,
     FRAME_FETCH,
     {.block = LENT_BLOCKS, .count = 1},
     .why = "beyond the end"},
    {"blocks across the end", true, FRAME_FETCH, {.block = LAST_BLOCK, .count = 2}, .why = "beyond the end"},
    {"the last block there can be", false, FRAME_FETCH, {.block = UINT64_MAX, .count = 1}, .why = "1 blocks"},
    {"no blocks", false, FRAME_FETCH, {.count = 0}, .why = "0 blocks"},
    {"too many blocks", true, FRAME_FETCH, {.count = 257}, .why = "257 blocks"},
    {"a request cut short", false, FRAME_FETCH, {.count = 1}, .size = 31, .why = "31 bytes"},
    {"a request with more", true, FRAME_FETCH, {.count = 1}, .size = 33, .why = "33 bytes"},
    {"what the copy is not",
     true,
     FRAME_FETCH,
     {.block = EXTENT, .count = 7, .upto = 1},
     .why = "not of generation 1"},
    {"news of no disk", false, FRAME_NEWER, .newer = {.disk = 1}, .why = "newer on disk 1"},
    {"news with more", false, FRAME_NEWER, .size = 9, .why = "with 1 bytes"},
    {"news cut short", false, FRAME_NEWER, .size = 7, .why = "7 bytes"},
    {"news of a sharer", true, FRAME_NEWER, .why = "sent \"newer\""},
    {"release of a sharer", true, FRAME_RELEASE, .why = "sent \"release\""},
    {"another hello", false, FRAME_HELLO, .why = "sent \"hello\""},
    {"a lender's own frame", false, FRAME_FETCHED, .why = "sent \"fetched\""},
    {"a frame that is too long", false, FRAME_RUN, .size = FRAME_MAX_PAYLOAD, .why = ""},
    {"a frame that is too long for a sharer", true, FRAME_FETCH, .size = FRAME_MAX_PAYLOAD, .why = ""},
};

static void send_request(struct caller *caller, const struct request *request)
{
    static uint8_t bytes[FRAME_MAX_PAYLOAD];
    size_t size = 0;
    if (request->type == FRAME_FETCH) {
        wire_fetch_encode(&request->fetch, bytes);
        size = WIRE_FETCH_SIZE;
    } else if (request->type == FRAME_NEWER) {
        wire_newer_encode(&request->newer, bytes);
        size = WIRE_NEWER_SIZE;
    }
    size = request->size ? request->size : size;
    assert_ok(link_send(caller->link, request->type, NULL, 0, bytes, size, &err));
}

static void test_a_wrong_request_ends_its_connection_and_nothing_else(void **state)
{
    struct house houses[2];
    open_house(&houses[false], false);
    open_house(&houses[true], true);
    for (size_t i = 0; i < ARRAY_SIZE(requests); i++) {
        const struct request *request = &requests[i];
        struct house *house = &houses[request->shares];
        struct caller caller;
        call(&caller, house, i % 2);
        uint64_t bytes = numbers_of(house).bytes;
        send_request(&caller, request);
        if (!eventually(caller.closed > 0) || !strstr(caller.why, request->why))
            fail_msg("%s: closed %u, \"%s\"", request->name, caller.closed, caller.why);
        assert_int_equal(caller.runs + caller.fetched + caller.news + caller.released, 0);
        assert_int_equal(numbers_of(house).bytes, bytes);
        hang_up(&caller);
        assert_answers(house, request->name);
        assert_false(lender_released(house->lender));
    }
    assert_true(close_house(&houses[false]) < NSEC_PER_SEC);
    assert_true(close_house(&houses[true]) < NSEC_PER_SEC);
}

/* --- who calls ------------------------------------------------------------------------------------------ */

static void assert_refused(const struct house *house, const char *role, uint64_t epoch, const char *why)
{
    struct caller caller;
    struct tls *tls;
    assert_int_equal(call_tls(host_a, house, &tls), 0);
    talk(&caller, tls, epoch);
    if (role)
        greet(&caller, role, 0);
    ask(&caller, EXTENT, 1);
    if (!eventually(caller.closed > 0) || !strstr(caller.why, why))
        fail_msg("%s: closed %u, \"%s\"", role ? role : "no hello", caller.closed, caller.why);
    assert_int_equal(caller.hellos + caller.runs + caller.fetched, 0);
    hang_up(&caller);
    assert_answers(house, why);
}

static void test_who_is_not_its_borrower_is_refused(void **state)
{
    struct house lends, shares;
    open_house(&lends, false);
    open_house(&shares, true);
    assert_refused(&lends, "fetch", LENT_EPOCH + 1, "of epoch 8 are asked for");
    assert_refused(&lends, "fetch", LENT_EPOCH - 1, "of epoch 6 are asked for");
    assert_refused(&lends, "share", LENT_EPOCH, "other blocks");
    assert_refused(&shares, "fetch", LENT_EPOCH, "other blocks");
    assert_refused(&lends, "data", LENT_EPOCH, "no blocks");
    assert_refused(&shares, "again", LENT_EPOCH, "no blocks");
    assert_refused(&lends, NULL, LENT_EPOCH, "where \"hello\" was due");
    close_house(&lends);
    close_house(&shares);
}

static void test_another_key_is_refused_before_a_word_is_said(void **state)
{
    struct house house;
    struct tls *tls;
    open_house(&house, false);
    if (call_tls(host_c, &house, &tls) == 0) {
        struct caller caller;
        talk(&caller, tls, LENT_EPOCH);
        greet(&caller, "fetch", 0);
        ask(&caller, EXTENT, 1);
        assert_true(eventually(caller.closed > 0));
        assert_int_equal(caller.hellos + caller.runs + caller.failed, 0);
        hang_up(&caller);
    }
    assert_true(eventually(numbers_of(&house).connections == 0));
    assert_int_equal(numbers_of(&house).fetches, 0);
    assert_answers(&house, "another key");
    close_house(&house);
}

static void test_a_ninth_connection_is_refused_until_one_has_gone(void **state)
{
    struct house house;
    struct caller callers[8], ninth;
    struct tls *tls;
    open_house(&house, false);
    for (size_t i = 0; i < ARRAY_SIZE(callers); i++)
        call(&callers[i], &house, (int)i);
    assert_int_equal(numbers_of(&house).connections, 8);
    if (call_tls(host_a, &house, &tls) == 0) {
        talk(&ninth, tls, LENT_EPOCH);
        greet(&ninth, "fetch", 0);
        assert_true(eventually(ninth.closed > 0));
        assert_int_equal(ninth.hellos, 0);
        hang_up(&ninth);
    }
    ask(&callers[7], EXTENT, 1);
    assert_true(eventually(callers[7].fetched == 1));
    hang_up(&callers[0]);
    assert_true(eventually(numbers_of(&house).connections == 7));
    assert_answers(&house, "a ninth connection");
    for (size_t i = 1; i < ARRAY_SIZE(callers); i++)
        hang_up(&callers[i]);
    assert_true(close_house(&house) < NSEC_PER_SEC);
}

/* --- who does not go on --------------------------------------------------------------------------------- */

static void write_frame(struct tls *tls, enum frame_type type, const void *payload, size_t size)
{
    uint8_t bytes[256];
    int64_t deadline = clock_now() + 5 * NSEC_PER_SEC;
    struct frame frame = {.type = type, .length = (uint32_t)size, .vm = vm, .epoch = LENT_EPOCH};
    frame_encode(&frame, bytes);
    memcpy(bytes + FRAME_HEADER_SIZE, payload, size);
    while (tls_write(tls, bytes, FRAME_HEADER_SIZE + size) == -EAGAIN && clock_now() < deadline)
        clock_sleep(NSEC_PER_MSEC);
}

/* Asks for 50 MiB and reads nothing of it. */
static struct tls *call_and_never_read(const struct house *house)
{
    static const char hello[] = "{\"protocol\":1,\"role\":\"fetch\",\"index\":1}";
    uint8_t bytes[WIRE_FETCH_SIZE];
    struct tls *tls;
    assert_int_equal(call_tls(host_a, house, &tls), 0);
    write_frame(tls, FRAME_HELLO, hello, strlen(hello));
    struct wire_fetch fetch = {.upto = handover, .block = EXTENT, .count = 256};
    for (fetch.serial = 1; fetch.serial <= 50; fetch.serial++) {
        wire_fetch_encode(&fetch, bytes);
        write_frame(tls, FRAME_FETCH, bytes, sizeof bytes);
    }
    return tls;
}

static int call_and_say_nothing(const struct house *house)
{
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = htons(house->port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&address, sizeof address), 0);
    return fd;
}

static void test_who_never_reads_or_never_speaks_holds_up_nobody(void **state)
{
    struct house house;
    struct tls *silent;
    open_house(&house, false);
    struct tls *deaf = call_and_never_read(&house);
    int dumb = call_and_say_nothing(&house);
    assert_int_equal(call_tls(host_a, &house, &silent), 0);
    uint64_t before, after = 0;
    do {
        before = after;
        clock_sleep(200 * NSEC_PER_MSEC);
        after = numbers_of(&house).bytes;
    } while (before != after);
    assert_in_range(after, 1, 25 * MiB);                 /* what the sockets hold, and the queue */
    assert_int_equal(numbers_of(&house).connections, 2); /* without TLS nobody is counted */
    assert_answers(&house, "who never reads");
    assert_true(close_house(&house) < 3 * NSEC_PER_SEC);
    tls_close(deaf);
    tls_close(silent);
    close(dumb);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_heat_goes_to_who_fetches_in_the_background_and_lineages_to_the_first),
        cmocka_unit_test(test_as_many_requests_as_may_be_under_way_are_answered),
        cmocka_unit_test(test_release_is_told_once_it_is_durable_however_often_it_is_said),
        cmocka_unit_test(test_a_release_that_is_never_durable_holds_up_nothing),
        cmocka_unit_test(test_a_wrong_request_ends_its_connection_and_nothing_else),
        cmocka_unit_test(test_who_is_not_its_borrower_is_refused),
        cmocka_unit_test(test_another_key_is_refused_before_a_word_is_said),
        cmocka_unit_test(test_a_ninth_connection_is_refused_until_one_has_gone),
        cmocka_unit_test(test_who_never_reads_or_never_speaks_holds_up_nobody),
    };
    return cmocka_run_group_tests_name("lender", tests, make_copies, drop_copies);
}
