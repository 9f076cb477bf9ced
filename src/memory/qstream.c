/* SPDX-License-Identifier: Apache-2.0
 *
 * qstream: theory of operation
 *
 * Each state looks at the bytes in front and says either how many of them it takes, or how many it needs to
 * see. What it needs and is not there yet is held back until it is. So a state sees its whole element in one
 * piece, and none is longer than the longest record.
 */
#include "memory/qstream.h"

#include "base/endian.h"
#include "base/macro.h"

#include <string.h>

#define MAGIC 0x5145564dU
#define VERSION 3U
#define RAM_VERSION 4U

enum element {
    ELEMENT_EOF = 0,
    ELEMENT_START = 1,
    ELEMENT_PART = 2,
    ELEMENT_END = 3,
    ELEMENT_FULL = 4,
    ELEMENT_SUBSECTION = 5,
    ELEMENT_CONFIGURATION = 7,
    ELEMENT_COMMAND = 8,
    ELEMENT_FOOTER = 0x7e
};
#define COMMAND_PACKAGED 7U

/* The bits of a record's be64 that are below the page size. */
enum record {
    RECORD_ZERO = 0x002,
    RECORD_MEM_SIZE = 0x004,
    RECORD_PAGE = 0x008,
    RECORD_EOS = 0x010,
    RECORD_CONTINUE = 0x020, /* in the block of the record before: no name follows */
    RECORD_XBZRLE = 0x040,
    RECORD_COMPRESSED = 0x100,
    RECORD_MULTIFD_FLUSH = 0x200
};
static_assert(QSTREAM_ZERO_FLAGS == (RECORD_ZERO | RECORD_CONTINUE), "as the header says");
static_assert(QSTREAM_PAGE_FLAGS == (RECORD_PAGE | RECORD_CONTINUE), "as the header says");

enum state { STATE_HEADER, STATE_ELEMENT, STATE_RAM, STATE_BLOCKS, STATE_REST };

struct look {
    size_t needs; /* not 0: bytes that it wants to see before it decides */
    size_t takes;
    enum qstream_kind kind;
};

static struct look needs(size_t size)
{
    return (struct look){.needs = size};
}

static struct look takes(size_t size)
{
    return (struct look){.takes = size};
}

/* The rest passes unread. */
static struct look gives_up(struct qstream *stream, const char *why)
{
    stream->state = STATE_REST;
    stream->strange = why;
    return takes(1);
}

static struct look look_at_header(struct qstream *stream, const uint8_t *data, size_t size)
{
    if (size < 8)
        return needs(8);
    if (get_be32(data) != MAGIC || get_be32(data + 4) != VERSION)
        return gives_up(stream, "it does not begin as QEMU's streams of version 3 do");
    stream->state = STATE_ELEMENT;
    return takes(8);
}

/* Of the configuration: u8 type, u8 length, name, be32 version, fields. */
static struct look look_at_subsection(struct qstream *stream, const uint8_t *data, size_t size)
{
    static const struct {
        const char *name;
        size_t size;
        bool four; /* the be32 at its beginning must be `value` */
        uint32_t value;
    } known[] = {
        {"configuration/target-page-bits", 4, true, 12},
        {"configuration/capabilities", 4, true, 0}, /* those that change the stream: none */
        {"configuration/uuid", 16, false, 0},
    };
    if (size < 2 || size < 2U + data[1] + 4U)
        return needs(size < 2 ? 2 : 2U + data[1] + 4U);
    size_t head = 2U + data[1] + 4U;
    for (size_t i = 0; i < ARRAY_SIZE(known); i++) {
        if (data[1] != strlen(known[i].name) || memcmp(data + 2, known[i].name, data[1]) != 0)
            continue;
        if (size < head + known[i].size)
            return needs(head + known[i].size);
        if (known[i].four && get_be32(data + head) != known[i].value)
            return gives_up(stream, "its configuration changes what follows");
        return takes(head + known[i].size);
    }
    return gives_up(stream, "its configuration has an unknown part");
}

/* u8 type, be32 section, u8 length, name, be32 instance, be32 version. */
static struct look look_at_start(struct qstream *stream, const uint8_t *data, size_t size)
{
    if (size < 6 || size < 6U + data[5] + 8U)
        return needs(size < 6 ? 6 : 6U + data[5] + 8U);
    size_t whole = 6U + data[5] + 8U;
    if (data[5] != 3 || memcmp(data + 6, "ram", 3) != 0)
        return gives_up(stream, "something other than RAM comes in parts");
    if (get_be32(data + whole - 4) != RAM_VERSION)
        return gives_up(stream, "its RAM is of an unknown version");
    stream->ram = get_be32(data + 1);
    stream->has_ram = true;
    stream->state = STATE_RAM;
    return takes(whole);
}

