/* SPDX-License-Identifier: Apache-2.0
 *
 * Two streams over real links, with a plain socket as QEMU at each end. Threads meet here: run under the
 * thread sanitizer too.
 */
#include "../memory/stream_maker.h"
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
    switch (frame->type) {
    case FRAME_TAKEN:
        return stream_peer_took(side->stream, payload, frame->length, err);
    case FRAME_PACKED:
        return stream_take_packed(side->stream, link, payload, frame->length, err);
    default:
        return stream_take(side->stream, link, payload, frame->length, err);
    }
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

enum kind { PLAIN, PACKED, LASTING, LASTING_PACKED };

static void open_streams(enum kind kind)
{
    bool lasting = kind >= LASTING;
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
    if (kind == PACKED || kind == LASTING_PACKED) {
        const struct stream_ahead ahead = {.most = 8 * MiB};
        assert_ok(stream_pack(source.stream, NULL, lasting ? NULL : &ahead, &err));
        assert_ok(stream_unpack(destination.stream, NULL, NULL, &err));
    }
    assert_ok(stream_admit(source.stream, &err));
    source.qemu = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(connect(source.qemu, (struct sockaddr *)&here, sizeof here), 0);
    assert_true(eventually(access(source.path, F_OK) < 0)); /* it has been accepted */
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
    for (enum kind kind = PLAIN; kind <= LASTING_PACKED; kind++) {
        open_streams(kind);
        start_links();
        attach(0, 0);
        stream_widen(source.stream, 16 * MiB);
        run_threads(NULL);
        assert_int_equal(stream_bytes(source.stream), TOTAL);
        assert_true(eventually(stream_taken(destination.stream) == TOTAL));
        stop_links();
        close_streams();
    }
}

