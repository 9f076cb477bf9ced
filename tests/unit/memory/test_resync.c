/* SPDX-License-Identifier: Apache-2.0
 *
 * Both conversations with a QEMU that goes on after its stream has broken; QEMU is played by a thread.
 */
// clang-format off
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
// clang-format on

#include "base/clock.h"
#include "base/endian.h"
#include "base/macro.h"
#include "memory/resync.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define SOON (clock_now() + 10 * NSEC_PER_SEC)
#define MAP 64U
#define WORDS (8U + MAP + 8U)
#define MARK UINT64_C(0x0123456789abcdef)

static const uint8_t names[] = "\3ram\4bios";
static const uint8_t request[] = {0, 4, 0, 12, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0x10, 0};
static struct err err;

enum fault { FAULT_NONE, FAULT_OTHER_BLOCK, FAULT_SIZE, FAULT_MARK, FAULT_GONE };

struct qemu {
    int fd;
    enum fault fault;
    pthread_t thread;
    bool resumed;
};

static bool get(int fd, void *data, size_t size)
{
    return recv(fd, data, size, MSG_WAITALL) == (ssize_t)size;
}

static void put(int fd, const void *data, size_t size)
{
    send(fd, data, size, MSG_NOSIGNAL);
}

static void fill(uint8_t words[WORDS], uint8_t seed)
{
    put_be64(words, MAP);
    memset(words + 8, seed, MAP);
    put_be64(words + 8 + MAP, MARK);
}

static void say_map(const struct qemu *qemu, const uint8_t *name)
{
    uint8_t head[4] = {0, 5, 0, (uint8_t)(1 + name[0])}, words[WORDS];
    fill(words, name[0]);
    if (qemu->fault == FAULT_SIZE)
        put_be64(words, UINT64_C(1) << 60);
    if (qemu->fault == FAULT_MARK)
        words[WORDS - 1]++;
    put(qemu->fd, request, sizeof request); /* somebody waits for a page */
    put(qemu->fd, head, sizeof head);
    put(qemu->fd, qemu->fault == FAULT_OTHER_BLOCK ? (const uint8_t *)"\3abcd" : name, 1U + name[0]);
    put(qemu->fd, words, sizeof words);
}

/* The destination's. */
static void *answer(void *arg)
{
    static const uint8_t acknowledged[] = {0, 6, 0, 4, 0, 0, 0, 1};
    struct qemu *qemu = arg;
    uint8_t head[5] = {0}, data[256];
    while (get(qemu->fd, head, 5) && (get_be16(head + 3) == 0 || get(qemu->fd, data, get_be16(head + 3)))) {
        if (qemu->fault == FAULT_GONE) {
            shutdown(qemu->fd, SHUT_RDWR);
        } else if (get_be16(head + 1) == 10) {
            say_map(qemu, data);
        } else {
            qemu->resumed = get_be16(head + 1) == 9;
            put(qemu->fd, acknowledged, sizeof acknowledged);
        }
    }
    return NULL;
}

/* The source's: it asks for all before it looks for an answer. */
static void *ask(void *arg)
{
    struct qemu *qemu = arg;
    uint8_t head[4] = {0}, name[8] = {0}, words[WORDS], expected[WORDS];
    put(qemu->fd, "\x08\0\x0a\0\4\3ram", 9);
    put(qemu->fd, "\x08\0\x0a\0\5\4bios", 10);
    for (int i = 0; i < 2; i++) {
        bool came = get(qemu->fd, head, 4) && get(qemu->fd, name, get_be16(head + 2)) &&
                    get(qemu->fd, words, sizeof words);
        fill(expected, name[0]);
        if (!came || get_be16(head) != 5 || memcmp(words, expected, sizeof words) != 0)
            return NULL;
    }
    put(qemu->fd, "\x08\0\x09\0\0", 5);
    qemu->resumed = get(qemu->fd, words, 8) && memcmp(words, "\0\6\0\4\0\0\0\1", 8) == 0;
    return NULL;
}

