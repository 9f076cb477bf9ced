/* SPDX-License-Identifier: Apache-2.0
 *
 * Invite tokens: what parses is written again as the same token. The checksum would keep the fuzzer out, so
 * the input is also taken as the bytes behind it.
 */
#include "host/token.h"

#include <assert.h>
#include <openssl/sha.h>
#include <stdlib.h>
#include <string.h>

static void check(const char *text)
{
    struct token token, again;
    struct err err;
    char back[TOKEN_TEXT_SIZE];
    if (token_parse(text, &token, &err) < 0)
        return;
    assert(token_parse(token_format(&token, back), &again, &err) == 0);
    assert(memcmp(&token, &again, sizeof token) == 0);
}

static void encode(const uint8_t *bytes, size_t size, char *text)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    text += strlen(strcpy(text, "orai1."));
    for (size_t bit = 0; bit < size * 8; bit += 6) {
        unsigned two = (unsigned)bytes[bit / 8] << 8 | (bit / 8 + 1 < size ? bytes[bit / 8 + 1] : 0);
        *text++ = digits[two >> (10 - bit % 8) & 63];
    }
    *text = '\0';
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint8_t bytes[4096], hash[SHA256_DIGEST_LENGTH];
    char text[8192];
    if (size > sizeof bytes - 4)
        return 0;
    memcpy(text, data, size);
    text[size] = '\0';
    check(text);
    memcpy(bytes, data, size);
    SHA256(data, size, hash);
    memcpy(bytes + size, hash, 4);
    encode(bytes, size + 4, text);
    check(text);
    return 0;
}
