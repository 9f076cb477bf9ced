/* SPDX-License-Identifier: Apache-2.0
 *
 * A host's key and certificate: DIR/host.key (PKCS #8, PEM, mode 0600) and DIR/host.crt (X.509, PEM).
 *
 * The key is the identity; the certificate only carries it through TLS. Therefore the key is made durable
 * first, and each state of the two files means one thing:
 *
 *   key  certificate
 *   -    -            first start: make both
 *   yes  -            a crash came between the two: make the certificate, the fingerprint stays
 *   yes  yes, same    load
 *   yes  yes, other   somebody copied a file: refused
 *   -    yes          the key was lost: refused, because a silent new key would lock every peer out
 *
 * A lock on DIR keeps a second process that starts at the same moment from making a second key. After
 * tls_identity_open nothing changes any more, so threads share an identity freely.
 */
#include "base/file.h"
#include "base/macro.h"
#include "base/tls_pin.h"

#include <errno.h>
#include <fcntl.h>
#include <openssl/bio.h>
#include <openssl/bn.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>

#define MAX_FILE_SIZE (64 * KiB)
#define MAX_COMMON_NAME 64 /* RFC 5280, ub-common-name */
/* Read as much as the socket holds instead of one record header at a time. */
#define READ_BUFFER (64 * KiB)

struct tls_identity {
    SSL_CTX *context;
    struct fingerprint fingerprint;
    char *key_path;
    char *cert_path;
};

static void bio_cleanup(BIO **bio)
{
    BIO_free(*bio);
}

static void key_cleanup(EVP_PKEY **key)
{
    EVP_PKEY_free(*key);
}

static void x509_cleanup(X509 **certificate)
{
    X509_free(*certificate);
}

static void identity_cleanup(struct tls_identity **identity)
{
    tls_identity_free(*identity);
}

static int openssl_failed(struct err *err, const char *what, const char *path)
{
    return err_set(err, EIO, "cannot %s %s: %s", what, path, tls_reason());
}

/* Without it OpenSSL would ask on the terminal for the password of an encrypted key. */
static int no_password(char *password, int size, int writing, void *unused)
{
    (void)password, (void)size, (void)writing, (void)unused;
    return -1;
}

static bool missing(const char *path)
{
    struct stat st;
    return lstat(path, &st) < 0 && errno == ENOENT;
}

static int check_private(const char *path, struct err *err)
{
    struct stat st;
    if (stat(path, &st) < 0)
        return err_sys(err, errno, "cannot read %s", path);
    if ((st.st_mode & 077) == 0)
        return 0;
    int r =
        err_set(err, EPERM, "the host's key %s is open to other users (mode %03o)", path, st.st_mode & 0777U);
    err_hint(err,
             "chmod 600 %s; if somebody may have read it, remove both it and the certificate "
             "and pair all hosts again",
             path);
    return r;
}

static int load_key(const char *path, EVP_PKEY **ret, struct err *err)
{
    void *text = NULL;
    size_t size = 0;
    int r = check_private(path, err);
    if (r == 0)
        r = file_load(path, MAX_FILE_SIZE, &text, &size, err);
    if (r < 0)
        return r;
    _cleanup_(bio_cleanup) BIO *bio = BIO_new_mem_buf(text, (int)size);
    EVP_PKEY *key = bio ? PEM_read_bio_PrivateKey(bio, NULL, no_password, NULL) : NULL;
    OPENSSL_cleanse(text, size);
    free(text);
    if (!key || EVP_PKEY_get_id(key) != EVP_PKEY_ED25519) {
        EVP_PKEY_free(key);
        r = err_set(err, EBADMSG, "%s holds no Ed25519 key in PEM", path);
        err_hint(err, "put it back from a backup, or remove it and the certificate and pair all hosts again");
        return r;
    }
    *ret = key;
    return 0;
}

