/* SPDX-License-Identifier: Apache-2.0
 *
 * peer: the hosts that this one trusts, as the registry keeps them. A peer is its key (base/tls.h); name and
 * address only say how people and sockets find it.
 *
 * Threads: any.
 */
#pragma once

#include "base/err.h"
#include "base/tls.h"
#include "host/registry.h"

#include <stdbool.h>
#include <stdint.h>

#define PEER_NAME_SIZE 64

struct peer {
    char name[PEER_NAME_SIZE];
    char address[256];
    uint16_t port;
    struct fingerprint fingerprint;
    char since[32];
};

/* [a-zA-Z0-9][a-zA-Z0-9._-]*, at most 63 characters: hosts, VMs and images alike. */
bool peer_name_ok(const char *name);

/* A host name or an IPv4 or IPv6 number by its characters: nothing that means anything else inside a URL. */
bool peer_address_ok(const char *address);

/* -ENOENT with the hint `orai peer invite`. */
int peer_find(struct registry *registry, const char *name, struct peer *ret, struct err *err);
/* -ENOENT when no peer has this key. */
int peer_find_key(struct registry *registry, const struct fingerprint *key, struct peer *ret,
                  struct err *err);
/* *ret is malloc'ed. */
int peer_list(struct registry *registry, struct peer **ret, size_t *ret_count, struct err *err);

int peer_from_json(const json_t *row, struct peer *ret, struct err *err);
json_t *peer_to_json(const struct peer *peer);
