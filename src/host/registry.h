/* SPDX-License-Identifier: Apache-2.0
 *
 * registry: what oraid must still know after its own death: peers, invites, images, VMs, operations, events.
 *
 * Rows are JSON objects with exactly the members of their table (registry.c), so that a back end needs to
 * know tables as data only. All changes go through registry_apply: a list of changes that happens wholly or
 * not at all, each guarded by what must hold before; that is SQLite's transaction and etcd's Txn alike. The
 * files below STATE/vms are the truth about VMs; the registry only adds what oraid wants of them.
 *
 * Threads: every function may be called from any thread. A change is durable when the call returns.
 */
#pragma once

#include "base/err.h"

#include <jansson.h>
#include <stddef.h>
#include <stdint.h>

enum registry_table {
    REGISTRY_META,       /* key, value */
    REGISTRY_PEERS,      /* name, address, port, fingerprint, since */
    REGISTRY_INVITES,    /* hash (of the secret), name, expires_ms, used_ms (0 = not), used_by */
    REGISTRY_IMAGES,     /* hash, name, size, virtual_size, path, added */
    REGISTRY_VMS,        /* name, id, desired */
    REGISTRY_OPERATIONS, /* id, kind, vm, state, progress, result, error, started, ended, version, age */
    REGISTRY_TABLES
};

#define REGISTRY_MAX_EVENTS 10000 /* older ones are dropped */

enum registry_verb { REGISTRY_INSERT, REGISTRY_UPDATE, REGISTRY_REMOVE };

struct registry_change {
    enum registry_verb verb;
    enum registry_table table;
    const char *key;       /* value of the first column; INSERT takes it from the row */
    const json_t *row;     /* INSERT: every member; UPDATE: the members to change */
    const json_t *only_if; /* UPDATE, REMOVE: members that must be equal to these; may be NULL */
};

struct registry_ops {
    int (*apply)(void *backend, const struct registry_change *changes, size_t count, struct err *err);
    int (*get)(void *backend, enum registry_table table, const char *column, const char *value, json_t **ret,
               struct err *err);
    int (*list)(void *backend, enum registry_table table, json_t **ret, struct err *err);
    int (*event_add)(void *backend, const json_t *event, uint64_t *ret_id, struct err *err);
    int (*events)(void *backend, uint64_t after, const char *vm, size_t limit, json_t **ret, struct err *err);
    void (*close)(void *backend);
};

struct registry;

/* SQLite at `path`; makes the tables or brings older ones up to date. A newer program's file is -ENOTSUP. */
int registry_open_sqlite(const char *path, struct registry **ret, struct err *err);
/* `backend` belongs to the registry from here on, on failure too. */
int registry_new(const struct registry_ops *ops, void *backend, struct registry **ret, struct err *err);
void registry_close(struct registry *registry);

/* All or nothing, in order. -EEXIST: an INSERT (or UPDATE) meets a row that has one of its unique members;
 * -ENOENT: no such row; -ESTALE: `only_if` does not hold. */
int registry_apply(struct registry *registry, const struct registry_change *changes, size_t count,
                   struct err *err);
/* One change. */
int registry_insert(struct registry *registry, enum registry_table table, const json_t *row, struct err *err);
int registry_update(struct registry *registry, enum registry_table table, const char *key,
                    const json_t *members, struct err *err);
int registry_remove(struct registry *registry, enum registry_table table, const char *key, struct err *err);

/* The row whose `column` is `value` (NULL: the key column). -ENOENT when there is none. */
int registry_get(struct registry *registry, enum registry_table table, const char *column, const char *value,
                 json_t **ret, struct err *err);
/* All rows, by key; operations oldest first. */
int registry_list(struct registry *registry, enum registry_table table, json_t **ret_array, struct err *err);

/* Stores {"time", "type", "vm", "data"} under the next id (they grow by one and are never used again). */
int registry_event_add(struct registry *registry, const json_t *event, uint64_t *ret_id, struct err *err);
/* Events with ids above `after`, oldest first: the newest `limit` of them, of `vm` only unless NULL. */
int registry_events(struct registry *registry, uint64_t after, const char *vm, size_t limit,
                    json_t **ret_array, struct err *err);

/* The tables as data, for back ends. */
struct registry_column {
    const char *name;
    enum { REGISTRY_TEXT, REGISTRY_NUMBER, REGISTRY_JSON } type; /* each may be null */
    bool unique;
};
struct registry_layout {
    const char *name;
    const char *order;                  /* column that lists go by */
    struct registry_column columns[12]; /* the first is the key; ends with name NULL */
};
extern const struct registry_layout registry_layouts[REGISTRY_TABLES];
const struct registry_column *registry_column(enum registry_table table, const char *name);
