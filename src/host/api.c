/* SPDX-License-Identifier: Apache-2.0 */
#include "host/api.h"

#include "base/clock.h"
#include "base/json.h"
#include "base/macro.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A literal part wins over {} because it stands first. */
const struct route api_routes[] = {
    {"GET", "/v1/openapi.json", ROUTE_PEER, api_openapi},
    {"GET", "/v1/host", ROUTE_PEER, api_host},
    {"POST", "/v1/invites", ROUTE_LOCAL, api_invite},
    {"GET", "/v1/peers", ROUTE_PEER, api_peers},
    {"POST", "/v1/peers/join", ROUTE_LOCAL, api_peer_join},
    {"DELETE", "/v1/peers/{}", ROUTE_LOCAL, api_peer_remove},
    {"POST", "/v1/join", ROUTE_ANYONE, api_join},
    {"GET", "/v1/images", ROUTE_PEER, api_images},
    {"POST", "/v1/images", ROUTE_LOCAL, api_image_add},
    {"GET", "/v1/images/{}", ROUTE_PEER, api_image},
    {"DELETE", "/v1/images/{}", ROUTE_LOCAL, api_image_remove},
    {"GET", "/v1/vms", ROUTE_PEER, api_vms},
    {"POST", "/v1/vms", ROUTE_LOCAL, api_vm_create},
    {"GET", "/v1/vms/{}", ROUTE_PEER, api_vm},
    {"DELETE", "/v1/vms/{}", ROUTE_LOCAL, api_vm_remove},
    {"GET", "/v1/vms/{}/config", ROUTE_PEER, api_vm_config},
    {"PUT", "/v1/vms/{}/config", ROUTE_LOCAL, api_vm_config_put},
    {"POST", "/v1/vms/{}/start", ROUTE_LOCAL, api_vm_start},
    {"POST", "/v1/vms/{}/stop", ROUTE_LOCAL, api_vm_stop},
    {"POST", "/v1/vms/{}/kill", ROUTE_LOCAL, api_vm_kill},
    {"POST", "/v1/vms/{}/move", ROUTE_LOCAL, api_vm_move},
    {"POST", "/v1/vms/{}/refresh", ROUTE_LOCAL, api_vm_refresh},
    {"POST", "/v1/vms/{}/verify", ROUTE_LOCAL, api_vm_verify},
    {"GET", "/v1/vms/{}/copy", ROUTE_PEER, api_vm_copy},
    {"POST", "/v1/vms/{}/share", ROUTE_PEER_ONLY, api_vm_share},
    {"POST", "/v1/vms/{}/hashes", ROUTE_PEER_ONLY, api_vm_hashes},
    {"GET", "/v1/vms/{}/status", ROUTE_PEER, api_vm_status},
    {"POST", "/v1/vms/{}/cancel", ROUTE_PEER, api_vm_cancel},
    {"POST", "/v1/vms/{}/recover", ROUTE_LOCAL, api_vm_recover},
    {"GET", "/v1/vms/{}/replicas", ROUTE_PEER, api_replicas},
    {"DELETE", "/v1/vms/{}/replicas/here", ROUTE_LOCAL, api_replica_drop},
    {"GET", "/v1/operations", ROUTE_PEER, api_operations},
    {"GET", "/v1/operations/{}", ROUTE_PEER, api_operation},
    {"GET", "/v1/events", ROUTE_PEER, api_events},
    {"POST", "/v1/arrivals", ROUTE_PEER_ONLY, api_arrive},
    {"DELETE", "/v1/arrivals/{}", ROUTE_PEER_ONLY, api_arrival_cancel},
};
const size_t api_route_count = ARRAY_SIZE(api_routes);

