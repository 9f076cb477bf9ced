/* SPDX-License-Identifier: Apache-2.0
 *
 * Routes, who may use them, and what handlers make of requests, without HTTP.
 */
#include "host_test.h"

#include "host/openapi.h"
#include "host/token.h"

static struct answer call(struct test_host *t, enum caller caller, const char *method, const char *path,
                          const char *body)
{
    struct request request = {.method = method, .caller = caller, .query = json_object()};
    struct answer answer = {0};
    char *query;
    snprintf(request.path, sizeof request.path, "%s", path);
    memset(request.key.bytes, 7, HASH_SIZE);
    strcpy(request.address, "192.0.2.7");
    if ((query = strchr(request.path, '?'))) {
        *query++ = '\0';
        for (char *part = strtok(query, "&"); part; part = strtok(NULL, "&")) {
            char *value = strchr(part, '=');
            *value++ = '\0';
            json_object_set_new(request.query, part, json_string(value));
        }
    }
    if (body)
        assert_non_null(request.body = json_loads(body, JSON_DECODE_ANY, NULL));
    api_handle(&t->host, &request, &answer);
    request_done(&request);
    return answer;
}

static const char *error_code(const struct answer *answer)
{
    return json_str(json_object_get(answer->body, "error"), "code", "");
}

static void expect(struct test_host *t, enum caller caller, const char *method, const char *path,
                   const char *body, int status)
{
    struct answer answer = call(t, caller, method, path, body);
    if (answer.status != status) {
        _cleanup_free_ char *text = json_dumps(answer.body, 0);
        fail_msg("%s %s: %d instead of %d: %s", method, path, answer.status, status, text ? text : "");
    }
    if (status >= 400) {
        assert_non_null(json_str(json_object_get(answer.body, "error"), "text", NULL));
        assert_string_equal(json_str(json_object_get(answer.body, "error"), "host", ""), "a");
    }
    answer_done(&answer);
}

/* --- the table and openapi.json ------------------------------------------------------------------------- */

/* "/v1/vms/{name}/start" against "/v1/vms/{}/start". */
static bool same_path(const char *documented, const char *pattern)
{
    while (*documented && *documented == *pattern) {
        if (*documented == '{')
            documented += strcspn(documented, "}") - 1, assert_int_equal(documented[1], '}');
        documented++, pattern++;
    }
    return !*documented && !*pattern;
}

static void the_routes_are_those_of_openapi(void **state)
{
    static const char *const names[] = {[ROUTE_LOCAL] = "local",
                                        [ROUTE_PEER] = "peer",
                                        [ROUTE_PEER_ONLY] = "peer-only",
                                        [ROUTE_ANYONE] = "anyone"};
    _cleanup_json_ json_t *document = json_loadb(openapi_text, openapi_size, 0, NULL);
    const char *path, *method;
    json_t *methods, *operation;
    size_t documented = 0;
    assert_non_null(document);
    json_object_foreach(json_object_get(document, "paths"), path, methods)
        json_object_foreach(methods, method, operation)
    {
        bool found = false;
        documented++;
        for (size_t i = 0; i < api_route_count; i++)
            if (same_path(path, api_routes[i].pattern) && strcasecmp(method, api_routes[i].method) == 0) {
                assert_string_equal(json_str(operation, "x-orai-who", ""), names[api_routes[i].access]);
                found = true;
            }
        if (!found)
            fail_msg("%s %s is documented and not served", method, path);
    }
    assert_int_equal(documented, api_route_count);
}

/* --- who may what --------------------------------------------------------------------------------------- */

static void strangers_may_only_join(void **state)
{
    for (size_t i = 0; i < api_route_count; i++) {
        char path[128];
        snprintf(path, sizeof path, "%s", api_routes[i].pattern);
        if (api_routes[i].access != ROUTE_ANYONE)
            expect(*state, CALLER_STRANGER, api_routes[i].method, path, NULL, 403);
    }
    expect(*state, CALLER_STRANGER, "GET", "/no/such/path", NULL, 403);
    expect(*state, CALLER_STRANGER, "POST", "/v1/join", NULL, 400);
    expect(*state, CALLER_STRANGER, "GET", "/v1/join", NULL, 404);
}

static void peers_may_not_do_what_is_local(void **state)
{
    for (size_t i = 0; i < api_route_count; i++)
        if (api_routes[i].access == ROUTE_LOCAL)
            expect(*state, CALLER_PEER, api_routes[i].method, api_routes[i].pattern, "{}", 403);
}

static void local_callers_may_not_speak_for_a_peer(void **state)
{
    expect(*state, CALLER_LOCAL, "POST", "/v1/arrivals", "{}", 403);
    expect(*state, CALLER_LOCAL, "POST", "/v1/join", "{}", 403);
}

