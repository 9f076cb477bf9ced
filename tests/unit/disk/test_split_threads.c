/* SPDX-License-Identifier: Apache-2.0
 *
 * Fills, writes, reads, flushes and checkpoints of the same blocks of a split disk at once. Each block must
 * end as the guest's last write, or, where it never wrote, as what was fetched; a read never sees what was
 * there before. Meant to be run under the thread sanitizer too.
 */
#include "split_test.h"

#include "base/clock.h"

#include <pthread.h>
#include <stdatomic.h>

#define WRITERS 2U
#define HOT (4 * EXTENT) /* all of it missing in the beginning */

static struct disk *disk;
static atomic_bool stop;

/* What each block was last written with by its only writer; 0 = never. Each first byte is a letter, so that
 * 'o', 'f' and 0 cannot be meant. */
static _Atomic uint8_t written[HOT];

static uint64_t next_random(uint64_t *state)
{
    *state = *state * UINT64_C(6364136223846793005) + 1442695040888963407;
    return *state >> 33;
}

static void *write_blocks(void *arg)
{
    unsigned me = *(unsigned *)arg;
    uint64_t random = me + 1;
    char data[DISK_BLOCK];
    while (!atomic_load(&stop)) {
        uint64_t block = next_random(&random) % (HOT / WRITERS) * WRITERS + me;
        uint8_t value = (uint8_t)('A' + next_random(&random) % 26);
        memset(data, value, sizeof data);
        /* Now and then only a part, which must then be all of what is there already. */
        bool part = next_random(&random) % 4 == 0;
        if (part && (value = atomic_load(&written[block])) == 0)
            value = 'f';
        memset(data, value, sizeof data);
        int r = disk_write(disk, data, part ? 512 : DISK_BLOCK, block * DISK_BLOCK, false);
        if (r != 0 && !(part && r == -EAGAIN))
            fail_in_any_thread("write: %d", r);
        if (r == 0 && !part)
            atomic_store(&written[block], value);
        clock_sleep(20000); /* some blocks shall be fetched first */
    }
    return NULL;
}

static void *fetch_blocks(void *arg)
{
    uint64_t random = *(unsigned *)arg + 77;
    static const char all_f[16 * DISK_BLOCK] = {[0 ... 16 * DISK_BLOCK - 1] = 'f'};
    while (!atomic_load(&stop)) {
        struct disk_run run;
        uint64_t from = next_random(&random) % HOT;
        if (!disk_next_missing(disk, from, HOT, 16, &run) && !disk_next_missing(disk, 0, HOT, 16, &run))
            break;
        run.generation = HANDOVER;
        if (disk_fill(disk, &run, all_f, NULL) != 0)
            fail_in_any_thread("fill");
        if (next_random(&random) % 8 == 0 && disk_filled(disk, run.block, run.count, NULL) != 0)
            fail_in_any_thread("filled");
        clock_sleep(50000);
    }
    return NULL;
}

static void *read_blocks(void *arg)
{
    uint64_t random = *(unsigned *)arg + 999;
    uint8_t data[DISK_BLOCK];
    while (!atomic_load(&stop)) {
        uint64_t block = next_random(&random) % HOT;
        int r = disk_read(disk, data, sizeof data, block * DISK_BLOCK);
        if (r != 0 && r != -EAGAIN)
            fail_in_any_thread("read: %d", r);
        if (r == 0 && data[0] != 'f' && !(data[0] >= 'A' && data[0] <= 'Z'))
            fail_in_any_thread("block %llu was read as %d", (unsigned long long)block, data[0]);
    }
    return NULL;
}

static void *make_durable_again_and_again(void *arg)
{
    (void)arg;
    for (unsigned i = 0; !atomic_load(&stop); i++) {
        int r = i % 4 ? disk_flush(disk) : disk_checkpoint(disk);
        if (r != 0)
            fail_in_any_thread("flush: %d", r);
    }
    return NULL;
}

