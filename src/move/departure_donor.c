/* SPDX-License-Identifier: Apache-2.0
 *
 * The destination has an image without a common history that may hold much of what is about to be sent
 * (disk/donor.h). The first round then sends sums of blocks instead of blocks; the destination takes what it
 * finds, and says what it did not find, which is sent.
 *
 *   source   sums, ticket ->   ... up to ASKED_MAX at a time, so that round trips cost nothing
 *                              <- ticket, bits: these blocks differ
 *            runs ->           read anew: what the guest has changed since comes in the next round
 *
 * Nothing is claimed before it is answered: a checkpoint, and the round's end, wait for all answers.
 */
#include "base/clock.h"
#include "base/macro.h"
#include "move/departure.h"

#include <errno.h>
#include <openssl/rand.h>
#include <stdlib.h>

#define ASKED_MAX 128U
#define ANSWER_NS (60 * NSEC_PER_SEC)

struct asked {
    enum { ASKED_FREE, ASKED_OPEN, ASKED_ANSWERED } state; /* guarded by the session's lock */
    uint64_t differ;                                       /* too */
    size_t disk;
    struct disk_run run;
};

/* The walker owns it but for what is marked. */
struct asking {
    struct sums *sums;
    struct asked asked[ASKED_MAX];
    unsigned open;    /* not free */
    unsigned at;      /* where the next one is looked for */
    int64_t answered; /* when the newest answer was taken, or asked for */
};

int departure_new_asking(struct departure *departure, uint8_t ret_key[SUMS_KEY], struct err *err)
{
    struct asking *asking = calloc(1, sizeof *asking);
    if (!asking || RAND_bytes(ret_key, SUMS_KEY) != 1) {
        free(asking);
        return err_set(err, ENOMEM, "cannot make a key");
    }
    int r = sums_new(ret_key, &asking->sums, err);
    if (r < 0)
        free(asking);
    else
        departure->asking = asking;
    return r;
}

void departure_free_asking(struct departure *departure)
{
    if (!departure->asking)
        return;
    sums_free(departure->asking->sums);
    free(TAKE_PTR(departure->asking));
}

int departure_differ(struct departure *departure, const uint8_t *payload, size_t size, struct err *err)
{
    struct wire_differ differ;
    struct session *session = &departure->session;
    int r = wire_differ_decode(payload, size, &differ, err);
    if (r < 0)
        return r;
    pthread_mutex_lock(&session->lock);
    struct asked *asked =
        departure->asking && differ.ticket < ASKED_MAX ? &departure->asking->asked[differ.ticket] : NULL;
    bool wanted = asked && asked->state == ASKED_OPEN;
    if (wanted) {
        asked->differ = differ.bits;
        asked->state = ASKED_ANSWERED;
    }
    pthread_mutex_unlock(&session->lock);
    session_wake(session);
    return wanted ? 0 : err_set(err, EPROTO, "an answer to sums that were not asked about");
}

int departure_ask_donor(struct departure *departure, size_t i, const struct relocate_piece *piece,
                        const void *data, struct err *err)
{
    struct asking *asking = departure->asking;
    struct session *session = &departure->session;
    uint8_t *payload = link_buffer(WIRE_SUMS_SIZE + piece->run.count * WIRE_SUM_SIZE);
    if (!payload)
        return err_set(err, ENOMEM, "out of memory");
    int r =
        sums_make(asking->sums, data, piece->size, (uint8_t(*)[SUMS_SIZE])(payload + WIRE_SUMS_SIZE), err);
    if (r < 0) {
        link_buffer_free(payload);
        return r;
    }
    pthread_mutex_lock(&session->lock);
    while (asking->asked[asking->at].state != ASKED_FREE) /* one is: departure_take_answer saw to it */
        asking->at = (asking->at + 1) % ASKED_MAX;
    struct asked *asked = &asking->asked[asking->at];
    *asked = (struct asked){.state = ASKED_OPEN, .disk = i, .run = piece->run};
    pthread_mutex_unlock(&session->lock);
    asking->open++;
    asking->answered = clock_now();
    const struct wire_sums sums = {
        .disk = (uint16_t)i,
        .generation = piece->run.generation,
        .block = piece->run.block,
        .count = (uint32_t)piece->run.count,
        .ticket = asking->at,
    };
    size_t size = WIRE_SUMS_SIZE + piece->run.count * WIRE_SUM_SIZE;
    wire_sums_encode(&sums, payload);
    departure->numbers.disk_sent += FRAME_HEADER_SIZE + size;
    departure->numbers.disk_found += piece->size; /* until it is answered otherwise */
    return link_send_buffer(rounds_quietest(departure), FRAME_SUMS, payload, size, err);
}

