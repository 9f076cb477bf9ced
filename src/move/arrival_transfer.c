/* SPDX-License-Identifier: Apache-2.0
 *
 * The destination's second and third stage. Link threads write what comes (arrival_run, stream_take); the
 * walker waits for marks. Once every data connection has passed a mark, all blocks before it are written:
 * they are made durable, then the claims that came for this mark become the copies' own, then the source is
 * told. So a claim never says more than the disk would hold after a power cut.
 */
#include "base/clock.h"
#include "base/endian.h"
#include "base/file.h"
#include "base/log.h"
#include "base/macro.h"
#include "disk/split.h"
#include "move/arrival.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>

int arrival_run(struct arrival *arrival, const uint8_t *payload, size_t size, struct err *err)
{
    struct wire_run run;
    const uint8_t *data;
    size_t data_size;
    int r = wire_run_decode(payload, size, &run, &data, &data_size, err);
    if (r < 0)
        return r;
    if (!arrival->receiving || run.disk >= arrival->config.disk_count)
        return err_set(err, EPROTO, "a block for disk %u, which is not open", run.disk);
    struct disk *disk = machine_disk(arrival->machine, run.disk);
    uint64_t blocks = disk_blocks(disk);
    if (run.block >= blocks || run.count > blocks - run.block)
        return err_set(err, EPROTO, "block %llu is beyond the end of disk %u", (unsigned long long)run.block,
                       run.disk);
    uint64_t offset = run.block * DISK_BLOCK, room = disk_size(disk) - offset;
    if (data && data_size != MIN((uint64_t)run.count * DISK_BLOCK, room))
        return err_set(err, EPROTO, "block %llu of disk %u came with %zu bytes",
                       (unsigned long long)run.block, run.disk, data_size);
    struct disk_run blocks_of = {.block = run.block, .count = run.count, .generation = run.generation};
    r = disk_receive(disk, &blocks_of, data, err);
    if (r == 0 && data) /* so that the mark that makes it durable finds little left to do; a block device does
                           without */
        sync_file_range(disk_fd(disk), (off_t)offset, (off_t)data_size, SYNC_FILE_RANGE_WRITE);
    if (r < 0)
        err_where(err, arrival->host->name, "transfer");
    if (r == -ENOSPC)
        err_hint(err, "make room on %s, then move again: what has arrived is kept", arrival->host->name);
    return r < 0 ? (arrival_failed(arrival, err), r) : 0;
}

uint32_t arrival_marked(struct arrival *arrival)
{
    pthread_mutex_lock(&arrival->lock);
    uint32_t least = arrival->session.data_count ? UINT32_MAX : 0;
    for (unsigned i = 0; i < arrival->session.data_count; i++)
        least = MIN(least, arrival->marks[i]);
    pthread_mutex_unlock(&arrival->lock);
    return least;
}

int arrival_claim(struct arrival *arrival, const struct mail *mail, struct err *err)
{
    struct wire_claim wire;
    const uint8_t *bytes;
    size_t size;
    int r = wire_claim_decode(mail->payload, mail->frame.length, &wire, &bytes, &size, err);
    if (r < 0)
        return r;
    if (wire.disk >= arrival->config.disk_count)
        return err_set(err, EPROTO, "a lineage for disk %u, which the VM does not have", wire.disk);
    if (wire.flags & WIRE_CLAIM_LAST)
        arrival->claimed_mark = wire.sequence;
    if (wire.flags & WIRE_CLAIM_FINAL)
        arrival->final_mark = wire.sequence;
    for (size_t i = 0; i < ARRIVAL_MAX_CLAIMS; i++) {
        struct arrival_claim *claim = &arrival->claims[i];
        if (claim->lineage)
            continue;
        claim->sequence = wire.sequence;
        claim->disk = wire.disk;
        claim->split = wire.flags & WIRE_CLAIM_SPLIT;
        if ((r = lineage_decode(bytes, size, &claim->lineage, err)) < 0)
            return r;
        /* Only the hand-over's claim may say more than "partial". */
        bool whole = wire.flags & WIRE_CLAIM_FINAL && !claim->split;
        enum lineage_claim right = whole ? LINEAGE_REPLICA : LINEAGE_PARTIAL;
        return claim->lineage->claim == right ? 0 : err_set(err, EPROTO, "the source sent a wrong claim");
    }
    return err_set(err, EMSGSIZE, "the source sends lineages faster than the protocol allows");
}

/* The newest claim for `disk` up to the mark; older ones are outdated by it and dropped. */
static struct lineage *newest_claim(struct arrival *arrival, size_t disk, uint32_t sequence, bool *ret_split)
{
    struct lineage *newest = NULL;
    uint32_t newest_sequence = 0;
    for (size_t i = 0; i < ARRIVAL_MAX_CLAIMS; i++) {
        struct arrival_claim *claim = &arrival->claims[i];
        if (!claim->lineage || claim->disk != disk || (int32_t)(claim->sequence - sequence) > 0)
            continue;
        struct lineage *lineage = TAKE_PTR(claim->lineage);
        if (newest && (int32_t)(claim->sequence - newest_sequence) < 0) {
            lineage_free(lineage);
            continue;
        }
        lineage_free(newest);
        newest = lineage;
        newest_sequence = claim->sequence;
        *ret_split = claim->split;
    }
    return newest;
}

