/* SPDX-License-Identifier: Apache-2.0
 *
 * The hellos here are OpenSSL's own, taken from a memory BIO, so that the parser meets what clients really
 * send.
 */
#include "unit.h"

#include "base/clienthello.h"
#include "base/endian.h"

#include <openssl/err.h>
#include <openssl/ssl.h>
#include <stdbool.h>

struct hello {
    uint8_t data[32768];
    size_t size;
};

/* `alpn_size` bytes of protocol names make a hello as large as one likes. */
static void capture(struct hello *ret, const char *name, int max_version, size_t alpn_size, long fragment)
{
    static uint8_t alpn[16384];
    SSL_CTX *context = SSL_CTX_new(TLS_client_method());
    SSL_CTX_set_max_proto_version(context, max_version);
    SSL *ssl = SSL_new(context);
    BIO *out = BIO_new(BIO_s_mem());
    SSL_set_bio(ssl, BIO_new(BIO_s_mem()), out);
    if (name)
        SSL_set_tlsext_host_name(ssl, name);
    for (size_t i = 0; i < alpn_size; i += 200) {
        memset(alpn + i, 'p', 200);
        alpn[i] = 199;
    }
    if (alpn_size)
        SSL_set_alpn_protos(ssl, alpn, (unsigned)alpn_size);
    if (fragment)
        SSL_set_max_send_fragment(ssl, fragment);
    SSL_connect(ssl);
    ret->size = (size_t)BIO_read(out, ret->data, sizeof ret->data);
    SSL_free(ssl);
    SSL_CTX_free(context);
    ERR_clear_error();
}

/* The same handshake bytes in records of at most `piece` bytes. */
static void recut(const struct hello *hello, size_t piece, struct hello *ret)
{
    const uint8_t *from = hello->data + 5;
    size_t left = hello->size - 5;
    for (ret->size = 0; left > 0;) {
        size_t n = left < piece ? left : piece;
        uint8_t *record = ret->data + ret->size;
        memcpy(record, hello->data, 3);
        put_be16(record + 3, (uint16_t)n);
        memcpy(record + 5, from, n);
        from += n;
        left -= n;
        ret->size += 5 + n;
    }
}

/* An exact heap copy, so that the address sanitizer sees each byte read too far. */
static int parse(const uint8_t *data, size_t size, char name[SERVER_NAME_SIZE])
{
    uint8_t *copy = malloc(size ? size : 1);
    memcpy(copy, data, size);
    int r = clienthello_server_name(copy, size, name);
    free(copy);
    return r;
}

static void assert_hello(const struct hello *hello, const char *expected)
{
    char name[SERVER_NAME_SIZE] = "before";
    for (size_t size = 0; size < hello->size; size++) {
        assert_int_equal(parse(hello->data, size, name), -EAGAIN);
        assert_string_equal(name, "before");
    }
    assert_int_equal(parse(hello->data, hello->size, name), 0);
    assert_string_equal(name, expected);
}

static void assert_bad(const struct hello *hello)
{
    char name[SERVER_NAME_SIZE] = "before";
    assert_int_equal(parse(hello->data, hello->size, name), -EPROTO);
    assert_string_equal(name, "before");
}

static void the_name_is_found_and_every_prefix_asks_for_more(void **state)
{
    struct hello hello;
    capture(&hello, "0123456789abcdef.vm.orai", 0, 0, 0);
    assert_hello(&hello, "0123456789abcdef.vm.orai");
}

static void a_hello_without_a_name_gives_the_empty_one(void **state)
{
    struct hello hello;
    capture(&hello, NULL, 0, 0, 0);
    assert_hello(&hello, "");
}

static void a_tls_1_2_hello_is_understood_too(void **state)
{
    struct hello hello;
    capture(&hello, "old.example", TLS1_2_VERSION, 0, 0);
    assert_hello(&hello, "old.example");
}

static void a_hello_that_openssl_cut_into_records_is_joined(void **state)
{
    struct hello hello;
    capture(&hello, "cut.example", 0, 2000, 512);
    assert_true(get_be16(hello.data + 3) == 512);
    assert_hello(&hello, "cut.example");
}

static void a_hello_in_records_of_any_size_is_joined(void **state)
{
    struct hello hello, cut;
    capture(&hello, "cut.example", 0, 0, 0);
    for (size_t piece = 1; piece < hello.size; piece++) {
        recut(&hello, piece, &cut);
        assert_hello(&cut, "cut.example");
    }
}

