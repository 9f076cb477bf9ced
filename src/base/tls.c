/* SPDX-License-Identifier: Apache-2.0
 *
 * One session: an OpenSSL SSL over a non-blocking TCP socket that the session owns. OpenSSL reaches the
 * socket through a BIO of our own, because its socket BIO uses write(2), and that raises SIGPIPE when the
 * peer is gone.
 *
 * What always holds: a session that a caller gets has a finished TLS 1.3 handshake with the pinned key
 * (tls_pin.c). The first error is final: OpenSSL must not be called again after one, so `broken` answers from
 * then on. No call blocks but tls_connect and tls_accept, and those not beyond their deadline.
 * One thread at a time uses a session; sessions share only the identity, which never changes.
 */
#include "base/tls.h"

#include "base/clock.h"
#include "base/macro.h"
#include "base/tcp.h"
#include "base/tls_pin.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <openssl/bio.h>
#include <openssl/crypto.h>
#include <openssl/err.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#define PEER_TEXT_SIZE 96

struct tls {
    SSL *ssl;
    int socket;
    int socket_error; /* errno of the last failed send or recv */
    bool at_end;      /* the peer closed the TCP connection */
    int broken;       /* -errno of the first final error, else 0 */
    bool read_waits;  /* the last tls_read took all there was */
    short read_events, write_events;
};

/* --- the socket as a BIO -------------------------------------------------------------------------------- */

static pthread_once_t once = PTHREAD_ONCE_INIT;
static BIO_METHOD *socket_method;

static bool would_block(int error)
{
    return error == EAGAIN || error == EWOULDBLOCK || error == EINTR;
}

static int socket_write(BIO *bio, const char *data, int size)
{
    struct tls *tls = BIO_get_data(bio);
    BIO_clear_retry_flags(bio);
    ssize_t n = send(tls->socket, data, (size_t)size, MSG_NOSIGNAL);
    if (n >= 0)
        return (int)n;
    tls->socket_error = errno;
    if (would_block(errno))
        BIO_set_retry_write(bio);
    return -1;
}

static int socket_read(BIO *bio, char *data, int size)
{
    struct tls *tls = BIO_get_data(bio);
    BIO_clear_retry_flags(bio);
    ssize_t n = recv(tls->socket, data, (size_t)size, 0);
    tls->at_end = n == 0;
    if (n >= 0)
        return (int)n;
    tls->socket_error = errno;
    if (would_block(errno))
        BIO_set_retry_read(bio);
    return -1;
}

static long socket_control(BIO *bio, int command, long number, void *pointer)
{
    (void)number, (void)pointer;
    const struct tls *tls = BIO_get_data(bio);
    switch (command) {
    case BIO_CTRL_FLUSH:
        return 1;
    case BIO_CTRL_EOF:
        return tls->at_end;
    default:
        return 0;
    }
}

static void make_method(void)
{
    BIO_METHOD *method = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "orai socket");
    if (!method || !BIO_meth_set_write(method, socket_write) || !BIO_meth_set_read(method, socket_read) ||
        !BIO_meth_set_ctrl(method, socket_control))
        BIO_meth_free(method);
    else
        socket_method = method;
}

/* --- errors --------------------------------------------------------------------------------------------- */

static int tls_error_code(void)
{
    switch (ERR_GET_REASON(ERR_peek_error())) {
    case SSL_R_SSLV3_ALERT_BAD_CERTIFICATE: /* what verify() in tls_pin.c makes the peer send */
    case SSL_R_PEER_DID_NOT_RETURN_A_CERTIFICATE:
    case SSL_R_CERTIFICATE_VERIFY_FAILED:
        return -EACCES;
    case SSL_R_UNEXPECTED_EOF_WHILE_READING:
        return -ECONNRESET;
    default:
        return -EPROTO;
    }
}

static int socket_error_code(const struct tls *tls)
{
    if (tls->socket_error == 0 || tls->socket_error == EPIPE || would_block(tls->socket_error))
        return -ECONNRESET;
    return -tls->socket_error;
}

/* What OpenSSL's `result` <= 0 means. *ret_events is set with -EAGAIN. */
static int failure(struct tls *tls, int result, short *ret_events)
{
    switch (SSL_get_error(tls->ssl, result)) {
    case SSL_ERROR_WANT_READ:
        *ret_events = POLLIN;
        return -EAGAIN;
    case SSL_ERROR_WANT_WRITE:
        *ret_events = POLLOUT;
        return -EAGAIN;
    case SSL_ERROR_ZERO_RETURN:
        return 0;
    case SSL_ERROR_SYSCALL:
        return tls->broken = socket_error_code(tls);
    default:
        return tls->broken = tls_error_code();
    }
}

