/* SPDX-License-Identifier: Apache-2.0
 *
 * A source that asks which blocks the destination has (departure_donor.c), and destinations that lie: the
 * right key, the wrong bytes. The link and the disk are real; what answers is a bare TLS session.
 */
#include "move_test.h"

#include "disk/disk.h"
#include "move/departure.h"

#include <poll.h>
#include <stdatomic.h>

#define BLOCKS 256U

static struct disk *disk;
static struct departure departure;
static struct tls *there; /* the destination's end */
static struct link *link_here;
static struct err ended; /* why the link ended */
static atomic_uint closed;

struct disk *__wrap_machine_disk(const struct machine *machine, size_t index);
struct disk *__wrap_machine_disk(const struct machine *machine, size_t index)
{
    assert_int_equal(index, 0);
    return disk;
}

/* There is no QEMU here. */
int __wrap_departure_check(struct departure *it, struct err *err);
int __wrap_departure_check(struct departure *it, struct err *err)
{
    return session_check(&it->session, err);
}

static int on_frame(void *arg, struct link *link, const struct frame *frame, const uint8_t *payload,
                    struct err *err)
{
    if (frame->type == FRAME_DIFFER)
        return departure_differ(&departure, payload, frame->length, err);
    return session_post(&departure.session, link, frame, payload, err);
}

static void on_closed(void *arg, struct link *link, const struct err *err)
{
    ended = *err;
    closed++;
    session_lost(&departure.session, err);
}

static void fill_disk(const char *path)
{
    static uint8_t data[BLOCKS * DISK_BLOCK];
    for (size_t i = 0; i < sizeof data; i++)
        data[i] = (uint8_t)(i / DISK_BLOCK + i + 1);
    assert_ok(disk_create(path, sizeof data, NULL, NULL, &err));
    assert_ok(disk_open(path, 0, &disk, &err));
    assert_int_equal(disk_write(disk, data, sizeof data, 0, false), 0);
}

static int setup(void **state)
{
    char path[96];
    uint8_t key[SUMS_KEY];
    struct tls *here;
    memset(&departure, 0, sizeof departure);
    closed = 0;
    snprintf(path, sizeof path, "%s/disk.raw", folder);
    fill_disk(path);
    assert_ok(session_init(&departure.session, 0, &err));
    assert_ok(departure_new_asking(&departure, key, &err));
    connect_hosts(&here, &there);
    const struct link_options options = {.vm = vm, .stall_ms = MOVE_DATA_STALL_MS};
    const struct link_handler handler = {.frame = on_frame, .closed = on_closed};
    assert_ok(link_start(here, &options, &handler, &link_here, &err));
    session_add_data(&departure.session, link_here);
    return 0;
}

static int teardown(void **state)
{
    tls_close(there);
    session_done(&departure.session);
    departure_free_asking(&departure);
    disk_close(disk, NULL);
    char path[96];
    snprintf(path, sizeof path, "%s/disk.raw", folder);
    unlink(path);
    return 0;
}

/* --- the source's part ---------------------------------------------------------------------------------- */

static void ask(uint64_t block, unsigned count)
{
    static uint8_t data[WIRE_RUN_MAX_BLOCKS * DISK_BLOCK];
    const struct relocate_piece piece = {.run = {.block = block, .count = count, .generation = 1},
                                         .size = count * (size_t)DISK_BLOCK};
    assert_int_equal(disk_read(disk, data, piece.size, block * DISK_BLOCK), 0);
    assert_ok(departure_ask_donor(&departure, 0, &piece, data, &err));
}

/* All that is asked is answered, or why it cannot be. */
static int take_all(struct err *err)
{
    int r;
    while ((r = departure_take_answer(&departure, true, err)) == 1)
        ;
    return r;
}

/* --- the destination's --------------------------------------------------------------------------------- */

static bool read_raw(void *data, size_t size, int msec)
{
    int64_t deadline = clock_now() + msec * NSEC_PER_MSEC;
    for (size_t done = 0; done < size;) {
        ssize_t n = tls_read(there, (uint8_t *)data + done, size - done);
        if (n > 0) {
            done += (size_t)n;
            continue;
        }
        if (n != -EAGAIN || clock_now() > deadline)
            return false;
        struct pollfd p = {.fd = tls_socket(there), .events = tls_read_events(there)};
        poll(&p, 1, 20);
    }
    return true;
}

