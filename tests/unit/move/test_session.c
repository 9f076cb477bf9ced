/* SPDX-License-Identifier: Apache-2.0
 *
 * The mailbox between link threads and the walker, and what makes the walker stop waiting.
 */
#include "move_test.h"

#include "base/json.h"
#include "move/session.h"

#include <stdatomic.h>

static struct session session;

static int setup(void **state)
{
    return session_init(&session, 0, NULL);
}

static int teardown(void **state)
{
    session_done(&session);
    return 0;
}

static int64_t in_msec(int msec)
{
    return clock_now() + msec * NSEC_PER_MSEC;
}

static int post(enum frame_type type, const char *text)
{
    struct frame frame = {.type = type, .length = (uint32_t)strlen(text)};
    return session_post(&session, NULL, &frame, (const uint8_t *)text, NULL);
}

static void post_error(int code, const char *text)
{
    struct err why = ERR_NONE;
    err_set(&why, code, "%s", text);
    _cleanup_json_ json_t *json = err_to_json(&why);
    _cleanup_free_ char *bytes = json_dumps(json, 0);
    assert_int_equal(post(FRAME_ERROR, bytes), 0);
}

static void lose(int code)
{
    struct err why = ERR_NONE;
    if (code)
        err_set(&why, code, "the cable was cut");
    session_lost(&session, &why);
}

static void test_mail_comes_in_order(void **state)
{
    char text[8];
    for (int i = 0; i < 50; i++) {
        snprintf(text, sizeof text, "%d", i);
        assert_int_equal(post(FRAME_LINEAGE, text), 0);
    }
    for (int i = 0; i < 50; i++) {
        struct mail *mail;
        snprintf(text, sizeof text, "%d", i);
        assert_ok(session_wait(&session, FRAME_LINEAGE, in_msec(1000), &mail, &err));
        assert_string_equal((char *)mail->payload, text); /* a NUL follows the payload */
        assert_int_equal(mail->frame.length, strlen(text));
        free(mail);
    }
}

static void test_waiting_ends_at_the_deadline(void **state)
{
    struct mail *mail = NULL;
    struct err err = ERR_NONE;
    int64_t began = clock_now();
    assert_int_equal(session_next(&session, in_msec(50), &mail, &err), -EAGAIN);
    assert_int_equal(err.code, 0);
    assert_int_equal(session_wait(&session, FRAME_READY, in_msec(50), &mail, &err), -ETIMEDOUT);
    assert_non_null(strstr(err.text, "ready"));
    assert_null(mail);
    assert_true(clock_now() - began >= 100 * NSEC_PER_MSEC);
    assert_int_equal(session_nap(&session, in_msec(10), &err), 0);
}

static void test_a_frame_of_another_type_is_a_protocol_error(void **state)
{
    struct mail *mail = NULL;
    struct err err = ERR_NONE;
    assert_int_equal(post(FRAME_PROBED, ""), 0);
    assert_int_equal(session_wait(&session, FRAME_READY, in_msec(1000), &mail, &err), -EPROTO);
    assert_non_null(strstr(err.text, "probed"));
    assert_null(mail);
}

static void test_json_that_is_none_is_an_error(void **state)
{
    json_t *json = NULL;
    assert_int_equal(post(FRAME_READY, "{\"host\": "), 0);
    assert_true(session_wait_json(&session, FRAME_READY, in_msec(1000), &json, NULL) < 0);
    assert_null(json);
    assert_int_equal(post(FRAME_READY, "{\"host\": \"b\"}"), 0);
    assert_ok(session_wait_json(&session, FRAME_READY, in_msec(1000), &json, &err));
    assert_string_equal(json_str(json, "host", ""), "b");
    json_decref(json);
}

static void test_the_peers_error_is_ours(void **state)
{
    struct mail *mail;
    struct err err = ERR_NONE;
    post_error(ENOSPC, "no room at b");
    assert_int_equal(session_next(&session, in_msec(1000), &mail, &err), -ENOSPC);
    assert_string_equal(err.text, "no room at b");
    assert_true(session.peer_failed);
    assert_int_equal(session_check(&session, NULL), -ENOSPC); /* and stays */
}

static void test_what_broke_under_the_walkers_hand_is_explained_by_the_peer(void **state)
{
    struct err err = ERR_NONE;
    err_set(&err, ECONNRESET, "the connection was closed");
    assert_int_equal(post(FRAME_LINEAGE, "older mail"), 0);
    post_error(ENOSPC, "no room at b");
    session_explain(&session, &err);
    assert_int_equal(err.code, ENOSPC);
    assert_string_equal(err.text, "no room at b");
}

static void test_our_own_failure_is_not_explained_away(void **state)
{
    struct err err = ERR_NONE;
    err_set(&err, EIO, "the disk cannot be read");
    session_explain(&session, &err); /* all links are well */
    assert_int_equal(err.code, EIO);
    lose(ECONNRESET);
    session_explain(&session, &err); /* the peer says nothing */
    assert_string_equal(err.text, "the disk cannot be read");
}

