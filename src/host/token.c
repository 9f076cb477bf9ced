/* SPDX-License-Identifier: Apache-2.0 */
#include "host/token.h"

#include "base/endian.h"
#include "base/macro.h"
#include "host/peer.h"

#include <ctype.h>
#include <errno.h>
#include <openssl/sha.h>
#include <string.h>

#define PREFIX "orai1."
#define FIXED_SIZE 50
#define CHECK_SIZE 4
#define BYTES_MAX \
    ((size_t)FIXED_SIZE + 64 + 1 + (size_t)TOKEN_MAX_ADDRESSES * TOKEN_ADDRESS_SIZE + CHECK_SIZE)

static_assert(TOKEN_TEXT_SIZE > sizeof PREFIX + (BYTES_MAX + 2) / 3 * 4, "the longest token fits");

static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

static void encode(const uint8_t *bytes, size_t size, char *text)
{
    uint32_t bits = 0;
    unsigned count = 0;
    for (size_t i = 0; i < size; i++) {
        bits = bits << 8 | bytes[i];
        for (count += 8; count >= 6; count -= 6)
            *text++ = digits[bits >> (count - 6) & 63];
    }
    if (count)
        *text++ = digits[bits << (6 - count) & 63];
    *text = '\0';
}

static int decode(const char *text, size_t length, uint8_t *bytes, size_t size, size_t *ret_size)
{
    uint32_t bits = 0;
    unsigned count = 0;
    size_t used = 0;
    for (size_t i = 0; i < length; i++) {
        const char *digit = memchr(digits, text[i], sizeof digits - 1);
        if (!digit)
            return -EINVAL;
        bits = bits << 6 | (uint32_t)(digit - digits);
        if ((count += 6) < 8)
            continue;
        count -= 8;
        if (used == size)
            return -EINVAL;
        bytes[used++] = (uint8_t)(bits >> count);
    }
    *ret_size = used;
    return 0;
}

static size_t put_text(uint8_t *bytes, const char *text)
{
    size_t length = strlen(text);
    bytes[0] = (uint8_t)length;
    /* NOLINTNEXTLINE(bugprone-not-null-terminated-result): the length stands before it */
    memcpy(bytes + 1, text, length);
    return length + 1;
}

static void checksum(const uint8_t *bytes, size_t size, uint8_t ret[CHECK_SIZE])
{
    uint8_t hash[SHA256_DIGEST_LENGTH];
    SHA256(bytes, size, hash);
    memcpy(ret, hash, CHECK_SIZE);
}

const char *token_format(const struct token *token, char text[TOKEN_TEXT_SIZE])
{
    uint8_t bytes[BYTES_MAX];
    memcpy(bytes, token->fingerprint.bytes, HASH_SIZE);
    memcpy(bytes + 32, token->secret.bytes, sizeof token->secret.bytes);
    put_be16(bytes + 48, token->port);
    size_t used = FIXED_SIZE;
    used += put_text(bytes + used, token->name);
    bytes[used++] = (uint8_t)token->address_count;
    for (unsigned i = 0; i < token->address_count; i++)
        used += put_text(bytes + used, token->addresses[i]);
    checksum(bytes, used, bytes + used);
    memcpy(text, PREFIX, sizeof PREFIX - 1);
    encode(bytes, used + CHECK_SIZE, text + sizeof PREFIX - 1);
    return text;
}

struct reader {
    const uint8_t *bytes;
    size_t left;
};

static bool take_text(struct reader *in, char *ret, size_t size)
{
    if (in->left < 1 || in->left - 1 < in->bytes[0] || in->bytes[0] >= size ||
        memchr(in->bytes + 1, 0, in->bytes[0]))
        return false;
    size_t length = in->bytes[0];
    memcpy(ret, in->bytes + 1, length);
    ret[length] = '\0';
    in->bytes += length + 1;
    in->left -= length + 1;
    return length > 0;
}

static bool parse_bytes(struct reader *in, struct token *token)
{
    memcpy(token->fingerprint.bytes, in->bytes, HASH_SIZE);
    memcpy(token->secret.bytes, in->bytes + 32, sizeof token->secret.bytes);
    token->port = get_be16(in->bytes + 48);
    in->bytes += FIXED_SIZE;
    in->left -= FIXED_SIZE;
    if (!take_text(in, token->name, sizeof token->name) || !peer_name_ok(token->name) || in->left < 1)
        return false;
    token->address_count = in->bytes[0];
    in->bytes++, in->left--;
    if (token->address_count < 1 || token->address_count > TOKEN_MAX_ADDRESSES || token->port == 0)
        return false;
    for (unsigned i = 0; i < token->address_count; i++)
        if (!take_text(in, token->addresses[i], TOKEN_ADDRESS_SIZE) || !peer_address_ok(token->addresses[i]))
            return false;
    return in->left == 0;
}

int token_parse(const char *text, struct token *ret, struct err *err)
{
    uint8_t bytes[BYTES_MAX], check[CHECK_SIZE];
    size_t size = 0;
    while (isspace((unsigned char)*text))
        text++;
    size_t length = strlen(text);
    while (length > 0 && isspace((unsigned char)text[length - 1]))
        length--;
    if (length < sizeof PREFIX || memcmp(text, PREFIX, sizeof PREFIX - 1) != 0)
        return err_set(err, EINVAL, "this is not an invite token: one begins with \"%s\"", PREFIX);
    text += sizeof PREFIX - 1, length -= sizeof PREFIX - 1;
    if (decode(text, length, bytes, sizeof bytes, &size) < 0 || size < FIXED_SIZE + CHECK_SIZE)
        return err_set(err, EINVAL, "the invite token is incomplete or has characters that no token has");
    checksum(bytes, size - CHECK_SIZE, check);
    if (memcmp(check, bytes + size - CHECK_SIZE, CHECK_SIZE) != 0)
        return err_set(err, EINVAL, "the invite token was not copied whole: its checksum is wrong");
    struct token token = {0};
    struct reader in = {bytes, size - CHECK_SIZE};
    if (!parse_bytes(&in, &token))
        return err_set(err, EINVAL, "the invite token is damaged");
    *ret = token;
    return 0;
}
