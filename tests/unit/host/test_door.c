/* SPDX-License-Identifier: Apache-2.0
 *
 * Where connections go: real sockets, a real door and HTTP side, and a stand-in for orai-vm's control socket.
 */
#include "host_test.h"

#include "base/clock.h"
#include "base/msg.h"
#include "base/tcp.h"
#include "host/client.h"
#include "host/door.h"

#include <arpa/inet.h>
#include <openssl/ssl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/un.h>

struct running {
    struct test_host test;
    struct door *door;
    struct http *http;
    pthread_t thread;
};

static void *serve(void *arg)
{
    http_run(arg);
    return NULL;
}

static int start(void **state)
{
    struct running *r = calloc(1, sizeof *r);
    struct test_host *t = &r->test;
    struct err err = ERR_NONE;
    char run[PATH_MAX];
    assert_int_equal(scratch_make(t->dir, sizeof t->dir), 0);
    snprintf(t->run, sizeof t->run, "%s/run", t->dir);
    snprintf(t->registry, sizeof t->registry, "%s/registry.db", t->dir);
    vm_run_dir(&(struct host){.options.run_dir = t->run}, "web1", run);
    assert_int_equal(file_mkdirs(run, 0700, &err), 0);
    test_host_open(t);
    t->host.options.port = 0;
    assert_int_equal(pool_new("request", 4, 64, &t->host.requests, &err), 0);
    assert_int_equal(client_open(), 0);
    assert_int_equal(door_new(&t->host, &r->door, &err), 0);
    t->host.options.port = door_port(r->door);
    assert_int_equal(http_new(&t->host, &r->http, &err), 0);
    assert_int_equal(door_start(r->door, r->http, &err), 0);
    assert_int_equal(pthread_create(&r->thread, NULL, serve, r->http), 0);
    *state = r;
    return 0;
}

static int end(void **state)
{
    struct running *r = *state;
    struct err err;
    http_stop(r->http);
    pthread_join(r->thread, NULL);
    door_free(r->door);
    assert_true(pool_stop(r->test.host.requests, 10000));
    http_free(r->http);
    pool_free(r->test.host.requests);
    test_host_close(&r->test);
    file_remove_tree(r->test.dir, &err);
    free(r);
    return 0;
}

#define DOOR_TEST(f) cmocka_unit_test_setup_teardown(f, start, end)

static int knock(struct running *r)
{
    struct err err;
    int fd = -1;
    assert_int_equal(tcp_connect("127.0.0.1", door_port(r->door), clock_now() + NSEC_PER_SEC, &fd, &err), 0);
    return fd;
}

static size_t client_hello(const char *server_name, uint8_t *ret, size_t size)
{
    SSL_CTX *context = SSL_CTX_new(TLS_client_method());
    SSL *ssl = SSL_new(context);
    BIO *in = BIO_new(BIO_s_mem()), *out = BIO_new(BIO_s_mem());
    SSL_set_bio(ssl, in, out);
    SSL_set_tlsext_host_name(ssl, server_name);
    SSL_connect(ssl);
    int length = BIO_read(out, ret, (int)size);
    assert_true(length > 0);
    SSL_free(ssl);
    SSL_CTX_free(context);
    return (size_t)length;
}

/* A VM with a listening control socket; returns that. */
static int make_vm(struct running *r, struct id *ret_id)
{
    char path[PATH_MAX];
    struct err err;
    *ret_id = id_random();
    assert_int_equal(vm_add(r->test.host.vms, "web1", ret_id, &err), 0);
    vm_run_path(&r->test.host, "web1", "control.sock", path);
    int fd = msg_listen(path, &err);
    assert_true(fd >= 0);
    return fd;
}

static bool closed_within(int fd, int msec)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};
    char byte;
    return poll(&p, 1, msec) == 1 && recv(fd, &byte, 1, 0) <= 0;
}