static void run_threads(void)
{
    static void *(*const work[])(void *) = {write_blocks,
                                            write_blocks,
                                            fetch_blocks,
                                            fetch_blocks,
                                            read_blocks,
                                            read_blocks,
                                            make_durable_again_and_again,
                                            make_durable_again_and_again};
    pthread_t threads[ARRAY_SIZE(work)];
    static unsigned numbers[] = {0, 1};
    for (unsigned i = 0; i < ARRAY_SIZE(work); i++)
        assert_int_equal(pthread_create(&threads[i], NULL, work[i], &numbers[i % 2]), 0);
    for (int64_t end = clock_now() + 10 * NSEC_PER_SEC; disk_missing(disk) > 0 && clock_now() < end;)
        clock_sleep(NSEC_PER_MSEC);
    clock_sleep(50 * NSEC_PER_MSEC);
    atomic_store(&stop, true);
    for (unsigned i = 0; i < ARRAY_SIZE(work); i++)
        pthread_join(threads[i], NULL);
}

static void test_each_block_ends_as_last_written_or_as_fetched(void **state)
{
    boot = 1;
    disk = split_disk(in_folder("d"), 0xf);
    run_threads();
    assert_int_equal(disk_missing(disk), 0);
    unsigned fetched = 0;
    for (uint64_t b = 0; b < HOT; b++) {
        uint8_t value = atomic_load(&written[b]);
        fetched += value == 0;
        assert_int_equal(look_at(disk, b), value ? value : 'f');
    }
    assert_true(fetched > 0 && fetched < HOT);
    assert_ok(disk_whole(disk, &err));
    close_disk(disk);
    boot++;
    disk = open_disk(in_folder("d"), 0);
    for (uint64_t b = 0; b < HOT; b++)
        assert_int_equal(look_at(disk, b), atomic_load(&written[b]) ? atomic_load(&written[b]) : 'f');
    close_disk(disk);
}

/* --- a fill and writes of the same extent, from the same moment on ------------------------------------- */

static pthread_barrier_t start;

static void *fill_the_extent(void *arg)
{
    static char all_f[MiB];
    memset(all_f, 'f', sizeof all_f);
    for (unsigned e = 0; e < 8; e++) {
        const struct disk_run run = {e * EXTENT, EXTENT, HANDOVER};
        pthread_barrier_wait(&start);
        if (disk_fill(disk, &run, all_f, NULL) != 0)
            fail_in_any_thread("fill");
    }
    return NULL;
}

/* Every other block, from the end, where the fill comes last. */
static void *write_from_its_end(void *arg)
{
    char data[DISK_BLOCK];
    memset(data, 'w', sizeof data);
    for (unsigned e = 0; e < 8; e++) {
        pthread_barrier_wait(&start);
        for (uint64_t b = EXTENT; b >= 2; b -= 2)
            if (disk_write(disk, data, sizeof data, (e * EXTENT + b - 1) * DISK_BLOCK, false) != 0)
                fail_in_any_thread("write");
    }
    return NULL;
}

static void test_a_fill_under_way_overwrites_no_write(void **state)
{
    for (unsigned round = 0; round < 10; round++) {
        pthread_t threads[2];
        boot = 1;
        disk = split_disk(in_folder("d"), 0xff);
        pthread_barrier_init(&start, NULL, 2);
        pthread_create(&threads[0], NULL, fill_the_extent, NULL);
        pthread_create(&threads[1], NULL, write_from_its_end, NULL);
        for (unsigned i = 0; i < 2; i++)
            pthread_join(threads[i], NULL);
        pthread_barrier_destroy(&start);
        assert_int_equal(disk_missing(disk), 0);
        for (uint64_t b = 0; b < 8 * EXTENT; b++)
            assert_int_equal(look_at(disk, b), b % 2 ? 'w' : 'f');
        close_disk(disk);
        assert_ok(disk_remove(in_folder("d"), &err));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_each_block_ends_as_last_written_or_as_fetched, make_folder,
                                        drop_folder),
        cmocka_unit_test_setup_teardown(test_a_fill_under_way_overwrites_no_write, make_folder, drop_folder),
    };
    return cmocka_run_group_tests_name("disk split threads", tests, NULL, NULL);
}
