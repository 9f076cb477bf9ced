/* SPDX-License-Identifier: Apache-2.0
 *
 * The registry in one SQLite file: WAL with synchronous=FULL, so a change is on disk when the call returns
 * and a kill or power cut leaves whole transactions only. One connection behind one mutex: calls are short,
 * and oraid makes few of them. `user_version` counts the migrations that a file has been through.
 */
#include "base/macro.h"
#include "host/registry.h"

#include <errno.h>
#include <pthread.h>
#include <sqlite3.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

struct sqlite {
    pthread_mutex_t lock; /* innermost: nothing else is locked while it is held */
    sqlite3 *db;
    unsigned events_since_prune;
};

/* Migration n brings a file of user_version n to n + 1; never edited once released. */
static const char *const migrations[] = {
    "CREATE TABLE meta(key TEXT PRIMARY KEY, value TEXT) STRICT;"
    "CREATE TABLE peers(name TEXT PRIMARY KEY, address TEXT NOT NULL, port INTEGER NOT NULL,"
    " fingerprint TEXT NOT NULL UNIQUE, since TEXT NOT NULL) STRICT;"
    "CREATE TABLE invites(hash TEXT PRIMARY KEY, name TEXT, expires_ms INTEGER NOT NULL,"
    " used_ms INTEGER NOT NULL, used_by TEXT) STRICT;"
    "CREATE TABLE images(hash TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, size INTEGER NOT NULL,"
    " virtual_size INTEGER NOT NULL, path TEXT NOT NULL, added TEXT NOT NULL) STRICT;"
    "CREATE TABLE vms(name TEXT PRIMARY KEY, id TEXT NOT NULL UNIQUE, desired TEXT NOT NULL) STRICT;"
    "CREATE TABLE operations(id TEXT PRIMARY KEY, kind TEXT NOT NULL, vm TEXT, state TEXT NOT NULL, progress "
    "TEXT,"
    " result TEXT, error TEXT, started TEXT NOT NULL, ended TEXT, version INTEGER NOT NULL, age INTEGER NOT "
    "NULL) STRICT;"
    "CREATE TABLE events(id INTEGER PRIMARY KEY AUTOINCREMENT, time TEXT NOT NULL, type TEXT NOT NULL, vm "
    "TEXT,"
    " data TEXT NOT NULL) STRICT;",
};

static int failed(struct sqlite *s, const char *what, struct err *err)
{
    switch (sqlite3_errcode(s->db)) {
    case SQLITE_FULL:
        return err_set(err, ENOSPC, "registry: cannot %s: no space left on the device", what);
    case SQLITE_CONSTRAINT:
        return err_set(err, EEXIST, "registry: cannot %s: %s", what, sqlite3_errmsg(s->db));
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB:
        return err_set(err, EBADMSG, "registry: cannot %s: %s", what, sqlite3_errmsg(s->db));
    default:
        return err_set(err, EIO, "registry: cannot %s: %s", what, sqlite3_errmsg(s->db));
    }
}

static int execute(struct sqlite *s, const char *sql, struct err *err)
{
    return sqlite3_exec(s->db, sql, NULL, NULL, NULL) == SQLITE_OK ? 0 : failed(s, "run a statement", err);
}

static void finalize_cleanup(sqlite3_stmt **statement)
{
    sqlite3_finalize(*statement);
}

static void unlock_cleanup(pthread_mutex_t **lock)
{
    pthread_mutex_unlock(*lock);
}

static pthread_mutex_t *lock(struct sqlite *s)
{
    pthread_mutex_lock(&s->lock);
    return &s->lock;
}

#define LOCKED(s) _cleanup_(unlock_cleanup) pthread_mutex_t *locked_ __attribute__((unused)) = lock(s)

static int prepare(struct sqlite *s, const char *sql, sqlite3_stmt **ret, struct err *err)
{
    return sqlite3_prepare_v2(s->db, sql, -1, ret, NULL) == SQLITE_OK ? 0
                                                                      : failed(s, "prepare a statement", err);
}

static int bind(struct sqlite *s, sqlite3_stmt *statement, int at, const json_t *value, struct err *err)
{
    int r;
    if (!value || json_is_null(value)) {
        r = sqlite3_bind_null(statement, at);
    } else if (json_is_string(value)) {
        r = sqlite3_bind_text(statement, at, json_string_value(value), -1, SQLITE_TRANSIENT);
    } else if (json_is_integer(value)) {
        r = sqlite3_bind_int64(statement, at, json_integer_value(value));
    } else {
        _cleanup_free_ char *text = json_dumps(value, JSON_COMPACT | JSON_ENCODE_ANY);
        r = text ? sqlite3_bind_text(statement, at, text, -1, SQLITE_TRANSIENT) : SQLITE_NOMEM;
    }
    return r == SQLITE_OK ? 0 : failed(s, "bind a value", err);
}

