/* SPDX-License-Identifier: Apache-2.0
 *
 * The NBD server over a split disk: what needs missing blocks is parked, and the rest goes on.
 */
#include "base/clock.h"
#include "disk/heat.h"
#include "disk/nbd.h"
#include "disk/nbd_park.h"
#include "nbd_test.h"
#include "split_test.h"

#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/socket.h>
#include <sys/un.h>

#define MISSING_FROM (2 * EXTENT) /* extents 2 to 5 are missing, and the last, short block */
#define MISSING_END (6 * EXTENT)
#define EXTENTS (0x3cU | 1U << 8)

static struct disk *disk;
static struct nbd_server *server;
static struct sockaddr_un address;
static socklen_t address_size;

/* What the fetcher was told. */
static atomic_uint demands;
static _Atomic uint64_t last_demand;

static void note_demand(void *arg, uint64_t block, uint64_t count)
{
    atomic_store(&last_demand, block);
    atomic_fetch_add(&demands, 1);
}

static int setup(void **state)
{
    boot = 1;
    if (make_folder(state) < 0)
        return -1;
    disk = split_disk(in_folder("d"), EXTENTS);
    atomic_store(&demands, 0);
    disk_on_demand(disk, note_demand, NULL);
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    address = (struct sockaddr_un){.sun_family = AF_UNIX};
    assert_int_equal(bind(listener, (struct sockaddr *)&address, sizeof(sa_family_t)), 0);
    address_size = sizeof address;
    assert_int_equal(getsockname(listener, (struct sockaddr *)&address, &address_size), 0);
    assert_int_equal(listen(listener, 16), 0);
    assert_ok(nbd_server_new(disk, listener, &(struct nbd_options){.export_name = ""}, &server, &err));
    return 0;
}

static int teardown(void **state)
{
    nbd_server_free(server);
    close_disk(disk);
    return drop_folder(state);
}

/* --- a client ------------------------------------------------------------------------------------------ */

static int dial(void)
{
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct timeval limit = {.tv_sec = 20}; /* a lost wake-up shall fail, not hang */
    assert_int_equal(connect(fd, (struct sockaddr *)&address, address_size), 0);
    assert_int_equal(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit), 0);
    say_hello(fd);
    return fd;
}

static int connect_simple(void)
{
    struct bytes message = {0};
    uint8_t reply[10];
    int fd = dial();
    add_option(&message, NBD_OPT_EXPORT_NAME, NULL);
    post(fd, message.at, message.size);
    get(fd, reply, sizeof reply);
    return fd;
}

static int connect_structured(void)
{
    struct bytes message = {0}, go = {0};
    uint8_t header[20], data[8192];
    int fd = dial(), acks = 0;
    add_text(&go, "");
    add16(&go, 0);
    add_option(&message, NBD_OPT_STRUCTURED_REPLY, NULL);
    add_option(&message, NBD_OPT_GO, &go);
    post(fd, message.at, message.size);
    while (acks < 2) {
        get(fd, header, sizeof header);
        get(fd, data, get_be32(header + 16));
        acks += get_be32(header + 12) == NBD_REP_ACK;
    }
    return fd;
}

static void wait_for_demands(unsigned count)
{
    for (int64_t end = clock_now() + 10 * NSEC_PER_SEC; atomic_load(&demands) < count;) {
        assert_true(clock_now() < end);
        clock_sleep(NSEC_PER_MSEC);
    }
}

static void wait_until_parked(bool parked)
{
    for (int64_t end = clock_now() + 10 * NSEC_PER_SEC; (disk_waiting_since(disk) != 0) != parked;) {
        assert_true(clock_now() < end);
        clock_sleep(NSEC_PER_MSEC);
    }
}

static void request_block(int fd, uint16_t type, uint64_t cookie, uint64_t block)
{
    request(fd, type, 0, cookie, block * DISK_BLOCK, DISK_BLOCK);
}

static void take_block(int fd, uint64_t cookie, char value)
{
    char data[DISK_BLOCK];
    assert_int_equal(simple_reply(fd, cookie), 0);
    get(fd, data, sizeof data);
    for (size_t i = 0; i < sizeof data; i++)
        assert_int_equal(data[i], value);
}

static bool is_quiet(int fd)
{
    struct pollfd poller = {.fd = fd, .events = POLLIN};
    return poll(&poller, 1, 50) == 0;
}