int arrival_apply_claims(struct arrival *arrival, uint32_t sequence, struct err *err)
{
    for (size_t i = 0; i < arrival->config.disk_count; i++) {
        bool split = false;
        _cleanup_(lineage_freep) struct lineage *claim = newest_claim(arrival, i, sequence, &split);
        struct disk *disk = machine_disk(arrival->machine, i);
        int r = 0;
        if (claim && split)
            r = disk_expect(disk, claim, arrival->missing[i].bits, arrival->missing[i].size, err);
        else if (claim)
            r = disk_set_lineage(disk, claim, err);
        if (r < 0)
            return r;
        if (claim && claim->reached && arrival->donor[i])
            donor_punch(arrival->donor[i], claim->cursor);
    }
    return 0;
}

/* All blocks before the mark are written. disk_set_lineage makes them durable before it believes them; then
 * the source is told. */
static int pass_mark(struct arrival *arrival, uint32_t mark, struct err *err)
{
    int r = arrival_apply_claims(arrival, mark, err);
    if (r < 0)
        return r;
    uint8_t bytes[WIRE_MARK_SIZE];
    wire_mark_encode(&(struct wire_mark){.sequence = mark}, bytes);
    arrival->done_mark = mark;
    return link_send(arrival->session.control, FRAME_MARKED, bytes, sizeof bytes, NULL, 0, err);
}

/* One turn: a claim from the source, or a mark that all data connections and the claims (on the control
 * connection) have passed, or a wait for either. */
static int turn(struct arrival *arrival, struct err *err)
{
    struct mail *mail;
    int r = session_next(&arrival->session, clock_now(), &mail, err);
    if (r == 0) {
        if (mail->frame.type == FRAME_LINEAGE)
            r = arrival_claim(arrival, mail, err);
        else if (mail->frame.type == FRAME_MISSING)
            r = arrival_missing(arrival, mail, err);
        else if (mail->frame.type == FRAME_ANEW)
            r = arrival_renew(arrival, err);
        else
            r = err_set(err, EPROTO, "the source sent \"%s\" during the transfer",
                        frame_type_name(mail->frame.type));
        free(mail);
        return r;
    }
    if (r != -EAGAIN)
        return r;
    uint32_t mark = MIN(arrival_marked(arrival), arrival->claimed_mark);
    if (mark != arrival->done_mark)
        return pass_mark(arrival, mark, err);
    if ((r = arrival_tell_checkpoint(arrival, err)) < 0)
        return r;
    if (arrival->compare_memory && ram_view_populate(&arrival->compare.ram))
        return 0;
    return session_nap(&arrival->session, clock_now() + 20 * NSEC_PER_MSEC, err);
}

static int check_qemu(struct arrival *arrival, struct err *err)
{
    struct qemu_migration migration;
    int r = qemu_migrate_query(machine_qemu(arrival->machine), &migration, err);
    if (r < 0)
        return err_context(err, "QEMU on the destination is gone");
    if (strcmp(migration.status, "failed") == 0)
        return err_set(err, EIO, "QEMU on the destination could not load the guest: %s",
                       migration.error[0] ? migration.error : "see qemu.log in the VM's folder there");
    return 0;
}

/* What the comparison will read. It is filled while the source is silent (turn), before the guest stands
 * still. */
static int view_memory(struct arrival *arrival, struct err *err)
{
    return ram_view_open(&arrival->compare.ram, qemu_ram_fd(machine_qemu(arrival->machine)),
                         arrival->config.memory, true, err);
}

int arrival_transfer(struct arrival *arrival, struct err *err)
{
    int r = 0;
    int64_t looked = clock_now();
    if (arrival->compare_memory && (r = view_memory(arrival, err)) < 0)
        return r;
    session_hurry(); /* not before: QEMU, which this thread has started, would have inherited it */
    while (r == 0 && (!arrival->final_mark || arrival->done_mark != arrival->final_mark)) {
        r = turn(arrival, err);
        if (r == 0 && clock_now() - looked > NSEC_PER_SEC) {
            looked = clock_now();
            r = check_qemu(arrival, err);
        }
    }
    return r;
}

/* All that was let through to QEMU is loaded. Its monitor may answer in the middle of that, but not twice. */
static int wait_taken(struct arrival *arrival, struct err *err)
{
    int64_t deadline = clock_now() + MOVE_PAUSE_NS;
    for (int answers = 0; answers < 2;) {
        char status[32];
        bool awaited = stream_is_awaited(arrival->session.stream);
        int r = qemu_status(machine_qemu(arrival->machine), status, err);
        if (r < 0 || (r = session_check(&arrival->session, err)) < 0)
            return r;
        if (strcmp(status, "inmigrate") != 0) /* nothing is held back */
            return 0;
        answers = awaited ? answers + 1 : 0;
        if (!awaited && (r = check_qemu(arrival, err)) < 0)
            return r;
        if (clock_now() > deadline)
            return err_set(err, ETIMEDOUT, "QEMU on the destination did not take the guest in time");
        r = awaited ? 0 : session_nap(&arrival->session, clock_now() + 2 * NSEC_PER_MSEC, err);
        if (r < 0)
            return r;
    }
    return 0;
}

