/* SPDX-License-Identifier: Apache-2.0 */
#include "host/join.h"

#include "base/clock.h"
#include "base/json.h"
#include "base/log.h"
#include "base/macro.h"
#include "host/client.h"
#include "wire/frame.h"

#include <arpa/inet.h>
#include <errno.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <openssl/crypto.h>
#include <openssl/sha.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#define KEPT_MSEC 86400000 /* used and expired invites: a day */
#define ATTEMPT_MSEC 5000  /* for one address of the token */

/* --- versions ------------------------------------------------------------------------------------------- */

json_t *protocol_range(void)
{
    return json_pack("{s:i, s:i}", "min", MOVE_PROTOCOL_VERSION, "max", MOVE_PROTOCOL_VERSION);
}

int protocol_check(const json_t *range, const char *who, struct err *err)
{
    uint64_t min = 0, max = 0;
    int r = json_get_u64(range, "min", "\"protocol\"", &min, err);
    if (r == 0)
        r = json_get_u64(range, "max", "\"protocol\"", &max, err);
    if (r < 0)
        return r;
    if (min <= MOVE_PROTOCOL_VERSION && max >= MOVE_PROTOCOL_VERSION)
        return 0;
    err_set(err, ENOTSUP,
            "version mismatch: %s speaks versions %llu to %llu of the move protocol, this host only %d", who,
            (unsigned long long)min, (unsigned long long)max, MOVE_PROTOCOL_VERSION);
    return err_hint(err, "bring both hosts to the same version of Orai (%s)",
                    max < MOVE_PROTOCOL_VERSION ? "the other one is older" : "this one is older");
}

/* --- side A: the invite --------------------------------------------------------------------------------- */

static void hash_secret(const struct id *secret, char text[HASH_TEXT_SIZE])
{
    uint8_t hash[HASH_SIZE];
    SHA256(secret->bytes, sizeof secret->bytes, hash);
    hex_format(hash, sizeof hash, text);
}

static bool global_address(const struct ifaddrs *i, bool loopback, char *ret, size_t size)
{
    if (!i->ifa_addr || !(i->ifa_flags & IFF_UP) || !(i->ifa_flags & IFF_LOOPBACK) == loopback)
        return false;
    if (i->ifa_addr->sa_family == AF_INET)
        return inet_ntop(AF_INET, &((struct sockaddr_in *)i->ifa_addr)->sin_addr, ret, (socklen_t)size);
    if (i->ifa_addr->sa_family != AF_INET6)
        return false;
    const struct in6_addr *a = &((struct sockaddr_in6 *)i->ifa_addr)->sin6_addr;
    return !IN6_IS_ADDR_LINKLOCAL(a) && inet_ntop(AF_INET6, a, ret, (socklen_t)size);
}

static bool any_address(const char *text)
{
    return !text[0] || strcmp(text, "::") == 0 || strcmp(text, "0.0.0.0") == 0;
}

/* Where the other host may find us: as advertised, as bound, else every address that we have. */
static void add_addresses(const struct host *host, struct token *token)
{
    const struct host_options *o = &host->options;
    const char *known = o->advertise                     ? o->advertise
                        : any_address(o->listen_address) ? NULL
                                                         : o->listen_address;
    struct ifaddrs *list = NULL;
    if (known) {
        snprintf(token->addresses[0], TOKEN_ADDRESS_SIZE, "%s", known);
        token->address_count = 1;
        return;
    }
    if (getifaddrs(&list) < 0)
        return;
    for (int loopback = 0; loopback < 2 && token->address_count == 0; loopback++)
        for (const struct ifaddrs *i = list; i && token->address_count < TOKEN_MAX_ADDRESSES; i = i->ifa_next)
            token->address_count +=
                global_address(i, loopback, token->addresses[token->address_count], TOKEN_ADDRESS_SIZE);
    freeifaddrs(list);
}

/* Expired ones say nothing to anybody; they are kept a day so that a late user hears why. */
static void drop_old_invites(struct registry *registry)
{
    _cleanup_json_ json_t *rows = NULL;
    size_t index;
    json_t *row;
    struct err unused;
    if (registry_list(registry, REGISTRY_INVITES, &rows, &unused) < 0)
        return;
    json_array_foreach(rows, index,
                       row) if ((int64_t)json_u64(row, "expires_ms", 0) + KEPT_MSEC < clock_wall_ms())
        registry_remove(registry, REGISTRY_INVITES, json_str(row, "hash", ""), &unused);
}

