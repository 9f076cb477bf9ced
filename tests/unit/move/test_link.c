/* SPDX-License-Identifier: Apache-2.0
 *
 * Links between two hosts over real TLS on loopback: a sends, b receives; where a test wants to misbehave,
 * one end is a bare TLS session.
 */
#include "move_test.h"

#include "base/endian.h"

#include <poll.h>
#include <stdatomic.h>

/* What one end's callbacks saw and what they shall do. */
struct end {
    atomic_uint frames, closed;
    atomic_bool hold; /* the callback waits while this is set */
    atomic_uint slow; /* this frame's callback takes long; 0 = none */
    atomic_ullong bytes;
    atomic_int last_type;
    uint32_t expected; /* frames begin with a number that grows by one */
    atomic_bool disorder;
    bool echo; /* answer each frame on the same link */
    int fail;  /* returned by the callback */
    struct err why;
};

static struct end at_a, at_b;
static struct link *link_a, *link_b;

static int on_frame(void *arg, struct link *link, const struct frame *frame, const uint8_t *payload,
                    struct err *err)
{
    struct end *end = arg;
    while (end->hold)
        clock_sleep(NSEC_PER_MSEC);
    if (end->slow && end->frames + 1 == end->slow)
        clock_sleep(2500 * NSEC_PER_MSEC);
    if (frame->length >= 4 && get_le32(payload) != end->expected++)
        end->disorder = true;
    end->bytes += frame->length;
    end->last_type = (int)frame->type;
    end->frames++;
    if (end->echo && link_send(link, FRAME_PROBED, NULL, 0, payload, frame->length, err) < 0)
        return -err->code;
    return end->fail ? err_set(err, -end->fail, "told to fail") : 0;
}

static void on_closed(void *arg, struct link *link, const struct err *err)
{
    struct end *end = arg;
    (void)link;
    end->why = *err;
    end->closed++;
}

static struct link *start(struct tls *tls, struct end *end, const struct link_options *options)
{
    struct link_options with_vm = *options;
    struct link_handler handler = {.frame = on_frame, .closed = on_closed, .arg = end};
    struct link *link = NULL;
    with_vm.vm = vm;
    if (!with_vm.stall_ms)
        with_vm.stall_ms = 8000;
    assert_ok(link_start(tls, &with_vm, &handler, &link, &err));
    return link;
}

static void open_pair(const struct link_options *of_a, const struct link_options *of_b)
{
    static const struct link_options none = {0};
    struct tls *a, *b;
    connect_hosts(&a, &b);
    link_a = start(a, &at_a, of_a ? of_a : &none);
    link_b = start(b, &at_b, of_b ? of_b : &none);
}

/* b is bare: what a's link meets is up to the test. */
static struct tls *open_half(const struct link_options *of_a)
{
    static const struct link_options none = {0};
    struct tls *a, *b;
    connect_hosts(&a, &b);
    link_a = start(a, &at_a, of_a ? of_a : &none);
    return b;
}

static int setup(void **state)
{
    memset(&at_a, 0, sizeof at_a);
    memset(&at_b, 0, sizeof at_b);
    link_a = link_b = NULL;
    return 0;
}

static int teardown(void **state)
{
    at_a.hold = at_b.hold = false;
    link_free(link_a);
    link_free(link_b);
    return 0;
}

static int send_number(uint32_t number, const void *body, size_t size)
{
    uint8_t head[4];
    put_le32(head, number);
    return link_send(link_a, FRAME_RUN, head, sizeof head, body, size, NULL);
}

static void write_raw(struct tls *tls, const void *data, size_t size)
{
    int64_t deadline = clock_now() + 5 * NSEC_PER_SEC;
    for (size_t done = 0; done < size && clock_now() < deadline;) {
        ssize_t n = tls_write(tls, (const uint8_t *)data + done, size - done);
        if (n == -EAGAIN)
            clock_sleep(NSEC_PER_MSEC);
        else if (n < 0)
            return; /* the link has hung up, as many tests want */
        else
            done += (size_t)n;
    }
}

/* --- order and size ------------------------------------------------------------------------------------- */

