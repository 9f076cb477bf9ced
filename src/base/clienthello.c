/* SPDX-License-Identifier: Apache-2.0
 *
 * One pass over the bytes as they lie in the connection. A ClientHello may be cut into several TLS records
 * (RFC 8446, 5.1), so `take` steps over record headers by itself:
 *
 *   record     22 | 3, x | length16 | fragment of the handshake stream
 *   handshake  1 | length24 | version16 | random 32 | session<0..32> | ciphers<2..2^16-2> |
 * compression<1..255> | extensions<0..2^16-1> = (type16, data<0..2^16-1>)* name list  in extension 0:
 * <1..2^16-1> = (type8, name<1..2^16-1>)*, type 0 = host name
 *
 * What always holds: every prefix of a good hello gives -EAGAIN; a bad one is refused once the field that is
 * wrong is whole, without waiting for what comes after. A length that leaves its surroundings is refused
 * before it is followed.
 */
#include "base/clienthello.h"

#include "base/endian.h"
#include "base/macro.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>

#define RECORD_HANDSHAKE 22
#define RECORD_HEADER 5
#define RECORD_MAX 16384
#define HANDSHAKE_CLIENT_HELLO 1
#define VERSION_MAJOR 3
#define RANDOM_SIZE 32
#define HELLO_MIN (2 + RANDOM_SIZE + 1 + 4 + 2) /* one cipher, one compression method, no extension */
#define SESSION_ID_MAX 32
#define EXTENSION_SERVER_NAME 0
#define NAME_TYPE_HOST 0

struct reader {
    const uint8_t *data;
    size_t size, at;
    size_t record;  /* bytes left in the current record */
    size_t message; /* bytes left of the hello; before its length is known, the most that there can be */
    size_t room;    /* bytes left in the innermost vector */
    bool length_known;
};

/* The bytes of a header are checked one by one: what is wrong already is not waited for. */
static int next_record(struct reader *r)
{
    const uint8_t *p = r->data + r->at;
    size_t have = r->size - r->at;
    if ((have > 0 && p[0] != RECORD_HANDSHAKE) || (have > 1 && p[1] != VERSION_MAJOR))
        return -EPROTO;
    size_t space = CLIENTHELLO_MAX - MIN(r->at + RECORD_HEADER, CLIENTHELLO_MAX);
    if (r->length_known && r->message > space)
        return -EPROTO;
    r->message = MIN(r->message, space);
    /* The hello ends with its record: it may not share one with what follows (RFC 8446, 5.1). */
    if (have > 3 && (size_t)p[3] << 8 > r->message)
        return -EPROTO;
    if (have < RECORD_HEADER)
        return -EAGAIN;
    size_t length = get_be16(p + 3);
    if (length == 0 || length > RECORD_MAX || length > r->message)
        return -EPROTO;
    r->at += RECORD_HEADER;
    r->record = length;
    return 0;
}

/* `ret` may be NULL: the bytes are passed over. */
static int take(struct reader *r, uint8_t *ret, size_t size)
{
    if (size > r->room)
        return -EPROTO;
    while (size > 0) {
        int e = r->record == 0 ? next_record(r) : 0;
        if (e < 0)
            return e;
        size_t n = MIN(MIN(size, r->record), r->size - r->at);
        if (n == 0)
            return -EAGAIN;
        if (ret) {
            memcpy(ret, r->data + r->at, n);
            ret += n;
        }
        r->at += n;
        r->record -= n;
        r->message -= n;
        r->room -= n;
        size -= n;
    }
    return 0;
}

/* A length of `bytes` (1 or 2) bytes between `min` and `max`, that fits into the vector around it. */
static int take_length(struct reader *r, size_t bytes, size_t min, size_t max, size_t *ret)
{
    uint8_t raw[2] = {0};
    int e = take(r, raw + 2 - bytes, bytes);
    if (e < 0)
        return e;
    size_t length = get_be16(raw);
    if (length < min || length > max || length > r->room)
        return -EPROTO;
    *ret = length;
    return 0;
}

/* Length and content of a vector, passed over. `multiple`: of its elements' size. */
static int skip_vector(struct reader *r, size_t bytes, size_t min, size_t max, size_t multiple)
{
    size_t length = 0;
    int e = take_length(r, bytes, min, max, &length);
    if (e < 0)
        return e;
    return length % multiple == 0 ? take(r, NULL, length) : -EPROTO;
}

