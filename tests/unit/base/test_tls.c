/* SPDX-License-Identifier: Apache-2.0
 *
 * Two hosts, a (client) and b (server), over loopback TCP; each side on a thread of its own.
 */
#include "unit.h"

#include "base/clienthello.h"
#include "base/clock.h"
#include "base/macro.h"
#include "base/tcp.h"
#include "base/tls_pin.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <openssl/err.h>
#include <openssl/x509.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>

static struct tls_identity *a, *b;

static int make_hosts(void **state)
{
    if (make_scratch(state) < 0 || file_mkdirs(in_scratch("a"), 0755, NULL) < 0 ||
        file_mkdirs(in_scratch("b"), 0755, NULL) < 0)
        return -1;
    return tls_identity_open(in_scratch("a"), "a", &a, NULL) +
           tls_identity_open(in_scratch("b"), "b", &b, NULL);
}

static int remove_hosts(void **state)
{
    tls_identity_free(a);
    tls_identity_free(b);
    return remove_scratch(state);
}

static int64_t in_seconds(int seconds)
{
    return clock_now() + seconds * NSEC_PER_SEC;
}

static const struct fingerprint *print_of(const struct tls_identity *identity)
{
    return tls_identity_fingerprint(identity);
}

static int listen_at(uint16_t *ret_port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof address), 0);
    assert_int_equal(listen(fd, 16), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&address, &size), 0);
    *ret_port = ntohs(address.sin_port);
    return fd;
}

/* --- a server on a thread ------------------------------------------------------------------------------- */

struct server {
    pthread_t thread;
    int listener;
    uint16_t port;
    const struct fingerprint *expected;
    struct tls *tls; /* after join */
    int result;
    struct err err;
};

static void *accept_one(void *argument)
{
    struct server *s = argument;
    int fd = accept4(s->listener, NULL, NULL, SOCK_CLOEXEC);
    s->result = tls_accept(b, fd, s->expected, in_seconds(5), &s->tls, &s->err);
    return NULL;
}

static void server_start(struct server *s, const struct fingerprint *expected)
{
    *s = (struct server){.expected = expected};
    s->listener = listen_at(&s->port);
    assert_int_equal(pthread_create(&s->thread, NULL, accept_one, s), 0);
}

static void server_join(struct server *s)
{
    pthread_join(s->thread, NULL);
    close(s->listener);
}

static int connect_to(uint16_t port, const struct fingerprint *expected, struct tls **ret, struct err *err)
{
    return tls_connect(a, "127.0.0.1", port, "b.orai", expected, in_seconds(5), ret, err);
}

static void make_pair(struct tls **ret_client, struct tls **ret_server)
{
    struct server s;
    struct err err = ERR_NONE;
    server_start(&s, print_of(a));
    if (connect_to(s.port, print_of(b), ret_client, &err) < 0)
        fail_msg("%s", err.text);
    server_join(&s);
    assert_int_equal(s.result, 0);
    *ret_server = s.tls;
}

static ssize_t read_waiting(struct tls *tls, void *data, size_t size)
{
    for (;;) {
        ssize_t n = tls_read(tls, data, size);
        if (n != -EAGAIN)
            return n;
        struct pollfd p = {.fd = tls_socket(tls), .events = tls_read_events(tls)};
        if (poll(&p, 1, 5000) != 1)
            return -ETIMEDOUT;
    }
}

static void write_all(struct tls *tls, const void *data, size_t size)
{
    for (size_t done = 0; done < size;) {
        ssize_t n = tls_write(tls, (const char *)data + done, size - done);
        if (n == -EAGAIN) {
            struct pollfd p = {.fd = tls_socket(tls), .events = tls_write_events(tls)};
            assert_int_equal(poll(&p, 1, 5000), 1);
            continue;
        }
        assert_true(n > 0);
        done += (size_t)n;
    }
}

static void assert_says(struct tls *from, struct tls *to, const char *text)
{
    char got[64] = "";
    write_all(from, text, strlen(text));
    assert_int_equal(read_waiting(to, got, sizeof got), strlen(text));
    assert_string_equal(got, text);
}

/* --- pinning -------------------------------------------------------------------------------------------- */