static void names_of_vms_are_told_from_others(void **state)
{
    static const char *const others[] = {"",
                                         "orai",
                                         ".orai",
                                         "b.orai",
                                         "0123456789abcdef0123456789abcde.orai",
                                         "0123456789abcdef0123456789abcdefg.orai",
                                         "0123456789abcdef0123456789abcdeg.orai",
                                         "0123456789abcdef0123456789abcdef.oraj"};
    struct id id;
    assert_true(door_vm_name("0123456789abcdef0123456789abcdef.orai", &id));
    for (size_t i = 0; i < ARRAY_SIZE(others); i++)
        assert_false(door_vm_name(others[i], &id));
}

/* Takes the descriptor that the door put into the control socket's queue. */
static int take_descriptor(int listener)
{
    struct pollfd p = {.fd = listener, .events = POLLIN};
    struct err err = ERR_NONE;
    _cleanup_json_ json_t *request = NULL;
    int got = -1;
    assert_int_equal(poll(&p, 1, 5000), 1);
    int client = accept(listener, NULL, NULL);
    assert_int_equal(msg_receive(client, 5000, &request, &got, &err), 0);
    assert_string_equal(json_str(request, "do", ""), "accept");
    assert_true(got >= 0);
    close(client);
    return got;
}

static void a_vms_connection_arrives_untouched_at_its_orai_vm(void **state)
{
    struct running *r = *state;
    struct id id;
    uint8_t hello[4096], seen[4096];
    char name[64], text[ID_TEXT_SIZE];
    int listener = make_vm(r, &id), fd = knock(r);
    snprintf(name, sizeof name, "%s.orai", id_format(&id, text));
    size_t size = client_hello(name, hello, sizeof hello);
    assert_int_equal(send(fd, hello, size, 0), size);
    int got = take_descriptor(listener);
    struct pollfd p = {.fd = got, .events = POLLIN};
    assert_int_equal(poll(&p, 1, 1000), 1);
    assert_int_equal(recv(got, seen, sizeof seen, 0), size);
    assert_memory_equal(seen, hello, size);
    assert_int_equal(send(got, "x", 1, 0), 1);
    p.fd = fd;
    assert_int_equal(poll(&p, 1, 1000), 1);
    close(got), close(fd), close(listener);
}

static void a_hello_in_pieces_is_waited_for_without_spinning(void **state)
{
    struct running *r = *state;
    struct id id;
    uint8_t hello[4096];
    char name[64], text[ID_TEXT_SIZE];
    int listener = make_vm(r, &id), fd = knock(r);
    snprintf(name, sizeof name, "%s.orai", id_format(&id, text));
    size_t size = client_hello(name, hello, sizeof hello);
    struct timespec before, after;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &before);
    for (size_t at = 0; at < size; at += 64) {
        assert_true(send(fd, hello + at, MIN(64, size - at), 0) > 0);
        clock_sleep(50 * NSEC_PER_MSEC);
    }
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &after);
    close(take_descriptor(listener));
    assert_true((after.tv_sec - before.tv_sec) * 1000 + (after.tv_nsec - before.tv_nsec) / 1000000 < 150);
    close(fd), close(listener);
}

static void a_connection_for_a_vm_that_is_not_here_is_closed(void **state)
{
    struct running *r = *state;
    uint8_t hello[4096];
    int fd = knock(r);
    size_t size = client_hello("0123456789abcdef0123456789abcdef.orai", hello, sizeof hello);
    assert_int_equal(send(fd, hello, size, 0), size);
    assert_true(closed_within(fd, 2000));
    close(fd);
}

static void what_is_no_tls_is_closed(void **state)
{
    struct running *r = *state;
    int fd = knock(r);
    assert_true(send(fd, "GET /v1/host HTTP/1.1\r\n\r\n", 26, 0) > 0);
    assert_true(closed_within(fd, 2000));
    close(fd);
}

static void a_silent_connection_is_closed_after_its_time(void **state)
{
    struct running *r = *state;
    int64_t begun = clock_now();
    int fd = knock(r);
    assert_false(closed_within(fd, DOOR_HELLO_MSEC - 500));
    assert_true(closed_within(fd, 2000));
    assert_true(clock_now() - begun >= DOOR_HELLO_MSEC * NSEC_PER_MSEC);
    close(fd);
}