/* The next frame that is no ping; false: none comes. */
static bool next_frame(struct frame *ret, uint8_t *payload, int msec)
{
    uint8_t header[FRAME_HEADER_SIZE];
    do {
        if (!read_raw(header, sizeof header, msec))
            return false;
        assert_ok(frame_decode(header, ret, &err));
        if (!read_raw(payload, ret->length, 5000))
            return false;
    } while (ret->type == FRAME_PING);
    return true;
}

static uint8_t payload[FRAME_MAX_PAYLOAD];

static struct wire_sums next_question(void)
{
    struct frame frame;
    struct wire_sums sums;
    const uint8_t(*list)[WIRE_SUM_SIZE];
    assert_true(next_frame(&frame, payload, 5000));
    assert_int_equal(frame.type, FRAME_SUMS);
    assert_ok(wire_sums_decode(payload, frame.length, &sums, &list, &err));
    return sums;
}

static void send_raw(enum frame_type type, const void *data, size_t size)
{
    uint8_t bytes[FRAME_HEADER_SIZE + 64];
    frame_encode(&(struct frame){.type = type, .length = (uint32_t)size, .vm = vm}, bytes);
    memcpy(bytes + FRAME_HEADER_SIZE, data, size);
    size += FRAME_HEADER_SIZE;
    for (size_t done = 0; done < size;) {
        ssize_t n = tls_write(there, bytes + done, size - done);
        if (n < 0 && n != -EAGAIN)
            return; /* the source has hung up, as some tests want */
        done += n > 0 ? (size_t)n : 0;
    }
}

static void say(uint32_t ticket, uint64_t bits)
{
    uint8_t bytes[WIRE_DIFFER_SIZE];
    wire_differ_encode(&(struct wire_differ){.ticket = ticket, .bits = bits}, bytes);
    send_raw(FRAME_DIFFER, bytes, sizeof bytes);
}

/* Blocks that come as runs, one bit each from `block` on; each once. */
static uint64_t blocks_that_come(uint64_t block)
{
    struct frame frame;
    uint64_t came = 0;
    while (next_frame(&frame, payload, 300)) {
        struct wire_run run;
        const uint8_t *data;
        size_t size;
        assert_int_equal(frame.type, FRAME_RUN);
        assert_ok(wire_run_decode(payload, frame.length, &run, &data, &size, &err));
        for (uint64_t i = run.block; i < run.block + run.count; i++) {
            assert_true(i >= block && i < block + 64);
            assert_false(came >> (i - block) & 1);
            came |= UINT64_C(1) << (i - block);
        }
    }
    return came;
}

static void assert_hung_up(void)
{
    struct err why = ERR_NONE;
    assert_true(eventually(closed == 1));
    assert_int_equal(ended.code, EPROTO);
    assert_int_equal(take_all(&why), -EPROTO); /* and the move ends, at once */
}

/* --- what must hold ------------------------------------------------------------------------------------- */

static void test_what_differs_is_sent_and_nothing_else(void **state)
{
    ask(0, 64);
    struct wire_sums sums = next_question();
    assert_int_equal(sums.count, 64);
    say(sums.ticket, UINT64_C(0x8000000000000005));
    assert_ok(take_all(&err));
    assert_int_equal(blocks_that_come(0), UINT64_C(0x8000000000000005));
    assert_int_equal(departure.numbers.disk_found, 61 * (uint64_t)DISK_BLOCK);
}

static void test_bits_above_the_count_mean_nothing(void **state)
{
    ask(250, 6); /* the disk's last blocks */
    say(next_question().ticket, UINT64_MAX);
    assert_ok(take_all(&err));
    assert_int_equal(blocks_that_come(250), 0x3f);
    assert_int_equal(departure.numbers.disk_found, 0);
}