static const struct {
    int code, status;
} statuses[] = {
    {EINVAL, 400},      {ENAMETOOLONG, 400}, {ENOTSUP, 400},  {EACCES, 403},       {EPERM, 403},
    {ENOENT, 404},      {EEXIST, 409},       {EBUSY, 409},    {EALREADY, 409},     {ESTALE, 410},
    {EFBIG, 413},       {EMSGSIZE, 413},     {EAGAIN, 429},   {EHOSTUNREACH, 502}, {ECONNREFUSED, 502},
    {ENETUNREACH, 502}, {ECONNRESET, 502},   {ENOTCONN, 502}, {EPROTO, 502},       {ETIMEDOUT, 504},
    {ENOSPC, 507},      {EDQUOT, 507},
};

int api_status(int code)
{
    for (size_t i = 0; i < ARRAY_SIZE(statuses); i++)
        if (statuses[i].code == code)
            return statuses[i].status;
    return 500;
}

/* Does `path` have the form of `pattern`? What stands for {} goes to `args`. */
static bool match(const char *pattern, const char *path, struct request *request)
{
    size_t count = 0;
    while (*pattern && *path) {
        if (strncmp(pattern, "{}", 2) != 0) {
            if (*pattern++ != *path++)
                return false;
            continue;
        }
        size_t length = strcspn(path, "/");
        if (length == 0 || length >= sizeof request->args[0] || count == ARRAY_SIZE(request->args))
            return false;
        memcpy(request->args[count], path, length);
        request->args[count++][length] = '\0';
        pattern += 2, path += length;
    }
    return !*pattern && !*path;
}

static int find_route(struct request *request, const struct route **ret, struct err *err)
{
    bool path_known = false;
    for (size_t i = 0; i < api_route_count; i++) {
        if (!match(api_routes[i].pattern, request->path, request))
            continue;
        path_known = true;
        if (strcmp(api_routes[i].method, request->method) != 0)
            continue;
        *ret = &api_routes[i];
        return 0;
    }
    return path_known ? err_set(err, ENOENT, "%s cannot be done to %.200s", request->method, request->path)
                      : err_set(err, ENOENT, "there is no %.200s here (GET /v1/openapi.json lists all)",
                                request->path);
}

static bool allowed(enum route_access access, enum caller caller)
{
    switch (access) {
    case ROUTE_LOCAL:
        return caller == CALLER_LOCAL;
    case ROUTE_PEER:
        return caller == CALLER_LOCAL || caller == CALLER_PEER;
    case ROUTE_PEER_ONLY:
        return caller == CALLER_PEER;
    case ROUTE_ANYONE:
        return caller != CALLER_LOCAL;
    }
    return false;
}

static int authorise(struct host *host, const struct route *route, const struct request *request,
                     struct err *err)
{
    if (allowed(route->access, request->caller))
        return 0;
    if (request->caller == CALLER_STRANGER) {
        char key[HASH_TEXT_SIZE];
        err_set(err, EACCES, "this host is no peer of %s (its fingerprint is %s)", host->options.name,
                hex_format(request->key.bytes, HASH_SIZE, key));
        return err_hint(err, "on %s: orai peer invite, then here: orai peer join TOKEN", host->options.name);
    }
    if (request->caller == CALLER_LOCAL)
        return err_set(err, EACCES, "only peers may ask for %s", request->path);
    return err_set(err, EACCES, "a peer may not ask for %s %.200s: only %s itself may", request->method,
                   request->path, host->options.name);
}

void api_fail(struct host *host, const struct err *err, struct answer *ret)
{
    struct err shown = *err;
    err_where(&shown, host->options.name, NULL);
    answer_done(ret);
    *ret = (struct answer){.status = api_status(shown.code),
                           .body = json_pack("{s:o}", "error", err_to_json(&shown))};
}

void api_handle(struct host *host, struct request *request, struct answer *ret)
{
    struct err err = ERR_NONE;
    const struct route *route = NULL;
    int r = 0;
    /* Strangers learn nothing about paths: all but one are refused alike. */
    if (request->caller == CALLER_STRANGER && strcmp(request->path, "/v1/join") != 0)
        r = authorise(host, &(struct route){.access = ROUTE_PEER}, request, &err);
    if (r == 0)
        r = find_route(request, &route, &err);
    if (r == 0)
        r = authorise(host, route, request, &err);
    if (r == 0)
        r = route->handler(host, request, ret, &err);
    if (r < 0)
        api_fail(host, &err, ret);
}

