/* SPDX-License-Identifier: Apache-2.0 */
#include "disk/nbd_park.h"

#include "base/clock.h"
#include "base/macro.h"

#include <errno.h>
#include <string.h>
#include <sys/eventfd.h>

int nbd_parking_init(struct nbd_parking *parking, struct disk *disk)
{
    *parking = (struct nbd_parking){.disk = disk, .wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
    parking->end = &parking->first;
    return parking->wake < 0 ? -errno : 0;
}

void nbd_parking_done(struct nbd_parking *parking)
{
    if (parking->watching)
        disk_unwatch(parking->disk, parking->wake);
    while (parking->first) {
        struct nbd_parked *parked = parking->first;
        parking->first = parked->next;
        free(parked);
    }
    close_cleanup(&parking->wake);
}

bool nbd_parking_lacks(struct nbd_parking *parking, const struct nbd_request *request, unsigned *told)
{
    enum disk_need_kind kind = request->type == NBD_CMD_READ ? DISK_NEED_ALL : DISK_NEED_EDGES;
    if (request->length == 0 || (kind != DISK_NEED_ALL && !nbd_request_modifies(request)))
        return false;
    return !disk_ready(parking->disk, kind, request->length, request->offset, told);
}

int nbd_parking_watch(struct nbd_parking *parking)
{
    int r = parking->watching ? 0 : disk_watch(parking->disk, parking->wake);
    parking->watching = r == 0;
    return r;
}

int nbd_parking_add(struct nbd_parking *parking, const struct nbd_request *request, const void *data,
                    unsigned told)
{
    size_t size = data ? request->length : 0;
    if (parking->count >= NBD_PARK_MAX || size > NBD_PARK_BYTES - parking->bytes)
        return -ENOBUFS;
    struct nbd_parked *parked = malloc(sizeof *parked + size);
    if (!parked)
        return -ENOMEM;
    *parked = (struct nbd_parked){.request = *request, .since = clock_now(), .told = told};
    if (size > 0)
        memcpy(parked->data, data, size);
    *parking->end = parked;
    parking->end = &parked->next;
    parking->count++;
    parking->bytes += size;
    nbd_parking_report(parking);
    return 0;
}

static void unlink_parked(struct nbd_parking *parking, struct nbd_parked **link)
{
    struct nbd_parked *parked = *link;
    *link = parked->next;
    if (parking->end == &parked->next)
        parking->end = link;
    parking->count--;
    parking->bytes -= parked->request.type == NBD_CMD_WRITE ? parked->request.length : 0;
}

struct nbd_parked *nbd_parking_take(struct nbd_parking *parking, struct nbd_parked **at)
{
    struct nbd_parked **link = *at ? &(*at)->next : &parking->first;
    for (; *link; link = &(*link)->next) {
        struct nbd_parked *parked = *link;
        if (!nbd_parking_lacks(parking, &parked->request, &parked->told)) {
            unlink_parked(parking, link);
            return parked;
        }
        *at = parked;
    }
    return NULL;
}

struct nbd_parked *nbd_parking_expired(struct nbd_parking *parking, int64_t now)
{
    struct nbd_parked *oldest = parking->first;
    if (!oldest || now < oldest->since + NBD_PARK_NSEC)
        return NULL;
    unlink_parked(parking, &parking->first);
    return oldest;
}

int nbd_parking_timeout(const struct nbd_parking *parking)
{
    return parking->first ? clock_poll_ms(parking->first->since + NBD_PARK_NSEC) : -1;
}

void nbd_parking_report(struct nbd_parking *parking)
{
    int64_t since = parking->first ? parking->first->since : 0;
    if (parking->in_place != 0 && (since == 0 || parking->in_place < since))
        since = parking->in_place;
    if (since != parking->told_since)
        disk_waits(parking->disk, parking->wake, since);
    parking->told_since = since;
}
