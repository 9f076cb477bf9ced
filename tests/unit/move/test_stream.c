/* SPDX-License-Identifier: Apache-2.0
 *
 * Two streams over real links, with a plain socket as QEMU at each end. Threads meet here: run under the
 * thread sanitizer too.
 */
#include "base/endian.h"
#include "move/stream.h"
#include "move_test.h"

#include <poll.h>
#include <stdatomic.h>
#include <sys/un.h>

#define TOTAL (24 * MiB) /* three times what a stream keeps */

/* One side: QEMU's end of the migration socket, the stream, and the connection of the moment. */
static struct side {
    struct stream *stream;
    struct link *link;
    int qemu;
    char path[96];
} source, destination;

static int on_frame(void *arg, struct link *link, const struct frame *frame, const uint8_t *payload,
                    struct err *err)
{
    struct side *side = arg;
    return frame->type == FRAME_TAKEN ? stream_peer_took(side->stream, payload, frame->length, err)
                                      : stream_take(side->stream, link, payload, frame->length, err);
}

static void on_closed(void *arg, struct link *link, const struct err *err)
{
    (void)arg, (void)link, (void)err;
}

static void start_links(void)
{
    struct tls *a, *b;
    struct link_options options = {.vm = vm, .queue_bytes = 256 * KiB};
    connect_hosts(&a, &b);
    struct link_handler of_source = {.frame = on_frame, .closed = on_closed, .arg = &source};
    struct link_handler of_destination = {.frame = on_frame, .closed = on_closed, .arg = &destination};
    assert_ok(link_start(a, &options, &of_source, &source.link, &err));
    assert_ok(link_start(b, &options, &of_destination, &destination.link, &err));
}

/* As session_reset does it. */
static void stop_links(void)
{
    link_stop(source.link);
    link_stop(destination.link);
    stream_interrupt(source.stream);
    stream_interrupt(destination.stream);
    link_free(source.link);
    link_free(destination.link);
    stream_detach(source.stream);
    stream_detach(destination.stream);
}

static void attach(uint64_t source_taken, uint64_t destination_taken)
{
    assert_ok(stream_attach(source.stream, source.link, destination_taken, &err));
    assert_ok(stream_attach(destination.stream, destination.link, source_taken, &err));
}

static struct sockaddr_un address_of(const struct side *side)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(address.sun_path, sizeof address.sun_path, "%s", side->path);
    return address;
}

static void open_streams(bool lasting)
{
    snprintf(source.path, sizeof source.path, "%s/migrate.sock", folder);
    snprintf(destination.path, sizeof destination.path, "%s/incoming.sock", folder);
    struct sockaddr_un there = address_of(&destination), here = address_of(&source);
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    unlink(destination.path);
    assert_int_equal(bind(listener, (struct sockaddr *)&there, sizeof there), 0);
    assert_int_equal(listen(listener, 1), 0);
    assert_ok(stream_connect(destination.path, lasting, &destination.stream, &err));
    destination.qemu = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    close(listener);
    assert_ok(stream_listen(source.path, getuid(), lasting, &source.stream, &err));
    assert_ok(stream_admit(source.stream, &err));
    source.qemu = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(connect(source.qemu, (struct sockaddr *)&here, sizeof here), 0);
}

static void close_streams(void)
{
    stream_free(source.stream);
    stream_free(destination.stream);
    close(source.qemu);
    close(destination.qemu);
}

static uint8_t byte_at(uint64_t number)
{
    return (uint8_t)(number * 31 + (number >> 12));
}

static void *write_all(void *arg)
{
    const struct side *side = arg;
    uint8_t chunk[60000];
    for (uint64_t done = 0; done < TOTAL;) {
        size_t size = MIN(sizeof chunk, TOTAL - done);
        for (size_t i = 0; i < size; i++)
            chunk[i] = byte_at(done + i);
        if (file_write_full(side->qemu, chunk, size) < 0)
            return (void *)"cannot write";
        done += size;
    }
    return NULL;
}

static _Atomic uint64_t read_so_far;

static void *read_all(void *arg)
{
    const struct side *side = arg;
    uint8_t chunk[50000];
    for (uint64_t done = 0; done < TOTAL;) {
        ssize_t n = read(side->qemu, chunk, sizeof chunk);
        if (n <= 0)
            return (void *)"ended early";
        for (ssize_t i = 0; i < n; i++)
            if (chunk[i] != byte_at(done + (uint64_t)i))
                return (void *)"a wrong byte";
        done += (uint64_t)n;
        read_so_far = done;
    }
    return NULL;
}

static void run_threads(void *(*meanwhile)(void *))
{
    pthread_t writer, reader;
    void *wrong = NULL;
    read_so_far = 0;
    assert_int_equal(pthread_create(&writer, NULL, write_all, &source), 0);
    assert_int_equal(pthread_create(&reader, NULL, read_all, &destination), 0);
    if (meanwhile)
        meanwhile(NULL);
    pthread_join(writer, &wrong);
    assert_null(wrong);
    pthread_join(reader, &wrong);
    if (wrong)
        fail_msg("%s", (const char *)wrong);
}

