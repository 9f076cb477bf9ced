/* SPDX-License-Identifier: Apache-2.0
 *
 * The destination's part of not sending what it has: when the VM was here before, its memory of then lies in
 * a checkpoint (memory/checkpoint.h). Between "base" and "opened", while the disks are built and QEMU starts,
 * a thread hashes it; what is hashed is told (FRAME_KNOWN) before the disks' rounds and beside them, and
 * nobody waits for it: a page that was not told in time comes whole. Packets of QEMU's stream then name pages
 * of it.
 *
 * Where memory follows the guest, little is sent before the switch, so only the beginning is told by then;
 * the rest follows with it, in the order in which the source's QEMU sends, and a hundred times faster. A
 * checkpoint that turns out to be spoilt cannot fail the move any more: the connection is closed, and over
 * the next one the source sends again what was not taken, and names nothing.
 */
#include "base/endian.h"
#include "base/json.h"
#include "base/log.h"
#include "base/macro.h"
#include "move/arrival.h"

#include <errno.h>

#define EARLY_ENOUGH (384 * KiB) /* bytes: the hashes of 96 MiB */
#define QUEUE_ENOUGH (256 * KiB) /* "ready" and marks must not wait behind much of it */
#define QUEUE_EARLY (64 * KiB)
#define QUEUE_LATER (16 * KiB) /* nor what the guest asks for */

json_t *arrival_look_at_checkpoint(struct arrival *arrival)
{
    struct err err = ERR_NONE;
    const char *folder = arrival->host->env.vm_dir;
    int r = checkpoint_open(folder, &arrival->config.id, arrival->config.memory, &arrival->checkpoint, &err);
    if (r < 0 && r != -ENOENT)
        log_warning("memory comes whole: %s", err.text);
    return json_pack("{s:b, s:b, s:b, s:b}", "packed", 1, "packed_later", 1, "workset", 1, "checkpoint",
                     arrival->checkpoint != NULL);
}

int arrival_hash_checkpoint(struct arrival *arrival, const json_t *base, struct err *err)
{
    uint8_t seed[KNOWN_SEED];
    const char *text = json_str(base, "memory_seed", NULL);
    if (!text || !arrival->checkpoint)
        return 0;
    if (hex_parse(text, seed, sizeof seed) < 0)
        return err_set(err, EPROTO, "the seed of the memory's hashes makes no sense");
    arrival->telling = checkpoint_hash(arrival->checkpoint, get_le64(seed), err) == 0;
    if (!arrival->telling)
        log_warning("memory comes whole: %s", err->text);
    return 0;
}

/* How much of it may wait to be sent. */
static size_t room(const struct arrival *arrival)
{
    if (!arrival->memory_later)
        return QUEUE_ENOUGH;
    if (arrival->taken)
        return QUEUE_LATER;
    return arrival->told < EARLY_ENOUGH ? QUEUE_EARLY : 0;
}

int arrival_tell_checkpoint(struct arrival *arrival, struct err *err)
{
    struct session *session = &arrival->session;
    pthread_mutex_lock(&arrival->lock);
    struct link *link = session->data_count ? session->data[0] : NULL;
    pthread_mutex_unlock(&arrival->lock);
    if (arrival->checkpoint_spoilt)
        arrival->telling = false;
    while (arrival->telling && link && link_queued(link) < room(arrival)) {
        uint8_t message[KNOWN_MESSAGE];
        size_t size;
        arrival->telling = checkpoint_tell(arrival->checkpoint, message, &size);
        if (size == 0)
            break;
        arrival->told += size;
        int r = link_send(link, FRAME_KNOWN, message, size, NULL, 0, err);
        if (r < 0)
            return r;
    }
    return 0;
}

int arrival_unpack(struct arrival *arrival, struct stream *stream, struct err *err)
{
    return stream_unpack(stream, arrival->checkpoint ? checkpoint_page : NULL, arrival->checkpoint, err);
}

int arrival_packed(struct arrival *arrival, struct link *link, const uint8_t *payload, size_t size,
                   struct err *err)
{
    int r = stream_take_packed(arrival->session.stream, link, payload, size, err);
    if (r != -EBADMSG)
        return r;
    checkpoint_remove(arrival->host->env.vm_dir);
    if (arrival->ready) { /* the source sends it over the next connection, which hears of this */
        log_warning("memory comes whole from here on: %s", err->text);
        arrival->checkpoint_spoilt = true;
        return r;
    }
    err_where(err, arrival->host->name, "transfer");
    arrival_failed(arrival, err);
    return r;
}

void arrival_remove_checkpoint(const struct arrival *arrival)
{
    checkpoint_remove(arrival->host->env.vm_dir);
}
