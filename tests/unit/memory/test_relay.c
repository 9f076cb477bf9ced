/* SPDX-License-Identifier: Apache-2.0
 *
 * The relay between a QEMU (here a plain unix socket) and a `forward` that takes, blocks or fails.
 */
// clang-format off
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
// clang-format on

#include "../scratch.h"

#include "base/clock.h"
#include "base/file.h"
#include "base/macro.h"
#include "memory/relay.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

static char folder[64], path[96];

/* What `forward` got, and what it shall do. */
static struct sink {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    uint64_t bytes, checksum;
    int ends; /* calls with NULL */
    bool hold, fail;
} sink = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};

static int setup(void **state)
{
    sink.bytes = sink.checksum = 0;
    sink.ends = 0;
    sink.hold = sink.fail = false;
    if (scratch_make(folder, sizeof folder) < 0)
        return -1;
    snprintf(path, sizeof path, "%s/migrate.sock", folder);
    return 0;
}

static int teardown(void **state)
{
    return file_remove_tree(folder, NULL);
}

static int take(void *arg, const void *data, size_t size)
{
    struct sink *s = arg;
    pthread_mutex_lock(&s->lock);
    while (data && s->hold)
        pthread_cond_wait(&s->changed, &s->lock);
    for (size_t i = 0; i < size; i++)
        s->checksum = s->checksum * 31 + ((const uint8_t *)data)[i];
    s->bytes += size;
    s->ends += data == NULL;
    int r = data && s->fail ? -EPIPE : 0;
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->lock);
    return r;
}

static void set_hold(bool hold)
{
    pthread_mutex_lock(&sink.lock);
    sink.hold = hold;
    pthread_cond_broadcast(&sink.changed);
    pthread_mutex_unlock(&sink.lock);
}

static void wait_for(uint64_t bytes, int ends)
{
    int64_t deadline = clock_now() + 10 * NSEC_PER_SEC;
    for (bool there = false; !there;) {
        pthread_mutex_lock(&sink.lock);
        there = sink.bytes >= bytes && sink.ends >= ends;
        pthread_mutex_unlock(&sink.lock);
        assert_true(clock_now() < deadline);
        clock_sleep(NSEC_PER_MSEC);
    }
}

static struct sockaddr_un address(void)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    snprintf(a.sun_path, sizeof a.sun_path, "%s", path);
    return a;
}

/* QEMU on the source connects to us. */
static int connect_as_qemu(void)
{
    struct sockaddr_un a = address();
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&a, sizeof a), 0);
    return fd;
}

/* QEMU on the destination listens. */
static int listen_as_qemu(void)
{
    struct sockaddr_un a = address();
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&a, sizeof a), 0);
    assert_int_equal(listen(fd, 1), 0);
    return fd;
}

static struct relay *listening_relay(void)
{
    struct relay *relay = NULL;
    struct err err = ERR_NONE;
    if (relay_listen(path, getuid(), take, &sink, &relay, &err) < 0 || relay_admit(relay, &err) < 0)
        fail_msg("%s", err.text);
    return relay;
}

static int write_to(struct relay *relay, const void *data, size_t size, struct err *err)
{
    size_t written;
    int r = relay_write(relay, data, size, &written, err);
    assert_true(r < 0 || written == size);
    return r;
}

static void fill(uint8_t *data, size_t size)
{
    for (size_t i = 0; i < size; i++)
        data[i] = (uint8_t)(i * 7 + i / 251);
}

static void test_the_source_forwards_every_byte_in_order(void **state)
{
    enum { SIZE = 3 * 1024 * 1024 + 17 };
    _cleanup_free_ uint8_t *data = malloc(SIZE);
    struct relay *relay = listening_relay();
    int qemu = connect_as_qemu();
    uint64_t checksum = 0;
    fill(data, SIZE);
    for (size_t i = 0; i < SIZE; i++)
        checksum = checksum * 31 + data[i];
    assert_int_equal(file_write_full(qemu, data, SIZE), 0);
    close(qemu);
    wait_for(SIZE, 1);
    assert_int_equal(sink.checksum, checksum);
    assert_int_equal(relay_bytes(relay), SIZE);
    relay_free(relay);
    assert_int_equal(sink.ends, 1);
}

static void test_the_return_path_reaches_the_source_qemu(void **state)
{
    char back[5];
    struct relay *relay = listening_relay();
    int qemu = connect_as_qemu();
    assert_int_equal(file_write_full(qemu, "x", 1), 0);
    wait_for(1, 0); /* it has accepted */
    assert_int_equal(write_to(relay, "hello", 5, NULL), 0);
    assert_int_equal(file_read_full(qemu, back, 5), 0);
    assert_memory_equal(back, "hello", 5);
    relay_free(relay);
    close(qemu);
}