static void peers_may_read(void **state)
{
    static const char *const paths[] = {"/v1/host",       "/v1/peers",  "/v1/images",      "/v1/vms",
                                        "/v1/operations", "/v1/events", "/v1/openapi.json"};
    for (size_t i = 0; i < ARRAY_SIZE(paths); i++)
        expect(*state, CALLER_PEER, "GET", paths[i], NULL, 200);
}

/* --- paths, queries, bodies ----------------------------------------------------------------------------- */

static void unknown_paths_and_methods_are_404(void **state)
{
    static const char *const paths[] = {"/",        "/v1",         "/v1/",           "/v2/vms",
                                        "/v1/vms/", "/v1/vms/x/y", "/v1/vms//start", "/v1/vms/x/start/"};
    for (size_t i = 0; i < ARRAY_SIZE(paths); i++)
        expect(*state, CALLER_LOCAL, "GET", paths[i], NULL, 404);
    expect(*state, CALLER_LOCAL, "PUT", "/v1/vms", "{}", 404);
    expect(*state, CALLER_LOCAL, "?", "/v1/vms", NULL, 404);
}

static void a_name_longer_than_any_is_not_found(void **state)
{
    char path[400] = "/v1/vms/";
    memset(path + strlen(path), 'x', 300);
    expect(*state, CALLER_LOCAL, "GET", path, NULL, 404);
}

static void bodies_that_are_no_objects_or_have_unknown_members_are_refused(void **state)
{
    expect(*state, CALLER_LOCAL, "POST", "/v1/images", NULL, 400);
    expect(*state, CALLER_LOCAL, "POST", "/v1/images", "[]", 400);
    expect(*state, CALLER_LOCAL, "POST", "/v1/images", "{\"name\": \"x\", \"path\": \"/x\", \"pth\": 1}",
           400);
    expect(*state, CALLER_LOCAL, "POST", "/v1/invites", "{\"ttl\": 5}", 400);
    expect(*state, CALLER_LOCAL, "POST", "/v1/invites", "{\"ttl_s\": 0}", 400);
    expect(*state, CALLER_LOCAL, "POST", "/v1/invites", "{\"ttl_s\": \"600\"}", 400);
    expect(*state, CALLER_LOCAL, "POST", "/v1/invites", "{\"name\": \"../x\"}", 400);
    expect(*state, CALLER_LOCAL, "POST", "/v1/invites", NULL, 201);
}

static void numbers_in_queries_are_checked(void **state)
{
    static const char *const bad[] = {
        "limit=0", "limit=x", "limit=-1", "limit=1x", "limit=99999999999999999999", "limit=+5"};
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        char path[128];
        snprintf(path, sizeof path, "/v1/operations?%s", bad[i]);
        expect(*state, CALLER_LOCAL, "GET", path, NULL, 400);
    }
    expect(*state, CALLER_LOCAL, "GET", "/v1/operations?limit=5", NULL, 200);
}

static void unknown_things_are_404_with_a_hint(void **state)
{
    static const char *const calls[][3] = {
        {"GET", "/v1/vms/web1", NULL},
        {"POST", "/v1/vms/web1/start", NULL},
        {"POST", "/v1/vms/web1/stop", NULL},
        {"POST", "/v1/vms/web1/kill", NULL},
        {"POST", "/v1/vms/web1/cancel", NULL},
        {"POST", "/v1/vms/web1/recover", NULL},
        {"POST", "/v1/vms/web1/move", "{\"to\": \"b\"}"},
        {"DELETE", "/v1/vms/web1", NULL},
        {"GET", "/v1/vms/web1/config", NULL},
        {"PUT", "/v1/vms/web1/config", "{}"},
        {"GET", "/v1/vms/web1/status", NULL},
        {"GET", "/v1/vms/web1/replicas", NULL},
        {"DELETE", "/v1/vms/web1/replicas/here", NULL},
        {"GET", "/v1/images/debian", NULL},
        {"DELETE", "/v1/images/debian", NULL},
        {"DELETE", "/v1/peers/b", NULL},
    };
    for (size_t i = 0; i < ARRAY_SIZE(calls); i++) {
        struct answer answer = call(*state, CALLER_LOCAL, calls[i][0], calls[i][1], calls[i][2]);
        assert_int_equal(answer.status, 404);
        assert_non_null(json_str(json_object_get(answer.body, "error"), "hint", NULL));
        answer_done(&answer);
    }
    expect(*state, CALLER_LOCAL, "GET", "/v1/operations/0123456789abcdef0123456789abcdef", NULL, 404);
    expect(*state, CALLER_LOCAL, "GET", "/v1/operations/xyz", NULL, 404);
}

/* --- joining -------------------------------------------------------------------------------------------- */

