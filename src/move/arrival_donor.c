/* SPDX-License-Identifier: Apache-2.0
 *
 * The destination's part of departure_donor.c: what it finds in a donor (disk/donor.h) it writes to the new
 * copy, like blocks that came, and tells the source what it did not find.
 */
#include "base/json.h"
#include "base/macro.h"
#include "move/arrival.h"
#include "move/fault.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

/* With a base that is built anew: "none" or "image". */
int arrival_put_aside(struct arrival *arrival, size_t i, const json_t *entry, struct err *err)
{
    char path[PATH_MAX];
    const char *base = json_str(entry, "base", "");
    if (!json_bool(entry, "donor", false) || (strcmp(base, "none") != 0 && strcmp(base, "image") != 0))
        return 0;
    return donor_put_aside(arrival_disk_image(arrival, i, path), err);
}

int arrival_open_donors(struct arrival *arrival, const json_t *base, struct err *err)
{
    uint8_t key[SUMS_KEY];
    char path[PATH_MAX];
    const char *text = json_str(base, "key", NULL);
    if (!text)
        return 0;
    if (hex_parse(text, key, sizeof key) < 0)
        return err_set(err, EPROTO, "the key of the sums makes no sense");
    int r = sums_new(key, &arrival->sums, err);
    for (size_t i = 0; r == 0 && i < arrival->config.disk_count; i++)
        if (json_bool(json_array_get(json_object_get(base, "disks"), i), "donor", false))
            r = donor_open(arrival_disk_image(arrival, i, path), &arrival->donor[i], err);
    return r;
}

/* A run of blocks that the donor has. */
static int take(struct arrival *arrival, const struct wire_sums *asked, unsigned at, unsigned count,
                const uint8_t *data, size_t size, struct err *err)
{
    struct disk *disk = machine_disk(arrival->machine, asked->disk);
    const struct disk_run run = {.block = asked->block + at, .count = count, .generation = asked->generation};
    size_t from = at * (size_t)DISK_BLOCK, bytes = MIN(size - from, count * (size_t)DISK_BLOCK);
    int r = disk_receive(disk, &run, data + from, err);
    if (r < 0)
        return r;
    sync_file_range(disk_fd(disk), (off_t)(run.block * DISK_BLOCK), (off_t)bytes, SYNC_FILE_RANGE_WRITE);
    return 0;
}

static int look(struct arrival *arrival, const struct wire_sums *asked, const uint8_t (*sums)[WIRE_SUM_SIZE],
                uint64_t *ret_differ, struct err *err)
{
    const struct disk *disk = machine_disk(arrival->machine, asked->disk);
    size_t size = MIN((uint64_t)asked->count * DISK_BLOCK, disk_size(disk) - asked->block * DISK_BLOCK);
    _cleanup_free_ uint8_t *data = malloc(DONOR_BLOCKS * (size_t)DISK_BLOCK);
    if (!data)
        return err_set(err, ENOMEM, "out of memory");
    int r = donor_look(arrival->donor[asked->disk], arrival->sums, asked->block, asked->count, size, sums,
                       data, ret_differ, err);
    for (unsigned at = 0; r == 0 && at < asked->count;) {
        unsigned from = at;
        bool differs = *ret_differ >> at & 1;
        while (at < asked->count && (*ret_differ >> at & 1) == differs)
            at++;
        if (!differs)
            r = take(arrival, asked, from, at - from, data, size, err);
    }
    return r;
}

int arrival_sums(struct arrival *arrival, struct link *link, const uint8_t *payload, size_t size,
                 struct err *err)
{
    struct wire_sums asked;
    const uint8_t(*sums)[WIRE_SUM_SIZE];
    uint8_t answer[WIRE_DIFFER_SIZE];
    struct wire_differ differ = {0};
    int r = wire_sums_decode(payload, size, &asked, &sums, err);
    if (r < 0)
        return r;
    if (!arrival->receiving || asked.disk >= arrival->config.disk_count || !arrival->donor[asked.disk])
        return err_set(err, EPROTO, "sums for disk %u, which has no donor", asked.disk);
    uint64_t blocks = disk_blocks(machine_disk(arrival->machine, asked.disk));
    if (asked.block >= blocks || asked.count > blocks - asked.block)
        return err_set(err, EPROTO, "block %llu is beyond the end of disk %u",
                       (unsigned long long)asked.block, asked.disk);
    r = fault_point(err, "destination.sums");
    if (r == 0)
        r = look(arrival, &asked, sums, &differ.bits, err);
    if (r < 0) {
        err_where(err, arrival->host->name, "transfer");
        if (r == -ENOSPC)
            err_hint(err, "make room on %s, then move again: what has arrived is kept", arrival->host->name);
        arrival_failed(arrival, err);
        return r;
    }
    differ.ticket = asked.ticket;
    wire_differ_encode(&differ, answer);
    return link_send(link, FRAME_DIFFER, answer, sizeof answer, NULL, 0, err);
}

void arrival_remove_donors(const struct arrival *arrival)
{
    char path[PATH_MAX];
    for (size_t i = 0; i < arrival->config.disk_count; i++)
        donor_remove(arrival_disk_image(arrival, i, path));
}

void arrival_close_donors(struct arrival *arrival)
{
    for (size_t i = 0; i < VM_MAX_DISKS; i++)
        donor_close(TAKE_PTR(arrival->donor[i]));
    sums_free(TAKE_PTR(arrival->sums));
}
