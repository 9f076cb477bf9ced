/* SPDX-License-Identifier: Apache-2.0
 *
 * holes: theory of operation
 *
 * A page of the block is in one of three states, and both directions meet under the lock:
 *
 *              its zero record comes                QEMU asks
 *   not seen  ----------------------->  kept   -----------------> let through
 *   not seen  --- QEMU asks -->  asked  --- its zero record comes --> let through
 *
 * A record of ours may only stand between two records of the RAM section, or, in a section of its own,
 * between two elements of the stream; qstream's pieces end at both. Records name their block unless it is
 * that of the record before: after one of ours, the next of the stream is given its name if that is another.
 */
#include "memory/holes.h"

#include "base/bits.h"
#include "base/clock.h"
#include "base/endian.h"
#include "base/macro.h"
#include "memory/qstream.h"
#include "memory/requests.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define NAME_MAX_SIZE 256U /* u8 length and name */
#define RECORD_ROOM (8 + NAME_MAX_SIZE + 1)
#define SECTION_ROOM (QSTREAM_PART_SIZE + RECORD_ROOM + QSTREAM_PART_END_SIZE)

struct holes {
    holes_write_fn *write;
    void *arg;
    uint8_t name[NAME_MAX_SIZE]; /* of the block, as it stands in a record */
    uint64_t pages;

    struct requests requests; /* holes_back's thread */

    pthread_mutex_t lock; /* for what follows, and for `write` */
    struct qstream stream;
    uint8_t *blocks; /* the stream's list of them, only their names */
    size_t blocks_size;
    uint8_t *kept, *asked, *came; /* a bit for each page */
    struct faults faults;
    struct workset *first; /* what QEMU asked for */
    uint64_t kept_count;
    bool open; /* one of the two is not understood: nothing is kept any more, and what was is let through */
    uint64_t *waiting; /* pages that were kept when QEMU asked, and wait for a place between two records */
    size_t waiting_count, waiting_room;
    bool strayed;     /* QEMU's current block is ours, whatever the stream's is */
    uint8_t *backlog; /* what could not be written */
    size_t backlog_size;
};

/* --- to QEMU, with the lock held ------------------------------------------------------------------------ */

static int keep_back(struct holes *holes, const uint8_t *data, size_t size, struct err *err)
{
    uint8_t *more = realloc(holes->backlog, holes->backlog_size + size);
    if (!more)
        return err_set(err, ENOMEM, "out of memory for QEMU's stream");
    memcpy(more + holes->backlog_size, data, size);
    holes->backlog = more;
    holes->backlog_size += size;
    return 0;
}

static int write_backlog(struct holes *holes, struct err *err)
{
    size_t written = 0;
    if (!holes->backlog_size)
        return 0;
    int r = holes->write(holes->arg, holes->backlog, holes->backlog_size, &written, err);
    holes->backlog_size -= written;
    memmove(holes->backlog, holes->backlog + written, holes->backlog_size);
    return r;
}

static int put(struct holes *holes, const uint8_t *data, size_t size, struct err *err)
{
    size_t written = 0;
    int r = size ? write_backlog(holes, err) : 0;
    if (r == 0 && size)
        r = holes->write(holes->arg, data, size, &written, err);
    if (r != -EINTR)
        return r;
    return keep_back(holes, data + written, size - written, err);
}

/* Where QEMU is in its stream: a record can be put there, a section, or nothing. */
enum place { PLACE_RECORD, PLACE_SECTION, PLACE_NONE };

static enum place place(const struct holes *holes)
{
    return qstream_at_record(&holes->stream)    ? PLACE_RECORD
           : qstream_at_element(&holes->stream) ? PLACE_SECTION
                                                : PLACE_NONE;
}