static void test_an_answer_that_comes_twice_ends_the_move(void **state)
{
    ask(0, 8);
    uint32_t ticket = next_question().ticket;
    say(ticket, 0);
    say(ticket, 1);
    assert_true(eventually(closed == 1));
    assert_int_equal(ended.code, EPROTO);
    assert_int_equal(session_check(&departure.session, NULL), -EPROTO);
}

static void test_an_answer_that_comes_again_after_it_was_taken_ends_the_move(void **state)
{
    ask(0, 8);
    ask(8, 8);
    uint32_t ticket = next_question().ticket;
    say(ticket, 0);
    int64_t deadline = clock_now() + 5 * NSEC_PER_SEC;
    int r;
    while ((r = departure_take_answer(&departure, false, NULL)) == 0 && clock_now() < deadline)
        clock_sleep(NSEC_PER_MSEC);
    assert_int_equal(r, 1);
    say(ticket, 0);
    assert_hung_up();
}

static void test_tickets_that_nobody_gave_out_end_the_move(void **state)
{
    static const uint32_t wrong[] = {1, 127, 128, 1000000, UINT32_MAX};
    for (size_t i = 0; i < ARRAY_SIZE(wrong); i++) {
        if (i > 0) {
            teardown(NULL);
            setup(NULL);
        }
        ask(0, 8);
        uint32_t ticket = next_question().ticket;
        say(ticket + wrong[i], 0); /* UINT32_MAX: one below */
        assert_hung_up();
    }
}

static void test_an_answer_without_a_question_ends_the_move(void **state)
{
    say(0, UINT64_MAX);
    assert_true(eventually(closed == 1));
    assert_int_equal(ended.code, EPROTO);
    assert_ok(departure_take_answer(&departure, true, &err)); /* nothing is open */
}

static void test_an_answer_to_a_source_that_has_no_questions_ends_the_move(void **state)
{
    departure_free_asking(&departure);
    say(0, 0);
    assert_true(eventually(closed == 1));
    assert_int_equal(ended.code, EPROTO);
}

static void test_half_an_answer_ends_the_move(void **state)
{
    ask(0, 8);
    next_question();
    send_raw(FRAME_DIFFER, "\0\0\0\0\0\0\0\0", 8);
    assert_hung_up();
}

static void test_a_destination_that_goes_away_is_not_waited_for(void **state)
{
    struct err why = ERR_NONE;
    ask(0, 8);
    next_question();
    tls_close(TAKE_PTR(there));
    int64_t began = clock_now();
    assert_int_equal(take_all(&why), -ECONNRESET);
    assert_true(clock_now() - began < 5 * NSEC_PER_SEC);
}

/* All places are taken, in whatever order the answers come; each block is sent once. */
static void test_answers_in_the_wrong_order_are_put_right(void **state)
{
    uint32_t tickets[BLOCKS / 2];
    for (unsigned i = 0; i < ARRAY_SIZE(tickets); i++) {
        ask(2 * i, 2);
        tickets[i] = next_question().ticket;
    }
    for (unsigned i = ARRAY_SIZE(tickets); i-- > 0;)
        say(tickets[i], i < 32 ? 2 : 0); /* the second block of the first 32 */
    assert_ok(take_all(&err));
    assert_int_equal(blocks_that_come(0), UINT64_C(0xaaaaaaaaaaaaaaaa));
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_what_differs_is_sent_and_nothing_else),
        TEST(test_bits_above_the_count_mean_nothing),
        TEST(test_an_answer_that_comes_twice_ends_the_move),
        TEST(test_an_answer_that_comes_again_after_it_was_taken_ends_the_move),
        TEST(test_tickets_that_nobody_gave_out_end_the_move),
        TEST(test_an_answer_without_a_question_ends_the_move),
        TEST(test_an_answer_to_a_source_that_has_no_questions_ends_the_move),
        TEST(test_half_an_answer_ends_the_move),
        TEST(test_a_destination_that_goes_away_is_not_waited_for),
        TEST(test_answers_in_the_wrong_order_are_put_right),
    };
    return cmocka_run_group_tests_name("departure_donor", tests, make_hosts, drop_hosts);
}