static void two_pinned_hosts_talk_both_ways(void **state)
{
    struct tls *client, *server;
    make_pair(&client, &server);
    assert_says(client, server, "hello");
    assert_says(server, client, "hello yourself");
    tls_close(client);
    tls_close(server);
}

static void a_client_refuses_another_host_before_any_payload(void **state)
{
    struct server s;
    struct err err;
    struct tls *tls = NULL;
    char other[HASH_TEXT_SIZE];
    server_start(&s, print_of(a));
    assert_int_equal(connect_to(s.port, print_of(a), &tls, &err), -EACCES); /* expects a, meets b */
    assert_null(tls);
    assert_non_null(strstr(err.text, fingerprint_format(print_of(b), other)));
    assert_true(err.hint[0]);
    server_join(&s);
    assert_int_equal(s.result, -EACCES);
    assert_non_null(strstr(s.err.text, "does not trust this host's key"));
}

static void a_server_refuses_another_host_and_the_client_learns_why(void **state)
{
    struct server s;
    struct tls *tls = NULL;
    char byte;
    server_start(&s, print_of(b)); /* expects b, meets a */
    if (connect_to(s.port, print_of(b), &tls, NULL) == 0) {
        assert_int_equal(read_waiting(tls, &byte, 1), -EACCES);
        assert_int_equal(tls_read(tls, &byte, 1), -EACCES); /* final */
        assert_int_equal(tls_write(tls, "x", 1), -EACCES);
    }
    tls_close(tls);
    server_join(&s);
    assert_int_equal(s.result, -EACCES);
    assert_null(s.tls);
}

/* A client that is not ours: plain OpenSSL. Returns what the server made of it. */
static int meet(SSL_CTX *context, struct err *ret_err)
{
    struct server s;
    int fd = -1;
    char byte;
    server_start(&s, print_of(a));
    assert_int_equal(tcp_connect("127.0.0.1", s.port, in_seconds(5), &fd, NULL), 0);
    fcntl(fd, F_SETFL, 0);
    SSL *ssl = SSL_new(context);
    SSL_set_fd(ssl, fd);
    if (SSL_connect(ssl) == 1)
        SSL_read(ssl, &byte, 1);
    SSL_free(ssl);
    close(fd);
    server_join(&s);
    if (s.result == 0)
        tls_close(s.tls);
    *ret_err = s.err;
    ERR_clear_error();
    return s.result;
}

static void use_own_certificate(SSL_CTX *context, EVP_PKEY *key, const EVP_MD *digest)
{
    X509 *certificate = X509_new();
    X509_gmtime_adj(X509_getm_notBefore(certificate), 0);
    X509_gmtime_adj(X509_getm_notAfter(certificate), 3600);
    X509_set_pubkey(certificate, key);
    assert_true(X509_sign(certificate, key, digest) > 0);
    assert_int_equal(SSL_CTX_use_certificate(context, certificate), 1);
    assert_int_equal(SSL_CTX_use_PrivateKey(context, key), 1);
    X509_free(certificate);
    EVP_PKEY_free(key);
}

static void a_peer_without_a_certificate_is_refused(void **state)
{
    struct err err;
    SSL_CTX *context = SSL_CTX_new(TLS_client_method());
    assert_int_equal(meet(context, &err), -EACCES);
    SSL_CTX_free(context);
}

static void a_certificate_of_another_kind_of_key_is_refused(void **state)
{
    struct err err;
    SSL_CTX *context = SSL_CTX_new(TLS_client_method());
    use_own_certificate(context, EVP_EC_gen("P-256"), EVP_sha256());
    assert_true(meet(context, &err) < 0);
    SSL_CTX_free(context);
}

static void an_unknown_ed25519_key_is_refused(void **state)
{
    struct err err;
    SSL_CTX *context = SSL_CTX_new(TLS_client_method());
    use_own_certificate(context, EVP_PKEY_Q_keygen(NULL, NULL, "ED25519"), NULL);
    assert_int_equal(meet(context, &err), -EACCES);
    assert_non_null(strstr(err.text, "has the key"));
    SSL_CTX_free(context);
}

