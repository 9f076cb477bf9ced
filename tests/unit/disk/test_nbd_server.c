/* SPDX-License-Identifier: Apache-2.0 */
#include "base/clock.h"
#include "base/file.h"
#include "disk/nbd.h"
#include "disk/nbd_connection.h"
#include "nbd_fake_disk.h"
#include "nbd_test.h"

#include <errno.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

#define SIZE (64u << 20)
#define BLOCK 4096u

struct fixture {
    struct disk disk;
    struct nbd_server *server;
    struct sockaddr_un address;
    socklen_t address_size;
};

static void serve(struct fixture *f, const struct nbd_options *options)
{
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    f->address = (struct sockaddr_un){.sun_family = AF_UNIX};
    assert_int_equal(bind(listener, (struct sockaddr *)&f->address, sizeof(sa_family_t)),
                     0); /* a name of its own */
    f->address_size = sizeof f->address;
    assert_int_equal(getsockname(listener, (struct sockaddr *)&f->address, &f->address_size), 0);
    assert_int_equal(listen(listener, 16), 0);
    assert_int_equal(nbd_server_new(&f->disk, listener, options, &f->server, NULL), 0);
}

static int setup(void **state)
{
    static struct fixture fixture;
    fake_disk_init(&fixture.disk, SIZE);
    serve(&fixture, &(struct nbd_options){.export_name = "web1"});
    *state = &fixture;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    nbd_server_free(f->server);
    fake_disk_done(&f->disk);
    return 0;
}

static void restart(struct fixture *f, const struct nbd_options *options)
{
    nbd_server_free(f->server);
    serve(f, options);
}

/* --- a client ------------------------------------------------------------------------------------------- */

static int dial(struct fixture *f)
{
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&f->address, f->address_size), 0);
    return fd;
}

/* EXPORT_NAME: simple replies. */
static int connect_simple(struct fixture *f)
{
    struct bytes message = {0};
    uint8_t reply[10];
    int fd = dial(f);
    say_hello(fd);
    add_option(&message, NBD_OPT_EXPORT_NAME, NULL);
    post(fd, message.at, message.size);
    get(fd, reply, sizeof reply);
    assert_int_equal(get_be64(reply), SIZE);
    return fd;
}

static void take_option_replies(int fd)
{
    uint8_t header[20], data[8192];
    do {
        get(fd, header, sizeof header);
        get(fd, data, get_be32(header + 16));
    } while (get_be32(header + 12) != NBD_REP_ACK);
}

/* Structured replies and base:allocation; all options in one packet. */
static int connect_structured(struct fixture *f)
{
    struct bytes message = {0}, context = {0}, go = {0};
    int fd = dial(f);
    say_hello(fd);
    add_text(&context, "web1");
    add32(&context, 1);
    add_text(&context, "base:allocation");
    add_text(&go, "web1");
    add16(&go, 0);
    add_option(&message, NBD_OPT_STRUCTURED_REPLY, NULL);
    add_option(&message, NBD_OPT_SET_META_CONTEXT, &context);
    add_option(&message, NBD_OPT_GO, &go);
    post(fd, message.at, message.size);
    for (int i = 0; i < 3; i++)
        take_option_replies(fd);
    return fd;
}

static uint32_t call(int fd, uint16_t type, uint16_t flags, uint64_t offset, uint32_t length)
{
    request(fd, type, flags, 7, offset, length);
    return simple_reply(fd, 7);
}

static uint32_t write_to(int fd, uint16_t flags, uint64_t offset, const void *data, uint32_t length)
{
    request(fd, NBD_CMD_WRITE, flags, 8, offset, length);
    post(fd, data, length);
    return simple_reply(fd, 8);
}

struct chunk {
    uint16_t flags, type;
    uint32_t size;
    uint8_t payload[64];
};

/* A chunk's header and the first bytes of its payload; the data of OFFSET_DATA is left in the socket. */
static struct chunk take_chunk(int fd, uint64_t cookie)
{
    struct chunk chunk;
    uint8_t header[20];
    get(fd, header, sizeof header);
    assert_int_equal(get_be32(header), NBD_STRUCTURED_REPLY_MAGIC);
    assert_int_equal(get_be64(header + 8), cookie);
    chunk.flags = get_be16(header + 4);
    chunk.type = get_be16(header + 6);
    chunk.size = get_be32(header + 16);
    uint32_t size = chunk.type == NBD_REPLY_TYPE_OFFSET_DATA ? 8 : chunk.size;
    assert_true(size <= sizeof chunk.payload);
    get(fd, chunk.payload, size);
    return chunk;
}