/* From an address of its own: a crowd's. */
static int knock_from(struct running *r, const char *source)
{
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(door_port(r->door))},
                       own = {.sin_family = AF_INET};
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    inet_pton(AF_INET, "127.0.0.1", &to.sin_addr);
    inet_pton(AF_INET, source, &own.sin_addr);
    assert_int_equal(bind(fd, (struct sockaddr *)&own, sizeof own), 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&to, sizeof to), 0);
    return fd;
}

static void a_crowd_of_silent_connections_keeps_nobody_waiting(void **state)
{
    struct running *r = *state;
    struct id id;
    uint8_t hello[4096];
    char name[64], text[ID_TEXT_SIZE];
    int listener = make_vm(r, &id), crowd[4 * DOOR_MAX_HALF_OPEN];
    snprintf(name, sizeof name, "%s.orai", id_format(&id, text));
    size_t size = client_hello(name, hello, sizeof hello);
    for (size_t i = 0; i < ARRAY_SIZE(crowd) / 2; i++)
        crowd[i] = knock_from(r, "127.0.0.2");
    int64_t begun = clock_now();
    int fd = knock(r);
    assert_int_equal(send(fd, hello, 100, 0), 100); /* an honest one whose hello comes in two parts */
    for (size_t i = ARRAY_SIZE(crowd) / 2; i < ARRAY_SIZE(crowd); i++)
        crowd[i] = knock_from(r, "127.0.0.2");
    /* They have been let in, and have made room for each other. */
    assert_true(closed_within(crowd[ARRAY_SIZE(crowd) - DOOR_MAX_HALF_OPEN - 8], 2000));
    assert_int_equal(send(fd, hello + 100, size - 100, 0), size - 100);
    close(take_descriptor(listener));
    assert_true(clock_now() - begun < DOOR_HELLO_MSEC * NSEC_PER_MSEC / 2);
    assert_true(closed_within(crowd[0], 1000));
    assert_false(closed_within(crowd[ARRAY_SIZE(crowd) - 1], 100));
    for (size_t i = 0; i < ARRAY_SIZE(crowd); i++)
        close(crowd[i]);
    close(fd), close(listener);
}

/* --- the API behind it ---------------------------------------------------------------------------------- */

static void the_api_answers_a_client_with_a_key_and_knows_it_by_that(void **state)
{
    struct running *r = *state;
    struct host *host = &r->test.host;
    struct err err;
    struct peer self = {.name = "a", .address = "127.0.0.1", .port = door_port(r->door)};
    self.fingerprint = *tls_identity_fingerprint(host->identity);
    struct client_call ask = {.peer = &self, .method = "GET", .path = "/v1/vms", .msec = 5000};
    assert_int_equal(client_call(host, &ask), -EACCES); /* nobody's peer yet */
    assert_non_null(strstr(ask.err.text, "no peer"));
    strcpy(self.name, "self");
    _cleanup_json_ json_t *row = peer_to_json(&self);
    assert_int_equal(registry_insert(host->registry, REGISTRY_PEERS, row, &err), 0);
    assert_int_equal(client_call(host, &ask), 0);
    assert_int_equal(ask.status, 200);
    json_decref(ask.answer);
}

static int post_bytes(struct running *r, const struct peer *to, size_t size)
{
    _cleanup_free_ char *text = malloc(size + 1);
    memset(text, 'x', size);
    text[size] = '\0';
    _cleanup_json_ json_t *body = json_pack("{s:s}", "secret", text);
    struct client_call ask = {.peer = to, .method = "POST", .path = "/v1/join", .body = body, .msec = 5000};
    int code = client_call(&r->test.host, &ask);
    json_decref(ask.answer);
    return code;
}

