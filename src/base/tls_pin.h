/* SPDX-License-Identifier: Apache-2.0
 *
 * tls_pin: the rule "a peer is its key" for code that holds OpenSSL objects itself: tls.c, and the HTTP
 * libraries' contexts (libcurl's CURLOPT_SSL_CTX_FUNCTION, libwebsockets' LOAD_EXTRA_*_VERIFY_CERTS).
 * Apart from tls.h so that the others need not see OpenSSL's types.
 */
#pragma once

#include "base/tls.h"

#include <openssl/ssl.h>

/* Makes a foreign context speak as Orai's hosts do: TLS 1.3 only, both sides with a certificate, any
 * self-signed Ed25519 certificate whose key the handshake proves (names, dates and authorities do not count),
 * no resumption. Call it after the library's own settings. Whoever uses the context still compares the
 * fingerprint before any payload: tls_peer_fingerprint on a server; in libcurl CURLOPT_PINNEDPUBLICKEY
 * "sha256//" + its Base64. */
void tls_pin_context(SSL_CTX *context);
/* Fingerprint of the certificate that the peer proved; -EACCES when it presented none. */
int tls_peer_fingerprint(SSL *ssl, struct fingerprint *ret);
int fingerprint_of_x509(const X509 *certificate, struct fingerprint *ret);

/* What one handshake demands and what it met. Lives as long as the handshake. */
struct tls_pin {
    const struct fingerprint *expected, *other; /* `other` may be NULL */
    struct fingerprint met;
    bool refused; /* met another fingerprint; the peer got the alert bad_certificate */
};
/* The handshake of `ssl`, on a context of tls_pin_context, fails unless the peer is one of the expected. 0 or
 * -ENOMEM. */
int tls_pin_session(SSL *ssl, struct tls_pin *pin);

/* The identity's own context, for both sides of a session. */
SSL_CTX *tls_identity_context(const struct tls_identity *identity);
/* The newest error of OpenSSL in this thread, in its words. */
const char *tls_reason(void);