static void a_join_is_stored_with_the_key_that_asked(void **state)
{
    struct test_host *t = *state;
    struct peer peer;
    struct err err;
    char body[512];
    struct answer invite = call(t, CALLER_LOCAL, "POST", "/v1/invites", NULL);
    assert_int_equal(invite.status, 201);
    struct token token;
    assert_int_equal(token_parse(json_str(invite.body, "token", ""), &token, &err), 0);
    char secret[ID_TEXT_SIZE];
    snprintf(body, sizeof body,
             "{\"secret\": \"%s\", \"name\": \"b\", \"address\": null, \"port\": 7421, \"protocol\": "
             "{\"min\": 1, \"max\": 1}}",
             id_format(&token.secret, secret));
    expect(t, CALLER_STRANGER, "POST", "/v1/join", body, 201);
    assert_int_equal(peer_find(t->host.registry, "b", &peer, &err), 0);
    assert_string_equal(peer.address, "192.0.2.7"); /* where the connection came from */
    assert_int_equal(peer.port, 7421);
    assert_int_equal(peer.fingerprint.bytes[0], 7);
    expect(t, CALLER_STRANGER, "POST", "/v1/join", body, 410);
    answer_done(&invite);
}

static void a_join_of_another_protocol_is_refused(void **state)
{
    expect(*state, CALLER_STRANGER, "POST", "/v1/join",
           "{\"secret\": \"0123456789abcdef0123456789abcdef\", \"name\": \"b\", \"address\": null, \"port\": "
           "7421, "
           "\"protocol\": {\"min\": 98, \"max\": 99}}",
           400);
}

/* --- waiting -------------------------------------------------------------------------------------------- */

static void a_long_poll_waits_only_while_nothing_changes(void **state)
{
    struct test_host *t = *state;
    struct id id = id_random();
    struct err err;
    char path[160], text[ID_TEXT_SIZE];
    assert_int_equal(operation_begin(t->host.operations, &id, "move", "web1", &err), 0);
    snprintf(path, sizeof path, "/v1/operations/%s", id_format(&id, text));
    struct answer now = call(t, CALLER_LOCAL, "GET", path, NULL);
    assert_int_equal(now.status, 200);
    uint64_t version = json_u64(now.body, "version", 0);
    answer_done(&now);
    snprintf(path, sizeof path, "/v1/operations/%s?wait_ms=10000&since_version=%llu", text,
             (unsigned long long)version);
    struct answer waits = call(t, CALLER_LOCAL, "GET", path, NULL);
    assert_true(waits.wait);
    operation_end(t->host.operations, &id, NULL, NULL);
    struct answer ended = call(t, CALLER_LOCAL, "GET", path, NULL);
    assert_false(ended.wait);
    assert_string_equal(json_str(ended.body, "state", ""), "done");
    answer_done(&ended);
}

static void following_events_begins_after_those_that_are_answered(void **state)
{
    struct test_host *t = *state;
    event_add(t->host.events, "x", NULL, NULL);
    struct answer from_now = call(t, CALLER_LOCAL, "GET", "/v1/events?follow=true", NULL);
    assert_true(from_now.stream);
    assert_int_equal(json_array_size(from_now.body), 0);
    assert_int_equal(from_now.stream_after, events_newest(t->host.events));
    answer_done(&from_now);
    struct answer all = call(t, CALLER_LOCAL, "GET", "/v1/events?follow=true&since=0", NULL);
    assert_int_equal(json_array_size(all.body), 1);
    answer_done(&all);
    struct answer beyond = call(t, CALLER_LOCAL, "GET", "/v1/events?follow=true&since=99999", NULL);
    assert_int_equal(beyond.stream_after,
                     events_newest(t->host.events)); /* of another life of the registry */
    answer_done(&beyond);
}

static void errors_have_fitting_statuses(void **state)
{
    assert_int_equal(api_status(EINVAL), 400);
    assert_int_equal(api_status(ENOENT), 404);
    assert_int_equal(api_status(EBUSY), 409);
    assert_int_equal(api_status(ENOSPC), 507);
    assert_int_equal(api_status(EBADMSG), 500);
    struct answer answer = call(*state, CALLER_LOCAL, "GET", "/v1/vms/web1", NULL);
    assert_string_equal(error_code(&answer), "ENOENT");
    answer_done(&answer);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_routes_are_those_of_openapi),
        HOST_TEST(strangers_may_only_join),
        HOST_TEST(peers_may_not_do_what_is_local),
        HOST_TEST(local_callers_may_not_speak_for_a_peer),
        HOST_TEST(peers_may_read),
        HOST_TEST(unknown_paths_and_methods_are_404),
        HOST_TEST(a_name_longer_than_any_is_not_found),
        HOST_TEST(bodies_that_are_no_objects_or_have_unknown_members_are_refused),
        HOST_TEST(numbers_in_queries_are_checked),
        HOST_TEST(unknown_things_are_404_with_a_hint),
        HOST_TEST(a_join_is_stored_with_the_key_that_asked),
        HOST_TEST(a_join_of_another_protocol_is_refused),
        HOST_TEST(a_long_poll_waits_only_while_nothing_changes),
        HOST_TEST(following_events_begins_after_those_that_are_answered),
        HOST_TEST(errors_have_fitting_statuses),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
