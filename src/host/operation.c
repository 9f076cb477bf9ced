/* SPDX-License-Identifier: Apache-2.0 */
#include "host/operation.h"

#include "base/clock.h"
#include "base/json.h"
#include "base/log.h"
#include "base/macro.h"
#include "host/text.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#define UNSTORED 1000 /* versions */

struct operations {
    pthread_mutex_t lock; /* then the registry's */
    struct registry *registry;
    struct events *events;
    void (*wake)(void *arg);
    void *arg;
    json_t *running; /* id -> row, as in the registry, with the newest progress */
    uint64_t newest_version;
};

/* Grows across restarts too: never below the time, nor, for those that come within a millisecond, below what
 * progress, which is not stored, may have had. */
static json_t *next_version(struct operations *operations)
{
    operations->newest_version = MAX(operations->newest_version + 1, (uint64_t)clock_wall_ms());
    return json_integer((json_int_t)operations->newest_version);
}

static json_t *public_json(const json_t *row)
{
    json_t *json = json_deep_copy(row);
    json_object_del(json, "age");
    json_object_del(json, "cancel");
    return json;
}

/* Locked. */
static json_t *ending(struct operations *operations, json_t *result, const struct err *err)
{
    char now[TIME_TEXT];
    const char *state = !err ? "done" : err->code == ECANCELED ? "cancelled" : "failed";
    return json_pack("{s:s, s:o?, s:o?, s:s, s:o}", "state", state, "result", result, "error",
                     err ? err_to_json(err) : NULL, "ended", time_text(now), "version",
                     next_version(operations));
}

static int drop_old(struct registry *registry, const json_t *rows, struct err *err)
{
    size_t count = json_array_size(rows);
    int r = 0;
    for (size_t i = 0; r == 0 && i + OPERATIONS_KEPT < count; i++) {
        const json_t *row = json_array_get(rows, i);
        if (strcmp(json_str(row, "state", ""), "running") != 0)
            r = registry_remove(registry, REGISTRY_OPERATIONS, json_str(row, "id", ""), err);
    }
    return r;
}

static int fail_orphan(struct operations *operations, const json_t *row, struct err *err)
{
    struct err why;
    err_set(&why, EOWNERDEAD, "oraid ended while this was under way; nothing of it is left");
    err_hint(&why, "give the command again");
    _cleanup_json_ json_t *members = ending(operations, NULL, &why);
    return registry_update(operations->registry, REGISTRY_OPERATIONS, json_str(row, "id", ""), members, err);
}

/* orai-vm goes on with it. */
static bool outlives_us(const char *kind)
{
    return strcmp(kind, "move") == 0 || strcmp(kind, "refresh") == 0;
}

static int take_over(struct operations *operations, struct err *err)
{
    _cleanup_json_ json_t *rows = NULL;
    size_t index;
    json_t *row;
    int r = registry_list(operations->registry, REGISTRY_OPERATIONS, &rows, err);
    json_array_foreach(rows, index, row)
    {
        operations->newest_version = MAX(operations->newest_version, json_u64(row, "version", 0) + UNSTORED);
        if (r < 0 || strcmp(json_str(row, "state", ""), "running") != 0)
            continue;
        if (outlives_us(json_str(row, "kind", "")))
            json_object_set(operations->running, json_str(row, "id", ""), row);
        else
            r = fail_orphan(operations, row, err);
    }
    return r < 0 ? r : drop_old(operations->registry, rows, err);
}

int operations_new(struct registry *registry, struct events *events, void (*wake)(void *arg), void *arg,
                   struct operations **ret, struct err *err)
{
    struct operations *operations = calloc(1, sizeof *operations);
    if (!operations)
        return err_set(err, ENOMEM, "out of memory");
    pthread_mutex_init(&operations->lock, NULL);
    operations->registry = registry;
    operations->events = events;
    operations->wake = wake;
    operations->arg = arg;
    operations->running = json_object();
    int r = take_over(operations, err);
    if (r < 0) {
        operations_free(operations);
        return r;
    }
    *ret = operations;
    return 0;
}

void operations_free(struct operations *operations)
{
    if (!operations)
        return;
    json_decref(operations->running);
    pthread_mutex_destroy(&operations->lock);
    free(operations);
}

int operation_begin(struct operations *operations, const struct id *id, const char *kind, const char *subject,
                    struct err *err)
{
    return operation_begin_with(operations, id, kind, subject, NULL, err);
}

int operation_begin_with(struct operations *operations, const struct id *id, const char *kind,
                         const char *subject, json_t *progress, struct err *err)
{
    char text[ID_TEXT_SIZE], now[TIME_TEXT];
    pthread_mutex_lock(&operations->lock);
    json_t *version = next_version(operations);
    _cleanup_json_ json_t *row =
        json_pack("{s:s, s:s, s:s, s:s, s:o?, s:n, s:n, s:s, s:n, s:O, s:o}", "id", id_format(id, text),
                  "kind", kind, "vm", subject, "state", "running", "progress", progress, "result", "error",
                  "started", time_text(now), "ended", "version", version, "age", version);
    int r = row ? registry_insert(operations->registry, REGISTRY_OPERATIONS, row, err)
                : err_set(err, ENOMEM, "out of memory");
    if (r == 0)
        json_object_set(operations->running, text, row);
    pthread_mutex_unlock(&operations->lock);
    if (r < 0)
        return r;
    event_add(operations->events, "operation.started", subject,
              json_pack("{s:s, s:s}", "operation", text, "kind", kind));
    operations->wake(operations->arg);
    return 0;
}

