/* SPDX-License-Identifier: Apache-2.0
 *
 * api: the REST interface without its transport: a request as a struct, an answer as a struct, and one table
 * of routes that says which handler, and who may call it. openapi.json describes the same for clients; a test
 * holds both together.
 *
 * Threads: api_handle runs on the request pool's threads; handlers may block, within deadlines.
 */
#pragma once

#include "base/err.h"
#include "host/host.h"
#include "host/peer.h"

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define API_MAX_BODY (1U << 20)
#define API_MAX_STRANGE_BODY (16U << 10) /* of who is no peer, and may at most join */
#define API_PATH_SIZE 512

enum caller {
    CALLER_STRANGER, /* proved a key that no peer has */
    CALLER_PEER,
    CALLER_LOCAL, /* the unix socket */
};

/* In whose name files are opened for a local caller (caller.h). */
struct credentials {
    pid_t pid;
    uid_t uid;
    gid_t gid;
};

struct request {
    const char *method; /* "GET" */
    char path[API_PATH_SIZE];
    json_t *query; /* {"name": "value"} */
    json_t *body;  /* NULL when there was none */
    enum caller caller;
    struct fingerprint key;                        /* not CALLER_LOCAL */
    struct peer peer;                              /* CALLER_PEER */
    char address[64];                              /* where the connection comes from; not CALLER_LOCAL */
    struct credentials credentials;                /* CALLER_LOCAL */
    char args[2][PEER_NAME_SIZE + HASH_TEXT_SIZE]; /* what stood for {} in the path */
};

struct answer {
    int status;       /* HTTP */
    json_t *body;     /* owned */
    const char *text; /* instead of body: a literal, application/json */
    size_t text_size;

    /* Ask again once the operation changes, or at the deadline. */
    bool wait;
    struct id wait_operation;
    uint64_t wait_since;
    int64_t wait_until; /* clock_now(); 0 = not yet set (first try) */

    /* `body` is an array: its members are sent as lines, then events after `stream_after`, without end. */
    bool stream;
    uint64_t stream_after;
    char stream_vm[PEER_NAME_SIZE]; /* "" = all */
};

typedef int handler_fn(struct host *host, struct request *request, struct answer *ret, struct err *err);

enum route_access { ROUTE_LOCAL, ROUTE_PEER, ROUTE_PEER_ONLY, ROUTE_ANYONE };

struct route {
    const char *method;
    const char *pattern; /* "/v1/vms/{}/start" */
    enum route_access access;
    handler_fn *handler;
};

extern const struct route api_routes[];
extern const size_t api_route_count;

/* Fills `ret` in any case; ret->wait_until says whether this is a repeated try (see answer). */
void api_handle(struct host *host, struct request *request, struct answer *ret);
/* The answer for an error that came before any handler. */
void api_fail(struct host *host, const struct err *err, struct answer *ret);
void answer_done(struct answer *answer);
void request_done(struct request *request);

/* HTTP status for an errno. */
int api_status(int code);

/* --- for handlers --- */
/* Refuses members that are not listed (NULL at the end), and a missing or non-object body unless `optional`.
 */
int request_body(const struct request *request, bool optional, const char *const *members, struct err *err);
bool request_flag(const struct request *request, const char *name);
/* -EINVAL when it is there and no number in [min, max]. */
int request_number(const struct request *request, const char *name, uint64_t otherwise, uint64_t min,
                   uint64_t max, uint64_t *ret, struct err *err);
/* Members of the body; missing ones leave *ret as it is. -EINVAL for another type or range. */
int body_string(const json_t *body, const char *key, const char **ret, struct err *err);
int body_number(const json_t *body, const char *key, uint64_t min, uint64_t max, uint64_t *ret,
                struct err *err);
int body_flag(const json_t *body, const char *key, bool *ret, struct err *err);
/* A name for a host, VM or image; must be there. */
int body_name(const json_t *body, const char *key, const char **ret, struct err *err);
/* 0; body is consumed. */
int answer_json(struct answer *answer, int status, json_t *body);
int answer_ok(struct answer *answer);
/* 202 with the operation. */
int answer_operation(struct host *host, const struct id *id, struct answer *answer, struct err *err);

handler_fn api_openapi, api_host;
handler_fn api_invite, api_peers, api_peer_join, api_peer_remove, api_join;
handler_fn api_images, api_image, api_image_add, api_image_remove;
handler_fn api_vms, api_vm, api_vm_create, api_vm_remove, api_vm_config, api_vm_config_put, api_vm_start,
    api_vm_stop, api_vm_kill;
handler_fn api_vm_refresh, api_vm_move, api_vm_status, api_vm_cancel, api_vm_recover, api_arrive,
    api_arrival_cancel;
handler_fn api_vm_verify, api_vm_copy, api_vm_hashes, api_vm_share;
handler_fn api_replicas, api_replica_drop;
/* Once, before the keeper: what an oraid before us had begun goes on. */
int refreshes_take_over(struct host *host, struct err *err);
handler_fn api_operations, api_operation, api_events;