static int make_key(const char *path, EVP_PKEY **ret, struct err *err)
{
    _cleanup_(key_cleanup) EVP_PKEY *key = EVP_PKEY_Q_keygen(NULL, NULL, "ED25519");
    _cleanup_(bio_cleanup) BIO *bio = BIO_new(BIO_s_secmem());
    char *text;
    if (!key || !bio || !PEM_write_bio_PKCS8PrivateKey(bio, key, NULL, NULL, 0, NULL, NULL))
        return openssl_failed(err, "make the key", path);
    long size = BIO_get_mem_data(bio, &text);
    int r = file_replace(path, text, (size_t)size, 0600, err);
    if (r < 0)
        return r;
    *ret = TAKE_PTR(key);
    return 0;
}

static int load_certificate(const char *path, X509 **ret, struct err *err)
{
    _cleanup_free_ void *text = NULL;
    size_t size = 0;
    int r = file_load(path, MAX_FILE_SIZE, &text, &size, err);
    if (r < 0)
        return r;
    _cleanup_(bio_cleanup) BIO *bio = BIO_new_mem_buf(text, (int)size);
    X509 *certificate = bio ? PEM_read_bio_X509(bio, NULL, no_password, NULL) : NULL;
    if (!certificate) {
        r = err_set(err, EBADMSG, "%s holds no certificate in PEM", path);
        err_hint(err, "remove it: it is made again from the key beside it");
        return r;
    }
    *ret = certificate;
    return 0;
}

static bool set_serial(X509 *certificate)
{
    uint8_t bytes[16];
    BIGNUM *number = NULL;
    struct id id = id_random();
    memcpy(bytes, id.bytes, sizeof bytes);
    bytes[0] = (uint8_t)((bytes[0] & 0x3f) | 0x40); /* positive and never 0 */
    bool ok = (number = BN_bin2bn(bytes, sizeof bytes, NULL)) &&
              BN_to_ASN1_INTEGER(number, X509_get_serialNumber(certificate));
    BN_free(number);
    return ok;
}

/* No dates that matter: the host's clock may be wrong on its first start, and a pinned key does not expire.
 * The last one is RFC 5280's (4.1.2.5) for "no well-defined expiration date". */
static bool fill_certificate(X509 *certificate, EVP_PKEY *key, const char *host_name)
{
    X509_NAME *name = X509_get_subject_name(certificate);
    int length = (int)strnlen(host_name, MAX_COMMON_NAME);
    return X509_set_version(certificate, X509_VERSION_3) && set_serial(certificate) &&
           ASN1_TIME_set_string_X509(X509_getm_notBefore(certificate), "19700101000000Z") &&
           ASN1_TIME_set_string_X509(X509_getm_notAfter(certificate), "99991231235959Z") &&
           X509_NAME_add_entry_by_NID(name, NID_commonName, MBSTRING_UTF8, (const unsigned char *)host_name,
                                      length, -1, 0) &&
           X509_set_issuer_name(certificate, name) && X509_set_pubkey(certificate, key) &&
           X509_sign(certificate, key, NULL) > 0;
}

static int make_certificate(const char *path, EVP_PKEY *key, const char *host_name, X509 **ret,
                            struct err *err)
{
    _cleanup_(x509_cleanup) X509 *certificate = X509_new();
    _cleanup_(bio_cleanup) BIO *bio = BIO_new(BIO_s_mem());
    char *text;
    if (!certificate || !bio || !fill_certificate(certificate, key, host_name) ||
        !PEM_write_bio_X509(bio, certificate))
        return openssl_failed(err, "make the certificate", path);
    long size = BIO_get_mem_data(bio, &text);
    int r = file_replace(path, text, (size_t)size, 0644, err);
    if (r < 0)
        return r;
    *ret = TAKE_PTR(certificate);
    return 0;
}

static int key_lost(const struct tls_identity *identity, struct err *err)
{
    int r =
        err_set(err, ENOENT, "%s is there, but its key %s is not", identity->cert_path, identity->key_path);
    err_hint(err,
             "put the key back from a backup, or remove %s to become a new host and pair all hosts again",
             identity->cert_path);
    return r;
}

