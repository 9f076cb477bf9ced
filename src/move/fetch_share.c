/* SPDX-License-Identifier: Apache-2.0
 *
 * A host that shares its copy says what that is: the lineages of its disks. Where it is a whole replica of a
 * generation that our disk has been through too, its blocks are those of the lender as far as the lender has
 * not written them since. The lender alone knows which these are, and tells us; of the others either host may
 * be asked.
 */
#include "base/clock.h"
#include "base/json.h"
#include "base/log.h"
#include "base/macro.h"
#include "disk/split.h"
#include "move/fetch_private.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define AGREE_NS (20 * NSEC_PER_SEC)
#define MAX_FAILURES 5 /* in a row; then it has to be named anew */

/* --- what its copies are -------------------------------------------------------------------------------- */

/* The newest generation that its copy is, and that ours came from. 0: none. */
static int common_generation(struct disk *disk, const struct lineage *theirs, uint32_t *ret, struct err *err)
{
    _cleanup_(lineage_freep) struct lineage *ours = NULL;
    int r = disk_lineage(disk, &ours, err);
    if (r < 0)
        return r;
    *ret = 0;
    if (theirs->claim != LINEAGE_REPLICA || !id_equal(&theirs->disk, &ours->disk) ||
        theirs->size != ours->size)
        return 0;
    const struct lineage_entry *entry = lineage_find(ours, theirs->complete);
    if (entry && lineage_holds(theirs, entry->generation, &entry->id))
        *ret = entry->generation;
    return 0;
}

static int take_lineage(struct fetch_holder *holder, const struct mail *mail, struct err *err)
{
    struct fetch *fetch = holder->fetch;
    _cleanup_(lineage_freep) struct lineage *theirs = NULL;
    struct wire_claim head;
    const uint8_t *bytes;
    size_t size;
    uint32_t common = 0;
    int r = wire_claim_decode(mail->payload, mail->frame.length, &head, &bytes, &size, err);
    struct disk *disk =
        r < 0 || head.disk >= fetch->options.disk_count ? NULL : fetch->options.disks[head.disk];
    if (r < 0 || !disk)
        return r;
    r = lineage_decode(bytes, size, &theirs, err);
    if (r == 0)
        r = common_generation(disk, theirs, &common, err);
    if (r < 0)
        return r;
    pthread_mutex_lock(&fetch->lock);
    holder->newer[head.disk].above = common;
    holder->newer[head.disk].asked = false;
    pthread_mutex_unlock(&fetch->lock);
    return 0;
}

static bool is_useful(struct fetch_holder *holder)
{
    bool useful = false;
    pthread_mutex_lock(&holder->fetch->lock);
    for (size_t i = 0; i < VM_MAX_DISKS; i++)
        useful |= holder->newer[i].above > 0;
    pthread_mutex_unlock(&holder->fetch->lock);
    return useful;
}

static int hear_lineages(struct fetch_holder *holder, uint64_t count, struct err *err)
{
    int r =
        count > VM_MAX_DISKS ? err_set(err, EPROTO, "a copy with %llu disks", (unsigned long long)count) : 0;
    for (uint64_t i = 0; r == 0 && i < count; i++) {
        struct mail *mail;
        r = session_wait(&holder->session, FRAME_LINEAGE, clock_now() + AGREE_NS, &mail, err);
        if (r < 0)
            return r;
        r = take_lineage(holder, mail, err);
        free(mail);
    }
    if (r == 0 && !is_useful(holder))
        r = err_set(err, ENODATA, "its copy has no generation in common with the one here");
    return r;
}

/* --- what the lender has newer -------------------------------------------------------------------------- */

/* One question that was not asked yet. Locked. */
static bool next_question(struct fetch *fetch, struct wire_newer *ret)
{
    unsigned count = fetch->holder_count;
    for (unsigned i = FETCH_LENDER + 1; i < count; i++)
        for (size_t n = 0; n < fetch->options.disk_count; n++) {
            struct fetch_holder *holder = &fetch->holders[i];
            if (holder->newer[n].above && !holder->newer[n].asked) {
                holder->newer[n].asked = true;
                *ret = (struct wire_newer){.disk = (uint16_t)n, .above = holder->newer[n].above};
                return true;
            }
        }
    return false;
}

int share_ask_newer(struct fetch_holder *lender, struct err *err)
{
    struct fetch *fetch = lender->fetch;
    struct wire_newer question;
    uint8_t bytes[WIRE_NEWER_SIZE];
    int r = 0;
    while (r == 0) {
        pthread_mutex_lock(&fetch->lock);
        bool any = next_question(fetch, &question);
        pthread_mutex_unlock(&fetch->lock);
        if (!any)
            break;
        wire_newer_encode(&question, bytes);
        r = link_send(lender->session.data[0], FRAME_NEWER, bytes, sizeof bytes, NULL, 0, err);
    }
    return r;
}

void share_ask_again(struct fetch *fetch)
{
    unsigned count = fetch->holder_count;
    for (unsigned i = FETCH_LENDER + 1; i < count; i++)
        for (size_t n = 0; n < VM_MAX_DISKS; n++)
            fetch->holders[i].newer[n].asked = false;
}