int join_invite(struct host *host, const char *alias, uint64_t ttl_sec, struct token *ret,
                char ret_expires[TIME_TEXT], struct err *err)
{
    struct token token = {.secret = id_random(), .port = host->options.port};
    char hash[HASH_TEXT_SIZE];
    int64_t expires = clock_wall_ms() + (int64_t)ttl_sec * 1000;
    token.fingerprint = *tls_identity_fingerprint(host->identity);
    snprintf(token.name, sizeof token.name, "%s", host->options.name);
    add_addresses(host, &token);
    if (token.address_count == 0)
        return err_set(err, EADDRNOTAVAIL,
                       "this host has no address; give one with oraid --advertise ADDRESS");
    drop_old_invites(host->registry);
    hash_secret(&token.secret, hash);
    _cleanup_json_ json_t *row =
        json_pack("{s:s, s:s?, s:I, s:I, s:n}", "hash", hash, "name", alias, "expires_ms",
                  (json_int_t)expires, "used_ms", (json_int_t)0, "used_by");
    int r = registry_insert(host->registry, REGISTRY_INVITES, row, err);
    if (r < 0)
        return r;
    time_format(expires, ret_expires);
    *ret = token;
    return 0;
}

/* --- side A: redeeming ---------------------------------------------------------------------------------- */

/* Looked up by its hash: what an attacker can learn from time is about hashes of guesses, not about secrets.
 * The comparison itself is in constant time all the same. */
static int find_invite(struct host *host, const char *hash, json_t **ret, struct err *err)
{
    _cleanup_json_ json_t *rows = NULL;
    size_t index;
    json_t *row;
    int r = registry_list(host->registry, REGISTRY_INVITES, &rows, err);
    if (r < 0)
        return r;
    json_array_foreach(rows, index, row)
    {
        const char *stored = json_str(row, "hash", "");
        if (strlen(stored) == HASH_TEXT_SIZE - 1 && CRYPTO_memcmp(stored, hash, HASH_TEXT_SIZE - 1) == 0)
            *ret = json_incref(row);
    }
    if (*ret)
        return 0;
    err_set(err, EACCES, "%s has made no such invite", host->options.name);
    return err_hint(err, "on %s: orai peer invite", host->options.name);
}

static int check_invite(struct host *host, const json_t *invite, struct err *err)
{
    if (json_u64(invite, "used_ms", 0) != 0) {
        err_set(err, ESTALE, "this invite was used already, by \"%s\"", json_str(invite, "used_by", "?"));
        return err_hint(err, "on %s: orai peer invite makes another one", host->options.name);
    }
    if (clock_wall_ms() < (int64_t)json_u64(invite, "expires_ms", 0))
        return 0;
    char when[TIME_TEXT];
    err_set(err, ESTALE, "this invite expired at %s (by the clock of %s)",
            time_format((int64_t)json_u64(invite, "expires_ms", 0), when), host->options.name);
    return err_hint(err, "on %s: orai peer invite makes another one", host->options.name);
}

/* Is the name free for this key? *ret_known: the key has an entry, under *ret_old. */
static int check_name(struct host *host, const struct peer *peer, bool *ret_known,
                      char ret_old[PEER_NAME_SIZE], struct err *err)
{
    struct peer other;
    struct err unused;
    if (strcmp(peer->name, host->options.name) == 0) {
        err_set(err, EEXIST, "%s is itself called \"%s\": the two hosts need different names",
                host->options.name, peer->name);
        return err_hint(err, "start one of them with oraid --name NAME, or: orai peer invite --name NAME");
    }
    int r = peer_find(host->registry, peer->name, &other, &unused);
    if (r == 0 && !fingerprint_equal(&other.fingerprint, &peer->fingerprint)) {
        err_set(err, EEXIST, "%s has another peer called \"%s\"", host->options.name, peer->name);
        return err_hint(err, "on %s: orai peer remove %s, or orai peer invite --name OTHER",
                        host->options.name, peer->name);
    }
    r = peer_find_key(host->registry, &peer->fingerprint, &other, &unused);
    *ret_known = r == 0;
    memcpy(ret_old, other.name, r == 0 ? PEER_NAME_SIZE : 0);
    return 0;
}

/* A change that stores `peer`, in the place of the entry `old` that its key has, if any. */
static size_t store_changes(const json_t *row, bool known, const char *old, struct registry_change *changes)
{
    size_t count = 0;
    if (known)
        changes[count++] =
            (struct registry_change){.verb = REGISTRY_REMOVE, .table = REGISTRY_PEERS, .key = old};
    changes[count++] = (struct registry_change){.verb = REGISTRY_INSERT, .table = REGISTRY_PEERS, .row = row};
    return count;
}

static void say_joined(struct host *host, const struct peer *peer)
{
    char key[HASH_TEXT_SIZE];
    hex_format(peer->fingerprint.bytes, HASH_SIZE, key);
    log_info("peer \"%s\" at %s port %u, key %s", peer->name, peer->address, peer->port, key);
    event_add(host->events, "peer.joined", NULL,
              json_pack("{s:s, s:s, s:s}", "peer", peer->name, "address", peer->address, "fingerprint", key));
}