struct read_result {
    unsigned data_chunks, hole_chunks;
    uint32_t error;
};

/* A structured READ into `data`; checks that the chunks cover the range, each byte once, or end in an error.
 */
static struct read_result read_chunks(int fd, uint16_t flags, uint64_t offset, uint32_t length, uint8_t *data)
{
    struct read_result result = {0};
    uint64_t covered = 0;
    uint16_t done = 0;
    request(fd, NBD_CMD_READ, flags, 9, offset, length);
    while (!done) {
        struct chunk chunk = take_chunk(fd, 9);
        done = chunk.flags & NBD_REPLY_FLAG_DONE;
        if (chunk.type == NBD_REPLY_TYPE_ERROR) {
            result.error = get_be32(chunk.payload);
            assert_true(done);
            return result;
        }
        uint64_t at = get_be64(chunk.payload);
        assert_int_equal(at, offset + covered); /* this server sends them in order */
        bool hole = chunk.type == NBD_REPLY_TYPE_OFFSET_HOLE;
        uint32_t size = hole ? get_be32(chunk.payload + 8) : chunk.size - 8;
        assert_true(covered + size <= length);
        if (hole)
            memset(data + covered, 0, size);
        else
            get(fd, data + covered, size);
        covered += size;
        hole ? result.hole_chunks++ : result.data_chunks++;
    }
    assert_int_equal(covered, length);
    return result;
}

static void fill(uint8_t *data, size_t size, unsigned seed)
{
    for (size_t i = 0; i < size; i++)
        data[i] = (uint8_t)(1 + (i * 31 + i / 4096 * 7 + seed) % 255); /* no zeroes */
}

static uint8_t *pattern(size_t size, unsigned seed)
{
    uint8_t *data = malloc(size);
    assert_non_null(data);
    fill(data, size, seed);
    return data;
}

static void expect_on_disk(struct fixture *f, uint64_t offset, const uint8_t *data, size_t size)
{
    _cleanup_free_ uint8_t *there = malloc(size);
    assert_int_equal(file_pread_full(f->disk.fd, there, size, offset), 0);
    assert_memory_equal(there, data, size);
}

static bool is_closed(int fd)
{
    uint8_t byte;
    return recv(fd, &byte, 1, 0) <= 0;
}

/* --- reading and writing -------------------------------------------------------------------------------- */

static void odd_bytes_are_read_back_as_written(void **state)
{
    struct fixture *f = *state;
    uint8_t data[1001], back[1001];
    int fd = connect_simple(f);
    fill(data, sizeof data, 1);
    assert_int_equal(write_to(fd, 0, 4095, data, sizeof data), 0);
    assert_int_equal(call(fd, NBD_CMD_READ, 0, 4095, sizeof back), 0);
    get(fd, back, sizeof back);
    assert_memory_equal(data, back, sizeof data);
    close(fd);
}

static void a_long_write_in_pieces_arrives_whole(void **state)
{
    struct fixture *f = *state;
    const uint32_t size = (3u << 20) + 12345;
    _cleanup_free_ uint8_t *data = pattern(size, 2);
    int fd = connect_simple(f);
    assert_int_equal(write_to(fd, 0, 777, data, size), 0);
    expect_on_disk(f, 777, data, size);
    assert_true(f->disk.largest_write <= NBD_BUFFER_SIZE); /* no request costs more memory */
    assert_int_equal(f->disk.flushes, 0);
    close(fd);
}

static void a_long_write_with_fua_is_flushed_as_a_whole(void **state)
{
    struct fixture *f = *state;
    const uint32_t size = 1u << 20;
    _cleanup_free_ uint8_t *data = pattern(size, 3);
    int fd = connect_simple(f);
    assert_int_equal(write_to(fd, NBD_CMD_FLAG_FUA, 0, data, size), 0);
    assert_int_equal(f->disk.flushes, 1);
    f->disk.flush_error = EIO;
    assert_int_equal(write_to(fd, NBD_CMD_FLAG_FUA, 0, data, size), NBD_EIO);
    close(fd);
}

