/* SPDX-License-Identifier: Apache-2.0 */
#include "host/registry.h"

#include "base/macro.h"

#include <errno.h>
#include <string.h>

struct registry {
    const struct registry_ops *ops;
    void *backend;
};

/* A change here needs a migration in registry_sqlite.c. */
const struct registry_layout registry_layouts[REGISTRY_TABLES] = {
    [REGISTRY_META] = {"meta", "key", {{"key", REGISTRY_TEXT, true}, {"value", REGISTRY_TEXT}}},
    [REGISTRY_PEERS] = {"peers",
                        "name",
                        {{"name", REGISTRY_TEXT, true},
                         {"address", REGISTRY_TEXT},
                         {"port", REGISTRY_NUMBER},
                         {"fingerprint", REGISTRY_TEXT, true},
                         {"since", REGISTRY_TEXT}}},
    [REGISTRY_INVITES] = {"invites",
                          "hash",
                          {{"hash", REGISTRY_TEXT, true},
                           {"name", REGISTRY_TEXT},
                           {"expires_ms", REGISTRY_NUMBER},
                           {"used_ms", REGISTRY_NUMBER},
                           {"used_by", REGISTRY_TEXT}}},
    [REGISTRY_IMAGES] = {"images",
                         "name",
                         {{"hash", REGISTRY_TEXT, true},
                          {"name", REGISTRY_TEXT, true},
                          {"size", REGISTRY_NUMBER},
                          {"virtual_size", REGISTRY_NUMBER},
                          {"path", REGISTRY_TEXT},
                          {"added", REGISTRY_TEXT}}},
    [REGISTRY_VMS] = {"vms",
                      "name",
                      {{"name", REGISTRY_TEXT, true},
                       {"id", REGISTRY_TEXT, true},
                       {"desired", REGISTRY_TEXT}}},
    [REGISTRY_OPERATIONS] = {"operations",
                             "age",
                             {{"id", REGISTRY_TEXT, true},
                              {"kind", REGISTRY_TEXT},
                              {"vm", REGISTRY_TEXT},
                              {"state", REGISTRY_TEXT},
                              {"progress", REGISTRY_JSON},
                              {"result", REGISTRY_JSON},
                              {"error", REGISTRY_JSON},
                              {"started", REGISTRY_TEXT},
                              {"ended", REGISTRY_TEXT},
                              {"version", REGISTRY_NUMBER},
                              {"age", REGISTRY_NUMBER}}},
};

const struct registry_column *registry_column(enum registry_table table, const char *name)
{
    for (const struct registry_column *c = registry_layouts[table].columns; c->name; c++)
        if (strcmp(c->name, name) == 0)
            return c;
    return NULL;
}

int registry_new(const struct registry_ops *ops, void *backend, struct registry **ret, struct err *err)
{
    struct registry *registry = malloc(sizeof *registry);
    if (!registry) {
        ops->close(backend);
        return err_set(err, ENOMEM, "out of memory");
    }
    *registry = (struct registry){ops, backend};
    *ret = registry;
    return 0;
}

void registry_close(struct registry *registry)
{
    if (!registry)
        return;
    registry->ops->close(registry->backend);
    free(registry);
}

int registry_apply(struct registry *registry, const struct registry_change *changes, size_t count,
                   struct err *err)
{
    return registry->ops->apply(registry->backend, changes, count, err);
}

int registry_insert(struct registry *registry, enum registry_table table, const json_t *row, struct err *err)
{
    struct registry_change change = {.verb = REGISTRY_INSERT, .table = table, .row = row};
    return registry_apply(registry, &change, 1, err);
}

int registry_update(struct registry *registry, enum registry_table table, const char *key,
                    const json_t *members, struct err *err)
{
    struct registry_change change = {.verb = REGISTRY_UPDATE, .table = table, .key = key, .row = members};
    return registry_apply(registry, &change, 1, err);
}

int registry_remove(struct registry *registry, enum registry_table table, const char *key, struct err *err)
{
    struct registry_change change = {.verb = REGISTRY_REMOVE, .table = table, .key = key};
    return registry_apply(registry, &change, 1, err);
}

int registry_get(struct registry *registry, enum registry_table table, const char *column, const char *value,
                 json_t **ret, struct err *err)
{
    return registry->ops->get(registry->backend, table,
                              column ? column : registry_layouts[table].columns[0].name, value, ret, err);
}

int registry_list(struct registry *registry, enum registry_table table, json_t **ret_array, struct err *err)
{
    return registry->ops->list(registry->backend, table, ret_array, err);
}

int registry_event_add(struct registry *registry, const json_t *event, uint64_t *ret_id, struct err *err)
{
    return registry->ops->event_add(registry->backend, event, ret_id, err);
}

int registry_events(struct registry *registry, uint64_t after, const char *vm, size_t limit,
                    json_t **ret_array, struct err *err)
{
    return registry->ops->events(registry->backend, after, vm, limit, ret_array, err);
}
