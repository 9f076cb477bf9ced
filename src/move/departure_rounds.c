/* SPDX-License-Identifier: Apache-2.0
 *
 * The disks' rounds. disk_advance seals a generation; relocate walks what the destination lacks up to it, in
 * address order, and the pieces go over whatever data connection has the shortest queue; then a mark follows
 * on every one of them, and before it, on the control connection, the claim that the copy there may make once
 * the mark's data is durable. The destination makes a round durable while the next one, or memory, goes over.
 */
#include "base/clock.h"
#include "base/macro.h"
#include "move/departure.h"
#include "move/fault.h"

#include <errno.h>
#include <xxhash.h>

#define PIECE_BYTES ((size_t)WIRE_RUN_MAX_BLOCKS * DISK_BLOCK)
#define CHECKPOINT_NS NSEC_PER_SEC /* how often a long round lets the destination claim what it has */

int departure_send_claim(struct departure *departure, size_t i, const struct lineage *claim,
                         uint32_t sequence, unsigned flags, struct err *err)
{
    _cleanup_free_ void *bytes = NULL;
    size_t size;
    uint8_t head[WIRE_CLAIM_SIZE];
    struct wire_claim wire = {.disk = (uint16_t)i, .flags = (uint16_t)flags, .sequence = sequence};
    if (lineage_encode(claim, &bytes, &size) < 0)
        return err_set(err, ENOMEM, "out of memory");
    wire_claim_encode(&wire, head);
    return link_send(departure->session.control, FRAME_LINEAGE, head, sizeof head, bytes, size, err);
}

/* A slow connection gets less. */
struct link *rounds_quietest(struct departure *departure)
{
    struct session *session = &departure->session;
    struct link *best = session->data[departure->next_link++ % session->data_count];
    size_t least = link_queued(best);
    for (unsigned i = 0; i < session->data_count && least; i++) {
        size_t queued = link_queued(session->data[i]);
        if (queued < least) {
            least = queued;
            best = session->data[i];
        }
    }
    return best;
}

int rounds_send_run(struct departure *departure, size_t i, uint8_t *payload,
                    const struct relocate_piece *piece, struct err *err)
{
    struct wire_run run = {
        .disk = (uint16_t)i,
        .flags = piece->zero ? WIRE_RUN_ZERO : 0,
        .generation = piece->run.generation,
        .block = piece->run.block,
        .count = (uint32_t)piece->run.count,
        .checksum = piece->zero ? 0 : XXH3_64bits(payload + WIRE_RUN_SIZE, piece->size),
    };
    wire_run_encode(&run, payload);
    fault_data(payload + WIRE_RUN_SIZE, piece->size, "source.run");
    int r =
        link_send_buffer(rounds_quietest(departure), FRAME_RUN, payload, WIRE_RUN_SIZE + piece->size, err);
    if (r == 0)
        departure->numbers.disk_sent += WIRE_RUN_SIZE + FRAME_HEADER_SIZE + piece->size;
    return r;
}

/* Sends the next piece of disk `i`'s round, or asks whether it is there. 1 = done, 0 = the round is over. */
static int send_piece(struct departure *departure, size_t i, struct err *err)
{
    struct relocate_piece piece;
    int r = departure_take_answer(departure, false, err);
    if (r != 0)
        return r;
    uint8_t *payload = link_buffer(WIRE_RUN_SIZE + PIECE_BYTES);
    if (!payload)
        return err_set(err, ENOMEM, "out of memory");
    r = relocate_next(departure->relocate[i], payload + WIRE_RUN_SIZE, PIECE_BYTES, &piece, err);
    if (r == 1 && (piece.zero || !departure->donor[i])) {
        r = rounds_send_run(departure, i, payload, &piece, err);
        return r < 0 ? r : 1;
    }
    if (r == 1 && (r = departure_ask_donor(departure, i, &piece, payload + WIRE_RUN_SIZE, err)) == 0)
        r = 1;
    else if (r == 0 && (r = departure_take_answer(departure, true, err)) == 0)
        departure->donor[i] = false; /* what the guest has changed since is not looked for */
    link_buffer_free(payload);
    return r;
}

static uint64_t remaining_bytes(const struct departure *departure)
{
    uint64_t blocks = 0;
    for (size_t i = 0; i < departure_disks(departure); i++)
        blocks += relocate_remaining(departure->relocate[i]);
    return blocks * DISK_BLOCK;
}

/* What a round from now on would take, the rest of the one under way included. */
uint64_t rounds_pending(const struct departure *departure)
{
    uint64_t blocks = 0;
    for (size_t i = 0; i < departure_disks(departure); i++)
        blocks +=
            relocate_pending(departure->relocate[i], disk_generation(machine_disk(departure->machine, i)));
    return blocks * DISK_BLOCK;
}

/* Seals every disk's current generation; what is above the last one is the new round. */
int rounds_begin(struct departure *departure, enum lineage_kind kind, struct err *err)
{
    for (size_t i = 0; i < departure_disks(departure); i++) {
        struct id id = id_random();
        int r = disk_advance(machine_disk(departure->machine, i), &id, kind, departure->host->name,
                             &departure->sealed[i], err);
        if (r < 0)
            return r;
        relocate_round(departure->relocate[i], departure->sealed[i]);
    }
    departure->numbers.disk_rounds++;
    departure->round_open = true;
    return 0;
}