/* u8 type, be32 section. */
static struct look look_at_part(struct qstream *stream, const uint8_t *data, size_t size)
{
    if (size < 5)
        return needs(5);
    if (!stream->has_ram || get_be32(data + 1) != stream->ram)
        return gives_up(stream, "something other than RAM comes in parts");
    stream->state = STATE_RAM;
    return takes(5);
}

/* u8 type, be16 command, be16 length, data; a package has its length there and lies behind. */
static struct look look_at_command(struct qstream *stream, const uint8_t *data, size_t size)
{
    if (size < 5)
        return needs(5);
    uint16_t command = get_be16(data + 1), length = get_be16(data + 3);
    if (command != COMMAND_PACKAGED) {
        stream->skip = length;
        return takes(5);
    }
    if (length != 4)
        return gives_up(stream, "it has a package without a length");
    if (size < 9)
        return needs(9);
    stream->skip = get_be32(data + 5);
    return takes(9);
}

static struct look look_at_element(struct qstream *stream, const uint8_t *data, size_t size)
{
    if (data[0] != ELEMENT_FOOTER)
        stream->footer_due = false;
    switch ((enum element)data[0]) {
    case ELEMENT_CONFIGURATION:
        if (size < 5)
            return needs(5);
        stream->skip = get_be32(data + 1);
        return takes(5);
    case ELEMENT_SUBSECTION:
        return look_at_subsection(stream, data, size);
    case ELEMENT_START:
        return look_at_start(stream, data, size);
    case ELEMENT_PART:
    case ELEMENT_END:
        return look_at_part(stream, data, size);
    case ELEMENT_COMMAND:
        return look_at_command(stream, data, size);
    case ELEMENT_FOOTER:
        if (size < 5)
            return needs(5);
        stream->footer_due = false;
        return takes(5);
    case ELEMENT_FULL: /* devices, as after all RAM */
    case ELEMENT_EOF:
        return gives_up(stream, stream->has_ram ? NULL : "a device comes before RAM");
    }
    return gives_up(stream, "it has an unknown element");
}

/* u8 length, name, be64 used length. With options that Orai does not use more follows: then the next name
 * makes no sense. */
static struct look look_at_block(struct qstream *stream, const uint8_t *data, size_t size)
{
    if (size < 9U + data[0])
        return needs(9U + data[0]);
    uint64_t used = get_be64(data + 1 + data[0]);
    if (data[0] == 0 || used == 0 || used > stream->ram_left)
        return gives_up(stream, "its list of RAM blocks makes no sense");
    stream->ram_left -= used;
    if (stream->ram_left == 0)
        stream->state = STATE_RAM;
    return takes(9U + data[0]);
}

/* A page or what stands for one: `name` bytes of its block's name lie between the be64 and the content. */
static struct look look_at_content(struct qstream *stream, const uint8_t *data, size_t size, unsigned type,
                                   size_t name)
{
    size_t at = 8 + name;
    switch (type) {
    case RECORD_ZERO:
        if (size < at + 1)
            return needs(at + 1);
        return (struct look){.takes = at + 1, .kind = !name && !data[at] ? QSTREAM_ZERO : QSTREAM_BYTES};
    case RECORD_PAGE:
        if (size < at)
            return needs(at);
        if (name) {
            stream->skip = QSTREAM_PAGE_SIZE;
            return takes(at);
        }
        return size < QSTREAM_PAGE_RECORD ? needs(QSTREAM_PAGE_RECORD)
                                          : (struct look){.takes = QSTREAM_PAGE_RECORD, .kind = QSTREAM_PAGE};
    case RECORD_XBZRLE: /* u8 1, be16 length, data */
        if (size < at + 3)
            return needs(at + 3);
        stream->skip = get_be16(data + at + 1);
        return takes(at + 3);
    case RECORD_COMPRESSED: /* be32 length, data */
        if (size < at + 4)
            return needs(at + 4);
        stream->skip = get_be32(data + at);
        return takes(at + 4);
    default:
        return gives_up(stream, "its RAM has an unknown record");
    }
}

static struct look look_at_record(struct qstream *stream, const uint8_t *data, size_t size)
{
    if (size < 8)
        return needs(8);
    uint64_t head = get_be64(data);
    unsigned flags = head % QSTREAM_PAGE_SIZE;
    switch (flags) {
    case RECORD_MEM_SIZE:
        stream->ram_left = head - flags;
        stream->state = stream->ram_left ? STATE_BLOCKS : STATE_RAM;
        return takes(8);
    case RECORD_MULTIFD_FLUSH:
        return takes(8);
    case RECORD_EOS:
        stream->state = STATE_ELEMENT;
        stream->footer_due = true;
        return takes(8);
    default:
        break;
    }
    if (flags & RECORD_CONTINUE)
        return look_at_content(stream, data, size, flags & ~(unsigned)RECORD_CONTINUE, 0);
    if (size < 9 || size < 9U + data[8])
        return needs(size < 9 ? 9 : 9U + data[8]);
    memcpy(stream->block, data + 8, 1U + data[8]);
    stream->named = true;
    stream->named_page = head / QSTREAM_PAGE_SIZE;
    return look_at_content(stream, data, size, flags, 1U + data[8]);
}