/* Blocks that the destination has not found, as they are now. */
static int send_blocks(struct departure *departure, size_t i, struct disk_run run, struct err *err)
{
    const struct disk *disk = machine_disk(departure->machine, i);
    while (run.count) {
        struct relocate_piece piece;
        uint8_t *payload = link_buffer(WIRE_RUN_SIZE + WIRE_RUN_MAX_BLOCKS * (size_t)DISK_BLOCK);
        if (!payload)
            return err_set(err, ENOMEM, "out of memory");
        int r = relocate_read(machine_disk(departure->machine, i), &run, payload + WIRE_RUN_SIZE,
                              WIRE_RUN_MAX_BLOCKS * (size_t)DISK_BLOCK, &piece, err);
        if (r < 0) {
            link_buffer_free(payload);
            return r;
        }
        uint64_t end = MIN((piece.run.block + piece.run.count) * DISK_BLOCK, disk_size(disk));
        departure->numbers.disk_found -= end - piece.run.block * DISK_BLOCK;
        if ((r = rounds_send_run(departure, i, payload, &piece, err)) < 0)
            return r;
        run.block += piece.run.count;
        run.count -= piece.run.count;
    }
    return 0;
}

static int send_differing(struct departure *departure, const struct asked *asked, struct err *err)
{
    for (uint64_t at = 0; at < asked->run.count;) {
        struct disk_run run = {.block = asked->run.block + at, .generation = asked->run.generation};
        bool differs = asked->differ >> at & 1;
        for (; at < asked->run.count && (asked->differ >> at & 1) == differs; at++)
            run.count++;
        int r = differs ? send_blocks(departure, asked->disk, run, err) : 0;
        if (r < 0)
            return r;
    }
    return 0;
}

/* The oldest that is answered. */
static bool take_answered(struct departure *departure, struct asked *ret)
{
    struct asking *asking = departure->asking;
    bool found = false;
    pthread_mutex_lock(&departure->session.lock);
    for (unsigned n = 0; n < ASKED_MAX && !found; n++) {
        struct asked *asked = &asking->asked[(asking->at + 1 + n) % ASKED_MAX];
        found = asked->state == ASKED_ANSWERED;
        if (found) {
            *ret = *asked;
            asked->state = ASKED_FREE;
        }
    }
    pthread_mutex_unlock(&departure->session.lock);
    if (found) {
        asking->open--;
        asking->answered = clock_now();
    }
    return found;
}

int departure_take_answer(struct departure *departure, bool wait, struct err *err)
{
    struct asking *asking = departure->asking;
    struct asked asked;
    while (asking && asking->open) {
        if (take_answered(departure, &asked)) {
            int r = send_differing(departure, &asked, err);
            return r < 0 ? r : 1;
        }
        if (!wait && asking->open < ASKED_MAX)
            return 0;
        int r = departure_check(departure, err);
        if (r == 0 && clock_now() - asking->answered > ANSWER_NS)
            r = err_set(err, ETIMEDOUT, "the destination does not say which blocks it has");
        if (r == 0)
            r = session_nap(&departure->session, clock_now() + 50 * NSEC_PER_MSEC, err);
        if (r < 0)
            return r;
    }
    return 0;
}