static int take_message_header(struct reader *r)
{
    uint8_t type, high;
    int e = take(r, &type, 1);
    if (e == 0 && type != HANDSHAKE_CLIENT_HELLO)
        return -EPROTO;
    if (e == 0)
        e = take(r, &high, 1);
    if (e == 0 && high != 0)
        return -EPROTO;
    size_t length = 0;
    if (e == 0)
        e = take_length(r, 2, HELLO_MIN, r->message, &length);
    if (e < 0)
        return e;
    if (length > r->message || r->record > length)
        return -EPROTO;
    r->message = r->room = length;
    r->length_known = true;
    return 0;
}

static bool is_name_character(uint8_t c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' ||
           c == '.' || c == '_';
}

/* RFC 6066 allows one name of each type, and gives every type the form of a host name's. */
static int take_name(struct reader *r, char name[SERVER_NAME_SIZE])
{
    uint8_t type;
    size_t length = 0;
    int e = take(r, &type, 1);
    if (e < 0)
        return e;
    if (type != NAME_TYPE_HOST)
        return skip_vector(r, 2, 0, UINT16_MAX, 1);
    if (name[0])
        return -EPROTO;
    e = take_length(r, 2, 1, SERVER_NAME_SIZE - 1, &length);
    for (size_t i = 0; e == 0 && i < length; i++) {
        uint8_t c = 0;
        e = take(r, &c, 1);
        if (e == 0 && !is_name_character(c))
            return -EPROTO;
        name[i] = (char)c;
    }
    return e;
}

/* `r->room` is the extension's. */
static int take_names(struct reader *r, char name[SERVER_NAME_SIZE])
{
    size_t list = 0;
    int e = take_length(r, 2, 1, UINT16_MAX, &list);
    if (e == 0 && list != r->room)
        return -EPROTO;
    while (e == 0 && r->room > 0)
        e = take_name(r, name);
    return e;
}

static int take_extension(struct reader *r, bool *named, char name[SERVER_NAME_SIZE])
{
    uint8_t type[2];
    size_t length = 0;
    int e = take(r, type, sizeof type);
    if (e == 0)
        e = take_length(r, 2, 0, UINT16_MAX, &length);
    if (e < 0)
        return e;
    if (get_be16(type) != EXTENSION_SERVER_NAME)
        return take(r, NULL, length);
    if (*named)
        return -EPROTO;
    *named = true;
    size_t behind = r->room - length;
    r->room = length;
    e = take_names(r, name);
    r->room += behind;
    return e;
}

static int take_extensions(struct reader *r, char name[SERVER_NAME_SIZE])
{
    if (r->room == 0)
        return 0; /* a hello of TLS 1.2 may have none */
    size_t length = 0;
    bool named = false;
    int e = take_length(r, 2, 0, UINT16_MAX, &length);
    if (e == 0 && length != r->room)
        return -EPROTO;
    while (e == 0 && r->room > 0)
        e = take_extension(r, &named, name);
    return e;
}

static int take_version(struct reader *r)
{
    uint8_t version[2];
    int e = take(r, version, sizeof version);
    return e == 0 && version[0] != VERSION_MAJOR ? -EPROTO : e;
}

int clienthello_server_name(const uint8_t *data, size_t size, char ret_name[SERVER_NAME_SIZE])
{
    char name[SERVER_NAME_SIZE] = "";
    struct reader r = {.data = data, .size = size, .message = CLIENTHELLO_MAX, .room = CLIENTHELLO_MAX};
    int e = take_message_header(&r);
    if (e == 0)
        e = take_version(&r);
    if (e == 0)
        e = take(&r, NULL, RANDOM_SIZE);
    if (e == 0)
        e = skip_vector(&r, 1, 0, SESSION_ID_MAX, 1);
    if (e == 0)
        e = skip_vector(&r, 2, 2, UINT16_MAX - 1, 2); /* cipher suites */
    if (e == 0)
        e = skip_vector(&r, 1, 1, UINT8_MAX, 1); /* compression methods */
    if (e == 0)
        e = take_extensions(&r, name);
    if (e < 0)
        return e;
    memcpy(ret_name, name, sizeof name);
    return 0;
}