/* QEMU stops in "inmigrate" until its stream has ended. */
static int wait_loaded(struct arrival *arrival, struct err *err)
{
    int64_t deadline = clock_now() + MOVE_PAUSE_NS;
    for (;;) {
        char status[32];
        int r = qemu_status(machine_qemu(arrival->machine), status, err);
        if (r < 0 || (r = session_check(&arrival->session, err)) < 0)
            return r;
        if (strcmp(status, "inmigrate") != 0)
            return 0;
        if ((r = check_qemu(arrival, err)) < 0)
            return r;
        if (clock_now() > deadline)
            return err_set(err, ETIMEDOUT, "QEMU on the destination did not finish loading the guest");
        r = session_nap(&arrival->session, clock_now() + 2 * NSEC_PER_MSEC, err);
        if (r < 0)
            return r;
    }
}

/* --- comparing an emulated guest's memory --------------------------------------------------------------- */

int arrival_hashes(struct arrival *arrival, struct link *link, const uint8_t *payload, size_t size,
                   struct err *err)
{
    struct compare *compare = &arrival->compare;
    bool end;
    int r = compare_check(compare, payload, size, &end, err);
    if (r < 0 || !end)
        return r;
    if (compare->count > FRAME_MAX_PAYLOAD / 8)
        return err_set(err, EIO, "%zu pages of the guest's memory arrived wrong", compare->count);
    for (size_t i = 0; i < compare->count; i++)
        put_le64(&compare->differ[i], compare->differ[i]);
    r = link_send(link, FRAME_WANTED, compare->differ, compare->count * 8, NULL, 0, err);
    compare->next = compare->count = 0; /* they may come once more, to verify */
    return r;
}

int arrival_page(struct arrival *arrival, const uint8_t *payload, size_t size, struct err *err)
{
    if (size == 0) {
        int r = stream_let_go(arrival->session.stream, err); /* this thread's, until the session ends */
        arrival->compared = r == 0;
        session_wake(&arrival->session);
        return r;
    }
    if (size != 8 + COMPARE_PAGE || get_le64(payload) >= arrival->compare.ram.pages)
        return err_set(err, EPROTO, "a page of the guest's memory makes no sense");
    return compare_write(&arrival->compare, get_le64(payload), payload + 8, err);
}

/* The source sends its hashes once it hears "loaded"; data link 0 compares. */
static int wait_compared(struct arrival *arrival, struct err *err)
{
    int64_t deadline = clock_now() + MOVE_PAUSE_NS;
    arrival->comparing = true;
    int r = link_send(arrival->session.control, FRAME_LOADED, NULL, 0, NULL, 0, err);
    while (r == 0 && !arrival->compared) {
        if (clock_now() > deadline)
            return err_set(err, ETIMEDOUT, "the guest's memory was not compared in time");
        r = session_nap(&arrival->session, clock_now() + 20 * NSEC_PER_MSEC, err);
    }
    return r;
}

static int record_ready(struct arrival *arrival, struct err *err)
{
    struct epoch_record record = *epoch_get(arrival->epoch);
    arrival_note_blocks(arrival);
    record.ready = true;
    record.borrowed = arrival_lacks(arrival);
    record.memory_away = arrival->memory_later;
    record.from = arrival->source.fingerprint; /* it may have to ask what became of this, however late */
    return arrival_record(arrival, &record, err);
}

/* The devices find memory as it was at the source. And then little is left until the guest goes on, so that
 * its clock can be set: as little as can be. What fails behind the record is refused durably. */
static int compare_first(struct arrival *arrival, struct err *err)
{
    int r = wait_taken(arrival, err);
    if (r == 0)
        r = wait_compared(arrival, err);
    if (r == 0)
        r = wait_taken(arrival, err);
    if (r == 0)
        r = record_ready(arrival, err);
    return r < 0 ? r : stream_finish(arrival->session.stream, err);
}

int arrival_pause(struct arrival *arrival, struct err *err)
{
    bool first = arrival->compare_memory && arrival->clock;
    int r = first ? compare_first(arrival, err) : 0;
    if (r == 0)
        r = wait_loaded(arrival, err);
    if (r == 0 && arrival->compare_memory && !first)
        r = wait_compared(arrival, err);
    if (r == 0 && !first)
        r = record_ready(arrival, err);
    if (r < 0)
        return r;
    arrival->ready = true;
    _cleanup_json_ json_t *ready = json_pack("{s:s}", "host", arrival->host->name);
    return link_send_json(arrival->session.control, FRAME_READY, ready, err);
}