static void test_an_error_frame_beats_the_broken_link_after_it(void **state)
{
    struct err err = ERR_NONE;
    post_error(ENOSPC, "no room at b");
    lose(ECONNRESET);
    assert_int_equal(session_check(&session, &err), -ENOSPC);
}

static void *post_error_later(void *arg)
{
    clock_sleep(60 * NSEC_PER_MSEC);
    post_error(ENOSPC, "no room at b");
    return NULL;
}

/* They are different connections: the data link's end may be seen before the control link's last words. */
static void test_an_error_frame_beats_the_broken_link_before_it(void **state)
{
    pthread_t thread;
    struct err err = ERR_NONE;
    lose(ECONNRESET);
    assert_int_equal(pthread_create(&thread, NULL, post_error_later, NULL), 0);
    assert_int_equal(session_check(&session, &err), -ENOSPC);
    assert_true(session.peer_failed);
    pthread_join(thread, NULL);
}

static void test_an_error_frame_that_is_garbage_is_still_the_end(void **state)
{
    assert_int_equal(post(FRAME_ERROR, "\xff{{{"), 0);
    assert_true(session_check(&session, NULL) < 0);
    assert_true(session.peer_failed);
}

static void test_a_broken_link_ends_every_wait(void **state)
{
    struct mail *mail;
    struct err err = ERR_NONE;
    lose(ETIMEDOUT);
    assert_int_equal(session_wait(&session, FRAME_READY, in_msec(60000), &mail, &err), -ETIMEDOUT);
    assert_string_equal(err.text, "the cable was cut");
    assert_int_equal(session_nap(&session, in_msec(60000), NULL), -ETIMEDOUT);
    lose(EPROTO); /* the first reason stays */
    assert_int_equal(session_check(&session, NULL), -ETIMEDOUT);
}

static void test_a_peer_that_closes_in_order_is_lost_too(void **state)
{
    lose(0);
    assert_int_equal(session_check(&session, NULL), -ECONNRESET);
}

static void test_mail_before_the_end_is_still_delivered(void **state)
{
    struct mail *mail;
    assert_int_equal(post(FRAME_RUNNING, "{}"), 0);
    lose(ECONNRESET);
    assert_ok(session_wait(&session, FRAME_RUNNING, in_msec(1000), &mail, &err));
    free(mail);
    assert_int_equal(session_next(&session, in_msec(1000), &mail, NULL), -ECONNRESET);
}

static void *cancel_later(void *arg)
{
    clock_sleep(50 * NSEC_PER_MSEC);
    session_cancel(&session);
    return NULL;
}

static void test_a_cancel_wakes_the_walker(void **state)
{
    pthread_t thread;
    struct mail *mail;
    assert_int_equal(pthread_create(&thread, NULL, cancel_later, NULL), 0);
    assert_int_equal(session_wait(&session, FRAME_READY, in_msec(60000), &mail, NULL), -ECANCELED);
    pthread_join(thread, NULL);
}

static void test_a_cancel_comes_before_mail(void **state)
{
    struct mail *mail;
    assert_int_equal(post(FRAME_READY, "{}"), 0);
    assert_true(session_cancel(&session));
    assert_int_equal(session_next(&session, in_msec(1000), &mail, NULL), -ECANCELED);
}

static void test_a_cancel_after_the_commit_changes_nothing(void **state)
{
    session_uncancel(&session);
    assert_false(session_cancel(&session));
    assert_int_equal(session_check(&session, NULL), 0);
}

static void test_deciding_fails_when_a_cancel_was_first(void **state)
{
    assert_true(session_cancel(&session));
    assert_int_equal(session_decide(&session, NULL), -ECANCELED);
}

static void test_deciding_makes_every_later_cancel_too_late(void **state)
{
    assert_int_equal(session_decide(&session, NULL), 0);
    assert_false(session_cancel(&session));
    session_reset(&session); /* a new connection, to ask again */
    assert_false(session_cancel(&session));
    assert_int_equal(session_check(&session, NULL), 0);
}

static void test_a_reset_forgets_the_broken_connection(void **state)
{
    struct mail *mail;
    assert_int_equal(post(FRAME_MARKED, "old"), 0);
    post_error(EIO, "old");
    lose(ECONNRESET);
    session_reset(&session);
    assert_int_equal(session_next(&session, in_msec(10), &mail, NULL), -EAGAIN);
    assert_false(session.peer_failed);
}

static void *take_all(void *arg)
{
    atomic_uint *taken = arg;
    struct mail *mail;
    while (session_next(&session, in_msec(1000), &mail, NULL) == 0) {
        free(mail);
        (*taken)++;
        clock_sleep(NSEC_PER_MSEC / 2);
    }
    return NULL;
}

static void test_a_full_mailbox_holds_the_link_back(void **state)
{
    pthread_t walker;
    atomic_uint taken = 0;
    for (int i = 0; i < 64; i++)
        assert_int_equal(post(FRAME_FILE, "piece"), 0);
    assert_int_equal(pthread_create(&walker, NULL, take_all, &taken), 0);
    for (int i = 0; i < 500; i++)
        assert_int_equal(post(FRAME_FILE, "piece"), 0);
    pthread_join(walker, NULL);
    assert_int_equal(taken, 564);
}

