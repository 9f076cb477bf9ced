/* SPDX-License-Identifier: Apache-2.0 */
#include "memory/resync.h"

#include "base/clock.h"
#include "base/endian.h"
#include "base/macro.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

/* QEMU's migration/savevm.c: u8 8, be16 command, be16 length, data; migration/migration.h: be16 type, be16
 * length, data. */
#define ELEMENT_COMMAND 8
#define COMMAND_RESUME 9
#define COMMAND_RECV_BITMAP 10
#define BACK_RECV_BITMAP 5
#define BACK_RESUME_ACK 6
#define BACK_MAX 512U
#define END_MARK UINT64_C(0x0123456789abcdef)
#define MAX_SAID (1U << 20)

/* --- maps ----------------------------------------------------------------------------------------------- */

static struct resync_map *find(const struct resync *resync, const uint8_t *name)
{
    for (size_t i = 0; i < resync->count; i++)
        if (memcmp(resync->maps[i].name, name, 1U + name[0]) == 0)
            return &resync->maps[i];
    return NULL;
}

static int add(struct resync *resync, const uint8_t *name, struct resync_map **ret, struct err *err)
{
    if (resync->count == RESYNC_MAX_BLOCKS)
        return err_set(err, EPROTO, "more than %u blocks of RAM", RESYNC_MAX_BLOCKS);
    struct resync_map *maps = realloc(resync->maps, (resync->count + 1) * sizeof *maps);
    if (!maps)
        return err_set(err, ENOMEM, "out of memory");
    resync->maps = maps;
    *ret = &maps[resync->count++];
    **ret = (struct resync_map){.size = 0};
    memcpy((*ret)->name, name, 1U + name[0]);
    return 0;
}

int resync_init(struct resync *resync, const uint8_t *names, size_t size, struct err *err)
{
    struct resync_map *map;
    int r = 0;
    *resync = (struct resync){0};
    while (r == 0 && size) {
        size_t some = 1U + names[0];
        if (some > size || some == 1 || find(resync, names))
            r = err_set(err, EPROTO, "the names of the blocks of RAM make no sense");
        else
            r = add(resync, names, &map, err);
        names += MIN(some, size);
        size -= MIN(some, size);
    }
    if (r < 0)
        resync_done(resync);
    return r;
}

void resync_done(struct resync *resync)
{
    for (size_t i = 0; i < resync->count; i++)
        free(resync->maps[i].bytes);
    free(resync->maps);
    *resync = (struct resync){0};
}

/* Room for QEMU's words about a bitmap of `bytes`. */
static int make_room(struct resync_map *map, uint64_t bytes, struct err *err)
{
    if (map->bytes || bytes == 0 || bytes % 8 || bytes > RESYNC_MAX_MAP)
        return err_set(err, EPROTO, "a bitmap of RAM makes no sense");
    map->size = (size_t)bytes + 16;
    map->bytes = malloc(map->size);
    return map->bytes ? 0 : err_set(err, ENOMEM, "out of memory for a bitmap of the guest's RAM");
}

int resync_add_whole(struct resync *resync, const char *name, uint64_t bytes, struct err *err)
{
    struct resync_map *map = NULL;
    size_t length = strlen(name);
    uint64_t size = (bytes / 4096 + 63) / 64 * 8;
    if (length == 0 || length > UINT8_MAX || size == 0)
        return 0; /* nothing of it is ever sent */
    uint8_t named[RESYNC_NAME] = {(uint8_t)length};
    for (size_t i = 0; i < length; i++)
        named[1 + i] = (uint8_t)name[i];
    if (find(resync, named))
        return 0;
    int r = add(resync, named, &map, err);
    if (r == 0)
        r = make_room(map, size, err);
    if (r < 0)
        return r;
    memset(map->bytes, 0xff, map->size);
    put_be64(map->bytes, size);
    put_be64(map->bytes + map->size - 8, END_MARK);
    map->got = map->size;
    return 0;
}

static int check(const struct resync_map *map, struct err *err)
{
    if (!map->bytes || map->got != map->size || get_be64(map->bytes) != map->size - 16 ||
        get_be64(map->bytes + map->size - 8) != END_MARK)
        return err_set(err, EPROTO, "the bitmap of the RAM block %.*s is damaged, or not whole", map->name[0],
                       (const char *)map->name + 1);
    return 0;
}

/* --- the connection ------------------------------------------------------------------------------------- */

