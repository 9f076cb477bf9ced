/* SPDX-License-Identifier: Apache-2.0 */
#include "unit.h"

#include "base/clock.h"
#include "base/macro.h"
#include "base/msg.h"

#include <fcntl.h>
#include <pthread.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

static int pair[2];

static int make_pair(void **state)
{
    return socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair);
}

static int close_pair(void **state)
{
    close(pair[0]);
    if (pair[1] >= 0)
        close(pair[1]);
    return 0;
}

static void send_bytes(const void *data, size_t size)
{
    assert_int_equal(send(pair[1], data, size, MSG_NOSIGNAL), size);
}

static void send_fds(const char *text, int count)
{
    char control[CMSG_SPACE(16 * sizeof(int))] = {0};
    struct iovec part = {.iov_base = (void *)(uintptr_t)text, .iov_len = strlen(text)};
    struct msghdr header = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control};
    header.msg_controllen = CMSG_SPACE((size_t)count * sizeof(int));
    struct cmsghdr *c = CMSG_FIRSTHDR(&header);
    c->cmsg_len = CMSG_LEN((size_t)count * sizeof(int));
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    for (int i = 0; i < count; i++)
        memcpy(CMSG_DATA(c) + (size_t)i * sizeof(int), &(int){STDIN_FILENO}, sizeof(int));
    assert_int_equal(sendmsg(pair[1], &header, MSG_NOSIGNAL), strlen(text));
}

static int receive(int msec)
{
    json_t *message = NULL;
    int r = msg_receive(pair[0], msec, &message, NULL, NULL);
    assert_int_equal(r == 0, message != NULL);
    json_decref(message);
    return r;
}

/* --- one packet ----------------------------------------------------------------------------------------- */

static void a_message_arrives_whole(void **state)
{
    _cleanup_json_ json_t *sent = json_pack("{s:s, s:i}", "do", "info", "n", 7);
    _cleanup_json_ json_t *got = NULL;
    int fd = -7;
    assert_int_equal(msg_send(pair[1], sent, -1, 1000, NULL), 0);
    assert_int_equal(msg_receive(pair[0], 1000, &got, &fd, NULL), 0);
    assert_true(json_equal(sent, got));
    assert_int_equal(fd, -1);
}

static void a_message_of_the_largest_size_arrives(void **state)
{
    _cleanup_free_ char *text = malloc(MSG_MAX);
    size_t length = MSG_MAX - strlen("{\"a\":\"\"}");
    memset(text, 'x', length);
    text[length] = '\0';
    _cleanup_json_ json_t *sent = json_pack("{s:s}", "a", text);
    assert_int_equal(msg_send(pair[1], sent, -1, 1000, NULL), 0);
    assert_int_equal(receive(1000), 0);

    text[length] = 'x';
    _cleanup_json_ json_t *larger = json_pack("{s:s%}", "a", text, length + 1);
    assert_int_equal(msg_send(pair[1], larger, -1, 1000, NULL), -EMSGSIZE);
    assert_int_equal(receive(0), -ETIMEDOUT);
}