static void explain(const struct tls_pin *pin, const char *peer, int r, struct err *err)
{
    char met[HASH_TEXT_SIZE], expected[HASH_TEXT_SIZE];
    if (r == -EACCES && pin->refused) {
        err_set(err, EACCES, "%s has the key %s, but %s is the one that this host trusts there", peer,
                fingerprint_format(&pin->met, met), fingerprint_format(pin->expected, expected));
        err_hint(err,
                 "if that host was installed anew, pair again: orai peer invite there, orai peer join here");
    } else if (r == -EACCES && ERR_GET_REASON(ERR_peek_error()) == SSL_R_SSLV3_ALERT_BAD_CERTIFICATE) {
        err_set(err, EACCES, "%s does not trust this host's key", peer);
        err_hint(err, "pair the two hosts: orai peer invite there, orai peer join here");
    } else if (r == -EACCES) {
        err_set(err, EACCES, "%s showed no certificate of an Orai host: %s", peer, tls_reason());
    } else if (r == -ETIMEDOUT) {
        err_set(err, ETIMEDOUT, "%s did not finish the TLS handshake in time", peer);
    } else if (r == -EPROTO) {
        err_set(err, EPROTO, "%s does not speak TLS as Orai does: %s", peer, tls_reason());
    } else {
        err_sys(err, r, "lost the connection to %s in the TLS handshake", peer);
    }
}

/* --- opening -------------------------------------------------------------------------------------------- */

static void tls_cleanup(struct tls **tls)
{
    tls_close(*tls);
}

/* Takes over `socket`, also when it fails. */
static int session_new(const struct tls_identity *identity, int socket, struct tls **ret)
{
    _cleanup_close_ int fd = socket;
    _cleanup_(tls_cleanup) struct tls *tls = calloc(1, sizeof *tls);
    if (!tls)
        return -ENOMEM;
    tls->socket = TAKE_FD(fd);
    tls->read_events = POLLIN;
    tls->write_events = POLLOUT;
    pthread_once(&once, make_method);
    tls->ssl = SSL_new(tls_identity_context(identity));
    BIO *bio = socket_method ? BIO_new(socket_method) : NULL;
    if (!tls->ssl || !bio) {
        BIO_free(bio);
        return -ENOMEM;
    }
    BIO_set_data(bio, tls);
    BIO_set_init(bio, 1);
    SSL_set_bio(tls->ssl, bio, bio);
    *ret = TAKE_PTR(tls);
    return 0;
}

static int wait_for(int socket, short events, int64_t deadline)
{
    struct pollfd p = {.fd = socket, .events = events};
    int n = poll(&p, 1, clock_poll_ms(deadline));
    if (n < 0 && errno != EINTR)
        return -errno;
    return n <= 0 && clock_now() >= deadline ? -ETIMEDOUT : 0;
}

static int handshake(struct tls *tls, int64_t deadline)
{
    for (;;) {
        short events = 0;
        ERR_clear_error();
        int done = SSL_do_handshake(tls->ssl);
        if (done == 1)
            return 0;
        int r = failure(tls, done, &events);
        if (r == 0) /* close_notify instead of a handshake */
            r = tls->broken = -ECONNRESET;
        if (r == -EAGAIN)
            r = wait_for(tls->socket, events, deadline);
        if (r < 0)
            return r;
    }
}

static int open_session(struct tls *tls, struct tls_pin pin, const char *peer, int64_t deadline,
                        struct err *err)
{
    if (tls_pin_session(tls->ssl, &pin) < 0)
        return err_set(err, ENOMEM, "out of memory opening a session with %s", peer);
    int r = handshake(tls, deadline);
    if (r < 0) {
        tls->broken = r;
        explain(&pin, peer, r, err);
    }
    tls_pin_session(tls->ssl, NULL); /* `pin` ends here */
    ERR_clear_error();
    return r;
}

