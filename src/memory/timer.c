/* SPDX-License-Identifier: Apache-2.0
 *
 * timer: theory of operation
 *
 * Until the device state begins the stream is read along (qstream.h). Then what comes is gathered, and looked
 * through in one piece when it is let go. The sections there are of no known length, so "timer" is found by
 * its own bytes: 24 of its 48 are known, and its section's number stands twice. A guest that makes such bytes
 * in a device's state before it has its own clock set wrong, and nobody else's.
 *
 * The end of a device state is EOF and a description of known length that ends with the stream: JSON, which
 * has no zero byte.
 */
#include "memory/timer.h"

#include "base/endian.h"
#include "base/macro.h"
#include "memory/qstream.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define FULL 0x04U
#define COMMAND 0x08U
#define PACKAGED 0x07U
#define PACKAGED_SIZE 9U /* u8 type, be16 command, be16 4, be32 length */
#define FOOTER 0x7eU
#define FOOTER_SIZE 5U
#define DESCRIPTION 0x06U
#define END_SIZE 6U /* u8 EOF, u8 DESCRIPTION, be32 length */

#define SECTION_SIZE 48U
#define TICKS 19U /* of the section */
#define NSEC 35U

static const uint8_t name_and_version[] = {5, 't', 'i', 'm', 'e', 'r', 0, 0, 0, 0, 0, 0, 0, 2};

enum state {
    STATE_READ,    /* up to the device state */
    STATE_HOLD,    /* until timer_let_go */
    STATE_PACKAGE, /* until it is whole */
    STATE_END,     /* the device state has gone, its end has not */
    STATE_OVER
};

struct timer {
    timer_write_fn *write;
    timer_shift_fn *shift;
    void *write_arg, *shift_arg;
    enum state state;
    struct qstream stream;
    uint64_t package; /* bytes of it that have not come */
    uint8_t *held;
    size_t size, room;
    uint8_t section[SECTION_SIZE]; /* "timer" as it came, for the end */
    const char *strange;
};

static int put(struct timer *timer, const uint8_t *data, size_t size, struct err *err)
{
    size_t written = 0;
    int r = size ? timer->write(timer->write_arg, data, size, &written, err) : 0;
    /* It may only be taken up again where the caller still has what was not written. */
    return r == -EINTR ? err_set(err, ECANCELED, "interrupted while QEMU got the guest's devices") : r;
}

static int put_held(struct timer *timer, struct err *err)
{
    int r = put(timer, timer->held, timer->size, err);
    free(timer->held);
    timer->held = NULL;
    timer->size = timer->room = 0;
    timer->state = STATE_OVER;
    return r;
}

static int gather(struct timer *timer, const uint8_t *data, size_t size, struct err *err)
{
    if (size > timer->room - timer->size) {
        size_t room = MAX(2 * timer->room, timer->size + size);
        uint8_t *more = realloc(timer->held, room);
        if (!more)
            return err_set(err, ENOMEM, "out of memory for the state of the guest's devices");
        timer->held = more;
        timer->room = room;
    }
    memcpy(timer->held + timer->size, data, size);
    timer->size += size;
    return 0;
}

/* NULL: it is not there. */
static uint8_t *find_section(const struct timer *timer)
{
    for (size_t at = 0; at + SECTION_SIZE <= timer->size; at++) {
        uint8_t *here = timer->held + at, *footer = here + SECTION_SIZE - FOOTER_SIZE;
        if (here[0] == FULL && footer[0] == FOOTER && memcmp(here + 1, footer + 1, 4) == 0 &&
            memcmp(here + FOOTER_SIZE, name_and_version, sizeof name_and_version) == 0)
            return here;
    }
    return NULL;
}

/* Where its end begins; `size` if it is not there. */
static size_t find_end(const struct timer *timer)
{
    for (size_t at = timer->size; at-- > FOOTER_SIZE;) {
        const uint8_t *here = timer->held + at;
        if (timer->size - at >= END_SIZE && here[0] == 0 && here[1] == DESCRIPTION &&
            get_be32(here + 2) == timer->size - at - END_SIZE && *(here - FOOTER_SIZE) == FOOTER)
            return at;
    }
    return timer->size;
}

/* Wraps around as QEMU's own sums do. */
static void set_forward(uint8_t *section, const struct timer_shift *shift)
{
    put_be64(section + TICKS, get_be64(section + TICKS) + (uint64_t)shift->ticks);
    put_be64(section + NSEC, get_be64(section + NSEC) + (uint64_t)shift->nsec);
}