static void test_frames_arrive_whole_and_in_order(void **state)
{
    static const uint8_t body[70000];
    open_pair(NULL, NULL);
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < 1000; i++) {
        size_t size = (size_t)i * 997 % sizeof body;
        assert_int_equal(send_number(i, body, size), 0);
        bytes += 4 + size;
    }
    assert_true(eventually(at_b.frames == 1000));
    assert_false(at_b.disorder);
    assert_int_equal(at_b.bytes, bytes);
    assert_int_equal(at_b.last_type, FRAME_RUN);
}

static void test_the_largest_frame_passes(void **state)
{
    _cleanup_free_ uint8_t *body = calloc(1, FRAME_MAX_PAYLOAD);
    open_pair(NULL, NULL);
    for (int i = 0; i < 5; i++)
        assert_ok(link_send(link_a, FRAME_STREAM, NULL, 0, body, FRAME_MAX_PAYLOAD, &err));
    assert_true(eventually(at_b.frames == 5));
    assert_int_equal(at_b.bytes, 5 * (uint64_t)FRAME_MAX_PAYLOAD);
}

static void test_both_directions_at_once(void **state)
{
    static const uint8_t body[32768];
    at_b.echo = true;
    open_pair(NULL, NULL);
    for (uint32_t i = 0; i < 500; i++)
        assert_int_equal(send_number(i, body, sizeof body), 0);
    assert_true(eventually(at_a.frames == 500));
    assert_false(at_a.disorder);
    assert_int_equal(at_a.bytes, at_b.bytes);
}

static void test_a_buffer_is_sent_without_a_copy(void **state)
{
    open_pair(NULL, NULL);
    uint8_t *payload = link_buffer(1000);
    memset(payload, 0, 1000);
    assert_ok(link_send_buffer(link_a, FRAME_RUN, payload, 300, &err));
    assert_true(eventually(at_b.frames == 1));
    assert_int_equal(at_b.bytes, 300);
    link_buffer_free(link_buffer(10));
    link_buffer_free(NULL);
}

static void test_json_that_is_too_long_is_refused(void **state)
{
    open_pair(NULL, NULL);
    _cleanup_free_ char *text = malloc(FRAME_MAX_JSON + 1);
    memset(text, 'x', FRAME_MAX_JSON);
    text[FRAME_MAX_JSON] = '\0';
    _cleanup_json_ json_t *json = json_pack("{s:s}", "text", text);
    assert_int_equal(link_send_json(link_a, FRAME_PREPARE, json, NULL), -EMSGSIZE);
}

/* --- back-pressure -------------------------------------------------------------------------------------- */

static void *send_many(void *arg)
{
    static const uint8_t body[65536];
    atomic_uint *sent = arg;
    for (uint32_t i = 0; i < 400 && send_number(i, body, sizeof body) == 0; i++)
        (*sent)++;
    return NULL;
}

static void test_a_receiver_that_blocks_blocks_the_sender(void **state)
{
    atomic_uint sent = 0;
    pthread_t sender;
    at_b.hold = true;
    open_pair(&(struct link_options){.queue_bytes = 128 * KiB}, NULL);
    assert_int_equal(pthread_create(&sender, NULL, send_many, &sent), 0);
    unsigned before, after = 0;
    do {
        before = after;
        clock_sleep(200 * NSEC_PER_MSEC);
        after = sent;
    } while (before != after);
    assert_true(after < 400); /* 25 MiB: more than queue and sockets hold */
    assert_true(link_queued(link_a) <= 128 * KiB + 70000);
    at_b.hold = false;
    pthread_join(sender, NULL);
    assert_int_equal(sent, 400);
    assert_true(eventually(at_b.frames == 400));
    assert_false(at_b.disorder);
}

static void test_freeing_a_link_with_a_full_queue_releases_the_sender(void **state)
{
    atomic_uint sent = 0;
    pthread_t sender;
    at_b.hold = true;
    open_pair(&(struct link_options){.queue_bytes = 64 * KiB}, NULL);
    assert_int_equal(pthread_create(&sender, NULL, send_many, &sent), 0);
    clock_sleep(300 * NSEC_PER_MSEC);
    link_free(link_a); /* the sender is inside link_send: that call fails, touches no freed memory, and is its
                          last */
    pthread_join(sender, NULL);
    link_a = NULL;
    assert_true(sent < 400);
}

static void test_a_callback_that_answers_never_waits_for_room(void **state)
{
    static const uint8_t body[3000];
    at_b.echo = true;
    open_pair(NULL, &(struct link_options){.queue_bytes = 1}); /* many frames come in one turn of reads */
    for (uint32_t i = 0; i < 1000; i++)
        assert_int_equal(send_number(i, body, sizeof body), 0);
    assert_true(eventually(at_a.frames == 1000));
    assert_false(at_a.disorder);
}