int tls_connect(const struct tls_identity *identity, const char *address, uint16_t port,
                const char *server_name, const struct fingerprint *expected, int64_t deadline,
                struct tls **ret, struct err *err)
{
    char peer[PEER_TEXT_SIZE];
    snprintf(peer, sizeof peer, "%s port %u", address, port);
    int fd = -1;
    int r = tcp_connect(address, port, deadline, &fd, err);
    if (r < 0)
        return r;
    _cleanup_(tls_cleanup) struct tls *tls = NULL;
    r = session_new(identity, fd, &tls);
    if (r < 0 || (server_name && !SSL_set_tlsext_host_name(tls->ssl, server_name)))
        return err_set(err, r < 0 ? r : EINVAL, "cannot open a TLS session with %s", peer);
    SSL_set_connect_state(tls->ssl);
    r = open_session(tls, (struct tls_pin){.expected = expected}, peer, deadline, err);
    if (r < 0)
        return r;
    *ret = TAKE_PTR(tls);
    return 0;
}

static void name_peer(int socket, char text[PEER_TEXT_SIZE])
{
    struct sockaddr_storage address;
    socklen_t size = sizeof address;
    char host[64], port[6];
    if (getpeername(socket, (struct sockaddr *)&address, &size) < 0 ||
        getnameinfo((struct sockaddr *)&address, size, host, sizeof host, port, sizeof port,
                    NI_NUMERICHOST | NI_NUMERICSERV) != 0)
        snprintf(text, PEER_TEXT_SIZE, "the connecting host");
    else
        snprintf(text, PEER_TEXT_SIZE, "%s port %s", host, port);
}

int tls_accept(const struct tls_identity *identity, int socket, const struct fingerprint *expected,
               int64_t deadline, struct tls **ret, struct err *err)
{
    return tls_accept_either(identity, socket, expected, NULL, deadline, ret, err);
}

int tls_accept_either(const struct tls_identity *identity, int socket, const struct fingerprint *expected,
                      const struct fingerprint *other, int64_t deadline, struct tls **ret, struct err *err)
{
    char peer[PEER_TEXT_SIZE];
    name_peer(socket, peer);
    _cleanup_(tls_cleanup) struct tls *tls = NULL;
    int r = tcp_prepare(socket);
    if (r < 0) {
        close(socket);
        return err_sys(err, r, "cannot use the connection from %s", peer);
    }
    r = session_new(identity, socket, &tls);
    if (r < 0)
        return err_set(err, r, "cannot open a TLS session with %s", peer);
    SSL_set_accept_state(tls->ssl);
    r = open_session(tls, (struct tls_pin){.expected = expected, .other = other}, peer, deadline, err);
    if (r < 0)
        return r;
    *ret = TAKE_PTR(tls);
    return 0;
}

void tls_close(struct tls *tls)
{
    if (!tls)
        return;
    if (tls->ssl && !tls->broken && SSL_is_init_finished(tls->ssl)) {
        ERR_clear_error();
        SSL_shutdown(tls->ssl); /* one try: a peer that does not read will see the end of the connection */
    }
    SSL_free(tls->ssl);
    close_cleanup(&tls->socket);
    ERR_clear_error();
    free(tls);
}

void tls_leave_thread(void)
{
    OPENSSL_thread_stop();
}

/* --- use ------------------------------------------------------------------------------------------------ */

int tls_socket(const struct tls *tls)
{
    return tls->socket;
}

ssize_t tls_read(struct tls *tls, void *data, size_t size)
{
    if (tls->broken)
        return tls->broken;
    size_t got = 0;
    ERR_clear_error();
    int result = SSL_read_ex(tls->ssl, data, size, &got);
    tls->read_waits = result != 1;
    return result == 1 ? (ssize_t)got : failure(tls, result, &tls->read_events);
}

ssize_t tls_write(struct tls *tls, const void *data, size_t size)
{
    if (tls->broken)
        return tls->broken;
    size_t sent = 0;
    ERR_clear_error();
    int result = SSL_write_ex(tls->ssl, data, size, &sent);
    return result == 1 ? (ssize_t)sent : failure(tls, result, &tls->write_events);
}

short tls_read_events(const struct tls *tls)
{
    return tls->read_events;
}

short tls_write_events(const struct tls *tls)
{
    return tls->write_events;
}

/* OpenSSL reads ahead, perhaps the beginning of a record whose rest is still under way. When the last
 * tls_read ended in -EAGAIN, what is left is such a beginning, and poll(2) is right to wait. */
bool tls_pending(const struct tls *tls)
{
    return !tls->broken && !tls->read_waits && SSL_has_pending(tls->ssl);
}
