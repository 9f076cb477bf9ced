/* SPDX-License-Identifier: Apache-2.0
 *
 * The messages (all numbers big-endian):
 *
 *   server   NBDMAGIC:8 IHAVEOPT:8 handshake flags:2
 *   client   client flags:4
 *   client   IHAVEOPT:8 option:4 length:4 data            again and again, each answered by one or more
 *   server   reply magic:8 option:4 type:4 length:4 data
 *
 * The last answer to an option is ACK or an error. EXPORT_NAME, the oldest option, has no such answer: size,
 * flags and padding come at once, or the connection closes.
 */
#include "disk/nbd_handshake.h"

#include "base/endian.h"

#include <assert.h>
#include <string.h>

#define OPTION_HEADER 16
#define REPLY_HEADER 20
#define EXPORT_NAME_PADDING 124

/* A bounded reader over one option's data; `bad` once it was asked for more than there is. */
struct reader {
    const uint8_t *at;
    size_t left;
    bool bad;
};

static const uint8_t *take(struct reader *reader, size_t size)
{
    if (reader->bad || size > reader->left) {
        reader->bad = true;
        return NULL;
    }
    const uint8_t *at = reader->at;
    reader->at += size;
    reader->left -= size;
    return at;
}

static uint16_t take_be16(struct reader *reader)
{
    const uint8_t *at = take(reader, 2);
    return at ? get_be16(at) : 0;
}

static uint32_t take_be32(struct reader *reader)
{
    const uint8_t *at = take(reader, 4);
    return at ? get_be32(at) : 0;
}

struct text {
    const uint8_t *at;
    size_t size;
};

static struct text take_text(struct reader *reader)
{
    size_t size = take_be32(reader);
    const uint8_t *at = take(reader, size);
    return (struct text){at, at ? size : 0};
}

static bool text_is(struct text text, const char *other)
{
    return text.size == strlen(other) && memcmp(text.at, other, text.size) == 0;
}

static uint8_t *put(struct nbd_output *output, size_t size)
{
    assert(output->size + size <= sizeof output->bytes);
    uint8_t *at = output->bytes + output->size;
    output->size += size;
    return at;
}

/* Without its terminating NUL. */
static void copy_text(uint8_t *at, const char *text, size_t size)
{
    memcpy(at, text, size);
}

static uint8_t *put_reply(struct nbd_output *output, uint32_t option, uint32_t type, size_t size)
{
    uint8_t *at = put(output, REPLY_HEADER + size);
    put_be64(at, NBD_OPTION_REPLY_MAGIC);
    put_be32(at + 8, option);
    put_be32(at + 12, type);
    put_be32(at + 16, (uint32_t)size);
    return at + REPLY_HEADER;
}

/* The text is for the person who debugs a client. */
static enum nbd_step refuse(struct nbd_output *output, uint32_t option, uint32_t error, const char *text)
{
    output->size = 0; /* an error revokes the answers before it */
    size_t size = strlen(text);
    copy_text(put_reply(output, option, error, size), text, size);
    return NBD_STEP_REPLY;
}

static enum nbd_step acknowledge(struct nbd_output *output, uint32_t option)
{
    put_reply(output, option, NBD_REP_ACK, 0);
    return NBD_STEP_REPLY;
}

static bool is_export(const struct nbd_handshake *handshake, struct text name)
{
    return name.size == 0 || text_is(name, handshake->export->name);
}

static uint16_t transmission_flags(const struct nbd_handshake *handshake)
{
    unsigned flags = NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH | NBD_FLAG_SEND_FUA | NBD_FLAG_SEND_CACHE |
                     NBD_FLAG_CAN_MULTI_CONN; /* disk_flush covers what every connection wrote */
    if (handshake->session.structured)
        flags |= NBD_FLAG_SEND_DF;
    if (handshake->export->read_only)
        flags |= NBD_FLAG_READ_ONLY;
    else
        flags |= NBD_FLAG_SEND_TRIM | NBD_FLAG_SEND_WRITE_ZEROES | NBD_FLAG_SEND_FAST_ZERO;
    return (uint16_t)flags;
}

static enum nbd_step option_export_name(struct nbd_handshake *handshake, struct reader *data,
                                        struct nbd_output *output)
{
    struct text name = {data->at, data->left};
    if (!is_export(handshake, name))
        return NBD_STEP_CLOSE; /* this option knows no error answer */
    uint8_t *at = put(output, 10);
    put_be64(at, handshake->export->size);
    put_be16(at + 8, transmission_flags(handshake));
    if (!handshake->no_zeroes)
        memset(put(output, EXPORT_NAME_PADDING), 0, EXPORT_NAME_PADDING);
    return NBD_STEP_GO;
}