static void a_short_write_passes_fua_on(void **state)
{
    struct fixture *f = *state;
    uint8_t data[512];
    int fd = connect_simple(f);
    fill(data, sizeof data, 1);
    assert_int_equal(write_to(fd, NBD_CMD_FLAG_FUA, 0, data, sizeof data), 0);
    assert_int_equal(f->disk.fua_writes, 1);
    close(fd);
}

static void data_is_one_chunk_and_zeroes_are_a_hole(void **state)
{
    struct fixture *f = *state;
    uint8_t data[BLOCK], back[BLOCK];
    int fd = connect_structured(f);
    fill(data, sizeof data, 4);
    assert_int_equal(write_to(fd, 0, BLOCK, data, BLOCK), 0);
    struct read_result result = read_chunks(fd, 0, BLOCK, BLOCK, back);
    assert_int_equal(result.data_chunks, 1);
    assert_memory_equal(back, data, BLOCK);
    result = read_chunks(fd, 0, 0, BLOCK, back);
    assert_int_equal(result.hole_chunks, 1);
    assert_int_equal(result.data_chunks, 0);
    close(fd);
}

static void check_long_read(struct fixture *f)
{
    const uint32_t size = 5u << 20;
    _cleanup_free_ uint8_t *data = pattern(1u << 20, 5), *back = malloc(size), *expected = calloc(1, size);
    int fd = connect_structured(f);
    assert_int_equal(write_to(fd, 0, 1 << 20, data, 1u << 20), 0);
    assert_int_equal(write_to(fd, 0, 3 << 20, data, 100000), 0);
    memcpy(expected + (1 << 20) - 100, data, 1 << 20);
    memcpy(expected + (3 << 20) - 100, data, 100000);
    struct read_result result = read_chunks(fd, 0, 100, size, back);
    assert_memory_equal(back, expected, size);
    assert_true(result.hole_chunks >= 3);
    close(fd);
}

static void a_long_read_leaves_holes_out(void **state)
{
    check_long_read(*state);
}

static void a_long_read_that_may_not_use_the_page_cache_is_copied(void **state)
{
    struct fixture *f = *state;
    restart(f, &(struct nbd_options){.export_name = "web1", .direct = true});
    f->disk.fd_for_splice = -1; /* whoever splices would fail */
    check_long_read(f);
}

static void df_gets_one_chunk_however_long(void **state)
{
    struct fixture *f = *state;
    _cleanup_free_ uint8_t *data = pattern(1u << 20, 6), *back = malloc(2u << 20);
    int fd = connect_structured(f);
    assert_int_equal(write_to(fd, 0, 1 << 20, data, 1u << 20), 0);
    struct read_result result = read_chunks(fd, NBD_CMD_FLAG_DF, 0, 2u << 20, back);
    assert_int_equal(result.data_chunks, 1);
    assert_int_equal(result.hole_chunks, 0);
    assert_memory_equal(back + (1 << 20), data, 1 << 20);
    assert_int_equal(read_chunks(fd, NBD_CMD_FLAG_DF, 1 << 20, BLOCK, back).data_chunks, 1);
    close(fd);
}

static void a_long_simple_read_comes_whole(void **state)
{
    struct fixture *f = *state;
    const uint32_t size = NBD_PAYLOAD_MAX;
    _cleanup_free_ uint8_t *data = pattern(size, 7), *back = malloc(size);
    int fd = connect_simple(f);
    assert_int_equal(write_to(fd, 0, 0, data, size), 0);
    assert_int_equal(call(fd, NBD_CMD_READ, 0, 0, size), 0);
    get(fd, back, size);
    assert_memory_equal(data, back, size);
    assert_true(f->disk.largest_read <= NBD_BUFFER_SIZE); /* nor does it cost more memory */
    close(fd);
}

static void empty_requests_succeed(void **state)
{
    struct fixture *f = *state;
    int fd = connect_structured(f);
    assert_int_equal(call(fd, NBD_CMD_WRITE, 0, 0, 0), 0);
    assert_int_equal(call(fd, NBD_CMD_TRIM, 0, 0, 0), 0);
    assert_int_equal(call(fd, NBD_CMD_WRITE_ZEROES, 0, 0, 0), 0);
    request(fd, NBD_CMD_READ, 0, 1, 0, 0);
    struct chunk chunk = take_chunk(fd, 1);
    assert_int_equal(chunk.type, NBD_REPLY_TYPE_NONE);
    assert_int_equal(chunk.flags, NBD_REPLY_FLAG_DONE);
    close(fd);
}

