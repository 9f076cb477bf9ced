/* SPDX-License-Identifier: Apache-2.0 */
#include "unit.h"

#include "base/macro.h"
#include "base/tls_pin.h"

#include <openssl/pem.h>
#include <sys/stat.h>
#include <sys/wait.h>

static void identity_cleanup(struct tls_identity **identity)
{
    tls_identity_free(*identity);
}
#define _cleanup_identity_ _cleanup_(identity_cleanup)

static int open_identity(struct tls_identity **ret, struct err *err)
{
    return tls_identity_open(scratch, "host-a", ret, err);
}

/* Opens, notes the fingerprint, closes. */
static struct fingerprint fingerprint_now(void)
{
    _cleanup_identity_ struct tls_identity *identity = NULL;
    struct err err = ERR_NONE;
    if (open_identity(&identity, &err) < 0)
        fail_msg("%s", err.text);
    return *tls_identity_fingerprint(identity);
}

static X509 *read_certificate(void)
{
    FILE *file = fopen(in_scratch("host.crt"), "r");
    assert_non_null(file);
    X509 *certificate = PEM_read_X509(file, NULL, NULL, NULL);
    fclose(file);
    assert_non_null(certificate);
    return certificate;
}

static void the_first_start_makes_a_private_key_and_a_certificate(void **state)
{
    struct stat st;
    _cleanup_identity_ struct tls_identity *identity = NULL;
    assert_int_equal(open_identity(&identity, NULL), 0);
    assert_string_equal(tls_identity_key_path(identity), in_scratch("host.key"));
    assert_string_equal(tls_identity_cert_path(identity), in_scratch("host.crt"));
    assert_int_equal(stat(in_scratch("host.key"), &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    X509 *certificate = read_certificate();
    assert_int_equal(X509_self_signed(certificate, 1), 1);
    assert_int_equal(EVP_PKEY_get_id(X509_get0_pubkey(certificate)), EVP_PKEY_ED25519);
    X509_free(certificate);
}

static void the_second_start_finds_the_same_host(void **state)
{
    struct fingerprint a = fingerprint_now(), b = fingerprint_now();
    assert_true(fingerprint_equal(&a, &b));
}

static void two_folders_are_two_hosts(void **state)
{
    struct fingerprint a = fingerprint_now();
    unlink(in_scratch("host.key"));
    unlink(in_scratch("host.crt"));
    struct fingerprint b = fingerprint_now();
    assert_false(fingerprint_equal(&a, &b));
}

static void the_fingerprint_is_the_sha256_of_the_public_key_info(void **state)
{
    unsigned char *spki = NULL, hash[32], *der = NULL;
    struct fingerprint fingerprint = fingerprint_now(), of_der;
    X509 *certificate = read_certificate();
    int size = i2d_PUBKEY(X509_get0_pubkey(certificate), &spki);
    EVP_Digest(spki, (size_t)size, hash, NULL, EVP_sha256(), NULL);
    assert_memory_equal(hash, fingerprint.bytes, sizeof hash);

    int der_size = i2d_X509(certificate, &der);
    assert_int_equal(fingerprint_of_cert_der(der, (size_t)der_size, &of_der), 0);
    assert_true(fingerprint_equal(&fingerprint, &of_der));
    OPENSSL_free(spki);
    OPENSSL_free(der);
    X509_free(certificate);
}

static void a_cut_or_lengthened_certificate_has_no_fingerprint(void **state)
{
    unsigned char *der = NULL;
    struct fingerprint fingerprint = fingerprint_now();
    const struct fingerprint before = fingerprint;
    X509 *certificate = read_certificate();
    int size = i2d_X509(certificate, &der);
    unsigned char *longer = calloc(1, (size_t)size + 1);
    memcpy(longer, der, (size_t)size);
    for (int cut = 0; cut < size; cut++)
        assert_int_equal(fingerprint_of_cert_der(der, (size_t)cut, &fingerprint), -EBADMSG);
    assert_int_equal(fingerprint_of_cert_der(longer, (size_t)size + 1, &fingerprint), -EBADMSG);
    assert_true(fingerprint_equal(&fingerprint, &before));
    free(longer);
    OPENSSL_free(der);
    X509_free(certificate);
}

static void fingerprint_text_goes_there_and_back(void **state)
{
    char text[HASH_TEXT_SIZE];
    struct fingerprint a = fingerprint_now(), b = {0};
    assert_int_equal(strlen(fingerprint_format(&a, text)), 64);
    assert_int_equal(fingerprint_parse(text, &b), 0);
    assert_true(fingerprint_equal(&a, &b));
    text[63] = '\0';
    assert_int_equal(fingerprint_parse(text, &b), -EINVAL);
    assert_int_equal(fingerprint_parse(NULL, &b), -EINVAL);
    assert_true(fingerprint_equal(&a, &b));
}

/* The certificate cannot be written (a folder is in its temporary file's place): the state that a crash
 * between the two files leaves, made by the code itself. */
static void a_start_that_ended_between_key_and_certificate_is_completed(void **state)
{
    struct tls_identity *identity = NULL;
    assert_int_equal(mkdir(in_scratch("host.crt.new"), 0755), 0);
    assert_true(open_identity(&identity, NULL) < 0);
    assert_null(identity);
    assert_int_equal(access(in_scratch("host.key"), F_OK), 0);
    assert_int_equal(access(in_scratch("host.crt"), F_OK), -1);
    assert_int_equal(rmdir(in_scratch("host.crt.new")), 0);

    struct fingerprint a = fingerprint_now();
    unlink(in_scratch("host.crt"));
    struct fingerprint b = fingerprint_now();
    assert_true(fingerprint_equal(&a, &b));
}

static void a_start_that_ended_inside_the_key_is_begun_again(void **state)
{
    struct tls_identity *identity = NULL;
    assert_int_equal(file_replace(in_scratch("host.key.new"), "-----BEG", 8, 0600, NULL), 0);
    assert_int_equal(open_identity(&identity, NULL), 0);
    tls_identity_free(identity);
    assert_int_equal(access(in_scratch("host.key.new"), F_OK), -1);
}

static void a_start_that_could_not_write_its_key_leaves_nothing(void **state)
{
    struct tls_identity *identity = NULL;
    assert_int_equal(mkdir(in_scratch("host.key.new"), 0755), 0);
    assert_true(open_identity(&identity, NULL) < 0);
    assert_int_equal(access(in_scratch("host.key"), F_OK), -1);
    assert_int_equal(access(in_scratch("host.crt"), F_OK), -1);
}

static void assert_refused(int code)
{
    struct tls_identity *identity = NULL;
    struct err err = ERR_NONE;
    assert_int_equal(open_identity(&identity, &err), -code);
    assert_null(identity);
    assert_true(err.text[0]);
    assert_true(err.hint[0]);
    assert_int_equal(open_identity(&identity, NULL), -code);
}

static void a_lost_key_is_not_silently_replaced(void **state)
{
    fingerprint_now();
    unlink(in_scratch("host.key"));
    assert_refused(ENOENT);
    assert_int_equal(access(in_scratch("host.key"), F_OK), -1);
}

static void a_certificate_of_another_key_is_refused(void **state)
{
    fingerprint_now();
    rename(in_scratch("host.crt"), in_scratch("other.crt"));
    unlink(in_scratch("host.key"));
    fingerprint_now();
    rename(in_scratch("other.crt"), in_scratch("host.crt"));
    assert_refused(EBADMSG);
}

static void a_key_that_others_can_read_is_refused(void **state)
{
    fingerprint_now();
    chmod(in_scratch("host.key"), 0640);
    assert_refused(EPERM);
}

static void broken_files_are_refused_not_replaced(void **state)
{
    fingerprint_now();
    assert_int_equal(file_replace(in_scratch("host.crt"), "", 0, 0644, NULL), 0);
    assert_refused(EBADMSG);
    unlink(in_scratch("host.crt"));
    assert_int_equal(file_replace(in_scratch("host.key"), "-----BEGIN PRIVATE KEY-----\n", 28, 0600, NULL),
                     0);
    assert_refused(EBADMSG);
}

static void write_key(const char *type, const EVP_CIPHER *cipher)
{
    EVP_PKEY *key = EVP_PKEY_Q_keygen(NULL, NULL, type, "P-256");
    FILE *file = fopen(in_scratch("host.key"), "w");
    chmod(in_scratch("host.key"), 0600);
    assert_true(
        PEM_write_PKCS8PrivateKey(file, key, cipher, cipher ? "secret" : NULL, cipher ? 6 : 0, NULL, NULL));
    fclose(file);
    EVP_PKEY_free(key);
}

static void an_encrypted_key_is_refused_without_asking_for_a_password(void **state)
{
    write_key("ED25519", EVP_aes_128_cbc());
    assert_refused(EBADMSG);
}

static void a_key_of_another_kind_is_refused(void **state)
{
    write_key("EC", NULL);
    assert_refused(EBADMSG);
}

static void a_missing_folder_is_named(void **state)
{
    struct err err;
    struct tls_identity *identity = NULL;
    assert_int_equal(tls_identity_open(in_scratch("none"), "a", &identity, &err), -ENOENT);
    assert_non_null(strstr(err.text, in_scratch("none")));
}

static void a_long_host_name_is_cut_and_an_empty_one_refused(void **state)
{
    char name[200];
    struct tls_identity *identity = NULL;
    memset(name, 'h', sizeof name);
    name[sizeof name - 1] = '\0';
    assert_int_equal(tls_identity_open(scratch, "", &identity, NULL), -EINVAL);
    assert_int_equal(tls_identity_open(scratch, name, &identity, NULL), 0);
    tls_identity_free(identity);
}

static void processes_that_start_at_once_become_one_host(void **state)
{
    enum { PROCESSES = 8 };
    int p[2], status;
    struct fingerprint first, other;
    assert_int_equal(pipe(p), 0);
    for (int i = 0; i < PROCESSES; i++) {
        if (fork() == 0) {
            struct tls_identity *identity = NULL;
            if (open_identity(&identity, NULL) < 0)
                _exit(1);
            _exit(write(p[1], tls_identity_fingerprint(identity), sizeof first) != sizeof first);
        }
    }
    close(p[1]);
    assert_int_equal(read(p[0], &first, sizeof first), sizeof first);
    for (int i = 1; i < PROCESSES; i++) {
        assert_int_equal(read(p[0], &other, sizeof other), sizeof other);
        assert_true(fingerprint_equal(&first, &other));
    }
    while (wait(&status) > 0)
        assert_int_equal(status, 0);
    close(p[0]);
}

static void freeing_nothing_is_fine(void **state)
{
    tls_identity_free(NULL);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, make_scratch, remove_scratch)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(the_first_start_makes_a_private_key_and_a_certificate),
        TEST(the_second_start_finds_the_same_host),
        TEST(two_folders_are_two_hosts),
        TEST(the_fingerprint_is_the_sha256_of_the_public_key_info),
        TEST(a_cut_or_lengthened_certificate_has_no_fingerprint),
        TEST(fingerprint_text_goes_there_and_back),
        TEST(a_start_that_ended_between_key_and_certificate_is_completed),
        TEST(a_start_that_ended_inside_the_key_is_begun_again),
        TEST(a_start_that_could_not_write_its_key_leaves_nothing),
        TEST(a_lost_key_is_not_silently_replaced),
        TEST(a_certificate_of_another_key_is_refused),
        TEST(a_key_that_others_can_read_is_refused),
        TEST(broken_files_are_refused_not_replaced),
        TEST(an_encrypted_key_is_refused_without_asking_for_a_password),
        TEST(a_key_of_another_kind_is_refused),
        TEST(a_missing_folder_is_named),
        TEST(a_long_host_name_is_cut_and_an_empty_one_refused),
        TEST(processes_that_start_at_once_become_one_host),
        TEST(freeing_nothing_is_fine),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