static void tls_1_2_is_refused(void **state)
{
    struct err err;
    SSL_CTX *context = SSL_CTX_new(TLS_client_method());
    SSL_CTX_set_max_proto_version(context, TLS1_2_VERSION);
    SSL_CTX_use_certificate_file(context, tls_identity_cert_path(a), SSL_FILETYPE_PEM);
    SSL_CTX_use_PrivateKey_file(context, tls_identity_key_path(a), SSL_FILETYPE_PEM);
    assert_int_equal(meet(context, &err), -EPROTO);
    SSL_CTX_free(context);
}

static void a_peer_that_speaks_something_else_is_refused(void **state)
{
    struct server s;
    int fd = -1;
    server_start(&s, print_of(a));
    assert_int_equal(tcp_connect("127.0.0.1", s.port, in_seconds(5), &fd, NULL), 0);
    assert_int_equal(file_write_full(fd, "GET / HTTP/1.1\r\n\r\n", 18), 0);
    server_join(&s);
    assert_int_equal(s.result, -EPROTO);
    close(fd);
}

/* The victim's certificate is public. Whoever shows it must also prove its key. */
static void the_pinned_certificate_without_its_key_is_refused(void **state)
{
    struct err err;
    X509 *stolen = SSL_CTX_get0_certificate(tls_identity_context(a));
    EVP_PKEY *own = EVP_PKEY_Q_keygen(NULL, NULL, "ED25519");
    SSL_CTX *context = SSL_CTX_new(TLS_client_method());
    /* OpenSSL compares key and certificate when they are set, not again when the certificate changes in
     * place. */
    X509 *shown = X509_dup(stolen);
    EVP_PKEY *theirs = X509_get_pubkey(stolen);
    X509_set_pubkey(shown, own);
    assert_int_equal(SSL_CTX_use_certificate(context, shown), 1);
    assert_int_equal(SSL_CTX_use_PrivateKey(context, own), 1);
    X509_set_pubkey(shown, theirs);
    assert_int_equal(meet(context, &err), -EPROTO);
    assert_non_null(strstr(err.text, "bad signature"));
    EVP_PKEY_free(own);
    EVP_PKEY_free(theirs);
    X509_free(shown);
    SSL_CTX_free(context);
}

/* --- foreign contexts ----------------------------------------------------------------------------------- */

static SSL_CTX *foreign_context(void)
{
    SSL_CTX *context = SSL_CTX_new(TLS_method());
    SSL_CTX_use_certificate_file(context, tls_identity_cert_path(a), SSL_FILETYPE_PEM);
    SSL_CTX_use_PrivateKey_file(context, tls_identity_key_path(a), SSL_FILETYPE_PEM);
    tls_pin_context(context);
    return context;
}

static void a_foreign_context_meets_a_host_and_sees_its_fingerprint(void **state)
{
    struct server s;
    struct fingerprint met;
    int fd = -1;
    SSL_CTX *context = foreign_context();
    server_start(&s, print_of(a));
    assert_int_equal(tcp_connect("127.0.0.1", s.port, in_seconds(5), &fd, NULL), 0);
    fcntl(fd, F_SETFL, 0);
    SSL *ssl = SSL_new(context);
    SSL_set_fd(ssl, fd);
    assert_int_equal(tls_peer_fingerprint(ssl, &met), -EACCES); /* not before the handshake */
    assert_int_equal(SSL_connect(ssl), 1);
    assert_int_equal(tls_peer_fingerprint(ssl, &met), 0);
    assert_true(fingerprint_equal(&met, print_of(b)));
    server_join(&s);
    assert_int_equal(s.result, 0);
    SSL_free(ssl);
    close(fd);
    tls_close(s.tls);
    SSL_CTX_free(context);
}

static void a_server_gives_no_ticket_to_resume_with(void **state)
{
    struct server s;
    int fd = -1;
    char byte;
    SSL_CTX *context = SSL_CTX_new(TLS_client_method()); /* would take one */
    SSL_CTX_use_certificate_file(context, tls_identity_cert_path(a), SSL_FILETYPE_PEM);
    SSL_CTX_use_PrivateKey_file(context, tls_identity_key_path(a), SSL_FILETYPE_PEM);
    server_start(&s, print_of(a));
    assert_int_equal(tcp_connect("127.0.0.1", s.port, in_seconds(5), &fd, NULL), 0);
    fcntl(fd, F_SETFL, 0);
    SSL *ssl = SSL_new(context);
    SSL_set_fd(ssl, fd);
    assert_int_equal(SSL_connect(ssl), 1);
    server_join(&s);
    write_all(s.tls, "x", 1);
    assert_int_equal(SSL_read(ssl, &byte, 1), 1); /* a ticket would have come before it */
    assert_false(SSL_SESSION_is_resumable(SSL_get0_session(ssl)));
    SSL_free(ssl);
    close(fd);
    tls_close(s.tls);
    SSL_CTX_free(context);
}