static void test_drain_waits_until_all_is_with_the_kernel(void **state)
{
    static const uint8_t body[65536];
    open_pair(NULL, NULL);
    for (uint32_t i = 0; i < 100; i++)
        assert_int_equal(send_number(i, body, sizeof body), 0);
    assert_ok(link_drain(link_a, clock_now() + 10 * NSEC_PER_SEC, &err));
    assert_int_equal(link_queued(link_a), 0);
}

static void test_drain_gives_up_at_its_deadline(void **state)
{
    atomic_uint sent = 0;
    pthread_t sender;
    at_b.hold = true;
    open_pair(&(struct link_options){.queue_bytes = 4 * MiB}, NULL);
    assert_int_equal(pthread_create(&sender, NULL, send_many, &sent), 0);
    clock_sleep(300 * NSEC_PER_MSEC);
    int64_t began = clock_now();
    assert_int_equal(link_drain(link_a, began + 100 * NSEC_PER_MSEC, NULL), -ETIMEDOUT);
    assert_true(clock_now() - began >= 100 * NSEC_PER_MSEC);
    at_b.hold = false;
    pthread_join(sender, NULL);
}

/* --- limits --------------------------------------------------------------------------------------------- */

static void test_the_budget_holds_the_link_back(void **state)
{
    static const uint8_t body[65536];
    struct budget *budget = budget_new(4 * MiB);
    open_pair(&(struct link_options){.budget = budget}, NULL);
    int64_t began = clock_now();
    for (uint32_t i = 0; i < 32; i++) /* 2 MiB */
        assert_int_equal(send_number(i, body, sizeof body), 0);
    assert_true(eventually(at_b.frames == 32));
    int64_t took = clock_now() - began;
    assert_true(took >
                400 * NSEC_PER_MSEC); /* half a second less the bucket; slower is the machine's right */
    assert_true(budget_spent(budget) >= 32 * sizeof body);
    link_free(TAKE_PTR(link_a));
    budget_free(budget);
}

static void test_our_own_limit_is_no_stall_of_the_peer(void **state)
{
    static const uint8_t body[8192];
    struct budget *budget = budget_new(500); /* one grant takes longer than the stall */
    open_pair(&(struct link_options){.budget = budget, .stall_ms = 300}, NULL);
    assert_int_equal(send_number(0, body, sizeof body), 0);
    clock_sleep(2200 * NSEC_PER_MSEC);
    assert_int_equal(at_a.closed, 0);
    link_free(TAKE_PTR(link_a));
    budget_free(budget);
}

/* --- life and death ------------------------------------------------------------------------------------- */

static void test_a_quiet_link_stays_alive_by_pings(void **state)
{
    const struct link_options options = {.heartbeat = true, .stall_ms = 1600};
    open_pair(&options, &options);
    clock_sleep(3 * NSEC_PER_SEC);
    assert_int_equal(at_a.closed, 0);
    assert_int_equal(at_b.closed, 0);
    assert_int_equal(at_b.frames, 0); /* pings are the link's own affair */
}

static void test_a_silent_peer_is_noticed(void **state)
{
    struct tls *b = open_half(&(struct link_options){.heartbeat = true, .stall_ms = 400});
    int64_t began = clock_now();
    assert_true(eventually(at_a.closed == 1));
    assert_int_equal(at_a.why.code, ETIMEDOUT);
    assert_true(clock_now() - began < 3 * NSEC_PER_SEC);
    assert_int_equal(send_number(0, NULL, 0), -ETIMEDOUT); /* every later send says why */
    assert_int_equal(link_drain(link_a, clock_now(), NULL), 0);
    tls_close(b);
}

static void test_silence_is_not_judged_without_heartbeat(void **state)
{
    struct tls *b = open_half(&(struct link_options){.stall_ms = 200});
    clock_sleep(900 * NSEC_PER_MSEC);
    assert_int_equal(at_a.closed, 0);
    tls_close(b);
}