static void what_a_stranger_sends_may_not_be_long(void **state)
{
    struct running *r = *state;
    struct err err;
    struct peer self = {.name = "self", .address = "127.0.0.1", .port = door_port(r->door)};
    self.fingerprint = *tls_identity_fingerprint(r->test.host.identity);
    assert_int_equal(post_bytes(r, &self, API_MAX_STRANGE_BODY), -EFBIG);
    assert_int_not_equal(post_bytes(r, &self, API_MAX_STRANGE_BODY / 2), -EFBIG);
    _cleanup_json_ json_t *row = peer_to_json(&self);
    assert_int_equal(registry_insert(r->test.host.registry, REGISTRY_PEERS, row, &err), 0);
    assert_int_not_equal(post_bytes(r, &self, API_MAX_STRANGE_BODY), -EFBIG);
    assert_int_equal(post_bytes(r, &self, API_MAX_BODY), -EFBIG);
}

static void a_server_with_another_key_gets_nothing(void **state)
{
    struct running *r = *state;
    struct peer wrong = {.name = "b", .address = "127.0.0.1", .port = door_port(r->door)};
    struct client_call ask = {.peer = &wrong, .method = "GET", .path = "/v1/vms", .msec = 5000};
    assert_int_equal(client_call(&r->test.host, &ask), -EACCES);
    assert_non_null(strstr(ask.err.text, "another key"));
    assert_null(ask.answer);
}

/* Sends `text` on the unix socket; returns what comes until the server closes or `msec` pass. */
static char *speak(struct running *r, const char *text, int msec)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    char *answer = calloc(1, 65536);
    size_t used = 0;
    snprintf(address.sun_path, sizeof address.sun_path, "%s/api.sock", r->test.run);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&address, sizeof address), 0);
    for (size_t left = strlen(text); left > 0;) {
        ssize_t n = send(fd, text, left, MSG_NOSIGNAL);
        if (n <= 0)
            break;
        text += n, left -= (size_t)n;
    }
    struct pollfd p = {.fd = fd, .events = POLLIN};
    while (used < 65535 && poll(&p, 1, msec) == 1) {
        ssize_t n = recv(fd, answer + used, 65535 - used, 0);
        if (n <= 0)
            break;
        used += (size_t)n;
    }
    close(fd);
    return answer;
}

static void expect_answer(struct running *r, const char *text, const char *words)
{
    _cleanup_free_ char *answer = speak(r, text, 500);
    if (!strstr(answer, words))
        fail_msg("%.60s: no \"%s\" in: %s", text, words, answer);
}

static void odd_requests_get_an_answer_or_the_end(void **state)
{
    struct running *r = *state;
    expect_answer(r, "GET /v1/vms HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.1 200");
    expect_answer(r, "GET /v1/vms HTTP/1.1\r\nHost: remote\r\n\r\n",
                  "HTTP/1.1 200"); /* a vhost's name decides nothing */
    expect_answer(r, "POST /v1/invites HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.1 201");
    expect_answer(r, "POST /v1/invites HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", "HTTP/1.1 201");
    expect_answer(r, "DELETE /v1/vms/x HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", "HTTP/1.1 404");
    expect_answer(r, "POST /v1/invites HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello",
                  "HTTP/1.1 400");
    expect_answer(r, "POST /v1/invites HTTP/1.1\r\nHost: x\r\nContent-Length: 9999999\r\n\r\n",
                  "HTTP/1.1 413");
    expect_answer(r, "POST /v1/invites HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", "HTTP/1.1 400");
    expect_answer(r, "POST /v1/invites HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n",
                  "HTTP/1.1 400");
    expect_answer(r, "PUT /v1/vms/x/config HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}",
                  "HTTP/1.1 404");
    expect_answer(r, "GET /v1/vms/%2e%2e%2fx HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.1 404");
}

static void requests_on_one_connection_are_answered_one_after_the_other(void **state)
{
    struct running *r = *state;
    static const char one[] = "POST /v1/invites HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}";
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    char answer[4096];
    snprintf(address.sun_path, sizeof address.sun_path, "%s/api.sock", r->test.run);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&address, sizeof address), 0);
    for (int i = 0; i < 50; i++) {
        assert_int_equal(send(fd, one, sizeof one - 1, 0), sizeof one - 1);
        size_t used = 0;
        while (used < sizeof answer - 1) {
            ssize_t n = recv(fd, answer + used, sizeof answer - 1 - used, 0);
            assert_true(n > 0);
            used += (size_t)n;
            answer[used] = '\0';
            char *body = strstr(answer, "\r\n\r\n");
            if (body && body[4] && answer[used - 1] == '}')
                break;
        }
        assert_non_null(strstr(answer, "HTTP/1.1 201"));
    }
    close(fd);
}