/* --- time, ends, pressure ------------------------------------------------------------------------------- */

static void a_server_that_says_nothing_ends_at_the_deadline(void **state)
{
    uint16_t port;
    struct err err;
    struct tls *tls = NULL;
    int listener = listen_at(&port);
    int64_t start = clock_now();
    int r = tls_connect(a, "127.0.0.1", port, NULL, print_of(b), start + 100 * NSEC_PER_MSEC, &tls, &err);
    int64_t took = clock_now() - start;
    assert_int_equal(r, -ETIMEDOUT);
    assert_true(took >= 100 * NSEC_PER_MSEC && took < NSEC_PER_SEC);
    close(listener);
}

static void a_client_that_dribbles_ends_at_the_deadline(void **state)
{
    uint16_t port;
    struct tls *tls = NULL;
    int fd = -1;
    _cleanup_close_ int listener = listen_at(&port);
    assert_int_equal(tcp_connect("127.0.0.1", port, in_seconds(5), &fd, NULL), 0);
    if (fork() == 0) {
        static const uint8_t record[] = {22, 3, 1, 1, 0, 1, 0, 0, 252, 3, 3};
        for (size_t i = 0; i < 1000; i++, usleep(10000))
            if (send(fd, &record[MIN(i, sizeof record - 1)], 1, MSG_NOSIGNAL) != 1)
                _exit(0);
        _exit(0);
    }
    close(fd);
    int64_t start = clock_now();
    int accepted = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    assert_int_equal(tls_accept(b, accepted, print_of(a), start + 150 * NSEC_PER_MSEC, &tls, NULL),
                     -ETIMEDOUT);
    assert_true(clock_now() - start < NSEC_PER_SEC);
    assert_int_equal(fcntl(accepted, F_GETFD), -1); /* closed on failure too */
    wait(NULL);
}

static void nobody_listening_is_said_with_a_hint(void **state)
{
    uint16_t port;
    struct err err;
    struct tls *tls = NULL;
    close(listen_at(&port));
    assert_int_equal(connect_to(port, print_of(b), &tls, &err), -ECONNREFUSED);
    assert_non_null(strstr(err.text, "127.0.0.1"));
    assert_true(err.hint[0]);
}

static void a_name_that_does_not_exist_is_said(void **state)
{
    int fd = -1;
    struct err err;
    int64_t start = clock_now();
    int r = tcp_connect("no-such-host.invalid", 1, in_seconds(3), &fd, &err);
    assert_true(r == -EHOSTUNREACH || r == -ETIMEDOUT);
    assert_non_null(strstr(err.text, "no-such-host.invalid"));
    assert_true(clock_now() - start < 5 * NSEC_PER_SEC);
    assert_int_equal(tcp_connect("", 1, in_seconds(3), &fd, &err), -EINVAL);
}

static void the_server_name_can_be_peeked_before_the_handshake(void **state)
{
    struct tls *server = NULL;
    char name[SERVER_NAME_SIZE];
    uint8_t hello[CLIENTHELLO_MAX];
    uint16_t port;
    int r, status;
    _cleanup_close_ int listener = listen_at(&port);
    if (fork() == 0) {
        struct tls *tls = NULL;
        r = tls_connect(a, "127.0.0.1", port, "vm1.orai", print_of(b), in_seconds(5), &tls, NULL);
        tls_close(tls);
        _exit(r < 0);
    }
    int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    do
        r = clienthello_server_name(hello, (size_t)recv(fd, hello, sizeof hello, MSG_PEEK), name);
    while (r == -EAGAIN);
    assert_int_equal(r, 0);
    assert_string_equal(name, "vm1.orai");
    assert_int_equal(tls_accept(b, fd, print_of(a), in_seconds(5), &server, NULL), 0);
    wait(&status);
    assert_int_equal(status, 0);
    tls_close(server);
}