/* --- parking ------------------------------------------------------------------------------------------- */

static void a_read_is_answered_when_its_block_has_come(void **state)
{
    int fd = connect_simple();
    request_block(fd, NBD_CMD_READ, 1, MISSING_FROM);
    wait_for_demands(1);
    assert_int_equal(atomic_load(&last_demand), MISSING_FROM);
    assert_true(is_quiet(fd));
    fetch(disk, MISSING_FROM + 1, 1); /* another one: it looks, and goes on waiting */
    assert_true(is_quiet(fd));
    assert_int_equal(atomic_load(&demands), 1);
    fetch(disk, MISSING_FROM, 1);
    take_block(fd, 1, 'f');
    close(fd);
}

static void what_waits_too_long_is_given_up_oldest_first(void **state)
{
    struct nbd_parking parking;
    struct nbd_request request = {
        .type = NBD_CMD_READ, .length = DISK_BLOCK, .offset = MISSING_FROM * DISK_BLOCK, .cookie = 1};
    assert_int_equal(nbd_parking_init(&parking, disk), 0);
    assert_int_equal(nbd_parking_watch(&parking), 0);
    assert_int_equal(nbd_parking_timeout(&parking), -1);
    assert_int_equal(nbd_parking_add(&parking, &request, NULL, 0), 0);
    int64_t first = clock_now();
    clock_sleep(5 * NSEC_PER_MSEC);
    request.cookie = 2;
    assert_int_equal(nbd_parking_add(&parking, &request, NULL, 0), 0);
    assert_in_range(nbd_parking_timeout(&parking), 20000, 30000);

    assert_null(nbd_parking_expired(&parking, first + NBD_PARK_NSEC - NSEC_PER_SEC));
    struct nbd_parked *parked = nbd_parking_expired(&parking, first + NBD_PARK_NSEC);
    assert_non_null(parked);
    assert_int_equal(parked->request.cookie, 1);
    free(parked);
    assert_null(nbd_parking_expired(&parking, first + NBD_PARK_NSEC));
    nbd_parking_done(&parking);
}

static void later_requests_overtake_it(void **state)
{
    int fd = connect_simple();
    request_block(fd, NBD_CMD_READ, 1, MISSING_FROM);
    wait_until_parked(true);
    request_block(fd, NBD_CMD_READ, 2, 0);
    take_block(fd, 2, 'o');
    request(fd, NBD_CMD_FLUSH, 0, 3, 0, 0);
    assert_int_equal(simple_reply(fd, 3), 0);
    assert_int_equal(write_w(disk, DISK_BLOCK, MISSING_FROM * DISK_BLOCK),
                     0); /* on another connection, say */
    take_block(fd, 1, 'w');
    wait_until_parked(false);
    close(fd);
}

static void all_of_a_batch_is_told_before_the_first_is_served(void **state)
{
    struct bytes message = {0};
    int fd = connect_simple();
    for (unsigned i = 0; i < 64; i++)
        add_request(&message, 0, NBD_CMD_READ, i, (MISSING_FROM + i) * DISK_BLOCK, DISK_BLOCK);
    post(fd, message.at, message.size);
    wait_for_demands(64);
    for (unsigned i = 64; i > 0; i--) { /* answered in the order in which they come */
        fetch(disk, MISSING_FROM + i - 1, 1);
        take_block(fd, i - 1, 'f');
    }
    assert_int_equal(atomic_load(&demands), 64); /* each once */
    close(fd);
}

static void a_write_of_part_of_a_block_keeps_its_payload(void **state)
{
    char data[DISK_BLOCK];
    int fd = connect_simple();
    memset(data, 'w', sizeof data);
    request(fd, NBD_CMD_WRITE, 0, 1, MISSING_FROM * DISK_BLOCK + 512, DISK_BLOCK);
    post(fd, data, sizeof data);
    wait_for_demands(2); /* both ends */
    request_block(fd, NBD_CMD_READ, 2, 0);
    take_block(fd, 2, 'o');
    fetch(disk, MISSING_FROM, 1);
    assert_true(is_quiet(fd));
    fetch(disk, MISSING_FROM + 1, 1);
    assert_int_equal(simple_reply(fd, 1), 0);
    assert_int_equal(look(disk, 512, MISSING_FROM * DISK_BLOCK), 'f');
    assert_int_equal(look(disk, DISK_BLOCK, MISSING_FROM * DISK_BLOCK + 512), 'w');
    assert_int_equal(look(disk, DISK_BLOCK - 512, (MISSING_FROM + 1) * DISK_BLOCK + 512), 'f');
    close(fd);
}