static void a_client_that_goes_away_during_its_request_harms_nobody(void **state)
{
    struct running *r = *state;
    struct id id = id_random();
    struct err err;
    char text[256], hex[ID_TEXT_SIZE];
    assert_int_equal(operation_begin(r->test.host.operations, &id, "move", "web1", &err), 0);
    _cleanup_json_ json_t *operation = NULL;
    assert_int_equal(operation_get(r->test.host.operations, &id, &operation, &err), 0);
    snprintf(text, sizeof text,
             "GET /v1/operations/%s?wait_ms=5000&since_version=%llu HTTP/1.1\r\nHost: x\r\n\r\n",
             id_format(&id, hex), (unsigned long long)json_u64(operation, "version", 0));
    for (int i = 0; i < 20; i++)
        free(speak(r, text, i % 3)); /* gone while it waits, or before */
    for (int i = 0; i < 20; i++)
        free(speak(r, "GET /v1/vms HTTP/1.1\r\nHost: x\r\n\r\n", 0));
    operation_end(r->test.host.operations, &id, NULL, NULL);
    expect_answer(r, "GET /v1/vms HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.1 200");
}

static int connect_local(struct running *r)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(address.sun_path, sizeof address.sun_path, "%s/api.sock", r->test.run);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&address, sizeof address), 0);
    return fd;
}

static void who_asks_gets_the_place_of_one_that_does_not(void **state)
{
    struct running *r = *state;
    int fds[2 * HTTP_MAX_LOCAL];
    for (size_t i = 0; i < ARRAY_SIZE(fds); i++) {
        fds[i] = connect_local(r);
        if (i % 32 == 31)
            expect_answer(r, "GET /v1/vms HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.1 200");
    }
    assert_true(closed_within(fds[0], 2000));
    for (size_t i = 0; i < ARRAY_SIZE(fds); i++)
        close(fds[i]);
    expect_answer(r, "GET /v1/vms HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.1 200");
}

static void who_waits_for_an_answer_keeps_its_place(void **state)
{
    struct running *r = *state;
    struct id id = id_random();
    struct err err;
    char text[256], hex[ID_TEXT_SIZE];
    int asking[HTTP_MAX_LOCAL];
    assert_int_equal(operation_begin(r->test.host.operations, &id, "move", "web1", &err), 0);
    _cleanup_json_ json_t *operation = NULL;
    assert_int_equal(operation_get(r->test.host.operations, &id, &operation, &err), 0);
    int length =
        snprintf(text, sizeof text,
                 "GET /v1/operations/%s?wait_ms=20000&since_version=%llu HTTP/1.1\r\nHost: x\r\n\r\n",
                 id_format(&id, hex), (unsigned long long)json_u64(operation, "version", 0));
    for (size_t i = 0; i < ARRAY_SIZE(asking); i++) {
        asking[i] = connect_local(r);
        assert_int_equal(send(asking[i], text, (size_t)length, 0), length);
        clock_sleep(5 * NSEC_PER_MSEC);
    }
    clock_sleep(300 * NSEC_PER_MSEC);
    int late = connect_local(r);
    assert_true(closed_within(late, 2000));
    for (size_t i = 0; i < ARRAY_SIZE(asking); i++)
        assert_false(closed_within(asking[i], 0));
    operation_end(r->test.host.operations, &id, NULL, NULL);
    for (size_t i = 0; i < ARRAY_SIZE(asking); i++)
        close(asking[i]);
    close(late);
    int64_t begun = clock_now();
    bool answered = false; /* once all those that have gone have been dealt with */
    while (!answered && clock_now() < begun + 5 * NSEC_PER_SEC) {
        _cleanup_free_ char *answer = speak(r, "GET /v1/vms HTTP/1.1\r\nHost: x\r\n\r\n", 100);
        answered = strstr(answer, "HTTP/1.1 200");
    }
    assert_true(answered);
}