void answer_done(struct answer *answer)
{
    json_decref(answer->body);
    *answer = (struct answer){0};
}

void request_done(struct request *request)
{
    json_decref(request->query);
    json_decref(request->body);
    *request = (struct request){0};
}

int request_body(const struct request *request, bool optional, const char *const *members, struct err *err)
{
    if (!request->body)
        return optional ? 0 : err_set(err, EINVAL, "the request needs a body");
    if (!json_is_object(request->body))
        return err_set(err, EINVAL, "the request's body must be a JSON object");
    return json_only_keys(request->body, "the request", members, err);
}

bool request_flag(const struct request *request, const char *name)
{
    const char *value = json_str(request->query, name, "false");
    return strcmp(value, "true") == 0 || strcmp(value, "1") == 0 || value[0] == '\0'; /* "?probe" alone too */
}

int request_number(const struct request *request, const char *name, uint64_t otherwise, uint64_t min,
                   uint64_t max, uint64_t *ret, struct err *err)
{
    const char *text = json_str(request->query, name, NULL);
    if (!text) {
        *ret = otherwise;
        return 0;
    }
    char *end;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    if (errno || end == text || *end || text[0] < '0' || text[0] > '9' || value < min || value > max)
        return err_set(err, EINVAL, "%s must be a number from %llu to %llu", name, (unsigned long long)min,
                       (unsigned long long)max);
    *ret = value;
    return 0;
}

int body_string(const json_t *body, const char *key, const char **ret, struct err *err)
{
    const json_t *value = json_object_get(body, key);
    if (!value || json_is_null(value))
        return 0;
    if (!json_is_string(value) || strlen(json_string_value(value)) != json_string_length(value))
        return err_set(err, EINVAL, "\"%s\" must be a string", key);
    *ret = json_string_value(value);
    return 0;
}

int body_number(const json_t *body, const char *key, uint64_t min, uint64_t max, uint64_t *ret,
                struct err *err)
{
    const json_t *value = json_object_get(body, key);
    if (!value || json_is_null(value))
        return 0;
    json_int_t number = json_integer_value(value);
    if (!json_is_integer(value) || number < 0 || (uint64_t)number < min || (uint64_t)number > max)
        return err_set(err, EINVAL, "\"%s\" must be a whole number from %llu to %llu", key,
                       (unsigned long long)min, (unsigned long long)max);
    *ret = (uint64_t)number;
    return 0;
}

int body_flag(const json_t *body, const char *key, bool *ret, struct err *err)
{
    const json_t *value = json_object_get(body, key);
    if (!value)
        return 0;
    if (!json_is_boolean(value))
        return err_set(err, EINVAL, "\"%s\" must be true or false", key);
    *ret = json_is_true(value);
    return 0;
}

int body_name(const json_t *body, const char *key, const char **ret, struct err *err)
{
    const char *name = NULL;
    int r = body_string(body, key, &name, err);
    if (r < 0)
        return r;
    if (!name)
        return err_set(err, EINVAL, "\"%s\" is missing", key);
    if (!peer_name_ok(name))
        return err_set(
            err, EINVAL,
            "\"%.100s\" is not a name: letters, digits, '.', '_' and '-', the first one a letter or "
            "digit, at most 63",
            name);
    *ret = name;
    return 0;
}

int answer_json(struct answer *answer, int status, json_t *body)
{
    answer->status = status;
    answer->body = body;
    return 0;
}

int answer_ok(struct answer *answer)
{
    return answer_json(answer, 200, json_pack("{s:b}", "ok", 1));
}

int answer_operation(struct host *host, const struct id *id, struct answer *answer, struct err *err)
{
    json_t *operation = NULL;
    int r = operation_get(host->operations, id, &operation, err);
    return r < 0 ? r : answer_json(answer, 202, operation);
}