static size_t make_record(uint8_t *ret, uint64_t page, const uint8_t *name)
{
    put_be64(ret, page * QSTREAM_PAGE_SIZE | (QSTREAM_ZERO_FLAGS & ~QSTREAM_CONTINUE));
    memcpy(ret + 8, name, 1U + name[0]);
    ret[9 + name[0]] = 0;
    return 10U + name[0];
}

static int put_zero(struct holes *holes, enum place at, uint64_t page, struct err *err)
{
    uint8_t bytes[SECTION_ROOM];
    size_t size = at == PLACE_SECTION ? qstream_make_part(&holes->stream, bytes) : 0;
    size += make_record(bytes + size, page, holes->name);
    if (at == PLACE_SECTION)
        size += qstream_make_part_end(&holes->stream, bytes + size);
    holes->strayed = memcmp(holes->stream.block, holes->name, 1U + holes->name[0]) != 0;
    return put(holes, bytes, size, err);
}

static int put_waiting(struct holes *holes, enum place at, struct err *err)
{
    int r = 0;
    while (r == 0 && holes->waiting_count) {
        uint64_t page = holes->waiting[--holes->waiting_count];
        r = put_zero(holes, at, page, err);
        faults_came(&holes->faults, page, clock_now());
    }
    return r;
}

static int put_kept(struct holes *holes, enum place at, struct err *err)
{
    int r = 0;
    for (uint64_t page = 0; r == 0 && holes->kept_count && page < holes->pages; page++) {
        if (!get_bit(holes->kept, page))
            continue;
        set_bit(holes->kept, page, false);
        holes->kept_count--;
        r = put_zero(holes, at, page, err);
    }
    return r;
}

/* --- the stream ----------------------------------------------------------------------------------------- */

static bool is_ours(const struct holes *holes, const struct qstream_piece *piece)
{
    return piece->kind != QSTREAM_BYTES && qstream_page(piece) < holes->pages &&
           memcmp(holes->stream.block, holes->name, 1U + holes->name[0]) == 0;
}

/* Of a piece that is ours. True: it is not for QEMU, at least not now. */
static bool keep(struct holes *holes, const struct qstream_piece *piece)
{
    uint64_t page = qstream_page(piece);
    set_bit(holes->came, page, true);
    if (holes->open || piece->kind != QSTREAM_ZERO || get_bit(holes->asked, page))
        return false;
    holes->kept_count += !get_bit(holes->kept, page);
    set_bit(holes->kept, page, true);
    return true;
}

/* A record that goes on in a block where QEMU is not any more. */
static int put_named(struct holes *holes, const struct qstream_piece *piece, struct err *err)
{
    uint8_t head[8 + NAME_MAX_SIZE];
    const uint8_t *name = holes->stream.block;
    put_be64(head, get_be64(piece->data) & ~(uint64_t)QSTREAM_CONTINUE);
    memcpy(head + 8, name, 1U + name[0]);
    holes->strayed = false;
    int r = put(holes, head, 9U + name[0], err);
    return r < 0 ? r : put(holes, piece->data + 8, piece->size - 8, err);
}

/* Pieces that lie one behind the other in the caller's buffer go to QEMU as one. */
struct span {
    const uint8_t *begin, *end; /* the buffer */
    const uint8_t *data;
    size_t size;
};

static int put_span(struct holes *holes, struct span *span, struct err *err)
{
    int r = put(holes, span->data, span->size, err);
    span->size = 0;
    return r;
}

static int put_piece(struct holes *holes, struct span *span, const struct qstream_piece *piece,
                     struct err *err)
{
    bool inside = piece->data >= span->begin && piece->data < span->end;
    int r = 0;
    if (span->size && (!inside || span->data + span->size != piece->data))
        r = put_span(holes, span, err);
    if (r < 0 || !inside) /* it is gone with the next one */
        return r < 0 ? r : put(holes, piece->data, piece->size, err);
    if (!span->size)
        span->data = piece->data;
    span->size += piece->size;
    return 0;
}