/* However busy the machine is: within 3 s. */
static void expect_an_answer_in_time(struct running *r)
{
    int64_t begun = clock_now();
    _cleanup_free_ char *answer =
        speak(r, "GET /v1/vms HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 3000);
    bool answered = strstr(answer, "HTTP/1.1 200") && clock_now() < begun + 3 * NSEC_PER_SEC;
    free(TAKE_PTR(answer));
    assert_true(answered);
}

/* Slow ones: each holds what a request's headers are gathered in. */
static void requests_that_do_not_end_keep_nobody_waiting(void **state)
{
    struct running *r = *state;
    static const char beginning[] = "GET /v1/vms HTTP/1.1\r\nHos";
    int fds[100];
    for (size_t i = 0; i < ARRAY_SIZE(fds); i++) {
        fds[i] = connect_local(r);
        assert_int_equal(send(fds[i], beginning, sizeof beginning - 1, 0), sizeof beginning - 1);
        clock_sleep(NSEC_PER_MSEC);
    }
    expect_an_answer_in_time(r);
    for (size_t i = 0; i < ARRAY_SIZE(fds); i++)
        close(fds[i]);
}

/* A TLS handshake that goes no further than the hello holds it too, on the host port. */
static void strangers_on_the_port_do_not_hold_up_the_unix_socket(void **state)
{
    struct running *r = *state;
    uint8_t hello[4096];
    size_t size = client_hello("orai", hello, sizeof hello);
    int fds[3 * HTTP_MAX_REMOTE];
    struct peer self = {.name = "a", .address = "127.0.0.1", .port = door_port(r->door)};
    self.fingerprint = *tls_identity_fingerprint(r->test.host.identity);
    for (size_t i = 0; i < ARRAY_SIZE(fds); i++) {
        fds[i] = knock_from(r, "127.0.0.2");
        assert_int_equal(send(fds[i], hello, size, 0), size);
        if (i < HTTP_MAX_REMOTE || i % 16)
            continue;
        struct client_call ask = {.peer = &self, .method = "GET", .path = "/v1/vms", .msec = 5000};
        assert_int_equal(client_call(&r->test.host, &ask), -EACCES); /* nobody's peer, but answered */
        assert_non_null(strstr(ask.err.text, "no peer"));
    }
    expect_an_answer_in_time(r);
    for (size_t i = 0; i < ARRAY_SIZE(fds); i++)
        close(fds[i]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(names_of_vms_are_told_from_others),
        DOOR_TEST(a_vms_connection_arrives_untouched_at_its_orai_vm),
        DOOR_TEST(a_hello_in_pieces_is_waited_for_without_spinning),
        DOOR_TEST(a_connection_for_a_vm_that_is_not_here_is_closed),
        DOOR_TEST(what_is_no_tls_is_closed),
        DOOR_TEST(a_silent_connection_is_closed_after_its_time),
        DOOR_TEST(a_crowd_of_silent_connections_keeps_nobody_waiting),
        DOOR_TEST(the_api_answers_a_client_with_a_key_and_knows_it_by_that),
        DOOR_TEST(what_a_stranger_sends_may_not_be_long),
        DOOR_TEST(a_server_with_another_key_gets_nothing),
        DOOR_TEST(odd_requests_get_an_answer_or_the_end),
        DOOR_TEST(requests_on_one_connection_are_answered_one_after_the_other),
        DOOR_TEST(a_client_that_goes_away_during_its_request_harms_nobody),
        DOOR_TEST(who_asks_gets_the_place_of_one_that_does_not),
        DOOR_TEST(who_waits_for_an_answer_keeps_its_place),
        DOOR_TEST(requests_that_do_not_end_keep_nobody_waiting),
        DOOR_TEST(strangers_on_the_port_do_not_hold_up_the_unix_socket),
    };
    signal(SIGPIPE, SIG_IGN);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
