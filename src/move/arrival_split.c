/* SPDX-License-Identifier: Apache-2.0
 *
 * What a post-copy move does otherwise at the destination: departure_split.c tells the other half. What the
 * disks will lack is durable here before "ready" (disk_expect), for after the commit nothing else knows it.
 */
#include "base/macro.h"
#include "disk/split.h"
#include "move/arrival.h"

#include <errno.h>
#include <string.h>

int arrival_missing(struct arrival *arrival, const struct mail *mail, struct err *err)
{
    struct wire_claim head;
    const uint8_t *bits;
    size_t size;
    int r = wire_claim_decode(mail->payload, mail->frame.length, &head, &bits, &size, err);
    if (r < 0)
        return r;
    if (!arrival->split || head.disk >= arrival->config.disk_count || arrival->missing[head.disk].bits)
        return err_set(err, EPROTO, "the source says what disk %u lacks, out of turn", head.disk);
    uint8_t *copy = malloc(size + 1);
    if (!copy)
        return err_set(err, ENOMEM, "out of memory");
    memcpy(copy, bits, size);
    arrival->missing[head.disk].bits = copy;
    arrival->missing[head.disk].size = size;
    return arrival->fetch ? 0 : arrival_new_fetch(arrival, err);
}

bool arrival_lacks(const struct arrival *arrival)
{
    for (size_t i = 0; i < arrival->config.disk_count; i++)
        if (arrival->missing[i].bits)
            return true;
    return epoch_get(arrival->epoch)->borrowed; /* after a crash of orai-vm */
}

int arrival_new_fetch(struct arrival *arrival, struct err *err)
{
    struct fetch_options options = {
        .host = arrival->host,
        .vm = arrival->config.id,
        .epoch = arrival->next_epoch,
        .lender = arrival->source,
        .disk_count = arrival->config.disk_count,
    };
    snprintf(options.name, sizeof options.name, "%s", arrival->config.name);
    snprintf(options.lender.name, sizeof options.lender.name, "%s", arrival->source_name);
    for (size_t i = 0; i < options.disk_count; i++)
        options.disks[i] = machine_disk(arrival->machine, i);
    return fetch_new(&options, &arrival->fetch, err);
}

int arrival_own_disk(struct disk *disk, struct err *err)
{
    _cleanup_(lineage_freep) struct lineage *lineage = NULL;
    int r = disk_lineage(disk, &lineage, err);
    if (r < 0)
        return r;
    lineage->claim = disk_may_split(disk) ? LINEAGE_SPLIT : LINEAGE_OWNER;
    return disk_set_lineage(disk, lineage, err);
}

int arrival_open_fetch(struct arrival *arrival, struct err *err)
{
    return fetch_open(arrival->fetch, err);
}