static void a_batch_shares_one_intent(void **state)
{
    struct fixture *f = *state;
    struct bytes message = {0};
    uint8_t data[BLOCK];
    int fd = connect_simple(f);
    for (unsigned i = 0; i < 16; i++) {
        fill(data, BLOCK, i);
        add_request(&message, 0, NBD_CMD_WRITE, i, i * BLOCK, BLOCK);
        add(&message, data, BLOCK);
    }
    post(fd, message.at, message.size);
    for (unsigned i = 0; i < 16; i++)
        assert_int_equal(simple_reply(fd, i), 0);
    assert_true(f->disk.intends >= 1 && f->disk.intends < 16);
    assert_true(f->disk.intended_ranges >= 2);
    expect_on_disk(f, 15 * BLOCK, data, BLOCK);
    close(fd);
}

static void zeroing_passes_its_flags_on(void **state)
{
    struct fixture *f = *state;
    int fd = connect_simple(f);
    assert_int_equal(call(fd, NBD_CMD_WRITE_ZEROES, NBD_CMD_FLAG_NO_HOLE | NBD_CMD_FLAG_FUA, 0, BLOCK), 0);
    assert_int_equal(f->disk.zero_flags, DISK_ZERO_NO_HOLE | DISK_ZERO_FUA);
    assert_int_equal(call(fd, NBD_CMD_TRIM, NBD_CMD_FLAG_FUA, 0, BLOCK), 0);
    assert_int_equal(f->disk.trims, 1);
    assert_int_equal(f->disk.zero_flags, DISK_ZERO_FUA);
    f->disk.zero_error = ENOTSUP;
    assert_int_equal(call(fd, NBD_CMD_WRITE_ZEROES, NBD_CMD_FLAG_FAST_ZERO, 0, BLOCK), NBD_ENOTSUP);
    assert_int_equal(f->disk.zero_flags, DISK_ZERO_FAST);
    close(fd);
}

static void flush_and_cache_are_answered(void **state)
{
    struct fixture *f = *state;
    int fd = connect_simple(f);
    assert_int_equal(call(fd, NBD_CMD_FLUSH, 0, 0, 0), 0);
    assert_int_equal(f->disk.flushes, 1);
    f->disk.flush_error = EIO;
    assert_int_equal(call(fd, NBD_CMD_FLUSH, 0, 0, 0), NBD_EIO);
    assert_int_equal(call(fd, NBD_CMD_CACHE, 0, 0, 1 << 20), 0);
    close(fd);
}

static void block_status_tells_data_from_holes(void **state)
{
    struct fixture *f = *state;
    uint8_t data[BLOCK];
    int fd = connect_structured(f);
    fill(data, BLOCK, 1);
    assert_int_equal(write_to(fd, 0, 4 * BLOCK, data, BLOCK), 0);
    request(fd, NBD_CMD_BLOCK_STATUS, 0, 5, 0, 16 * BLOCK);
    struct chunk chunk = take_chunk(fd, 5);
    assert_int_equal(chunk.type, NBD_REPLY_TYPE_BLOCK_STATUS);
    assert_int_equal(chunk.size, 4 + 3 * 8);
    assert_int_equal(get_be32(chunk.payload), NBD_CONTEXT_ALLOCATION_ID);
    assert_int_equal(get_be32(chunk.payload + 4), 4 * BLOCK);
    assert_int_equal(get_be32(chunk.payload + 8), NBD_STATE_HOLE | NBD_STATE_ZERO);
    assert_int_equal(get_be32(chunk.payload + 12), BLOCK);
    assert_int_equal(get_be32(chunk.payload + 16), 0);
    assert_int_equal(get_be32(chunk.payload + 20), 11 * BLOCK);

    request(fd, NBD_CMD_BLOCK_STATUS, NBD_CMD_FLAG_REQ_ONE, 6, BLOCK, 2 * BLOCK);
    chunk = take_chunk(fd, 6);
    assert_int_equal(chunk.size, 4 + 8);
    assert_int_equal(get_be32(chunk.payload + 4), 2 * BLOCK);
    close(fd);
}