static enum nbd_step option_list(struct nbd_handshake *handshake, struct reader *data,
                                 struct nbd_output *output)
{
    if (data->left > 0)
        return refuse(output, NBD_OPT_LIST, NBD_REP_ERR_INVALID, "this option takes no data");
    size_t size = strlen(handshake->export->name);
    uint8_t *at = put_reply(output, NBD_OPT_LIST, NBD_REP_SERVER, 4 + size);
    put_be32(at, (uint32_t)size);
    copy_text(at + 4, handshake->export->name, size);
    return acknowledge(output, NBD_OPT_LIST);
}

static void put_info_export(struct nbd_handshake *handshake, uint32_t option, struct nbd_output *output)
{
    uint8_t *at = put_reply(output, option, NBD_REP_INFO, 12);
    put_be16(at, NBD_INFO_EXPORT);
    put_be64(at + 2, handshake->export->size);
    put_be16(at + 10, transmission_flags(handshake));
}

static void put_info_name(struct nbd_handshake *handshake, uint32_t option, struct nbd_output *output)
{
    size_t size = strlen(handshake->export->name);
    uint8_t *at = put_reply(output, option, NBD_REP_INFO, 2 + size);
    put_be16(at, NBD_INFO_NAME);
    copy_text(at + 2, handshake->export->name, size);
}

static void put_info_block_size(uint32_t option, struct nbd_output *output)
{
    uint8_t *at = put_reply(output, option, NBD_REP_INFO, 14);
    put_be16(at, NBD_INFO_BLOCK_SIZE);
    put_be32(at + 2, NBD_MINIMUM_BLOCK);
    put_be32(at + 6, NBD_PREFERRED_BLOCK);
    put_be32(at + 10, NBD_PAYLOAD_MAX);
}

/* INFO and GO differ only in what comes after them. */
static enum nbd_step option_info(struct nbd_handshake *handshake, uint32_t option, struct reader *data,
                                 struct nbd_output *output)
{
    struct text name = take_text(data);
    bool wants_name = false, wants_block_size = false;
    for (unsigned left = take_be16(data); left > 0 && !data->bad; left--) {
        uint16_t info = take_be16(data);
        wants_name |= info == NBD_INFO_NAME;
        wants_block_size |= info == NBD_INFO_BLOCK_SIZE;
    }
    if (data->bad || data->left > 0)
        return refuse(output, option, NBD_REP_ERR_INVALID, "the lengths in the option do not add up");
    if (!is_export(handshake, name))
        return refuse(output, option, NBD_REP_ERR_UNKNOWN, "no export of this name");

    put_info_export(handshake, option, output);
    if (wants_name)
        put_info_name(handshake, option, output);
    if (wants_block_size)
        put_info_block_size(option, output);
    acknowledge(output, option);
    return option == NBD_OPT_GO ? NBD_STEP_GO : NBD_STEP_REPLY;
}

static enum nbd_step option_structured_reply(struct nbd_handshake *handshake, struct reader *data,
                                             struct nbd_output *output)
{
    if (data->left > 0)
        return refuse(output, NBD_OPT_STRUCTURED_REPLY, NBD_REP_ERR_INVALID, "this option takes no data");
    handshake->session.structured = true;
    return acknowledge(output, NBD_OPT_STRUCTURED_REPLY);
}

/* Does any query match base:allocation? A list may ask for the whole namespace, or for all by asking nothing.
 */
static bool take_queries(struct reader *data, bool listing)
{
    uint32_t count = take_be32(data);
    bool match = listing && count == 0;
    for (uint32_t i = 0; i < count && !data->bad; i++) {
        struct text query = take_text(data);
        if (data->bad)
            break;
        match |= text_is(query, NBD_CONTEXT_ALLOCATION) || (listing && text_is(query, "base:"));
    }
    return match;
}

static enum nbd_step option_meta_context(struct nbd_handshake *handshake, uint32_t option,
                                         struct reader *data, struct nbd_output *output)
{
    bool listing = option == NBD_OPT_LIST_META_CONTEXT;
    if (!listing)
        handshake->session.base_allocation = false; /* even when this option fails */
    if (!handshake->session.structured)
        return refuse(output, option, NBD_REP_ERR_INVALID, "negotiate structured replies first");

