/* SPDX-License-Identifier: Apache-2.0
 *
 * What always holds: a handshake on a context of tls_pin_context ends well only if the peer sent a
 * self-signed Ed25519 certificate and signed the handshake with its key (CertificateVerify, RFC 8446, 4.4.3;
 * OpenSSL checks that), and, when the session has a tls_pin, only if the key is the pinned one. The
 * certificate's names and dates say nothing: a pinned key is trusted until a human removes it, and clocks of
 * hosts may be wrong. Any thread; the only state is OpenSSL's number for our slot in a session, made once.
 */
#include "base/tls_pin.h"

#include "base/macro.h"

#include <errno.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/x509.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

/* One self-signed Ed25519 certificate has about 300 bytes; a hostile list may not fill our memory. */
#define MAX_CERTIFICATE_LIST 8192L

static pthread_once_t once = PTHREAD_ONCE_INIT;
static int pin_slot = -1;

static void make_slot(void)
{
    pin_slot = SSL_get_ex_new_index(0, NULL, NULL, NULL, NULL);
}

bool fingerprint_equal(const struct fingerprint *a, const struct fingerprint *b)
{
    return memcmp(a->bytes, b->bytes, sizeof a->bytes) == 0;
}

const char *fingerprint_format(const struct fingerprint *fingerprint, char text[HASH_TEXT_SIZE])
{
    return hex_format(fingerprint->bytes, sizeof fingerprint->bytes, text);
}

int fingerprint_parse(const char *text, struct fingerprint *ret)
{
    return hex_parse(text, ret->bytes, sizeof ret->bytes);
}

int fingerprint_of_x509(const X509 *certificate, struct fingerprint *ret)
{
    unsigned char *spki = NULL;
    int size = i2d_X509_PUBKEY(X509_get_X509_PUBKEY(certificate), &spki);
    if (size <= 0)
        return -EBADMSG;
    struct fingerprint fingerprint;
    int ok = EVP_Digest(spki, (size_t)size, fingerprint.bytes, NULL, EVP_sha256(), NULL);
    OPENSSL_free(spki);
    if (!ok)
        return -ENOMEM;
    *ret = fingerprint;
    return 0;
}

int fingerprint_of_cert_der(const void *der, size_t size, struct fingerprint *ret)
{
    if (size > INT32_MAX)
        return -EBADMSG;
    const unsigned char *end = der;
    X509 *certificate = d2i_X509(NULL, &end, (long)size);
    int r = -EBADMSG;
    if (certificate && end == (const unsigned char *)der + size)
        r = fingerprint_of_x509(certificate, ret);
    X509_free(certificate);
    ERR_clear_error();
    return r;
}

int tls_peer_fingerprint(SSL *ssl, struct fingerprint *ret)
{
    X509 *certificate = SSL_get0_peer_certificate(ssl);
    return certificate ? fingerprint_of_x509(certificate, ret) : -EACCES;
}

static int judge(X509 *certificate, struct tls_pin *pin)
{
    if (!certificate || X509_self_signed(certificate, 1) != 1 ||
        EVP_PKEY_get_id(X509_get0_pubkey(certificate)) != EVP_PKEY_ED25519)
        return X509_V_ERR_CERT_REJECTED;
    if (!pin)
        return X509_V_OK;
    if (fingerprint_of_x509(certificate, &pin->met) < 0)
        return X509_V_ERR_OUT_OF_MEM;
    pin->refused = !fingerprint_equal(&pin->met, pin->expected) &&
                   !(pin->other && fingerprint_equal(&pin->met, pin->other));
    return pin->refused ? X509_V_ERR_CERT_REJECTED : X509_V_OK;
}

/* Takes the place of OpenSSL's chain building. Judging here, inside the handshake, makes the peer hear of a
 * refusal as an alert instead of a silent close. */
static int verify(X509_STORE_CTX *store, void *unused)
{
    (void)unused;
    SSL *ssl = X509_STORE_CTX_get_ex_data(store, SSL_get_ex_data_X509_STORE_CTX_idx());
    int verdict = judge(X509_STORE_CTX_get0_cert(store), SSL_get_ex_data(ssl, pin_slot));
    X509_STORE_CTX_set_error(store, verdict);
    return verdict == X509_V_OK;
}

void tls_pin_context(SSL_CTX *context)
{
    pthread_once(&once, make_slot);
    /* These fail only without memory; a context that is half pinned must not be used. */
    if (pin_slot < 0 || !SSL_CTX_set_min_proto_version(context, TLS1_3_VERSION) ||
        !SSL_CTX_set_max_proto_version(context, TLS1_3_VERSION) ||
        !SSL_CTX_set1_sigalgs_list(context, "ed25519") ||
        !SSL_CTX_set1_client_sigalgs_list(context, "ed25519") || !SSL_CTX_set_num_tickets(context, 0))
        abort();
    SSL_CTX_set_verify(context, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, NULL);
    SSL_CTX_set_cert_verify_callback(context, verify, NULL);
    SSL_CTX_set_max_cert_list(context, MAX_CERTIFICATE_LIST);
    /* A resumed session would skip the certificates. */
    SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF);
    SSL_CTX_set_options(context, SSL_OP_NO_TICKET);
}

int tls_pin_session(SSL *ssl, struct tls_pin *pin)
{
    return SSL_set_ex_data(ssl, pin_slot, pin) ? 0 : -ENOMEM;
}

const char *tls_reason(void)
{
    const char *reason = ERR_reason_error_string(ERR_peek_last_error());
    return reason ? reason : "no reason given";
}