static json_t *column_value(sqlite3_stmt *statement, int at, const struct registry_column *column)
{
    if (sqlite3_column_type(statement, at) == SQLITE_NULL)
        return json_null();
    if (column->type == REGISTRY_NUMBER)
        return json_integer(sqlite3_column_int64(statement, at));
    const char *text = (const char *)sqlite3_column_text(statement, at);
    json_t *value = column->type == REGISTRY_JSON ? json_loads(text ? text : "", JSON_DECODE_ANY, NULL)
                                                  : json_string(text);
    return value ? value : json_null();
}

/* "a, b, c" of a table's columns. */
static void column_list(enum registry_table table, char *text, size_t size)
{
    size_t used = 0;
    for (const struct registry_column *c = registry_layouts[table].columns; c->name; c++)
        used += (size_t)snprintf(text + used, size - used, "%s%s", used ? ", " : "", c->name);
}

static json_t *row(sqlite3_stmt *statement, enum registry_table table)
{
    json_t *object = json_object();
    int at = 0;
    for (const struct registry_column *c = registry_layouts[table].columns; c->name; c++, at++)
        json_object_set_new(object, c->name, column_value(statement, at, c));
    return object;
}

static int insert(struct sqlite *s, const struct registry_change *change, struct err *err)
{
    const struct registry_layout *layout = &registry_layouts[change->table];
    _cleanup_(finalize_cleanup) sqlite3_stmt *statement = NULL;
    char columns[256], sql[512];
    column_list(change->table, columns, sizeof columns);
    int used = snprintf(sql, sizeof sql, "INSERT INTO %s(%s) VALUES(?", layout->name, columns);
    for (const struct registry_column *c = layout->columns + 1; c->name; c++)
        used += snprintf(sql + used, sizeof sql - (size_t)used, ",?");
    snprintf(sql + used, sizeof sql - (size_t)used, ")");
    int r = prepare(s, sql, &statement, err), at = 1;
    for (const struct registry_column *c = layout->columns; r == 0 && c->name; c++)
        r = bind(s, statement, at++, json_object_get(change->row, c->name), err);
    if (r == 0 && sqlite3_step(statement) != SQLITE_DONE)
        r = failed(s, "insert a row", err);
    return r;
}

static int get_locked(struct sqlite *s, enum registry_table table, const char *column, const char *value,
                      json_t **ret, struct err *err)
{
    _cleanup_(finalize_cleanup) sqlite3_stmt *statement = NULL;
    char columns[256], sql[512];
    column_list(table, columns, sizeof columns);
    snprintf(sql, sizeof sql, "SELECT %s FROM %s WHERE %s = ?", columns, registry_layouts[table].name,
             column);
    int r = prepare(s, sql, &statement, err);
    if (r < 0)
        return r;
    sqlite3_bind_text(statement, 1, value, -1, SQLITE_TRANSIENT);
    switch (sqlite3_step(statement)) {
    case SQLITE_ROW:
        *ret = row(statement, table);
        return 0;
    case SQLITE_DONE:
        return err_set(err, ENOENT, "registry: no \"%s\" in %s", value, registry_layouts[table].name);
    default:
        return failed(s, "read a row", err);
    }
}

static int guard(struct sqlite *s, const struct registry_change *change, struct err *err)
{
    _cleanup_json_ json_t *old = NULL;
    const char *key;
    json_t *value;
    int r =
        get_locked(s, change->table, registry_layouts[change->table].columns[0].name, change->key, &old, err);
    if (r < 0)
        return r;
    json_object_foreach(
        (json_t *)change->only_if, key,
        value) if (!json_equal(value,
                               json_object_get(
                                   old, key))) return err_set(err, ESTALE,
                                                              "registry: \"%s\" in %s has changed meanwhile",
                                                              change->key,
                                                              registry_layouts[change->table].name);
    return 0;
}