static void test_a_mailbox_that_nobody_empties_is_an_error_in_the_end(void **state)
{
    for (int i = 0; i < 64; i++)
        assert_int_equal(post(FRAME_FILE, "piece"), 0);
    int64_t began = clock_now();
    assert_int_equal(post(FRAME_FILE, "piece"), -EMSGSIZE);
    assert_true(clock_now() - began <
                MOVE_STALL_MS * NSEC_PER_MSEC); /* the peer must not think us dead first */
}

static int post_bytes(size_t size)
{
    static const uint8_t bytes[FRAME_MAX_PAYLOAD];
    struct frame frame = {.type = FRAME_FILE, .length = (uint32_t)size};
    return session_post(&session, NULL, &frame, bytes, NULL);
}

/* A hostile peer's are as long as may be. */
static void test_long_mail_fills_the_mailbox_sooner(void **state)
{
    struct mail *mail;
    for (size_t bytes = 0; bytes < SESSION_MAX_MAIL_BYTES; bytes += FRAME_MAX_PAYLOAD)
        assert_int_equal(post_bytes(FRAME_MAX_PAYLOAD), 0);
    assert_int_equal(post_bytes(0), -EMSGSIZE);
    assert_int_equal(session_next(&session, in_msec(1000), &mail, NULL), 0);
    free(mail);
    assert_int_equal(post_bytes(FRAME_MAX_PAYLOAD), 0);
}

static int on_frame(void *arg, struct link *link, const struct frame *frame, const uint8_t *payload,
                    struct err *err)
{
    return session_post(&session, link, frame, payload, err);
}

static void on_closed(void *arg, struct link *link, const struct err *err)
{
    session_lost(&session, err);
}

static void *send_until_stopped(void *arg)
{
    static const uint8_t body[65536];
    while (link_send(arg, FRAME_STREAM, NULL, 0, body, sizeof body, NULL) == 0)
        ;
    return NULL;
}

/* As the relay's thread stands in link_send when a move is cancelled: it must be out before the link goes. */
static void test_stop_brings_back_who_waits_to_send(void **state)
{
    struct tls *a, *b;
    pthread_t relay;
    const struct link_options options = {.vm = vm, .stall_ms = 8000};
    const struct link_handler handler = {.frame = on_frame, .closed = on_closed};
    connect_hosts(&a, &b);
    assert_ok(link_start(a, &options, &handler, &session.data[0], &err));
    session.data_count = 1;
    assert_int_equal(pthread_create(&relay, NULL, send_until_stopped, session.data[0]), 0);
    clock_sleep(200 * NSEC_PER_MSEC);
    session_stop(&session);
    pthread_join(relay, NULL);
    session_reset(&session);
    assert_int_equal(session.data_count, 0);
    assert_null(session.data[0]);
    tls_close(b);
}

static void test_the_end_of_a_link_is_heard(void **state)
{
    struct tls *a, *b;
    struct mail *mail;
    const struct link_options options = {.vm = vm, .stall_ms = 8000};
    const struct link_handler handler = {.frame = on_frame, .closed = on_closed};
    connect_hosts(&a, &b);
    assert_ok(link_start(a, &options, &handler, &session.control, &err));
    tls_close(b);
    assert_int_equal(session_wait(&session, FRAME_HELLO, in_msec(10000), &mail, NULL), -ECONNRESET);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_mail_comes_in_order),
        TEST(test_waiting_ends_at_the_deadline),
        TEST(test_a_frame_of_another_type_is_a_protocol_error),
        TEST(test_json_that_is_none_is_an_error),
        TEST(test_the_peers_error_is_ours),
        TEST(test_what_broke_under_the_walkers_hand_is_explained_by_the_peer),
        TEST(test_our_own_failure_is_not_explained_away),
        TEST(test_an_error_frame_beats_the_broken_link_after_it),
        TEST(test_an_error_frame_beats_the_broken_link_before_it),
        TEST(test_an_error_frame_that_is_garbage_is_still_the_end),
        TEST(test_a_broken_link_ends_every_wait),
        TEST(test_a_peer_that_closes_in_order_is_lost_too),
        TEST(test_mail_before_the_end_is_still_delivered),
        TEST(test_a_cancel_wakes_the_walker),
        TEST(test_a_cancel_comes_before_mail),
        TEST(test_a_cancel_after_the_commit_changes_nothing),
        TEST(test_deciding_fails_when_a_cancel_was_first),
        TEST(test_deciding_makes_every_later_cancel_too_late),
        TEST(test_a_reset_forgets_the_broken_connection),
        TEST(test_a_full_mailbox_holds_the_link_back),
        TEST(test_a_mailbox_that_nobody_empties_is_an_error_in_the_end),
        TEST(test_long_mail_fills_the_mailbox_sooner),
        TEST(test_stop_brings_back_who_waits_to_send),
        TEST(test_the_end_of_a_link_is_heard),
    };
    return cmocka_run_group_tests_name("session", tests, make_hosts, drop_hosts);
}
