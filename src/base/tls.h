/* SPDX-License-Identifier: Apache-2.0
 *
 * tls: TLS 1.3 between hosts that pinned each other's keys; and the host's own identity.
 *
 * Every host has an Ed25519 key and a self-signed certificate. There is no authority: a peer *is* the SHA-256
 * of its certificate's public key (SubjectPublicKeyInfo, DER), its fingerprint. Both sides always present a
 * certificate. The handshake accepts any certificate that proves its key; whoever opened the session compares
 * the fingerprint before the first byte of payload is sent or believed (tls_connect and tls_accept do so).
 *
 * Sessions are non-blocking; one thread uses a session at a time.
 */
#pragma once

#include "base/err.h"
#include "base/id.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

struct fingerprint {
    uint8_t bytes[HASH_SIZE];
};

bool fingerprint_equal(const struct fingerprint *a, const struct fingerprint *b);
/* 64 lower-case hex digits. Returns `text`. */
const char *fingerprint_format(const struct fingerprint *fingerprint, char text[HASH_TEXT_SIZE]);
/* Exactly 64 hex digits. 0 or -EINVAL. */
int fingerprint_parse(const char *text, struct fingerprint *ret);
/* Of a certificate as DER. -EBADMSG when the bytes are none, or have something behind them. */
int fingerprint_of_cert_der(const void *der, size_t size, struct fingerprint *ret);

/* One host's key, certificate and TLS contexts. Read-only after tls_identity_open: threads may share it. */
struct tls_identity;

/* Loads DIR/host.key and DIR/host.crt; makes them (key mode 0600) when neither is there. A key without a
 * certificate, as a crash between the two leaves it, gets a new certificate: the fingerprint is the key's and
 * stays. A certificate without its key, or of another key, is an error that says what to do. */
int tls_identity_open(const char *dir, const char *host_name, struct tls_identity **ret, struct err *err);
void tls_identity_free(struct tls_identity *identity);
const struct fingerprint *tls_identity_fingerprint(const struct tls_identity *identity);
/* Paths, for libraries that load files themselves (libcurl, libwebsockets). */
const char *tls_identity_key_path(const struct tls_identity *identity);
const char *tls_identity_cert_path(const struct tls_identity *identity);

struct tls; /* one session over one TCP socket */

/* Connects to address:port (name or number), does the handshake with `server_name` as SNI, checks that the
 * peer is `expected`, all before `deadline` (clock_now() units). -EACCES on another fingerprint, -ETIMEDOUT.
 * `server_name` may be NULL. TLS 1.3 lets a client finish before the server has judged the client's own
 * certificate: a server that refuses it is seen at the first tls_read, as -EACCES. */
int tls_connect(const struct tls_identity *identity, const char *address, uint16_t port,
                const char *server_name, const struct fingerprint *expected, int64_t deadline,
                struct tls **ret, struct err *err);
/* Server side on an accepted socket (owned by the session from here on, closed on failure too). */
int tls_accept(const struct tls_identity *identity, int socket, const struct fingerprint *expected,
               int64_t deadline, struct tls **ret, struct err *err);
/* The same for one of two peers. */
int tls_accept_either(const struct tls_identity *identity, int socket, const struct fingerprint *expected,
                      const struct fingerprint *other, int64_t deadline, struct tls **ret, struct err *err);
/* Sends close_notify if that does not block, closes the socket. NULL is fine. */
void tls_close(struct tls *tls);
/* What OpenSSL keeps for the calling thread goes now. For a thread that nobody joins, before it says that it
 * is done: who waits for that may end the program, or unload what this belongs to. */
void tls_leave_thread(void);

int tls_socket(const struct tls *tls);
/* Up to `size` bytes (not 0), at most one TLS record of 16 KiB; returns the count, tls_read 0 at the peer's
 * close_notify, -EAGAIN when it would block (then tls_read_events or tls_write_events says for what),
 * -ECONNRESET on a torn connection, -ETIMEDOUT when the peer vanished, -EACCES when it refused our
 * certificate, -EPROTO on bad TLS. Every error but -EAGAIN is final. After -EAGAIN tls_write must be called
 * again with the same bytes (the buffer may have moved) and at least as many. */
ssize_t tls_read(struct tls *tls, void *data, size_t size);
ssize_t tls_write(struct tls *tls, const void *data, size_t size);
/* POLLIN / POLLOUT that the last -EAGAIN of read and of write wait for. */
short tls_read_events(const struct tls *tls);
short tls_write_events(const struct tls *tls);
/* Bytes that wait inside the session, where poll(2) does not see them: read before polling. */
bool tls_pending(const struct tls *tls);