static void a_clean_close_reads_as_zero_and_a_torn_connection_as_an_error(void **state)
{
    char byte;
    struct tls *client, *server;
    make_pair(&client, &server);
    tls_close(client);
    assert_int_equal(read_waiting(server, &byte, 1), 0);
    assert_int_equal(tls_read(server, &byte, 1), 0);
    tls_close(server);

    make_pair(&client, &server);
    shutdown(tls_socket(client), SHUT_RDWR); /* no close_notify */
    assert_int_equal(read_waiting(server, &byte, 1), -ECONNRESET);
    assert_int_equal(tls_read(server, &byte, 1), -ECONNRESET);
    tls_close(client);
    tls_close(server);
}

static void writing_to_a_dead_peer_is_an_error_not_a_signal(void **state)
{
    static char data[4096];
    struct tls *client, *server;
    signal(SIGPIPE, SIG_DFL);
    make_pair(&client, &server);
    struct linger reset = {.l_onoff = 1};
    setsockopt(tls_socket(server), SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
    tls_close(server);
    ssize_t n = 0;
    for (int i = 0; i < 100 && (n > 0 || n == -EAGAIN || i == 0); i++, usleep(1000))
        n = tls_write(client, data, sizeof data);
    assert_int_equal(n, -ECONNRESET);
    assert_int_equal(tls_write(client, data, 1), -ECONNRESET);
    tls_close(client);
}

static void reading_what_is_not_there_waits_for_input(void **state)
{
    char byte;
    struct tls *client, *server;
    make_pair(&client, &server);
    assert_int_equal(tls_read(client, &byte, 1), -EAGAIN);
    assert_int_equal(tls_read_events(client), POLLIN);
    assert_false(tls_pending(client));
    tls_close(client);
    tls_close(server);
}

static void bytes_inside_the_session_are_pending_until_they_are_read(void **state)
{
    char data[64];
    struct tls *client, *server;
    make_pair(&client, &server);
    write_all(server, "0123456789", 10);
    write_all(server, "next record", 11);
    assert_int_equal(read_waiting(client, data, 4), 4);
    assert_true(tls_pending(client));
    assert_int_equal(tls_read(client, data, sizeof data), 6);
    assert_int_equal(read_waiting(client, data, sizeof data), 11);
    assert_int_equal(tls_read(client, data, sizeof data), -EAGAIN);
    assert_false(tls_pending(client));
    tls_close(client);
    tls_close(server);
}

/* Takes what the client's kernel holds for it, gives all but the last byte back through a socket of the
 * test's own: half a record must not look like something to read, or its reader would spin. */
static void half_a_record_is_not_pending(void **state)
{
    char data[64];
    uint8_t wire[256];
    int half[2];
    struct tls *client, *server;
    make_pair(&client, &server);
    write_all(server, "whole record", 12);
    struct pollfd p = {.fd = tls_socket(client), .events = POLLIN};
    assert_int_equal(poll(&p, 1, 5000), 1);
    ssize_t size = recv(tls_socket(client), wire, sizeof wire, 0);
    assert_true(size > 12);
    int saved = dup(tls_socket(client));
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, half), 0);
    dup2(half[0], tls_socket(client));
    assert_int_equal(write(half[1], wire, (size_t)size - 1), size - 1);
    assert_int_equal(tls_read(client, data, sizeof data), -EAGAIN);
    assert_false(tls_pending(client));
    assert_int_equal(write(half[1], wire + size - 1, 1), 1);
    assert_int_equal(tls_read(client, data, sizeof data), 12);
    dup2(saved, tls_socket(client));
    close(saved);
    close(half[0]);
    close(half[1]);
    tls_close(client);
    tls_close(server);
}

#define STREAM (4u << 20)

static uint8_t pattern(size_t i)
{
    return (uint8_t)(i * 2654435761u >> 13);
}

static void *drain(void *argument)
{
    static char data[10000];
    struct tls *tls = argument;
    size_t total = 0;
    for (;;) {
        ssize_t n = read_waiting(tls, data, sizeof data);
        if (n <= 0)
            return n == 0 && total == STREAM ? NULL : (void *)"wrong length";
        for (ssize_t i = 0; i < n; i++, total++)
            if ((uint8_t)data[i] != pattern(total))
                return (void *)"wrong byte";
    }
}

