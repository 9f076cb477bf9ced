/* SPDX-License-Identifier: Apache-2.0
 *
 * event: what happens on this host, as people and programs follow it. Each event is stored in the registry
 * and put into a ring that all followers read, each at its own place; who falls behind by more than the ring
 * is cut, so a follower that does not read costs nothing but its place.
 *
 * Threads: any.
 */
#pragma once

#include "host/registry.h"

#include <stdbool.h>

#define EVENT_RING 512

struct events;

/* `wake` is called (any thread) after each event. */
int events_new(struct registry *registry, void (*wake)(void *arg), void *arg, struct events **ret,
               struct err *err);
void events_free(struct events *events);

/* `vm` may be NULL; `data` (may be NULL) is consumed. Events that the registry cannot take are still
 * followed, and the log says so. */
void event_add(struct events *events, const char *type, const char *vm, json_t *data);

/* Id of the newest event. */
uint64_t events_newest(struct events *events);
/* The event after `*cursor` (of `vm` only unless NULL) as one line of JSON, malloc'ed; moves the cursor past
 * it. -EAGAIN: nothing new; -EOVERFLOW: the follower has lost events (*ret_line is the line that says so). */
int events_next(struct events *events, const char *vm, uint64_t *cursor, char **ret_line);