static void test_a_peer_that_does_not_read_is_noticed(void **state)
{
    atomic_uint sent = 0;
    pthread_t sender;
    struct tls *b = open_half(&(struct link_options){.stall_ms = 300});
    assert_int_equal(pthread_create(&sender, NULL, send_many, &sent), 0);
    pthread_join(sender, NULL); /* its send fails */
    assert_true(sent < 400);
    assert_true(eventually(at_a.closed == 1));
    assert_int_equal(at_a.why.code, ETIMEDOUT);
    tls_close(b);
}

/* While a callback runs nobody listens; that silence is not the peer's. The slow frame is the last of a turn
 * of 64 reads (header and payload of each), after which the link judges before it reads again. */
static void test_a_callback_slower_than_the_stall_does_not_kill_the_link(void **state)
{
    static const uint8_t body[300];
    at_b.hold = true; /* until all frames lie ready */
    at_b.slow = 32;
    open_pair(NULL, &(struct link_options){.heartbeat = true, .stall_ms = 1500});
    for (uint32_t i = 0; i < 64; i++)
        assert_int_equal(send_number(i, body, sizeof body), 0);
    assert_ok(link_drain(link_a, clock_now() + 5 * NSEC_PER_SEC, &err));
    clock_sleep(100 * NSEC_PER_MSEC);
    at_b.hold = false;
    assert_true(eventually(at_b.frames == 64));
    clock_sleep(100 * NSEC_PER_MSEC);
    assert_int_equal(at_b.closed, 0);
}

static void test_an_orderly_close_has_no_error(void **state)
{
    open_pair(NULL, NULL);
    link_free(TAKE_PTR(link_b));
    assert_true(eventually(at_a.closed == 1));
    assert_int_equal(at_a.why.code, 0);
    assert_int_equal(send_number(0, NULL, 0), -ECONNRESET);
    assert_int_equal(at_b.closed, 1);
}