/* `size` is not 0. */
static struct look look(struct qstream *stream, const uint8_t *data, size_t size)
{
    if (stream->skip || stream->state == STATE_REST) {
        size_t passed = stream->state == STATE_REST ? size : MIN(stream->skip, size);
        stream->skip -= MIN(stream->skip, passed);
        return takes(passed);
    }
    switch ((enum state)stream->state) {
    case STATE_HEADER:
        return look_at_header(stream, data, size);
    case STATE_ELEMENT:
        return look_at_element(stream, data, size);
    case STATE_BLOCKS:
        return look_at_block(stream, data, size);
    case STATE_RAM:
        return look_at_record(stream, data, size);
    case STATE_REST:
        break;
    }
    return takes(size);
}

void qstream_init(struct qstream *stream)
{
    memset(stream, 0, offsetof(struct qstream, hold));
}

void qstream_init_resumed(struct qstream *stream, uint32_t ram)
{
    qstream_init(stream);
    stream->state = STATE_ELEMENT;
    stream->has_ram = true;
    stream->ram = ram;
}

/* Moves bytes in until `whole` are held; false: there are not so many yet. */
static bool hold(struct qstream *stream, size_t whole, const uint8_t **data, size_t *size)
{
    size_t some = MIN(whole - stream->held, *size);
    memcpy(stream->hold + stream->held, *data, some);
    stream->held += some;
    *data += some;
    *size -= some;
    return stream->held == whole;
}

/* What is held back was given out as far as `taken` says; what is behind that moves to the front. */
static void let_go(struct qstream *stream)
{
    stream->held -= stream->taken;
    memmove(stream->hold, stream->hold + stream->taken, stream->held);
    stream->taken = 0;
}

bool qstream_next(struct qstream *stream, const uint8_t **data, size_t *size, struct qstream_piece *ret)
{
    struct look seen;
    let_go(stream);
    if (!stream->held && !*size)
        return false;
    while (stream->held || *size) {
        bool held = stream->held > 0;
        const uint8_t *from = held ? stream->hold : *data;
        seen = look(stream, from, held ? stream->held : *size);
        if (seen.needs) {
            if (!hold(stream, seen.needs, data, size))
                return false;
            continue;
        }
        *ret = (struct qstream_piece){.kind = seen.kind, .data = from, .size = seen.takes};
        if (held) {
            stream->taken = seen.takes;
        } else {
            *data += seen.takes;
            *size -= seen.takes;
        }
        return true;
    }
    return false;
}

bool qstream_end(struct qstream *stream, struct qstream_piece *ret)
{
    let_go(stream);
    *ret = (struct qstream_piece){.data = stream->hold, .size = stream->held};
    stream->taken = stream->held;
    return ret->size > 0;
}

bool qstream_at_record(const struct qstream *stream)
{
    return stream->state == STATE_RAM && !stream->skip;
}

bool qstream_at_element(const struct qstream *stream)
{
    return stream->state == STATE_ELEMENT && !stream->skip && stream->has_ram && !stream->footer_due;
}

bool qstream_is_over(const struct qstream *stream)
{
    return stream->state == STATE_REST;
}

bool qstream_at_block(const struct qstream *stream)
{
    return stream->state == STATE_BLOCKS;
}

size_t qstream_make_part(const struct qstream *stream, uint8_t ret[QSTREAM_PART_SIZE])
{
    ret[0] = ELEMENT_PART;
    put_be32(ret + 1, stream->ram);
    return QSTREAM_PART_SIZE;
}

size_t qstream_make_part_end(const struct qstream *stream, uint8_t ret[QSTREAM_PART_END_SIZE])
{
    put_be64(ret, RECORD_EOS);
    ret[8] = ELEMENT_FOOTER;
    put_be32(ret + 9, stream->ram);
    return QSTREAM_PART_END_SIZE;
}

uint64_t qstream_page(const struct qstream_piece *record)
{
    return get_be64(record->data) / QSTREAM_PAGE_SIZE;
}

bool qstream_page_ends(struct qstream *stream, const struct qstream_piece *piece, uint64_t *ret_page)
{
    bool named = piece->kind == QSTREAM_BYTES;
    if (named && (!stream->named || stream->skip || stream->state != STATE_RAM))
        return false;
    stream->named = false;
    *ret_page = named ? stream->named_page : qstream_page(piece);
    return true;
}