static void a_shredded_disk_answers_block_status_in_parts(void **state)
{
    struct fixture *f = *state;
    uint8_t header[20], first[4], descriptor[8];
    int fd = connect_structured(f);
    for (unsigned i = 0; i < 2000; i++)
        assert_int_equal(file_pwrite_full(f->disk.fd, "x", 1, i * 2 * BLOCK), 0);
    request(fd, NBD_CMD_BLOCK_STATUS, 0, 5, 0, SIZE);
    get(fd, header, sizeof header);
    get(fd, first, sizeof first);
    uint32_t count = (get_be32(header + 16) - 4) / 8;
    assert_int_equal(count, 1024);
    for (uint32_t i = 0; i < count; i++) {
        get(fd, descriptor, sizeof descriptor);
        assert_int_equal(get_be32(descriptor), BLOCK);
        assert_int_equal(get_be32(descriptor + 4), i % 2 ? NBD_STATE_HOLE | NBD_STATE_ZERO : 0);
    }
    assert_int_equal(call(fd, NBD_CMD_FLUSH, 0, 0, 0), 0);
    close(fd);
}

/* --- errors --------------------------------------------------------------------------------------------- */

static void a_read_error_is_told_and_the_connection_goes_on(void **state)
{
    struct fixture *f = *state;
    _cleanup_free_ uint8_t *data = pattern(1u << 20, 1), *back = malloc(1u << 20);
    int simple = connect_simple(f), structured = connect_structured(f);
    assert_int_equal(write_to(simple, 0, 0, data, 1u << 20), 0);
    f->disk.read_error = EIO;
    f->disk.fd_for_splice = -1;
    assert_int_equal(call(simple, NBD_CMD_READ, 0, 0, BLOCK), NBD_EIO);
    assert_int_equal(call(simple, NBD_CMD_READ, 0, 0, 1u << 20), NBD_EIO);
    assert_int_equal(read_chunks(structured, 0, 0, BLOCK, back).error, NBD_EIO);
    assert_int_equal(read_chunks(structured, 0, 0, 1u << 20, back).error, NBD_EIO);
    assert_int_equal(read_chunks(structured, NBD_CMD_FLAG_DF, 0, 1u << 20, back).error, NBD_EIO);
    f->disk.read_error = 0;
    assert_int_equal(read_chunks(structured, 0, 0, 1u << 20, back).error, 0);
    assert_memory_equal(back, data, 1u << 20);
    close(simple);
    close(structured);
}

/* The reply has begun by then: data that is none must not follow. */
static void a_read_error_in_the_midst_of_a_simple_reply_ends_the_connection(void **state)
{
    struct fixture *f = *state;
    uint8_t back[4096];
    int fd = connect_simple(f);
    f->disk.good_reads = 6; /* a MiB is read in five pieces, twice */
    f->disk.read_error = EIO;
    assert_int_equal(call(fd, NBD_CMD_READ, 0, 0, 1u << 20), 0);
    size_t came = 0;
    ssize_t n;
    while ((n = recv(fd, back, sizeof back, 0)) > 0)
        came += (size_t)n;
    assert_true(came < 1u << 20);
    close(fd);
}

static void a_failed_long_write_is_drained(void **state)
{
    struct fixture *f = *state;
    _cleanup_free_ uint8_t *data = pattern(1u << 20, 1);
    int fd = connect_simple(f);
    f->disk.write_error = ENOSPC;
    assert_int_equal(write_to(fd, 0, 0, data, 1u << 20), NBD_ENOSPC);
    assert_int_equal(call(fd, NBD_CMD_FLUSH, 0, 0, 0), 0);
    close(fd);
}

static void a_write_past_the_end_is_drained_and_refused(void **state)
{
    struct fixture *f = *state;
    _cleanup_free_ uint8_t *data = pattern(1u << 20, 1);
    int fd = connect_simple(f);
    assert_int_equal(write_to(fd, 0, SIZE - 1, data, 1u << 20), NBD_ENOSPC);
    assert_int_equal(write_to(fd, 0, SIZE - 1, data, 2), NBD_ENOSPC);
    assert_int_equal(call(fd, NBD_CMD_READ, 0, SIZE - 1, 2), NBD_EINVAL);
    assert_int_equal(f->disk.largest_write, 0);
    close(fd);
}