static int update(struct sqlite *s, const struct registry_change *change, struct err *err)
{
    const struct registry_layout *layout = &registry_layouts[change->table];
    _cleanup_(finalize_cleanup) sqlite3_stmt *statement = NULL;
    const char *key;
    json_t *value;
    char sql[512];
    int used = snprintf(sql, sizeof sql, "UPDATE %s SET ", layout->name), at = 1;
    json_object_foreach((json_t *)change->row, key, value)
    {
        assert(registry_column(change->table, key));
        used += snprintf(sql + used, sizeof sql - (size_t)used, "%s%s = ?", at++ == 1 ? "" : ", ", key);
    }
    snprintf(sql + used, sizeof sql - (size_t)used, " WHERE %s = ?", layout->columns[0].name);
    int r = prepare(s, sql, &statement, err);
    at = 1;
    json_object_foreach((json_t *)change->row, key, value) if (r == 0) r =
        bind(s, statement, at++, value, err);
    if (r < 0)
        return r;
    sqlite3_bind_text(statement, at, change->key, -1, SQLITE_TRANSIENT);
    return sqlite3_step(statement) == SQLITE_DONE ? 0 : failed(s, "update a row", err);
}

static int erase(struct sqlite *s, const struct registry_change *change, struct err *err)
{
    const struct registry_layout *layout = &registry_layouts[change->table];
    _cleanup_(finalize_cleanup) sqlite3_stmt *statement = NULL;
    char sql[128];
    snprintf(sql, sizeof sql, "DELETE FROM %s WHERE %s = ?", layout->name, layout->columns[0].name);
    int r = prepare(s, sql, &statement, err);
    if (r < 0)
        return r;
    sqlite3_bind_text(statement, 1, change->key, -1, SQLITE_TRANSIENT);
    return sqlite3_step(statement) == SQLITE_DONE ? 0 : failed(s, "remove a row", err);
}

static int change_one(struct sqlite *s, const struct registry_change *change, struct err *err)
{
    if (change->verb == REGISTRY_INSERT)
        return insert(s, change, err);
    int r = guard(s, change, err);
    if (r < 0)
        return r;
    return change->verb == REGISTRY_UPDATE ? update(s, change, err) : erase(s, change, err);
}

static int sqlite_apply(void *backend, const struct registry_change *changes, size_t count, struct err *err)
{
    struct sqlite *s = backend;
    LOCKED(s);
    int r = execute(s, "BEGIN IMMEDIATE", err);
    if (r < 0)
        return r;
    for (size_t i = 0; r == 0 && i < count; i++)
        r = change_one(s, &changes[i], err);
    if (r == 0)
        r = execute(s, "COMMIT", err);
    if (r < 0)
        sqlite3_exec(s->db, "ROLLBACK", NULL, NULL, NULL);
    return r;
}

static int sqlite_get(void *backend, enum registry_table table, const char *column, const char *value,
                      json_t **ret, struct err *err)
{
    struct sqlite *s = backend;
    LOCKED(s);
    return get_locked(s, table, column, value, ret, err);
}

static int sqlite_list(void *backend, enum registry_table table, json_t **ret, struct err *err)
{
    struct sqlite *s = backend;
    _cleanup_(finalize_cleanup) sqlite3_stmt *statement = NULL;
    _cleanup_json_ json_t *rows = json_array();
    char columns[256], sql[512];
    column_list(table, columns, sizeof columns);
    snprintf(sql, sizeof sql, "SELECT %s FROM %s ORDER BY %s", columns, registry_layouts[table].name,
             registry_layouts[table].order);
    LOCKED(s);
    int r = prepare(s, sql, &statement, err);
    if (r < 0)
        return r;
    while ((r = sqlite3_step(statement)) == SQLITE_ROW)
        json_array_append_new(rows, row(statement, table));
    if (r != SQLITE_DONE)
        return failed(s, "list rows", err);
    *ret = TAKE_PTR(rows);
    return 0;
}

/* Not at every event: a few more than the limit do no harm. */
static void prune(struct sqlite *s)
{
    char sql[128];
    if (s->events_since_prune++ % 256 != 0)
        return;
    snprintf(sql, sizeof sql, "DELETE FROM events WHERE id <= (SELECT max(id) FROM events) - %d",
             REGISTRY_MAX_EVENTS);
    sqlite3_exec(s->db, sql, NULL, NULL, NULL);
}

static int sqlite_event_add(void *backend, const json_t *event, uint64_t *ret_id, struct err *err)
{
    static const char *const members[] = {"time", "type", "vm", "data"};
    struct sqlite *s = backend;
    _cleanup_(finalize_cleanup) sqlite3_stmt *statement = NULL;
    LOCKED(s);
    int r = prepare(s, "INSERT INTO events(time, type, vm, data) VALUES(?,?,?,?)", &statement, err);
    for (size_t i = 0; r == 0 && i < ARRAY_SIZE(members); i++)
        r = bind(s, statement, (int)i + 1, json_object_get(event, members[i]), err);
    if (r == 0 && sqlite3_step(statement) != SQLITE_DONE)
        r = failed(s, "store an event", err);
    if (r < 0)
        return r;
    *ret_id = (uint64_t)sqlite3_last_insert_rowid(s->db);
    prune(s);
    return 0;
}

