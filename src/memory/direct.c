/* SPDX-License-Identifier: Apache-2.0
 *
 * direct: theory of operation
 *
 * QEMU leaves a record's block unnamed where it is that of the record before. Records with a name pass, so
 * that QEMU always knows which block it is in; they carry a page, too. QEMU reads when it likes, so such a
 * page may be put into RAM long after a newer one came: from then on all records of a page that has passed
 * pass. They are few: one for each time that QEMU goes from block to block.
 *
 * A zero page is written only where there may be something else: where the RAM had data when the stream
 * began (QEMU puts firmware there before), or a page was put since.
 */
#include "memory/direct.h"

#include "base/bits.h"
#include "base/endian.h"
#include "base/macro.h"
#include "memory/qstream.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#define RUN_PAGES 64U /* one after the other in RAM, that are written together */

/* Pieces that lie one behind the other in the caller's buffer go to QEMU as one. */
struct span {
    const uint8_t *data;
    size_t size;
};

struct direct {
    direct_write_fn *write;
    void *arg;
    int ram;
    uint8_t name[256]; /* of the block: u8 length, text */
    uint64_t pages;
    uint8_t *used;   /* a bit for each page: it may not be zero */
    uint8_t *passed; /* likewise: a record of it has gone to QEMU */
    uint64_t put_count;
    struct qstream stream;

    /* Of one call. */
    const uint8_t *begin, *end; /* the caller's buffer */
    struct span span;
    struct iovec run[RUN_PAGES];
    uint64_t run_page;
    int run_count;
};

static const uint8_t zeroes[QSTREAM_PAGE_SIZE];

/* --- to QEMU -------------------------------------------------------------------------------------------- */

static int write_out(struct direct *direct, const uint8_t *data, size_t size, struct err *err)
{
    size_t written;
    return size ? direct->write(direct->arg, data, size, &written, err) : 0;
}

static int write_span(struct direct *direct, struct err *err)
{
    struct span span = direct->span;
    direct->span.size = 0;
    return write_out(direct, span.data, span.size, err);
}

static bool lasts(const struct direct *direct, const struct qstream_piece *piece)
{
    return piece->data >= direct->begin && piece->data < direct->end;
}

static int pass(struct direct *direct, const struct qstream_piece *piece, struct err *err)
{
    struct span *span = &direct->span;
    int r = 0;
    if (span->size && (!lasts(direct, piece) || span->data + span->size != piece->data))
        r = write_span(direct, err);
    if (r < 0 || !lasts(direct, piece))
        return r < 0 ? r : write_out(direct, piece->data, piece->size, err);
    if (!span->size)
        span->data = piece->data;
    span->size += piece->size;
    return 0;
}

/* --- into RAM ------------------------------------------------------------------------------------------- */

static int write_run(struct direct *direct, struct err *err)
{
    struct iovec *at = direct->run;
    int count = direct->run_count;
    off_t offset = (off_t)(direct->run_page * QSTREAM_PAGE_SIZE);
    direct->run_count = 0;
    while (count > 0) {
        ssize_t n = pwritev(direct->ram, at, count, offset);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return err_sys(err, n < 0 ? errno : EIO, "cannot write the guest's memory");
        offset += n;
        for (; count > 0 && (size_t)n >= at->iov_len; at++, count--)
            n -= (ssize_t)at->iov_len;
        if (n > 0) {
            at->iov_base = (uint8_t *)at->iov_base + n;
            at->iov_len -= (size_t)n;
        }
    }
    return 0;
}

/* `content` must last until the run is written. */
static int put(struct direct *direct, uint64_t page, const uint8_t *content, struct err *err)
{
    int r = 0;
    if (direct->run_count == RUN_PAGES || direct->run_page + (unsigned)direct->run_count != page)
        r = write_run(direct, err);
    if (direct->run_count == 0)
        direct->run_page = page;
    direct->run[direct->run_count++] =
        (struct iovec){.iov_base = (void *)content, .iov_len = QSTREAM_PAGE_SIZE};
    set_bit(direct->used, page, true);
    direct->put_count++;
    return r;
}