void operation_progress(struct operations *operations, const struct id *id, json_t *progress)
{
    char text[ID_TEXT_SIZE];
    pthread_mutex_lock(&operations->lock);
    json_t *row = json_object_get(operations->running, id_format(id, text));
    if (row && !json_equal(progress, json_object_get(row, "progress"))) {
        json_object_set(row, "progress", progress);
        json_object_set_new(row, "version", next_version(operations));
    }
    pthread_mutex_unlock(&operations->lock);
    json_decref(progress);
    operations->wake(operations->arg);
}

/* The registry's refusal (a full disk) does not keep the operation from ending: it is shown until oraid ends.
 */
static void store_end(struct operations *operations, const char *id, json_t *row, json_t *members)
{
    struct err err;
    json_object_set(members, "progress", json_object_get(row, "progress"));
    if (registry_update(operations->registry, REGISTRY_OPERATIONS, id, members, &err) < 0) {
        log_error("the end of operation %s is not kept: %s", id, err.text);
        json_object_update(row, members);
        return;
    }
    json_object_del(operations->running, id);
}

void operation_end(struct operations *operations, const struct id *id, json_t *result, const struct err *err)
{
    char text[ID_TEXT_SIZE], kind[32] = "", subject[128] = "";
    pthread_mutex_lock(&operations->lock);
    json_t *row = json_object_get(operations->running, id_format(id, text));
    if (!row || strcmp(json_str(row, "state", ""), "running") != 0) {
        pthread_mutex_unlock(&operations->lock);
        json_decref(result);
        return;
    }
    snprintf(kind, sizeof kind, "%s", json_str(row, "kind", ""));
    snprintf(subject, sizeof subject, "%s", json_str(row, "vm", ""));
    json_t *members = ending(operations, result, err);
    json_t *event = json_pack("{s:s, s:s, s:o, s:o}", "operation", text, "kind", kind, "state",
                              json_deep_copy(json_object_get(members, "state")), "error",
                              json_deep_copy(json_object_get(members, "error")));
    store_end(operations, text, row, members);
    json_decref(members);
    pthread_mutex_unlock(&operations->lock);
    event_add(operations->events, "operation.ended", subject, event);
    operations->wake(operations->arg);
}

bool operation_cancel(struct operations *operations, const char *kind, const char *subject)
{
    bool found = false;
    const char *id;
    json_t *row;
    pthread_mutex_lock(&operations->lock);
    json_object_foreach(operations->running, id, row)
    {
        if (strcmp(json_str(row, "kind", ""), kind) != 0 || strcmp(json_str(row, "vm", ""), subject) != 0)
            continue;
        json_object_set_new(row, "cancel", json_true());
        found = true;
    }
    pthread_mutex_unlock(&operations->lock);
    return found;
}

bool operation_cancelled(struct operations *operations, const struct id *id)
{
    char text[ID_TEXT_SIZE];
    pthread_mutex_lock(&operations->lock);
    bool cancelled = json_bool(json_object_get(operations->running, id_format(id, text)), "cancel", false);
    pthread_mutex_unlock(&operations->lock);
    return cancelled;
}

/* Locked: references to rows are counted under the lock only. */
static int get(struct operations *operations, const char *id, json_t **ret, struct err *err)
{
    _cleanup_json_ json_t *row = json_incref(json_object_get(operations->running, id));
    int r = row ? 0 : registry_get(operations->registry, REGISTRY_OPERATIONS, NULL, id, &row, err);
    if (r == 0)
        *ret = public_json(row);
    return r;
}

int operation_get(struct operations *operations, const struct id *id, json_t **ret, struct err *err)
{
    char text[ID_TEXT_SIZE];
    pthread_mutex_lock(&operations->lock);
    int r = get(operations, id_format(id, text), ret, err);
    pthread_mutex_unlock(&operations->lock);
    return r == -ENOENT ? err_set(err, ENOENT, "there is no operation %s", text) : r;
}

int operation_list(struct operations *operations, const char *subject, size_t limit, json_t **ret_array,
                   struct err *err)
{
    _cleanup_json_ json_t *rows = NULL;
    _cleanup_json_ json_t *list = json_array();
    pthread_mutex_lock(&operations->lock);
    int r = registry_list(operations->registry, REGISTRY_OPERATIONS, &rows, err);
    for (size_t i = json_array_size(rows); r == 0 && i-- > 0 && json_array_size(list) < limit;) {
        const json_t *row = json_array_get(rows, i);
        const json_t *newer = json_object_get(operations->running, json_str(row, "id", ""));
        if (!subject || strcmp(json_str(row, "vm", ""), subject) == 0)
            json_array_append_new(list, public_json(newer ? newer : row));
    }
    pthread_mutex_unlock(&operations->lock);
    if (r < 0)
        return r;
    *ret_array = TAKE_PTR(list);
    return 0;
}

bool operation_changed(struct operations *operations, const struct id *id, uint64_t since)
{
    char text[ID_TEXT_SIZE];
    pthread_mutex_lock(&operations->lock);
    const json_t *row = json_object_get(operations->running, id_format(id, text));
    bool changed =
        !row || json_u64(row, "version", 0) > since || strcmp(json_str(row, "state", ""), "running") != 0;
    pthread_mutex_unlock(&operations->lock);
    return changed;
}

int operation_newest(struct operations *operations, const char *kind, const char *subject, json_t **ret,
                     struct err *err)
{
    _cleanup_json_ json_t *list = NULL;
    size_t index;
    json_t *operation;
    int r = operation_list(operations, subject, OPERATIONS_KEPT, &list, err);
    if (r < 0)
        return r;
    *ret = NULL;
    json_array_foreach(list, index, operation) if (!*ret && strcmp(json_str(operation, "kind", ""), kind) ==
                                                                0) *ret = json_incref(operation);
    return 0;
}
