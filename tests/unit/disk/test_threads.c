/* SPDX-License-Identifier: Apache-2.0
 *
 * Many threads at one disk: generations against writes under way, freezing, and a transfer that ends with
 * equal copies while the writers run. Meant to be run under the thread sanitizer too.
 */
#include "disk_test.h"

#include "base/clock.h"

#include <pthread.h>
#include <stdatomic.h>

#define SIZE (8 * MiB)
#define BLOCKS (SIZE / DISK_BLOCK)
#define WRITERS 4u

static struct disk *disk;
static atomic_bool stop;
static pthread_t threads[WRITERS];
static unsigned numbers[WRITERS];

/* Each writer has blocks of its own, so that it knows what it wrote last. */
static struct record {
    atomic_uint number_before; /* current generation just before the write began */
    atomic_uint writes;
} records[BLOCKS];

static void *write_blocks(void *arg)
{
    unsigned me = *(unsigned *)arg;
    uint64_t random = me + 1;
    char data[DISK_BLOCK];
    while (!atomic_load(&stop)) {
        random = random * UINT64_C(6364136223846793005) + 1442695040888963407;
        uint64_t block = (random >> 33) % (BLOCKS / WRITERS) * WRITERS + me;
        memset(data, (int)(random >> 56) | 1, sizeof data);
        uint32_t before = disk_generation(disk);
        int r = random % 16 ? disk_write(disk, data, sizeof data, block * DISK_BLOCK, false)
                            : disk_trim(disk, DISK_BLOCK, block * DISK_BLOCK, false);
        if (r != 0)
            fail_in_any_thread("write: %d", r);
        if (random % 16)
            atomic_store(&records[block].number_before, before);
        atomic_fetch_add(&records[block].writes, 1);
    }
    return NULL;
}

static int setup(void **state)
{
    boot = 1;
    if (make_folder(state) < 0)
        return -1;
    memset(records, 0, sizeof records);
    disk = new_disk(in_folder("d"), SIZE);
    atomic_store(&stop, false);
    for (unsigned i = 0; i < WRITERS; i++) {
        numbers[i] = i;
        pthread_create(&threads[i], NULL, write_blocks, &numbers[i]);
    }
    return 0;
}

static void stop_writers(void)
{
    atomic_store(&stop, true);
    for (unsigned i = 0; i < WRITERS; i++)
        pthread_join(threads[i], NULL);
}

static int teardown(void **state)
{
    close_disk(disk);
    return drop_folder(state);
}

static uint32_t number_of(uint64_t block)
{
    struct disk_run run;
    bool found = disk_next_run(disk, block, 0, UINT32_MAX, 1, &run) && run.block == block;
    return found ? run.generation : 0;
}

static void test_a_write_that_begins_after_an_advance_has_a_newer_number(void **state)
{
    for (int i = 0; i < 40; i++) {
        clock_sleep(NSEC_PER_MSEC);
        seal(disk);
    }
    stop_writers();
    for (uint64_t b = 0; b < BLOCKS; b++)
        assert_true(number_of(b) >= atomic_load(&records[b].number_before));
}

static void test_a_sealed_generation_gets_no_more_marks(void **state)
{
    for (int i = 0; i < 20; i++) {
        clock_sleep(NSEC_PER_MSEC);
        uint32_t sealed = seal(disk);
        uint64_t once = disk_count(disk, sealed - 1, sealed);
        clock_sleep(NSEC_PER_MSEC);
        assert_true(disk_count(disk, sealed - 1, sealed) <= once);
    }
    stop_writers();
}

static void test_freezing_stops_writes_until_thawed(void **state)
{
    static char first[SIZE], second[SIZE];
    for (int i = 0; i < 5; i++) {
        disk_freeze(disk);
        assert_int_equal(disk_read(disk, first, SIZE, 0), 0);
        clock_sleep(5 * NSEC_PER_MSEC);
        assert_int_equal(disk_read(disk, second, SIZE, 0), 0);
        assert_memory_equal(first, second, SIZE);
        disk_thaw(disk);
        clock_sleep(2 * NSEC_PER_MSEC);
    }
    stop_writers();
}

static void copy_round(struct disk *copy, uint32_t above, uint32_t upto)
{
    static char data[64 * DISK_BLOCK];
    struct disk_run run;
    for (uint64_t at = 0; disk_next_run(disk, at, above, upto, 64, &run); at = run.block + run.count) {
        assert_int_equal(disk_read(disk, data, run.count * DISK_BLOCK, run.block * DISK_BLOCK), 0);
        assert_ok(disk_receive(copy, &run, data, &err));
    }
}

/* The transfer engine in small: rounds while the writers run, the last one frozen. */
static void test_rounds_end_with_equal_copies_while_writers_run(void **state)
{
    assert_ok(disk_create(in_folder("copy"), SIZE, NULL, NULL, &err));
    struct disk *copy = open_disk(in_folder("copy"), DISK_FROZEN);
    set_claim(copy, LINEAGE_PARTIAL, 0);
    uint32_t above = 0;
    for (int round = 0; round < 8; round++) {
        uint32_t sealed = seal(disk);
        copy_round(copy, above, sealed);
        assert_ok(round % 3 ? 0 : disk_sync(disk, &err));
        above = sealed;
    }
    disk_freeze(disk);
    copy_round(copy, above, seal(disk));
    static char ours[SIZE], theirs[SIZE];
    assert_int_equal(disk_read(disk, ours, SIZE, 0), 0);
    assert_int_equal(disk_read(copy, theirs, SIZE, 0), 0);
    assert_memory_equal(ours, theirs, SIZE);
    disk_thaw(disk);
    close_disk(copy);
    stop_writers();
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        T(test_a_write_that_begins_after_an_advance_has_a_newer_number),
        T(test_a_sealed_generation_gets_no_more_marks),
        T(test_freezing_stops_writes_until_thawed),
        T(test_rounds_end_with_equal_copies_while_writers_run),
    };
    return cmocka_run_group_tests_name("disk threads", tests, NULL, NULL);
}