/* Each try writes from another buffer, as a ring of slices does. */
static void a_stream_survives_a_full_socket_and_moving_buffers(void **state)
{
    struct tls *client, *server;
    pthread_t thread;
    void *complaint;
    bool was_full = false;
    int small = 64 * 1024;
    make_pair(&client, &server);
    setsockopt(tls_socket(client), SOL_SOCKET, SO_SNDBUF, &small, sizeof small);
    setsockopt(tls_socket(server), SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
    for (size_t done = 0; done < STREAM;) {
        size_t size = MIN(STREAM - done, (size_t)40000);
        uint8_t *data = malloc(size);
        for (size_t i = 0; i < size; i++)
            data[i] = pattern(done + i);
        ssize_t n = tls_write(client, data, size);
        free(data);
        if (n == -EAGAIN) {
            if (!was_full) /* only now does anybody read */
                assert_int_equal(pthread_create(&thread, NULL, drain, server), 0);
            was_full = true;
            struct pollfd p = {.fd = tls_socket(client), .events = tls_write_events(client)};
            assert_int_equal(poll(&p, 1, 5000), 1);
            continue;
        }
        assert_true(n > 0);
        done += (size_t)n;
    }
    tls_close(client);
    assert_true(was_full);
    pthread_join(thread, &complaint);
    assert_null(complaint);
    tls_close(server);
}

static void *talk(void *unused)
{
    struct tls *client, *server;
    for (int i = 0; i < 5; i++) {
        make_pair(&client, &server);
        assert_says(client, server, "x");
        tls_close(client);
        tls_close(server);
    }
    return NULL;
}

static void threads_share_an_identity(void **state)
{
    pthread_t threads[4];
    for (size_t i = 0; i < ARRAY_SIZE(threads); i++)
        assert_int_equal(pthread_create(&threads[i], NULL, talk, NULL), 0);
    for (size_t i = 0; i < ARRAY_SIZE(threads); i++)
        pthread_join(threads[i], NULL);
}

static void closing_nothing_is_fine(void **state)
{
    tls_close(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(two_pinned_hosts_talk_both_ways),
        cmocka_unit_test(a_client_refuses_another_host_before_any_payload),
        cmocka_unit_test(a_server_refuses_another_host_and_the_client_learns_why),
        cmocka_unit_test(a_peer_without_a_certificate_is_refused),
        cmocka_unit_test(a_certificate_of_another_kind_of_key_is_refused),
        cmocka_unit_test(an_unknown_ed25519_key_is_refused),
        cmocka_unit_test(tls_1_2_is_refused),
        cmocka_unit_test(a_peer_that_speaks_something_else_is_refused),
        cmocka_unit_test(the_pinned_certificate_without_its_key_is_refused),
        cmocka_unit_test(a_foreign_context_meets_a_host_and_sees_its_fingerprint),
        cmocka_unit_test(a_server_gives_no_ticket_to_resume_with),
        cmocka_unit_test(a_server_that_says_nothing_ends_at_the_deadline),
        cmocka_unit_test(a_client_that_dribbles_ends_at_the_deadline),
        cmocka_unit_test(nobody_listening_is_said_with_a_hint),
        cmocka_unit_test(a_name_that_does_not_exist_is_said),
        cmocka_unit_test(the_server_name_can_be_peeked_before_the_handshake),
        cmocka_unit_test(a_clean_close_reads_as_zero_and_a_torn_connection_as_an_error),
        cmocka_unit_test(writing_to_a_dead_peer_is_an_error_not_a_signal),
        cmocka_unit_test(reading_what_is_not_there_waits_for_input),
        cmocka_unit_test(bytes_inside_the_session_are_pending_until_they_are_read),
        cmocka_unit_test(half_a_record_is_not_pending),
        cmocka_unit_test(a_stream_survives_a_full_socket_and_moving_buffers),
        cmocka_unit_test(threads_share_an_identity),
        cmocka_unit_test(closing_nothing_is_fine),
    };
    return cmocka_run_group_tests(tests, make_hosts, remove_hosts);
}
