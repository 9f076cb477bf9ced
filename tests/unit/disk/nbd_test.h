/* SPDX-License-Identifier: Apache-2.0
 *
 * nbd_test: bytes of the NBD protocol, for the tests of its server, and the beginnings of a client.
 */
#pragma once

#include "base/endian.h"
#include "base/file.h"
#include "disk/nbd_protocol.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

/* A growing message. */
struct bytes {
    size_t size;
    uint8_t at[70000];
};

static inline void add(struct bytes *bytes, const void *data, size_t size)
{
    assert_true(bytes->size + size <= sizeof bytes->at);
    memcpy(bytes->at + bytes->size, data, size);
    bytes->size += size;
}

static inline void add16(struct bytes *bytes, uint16_t value)
{
    uint8_t at[2];
    put_be16(at, value);
    add(bytes, at, 2);
}

static inline void add32(struct bytes *bytes, uint32_t value)
{
    uint8_t at[4];
    put_be32(at, value);
    add(bytes, at, 4);
}

static inline void add64(struct bytes *bytes, uint64_t value)
{
    uint8_t at[8];
    put_be64(at, value);
    add(bytes, at, 8);
}

static inline void add_text(struct bytes *bytes, const char *text)
{
    add32(bytes, (uint32_t)strlen(text));
    add(bytes, text, strlen(text));
}

static inline void add_option(struct bytes *bytes, uint32_t option, const struct bytes *data)
{
    add64(bytes, NBD_OPTION_MAGIC);
    add32(bytes, option);
    add32(bytes, data ? (uint32_t)data->size : 0);
    if (data)
        add(bytes, data->at, data->size);
}

static inline void add_request(struct bytes *bytes, uint16_t flags, uint16_t type, uint64_t cookie,
                               uint64_t offset, uint32_t length)
{
    add32(bytes, NBD_REQUEST_MAGIC);
    add16(bytes, flags);
    add16(bytes, type);
    add64(bytes, cookie);
    add64(bytes, offset);
    add32(bytes, length);
}

static inline void post(int fd, const void *data, size_t size)
{
    assert_int_equal(file_write_full(fd, data, size), 0);
}

static inline void get(int fd, void *data, size_t size)
{
    assert_int_equal(file_read_full(fd, data, size), 0);
}

static inline void say_hello(int fd)
{
    uint8_t greeting[18], flags[4] = {0, 0, 0, NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES};
    get(fd, greeting, sizeof greeting);
    post(fd, flags, sizeof flags);
}

static inline void request(int fd, uint16_t type, uint16_t flags, uint64_t cookie, uint64_t offset,
                           uint32_t length)
{
    struct bytes message = {0};
    add_request(&message, flags, type, cookie, offset, length);
    post(fd, message.at, message.size);
}

static inline uint32_t simple_reply(int fd, uint64_t cookie)
{
    uint8_t reply[16];
    get(fd, reply, sizeof reply);
    assert_int_equal(get_be32(reply), NBD_SIMPLE_REPLY_MAGIC);
    assert_int_equal(get_be64(reply + 8), cookie);
    return get_be32(reply + 4);
}