/* All that is held goes, its clocks set. */
static int put_rewritten(struct timer *timer, struct err *err)
{
    uint8_t *section = find_section(timer);
    if (section) {
        struct timer_shift shift = timer->shift(timer->shift_arg, true);
        set_forward(section, &shift);
    } else {
        timer->strange = "QEMU's state of the guest's devices has no clock where it is looked for";
    }
    return put_held(timer, err);
}

static int hold(struct timer *timer, const uint8_t *data, size_t size, struct err *err)
{
    if (size <= TIMER_MOST - timer->size)
        return gather(timer, data, size, err);
    timer->strange = "QEMU's state of the guest's devices is too long to be held back";
    int r = put_held(timer, err);
    return r < 0 ? r : put(timer, data, size, err);
}

/* The first piece of what is to be held, or one before it. */
static int look(struct timer *timer, const struct qstream_piece *piece, bool element, struct err *err)
{
    if (timer->stream.strange) {
        timer->strange = timer->stream.strange;
        timer->state = STATE_OVER;
    } else if (qstream_is_over(&timer->stream)) {
        timer->state = STATE_HOLD;
        return hold(timer, piece->data, piece->size, err);
    } else if (element && piece->size == PACKAGED_SIZE && piece->data[0] == COMMAND &&
               get_be16(piece->data + 1) == PACKAGED && get_be32(piece->data + 5)) {
        timer->package = get_be32(piece->data + 5);
        timer->state = STATE_PACKAGE;
    }
    return put(timer, piece->data, piece->size, err);
}

static int take_piece(struct timer *timer, const struct qstream_piece *piece, bool element, struct err *err)
{
    int r;
    switch (timer->state) {
    case STATE_READ:
        return look(timer, piece, element, err);
    case STATE_PACKAGE: /* a piece is inside of it */
        timer->package -= piece->size;
        r = hold(timer, piece->data, piece->size, err);
        return r == 0 && timer->state == STATE_PACKAGE && !timer->package ? put_rewritten(timer, err) : r;
    case STATE_HOLD:
    case STATE_END:
        return hold(timer, piece->data, piece->size, err);
    case STATE_OVER:
        break;
    }
    return put(timer, piece->data, piece->size, err);
}

int timer_take(struct timer *timer, const void *data, size_t size, struct err *err)
{
    const uint8_t *bytes = data;
    struct qstream_piece piece;
    int r = 0;
    if (timer->state == STATE_OVER)
        return put(timer, bytes, size, err);
    for (bool element; r == 0; r = take_piece(timer, &piece, element, err)) {
        element = qstream_at_element(&timer->stream);
        if (!qstream_next(&timer->stream, &bytes, &size, &piece))
            break;
    }
    /* What was read of an element that is still to come; nobody reads along any more. */
    if (r == 0 && timer->state == STATE_OVER && qstream_end(&timer->stream, &piece))
        r = put(timer, piece.data, piece.size, err);
    return r;
}

bool timer_holds(const struct timer *timer)
{
    return timer->state == STATE_HOLD || timer->state == STATE_END;
}

bool timer_is_over(const struct timer *timer)
{
    return timer->state == STATE_OVER;
}

int timer_let_go(struct timer *timer, struct err *err)
{
    if (timer->state != STATE_HOLD)
        return 0;
    const uint8_t *section = find_section(timer);
    size_t end = find_end(timer);
    if (!section || end == timer->size)
        return put_rewritten(timer, err);
    memcpy(timer->section, section, sizeof timer->section);
    int r = put(timer, timer->held, end, err);
    timer->size -= end;
    memmove(timer->held, timer->held + end, timer->size);
    timer->state = STATE_END;
    return r;
}

int timer_finish(struct timer *timer, struct err *err)
{
    if (timer->state != STATE_END)
        return 0;
    struct timer_shift shift = timer->shift(timer->shift_arg, false);
    set_forward(timer->section, &shift);
    int r = shift.nsec ? put(timer, timer->section, sizeof timer->section, err) : 0;
    return r < 0 ? r : put_held(timer, err);
}

const char *timer_strange(const struct timer *timer)
{
    return timer->strange;
}

int timer_new(timer_write_fn *write, void *write_arg, timer_shift_fn *shift, void *shift_arg,
              struct timer **ret, struct err *err)
{
    struct timer *timer = calloc(1, sizeof *timer);
    if (!timer)
        return err_set(err, ENOMEM, "out of memory for the state of the guest's devices");
    timer->write = write;
    timer->shift = shift;
    timer->write_arg = write_arg;
    timer->shift_arg = shift_arg;
    qstream_init(&timer->stream);
    *ret = timer;
    return 0;
}

void timer_free(struct timer *timer)
{
    if (timer)
        free(timer->held);
    free(timer);
}