static void a_write_of_whole_blocks_is_answered_at_once(void **state)
{
    static char data[MiB];
    int fd = connect_simple();
    memset(data, 'w', sizeof data);
    request(fd, NBD_CMD_WRITE, 0, 1, MISSING_FROM * DISK_BLOCK, DISK_BLOCK);
    post(fd, data, DISK_BLOCK);
    assert_int_equal(simple_reply(fd, 1), 0);
    request(fd, NBD_CMD_WRITE, 0, 2, 3 * MiB, MiB); /* a long one */
    post(fd, data, MiB);
    assert_int_equal(simple_reply(fd, 2), 0);
    assert_int_equal(look(disk, MiB, 3 * MiB), 'w');
    assert_int_equal(atomic_load(&demands), 0);
    close(fd);
}

static void a_long_write_waits_for_its_ends(void **state)
{
    static char data[MiB];
    int fd = connect_simple();
    memset(data, 'w', sizeof data);
    request_block(fd, NBD_CMD_READ, 1, MISSING_FROM);
    wait_until_parked(true);
    request(fd, NBD_CMD_WRITE, 0, 2, 3 * MiB + 100, MiB);
    wait_for_demands(3);
    fetch(disk, MISSING_FROM, 1); /* what was parked is served all the same */
    take_block(fd, 1, 'f');
    assert_int_not_equal(disk_waiting_since(disk), 0);
    fetch(disk, 3 * EXTENT, 1);
    fetch(disk, 4 * EXTENT, 1);
    post(fd, data, MiB);
    assert_int_equal(simple_reply(fd, 2), 0);
    assert_int_equal(look(disk, 100, 3 * MiB), 'f');
    assert_int_equal(look(disk, MiB, 3 * MiB + 100), 'w');
    assert_int_equal(disk_waiting_since(disk), 0);
    close(fd);
}

static void trim_and_zeroes_of_part_of_a_block_wait(void **state)
{
    int fd = connect_simple();
    request(fd, NBD_CMD_TRIM, 0, 1, MISSING_FROM * DISK_BLOCK, DISK_BLOCK + 1);
    request(fd, NBD_CMD_WRITE_ZEROES, 0, 2, (MISSING_FROM + 3) * DISK_BLOCK + 1, 10);
    wait_for_demands(2);
    fetch(disk, MISSING_FROM + 3, 1);
    assert_int_equal(simple_reply(fd, 2), 0);
    fetch(disk, MISSING_FROM + 1, 1);
    assert_int_equal(simple_reply(fd, 1), 0);
    assert_int_equal(look(disk, DISK_BLOCK + 1, MISSING_FROM * DISK_BLOCK), 0);
    close(fd);
}

static void take_chunks(int fd, uint64_t offset, uint32_t length, char *ret)
{
    uint32_t covered = 0;
    for (bool done = false; !done;) {
        uint8_t header[20], place[12];
        get(fd, header, sizeof header);
        done = get_be16(header + 4) & NBD_REPLY_FLAG_DONE;
        bool hole = get_be16(header + 6) == NBD_REPLY_TYPE_OFFSET_HOLE;
        assert_true(hole || get_be16(header + 6) == NBD_REPLY_TYPE_OFFSET_DATA);
        get(fd, place, hole ? 12 : 8);
        uint32_t size = hole ? get_be32(place + 8) : get_be32(header + 16) - 8;
        assert_int_equal(get_be64(place), offset + covered);
        assert_true(size <= length - covered);
        if (hole)
            memset(ret + covered, 0, size);
        else
            get(fd, ret + covered, size);
        covered += size;
    }
    assert_int_equal(covered, length);
}

/* It goes from the page cache to the socket without being copied, so not through disk_read. */
static void a_long_read_waits_for_all_of_its_blocks(void **state)
{
    static char data[3 * MiB];
    int fd = connect_structured();
    request(fd, NBD_CMD_READ, 0, 1, MiB, sizeof data);
    wait_for_demands(1);
    fetch(disk, MISSING_FROM, EXTENT);
    assert_true(is_quiet(fd));
    assert_ok(disk_fill(disk, &(struct disk_run){3 * EXTENT, EXTENT, HANDOVER}, NULL, &err));
    take_chunks(fd, MiB, sizeof data, data);
    for (size_t i = 0; i < sizeof data; i++)
        assert_int_equal(data[i], i < MiB ? 'o' : i < 2 * MiB ? 'f' : 0);
    close(fd);
}