/* Packets that stand for very much must not lie between the hosts. */
static void test_a_packed_stream_is_not_far_ahead(void **state)
{
    static struct maker maker;
    size_t written = 0;
    open_streams(PACKED);
    start_links();
    attach(0, 0);
    maker.size = 0;
    put_beginning(&maker, 1 << 24);
    put_part(&maker);
    struct timeval patience = {.tv_usec = 500000};
    setsockopt(source.qemu, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    for (uint64_t page = 0;
         send(source.qemu, maker.bytes, maker.size, MSG_NOSIGNAL) == (ssize_t)maker.size;) {
        written += maker.size;
        assert_true(written < 64 * MiB);
        for (maker.size = 0; maker.size < 1000 * QSTREAM_ZERO_RECORD; page++)
            put_zero(&maker, page);
    }
    assert_in_range(written, 4 * MiB, 16 * MiB);
    assert_true(stream_count(source.stream).sent < MiB);
    stream_stop(source.stream);
    stream_stop(destination.stream);
    stop_links();
    close_streams();
}

static void test_packets_that_were_not_agreed_on_are_refused(void **state)
{
    uint8_t packet[CODEC_HEADER] = {0}, taken[8] = {0};
    open_streams(PLAIN);
    start_links();
    attach(0, 0);
    assert_int_equal(stream_take_packed(destination.stream, destination.link, packet, sizeof packet, NULL),
                     -EPROTO);
    assert_int_equal(stream_peer_took(source.stream, taken, 8, NULL), -EPROTO);
    stop_links();
    close_streams();

    open_streams(PACKED);
    start_links();
    attach(0, 0);
    assert_int_equal(stream_take_packed(destination.stream, destination.link, packet, 3, NULL), -EPROTO);
    taken[0] = 1;
    assert_int_equal(stream_peer_took(source.stream, taken, 8, NULL), -EPROTO);
    stop_links();
    close_streams();
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
    for (int way = 0; way < 4; way++) {
        open_streams(way / 2 ? LASTING_PACKED : LASTING);
        if (way % 2) /* these bytes mean nothing to them, and pass */
            assert_ok(stream_keep_holes(destination.stream, "ram", 64 * MiB, &err));
        start_links();
        attach(0, 0);
        stream_widen(source.stream, 16 * MiB);
        run_threads(cut_again_and_again);
        stop_links();
        close_streams();
    }
}

static bool spoilt;

static int read_known(void *arg, uint64_t page, uint8_t ret[KNOWN_PAGE], struct err *error)
{
    (void)arg;
    if (spoilt)
        return err_set(error, EBADMSG, "page %llu has changed", (unsigned long long)page);
    fill_page(ret, page);
    return 0;
}

static void know(struct known *known, uint64_t pages)
{
    for (uint64_t page = 0; page < pages; page++) {
        uint8_t content[KNOWN_PAGE], message[8 + KNOWN_HASH];
        fill_page(content, page);
        put_le64(message, page);
        known_hash(1, content, message + 8);
        assert_ok(known_add(known, message, sizeof message, &err));
    }
}

static struct maker maker;

static void write_pages(uint64_t from, uint64_t to)
{
    maker.size = 0;
    if (from == 0) {
        put_beginning(&maker, 1024);
        put_part(&maker);
        put_u64(&maker, 1023 * QSTREAM_PAGE_SIZE | 2); /* a zero page that names the block */
        put_name(&maker, "ram");
        put_u8(&maker, 0);
    }
    for (uint64_t page = from; page < to; page++)
        put_page(&maker, page, page);
    assert_ok(file_write_full(source.qemu, maker.bytes, maker.size));
}

static void check_written(void)
{
    static uint8_t got[sizeof maker.bytes];
    assert_ok(file_read_full(destination.qemu, got, maker.size));
    assert_memory_equal(got, maker.bytes, maker.size);
}

/* A page goes once it is whole, and what has to be sent again needs no checkpoint. */
static void test_what_is_known_is_named_until_it_cannot_be_read(void **state)
{
    struct known *known;
    assert_ok(known_new(1024, 1, &known, &err));
    know(known, 200);
    spoilt = false;
    open_streams(LASTING);
    assert_ok(stream_pack(source.stream, known, 0, &err));
    assert_ok(stream_unpack(destination.stream, read_known, NULL, &err));
    start_links();
    attach(0, 0);
    stream_widen(source.stream, 0);
    write_pages(0, 100);
    check_written();
    struct stream_count count = stream_count(source.stream);
    assert_int_equal(count.packed.known_pages, 100);
    assert_in_range(count.sent, 1, 8 * KiB);

    spoilt = true;
    write_pages(100, 150);
    assert_true(eventually(stream_count(source.stream).packed.known_pages > 100)); /* the link fails soon */
    stop_links();
    uint64_t named = stream_count(source.stream).packed.known_pages;
    stream_forget_known(source.stream);
    start_links();
    attach(stream_taken(source.stream), stream_taken(destination.stream));
    check_written();
    write_pages(150, 200);
    check_written();
    assert_int_equal(stream_count(source.stream).packed.known_pages, named);
    assert_in_range(stream_count(source.stream).sent, 100 * KNOWN_PAGE, 110 * KNOWN_PAGE);
    stop_links();
    close_streams();
    known_free(known);
}

static void *write_many_pages(void *unused)
{
    for (uint64_t page = 0; page < 1000; page += 100)
        write_pages(page, page + 100);
    return unused;
}

static uint64_t pages_taken(void)
{
    return stream_taken(destination.stream) / QSTREAM_PAGE_RECORD;
}

static void drain(void)
{
    static uint8_t bytes[64 * KiB];
    while (read(destination.qemu, bytes, sizeof bytes) > 0)
        ;
}

static void drain_until(uint64_t pages)
{
    for (int i = 0; i < 600 && pages_taken() < pages; i++)
        drain();
    assert_true(pages_taken() >= pages);
}

static void make_request(uint8_t ret[20], uint64_t page, uint32_t pages)
{
    memcpy(ret, "\0\3\0\20", 4);
    put_be64(ret + 4, page * QSTREAM_PAGE_SIZE);
    put_be32(ret + 12, pages * QSTREAM_PAGE_SIZE);
    memcpy(ret + 16, "\3ram", 4);
}

/* Before the switch nobody needs more than what is asked for, and what lies before it. */
static void test_what_nobody_asked_for_is_held_until_it_is_wide(void **state)
{
    static const uint8_t pong[8] = {0, 2, 0, 4, 0, 0, 0, 1};
    uint8_t request[20];
    pthread_t writer;
    open_streams(LASTING_PACKED);
    assert_ok(stream_hold(source.stream, "ram", 1024 * QSTREAM_PAGE_SIZE, &err));
    start_links();
    make_request(request, 0, 50);
    assert_ok(stream_inject(source.stream, request, sizeof request, &err));
    attach(0, 0);
    struct timeval patience = {.tv_usec = 50000};
    setsockopt(destination.qemu, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    assert_int_equal(pthread_create(&writer, NULL, write_many_pages, NULL), 0);
    drain_until(50);
    assert_ok(file_write_full(destination.qemu, pong, sizeof pong));
    make_request(request, 20, 1); /* it has gone */
    assert_ok(file_write_full(destination.qemu, request, sizeof request));
    drain();
    assert_in_range(pages_taken(), 50, 60);
    make_request(request, 99, 1);
    assert_ok(file_write_full(destination.qemu, request, sizeof request));
    drain_until(100);
    drain();
    assert_in_range(pages_taken(), 100, 110);
    stream_widen(source.stream, 0);
    drain_until(1000);
    pthread_join(writer, NULL);
    stop_links();
    close_streams();
}

/* What the source's QEMU is asked for next. */
static uint64_t next_request(uint32_t pages)
{
    uint8_t got[20], expected[20];
    assert_ok(file_read_full(source.qemu, got, sizeof got));
    uint64_t page = get_be64(got + 4) / QSTREAM_PAGE_SIZE;
    make_request(expected, page, pages);
    assert_memory_equal(got, expected, sizeof expected);
    return page;
}

static bool is_asked(void)
{
    struct pollfd p = {.fd = source.qemu, .events = POLLIN};
    return poll(&p, 1, 50) == 1;
}

/* Also where nobody has measured the link. */
static void test_neighbours_are_asked_for_once_it_is_wide(void **state)
{
    uint8_t request[20];
    open_streams(LASTING_PACKED);
    assert_ok(stream_hold(source.stream, "ram", 1024 * QSTREAM_PAGE_SIZE, &err));
    start_links();
    attach(0, 0);
    make_request(request, 300, 1);
    assert_ok(file_write_full(destination.qemu, request, sizeof request));
    assert_int_equal(next_request(1), 300);
    assert_false(is_asked());
    stream_widen(source.stream, 0);
    make_request(request, 500, 1);
    assert_ok(file_write_full(destination.qemu, request, sizeof request));
    assert_int_equal(next_request(1), 500);
    assert_int_equal(next_request(16), 484); /* an eighth of 512 KiB */
    assert_false(is_asked());
    stop_links();
    close_streams();
}

/* Not before, and only so many at a time: a page that the guest waits for must not be behind all of them. */
static void test_the_working_set_is_asked_for_once_it_is_wide(void **state)
{
    struct workset *workset;
    uint8_t request[20];
    assert_ok(workset_new(1024 * QSTREAM_PAGE_SIZE, &workset, &err));
    workset_add(workset, 20); /* will have gone by then */
    for (uint64_t page = 1000; page > 900; page--)
        workset_add(workset, page);
    open_streams(LASTING_PACKED);
    assert_ok(stream_hold(source.stream, "ram", 1024 * QSTREAM_PAGE_SIZE, &err));
    assert_ok(stream_prefer(source.stream, workset, &err));
    workset_free(workset);
    start_links();
    make_request(request, 0, 30);
    assert_ok(stream_inject(source.stream, request, sizeof request, &err));
    assert_ok(file_read_full(source.qemu, request, sizeof request));
    attach(0, 0);
    write_pages(0, 30);
    check_written();
    assert_false(is_asked());
    stream_widen(source.stream, 0);
    write_pages(30, 60);
    check_written();
    for (uint64_t page = 1000; page > 968; page--)
        assert_int_equal(next_request(1), page);
    assert_false(is_asked());
    write_pages(990, 1001);
    check_written();
    uint64_t page = 968; /* as many again as have come when the peer tells of them */
    while (is_asked())
        assert_int_equal(next_request(1), page--);
    assert_in_range(page, 957, 968 - 32 * KiB / QSTREAM_PAGE_RECORD);
    stop_links();
    close_streams();
}

/* Whatever was not understood: nobody waits for ever. */
static void test_what_is_held_goes_when_it_has_been_silent_for_long(void **state)
{
    pthread_t writer;
    open_streams(LASTING_PACKED);
    assert_ok(stream_hold(source.stream, "ram", 1024 * QSTREAM_PAGE_SIZE, &err));
    start_links();
    attach(0, 0);
    struct timeval patience = {.tv_usec = 50000};
    setsockopt(destination.qemu, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    assert_int_equal(pthread_create(&writer, NULL, write_many_pages, NULL), 0);
    drain_until(1000);
    pthread_join(writer, NULL);
    stop_links();
    close_streams();
}

/* QEMU waits for answers: nothing more will come from it before the new connection has brought the last. */
static void test_what_was_under_way_comes_though_qemu_is_silent(void **state)
{
    char got[5];
    open_streams(LASTING);
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
    open_streams(LASTING);
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
    open_streams(LASTING);
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
    open_streams(LASTING);
    assert_int_equal(pthread_create(&writer, NULL, write_chunk, &written), 0);
    assert_true(eventually(written > 0));
    clock_sleep(100 * NSEC_PER_MSEC);
    assert_true(written < 4 * MiB);
    stream_stop(source.stream);
    pthread_join(writer, NULL);
    close_streams();
}

static void test_what_is_discarded_holds_nobody_up(void **state)
{
    pthread_t writer;
    atomic_size_t written = 0;
    open_streams(LASTING);
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
        cmocka_unit_test(test_a_packed_stream_is_not_far_ahead),
        cmocka_unit_test(test_packets_that_were_not_agreed_on_are_refused),
        cmocka_unit_test(test_a_lasting_stream_goes_on_over_new_connections),
        cmocka_unit_test(test_what_is_known_is_named_until_it_cannot_be_read),
        cmocka_unit_test(test_what_nobody_asked_for_is_held_until_it_is_wide),
        cmocka_unit_test(test_neighbours_are_asked_for_once_it_is_wide),
        cmocka_unit_test(test_the_working_set_is_asked_for_once_it_is_wide),
        cmocka_unit_test(test_what_is_held_goes_when_it_has_been_silent_for_long),
        cmocka_unit_test(test_what_was_under_way_comes_though_qemu_is_silent),
        cmocka_unit_test(test_the_return_path_too),
        cmocka_unit_test(test_a_peer_that_lies_is_refused),
        cmocka_unit_test(test_without_a_connection_qemu_waits_and_can_be_stopped),
        cmocka_unit_test(test_what_is_discarded_holds_nobody_up),
    };
    return cmocka_run_group_tests_name("stream", tests, make_hosts, drop_hosts);
}
