/* SPDX-License-Identifier: Apache-2.0
 *
 * operation: long work that a client watches. Begin and end are durable; progress is kept in memory only. A
 * move's operation has the id of the move, and a refresh knows its operation's, so that after a restart of
 * oraid both are put together again.
 *
 * Threads: any.
 */
#pragma once

#include "base/id.h"
#include "host/event.h"
#include "host/registry.h"

#define OPERATIONS_KEPT 1000 /* ended ones in the registry */

struct operations;

/* Operations of kind "move" and "refresh" that were running stay so (the caller reconciles them); others
 * become failed: their work died with the oraid before. `wake` is called (any thread) after each change. */
int operations_new(struct registry *registry, struct events *events, void (*wake)(void *arg), void *arg,
                   struct operations **ret, struct err *err);
void operations_free(struct operations *operations);

/* `subject`: name of the VM or image. */
int operation_begin(struct operations *operations, const struct id *id, const char *kind, const char *subject,
                    struct err *err);
/* The same with a first progress (consumed), which alone of all progress is durable: what is needed to go on
 * with it after a restart. */
int operation_begin_with(struct operations *operations, const struct id *id, const char *kind,
                         const char *subject, json_t *progress, struct err *err);
/* `progress` is consumed. Without effect when the operation does not run. */
void operation_progress(struct operations *operations, const struct id *id, json_t *progress);
/* `result` (may be NULL) is consumed. `err` NULL: done; else failed, or cancelled for ECANCELED. Without
 * effect when it has ended already. */
void operation_end(struct operations *operations, const struct id *id, json_t *result, const struct err *err);

/* Asks the running operation of that kind and subject to end; false when there is none. Its work looks at
 * operation_cancelled now and then. */
bool operation_cancel(struct operations *operations, const char *kind, const char *subject);
bool operation_cancelled(struct operations *operations, const struct id *id);

/* As the API shows it. -ENOENT. */
int operation_get(struct operations *operations, const struct id *id, json_t **ret, struct err *err);
/* Newest first; `subject` may be NULL. */
int operation_list(struct operations *operations, const char *subject, size_t limit, json_t **ret_array,
                   struct err *err);
/* Has it ended, or a version above `since`? true as well when there is none. */
bool operation_changed(struct operations *operations, const struct id *id, uint64_t since);
/* The newest operation of that kind and subject, or NULL in *ret. */
int operation_newest(struct operations *operations, const char *kind, const char *subject, json_t **ret,
                     struct err *err);