static int pass(struct holes *holes, struct span *span, const struct qstream_piece *piece, struct err *err)
{
    if (piece->kind == QSTREAM_BYTES || !holes->strayed)
        return put_piece(holes, span, piece, err);
    int r = put_span(holes, span, err);
    return r < 0 ? r : put_named(holes, piece, err);
}

static int take_piece(struct holes *holes, struct span *span, const struct qstream_piece *piece,
                      struct err *err)
{
    bool ours = is_ours(holes, piece);
    if (ours && keep(holes, piece))
        return 0;
    int r = pass(holes, span, piece, err);
    if (r < 0 || !ours || !get_bit(holes->asked, qstream_page(piece)))
        return r;
    r = put_span(holes, span, err); /* somebody waits for it */
    faults_came(&holes->faults, qstream_page(piece), clock_now());
    return r;
}

/* Without memory for it the stream cannot be gone on with, should it break. */
static void note_block(struct holes *holes, const struct qstream_piece *piece)
{
    size_t size = 1U + piece->data[0];
    uint8_t *more = piece->size == size + 8 ? realloc(holes->blocks, holes->blocks_size + size) : NULL;
    if (!more)
        return;
    memcpy(more + holes->blocks_size, piece->data, size);
    holes->blocks = more;
    holes->blocks_size += size;
}

/* What QEMU is to get before the stream goes on, at this place. */
static int put_between(struct holes *holes, enum place at, struct span *span, struct err *err)
{
    bool all = holes->open && holes->kept_count;
    if (at == PLACE_NONE || (!all && !holes->waiting_count))
        return 0;
    int r = put_span(holes, span, err);
    if (r == 0 && all)
        r = put_kept(holes, at, err);
    return r < 0 ? r : put_waiting(holes, at, err);
}

int holes_take(struct holes *holes, const void *data, size_t size, struct err *err)
{
    const uint8_t *bytes = data;
    struct qstream_piece piece;
    struct span span = {.begin = bytes, .end = bytes + size};
    pthread_mutex_lock(&holes->lock);
    int r = write_backlog(holes, err);
    if (r == -EINTR) /* all is taken none the less */
        r = 0;
    for (enum place at = place(holes); r == 0; at = place(holes)) {
        r = put_between(holes, at, &span, err);
        bool block = qstream_at_block(&holes->stream);
        if (r < 0 || !qstream_next(&holes->stream, &bytes, &size, &piece))
            break;
        if (block && !holes->stream.strange)
            note_block(holes, &piece);
        if (holes->stream.strange && !holes->open) { /* from this piece on */
            holes->open = true;
            r = put_between(holes, at, &span, err);
        }
        if (r == 0)
            r = take_piece(holes, &span, &piece, err);
    }
    if (r == 0)
        r = put_span(holes, &span, err);
    if (r == 0 && holes->backlog_size)
        r = err_set(err, EINTR, "interrupted");
    pthread_mutex_unlock(&holes->lock);
    return r;
}

/* --- the return path ------------------------------------------------------------------------------------ */

/* With the lock held. */
static int ask(struct holes *holes, const struct page_request *request, struct err *err)
{
    for (uint64_t page = request->page; page < request->end; page++) {
        set_bit(holes->asked, page, true);
        workset_add(holes->first, page);
        if (!get_bit(holes->came, page) || get_bit(holes->kept, page))
            faults_asked(&holes->faults, page, clock_now());
        if (!get_bit(holes->kept, page))
            continue;
        if (holes->waiting_count == holes->waiting_room) {
            size_t room = 2 * holes->waiting_room + 64;
            uint64_t *more = realloc(holes->waiting, room * sizeof *more);
            if (!more)
                return err_set(err, ENOMEM, "out of memory for pages that QEMU asks for");
            holes->waiting = more;
            holes->waiting_room = room;
        }
        set_bit(holes->kept, page, false);
        holes->kept_count--;
        holes->waiting[holes->waiting_count++] = page;
    }
    return 0;
}

