/* SPDX-License-Identifier: Apache-2.0
 *
 * token: the invite that a person carries from one host to the other: "orai1." and Base64url (RFC 4648, 5, no
 * padding) of
 *
 *    0  fingerprint of the inviting host, 32 bytes    50  length of its name u8, the name
 *   32  secret, 16 bytes                               .  count of addresses u8, each: length u8, the text
 *   48  port u16, big-endian                           .  the first 4 bytes of SHA-256 of all before
 *
 * The checksum only catches typing errors; nothing is proved before the secret is. Pure; a token may be
 * anything.
 */
#pragma once

#include "base/err.h"
#include "base/id.h"
#include "base/tls.h"

#include <stdint.h>

#define TOKEN_MAX_ADDRESSES 8
#define TOKEN_ADDRESS_SIZE 256
#define TOKEN_TEXT_SIZE 3200

struct token {
    struct fingerprint fingerprint;
    struct id secret;
    uint16_t port;
    char name[64];
    unsigned address_count;
    char addresses[TOKEN_MAX_ADDRESSES][TOKEN_ADDRESS_SIZE];
};

/* Returns `text`. */
const char *token_format(const struct token *token, char text[TOKEN_TEXT_SIZE]);
/* -EINVAL with a text for the person who typed it. Spaces around it are ignored. */
int token_parse(const char *text, struct token *ret, struct err *err);