    struct text name = take_text(data);
    bool match = take_queries(data, listing);
    if (data->bad || data->left > 0)
        return refuse(output, option, NBD_REP_ERR_INVALID, "the lengths in the option do not add up");
    if (!is_export(handshake, name))
        return refuse(output, option, NBD_REP_ERR_UNKNOWN, "no export of this name");
    if (match) {
        size_t size = strlen(NBD_CONTEXT_ALLOCATION);
        uint8_t *at = put_reply(output, option, NBD_REP_META_CONTEXT, 4 + size);
        put_be32(at, listing ? 0 : NBD_CONTEXT_ALLOCATION_ID);
        copy_text(at + 4, NBD_CONTEXT_ALLOCATION, size);
    }
    if (!listing)
        handshake->session.base_allocation = match;
    return acknowledge(output, option);
}

static enum nbd_step take_option(struct nbd_handshake *handshake, uint32_t option, struct reader data,
                                 struct nbd_output *output)
{
    switch (option) {
    case NBD_OPT_EXPORT_NAME:
        return option_export_name(handshake, &data, output);
    case NBD_OPT_ABORT:
        acknowledge(output, option);
        return NBD_STEP_CLOSE;
    case NBD_OPT_LIST:
        return option_list(handshake, &data, output);
    case NBD_OPT_INFO:
    case NBD_OPT_GO:
        return option_info(handshake, option, &data, output);
    case NBD_OPT_STRUCTURED_REPLY:
        return option_structured_reply(handshake, &data, output);
    case NBD_OPT_LIST_META_CONTEXT:
    case NBD_OPT_SET_META_CONTEXT:
        return option_meta_context(handshake, option, &data, output);
    default:
        return refuse(output, option, NBD_REP_ERR_UNSUP, "this server does not know the option");
    }
}

static enum nbd_step take_flags(struct nbd_handshake *handshake, const uint8_t *data, size_t size,
                                size_t *ret_used)
{
    if (size < 4)
        return NBD_STEP_MORE;
    *ret_used = 4;
    uint32_t flags = get_be32(data);
    if (flags & ~(uint32_t)(NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES))
        return NBD_STEP_CLOSE;
    handshake->flags_known = true;
    handshake->no_zeroes = flags & NBD_FLAG_NO_ZEROES;
    return NBD_STEP_REPLY;
}

/* Throws an oversize option away in whatever pieces it comes, then says so. */
static enum nbd_step skip_option(struct nbd_handshake *handshake, size_t size, size_t *ret_used,
                                 struct nbd_output *output)
{
    size_t part = MIN(size, handshake->skip);
    *ret_used += part;
    handshake->skip -= (uint32_t)part;
    if (handshake->skip > 0)
        return NBD_STEP_MORE;
    return refuse(output, handshake->skip_option, NBD_REP_ERR_TOO_BIG, "the option's data is too long");
}

void nbd_handshake_init(struct nbd_handshake *handshake, const struct nbd_export *export,
                        uint8_t ret_greeting[NBD_GREETING_SIZE])
{
    assert(strlen(export->name) <= NBD_NAME_MAX);
    *handshake = (struct nbd_handshake){
        .export = export,
        .session = {.size = export->size, .read_only = export->read_only},
    };
    put_be64(ret_greeting, NBD_MAGIC);
    put_be64(ret_greeting + 8, NBD_OPTION_MAGIC);
    put_be16(ret_greeting + 16, NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES);
}

enum nbd_step nbd_handshake_step(struct nbd_handshake *handshake, const uint8_t *data, size_t size,
                                 size_t *ret_used, struct nbd_output *ret_output)
{
    *ret_used = 0;
    ret_output->size = 0;
    if (!handshake->flags_known)
        return take_flags(handshake, data, size, ret_used);
    if (handshake->skip > 0)
        return skip_option(handshake, size, ret_used, ret_output);
    if (size < OPTION_HEADER)
        return NBD_STEP_MORE;
    if (get_be64(data) != NBD_OPTION_MAGIC)
        return NBD_STEP_CLOSE;

    uint32_t option = get_be32(data + 8), length = get_be32(data + 12);
    if (length > NBD_OPTION_MAX) {
        if (option == NBD_OPT_EXPORT_NAME)
            return NBD_STEP_CLOSE;
        handshake->skip = length;
        handshake->skip_option = option;
        *ret_used = OPTION_HEADER;
        return skip_option(handshake, size - OPTION_HEADER, ret_used, ret_output);
    }
    if (size < OPTION_HEADER + (size_t)length)
        return NBD_STEP_MORE;
    *ret_used = OPTION_HEADER + (size_t)length;
    return take_option(handshake, option, (struct reader){data + OPTION_HEADER, length, false}, ret_output);
}