/* With the lock held. */
static int listen_to(struct holes *holes, const uint8_t *bytes, size_t size, struct err *err)
{
    struct page_request request;
    int r = 0;
    while (r == 0 && requests_next(&holes->requests, &bytes, &size, &request))
        if (request.ours)
            r = ask(holes, &request, err);
    return r;
}

int holes_back(struct holes *holes, const void *data, size_t size, struct err *err)
{
    struct span nothing = {0};
    pthread_mutex_lock(&holes->lock);
    int r = write_backlog(holes, err);
    if (r == 0 || r == -EINTR)
        r = listen_to(holes, data, size, err);
    holes->open = holes->open || holes->requests.deaf;
    if (r == 0)
        r = put_between(holes, place(holes), &nothing, err);
    pthread_mutex_unlock(&holes->lock);
    return r;
}

/* --- life ----------------------------------------------------------------------------------------------- */

int holes_new(const char *block, uint64_t size, holes_write_fn *write, void *arg, struct holes **ret,
              struct err *err)
{
    struct holes *holes = calloc(1, sizeof *holes);
    uint64_t pages = size / QSTREAM_PAGE_SIZE;
    if (holes) {
        holes->kept = calloc(1, pages / 8 + 1);
        holes->asked = calloc(1, pages / 8 + 1);
        holes->came = calloc(1, pages / 8 + 1);
        pthread_mutex_init(&holes->lock, NULL);
    }
    if (!holes || !holes->kept || !holes->asked || !holes->came ||
        workset_new(size, &holes->first, NULL) < 0) {
        holes_free(holes);
        return err_set(err, ENOMEM, "out of memory for the guest's zero pages");
    }
    holes->name[0] = (uint8_t)strlen(block);
    memcpy(holes->name + 1, block, holes->name[0]);
    holes->pages = pages;
    holes->write = write;
    holes->arg = arg;
    requests_init(&holes->requests, block, size);
    qstream_init(&holes->stream);
    *ret = holes;
    return 0;
}

void holes_goes_on(struct holes *holes, uint32_t ram_section)
{
    qstream_init_resumed(&holes->stream, ram_section);
}

uint8_t *holes_blocks(struct holes *holes, size_t *ret_size, uint32_t *ret_section)
{
    pthread_mutex_lock(&holes->lock);
    bool known = holes->stream.has_ram && !holes->stream.strange && !qstream_at_block(&holes->stream) &&
                 holes->blocks_size;
    uint8_t *blocks = known ? malloc(holes->blocks_size) : NULL;
    if (blocks) {
        memcpy(blocks, holes->blocks, holes->blocks_size);
        *ret_size = holes->blocks_size;
        *ret_section = holes->stream.ram;
    }
    pthread_mutex_unlock(&holes->lock);
    return blocks;
}

uint64_t holes_kept(struct holes *holes)
{
    pthread_mutex_lock(&holes->lock);
    uint64_t count = holes->kept_count;
    pthread_mutex_unlock(&holes->lock);
    return count;
}

bool holes_faults(struct holes *holes, struct faults *ret)
{
    if (pthread_mutex_trylock(&holes->lock) != 0) /* whoever has it may wait for QEMU */
        return false;
    *ret = holes->faults;
    pthread_mutex_unlock(&holes->lock);
    return true;
}

void holes_asked(struct holes *holes, struct workset *workset)
{
    pthread_mutex_lock(&holes->lock);
    workset_add_all(workset, holes->first);
    pthread_mutex_unlock(&holes->lock);
}

void holes_free(struct holes *holes)
{
    if (!holes)
        return;
    pthread_mutex_destroy(&holes->lock);
    free(holes->kept);
    free(holes->asked);
    free(holes->came);
    free(holes->waiting);
    free(holes->blocks);
    workset_free(holes->first);
    free(holes->backlog);
    free(holes);
}