static int start(struct qemu *qemu, void *(*play)(void *))
{
    int ends[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
    qemu->fd = ends[0];
    assert_int_equal(pthread_create(&qemu->thread, NULL, play, qemu), 0);
    return ends[1];
}

static void end(struct qemu *qemu, int fd)
{
    shutdown(fd, SHUT_RDWR);
    pthread_join(qemu->thread, NULL);
    close(fd);
    close(qemu->fd);
}

/* From a destination's QEMU, piece by piece, to a source's. */
static void what_one_has_the_other_hears(void **state)
{
    (void)state;
    struct qemu destination = {0}, source = {0};
    struct resync here, there = {0};
    uint8_t *said = NULL, head[RESYNC_HEAD_MAX], piece[RESYNC_HEAD_MAX + WORDS];
    const uint8_t *data;
    size_t said_size = 0, size, head_size;
    assert_int_equal(resync_init(&here, names, sizeof names - 1, &err), 0);
    int fd = start(&destination, answer);
    assert_int_equal(resync_destination(fd, &here, SOON, &said, &said_size, &err), 0);
    end(&destination, fd);
    assert_true(destination.resumed);
    assert_int_equal(said_size, 2 * sizeof request);
    assert_memory_equal(said, request, sizeof request);
    free(said);

    for (size_t i = 0; i < here.count; i++)
        for (size_t offset = 0; (head_size = resync_put(&here, i, &offset, head, &data, &size)) > 0;) {
            memcpy(piece, head, head_size);
            memcpy(piece + head_size, data, size);
            assert_int_equal(resync_take(&there, piece, head_size + size, &err), 0);
        }
    fd = start(&source, ask);
    assert_int_equal(resync_source(fd, &there, SOON, &err), 0);
    end(&source, fd);
    assert_true(source.resumed);
    resync_done(&here);
    resync_done(&there);
}

static void a_qemu_that_makes_no_sense_is_not_believed(void **state)
{
    (void)state;
    for (enum fault fault = FAULT_OTHER_BLOCK; fault <= FAULT_GONE; fault++) {
        struct qemu qemu = {.fault = fault};
        struct resync resync;
        uint8_t *said;
        size_t size;
        assert_int_equal(resync_init(&resync, names, sizeof names - 1, &err), 0);
        int fd = start(&qemu, answer);
        assert_true(resync_destination(fd, &resync, SOON, &said, &size, &err) < 0);
        end(&qemu, fd);
        resync_done(&resync);
    }
}

static void a_map_that_is_not_whole_is_not_told(void **state)
{
    (void)state;
    struct qemu qemu = {0};
    struct resync resync = {0};
    uint8_t piece[20 + WORDS] = {WORDS};
    memcpy(piece + 16, names, 4);
    fill(piece + 20, 3);
    assert_int_equal(resync_take(&resync, piece, sizeof piece - 1, &err), 0);
    int fd = start(&qemu, ask);
    assert_int_equal(resync_source(fd, &resync, SOON, &err), -EPROTO);
    end(&qemu, fd);
    resync_done(&resync);
}

static void pieces_come_in_order_and_once(void **state)
{
    (void)state;
    struct resync resync = {0};
    uint8_t piece[20 + WORDS] = {WORDS};
    memcpy(piece + 16, names, 4);
    assert_int_equal(resync_take(&resync, piece, 10, &err), -EPROTO);
    piece[8] = 4; /* not from its beginning */
    assert_int_equal(resync_take(&resync, piece, sizeof piece, &err), -EPROTO);
    piece[8] = 0;
    assert_int_equal(resync_take(&resync, piece, sizeof piece, &err), 0);
    assert_int_equal(resync_take(&resync, piece, sizeof piece, &err), -EPROTO);
    piece[17] = 'x'; /* another block, of an absurd size */
    piece[7] = 0x7f;
    assert_int_equal(resync_take(&resync, piece, sizeof piece, &err), -EPROTO);
    resync_done(&resync);
}

static void a_block_that_is_whole(void **state)
{
    (void)state;
    struct resync resync = {0};
    assert_int_equal(resync_add_whole(&resync, "ram", UINT64_C(65) * 4096, &err), 0); /* 65 bits, in u64s */
    assert_int_equal(resync_add_whole(&resync, "empty", 0, &err), 0);
    assert_int_equal(resync.count, 1);
    assert_int_equal(resync.maps[0].size, 8 + 16 + 8);
    assert_int_equal(get_be64(resync.maps[0].bytes), 16);
    assert_int_equal(resync.maps[0].bytes[8], 0xff);
    assert_int_equal(resync.maps[0].bytes[23], 0xff);
    assert_int_equal(get_be64(resync.maps[0].bytes + 24), MARK);
    resync_done(&resync);
}

static void names_that_make_no_sense(void **state)
{
    (void)state;
    static const char *const wrong[] = {"\4ram", "\3ram\3ram"};
    struct resync resync;
    for (size_t i = 0; i < ARRAY_SIZE(wrong); i++)
        assert_int_equal(resync_init(&resync, (const uint8_t *)wrong[i], strlen(wrong[i]), &err), -EPROTO);
    assert_int_equal(resync_init(&resync, (const uint8_t *)"\0", 1, &err), -EPROTO);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_one_has_the_other_hears),
        cmocka_unit_test(a_qemu_that_makes_no_sense_is_not_believed),
        cmocka_unit_test(a_map_that_is_not_whole_is_not_told),
        cmocka_unit_test(pieces_come_in_order_and_once),
        cmocka_unit_test(a_block_that_is_whole),
        cmocka_unit_test(names_that_make_no_sense),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