static void an_oversize_write_is_drained_and_refused(void **state)
{
    struct fixture *f = *state;
    const uint32_t size = NBD_PAYLOAD_MAX + 1;
    _cleanup_free_ uint8_t *data = pattern(size, 1);
    int fd = connect_simple(f);
    assert_int_equal(write_to(fd, 0, 0, data, size), NBD_EINVAL);
    assert_int_equal(call(fd, NBD_CMD_READ, 0, 0, UINT32_MAX), NBD_EOVERFLOW);
    assert_int_equal(call(fd, NBD_CMD_FLUSH, 0, 0, 0), 0);
    assert_int_equal(f->disk.largest_write, 0);
    close(fd);
}

static void a_read_only_export_takes_no_write(void **state)
{
    struct fixture *f = *state;
    uint8_t data[BLOCK];
    restart(f, &(struct nbd_options){.read_only = true});
    int fd = connect_simple(f);
    fill(data, BLOCK, 1);
    assert_int_equal(write_to(fd, 0, 0, data, BLOCK), NBD_EPERM);
    assert_int_equal(call(fd, NBD_CMD_TRIM, 0, 0, BLOCK), NBD_EPERM);
    assert_int_equal(call(fd, NBD_CMD_WRITE_ZEROES, 0, 0, BLOCK), NBD_EPERM);
    assert_int_equal(f->disk.largest_write, 0);
    assert_int_equal(f->disk.intends, 0);
    close(fd);
}

static void an_unknown_command_is_invalid(void **state)
{
    int fd = connect_simple(*state);
    assert_int_equal(call(fd, 99, 0, 0, BLOCK), NBD_EINVAL);
    close(fd);
}

/* --- clients that come, go and misbehave ---------------------------------------------------------------- */

static void disc_closes_after_the_answers(void **state)
{
    struct fixture *f = *state;
    struct bytes message = {0};
    int fd = connect_simple(f);
    add_request(&message, 0, NBD_CMD_FLUSH, 1, 0, 0);
    add_request(&message, 0, NBD_CMD_DISC, 2, 0, 0);
    add_request(&message, 0, NBD_CMD_FLUSH, 3, 0, 0);
    post(fd, message.at, message.size);
    assert_int_equal(simple_reply(fd, 1), 0);
    assert_true(is_closed(fd));
    assert_int_equal(f->disk.flushes, 1);
    close(fd);
}

static void a_broken_stream_costs_its_own_connection_only(void **state)
{
    struct fixture *f = *state;
    struct bytes message = {0};
    int good = connect_simple(f), bad = connect_simple(f);
    add_request(&message, 0, NBD_CMD_FLUSH, 1, 0, 0);
    add64(&message, 0xdeadbeefdeadbeef);
    add64(&message, 0);
    add64(&message, 0);
    add32(&message, 0);
    post(bad, message.at, message.size);
    assert_int_equal(simple_reply(bad, 1), 0); /* what came before is answered */
    assert_true(is_closed(bad));
    assert_int_equal(call(good, NBD_CMD_FLUSH, 0, 0, 0), 0);
    close(bad);
    close(good);
}

static void a_client_that_vanishes_in_a_payload_harms_nobody(void **state)
{
    struct fixture *f = *state;
    int good = connect_simple(f), bad = connect_simple(f);
    request(bad, NBD_CMD_WRITE, 0, 1, 0, 1 << 20);
    post(bad, "abc", 3);
    close(bad);
    bad = connect_simple(f);
    request(bad, NBD_CMD_READ, 0, 1, 0, 32 << 20);
    close(bad);
    assert_int_equal(call(good, NBD_CMD_FLUSH, 0, 0, 0), 0);
    close(good);
}

static void a_write_that_waits_holds_up_no_other_connection(void **state)
{
    struct fixture *f = *state;
    uint8_t data[BLOCK];
    int writer = connect_simple(f), reader = connect_simple(f);
    fill(data, BLOCK, 1);
    disk_freeze(&f->disk);
    request(writer, NBD_CMD_WRITE, 0, 1, 0, BLOCK);
    post(writer, data, BLOCK);
    fake_disk_wait_for_writers(&f->disk, 1);
    assert_int_equal(call(reader, NBD_CMD_READ, 0, 0, BLOCK), 0);
    get(reader, data, BLOCK);
    disk_thaw(&f->disk);
    assert_int_equal(simple_reply(writer, 1), 0);
    close(writer);
    close(reader);
}