/* --- bounds, and those who go -------------------------------------------------------------------------- */

static void more_than_can_be_parked_wait_their_turn(void **state)
{
    static struct bytes message;
    int fd = connect_simple();
    message.size = 0;
    for (unsigned i = 0; i < 900; i++)
        add_request(&message, 0, NBD_CMD_READ, i, (MISSING_FROM + i) * DISK_BLOCK, DISK_BLOCK);
    post(fd, message.at, message.size);
    wait_for_demands(900);
    for (unsigned i = 0; i < 900; i++) {
        fetch(disk, MISSING_FROM + i, 1);
        take_block(fd, i, 'f');
    }
    close(fd);
}

static void payloads_beyond_the_bound_wait_their_turn(void **state)
{
    static char data[DISK_BLOCK * 8];
    const unsigned count = NBD_PARK_BYTES / sizeof data + 6;
    int fd = connect_simple();
    memset(data, 'w', sizeof data);
    for (unsigned i = 0; i < count; i++) {
        request(fd, NBD_CMD_WRITE, 0, i, (MISSING_FROM + i * 9) * DISK_BLOCK + 1, sizeof data);
        post(fd, data, sizeof data);
    }
    wait_until_parked(true);
    for (unsigned i = 0; i < count; i++) {
        fetch(disk, MISSING_FROM + i * 9, 9);
        assert_int_equal(simple_reply(fd, i), 0);
        assert_int_equal(look(disk, sizeof data, (MISSING_FROM + i * 9) * DISK_BLOCK + 1), 'w');
    }
    close(fd);
}

static bool is_closed(int fd)
{
    uint8_t byte;
    return recv(fd, &byte, 1, 0) <= 0;
}

/* Unanswered: QEMU asks again on its next connection. */
static void stopping_does_not_wait_for_what_is_parked(void **state)
{
    int parked = connect_simple(), in_place = connect_simple();
    request_block(parked, NBD_CMD_READ, 1, MISSING_FROM);
    request(in_place, NBD_CMD_WRITE, 0, 2, 3 * MiB + 100, MiB);
    wait_for_demands(3);
    int64_t begin = clock_now();
    nbd_server_free(server);
    server = NULL;
    assert_true(clock_now() - begin < NSEC_PER_SEC);
    assert_true(is_closed(parked) && is_closed(in_place));
    assert_int_equal(disk_waiting_since(disk), 0);
    close(parked);
    close(in_place);
}

static void a_client_that_goes_leaves_nothing_waiting(void **state)
{
    int good = connect_simple(), parked = connect_simple(), in_place = connect_simple();
    request_block(parked, NBD_CMD_READ, 1, MISSING_FROM);
    request(in_place, NBD_CMD_WRITE, 0, 2, 3 * MiB + 100, MiB);
    wait_for_demands(3);
    close(parked);
    close(in_place);
    wait_until_parked(false);
    fetch(disk, MISSING_FROM, 1);
    request_block(good, NBD_CMD_READ, 3, MISSING_FROM);
    take_block(good, 3, 'f');
    close(good);
}

/* --- who fetches --------------------------------------------------------------------------------------- */

static void what_waits_is_told_to_a_new_fetcher(void **state)
{
    int fd = connect_simple();
    disk_on_demand(disk, NULL, NULL);
    request_block(fd, NBD_CMD_READ, 1, MISSING_FROM + 5);
    wait_until_parked(true);
    assert_int_equal(atomic_load(&demands), 0);
    disk_on_demand(disk, note_demand, NULL);
    wait_for_demands(1);
    assert_int_equal(atomic_load(&last_demand), MISSING_FROM + 5);
    fetch(disk, MISSING_FROM + 5, 1);
    take_block(fd, 1, 'f');
    close(fd);
}

static void it_is_known_since_when_the_guest_waits(void **state)
{
    int fd = connect_simple();
    int64_t before = clock_now();
    request_block(fd, NBD_CMD_READ, 1, MISSING_FROM);
    wait_until_parked(true);
    int64_t since = disk_waiting_since(disk);
    assert_true(since >= before && since <= clock_now());
    request_block(fd, NBD_CMD_READ, 2, MISSING_FROM + 1);
    wait_for_demands(2);
    assert_int_equal(disk_waiting_since(disk), since);
    fetch(disk, MISSING_FROM, 1);
    take_block(fd, 1, 'f');
    assert_true(disk_waiting_since(disk) > since);
    fetch(disk, MISSING_FROM + 1, 1);
    take_block(fd, 2, 'f');
    assert_int_equal(disk_waiting_since(disk), 0);
    close(fd);
}