static void test_every_byte_comes_in_order(void **state)
{
    for (int lasting = 0; lasting < 2; lasting++) {
        open_streams(lasting);
        start_links();
        attach(0, 0);
        stream_widen(source.stream);
        run_threads(NULL);
        assert_int_equal(stream_bytes(source.stream), TOTAL);
        assert_true(eventually(stream_taken(destination.stream) == TOTAL));
        stop_links();
        close_streams();
    }
}

static void *cut_again_and_again(void *unused)
{
    for (int cut = 1; cut <= 8; cut++) {
        uint64_t goal = TOTAL / 10 * (unsigned)cut;
        assert_true(eventually(read_so_far >= goal));
        stop_links();
        uint64_t there = stream_taken(destination.stream), here = stream_taken(source.stream);
        start_links();
        attach(here, there);
    }
    return unused;
}

static void test_a_lasting_stream_goes_on_over_new_connections(void **state)
{
    open_streams(true);
    start_links();
    attach(0, 0);
    stream_widen(source.stream);
    run_threads(cut_again_and_again);
    stop_links();
    close_streams();
}

/* QEMU waits for answers: nothing more will come from it before the new connection has brought the last. */
static void test_what_was_under_way_comes_though_qemu_is_silent(void **state)
{
    char got[5];
    open_streams(true);
    start_links();
    stop_links(); /* before anything was attached */
    assert_int_equal(file_write_full(source.qemu, "hello", 5), 0);
    assert_true(eventually(stream_bytes(source.stream) == 5));
    start_links();
    attach(0, 0);
    assert_int_equal(file_read_full(destination.qemu, got, 5), 0);
    assert_memory_equal(got, "hello", 5);
    stop_links();
    close_streams();
}

static void test_the_return_path_too(void **state)
{
    char got[4];
    open_streams(true);
    start_links();
    attach(0, 0);
    assert_int_equal(file_write_full(destination.qemu, "back", 4), 0);
    assert_int_equal(file_read_full(source.qemu, got, 4), 0);
    assert_memory_equal(got, "back", 4);
    assert_ok(stream_inject(source.stream, "more", 4, &err));
    assert_int_equal(file_read_full(source.qemu, got, 4), 0);
    assert_memory_equal(got, "more", 4);
    stop_links();
    close_streams();
}

static void test_a_peer_that_lies_is_refused(void **state)
{
    uint8_t taken[8];
    open_streams(true);
    start_links();
    attach(0, 0);
    assert_int_equal(file_write_full(source.qemu, "hello", 5), 0);
    assert_true(eventually(stream_taken(destination.stream) == 5));
    put_le64(taken, 6);
    assert_int_equal(stream_peer_took(source.stream, taken, 8, NULL), -EPROTO);
    put_le64(taken, 4);
    assert_int_equal(stream_peer_took(source.stream, taken, 7, NULL), -EPROTO);
    assert_int_equal(stream_peer_took(source.stream, taken, 8, NULL), 0);
    put_le64(taken, 3); /* it had four */
    assert_int_equal(stream_peer_took(source.stream, taken, 8, NULL), -EPROTO);
    assert_int_equal(stream_peer_took(NULL, taken, 8, NULL), -EPROTO);
    stop_links();
    start_links();
    assert_int_equal(stream_attach(source.stream, source.link, 3, NULL), -EPROTO);
    assert_int_equal(stream_attach(source.stream, source.link, 6, NULL), -EPROTO);
    assert_int_equal(stream_attach(source.stream, source.link, 5, NULL), 0);
    stop_links();
    close_streams();
}

static void *write_chunk(void *arg)
{
    static const uint8_t chunk[65536];
    atomic_size_t *written = arg;
    while (send(source.qemu, chunk, sizeof chunk, MSG_NOSIGNAL) > 0)
        *written += sizeof chunk;
    return NULL;
}

static void test_without_a_connection_qemu_waits_and_can_be_stopped(void **state)
{
    pthread_t writer;
    atomic_size_t written = 0;
    open_streams(true);
    assert_int_equal(pthread_create(&writer, NULL, write_chunk, &written), 0);
    clock_sleep(100 * NSEC_PER_MSEC);
    assert_true(written > 0 && written < 4 * MiB);
    stream_stop(source.stream);
    pthread_join(writer, NULL);
    close_streams();
}

static void test_what_is_discarded_holds_nobody_up(void **state)
{
    pthread_t writer;
    atomic_size_t written = 0;
    open_streams(true);
    assert_int_equal(pthread_create(&writer, NULL, write_chunk, &written), 0);
    stream_discard(source.stream);
    assert_true(eventually(written > TOTAL));
    stream_stop(source.stream);
    pthread_join(writer, NULL);
    close_streams();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_byte_comes_in_order),
        cmocka_unit_test(test_a_lasting_stream_goes_on_over_new_connections),
        cmocka_unit_test(test_what_was_under_way_comes_though_qemu_is_silent),
        cmocka_unit_test(test_the_return_path_too),
        cmocka_unit_test(test_a_peer_that_lies_is_refused),
        cmocka_unit_test(test_without_a_connection_qemu_waits_and_can_be_stopped),
        cmocka_unit_test(test_what_is_discarded_holds_nobody_up),
    };
    return cmocka_run_group_tests_name("stream", tests, make_hosts, drop_hosts);
}