static void one_client_more_waits_for_a_place(void **state)
{
    struct fixture *f = *state;
    restart(f, &(struct nbd_options){.max_connections = 2});
    int first = connect_simple(f), second = connect_simple(f), third = dial(f);
    struct pollfd poller = {.fd = third, .events = POLLIN};
    assert_int_equal(poll(&poller, 1, 100), 0); /* no greeting */
    close(first);
    assert_int_equal(poll(&poller, 1, 5000), 1);
    say_hello(third);
    close(third);
    close(second);
}

/* What the connection's own thread would do, with a deadline that a test can wait for. */
static void *serve_impatiently(void *argument)
{
    static struct disk disk = {.size = SIZE};
    static struct nbd_statistics totals;
    static const struct nbd_export export = {.name = "", .size = SIZE};
    int fd = *(int *)argument;
    return (void *)(intptr_t)nbd_connection_serve(&disk, &export, 200, fd, &totals);
}

static void expect_dropped(void (*misbehave)(int fd))
{
    int sockets[2];
    pthread_t thread;
    void *result;
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, sockets), 0);
    int64_t begin = clock_now();
    assert_int_equal(pthread_create(&thread, NULL, serve_impatiently, &sockets[0]), 0);
    misbehave(sockets[1]);
    pthread_join(thread, &result);
    assert_int_equal((intptr_t)result, -ETIMEDOUT);
    assert_true(clock_now() - begin < 3 * NSEC_PER_SEC);
    close(sockets[0]);
    close(sockets[1]);
}

static void stay_silent(int fd)
{
}

static void trickle(int fd)
{
    static const uint8_t hello[] = {0, 0, 0, 3, 'I', 'H', 'A', 'V', 'E', 'O', 'P', 'T'};
    for (size_t i = 0; i < sizeof hello; i++) {
        if (send(fd, hello + i, 1, MSG_NOSIGNAL) < 0)
            return;
        clock_sleep(40 * NSEC_PER_MSEC);
    }
}

/* Asks and asks, but never takes an answer: the send buffer fills up. */
static void flood(int fd)
{
    struct bytes message = {0};
    add32(&message, 3);
    for (int i = 0; i < 1000; i++)
        add_option(&message, NBD_OPT_LIST, NULL);
    post(fd, message.at, message.size);
    for (int64_t end = clock_now() + NSEC_PER_SEC; clock_now() < end;)
        if (send(fd, message.at + 4, message.size - 4, MSG_NOSIGNAL | MSG_DONTWAIT) < 0 && errno != EAGAIN)
            return;
}

static void a_silent_client_is_dropped_in_time(void **state)
{
    expect_dropped(stay_silent);
}

static void a_client_that_trickles_is_dropped_in_time(void **state)
{
    expect_dropped(trickle);
}

static void a_client_that_takes_no_answers_is_dropped_in_time(void **state)
{
    expect_dropped(flood);
}

/* --- stopping ------------------------------------------------------------------------------------------- */

static void stopping_answers_what_was_received(void **state)
{
    struct fixture *f = *state;
    uint8_t data[BLOCK];
    int fd = connect_simple(f);
    fill(data, BLOCK, 9);
    request(fd, NBD_CMD_WRITE, 0, 1, 0, BLOCK);
    post(fd, data, BLOCK);
    nbd_server_free(f->server);
    f->server = NULL;
    assert_int_equal(simple_reply(fd, 1), 0);
    assert_true(is_closed(fd));
    expect_on_disk(f, 0, data, BLOCK);
    close(fd);
}

static void stopping_does_not_wait_for_idle_clients(void **state)
{
    struct fixture *f = *state;
    int idle = connect_simple(f), silent = dial(f);
    int64_t begin = clock_now();
    nbd_server_free(f->server);
    f->server = NULL;
    assert_true(clock_now() - begin < NSEC_PER_SEC);
    close(idle);
    close(silent);
}