static void test_the_destination_writes_to_qemu_and_forwards_its_answers(void **state)
{
    char got[6];
    struct relay *relay;
    int listener = listen_as_qemu();
    assert_int_equal(relay_connect(path, take, &sink, &relay, NULL), 0);
    int qemu = accept(listener, NULL, NULL);
    assert_int_equal(write_to(relay, "stream", 6, NULL), 0);
    assert_int_equal(file_read_full(qemu, got, 6), 0);
    assert_memory_equal(got, "stream", 6);
    assert_int_equal(file_write_full(qemu, "ack", 3), 0);
    wait_for(3, 0);
    relay_free(relay);
    close(qemu);
    close(listener);
}

static void test_nobody_listens_is_an_error(void **state)
{
    struct relay *relay = NULL;
    struct err err = ERR_NONE;
    assert_int_equal(relay_connect(path, take, &sink, &relay, &err), -ENOENT);
    assert_non_null(strstr(err.text, path));
    assert_null(relay);
}

static void test_a_path_that_is_too_long_is_an_error(void **state)
{
    char longer[200];
    struct relay *relay = NULL;
    memset(longer, 'x', sizeof longer);
    longer[0] = '/';
    longer[sizeof longer - 1] = '\0';
    assert_int_equal(relay_listen(longer, getuid(), take, &sink, &relay, NULL), -ENAMETOOLONG);
    assert_int_equal(relay_connect(longer, take, &sink, &relay, NULL), -ENAMETOOLONG);
}

static void test_a_folder_that_is_missing_is_an_error_and_leaves_nothing(void **state)
{
    struct relay *relay = NULL;
    snprintf(path, sizeof path, "%s/no/migrate.sock", folder);
    assert_int_equal(relay_listen(path, getuid(), take, &sink, &relay, NULL), -ENOENT);
    assert_null(relay);
}

static void test_the_socket_is_for_its_owner_only_whatever_the_umask(void **state)
{
    struct stat st;
    mode_t old = umask(0);
    struct relay *relay = listening_relay();
    umask(old);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    relay_free(relay);
    assert_int_equal(stat(path, &st), -1);
}

static void test_a_forward_that_blocks_blocks_qemu(void **state)
{
    static uint8_t chunk[65536];
    struct relay *relay = listening_relay();
    int qemu = connect_as_qemu();
    size_t sent = 0;
    set_hold(true);
    for (ssize_t n; (n = send(qemu, chunk, sizeof chunk, MSG_NOSIGNAL | MSG_DONTWAIT)) > 0 || sent == 0;) {
        sent += n > 0 ? (size_t)n : 0;
        clock_sleep(NSEC_PER_MSEC); /* let the relay take what it would */
        assert_true(sent < 16 * MiB);
    }
    assert_true(relay_bytes(relay) <= 128 * KiB);
    set_hold(false);
    wait_for(sent, 0);
    relay_free(relay);
    close(qemu);
}

static void test_qemu_sees_a_broken_connection_when_forward_fails(void **state)
{
    char byte;
    struct relay *relay = listening_relay();
    int qemu = connect_as_qemu();
    sink.fail = true;
    assert_int_equal(file_write_full(qemu, "x", 1), 0);
    wait_for(1, 1);
    assert_int_equal(read(qemu, &byte, 1), 0);
    assert_int_equal(send(qemu, "y", 1, MSG_NOSIGNAL), -1);
    assert_int_equal(write_to(relay, "z", 1, NULL), -EPIPE);
    relay_free(relay);
    close(qemu);
}

static void test_writing_to_a_qemu_that_is_gone_fails(void **state)
{
    struct err err = ERR_NONE;
    struct relay *relay = listening_relay();
    assert_int_equal(write_to(relay, "x", 1, &err), -EPIPE); /* none has come yet */
    int qemu = connect_as_qemu();
    close(qemu);
    wait_for(0, 1);
    assert_int_equal(write_to(relay, "x", 1, &err), -EPIPE);
    assert_non_null(strstr(err.text, "QEMU"));
    relay_free(relay);
}

/* QEMU may have ended its own direction and still read the other. */
static void test_a_half_closed_qemu_still_gets_what_is_written(void **state)
{
    char got[4];
    struct relay *relay = listening_relay();
    int qemu = connect_as_qemu();
    assert_int_equal(shutdown(qemu, SHUT_WR), 0);
    wait_for(0, 1);
    assert_int_equal(write_to(relay, "last", 4, NULL), 0);
    assert_int_equal(file_read_full(qemu, got, 4), 0);
    relay_free(relay);
    close(qemu);
}

static void *write_for_ever(void *arg)
{
    static const uint8_t chunk[65536];
    while (write_to(arg, chunk, sizeof chunk, NULL) == 0)
        ;
    return NULL;
}

static void test_stop_ends_a_writer_whom_qemu_does_not_read(void **state)
{
    struct relay *relay;
    pthread_t writer;
    int listener = listen_as_qemu();
    assert_int_equal(relay_connect(path, take, &sink, &relay, NULL), 0);
    int qemu = accept(listener, NULL, NULL);
    assert_int_equal(pthread_create(&writer, NULL, write_for_ever, relay), 0);
    clock_sleep(50 * NSEC_PER_MSEC);
    relay_stop(relay);
    pthread_join(writer, NULL);
    relay_join(relay);
    assert_int_equal(write_to(relay, "x", 1, NULL), -EPIPE);
    relay_free(relay);
    close(qemu);
    close(listener);
}