static void bytes_of_a_later_record_do_not_matter(void **state)
{
    char name[SERVER_NAME_SIZE];
    struct hello hello;
    capture(&hello, "x.example", 0, 0, 0);
    memcpy(hello.data + hello.size, "\x17\x03\x03\x00\x05junk!", 10);
    assert_int_equal(parse(hello.data, hello.size + 10, name), 0);
    assert_string_equal(name, "x.example");
}

static void a_hello_of_the_largest_size_passes_and_a_larger_one_fails_at_its_header(void **state)
{
    char name[SERVER_NAME_SIZE];
    struct hello hello;
    size_t alpn = 0;
    for (capture(&hello, "x.example", 0, alpn, 0); hello.size <= CLIENTHELLO_MAX - 400;
         capture(&hello, "x.example", 0, alpn += 200, 0))
        ;
    assert_hello(&hello, "x.example");
    capture(&hello, "x.example", 0, alpn + 800, 0);
    assert_true(hello.size > CLIENTHELLO_MAX);
    assert_int_equal(parse(hello.data, 3, name), -EAGAIN);
    assert_int_equal(parse(hello.data, 5, name), -EPROTO);
    assert_int_equal(parse(hello.data, hello.size, name), -EPROTO);
}

static void record_headers_count_towards_the_largest_size(void **state)
{
    struct hello hello, cut;
    char name[SERVER_NAME_SIZE];
    capture(&hello, "x.example", 0, 1000, 0);
    recut(&hello, 1, &cut);
    assert_true(hello.size < CLIENTHELLO_MAX && cut.size > CLIENTHELLO_MAX);
    assert_bad(&cut);
    /* Known to be too large long before the 4096th byte. */
    assert_int_equal(parse(cut.data, CLIENTHELLO_MAX, name), -EPROTO);
}

static void other_protocols_are_refused_at_their_first_wrong_byte(void **state)
{
    static const char *const others[] = {"GET / HTTP/1.1\r\n", "SSH-2.0-x", "RFB 003.008\n",
                                         "\x15\x03\x03",       "\x16\x02",  "\x80\x2e\x01"};
    char name[SERVER_NAME_SIZE];
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        assert_int_equal(parse((const uint8_t *)others[i], strlen(others[i]), name), -EPROTO);
}

static void a_handshake_that_is_no_client_hello_is_refused(void **state)
{
    struct hello hello;
    capture(&hello, "x.example", 0, 0, 0);
    hello.data[5] = 2;
    assert_bad(&hello);
    hello.size = 6;
    assert_bad(&hello);
}

static void an_empty_record_or_another_kind_in_between_is_refused(void **state)
{
    struct hello hello, cut;
    capture(&hello, "x.example", 0, 0, 0);
    recut(&hello, 100, &cut);
    cut.data[105] = 23;
    assert_bad(&cut);
    recut(&hello, 100, &cut);
    put_be16(cut.data + 105 + 3, 0);
    assert_bad(&cut);
}

static void a_record_that_goes_on_behind_the_hello_is_refused(void **state)
{
    struct hello hello;
    capture(&hello, "x.example", 0, 0, 0);
    put_be16(hello.data + 3, (uint16_t)(get_be16(hello.data + 3) + 1));
    hello.data[hello.size++] = 0;
    assert_bad(&hello);
}

/* Where the name's bytes are, found by looking for them. */
static uint8_t *find_name(struct hello *hello, const char *name)
{
    uint8_t *p = memmem(hello->data, hello->size, name, strlen(name));
    assert_non_null(p);
    return p;
}

static void lengths_that_leave_their_surroundings_are_refused(void **state)
{
    /* Before the name: extension type 2, extension length 2, list length 2, name type 1, name length 2. */
    static const struct {
        int at;
        int by;
    } changes[] = {{-2, 1}, {-2, -1}, {-5, 1}, {-5, -1}, {-7, 1}, {-7, -1}, {-7, 20000}, {-2, 300}};
    for (size_t i = 0; i < sizeof changes / sizeof *changes; i++) {
        struct hello hello;
        capture(&hello, "x.example", 0, 0, 0);
        uint8_t *p = find_name(&hello, "x.example") + changes[i].at;
        put_be16(p, (uint16_t)(get_be16(p) + changes[i].by));
        assert_bad(&hello);
    }
}

static void names_with_strange_characters_are_refused(void **state)
{
    static const char strange[] = {'\0', ' ', '/', '\n', '%', '"', '\x7f', '\x80', '\xff', ':'};
    for (size_t i = 0; i < sizeof strange; i++) {
        struct hello hello;
        capture(&hello, "x.example", 0, 0, 0);
        find_name(&hello, "x.example")[3] = (uint8_t)strange[i];
        assert_bad(&hello);
    }
}