static int put_record(struct direct *direct, const struct qstream_piece *record, struct err *err)
{
    uint64_t page = qstream_page(record);
    if (record->kind == QSTREAM_ZERO)
        return get_bit(direct->used, page) ? put(direct, page, zeroes, err) : 0;
    int r = put(direct, page, record->data + QSTREAM_PAGE_RECORD - QSTREAM_PAGE_SIZE, err);
    return r == 0 && !lasts(direct, record) ? write_run(direct, err) : r;
}

/* --- the stream ----------------------------------------------------------------------------------------- */

static bool is_ours(const struct direct *direct, uint64_t page)
{
    return page < direct->pages && memcmp(direct->stream.block, direct->name, 1U + direct->name[0]) == 0;
}

static int take_piece(struct direct *direct, const struct qstream_piece *piece, bool at_record,
                      struct err *err)
{
    bool record = piece->kind != QSTREAM_BYTES;
    if (record && is_ours(direct, qstream_page(piece)) && !get_bit(direct->passed, qstream_page(piece)))
        return put_record(direct, piece, err);
    /* Its first eight bytes are a record's, as those of every record. */
    if (at_record && piece->size >= 8 && is_ours(direct, qstream_page(piece)))
        set_bit(direct->passed, qstream_page(piece), true);
    int r = write_run(direct, err); /* so that QEMU, when it has this, has all that came before it */
    return r < 0 ? r : pass(direct, piece, err);
}

int direct_take(struct direct *direct, const void *data, size_t size, struct err *err)
{
    const uint8_t *bytes = data;
    struct qstream_piece piece;
    int r = 0;
    direct->begin = bytes;
    direct->end = bytes + size;
    for (bool at_record; r == 0; r = take_piece(direct, &piece, at_record, err)) {
        at_record = qstream_at_record(&direct->stream);
        if (!qstream_next(&direct->stream, &bytes, &size, &piece))
            break;
    }
    if (r == 0)
        r = write_run(direct, err);
    return r < 0 ? r : write_span(direct, err);
}

/* --- life ----------------------------------------------------------------------------------------------- */

/* What the RAM has data of. */
static int look_around(struct direct *direct, struct err *err)
{
    off_t end = (off_t)(direct->pages * QSTREAM_PAGE_SIZE), from = 0;
    while ((from = lseek(direct->ram, from, SEEK_DATA)) >= 0 && from < end) {
        off_t to = lseek(direct->ram, from, SEEK_HOLE);
        if (to < 0)
            return err_sys(err, errno, "cannot look through the guest's memory");
        for (; from < MIN(to, end); from += QSTREAM_PAGE_SIZE)
            set_bit(direct->used, (uint64_t)from / QSTREAM_PAGE_SIZE, true);
    }
    return from < 0 && errno != ENXIO ? err_sys(err, errno, "cannot look through the guest's memory") : 0;
}

int direct_new(const char *block, int ram, uint64_t size, direct_write_fn *write, void *arg,
               struct direct **ret, struct err *err)
{
    struct direct *direct = calloc(1, sizeof *direct);
    uint64_t pages = size / QSTREAM_PAGE_SIZE;
    if (direct) {
        direct->used = calloc(1, pages / 8 + 1);
        direct->passed = calloc(1, pages / 8 + 1);
    }
    if (!direct || !direct->used || !direct->passed) {
        direct_free(direct);
        return err_set(err, ENOMEM, "out of memory for the guest's pages");
    }
    direct->name[0] = (uint8_t)strlen(block);
    memcpy(direct->name + 1, block, direct->name[0]);
    direct->ram = ram;
    direct->pages = pages;
    direct->write = write;
    direct->arg = arg;
    qstream_init(&direct->stream);
    int r = look_around(direct, err);
    if (r < 0) {
        direct_free(direct);
        return r;
    }
    *ret = direct;
    return 0;
}

uint64_t direct_pages(const struct direct *direct)
{
    return direct->put_count;
}

void direct_free(struct direct *direct)
{
    if (!direct)
        return;
    free(direct->used);
    free(direct->passed);
    free(direct);
}
