/* SPDX-License-Identifier: Apache-2.0
 *
 * What a post-copy move does otherwise at the source. Nothing of a disk goes over before the switch, or only
 * what went in the bounded time of a hybrid move; in the pause the destination is told which extents it lacks
 * (FRAME_MISSING, disk/split.h), at most 32 KiB a disk; after the commit our disks are lent (lender.h) until
 * all has been fetched.
 *
 * The only copy of what has not gone over is here, and the guest believes that what it wrote is written: so
 * all of it is durable here before the commit.
 */
#include "base/log.h"
#include "base/macro.h"
#include "disk/split.h"
#include "move/departure.h"

#include <errno.h>

/* What is compared goes over before the switch. */
static bool has_donor(const struct departure *departure)
{
    for (size_t i = 0; i < departure_disks(departure); i++)
        if (departure->donor[i])
            return true;
    return false;
}

bool departure_may_split(const struct departure *departure, const struct lineage_base bases[VM_MAX_DISKS])
{
    if (departure->options.mode == MOVE_PRECOPY || departure->options.dry_run || has_donor(departure))
        return false;
    for (size_t i = 0; i < departure_disks(departure); i++)
        if (bases[i].forked) {
            if (departure->options.mode != MOVE_AUTO)
                progress_note(departure->progress,
                              "the copy on %s is a fork: the whole difference goes over before the switch",
                              departure->options.peer.name);
            return false;
        }
    return true;
}

/* Disks that take longer than this to send do not hold up the switch. */
#define PRECOPY_SECONDS 60

void departure_choose_mode(struct departure *departure)
{
    const struct prediction *prediction = &departure->prediction;
    double seconds = (double)prediction->disk_bytes / (double)MAX(prediction->link_rate, UINT64_C(1));
    bool possible = (departure->split || departure->options.dry_run) && !has_donor(departure);
    if (departure->options.mode != MOVE_AUTO || !possible)
        return;
    if (seconds > PRECOPY_SECONDS) {
        departure->options.mode = MOVE_HYBRID;
        progress_note(
            departure->progress,
            "mode hybrid: the disks would take about %.0f s; the guest goes first, with what can be "
            "sent in %d s",
            seconds, HYBRID_SECONDS);
        return;
    }
    departure->split = false; /* unless they do not converge: departure_not_converging */
    progress_note(departure->progress, "mode precopy: the disks take about %.1f s", seconds);
}

bool departure_not_converging(struct departure *departure)
{
    if (departure->options.mode != MOVE_AUTO || !departure->lender || departure->split)
        return false;
    departure->split = true;
    progress_note(
        departure->progress,
        "mode hybrid: the guest writes faster than the link carries; the rest of its disks follows it");
    return true;
}

int departure_new_lender(struct departure *departure, struct err *err)
{
    struct lender_options options = {
        .host = departure->host,
        .vm = machine_config(departure->machine)->id,
        .epoch = departure->next_epoch,
        .borrower = departure->options.peer.fingerprint,
        .disk_count = departure_disks(departure),
    };
    for (size_t i = 0; i < options.disk_count; i++)
        options.disks[i] = machine_disk(departure->machine, i);
    struct lender *lender;
    int r = lender_new(&options, &lender, err);
    if (r < 0)
        return r;
    pthread_mutex_lock(&departure->session.lock);
    departure->lender = lender;
    pthread_mutex_unlock(&departure->session.lock);
    return 0;
}

void departure_drop_lender(struct departure *departure)
{
    pthread_mutex_lock(&departure->session.lock);
    struct lender *lender = TAKE_PTR(departure->lender);
    pthread_mutex_unlock(&departure->session.lock);
    lender_free(lender);
}

struct lender *departure_take_lender(struct departure *departure)
{
    return TAKE_PTR(departure->lender);
}

int departure_connection(struct departure *departure, int socket, struct err *err)
{
    pthread_mutex_lock(&departure->session.lock);
    bool lends = departure->lender;
    if (lends)
        lender_connection(departure->lender, socket);
    pthread_mutex_unlock(&departure->session.lock);
    if (lends)
        return 0;
    close(socket);
    return err_set(err, EBUSY, "the VM is about to leave this host");
}

int departure_sync(struct departure *departure, struct err *err)
{
    int r = 0;
    for (size_t i = 0; r == 0 && i < departure_disks(departure); i++)
        r = disk_sync(machine_disk(departure->machine, i), err);
    return r;
}

int departure_send_missing(struct departure *departure, struct err *err)
{
    int r = departure_sync(departure, err);
    for (size_t i = 0; r == 0 && i < departure_disks(departure); i++) {
        _cleanup_(lineage_freep) struct lineage *claim = NULL;
        _cleanup_free_ uint8_t *bits = NULL;
        size_t size;
        uint64_t blocks;
        uint8_t head[WIRE_CLAIM_SIZE];
        struct disk *disk = machine_disk(departure->machine, i);
        if ((r = disk_lineage(disk, &claim, err)) < 0)
            return r;
        relocate_claim(departure->relocate[i], claim);
        struct lineage_base base = {
            .base = claim->complete, .reached = claim->reached, .cursor = claim->cursor};
        if ((r = split_picture(disk, &base, departure->sealed[i], &bits, &size, &blocks, err)) < 0)
            return r;
        departure->numbers.disk_later += blocks * DISK_BLOCK;
        wire_claim_encode(&(struct wire_claim){.disk = (uint16_t)i, .sequence = departure->mark + 1}, head);
        r = link_send(departure->session.control, FRAME_MISSING, head, sizeof head, bits, size, err);
        departure->numbers.disk_sent += FRAME_HEADER_SIZE + sizeof head + size;
    }
    return r;
}