static void test_a_relay_that_qemu_never_used_is_freed_at_once(void **state)
{
    int64_t began = clock_now();
    relay_free(listening_relay());
    relay_free(NULL);
    assert_true(clock_now() - began < 5 * NSEC_PER_SEC);
    assert_int_equal(sink.ends, 1);
}

static _Atomic bool connected;

static void *connect_late(void *unused)
{
    int fd = connect_as_qemu();
    connected = true;
    close(fd);
    return NULL;
}

static void test_qemu_waits_until_it_is_admitted(void **state)
{
    struct relay *relay;
    pthread_t qemu;
    assert_int_equal(relay_listen(path, getuid(), take, &sink, &relay, NULL), 0);
    assert_int_equal(pthread_create(&qemu, NULL, connect_late, NULL), 0);
    clock_sleep(50 * NSEC_PER_MSEC);
    assert_false(connected);
    assert_int_equal(relay_admit(relay, NULL), 0);
    pthread_join(qemu, NULL);
    assert_true(connected);
    wait_for(0, 1);
    relay_free(relay);
}

static void test_a_relay_that_never_admitted_qemu_is_freed(void **state)
{
    struct relay *relay;
    assert_int_equal(relay_listen(path, getuid(), take, &sink, &relay, NULL), 0);
    relay_free(relay);
    assert_int_equal(access(path, F_OK), -1);
    assert_int_equal(sink.ends, 0);
}

static void *interrupt_soon(void *relay)
{
    clock_sleep(50 * NSEC_PER_MSEC);
    relay_interrupt(relay, true);
    return NULL;
}

/* What was written counts exactly: it goes on there over the next connection. */
static void test_an_interrupted_write_says_how_far_it_came(void **state)
{
    enum { SIZE = 8 * 1024 * 1024 };
    _cleanup_free_ uint8_t *data = malloc(SIZE), *got = malloc(SIZE);
    struct relay *relay;
    pthread_t interrupter;
    size_t first, second;
    int listener = listen_as_qemu();
    assert_int_equal(relay_connect(path, take, &sink, &relay, NULL), 0);
    int qemu = accept(listener, NULL, NULL);
    fill(data, SIZE);
    assert_int_equal(pthread_create(&interrupter, NULL, interrupt_soon, relay), 0);
    assert_int_equal(relay_write(relay, data, SIZE, &first, NULL), -EINTR);
    pthread_join(interrupter, NULL);
    assert_true(first > 0 && first < SIZE);
    assert_int_equal(relay_write(relay, data + first, SIZE - first, &second, NULL), -EINTR);
    assert_int_equal(second, 0);
    assert_int_equal(file_read_full(qemu, got, first), 0);
    assert_memory_equal(got, data, first);
    relay_interrupt(relay, false);
    assert_int_equal(write_to(relay, data + first, 1000, NULL), 0);
    assert_int_equal(file_read_full(qemu, got, 1000), 0);
    assert_memory_equal(got, data + first, 1000);
    relay_free(relay);
    close(qemu);
    close(listener);
}

static void test_nothing_is_forwarded_after_join(void **state)
{
    struct relay *relay = listening_relay();
    int qemu = connect_as_qemu();
    assert_int_equal(file_write_full(qemu, "x", 1), 0);
    wait_for(1, 0);
    relay_join(relay);
    uint64_t bytes = sink.bytes;
    (void)send(qemu, "y", 1, MSG_NOSIGNAL);
    clock_sleep(20 * NSEC_PER_MSEC);
    assert_int_equal(sink.bytes, bytes);
    assert_int_equal(sink.ends, 1);
    relay_join(relay); /* twice is once */
    relay_free(relay);
    close(qemu);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_the_source_forwards_every_byte_in_order),
        TEST(test_the_return_path_reaches_the_source_qemu),
        TEST(test_the_destination_writes_to_qemu_and_forwards_its_answers),
        TEST(test_nobody_listens_is_an_error),
        TEST(test_a_path_that_is_too_long_is_an_error),
        TEST(test_a_folder_that_is_missing_is_an_error_and_leaves_nothing),
        TEST(test_the_socket_is_for_its_owner_only_whatever_the_umask),
        TEST(test_a_forward_that_blocks_blocks_qemu),
        TEST(test_qemu_sees_a_broken_connection_when_forward_fails),
        TEST(test_writing_to_a_qemu_that_is_gone_fails),
        TEST(test_a_half_closed_qemu_still_gets_what_is_written),
        TEST(test_stop_ends_a_writer_whom_qemu_does_not_read),
        TEST(test_a_relay_that_qemu_never_used_is_freed_at_once),
        TEST(test_nothing_is_forwarded_after_join),
        TEST(test_qemu_waits_until_it_is_admitted),
        TEST(test_a_relay_that_never_admitted_qemu_is_freed),
        TEST(test_an_interrupted_write_says_how_far_it_came),
    };
    return cmocka_run_group_tests_name("relay", tests, NULL, NULL);
}
