/* SPDX-License-Identifier: Apache-2.0 */
#include "host/event.h"

#include "base/json.h"
#include "base/log.h"
#include "base/macro.h"
#include "host/text.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>

struct events {
    pthread_mutex_t lock; /* held across the registry's call, so that ids and ring go in one order */
    struct registry *registry;
    void (*wake)(void *arg);
    void *arg;
    uint64_t newest;          /* id of the newest event */
    uint64_t oldest;          /* of the oldest one in the ring; newest + 1 when it is empty */
    json_t *ring[EVENT_RING]; /* event n lies at n % EVENT_RING */
};

int events_new(struct registry *registry, void (*wake)(void *arg), void *arg, struct events **ret,
               struct err *err)
{
    _cleanup_json_ json_t *last = NULL;
    int r = registry_events(registry, 0, NULL, 1, &last, err);
    if (r < 0)
        return r;
    struct events *events = calloc(1, sizeof *events);
    if (!events)
        return err_set(err, ENOMEM, "out of memory");
    pthread_mutex_init(&events->lock, NULL);
    events->registry = registry;
    events->wake = wake;
    events->arg = arg;
    events->newest = json_u64(json_array_get(last, 0), "id", 0);
    events->oldest = events->newest + 1;
    *ret = events;
    return 0;
}

void events_free(struct events *events)
{
    if (!events)
        return;
    for (size_t i = 0; i < EVENT_RING; i++)
        json_decref(events->ring[i]);
    pthread_mutex_destroy(&events->lock);
    free(events);
}

static json_t *event_json(const char *type, const char *vm, json_t *data)
{
    char now[TIME_TEXT];
    json_t *event =
        json_pack("{s:i, s:s, s:s, s:s?}", "id", 0, "time", time_text(now), "type", type, "vm", vm);
    json_object_set_new(event, "data", data ? data : json_object());
    return event;
}

void event_add(struct events *events, const char *type, const char *vm, json_t *data)
{
    struct err err = ERR_NONE;
    json_t *event = event_json(type, vm, data);
    pthread_mutex_lock(&events->lock);
    uint64_t id = events->newest + 1;
    if (registry_event_add(events->registry, event, &id, &err) < 0)
        log_error("event %s is not kept: %s", type, err.text);
    id = MAX(id, events->newest + 1); /* ids that the registry could not take are not used again here */
    if (id != events->newest + 1)
        events->oldest = id; /* a gap: what lies in the ring is not in sequence any more */
    json_object_set_new(event, "id", json_integer((json_int_t)id));
    json_decref(events->ring[id % EVENT_RING]);
    events->ring[id % EVENT_RING] = event;
    events->newest = id;
    if (events->newest - events->oldest >= EVENT_RING)
        events->oldest = events->newest - EVENT_RING + 1;
    pthread_mutex_unlock(&events->lock);
    events->wake(events->arg);
}

uint64_t events_newest(struct events *events)
{
    pthread_mutex_lock(&events->lock);
    uint64_t newest = events->newest;
    pthread_mutex_unlock(&events->lock);
    return newest;
}

static char *cut_line(uint64_t last_seen)
{
    _cleanup_json_ json_t *event =
        event_json("events.cut", NULL,
                   json_pack("{s:s, s:I}", "text",
                             "this reader was too slow and has lost events: follow again from here", "since",
                             (json_int_t)last_seen));
    return json_dumps(event, JSON_COMPACT);
}

int events_next(struct events *events, const char *vm, uint64_t *cursor, char **ret_line)
{
    int r = -EAGAIN;
    pthread_mutex_lock(&events->lock);
    if (*cursor < events->newest && *cursor + 1 < events->oldest) {
        *ret_line = cut_line(*cursor);
        r = -EOVERFLOW;
    }
    while (r == -EAGAIN && *cursor < events->newest) {
        const json_t *event = events->ring[++*cursor % EVENT_RING];
        const char *about = json_string_value(json_object_get(event, "vm"));
        if (vm && (!about || strcmp(about, vm) != 0))
            continue;
        *ret_line = json_dumps(event, JSON_COMPACT);
        r = *ret_line ? 0 : -ENOMEM;
    }
    pthread_mutex_unlock(&events->lock);
    return r;
}