static void a_descriptor_comes_along_and_is_close_on_exec(void **state)
{
    int p[2], got = -1;
    char byte;
    _cleanup_json_ json_t *sent = json_object();
    _cleanup_json_ json_t *message = NULL;
    assert_int_equal(pipe(p), 0);
    assert_int_equal(msg_send(pair[1], sent, p[1], 1000, NULL), 0);
    assert_int_equal(msg_receive(pair[0], 1000, &message, &got, NULL), 0);
    assert_true(got >= 0 && got != p[1]);
    assert_int_equal(fcntl(got, F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
    assert_int_equal(write(got, "x", 1), 1);
    assert_int_equal(read(p[0], &byte, 1), 1);
    assert_int_equal(fcntl(p[1], F_GETFD), 0); /* still the sender's */
    close(got);
    close(p[0]);
    close(p[1]);
}

static void a_descriptor_that_nobody_wants_is_closed(void **state)
{
    int before = count_open_fds();
    send_fds("{}", 1);
    assert_int_equal(receive(1000), 0);
    assert_int_equal(count_open_fds(), before);
}

static void too_many_descriptors_are_refused_and_closed(void **state)
{
    int before = count_open_fds();
    for (int count = 2; count <= 16; count++) {
        json_t *message = NULL;
        int fd = -7;
        send_fds("{}", count);
        assert_int_equal(msg_receive(pair[0], 1000, &message, &fd, NULL), -EPROTO);
        assert_int_equal(fd, -7);
        assert_int_equal(count_open_fds(), before);
    }
}

static void a_descriptor_with_a_bad_message_is_closed(void **state)
{
    json_t *message = NULL;
    int fd = -7, before = count_open_fds();
    send_fds("nonsense", 1);
    assert_int_equal(msg_receive(pair[0], 1000, &message, &fd, NULL), -EPROTO);
    assert_int_equal(fd, -7);
    assert_int_equal(count_open_fds(), before);
}

static void what_is_no_json_object_is_refused(void **state)
{
    static const char *const bad[] = {"x", "[]", "7", "{", "{}{}", "{\"a\":1,\"a\":2}", "\xff"};
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        send_bytes(bad[i], strlen(bad[i]));
        assert_int_equal(receive(1000), -EPROTO);
    }
    send_bytes("{}", 2); /* the next message is none the worse */
    assert_int_equal(receive(1000), 0);
}

static void deep_json_is_refused(void **state)
{
    char text[1000];
    memset(text, '[', sizeof text);
    memcpy(text, "{\"a\":", 5);
    send_bytes(text, sizeof text);
    assert_int_equal(receive(1000), -EPROTO);
}

static void a_packet_beyond_the_largest_size_is_refused_not_cut(void **state)
{
    size_t size = MSG_MAX + 2;
    _cleanup_free_ char *text = malloc(size);
    int larger = 1 << 20;
    setsockopt(pair[1], SOL_SOCKET, SO_SNDBUF, &larger, sizeof larger);
    memset(text, ' ', size);
    memcpy(text, "{}", 2); /* good JSON when cut */
    send_bytes(text, size);
    assert_int_equal(receive(1000), -EMSGSIZE);
}

/* --- the end and the clock ------------------------------------------------------------------------------ */

static void the_end_of_the_conversation_is_epipe(void **state)
{
    _cleanup_json_ json_t *message = json_object();
    close(pair[1]);
    pair[1] = -1;
    assert_int_equal(receive(1000), -EPIPE);
    assert_int_equal(msg_send(pair[0], message, -1, 1000, NULL), -EPIPE); /* and no SIGPIPE */
}

static void an_answer_is_read_though_the_peer_closed_on_our_unread_bytes(void **state)
{
    assert_int_equal(send(pair[0], "{}", 2, 0), 2);
    send_bytes("{\"ok\":true}", 11);
    close(pair[1]);
    pair[1] = -1;
    assert_int_equal(receive(1000), 0);
    assert_int_equal(receive(1000), -EPIPE);
}

static void receive_gives_up_in_time(void **state)
{
    int64_t start = clock_now();
    assert_int_equal(receive(80), -ETIMEDOUT);
    int64_t took = clock_now() - start;
    assert_true(took >= 80 * NSEC_PER_MSEC && took < 2 * NSEC_PER_SEC);
}

static void send_to_a_peer_that_does_not_read_gives_up_in_time(void **state)
{
    _cleanup_json_ json_t *message = json_pack("{s:s}", "do", "info");
    int r = 0;
    int64_t start = clock_now();
    for (int i = 0; i < 100000 && r == 0; i++)
        r = msg_send(pair[1], message, -1, 80, NULL);
    assert_int_equal(r, -ETIMEDOUT);
    assert_true(clock_now() - start >= 80 * NSEC_PER_MSEC);
    assert_int_equal(receive(0), 0); /* nothing of it was lost or mixed */
}

/* --- listening and calling ------------------------------------------------------------------------------ */

static void only_the_owner_may_connect_whatever_the_umask(void **state)
{
    struct stat st;
    mode_t old = umask(0);
    _cleanup_close_ int listener = msg_listen(in_scratch("s"), NULL);
    umask(old);
    assert_true(listener >= 0);
    assert_int_equal(stat(in_scratch("s"), &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    assert_int_equal(access(in_scratch("s.new"), F_OK), -1);
}

static void listening_replaces_a_dead_servers_socket(void **state)
{
    close(msg_listen(in_scratch("s"), NULL));
    assert_int_equal(msg_connect(in_scratch("s"), 1000, NULL), -ECONNREFUSED);
    _cleanup_close_ int listener = msg_listen(in_scratch("s"), NULL);
    _cleanup_close_ int client = msg_connect(in_scratch("s"), 1000, NULL);
    assert_true(listener >= 0 && client >= 0);
}

static void listening_spares_a_file_that_is_no_socket(void **state)
{
    assert_int_equal(file_replace(in_scratch("s"), "x", 1, 0644, NULL), 0);
    assert_int_equal(msg_listen(in_scratch("s"), NULL), -EEXIST);
    assert_int_equal(access(in_scratch("s"), F_OK), 0);
}

static void a_path_too_long_for_a_socket_is_named(void **state)
{
    struct err err;
    char path[200];
    memset(path, 'x', sizeof path);
    path[sizeof path - 1] = '\0';
    assert_int_equal(msg_listen(path, &err), -ENAMETOOLONG);
    assert_int_equal(msg_connect(path, 10, &err), -ENAMETOOLONG);
}

static void connecting_to_nobody_says_so(void **state)
{
    struct err err;
    assert_int_equal(msg_connect(in_scratch("none"), 1000, &err), -ENOENT);
    assert_non_null(strstr(err.text, in_scratch("none")));
}

static void connecting_to_a_server_that_accepts_nobody_gives_up_in_time(void **state)
{
    int clients[8];
    _cleanup_close_ int listener = msg_listen(in_scratch("s"), NULL);
    assert_int_equal(listen(listener, 1), 0);
    int64_t start = clock_now();
    int count = 0;
    while (count < 8 && (clients[count] = msg_connect(in_scratch("s"), 80, NULL)) >= 0)
        count++;
    assert_true(count > 0 && count < 8);
    assert_int_equal(clients[count], -ETIMEDOUT);
    assert_true(clock_now() - start < 2 * NSEC_PER_SEC);
    while (count > 0)
        close(clients[--count]);
}

/* A server for one request: answers with `answer`, or nothing when that is NULL. */
struct server {
    pthread_t thread;
    int listener;
    const char *answer;
    json_t *request;
};

static void *serve(void *argument)
{
    struct server *server = argument;
    _cleanup_close_ int client = accept(server->listener, NULL, NULL);
    if (msg_receive(client, 5000, &server->request, NULL, NULL) == 0 && server->answer)
        send(client, server->answer, strlen(server->answer), MSG_NOSIGNAL);
    else if (!server->answer) /* until the caller gives up */
        msg_receive(client, 5000, &(json_t *){NULL}, NULL, NULL);
    return NULL;
}

static int call(const char *answer, int msec, json_t **ret_answer, struct err *err)
{
    struct server server = {.answer = answer, .listener = msg_listen(in_scratch("s"), NULL)};
    _cleanup_json_ json_t *request = json_pack("{s:s}", "do", "info");
    assert_int_equal(pthread_create(&server.thread, NULL, serve, &server), 0);
    int r = msg_call(in_scratch("s"), request, -1, msec, ret_answer, err);
    pthread_join(server.thread, NULL);
    assert_true(json_equal(server.request, request));
    json_decref(server.request);
    close(server.listener);
    return r;
}

static void a_call_gives_the_answer(void **state)
{
    _cleanup_json_ json_t *answer = NULL;
    assert_int_equal(call("{\"ok\":true,\"n\":7}", 5000, &answer, NULL), 0);
    assert_int_equal(json_integer_value(json_object_get(answer, "n")), 7);
    assert_int_equal(call("{\"ok\":true}", 5000, NULL, NULL), 0);
}

static void a_refused_call_becomes_the_error_that_it_carries(void **state)
{
    struct err err;
    json_t *answer = NULL;
    int r = call("{\"ok\":false,\"error\":{\"code\":\"EBUSY\",\"text\":\"it moves\",\"hint\":\"orai "
                 "status\",\"host\":\"b\"}}",
                 5000, &answer, &err);
    assert_int_equal(r, -EBUSY);
    assert_string_equal(err.text, "it moves");
    assert_string_equal(err.hint, "orai status");
    assert_string_equal(err.host, "b");
    assert_null(answer);
}

static void an_answer_that_is_neither_is_a_protocol_error(void **state)
{
    static const char *const odd[] = {"{}", "{\"ok\":1}", "{\"ok\":false}", "{\"ok\":false,\"error\":[]}",
                                      "x"};
    for (size_t i = 0; i < ARRAY_SIZE(odd); i++) {
        struct err err = ERR_NONE;
        assert_int_equal(call(odd[i], 5000, NULL, &err), -EPROTO);
        assert_true(err.text[0]);
        assert_int_equal(call(odd[i], 5000, NULL, NULL), -EPROTO);
    }
}

static void a_call_without_an_answer_gives_up_in_time(void **state)
{
    struct err err;
    int64_t start = clock_now();
    assert_int_equal(call(NULL, 80, NULL, &err), -ETIMEDOUT);
    assert_true(clock_now() - start < 2 * NSEC_PER_SEC);
    assert_non_null(strstr(err.text, in_scratch("s")));
}

#define PAIR(f) cmocka_unit_test_setup_teardown(f, make_pair, close_pair)
#define SCRATCH(f) cmocka_unit_test_setup_teardown(f, make_scratch, remove_scratch)

int main(void)
{
    const struct CMUnitTest tests[] = {
        PAIR(a_message_arrives_whole),
        PAIR(a_message_of_the_largest_size_arrives),
        PAIR(a_descriptor_comes_along_and_is_close_on_exec),
        PAIR(a_descriptor_that_nobody_wants_is_closed),
        PAIR(too_many_descriptors_are_refused_and_closed),
        PAIR(a_descriptor_with_a_bad_message_is_closed),
        PAIR(what_is_no_json_object_is_refused),
        PAIR(deep_json_is_refused),
        PAIR(a_packet_beyond_the_largest_size_is_refused_not_cut),
        PAIR(the_end_of_the_conversation_is_epipe),
        PAIR(an_answer_is_read_though_the_peer_closed_on_our_unread_bytes),
        PAIR(receive_gives_up_in_time),
        PAIR(send_to_a_peer_that_does_not_read_gives_up_in_time),
        SCRATCH(only_the_owner_may_connect_whatever_the_umask),
        SCRATCH(listening_replaces_a_dead_servers_socket),
        SCRATCH(listening_spares_a_file_that_is_no_socket),
        SCRATCH(a_path_too_long_for_a_socket_is_named),
        SCRATCH(connecting_to_nobody_says_so),
        SCRATCH(connecting_to_a_server_that_accepts_nobody_gives_up_in_time),
        SCRATCH(a_call_gives_the_answer),
        SCRATCH(a_refused_call_becomes_the_error_that_it_carries),
        SCRATCH(an_answer_that_is_neither_is_a_protocol_error),
        SCRATCH(a_call_without_an_answer_gives_up_in_time),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
