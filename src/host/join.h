/* SPDX-License-Identifier: Apache-2.0
 *
 * join: two hosts begin to trust each other, both ways, once.
 *
 *   A: POST /v1/invites        a secret that is stored only as its hash, with an end; the token goes to a
 * person B: POST /v1/peers/join     B connects to A, and believes only the key that the token names B -> A:
 * POST /v1/join      A checks the secret, then in one transaction marks it used and stores B, whose key the
 * TLS handshake has proved B stores A                 whose key the token named and the handshake proved
 *
 * If B ends between the last two, A knows B and B does not know A: B is refused nothing by that, and another
 * invite joins them (A only renews its entry). Nothing else can be left half-done.
 */
#pragma once

#include "host/api.h"
#include "host/token.h"

#define INVITE_TTL_SEC 600

/* `alias` (may be NULL): the name that the peer gets here. */
int join_invite(struct host *host, const char *alias, uint64_t ttl_sec, struct token *ret,
                char ret_expires[TIME_TEXT], struct err *err);
/* Side A. `joiner` is complete but for `since`. */
int join_accept(struct host *host, const struct id *secret, struct peer *joiner, struct err *err);
/* Side B. `alias` as above. */
int join_with(struct host *host, const struct token *token, const char *alias, struct peer *ret,
              struct err *err);

/* -ENOTSUP with a text when the other host's versions of the move protocol and ours do not meet. */
int protocol_check(const json_t *range, const char *who, struct err *err);
json_t *protocol_range(void);