static void the_longest_name_has_255_characters(void **state)
{
    char name[SERVER_NAME_SIZE];
    struct hello hello;
    memset(name, 'a', sizeof name - 1);
    name[sizeof name - 1] = '\0';
    capture(&hello, name, 0, 0, 0);
    assert_hello(&hello, name);
}

static size_t put_hello(uint8_t *p, const uint8_t *extensions, size_t size)
{
    size_t body = 2 + 32 + 1 + 4 + 2 + 2 + size;
    memset(p, 0, 5 + 4 + body);
    memcpy(p, "\x16\x03\x01", 3);
    put_be16(p + 3, (uint16_t)(4 + body));
    p[5] = 1;
    put_be16(p + 7, (uint16_t)body);
    put_be16(p + 9, 0x0303);
    memcpy(p + 9 + 2 + 32, "\x00\x00\x02\x13\x01\x01\x00", 7);
    put_be16(p + 9 + 41, (uint16_t)size);
    memcpy(p + 9 + 43, extensions, size);
    return 5 + 4 + body;
}

static int parse_extensions(const void *extensions, size_t size, char name[SERVER_NAME_SIZE])
{
    uint8_t data[512];
    return parse(data, put_hello(data, extensions, size), name);
}
#define PARSE(extensions) parse_extensions(extensions, sizeof(extensions) - 1, name)

static void doubled_and_empty_names_are_refused(void **state)
{
    char name[SERVER_NAME_SIZE];
    assert_int_equal(PARSE("\0\0\0\6\0\4\0\0\1a"), 0);
    assert_string_equal(name, "a");
    assert_int_equal(PARSE("\0\0\0\6\0\4\0\0\1a\0\0\0\6\0\4\0\0\1b"), -EPROTO); /* the extension twice */
    assert_int_equal(PARSE("\0\0\0\x0a\0\x08\0\0\1a\0\0\1b"), -EPROTO);         /* two host names */
    assert_int_equal(PARSE("\0\0\0\5\0\3\0\0\0"), -EPROTO);                     /* an empty name */
    assert_int_equal(PARSE("\0\0\0\2\0\0"), -EPROTO);                           /* an empty list */
    assert_int_equal(PARSE("\0\0\0\0"), -EPROTO);                               /* no list */
    assert_int_equal(PARSE("\0\0\0\x0a\0\x08\7\0\1z\0\0\1b"), 0); /* another kind of name before it */
    assert_string_equal(name, "b");
}

static void hellos_without_ciphers_or_with_half_a_cipher_are_refused(void **state)
{
    char name[SERVER_NAME_SIZE];
    uint8_t data[512];
    size_t size = put_hello(data, (const uint8_t *)"\0\7\0\1x", 5);
    assert_int_equal(parse(data, size, name), 0);
    data[9 + 36] = 0;
    assert_int_equal(parse(data, size, name), -EPROTO);
    data[9 + 36] = 3;
    assert_int_equal(parse(data, size, name), -EPROTO);
    data[9 + 36] = 2;
    data[9 + 34] = 33; /* session id */
    assert_int_equal(parse(data, size, name), -EPROTO);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_name_is_found_and_every_prefix_asks_for_more),
        cmocka_unit_test(a_hello_without_a_name_gives_the_empty_one),
        cmocka_unit_test(a_tls_1_2_hello_is_understood_too),
        cmocka_unit_test(a_hello_that_openssl_cut_into_records_is_joined),
        cmocka_unit_test(a_hello_in_records_of_any_size_is_joined),
        cmocka_unit_test(bytes_of_a_later_record_do_not_matter),
        cmocka_unit_test(a_hello_of_the_largest_size_passes_and_a_larger_one_fails_at_its_header),
        cmocka_unit_test(record_headers_count_towards_the_largest_size),
        cmocka_unit_test(other_protocols_are_refused_at_their_first_wrong_byte),
        cmocka_unit_test(a_handshake_that_is_no_client_hello_is_refused),
        cmocka_unit_test(an_empty_record_or_another_kind_in_between_is_refused),
        cmocka_unit_test(a_record_that_goes_on_behind_the_hello_is_refused),
        cmocka_unit_test(lengths_that_leave_their_surroundings_are_refused),
        cmocka_unit_test(names_with_strange_characters_are_refused),
        cmocka_unit_test(the_longest_name_has_255_characters),
        cmocka_unit_test(doubled_and_empty_names_are_refused),
        cmocka_unit_test(hellos_without_ciphers_or_with_half_a_cipher_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