static int wait_for(int fd, short events, int64_t deadline, struct err *err)
{
    struct pollfd p = {.fd = fd, .events = events};
    int n;
    while ((n = poll(&p, 1, clock_poll_ms(deadline))) < 0 && errno == EINTR)
        ;
    if (n < 0)
        return err_sys(err, errno, "cannot wait for QEMU");
    return n ? 0 : err_set(err, ETIMEDOUT, "QEMU did not go on with its migration in time");
}

static int receive(int fd, void *data, size_t size, int64_t deadline, struct err *err)
{
    for (size_t done = 0; done < size;) {
        int r = wait_for(fd, POLLIN, deadline, err);
        if (r < 0)
            return r;
        ssize_t n = recv(fd, (char *)data + done, size - done, MSG_DONTWAIT);
        if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR))
            return err_set(err, EPIPE, "QEMU closed its migration socket");
        done += (size_t)MAX(n, 0);
    }
    return 0;
}

static int transmit(int fd, const void *data, size_t size, int64_t deadline, struct err *err)
{
    for (size_t done = 0; done < size;) {
        int r = wait_for(fd, POLLOUT, deadline, err);
        if (r < 0)
            return r;
        ssize_t n = send(fd, (const char *)data + done, size - done, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (n < 0 && errno != EAGAIN && errno != EINTR)
            return err_set(err, EPIPE, "QEMU closed its migration socket");
        done += (size_t)MAX(n, 0);
    }
    return 0;
}

/* --- destination ---------------------------------------------------------------------------------------- */

static int send_command(int fd, unsigned command, const uint8_t *data, size_t size, int64_t deadline,
                        struct err *err)
{
    uint8_t bytes[5 + RESYNC_NAME] = {ELEMENT_COMMAND};
    put_be16(bytes + 1, (uint16_t)command);
    put_be16(bytes + 3, (uint16_t)size);
    if (size)
        memcpy(bytes + 5, data, size);
    return transmit(fd, bytes, 5 + size, deadline, err);
}

struct said {
    uint8_t *bytes;
    size_t size;
};

static int keep_said(struct said *said, const uint8_t *message, size_t size, struct err *err)
{
    uint8_t *more = said->size + size <= MAX_SAID ? realloc(said->bytes, said->size + size) : NULL;
    if (!more)
        return err_set(err, ENOMEM, "QEMU asks for too many pages at once");
    memcpy(more + said->size, message, size);
    said->bytes = more;
    said->size += size;
    return 0;
}

/* The next message of the type; what comes before it is kept. `message` has its head, too. */
static int await_back(int fd, unsigned type, uint8_t message[4 + BACK_MAX], struct said *said,
                      int64_t deadline, struct err *err)
{
    for (;;) {
        int r = receive(fd, message, 4, deadline, err);
        if (r < 0)
            return r;
        unsigned length = get_be16(message + 2);
        if (length > BACK_MAX)
            return err_set(err, EPROTO, "QEMU's return path makes no sense");
        r = receive(fd, message + 4, length, deadline, err);
        if (r < 0 || get_be16(message) == type)
            return r;
        if ((r = keep_said(said, message, 4U + length, err)) < 0)
            return r;
    }
}

static int read_map(int fd, struct resync *resync, struct said *said, int64_t deadline, struct err *err)
{
    uint8_t message[4 + BACK_MAX] = {0}, size[8];
    int r = await_back(fd, BACK_RECV_BITMAP, message, said, deadline, err);
    if (r < 0)
        return r;
    unsigned length = get_be16(message + 2);
    struct resync_map *map = length && length == 1U + message[4] ? find(resync, message + 4) : NULL;
    if (!map)
        return err_set(err, EPROTO, "QEMU answers with a bitmap that it was not asked for");
    r = receive(fd, size, sizeof size, deadline, err);
    if (r == 0)
        r = make_room(map, get_be64(size), err);
    if (r < 0)
        return r;
    memcpy(map->bytes, size, sizeof size);
    r = receive(fd, map->bytes + sizeof size, map->size - sizeof size, deadline, err);
    map->got = map->size;
    return r < 0 ? r : check(map, err);
}

static int ask_destination(int fd, struct resync *resync, struct said *said, int64_t deadline,
                           struct err *err)
{
    uint8_t message[4 + BACK_MAX];
    int r = 0;
    for (size_t i = 0; r == 0 && i < resync->count; i++) {
        const uint8_t *name = resync->maps[i].name;
        r = send_command(fd, COMMAND_RECV_BITMAP, name, 1U + name[0], deadline, err);
        if (r == 0)
            r = read_map(fd, resync, said, deadline, err);
    }
    if (r == 0)
        r = send_command(fd, COMMAND_RESUME, NULL, 0, deadline, err);
    return r < 0 ? r : await_back(fd, BACK_RESUME_ACK, message, said, deadline, err);
}

int resync_destination(int fd, struct resync *resync, int64_t deadline, uint8_t **ret_said,
                       size_t *ret_said_size, struct err *err)
{
    struct said said = {0};
    int r = ask_destination(fd, resync, &said, deadline, err);
    if (r < 0) {
        free(said.bytes);
        return r;
    }
    *ret_said = said.bytes;
    *ret_said_size = said.size;
    return 0;
}

/* --- source --------------------------------------------------------------------------------------------- */

static int answer_map(int fd, const struct resync *resync, const uint8_t *name, size_t size, int64_t deadline,
                      struct err *err)
{
    uint8_t head[4 + RESYNC_NAME];
    const struct resync_map *map = size && size == 1U + name[0] ? find(resync, name) : NULL;
    if (!map)
        return err_set(err, EPROTO, "QEMU asks for a block of RAM that the destination does not have");
    put_be16(head, BACK_RECV_BITMAP);
    put_be16(head + 2, (uint16_t)size);
    memcpy(head + 4, name, size);
    int r = transmit(fd, head, 4 + size, deadline, err);
    return r < 0 ? r : transmit(fd, map->bytes, map->size, deadline, err);
}

int resync_source(int fd, const struct resync *resync, int64_t deadline, struct err *err)
{
    static const uint8_t resumed[8] = {0, BACK_RESUME_ACK, 0, 4, 0, 0, 0, 1};
    int r = 0;
    for (size_t i = 0; r == 0 && i < resync->count; i++)
        r = check(&resync->maps[i], err);
    while (r == 0) {
        uint8_t head[5], data[RESYNC_NAME] = {0};
        r = receive(fd, head, sizeof head, deadline, err);
        if (r < 0)
            break;
        unsigned command = get_be16(head + 1), length = get_be16(head + 3);
        if (head[0] != ELEMENT_COMMAND || length > sizeof data ||
            (command != COMMAND_RESUME && command != COMMAND_RECV_BITMAP))
            return err_set(err, EPROTO, "QEMU goes on in a way that is not understood");
        r = receive(fd, data, length, deadline, err);
        if (r == 0 && command == COMMAND_RESUME)
            return transmit(fd, resumed, sizeof resumed, deadline, err);
        if (r == 0)
            r = answer_map(fd, resync, data, length, deadline, err);
    }
    return r;
}

int resync_end_source(int fd, int64_t deadline, struct err *err)
{
    static const uint8_t shut[8] = {0, 1, 0, 4, 0, 0, 0, 0}; /* be16 type, be16 length, be32: no error */
    char rest[4096];
    ssize_t n = 1;
    int r = transmit(fd, shut, sizeof shut, deadline, err);
    while (r == 0 && n > 0) {
        r = wait_for(fd, POLLIN, deadline, err);
        n = r == 0 ? recv(fd, rest, sizeof rest, 0) : 0;
    }
    return r;
}

/* --- between the hosts ---------------------------------------------------------------------------------- */

size_t resync_put(const struct resync *resync, size_t index, size_t *offset, uint8_t head[RESYNC_HEAD_MAX],
                  const uint8_t **ret_data, size_t *ret_size)
{
    const struct resync_map *map = &resync->maps[index];
    if (*offset >= map->size)
        return 0;
    put_le64(head, map->size);
    put_le64(head + 8, *offset);
    memcpy(head + 16, map->name, 1U + map->name[0]);
    *ret_data = map->bytes + *offset;
    *ret_size = MIN(map->size - *offset, (size_t)RESYNC_PIECE);
    *offset += *ret_size;
    return 17U + map->name[0];
}

int resync_take(struct resync *resync, const uint8_t *payload, size_t size, struct err *err)
{
    if (size < 18 || size < 17U + payload[16] || payload[16] == 0)
        return err_set(err, EPROTO, "a piece of a bitmap of only %zu bytes", size);
    uint64_t whole = get_le64(payload), offset = get_le64(payload + 8);
    const uint8_t *name = payload + 16, *data = name + 1 + name[0];
    size_t some = size - 17U - name[0];
    struct resync_map *map = find(resync, name);
    int r = 0;
    if (!map && whole >= 16 && offset == 0) {
        r = add(resync, name, &map, err);
        if (r == 0)
            r = make_room(map, whole - 16, err);
    }
    if (r < 0)
        return r;
    if (!map || !map->bytes || whole != map->size || offset != map->got || some > map->size - map->got)
        return err_set(err, EPROTO, "a piece of a bitmap out of turn");
    memcpy(map->bytes + map->got, data, some);
    map->got += some;
    return 0;
}