/* The table at the top of this file. */
static int load_or_make(const struct tls_identity *identity, const char *host_name, EVP_PKEY **ret_key,
                        X509 **ret_certificate, struct err *err)
{
    bool no_key = missing(identity->key_path), no_certificate = missing(identity->cert_path);
    if (no_key && !no_certificate)
        return key_lost(identity, err);
    int r = no_key ? make_key(identity->key_path, ret_key, err) : load_key(identity->key_path, ret_key, err);
    if (r < 0)
        return r;
    if (no_certificate)
        return make_certificate(identity->cert_path, *ret_key, host_name, ret_certificate, err);
    r = load_certificate(identity->cert_path, ret_certificate, err);
    if (r < 0)
        return r;
    if (X509_check_private_key(*ret_certificate, *ret_key) != 1) {
        r = err_set(err, EBADMSG, "the certificate %s is not of the key %s", identity->cert_path,
                    identity->key_path);
        err_hint(err, "remove %s: it is made again from the key", identity->cert_path);
        return r;
    }
    return 0;
}

static int open_context(struct tls_identity *identity, EVP_PKEY *key, X509 *certificate, struct err *err)
{
    SSL_CTX *context = SSL_CTX_new(TLS_method());
    if (!context)
        return openssl_failed(err, "use", identity->cert_path);
    identity->context = context;
    tls_pin_context(context);
    SSL_CTX_set_mode(context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    SSL_CTX_set_read_ahead(context, 1);
    SSL_CTX_set_default_read_buffer_len(context, READ_BUFFER);
    if (SSL_CTX_use_certificate(context, certificate) != 1 || SSL_CTX_use_PrivateKey(context, key) != 1)
        return openssl_failed(err, "use", identity->cert_path);
    int r = fingerprint_of_x509(certificate, &identity->fingerprint);
    return r < 0 ? err_sys(err, r, "cannot use %s", identity->cert_path) : 0;
}

int tls_identity_open(const char *dir, const char *host_name, struct tls_identity **ret, struct err *err)
{
    if (!host_name[0])
        return err_set(err, EINVAL, "a host needs a name");
    _cleanup_(identity_cleanup) struct tls_identity *identity = calloc(1, sizeof *identity);
    if (!identity || asprintf(&identity->key_path, "%s/host.key", dir) < 0 ||
        asprintf(&identity->cert_path, "%s/host.crt", dir) < 0)
        return err_set(err, ENOMEM, "out of memory");
    _cleanup_close_ int lock = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (lock < 0)
        return err_sys(err, errno, "cannot open %s, where the host's key belongs", dir);
    while (flock(lock, LOCK_EX) < 0)
        if (errno != EINTR)
            return err_sys(err, errno, "cannot lock %s", dir);

    _cleanup_(key_cleanup) EVP_PKEY *key = NULL;
    _cleanup_(x509_cleanup) X509 *certificate = NULL;
    ERR_clear_error();
    int r = load_or_make(identity, host_name, &key, &certificate, err);
    if (r == 0)
        r = open_context(identity, key, certificate, err);
    ERR_clear_error();
    if (r < 0)
        return r;
    *ret = TAKE_PTR(identity);
    return 0;
}

void tls_identity_free(struct tls_identity *identity)
{
    if (!identity)
        return;
    SSL_CTX_free(identity->context);
    free(identity->key_path);
    free(identity->cert_path);
    free(identity);
}

const struct fingerprint *tls_identity_fingerprint(const struct tls_identity *identity)
{
    return &identity->fingerprint;
}

const char *tls_identity_key_path(const struct tls_identity *identity)
{
    return identity->key_path;
}

const char *tls_identity_cert_path(const struct tls_identity *identity)
{
    return identity->cert_path;
}

SSL_CTX *tls_identity_context(const struct tls_identity *identity)
{
    return identity->context;
}