/* Marks that the destination has not made durable yet. */
uint32_t rounds_open_marks(struct departure *departure)
{
    pthread_mutex_lock(&departure->session.lock);
    uint32_t open = departure->mark - departure->session.marked;
    pthread_mutex_unlock(&departure->session.lock);
    return open;
}

static int send_round_claim(struct departure *departure, size_t i, uint32_t sequence, unsigned flags,
                            struct err *err)
{
    _cleanup_(lineage_freep) struct lineage *claim = NULL;
    int r = disk_lineage(machine_disk(departure->machine, i), &claim, err);
    if (r < 0)
        return r;
    relocate_claim(departure->relocate[i], claim);
    if (flags & WIRE_CLAIM_FINAL && !(flags & WIRE_CLAIM_SPLIT))
        claim->claim = LINEAGE_REPLICA;
    return departure_send_claim(departure, i, claim, sequence, flags, err);
}

/* After whole rounds of all disks. */
static int send_claims(struct departure *departure, bool final, struct err *err)
{
    size_t disks = departure_disks(departure);
    for (size_t i = 0; i < disks; i++) {
        unsigned flags = (final ? WIRE_CLAIM_FINAL : 0) | (i + 1 == disks ? WIRE_CLAIM_LAST : 0) |
                         (final && departure->split ? WIRE_CLAIM_SPLIT : 0);
        int r = send_round_claim(departure, i, departure->mark + 1, flags, err);
        if (r < 0)
            return r;
    }
    return 0;
}

/* The claims of a mark go before it, on the control connection. */
static int send_mark(struct departure *departure, struct err *err)
{
    uint8_t mark[WIRE_MARK_SIZE];
    wire_mark_encode(&(struct wire_mark){.sequence = ++departure->mark}, mark);
    for (unsigned i = 0; i < departure->session.data_count; i++) {
        int r = link_send(departure->session.data[i], FRAME_MARK, mark, sizeof mark, NULL, 0, err);
        if (r < 0)
            return r;
    }
    return 0;
}

int rounds_mark(struct departure *departure, bool final, struct err *err)
{
    int r = send_claims(departure, final, err);
    return r < 0 ? r : send_mark(departure, err);
}

/* In the middle of disk `i`'s round: what has gone over counts, should the move end now. A fork's copy must
 * go on saying that it is one until all that it wrote has been replaced. */
static int mark_checkpoint(struct departure *departure, size_t i, struct err *err)
{
    if (departure->forked[i] || rounds_open_marks(departure) >= MAX_OPEN_MARKS)
        return 0;
    int r;
    while ((r = departure_take_answer(departure, true, err)) == 1)
        ;
    if (r == 0)
        r = send_round_claim(departure, i, departure->mark + 1, WIRE_CLAIM_LAST, err);
    return r < 0 ? r : send_mark(departure, err);
}

/* Until at most `open` marks are. */
int rounds_wait_marked(struct departure *departure, uint32_t open, struct err *err)
{
    int64_t deadline = clock_now() + 4 * MOVE_ANSWER_MS * NSEC_PER_MSEC;
    int r = departure_check(departure, err);
    while (r == 0 && rounds_open_marks(departure) > open) {
        if (clock_now() > deadline)
            return err_set(err, ETIMEDOUT,
                           "the destination's disk does not keep up: a round was not durable in time");
        r = session_nap(&departure->session, clock_now() + 50 * NSEC_PER_MSEC, err);
    }
    return r;
}

bool departure_switch_waits(const struct departure *departure)
{
    return departure->migration >= MIGRATION_PRE_SWITCHOVER;
}

/* Goes on with the open round. 1 = it is over, 0 = the slice is. */
int rounds_send(struct departure *departure, const struct round_slice *slice, struct err *err)
{
    uint64_t until = departure->numbers.disk_sent + slice->max_bytes;
    int64_t shown = clock_now(), checkpoint = shown + CHECKPOINT_NS;
    for (size_t i = 0; i < departure_disks(departure); i++) {
        int r;
        while ((r = send_piece(departure, i, err)) == 1) {
            if (departure->numbers.disk_sent >= until || (slice->deadline && clock_now() > slice->deadline) ||
                (slice->until_switch && departure_switch_waits(departure)))
                return 0;
            if (clock_now() >= checkpoint) {
                checkpoint = clock_now() + CHECKPOINT_NS;
                r = mark_checkpoint(departure, i, err);
            }
            if (r >= 0 && clock_now() - shown > SHOW_NS) {
                shown = clock_now();
                departure->numbers.disk_remaining = remaining_bytes(departure);
                plan_refine(departure);
                departure_show(departure);
                r = departure_check_time(departure, err);
            }
            if (r < 0)
                return r;
        }
        if (r < 0)
            return r;
    }
    departure->round_open = false;
    departure->round_ended = clock_now();
    return 1;
}

/* The destination makes a round durable while the next one, or memory, goes over. */
int rounds_whole(struct departure *departure, struct err *err)
{
    const struct round_slice all = {.max_bytes = UINT64_MAX / 2};
    int r = rounds_wait_marked(departure, MAX_OPEN_MARKS - 1, err);
    if (r == 0)
        r = rounds_begin(departure, LINEAGE_ROUND, err);
    if (r == 0)
        r = rounds_send(departure, &all, err);
    return r < 0 ? r : rounds_mark(departure, false, err);
}