static void stopping_cuts_off_a_client_that_takes_no_replies(void **state)
{
    struct fixture *f = *state;
    _cleanup_free_ uint8_t *data = pattern(32u << 20, 1);
    int fd = connect_simple(f);
    assert_int_equal(write_to(fd, 0, 0, data, 32u << 20), 0);
    request(fd, NBD_CMD_READ, 0, 1, 0, 32u << 20);
    clock_sleep(50 * NSEC_PER_MSEC); /* the reply is stuck in the socket by now */
    int64_t begin = clock_now();
    nbd_server_free(f->server);
    f->server = NULL;
    assert_true(clock_now() - begin < 5 * NSEC_PER_SEC);
    close(fd);
}

static void statistics_count_what_was_served(void **state)
{
    struct fixture *f = *state;
    struct nbd_statistics statistics;
    uint8_t data[BLOCK];
    int fd = connect_simple(f);
    fill(data, BLOCK, 1);
    write_to(fd, 0, 0, data, BLOCK);
    call(fd, NBD_CMD_FLUSH, 0, 0, 0);
    call(fd, NBD_CMD_TRIM, 0, 0, BLOCK);
    call(fd, NBD_CMD_READ, 0, SIZE, BLOCK);
    call(fd, NBD_CMD_READ, 0, 0, BLOCK);
    get(fd, data, BLOCK);
    nbd_server_statistics(f->server, &statistics);
    assert_int_equal(statistics.connections, 1);
    assert_int_equal(statistics.reads, 1);
    assert_int_equal(statistics.read_bytes, BLOCK);
    assert_int_equal(statistics.writes, 1);
    assert_int_equal(statistics.written_bytes, BLOCK);
    assert_int_equal(statistics.flushes, 1);
    assert_int_equal(statistics.trims, 1);
    assert_int_equal(statistics.errors, 1);
    close(fd);
}

static void a_name_beyond_the_protocols_limit_is_refused(void **state)
{
    static char name[NBD_NAME_MAX + 2];
    struct fixture *f = *state;
    struct nbd_server *server = NULL;
    struct err err = ERR_NONE;
    memset(name, 'x', sizeof name - 1);
    int listener = socket(AF_UNIX, SOCK_STREAM, 0);
    assert_int_equal(
        nbd_server_new(&f->disk, listener, &(struct nbd_options){.export_name = name}, &server, &err),
        -EINVAL);
    assert_null(server);
    assert_true(err.text[0]);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(odd_bytes_are_read_back_as_written),
        TEST(a_long_write_in_pieces_arrives_whole),
        TEST(a_long_write_with_fua_is_flushed_as_a_whole),
        TEST(a_short_write_passes_fua_on),
        TEST(data_is_one_chunk_and_zeroes_are_a_hole),
        TEST(a_long_read_leaves_holes_out),
        TEST(a_long_read_that_may_not_use_the_page_cache_is_copied),
        TEST(df_gets_one_chunk_however_long),
        TEST(a_long_simple_read_comes_whole),
        TEST(empty_requests_succeed),
        TEST(a_batch_shares_one_intent),
        TEST(zeroing_passes_its_flags_on),
        TEST(flush_and_cache_are_answered),
        TEST(block_status_tells_data_from_holes),
        TEST(a_shredded_disk_answers_block_status_in_parts),
        TEST(a_read_error_is_told_and_the_connection_goes_on),
        TEST(a_read_error_in_the_midst_of_a_simple_reply_ends_the_connection),
        TEST(a_failed_long_write_is_drained),
        TEST(a_write_past_the_end_is_drained_and_refused),
        TEST(an_oversize_write_is_drained_and_refused),
        TEST(a_read_only_export_takes_no_write),
        TEST(an_unknown_command_is_invalid),
        TEST(disc_closes_after_the_answers),
        TEST(a_broken_stream_costs_its_own_connection_only),
        TEST(a_client_that_vanishes_in_a_payload_harms_nobody),
        TEST(a_write_that_waits_holds_up_no_other_connection),
        TEST(one_client_more_waits_for_a_place),
        cmocka_unit_test(a_silent_client_is_dropped_in_time),
        cmocka_unit_test(a_client_that_trickles_is_dropped_in_time),
        cmocka_unit_test(a_client_that_takes_no_answers_is_dropped_in_time),
        TEST(stopping_answers_what_was_received),
        TEST(stopping_does_not_wait_for_idle_clients),
        TEST(stopping_cuts_off_a_client_that_takes_no_replies),
        TEST(statistics_count_what_was_served),
        TEST(a_name_beyond_the_protocols_limit_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