static void test_a_torn_connection_is_an_error(void **state)
{
    struct tls *b = open_half(NULL);
    struct linger at_once = {.l_onoff = 1};
    setsockopt(tls_socket(b), SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
    int null = socket(AF_INET, SOCK_STREAM, 0);
    dup2(null, tls_socket(b)); /* a reset, without close_notify */
    close(null);
    assert_true(eventually(at_a.closed == 1));
    assert_int_equal(at_a.why.code, ECONNRESET);
    tls_close(b);
}

static void test_a_callback_that_fails_closes_the_link_with_its_error(void **state)
{
    at_b.fail = -ENOSPC;
    open_pair(NULL, NULL);
    assert_int_equal(send_number(0, NULL, 0), 0);
    assert_true(eventually(at_b.closed == 1));
    assert_int_equal(at_b.why.code, ENOSPC);
    assert_int_equal(link_send(link_b, FRAME_PING, NULL, 0, NULL, 0, NULL), -ENOSPC);
    assert_int_equal(at_a.closed, 0); /* b's owner says why, and closes it */
}

static void test_both_ends_hear_that_one_heard_nothing(void **state)
{
    at_a.hold = true;
    open_pair(NULL, &(struct link_options){.heartbeat = true, .stall_ms = 300});
    link_send(link_b, FRAME_RUN, "hold", 4, NULL, 0, NULL);
    assert_true(eventually(at_b.closed == 1));
    assert_int_equal(at_b.why.code, ETIMEDOUT);
    at_a.hold = false;
    assert_true(eventually(at_a.closed == 1));
}

static void test_closed_is_called_once(void **state)
{
    open_pair(NULL, NULL);
    link_stop(link_a);
    link_stop(link_a);
    link_free(TAKE_PTR(link_a));
    assert_int_equal(at_a.closed, 1);
    assert_true(eventually(at_b.closed == 1));
    link_free(TAKE_PTR(link_b));
    assert_int_equal(at_b.closed, 1);
    link_free(NULL);
    link_stop(NULL);
}

/* --- hostile bytes, old frames -------------------------------------------------------------------------- */

static void header(uint8_t bytes[FRAME_HEADER_SIZE], enum frame_type type, uint32_t length, uint64_t epoch)
{
    frame_encode(&(struct frame){.type = type, .length = length, .vm = vm, .epoch = epoch}, bytes);
}

static void test_bytes_that_are_no_frame_close_the_link(void **state)
{
    struct tls *b = open_half(NULL);
    write_raw(b, "GET / HTTP/1.1\r\nHost: somebody-else\r\n\r\n................", 56);
    assert_true(eventually(at_a.closed == 1));
    assert_int_equal(at_a.why.code, EPROTO);
    assert_int_equal(at_a.frames, 0);
    tls_close(b);
}

static void test_a_frame_of_an_absurd_length_closes_the_link(void **state)
{
    uint8_t bytes[FRAME_HEADER_SIZE];
    struct tls *b = open_half(NULL);
    header(bytes, FRAME_RUN, 0, 0);
    put_le32(bytes + 8, 0x7fffffff);
    write_raw(b, bytes, sizeof bytes);
    assert_true(eventually(at_a.closed == 1));
    assert_int_equal(at_a.why.code, EPROTO);
    tls_close(b);
}

static void test_a_frame_in_single_bytes_is_put_together(void **state)
{
    uint8_t bytes[FRAME_HEADER_SIZE + 4] = {0};
    struct tls *b = open_half(NULL);
    header(bytes, FRAME_RUN, 4, 0);
    for (size_t i = 0; i < sizeof bytes; i++)
        write_raw(b, bytes + i, 1);
    assert_true(eventually(at_a.frames == 1));
    assert_int_equal(at_a.bytes, 4);
    tls_close(b);
}

static void test_frames_of_an_older_epoch_are_dropped(void **state)
{
    open_pair(&(struct link_options){.epoch = 4}, &(struct link_options){.epoch = 5});
    assert_int_equal(send_number(0, NULL, 0), 0);
    link_set_epoch(link_a, 5);
    assert_int_equal(send_number(0, NULL, 0), 0);
    link_set_epoch(link_a, 6); /* a newer one is the walker's to judge */
    assert_int_equal(send_number(1, NULL, 0), 0);
    assert_true(eventually(at_b.frames == 2));
    assert_false(at_b.disorder);
    link_set_epoch(link_b, 7);
    assert_int_equal(send_number(2, NULL, 0), 0);
    clock_sleep(100 * NSEC_PER_MSEC);
    assert_int_equal(at_b.frames, 2);
}

static void test_frames_of_another_vm_are_dropped(void **state)
{
    uint8_t bytes[FRAME_HEADER_SIZE];
    struct tls *b = open_half(NULL);
    frame_encode(&(struct frame){.type = FRAME_COMMIT, .vm = {{9}}}, bytes);
    write_raw(b, bytes, sizeof bytes);
    header(bytes, FRAME_READY, 0, 0);
    write_raw(b, bytes, sizeof bytes);
    assert_true(eventually(at_a.frames == 1));
    assert_int_equal(at_a.last_type, FRAME_READY);
    tls_close(b);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_frames_arrive_whole_and_in_order),
        TEST(test_the_largest_frame_passes),
        TEST(test_both_directions_at_once),
        TEST(test_a_buffer_is_sent_without_a_copy),
        TEST(test_json_that_is_too_long_is_refused),
        TEST(test_a_receiver_that_blocks_blocks_the_sender),
        TEST(test_freeing_a_link_with_a_full_queue_releases_the_sender),
        TEST(test_a_callback_that_answers_never_waits_for_room),
        TEST(test_drain_waits_until_all_is_with_the_kernel),
        TEST(test_drain_gives_up_at_its_deadline),
        TEST(test_the_budget_holds_the_link_back),
        TEST(test_our_own_limit_is_no_stall_of_the_peer),
        TEST(test_a_quiet_link_stays_alive_by_pings),
        TEST(test_a_silent_peer_is_noticed),
        TEST(test_silence_is_not_judged_without_heartbeat),
        TEST(test_a_peer_that_does_not_read_is_noticed),
        TEST(test_a_callback_slower_than_the_stall_does_not_kill_the_link),
        TEST(test_an_orderly_close_has_no_error),
        TEST(test_a_torn_connection_is_an_error),
        TEST(test_a_callback_that_fails_closes_the_link_with_its_error),
        TEST(test_both_ends_hear_that_one_heard_nothing),
        TEST(test_closed_is_called_once),
        TEST(test_bytes_that_are_no_frame_close_the_link),
        TEST(test_a_frame_of_an_absurd_length_closes_the_link),
        TEST(test_a_frame_in_single_bytes_is_put_together),
        TEST(test_frames_of_an_older_epoch_are_dropped),
        TEST(test_frames_of_another_vm_are_dropped),
    };
    return cmocka_run_group_tests_name("link", tests, make_hosts, drop_hosts);
}
