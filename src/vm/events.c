/* SPDX-License-Identifier: Apache-2.0 */
#include "vm/vm.h"

#include "base/json.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>

int events_init(struct events *events, struct err *err)
{
    pthread_mutex_init(&events->mutex, NULL);
    events->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    return events->wake < 0 ? err_sys(err, errno, "cannot make an eventfd") : 0;
}

static void note(struct qemu_news *news, const char *event, const json_t *data)
{
    if (!event) {
        news->gone = true;
    } else if (strcmp(event, "STOP") == 0) {
        news->stopped = true;
        news->resumed = false;
    } else if (strcmp(event, "RESUME") == 0) {
        news->resumed = true;
        news->stopped = false;
    } else if (strcmp(event, "SHUTDOWN") == 0) {
        news->shut_down = true;
        news->by_guest = json_bool(data, "guest", false);
    } else if (strcmp(event, "BLOCK_IO_ERROR") == 0 && strcmp(json_str(data, "action", ""), "stop") == 0) {
        snprintf(news->io_error, sizeof news->io_error, "a disk's %s failed: %.100s",
                 json_str(data, "operation", "request"), json_str(data, "reason", "no reason given"));
        news->no_space = json_bool(data, "nospace", false);
    }
}

void events_from_qemu(void *arg, const char *event, const json_t *data)
{
    struct events *events = &((struct vm *)arg)->events;
    pthread_mutex_lock(&events->mutex);
    if (!events->arrival || !arrival_is_renewing(events->arrival))
        note(&events->news, event, data);
    if (events->departure)
        departure_qemu_event(events->departure, event, data);
    if (events->arrival)
        arrival_qemu_event(events->arrival, event, data);
    pthread_mutex_unlock(&events->mutex);
    eventfd_write(events->wake, 1);
}

void events_move_changed(void *arg)
{
    struct events *events = &((struct vm *)arg)->events;
    events->move_changed = true;
    eventfd_write(events->wake, 1);
}

struct qemu_news events_take(struct events *events)
{
    pthread_mutex_lock(&events->mutex);
    struct qemu_news news = events->news;
    events->news.stopped = events->news.resumed = false;
    events->news.io_error[0] = '\0';
    pthread_mutex_unlock(&events->mutex);
    return news;
}
