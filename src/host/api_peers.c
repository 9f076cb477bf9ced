/* SPDX-License-Identifier: Apache-2.0 */
#include "base/json.h"
#include "base/macro.h"
#include "host/api.h"
#include "host/client.h"
#include "host/join.h"

#include <errno.h>
#include <stdio.h>

#define PROBE_MSEC 2000
#define MAX_TTL_SEC 604800 /* a week */

int api_invite(struct host *host, struct request *request, struct answer *ret, struct err *err)
{
    static const char *const members[] = {"name", "ttl_s", NULL};
    const char *alias = NULL;
    uint64_t ttl = INVITE_TTL_SEC;
    struct token token;
    char expires[TIME_TEXT];
    _cleanup_free_ char *text = malloc(TOKEN_TEXT_SIZE);
    int r = request_body(request, true, members, err);
    if (r == 0 && json_object_get(request->body, "name"))
        r = body_name(request->body, "name", &alias, err);
    if (r == 0)
        r = body_number(request->body, "ttl_s", 1, MAX_TTL_SEC, &ttl, err);
    if (r == 0 && !text)
        r = err_set(err, ENOMEM, "out of memory");
    if (r == 0)
        r = join_invite(host, alias, ttl, &token, expires, err);
    return r < 0 ? r
                 : answer_json(
                       ret, 201,
                       json_pack("{s:s, s:s}", "token", token_format(&token, text), "expires", expires));
}

int api_peer_join(struct host *host, struct request *request, struct answer *ret, struct err *err)
{
    static const char *const members[] = {"token", "name", NULL};
    const char *text = "", *alias = NULL;
    struct token token;
    struct peer peer;
    int r = request_body(request, false, members, err);
    if (r == 0)
        r = body_string(request->body, "token", &text, err);
    if (r == 0 && json_object_get(request->body, "name"))
        r = body_name(request->body, "name", &alias, err);
    if (r == 0)
        r = token_parse(text, &token, err);
    if (r == 0)
        r = join_with(host, &token, alias, &peer, err);
    return r < 0 ? r : answer_json(ret, 201, peer_to_json(&peer));
}

int api_join(struct host *host, struct request *request, struct answer *ret, struct err *err)
{
    static const char *const members[] = {"secret", "name", "address", "port", "protocol", NULL};
    const char *name = NULL, *address = request->address;
    uint64_t port = DEFAULT_PORT;
    struct id secret;
    struct peer joiner = {.fingerprint = request->key};
    int r = request_body(request, false, members, err);
    if (r == 0)
        r = json_get_id(request->body, "secret", "the request", &secret, err);
    if (r == 0)
        r = body_name(request->body, "name", &name, err);
    if (r == 0)
        r = body_string(request->body, "address", &address, err);
    if (r == 0)
        r = body_number(request->body, "port", 1, UINT16_MAX, &port, err);
    if (r == 0)
        r = protocol_check(json_object_get(request->body, "protocol"), name, err);
    if (r == 0 && !peer_address_ok(address))
        r = err_set(err, EINVAL, "\"address\" must be a host name or number");
    if (r < 0)
        return r;
    snprintf(joiner.name, sizeof joiner.name, "%s", name);
    snprintf(joiner.address, sizeof joiner.address, "%s", address);
    joiner.port = (uint16_t)port;
    r = join_accept(host, &secret, &joiner, err);
    return r < 0 ? r
                 : answer_json(
                       ret, 201,
                       json_pack("{s:s, s:o}", "name", host->options.name, "protocol", protocol_range()));
}

static json_t *probe_json(const struct client_call *call)
{
    return json_pack("{s:b, s:o, s:s?, s:o?}", "reachable", call->r == 0, "latency_ms",
                     call->latency_ms < 0 ? json_null() : json_real(call->latency_ms), "version",
                     json_str(call->answer, "version", NULL), "error",
                     call->r < 0 ? err_to_json(&call->err) : NULL);
}

static int probe(struct host *host, const struct peer *peers, size_t count, json_t *list, struct err *err)
{
    _cleanup_free_ struct client_call *calls = calloc(count + 1, sizeof *calls);
    if (!calls)
        return err_set(err, ENOMEM, "out of memory");
    for (size_t i = 0; i < count; i++)
        calls[i] =
            (struct client_call){.peer = &peers[i], .method = "GET", .path = "/v1/host", .msec = PROBE_MSEC};
    client_calls(host, calls, count);
    for (size_t i = 0; i < count; i++) {
        json_object_set_new(json_array_get(list, i), "probe", probe_json(&calls[i]));
        json_decref(calls[i].answer);
    }
    return 0;
}

int api_peers(struct host *host, struct request *request, struct answer *ret, struct err *err)
{
    _cleanup_free_ struct peer *peers = NULL;
    _cleanup_json_ json_t *list = json_array();
    size_t count = 0;
    int r = peer_list(host->registry, &peers, &count, err);
    for (size_t i = 0; i < count; i++)
        json_array_append_new(list, peer_to_json(&peers[i]));
    /* Only for those here: peers that probe each other's peers in a ring would be no end. */
    if (r == 0 && request_flag(request, "probe") && request->caller == CALLER_LOCAL)
        r = probe(host, peers, count, list, err);
    return r < 0 ? r : answer_json(ret, 200, json_pack("{s:O}", "peers", list));
}

int api_peer_remove(struct host *host, struct request *request, struct answer *ret, struct err *err)
{
    struct peer peer;
    int r = peer_find(host->registry, request->args[0], &peer, err);
    if (r == 0)
        r = registry_remove(host->registry, REGISTRY_PEERS, peer.name, err);
    if (r < 0)
        return r;
    event_add(host->events, "peer.removed", NULL, json_pack("{s:s}", "peer", peer.name));
    return answer_ok(ret);
}