static int sqlite_events(void *backend, uint64_t after, const char *vm, size_t limit, json_t **ret,
                         struct err *err)
{
    static const struct registry_column columns[] = {{"id", REGISTRY_NUMBER},
                                                     {"time", REGISTRY_TEXT},
                                                     {"type", REGISTRY_TEXT},
                                                     {"vm", REGISTRY_TEXT},
                                                     {"data", REGISTRY_JSON}};
    struct sqlite *s = backend;
    _cleanup_(finalize_cleanup) sqlite3_stmt *statement = NULL;
    _cleanup_json_ json_t *events = json_array();
    LOCKED(s);
    int r = prepare(
        s,
        "SELECT * FROM (SELECT id, time, type, vm, data FROM events WHERE id > ?1 AND (?2 IS NULL OR vm = ?2)"
        " ORDER BY id DESC LIMIT ?3) ORDER BY id",
        &statement, err);
    if (r < 0)
        return r;
    sqlite3_bind_int64(statement, 1, (sqlite3_int64)MIN(after, (uint64_t)INT64_MAX));
    if (vm)
        sqlite3_bind_text(statement, 2, vm, -1, SQLITE_TRANSIENT);
    sqlite3_bind_int64(statement, 3, (sqlite3_int64)limit);
    while ((r = sqlite3_step(statement)) == SQLITE_ROW) {
        json_t *event = json_object();
        for (size_t i = 0; i < ARRAY_SIZE(columns); i++)
            json_object_set_new(event, columns[i].name, column_value(statement, (int)i, &columns[i]));
        json_array_append_new(events, event);
    }
    if (r != SQLITE_DONE)
        return failed(s, "read events", err);
    *ret = TAKE_PTR(events);
    return 0;
}

static void sqlite_close(void *backend)
{
    struct sqlite *s = backend;
    if (!s)
        return;
    sqlite3_close(s->db);
    pthread_mutex_destroy(&s->lock);
    free(s);
}

static const struct registry_ops sqlite_ops = {
    .apply = sqlite_apply,
    .get = sqlite_get,
    .list = sqlite_list,
    .event_add = sqlite_event_add,
    .events = sqlite_events,
    .close = sqlite_close,
};

static int user_version(struct sqlite *s, int *ret, struct err *err)
{
    _cleanup_(finalize_cleanup) sqlite3_stmt *statement = NULL;
    int r = prepare(s, "PRAGMA user_version", &statement, err);
    if (r < 0)
        return r;
    if (sqlite3_step(statement) != SQLITE_ROW)
        return failed(s, "read its version", err);
    *ret = sqlite3_column_int(statement, 0);
    return 0;
}

static int migrate(struct sqlite *s, struct err *err)
{
    int version = 0, r = user_version(s, &version, err);
    if (r == 0 && (version < 0 || version > (int)ARRAY_SIZE(migrations)))
        return err_set(err, ENOTSUP,
                       "the registry was written by a newer oraid (its layout is %d, this one knows %zu)",
                       version, ARRAY_SIZE(migrations));
    for (; r == 0 && version < (int)ARRAY_SIZE(migrations); version++) {
        char done[64];
        snprintf(done, sizeof done, "PRAGMA user_version = %d; COMMIT", version + 1);
        if ((r = execute(s, "BEGIN IMMEDIATE", err)) == 0 && (r = execute(s, migrations[version], err)) == 0)
            r = execute(s, done, err);
    }
    return r;
}

int registry_open_sqlite(const char *path, struct registry **ret, struct err *err)
{
    struct sqlite *s = calloc(1, sizeof *s);
    if (!s)
        return err_set(err, ENOMEM, "out of memory");
    pthread_mutex_init(&s->lock, NULL);
    mode_t old = umask(0077); /* only main runs yet: peers' and invites' file is nobody else's */
    int r =
        sqlite3_open_v2(path, &s->db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX, NULL);
    r = r == SQLITE_OK ? 0 : failed(s, "open it", err);
    if (r == 0)
        r = execute(s,
                    "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA cache_size = -256;"
                    "PRAGMA wal_autocheckpoint = 200; PRAGMA busy_timeout = 5000",
                    err);
    umask(old);
    if (r == 0)
        r = migrate(s, err);
    if (r < 0) {
        err_context(err, "%s", path);
        sqlite_close(s);
        return r;
    }
    return registry_new(&sqlite_ops, s, ret, err);
}