/* The answer serves everyone who asked the same. */
int share_newer(struct fetch *fetch, const uint8_t *payload, size_t size, struct err *err)
{
    struct wire_newer answer;
    const uint8_t *bits;
    size_t bits_size;
    int r = wire_newer_decode(payload, size, &answer, &bits, &bits_size, err);
    if (r < 0)
        return r;
    struct disk *disk = answer.disk < fetch->options.disk_count ? fetch->options.disks[answer.disk] : NULL;
    if (!disk || bits_size != split_newer_size(disk_blocks(disk)))
        return err_set(err, EPROTO, "the lender says in %zu bytes what is new on disk %u", bits_size,
                       answer.disk);
    pthread_mutex_lock(&fetch->lock);
    unsigned count = fetch->holder_count;
    for (unsigned i = FETCH_LENDER + 1; r == 0 && i < count; i++) {
        struct fetch_holder *holder = &fetch->holders[i];
        if (!holder->newer[answer.disk].asked || holder->newer[answer.disk].above != answer.above)
            continue;
        holder->newer[answer.disk].above = 0;
        r = fetch_order_share(fetch->order, i, answer.disk, answer.above, bits);
    }
    pthread_mutex_unlock(&fetch->lock);
    fetch_wake(fetch);
    return r < 0 ? err_set(err, ENOMEM, "out of memory") : 0;
}

/* --- its thread ----------------------------------------------------------------------------------------- */

/* As far as it goes with one pair of connections. */
static int turn(struct fetch_holder *holder, struct err *err)
{
    _cleanup_json_ json_t *hello = NULL;
    session_reset(&holder->session);
    int r = holder_connect(holder, FETCH_URGENT, &hello, err);
    if (r == 0)
        r = hear_lineages(holder, json_u64(hello, "disks", 0), err);
    if (r == 0)
        r = holder_connect(holder, FETCH_REST, NULL, err);
    if (r < 0)
        return r;
    log_info("%s has blocks of %s too", holder->peer.name, holder->fetch->options.name);
    holder_set_why(holder, &ERR_NONE);
    session_wake(&holder->fetch->holders[FETCH_LENDER].session); /* it has a question to ask */
    return holder_fetch(holder, err);
}

static void *share_thread(void *arg)
{
    struct fetch_holder *holder = arg;
    struct fetch *fetch = holder->fetch;
    unsigned failures = 0;
    session_hurry();
    while (fetch_wait_open(fetch) && fetch->state == FETCH_RUNNING && failures < MAX_FAILURES) {
        struct err err = ERR_NONE;
        uint64_t before = atomic_load(&holder->fetched);
        int r = turn(holder, &err);
        failures = atomic_load(&holder->fetched) > before ? 0 : failures + 1;
        if (r < 0 && !fetch_closing(fetch)) {
            session_explain(&holder->session, &err);
            holder_set_why(holder, &err);
        }
        holder_leave(holder);
        if (r == 0 || r == -ENODATA) /* nothing is missing any more; nothing can be had here */
            break;
        fetch_pause(holder);
    }
    session_stop(&holder->session);
    pthread_mutex_lock(&fetch->lock);
    holder->ended = true;
    pthread_mutex_unlock(&fetch->lock);
    return NULL;
}

/* The place of that host, or a new one. Locked. */
static struct fetch_holder *find_place(struct fetch *fetch, const struct move_peer *peer, bool *ret_new)
{
    unsigned count = fetch->holder_count;
    for (unsigned i = 0; i < count; i++)
        if (fingerprint_equal(&fetch->holders[i].peer.fingerprint, &peer->fingerprint)) {
            *ret_new = false;
            return &fetch->holders[i];
        }
    *ret_new = true;
    return count < FETCH_MAX_HOLDERS ? &fetch->holders[count] : NULL;
}

int fetch_share(struct fetch *fetch, const struct move_peer *peer, struct err *err)
{
    bool is_new, runs;
    pthread_mutex_lock(&fetch->lock);
    struct fetch_holder *holder = find_place(fetch, peer, &is_new);
    runs = holder && !is_new && !holder->ended;
    pthread_mutex_unlock(&fetch->lock);
    if (!holder)
        return err_set(err, ENOSPC, "%s gets blocks from %u hosts already", fetch->options.name,
                       FETCH_MAX_HOLDERS);
    if (runs || fetch->state != FETCH_RUNNING)
        return 0;
    int r = is_new ? holder_init(holder, fetch, (unsigned)(holder - fetch->holders), peer, err) : 0;
    if (r < 0)
        return r;
    if (holder->thread)
        pthread_join(holder->thread, NULL);
    pthread_mutex_lock(&fetch->lock);
    holder->peer = *peer;
    holder->ended = false;
    pthread_mutex_unlock(&fetch->lock);
    fetch->holder_count += is_new;
    r = pthread_create(&holder->thread, NULL, share_thread, holder);
    if (r != 0) {
        holder->thread = 0;
        pthread_mutex_lock(&fetch->lock);
        holder->ended = true; /* it may be named again */
        pthread_mutex_unlock(&fetch->lock);
        return err_sys(err, r, "cannot start the thread that fetches blocks from %s", peer->name);
    }
    return 0;
}