int join_accept(struct host *host, const struct id *secret, struct peer *joiner, struct err *err)
{
    char hash[HASH_TEXT_SIZE], old[PEER_NAME_SIZE];
    _cleanup_json_ json_t *invite = NULL;
    bool known = false;
    hash_secret(secret, hash);
    int r = find_invite(host, hash, &invite, err);
    if (r == 0)
        r = check_invite(host, invite, err);
    if (r < 0)
        return r;
    const char *alias = json_str(invite, "name", NULL);
    if (alias)
        snprintf(joiner->name, sizeof joiner->name, "%s", alias);
    time_text(joiner->since);
    if (fingerprint_equal(&joiner->fingerprint, tls_identity_fingerprint(host->identity)))
        return err_set(err, EINVAL, "a host cannot join itself");
    r = check_name(host, joiner, &known, old, err);
    if (r < 0)
        return r;
    _cleanup_json_ json_t *row = peer_to_json(joiner);
    _cleanup_json_ json_t *used =
        json_pack("{s:I, s:s}", "used_ms", (json_int_t)clock_wall_ms(), "used_by", joiner->name);
    _cleanup_json_ json_t *unused = json_pack("{s:i}", "used_ms", 0);
    struct registry_change changes[3] = {
        {.verb = REGISTRY_UPDATE, .table = REGISTRY_INVITES, .key = hash, .row = used, .only_if = unused}};
    r = registry_apply(host->registry, changes, 1 + store_changes(row, known, old, changes + 1), err);
    if (r == -ESTALE) /* another one was quicker: the same words as for a later one */
        return err_set(err, ESTALE, "this invite was used already");
    if (r == 0)
        say_joined(host, joiner);
    return r;
}

/* --- side B --------------------------------------------------------------------------------------------- */

static int ask_to_join(struct host *host, const struct token *token, struct peer *inviter, struct err *err)
{
    char secret[ID_TEXT_SIZE];
    const struct host_options *o = &host->options;
    const char *address = o->advertise                     ? o->advertise
                          : any_address(o->listen_address) ? NULL
                                                           : o->listen_address;
    _cleanup_json_ json_t *body =
        json_pack("{s:s, s:s, s:s?, s:i, s:o}", "secret", id_format(&token->secret, secret), "name", o->name,
                  "address", address, "port", (int)o->port, "protocol", protocol_range());
    struct client_call call = {
        .peer = inviter, .method = "POST", .path = "/v1/join", .body = body, .msec = ATTEMPT_MSEC};
    int r = -EHOSTUNREACH;
    for (unsigned i = 0; i < token->address_count; i++) {
        snprintf(inviter->address, sizeof inviter->address, "%s", token->addresses[i]);
        r = client_call(host, &call);
        /* Elsewhere only when it was not the inviter that answered: its "no" is final. */
        if (r == 0 || (r != -EHOSTUNREACH && r != -EACCES && r != -ETIMEDOUT) || call.err.host[0])
            break;
    }
    if (r < 0) {
        *err = call.err;
        return r;
    }
    r = protocol_check(json_object_get(call.answer, "protocol"), inviter->name, err);
    json_decref(call.answer);
    return r;
}

int join_with(struct host *host, const struct token *token, const char *alias, struct peer *ret,
              struct err *err)
{
    struct peer inviter = {.port = token->port, .fingerprint = token->fingerprint};
    char old[PEER_NAME_SIZE];
    bool known = false;
    snprintf(inviter.name, sizeof inviter.name, "%s", alias ? alias : token->name);
    if (fingerprint_equal(&token->fingerprint, tls_identity_fingerprint(host->identity))) {
        err_set(err, EINVAL, "this token is from this very host: a host cannot join itself");
        return err_hint(err, "give the command on the other host");
    }
    int r = check_name(host, &inviter, &known, old, err);
    if (r == -EEXIST)
        err_hint(err, "orai peer join TOKEN --name OTHER gives it another name on this host");
    if (r == 0)
        r = ask_to_join(host, token, &inviter, err);
    if (r < 0)
        return r;
    time_text(inviter.since);
    _cleanup_json_ json_t *row = peer_to_json(&inviter);
    struct registry_change changes[2];
    r = registry_apply(host->registry, changes, store_changes(row, known, old, changes), err);
    if (r < 0) {
        err_context(err, "\"%s\" has this host as its peer now, but here it could not be stored",
                    inviter.name);
        return err_hint(err, "free some space, then join again with a new token of %s", inviter.name);
    }
    say_joined(host, &inviter);
    *ret = inviter;
    return 0;
}