static void reads_make_their_extents_hot(void **state)
{
    uint32_t hot[16];
    static char data[MiB];
    int fd = connect_structured();
    request(fd, NBD_CMD_READ, 0, 1, 7 * MiB, DISK_BLOCK);
    take_chunks(fd, 7 * MiB, DISK_BLOCK, data);
    for (unsigned i = 0; i < 3; i++) { /* from the page cache to the socket */
        request(fd, NBD_CMD_READ, 0, 2, MiB, MiB);
        take_chunks(fd, MiB, MiB, data);
    }
    assert_int_equal(disk_hottest(disk, hot, 16), 2);
    assert_int_equal(hot[0], 1);
    assert_int_equal(hot[1], 7);
    close(fd);
}

/* A fetcher that lags behind, several clients that read everything twice. */
static void *fetch_what_is_missing(void *arg)
{
    struct disk_run run;
    for (uint64_t at = 0; disk_next_missing(disk, at, UINT64_MAX, 3, &run); at = run.block + 2) {
        fetch(disk, run.block, run.count);
        if (at > MISSING_END)
            at = 0;
    }
    assert_ok(disk_filled(disk, 0, SPLIT_BLOCKS, &err));
    return NULL;
}

static void *read_everything(void *arg)
{
    static struct bytes messages[4];
    struct bytes *message = &messages[*(unsigned *)arg];
    static char data[4][DISK_BLOCK];
    int fd = connect_simple();
    for (uint64_t at = MISSING_FROM; at < MISSING_END; at += 64) {
        message->size = 0;
        for (uint64_t i = 0; i < 64; i++)
            add_request(message, 0, NBD_CMD_READ, at + i, (at + i) * DISK_BLOCK, DISK_BLOCK);
        post(fd, message->at, message->size);
        for (unsigned i = 0; i < 64; i++) {
            uint8_t reply[16];
            char *block = data[*(unsigned *)arg];
            get(fd, reply, sizeof reply);
            get(fd, block, DISK_BLOCK);
            if (get_be32(reply + 4) != 0 || block[0] != 'f')
                fail_in_any_thread("reply %u, data %d", get_be32(reply + 4), block[0]);
        }
    }
    close(fd);
    return NULL;
}

static void no_wake_up_is_lost_between_many(void **state)
{
    pthread_t fetcher, readers[4];
    static unsigned numbers[] = {0, 1, 2, 3};
    for (unsigned i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&readers[i], NULL, read_everything, &numbers[i]), 0);
    assert_int_equal(pthread_create(&fetcher, NULL, fetch_what_is_missing, NULL), 0);
    for (unsigned i = 0; i < 4; i++)
        pthread_join(readers[i], NULL);
    pthread_join(fetcher, NULL);
    assert_ok(disk_whole(disk, &err)); /* with the connections open */
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(a_read_is_answered_when_its_block_has_come),
        TEST(what_waits_too_long_is_given_up_oldest_first),
        TEST(later_requests_overtake_it),
        TEST(all_of_a_batch_is_told_before_the_first_is_served),
        TEST(a_write_of_part_of_a_block_keeps_its_payload),
        TEST(a_write_of_whole_blocks_is_answered_at_once),
        TEST(a_long_write_waits_for_its_ends),
        TEST(trim_and_zeroes_of_part_of_a_block_wait),
        TEST(a_long_read_waits_for_all_of_its_blocks),
        TEST(more_than_can_be_parked_wait_their_turn),
        TEST(payloads_beyond_the_bound_wait_their_turn),
        TEST(stopping_does_not_wait_for_what_is_parked),
        TEST(a_client_that_goes_leaves_nothing_waiting),
        TEST(what_waits_is_told_to_a_new_fetcher),
        TEST(it_is_known_since_when_the_guest_waits),
        TEST(reads_make_their_extents_hot),
        TEST(no_wake_up_is_lost_between_many),
    };
    return cmocka_run_group_tests_name("NBD, split disk", tests, NULL, NULL);
}
