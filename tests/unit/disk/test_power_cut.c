/* SPDX-License-Identifier: Apache-2.0
 *
 * The crash rule as a property: whatever a power cut leaves of image, map and intent record, opening the disk
 * in the next boot never reports fewer changed blocks than really differ from any sealed state that the
 * lineage names. What a power cut leaves is power_cut.h's business.
 */
#include "power_cut.h"

#define SEALS 8u

static struct seal_state {
    uint32_t generation;
    struct id id;
    uint8_t pool[POOL];
} seals[SEALS];
static unsigned sealed;

static void check_against(struct disk *copy, const struct lineage *lineage, const struct seal_state *state)
{
    const struct lineage_entry *entry = lineage_find(lineage, state->generation);
    if (!entry || !id_equal(&entry->id, &state->id))
        return; /* no copy can appeal to it */
    for (unsigned i = 0; i < POOL / DISK_BLOCK; i++) {
        uint8_t now[DISK_BLOCK];
        uint64_t offset = m.cluster_at[i / CLUSTER_BLOCKS] + i % CLUSTER_BLOCKS * DISK_BLOCK;
        expect(0 == disk_read(copy, now, sizeof now, offset));
        struct disk_run run;
        uint64_t block = offset / DISK_BLOCK;
        if (memcmp(now, state->pool + i * DISK_BLOCK, DISK_BLOCK) == 0)
            continue;
        if (!disk_next_run(copy, block, state->generation, UINT32_MAX, 1, &run) || run.block != block)
            fail_in_any_thread(
                "seed %llu, check %u: block %llu differs from generation %u, and the map denies it",
                (unsigned long long)seed, m.checks, (unsigned long long)block, state->generation);
    }
}

static void check_copy(struct disk *copy, const struct lineage *lineage)
{
    for (unsigned i = 0; i < MIN(sealed, SEALS); i++)
        check_against(copy, lineage, &seals[i]);
}

/* --- the story ----------------------------------------------------------------------------------------- */

static uint64_t some_offset(uint64_t *ret_size)
{
    uint64_t at = rnd(CLUSTER);
    *ret_size = 1 + rnd(rnd(2) ? 700 : CLUSTER);
    *ret_size = MIN(*ret_size, CLUSTER - at);
    return m.cluster_at[rnd(CLUSTERS)] + at;
}

static void do_write(void)
{
    static _Thread_local uint8_t data[CLUSTER];
    uint64_t size, offset = some_offset(&size);
    memset(data, (int)rnd(256), size);
    expect(0 == disk_write(m.disk, data, size, offset, rnd(10) == 0));
}

static void do_clear(void)
{
    uint64_t size, offset = some_offset(&size);
    if (rnd(8) == 0)
        size *= rnd(5000);
    size = MIN(size, SIZE - offset);
    unsigned flags = rnd(2) ? DISK_ZERO_NO_HOLE : 0;
    expect(0 == disk_zero(m.disk, size, offset, flags));
}

static void do_seal(void)
{
    pthread_mutex_lock(&m.lock); /* a power cut in another thread looks at all of them */
    struct seal_state *s = &seals[sealed++ % SEALS];
    s->generation = disk_generation(m.disk);
    s->id = id_random();
    memcpy(s->pool, m.live[IMAGE], POOL);
    pthread_mutex_unlock(&m.lock);
    uint32_t generation;
    assert_ok(disk_advance(m.disk, &s->id, LINEAGE_ROUND, "here", &generation, &err));
    assert_int_equal(generation, s->generation);
}

static void do_something(void)
{
    switch (rnd(20)) {
    case 0 ... 11:
        do_write();
        break;
    case 12:
    case 13:
        do_clear();
        break;
    case 14:
    case 15:
        expect(0 == disk_flush(m.disk));
        break;
    case 16:
        do_seal();
        break;
    case 17:
        assert_ok(disk_sync(m.disk, &err));
        break;
    case 18:
        expect(0 == disk_checkpoint(m.disk));
        break;
    case 19:
        expect(0 == disk_intend(m.disk, &(struct disk_range){rnd(SIZE / 2), rnd(4 * MiB)}, 1));
        break;
    }
}

static void end_life(void)
{
    switch (rnd(3)) {
    case 0:
        close_disk(m.disk);
        break;
    case 1:
        kill_process();
        break;
    case 2:
        cut_power();
        break;
    }
    m.disk = NULL;
}

static int setup(void **state)
{
    begin_story();
    if (make_folder(state) < 0)
        return -1;
    assert_ok(disk_create(in_folder("d"), SIZE, NULL, NULL, &err));
    sealed = 0;
    start_recording();
    return 0;
}

static int teardown(void **state)
{
    stop_recording();
    return drop_folder(state);
}

static void test_no_changed_block_is_ever_denied(void **state)
{
    m.odds = 6;
    for (unsigned life = from_environment("ORAI_LIVES", 25); life > 0; life--) {
        m.disk = open_disk(in_folder("d"), 0);
        for (uint64_t i = 10 + rnd(60); i > 0; i--)
            do_something();
        end_life();
    }
    print_message("%u power cuts\n", m.checks);
    assert_true(m.checks > 100);
}

static pthread_rwlock_t quiet = PTHREAD_RWLOCK_WRITER_NONRECURSIVE_INITIALIZER_NP;
static atomic_bool stop;

static void *write_for_a_while(void *arg)
{
    random_state = seed * 31 + *(unsigned *)arg;
    while (!atomic_load(&stop)) {
        pthread_rwlock_rdlock(&quiet);
        if (rnd(10) == 0)
            do_clear();
        else
            do_write();
        pthread_rwlock_unlock(&quiet);
    }
    return NULL;
}

static void *checkpoint_for_a_while(void *arg)
{
    random_state = seed * 31 + *(unsigned *)arg;
    while (!atomic_load(&stop)) {
        if (rnd(2))
            expect(0 == disk_checkpoint(m.disk));
        else
            assert_ok(disk_sync(m.disk, &err));
    }
    return NULL;
}

/* Writers and checkpoints at the same time: an intent is never cleared under a write. Seals stop the writers,
 * for the test must know what exactly was sealed. */
static void test_checkpoints_never_forget_a_write_under_way(void **state)
{
    m.odds = 20;
    m.disk = open_disk(in_folder("d"), 0);
    pthread_t threads[4];
    unsigned numbers[4];
    atomic_store(&stop, false);
    for (unsigned i = 0; i < 4; i++) {
        numbers[i] = i + 1;
        pthread_create(&threads[i], NULL, i < 3 ? write_for_a_while : checkpoint_for_a_while, &numbers[i]);
    }
    for (int64_t until = clock_now() + 2 * NSEC_PER_SEC; clock_now() < until;) {
        clock_sleep(20 * NSEC_PER_MSEC);
        pthread_rwlock_wrlock(&quiet);
        do_seal();
        pthread_rwlock_unlock(&quiet);
    }
    atomic_store(&stop, true);
    for (unsigned i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    close_disk(m.disk);
    m.disk = NULL;
    print_message("%u power cuts\n", m.checks);
    assert_true(m.checks > 20);
}

static bool is_durable(enum file file)
{
    for (size_t i = 0; i < m.count; i++)
        if (m.pending[i].file == file)
            return false;
    return true;
}

/* A guest that writes the same places all the time pays for no syncs that clear none of its intents. */
static void test_a_checkpoint_with_nothing_to_clear_leaves_the_image_alone(void **state)
{
    static const uint8_t data[DISK_BLOCK] = {1};
    m.odds = 0;
    m.disk = open_disk(in_folder("d"), 0);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(disk_write(m.disk, data, sizeof data, m.cluster_at[0], false), 0);
        assert_int_equal(disk_checkpoint(m.disk), 0);
        assert_false(is_durable(IMAGE));
    }
    assert_int_equal(disk_checkpoint(m.disk), 0); /* nothing was written since the last */
    assert_true(is_durable(IMAGE));
    assert_true(is_durable(MAP));
    close_disk(m.disk);
    m.disk = NULL;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_no_changed_block_is_ever_denied, setup, teardown),
        cmocka_unit_test_setup_teardown(test_a_checkpoint_with_nothing_to_clear_leaves_the_image_alone, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_checkpoints_never_forget_a_write_under_way, setup, teardown),
    };
    return cmocka_run_group_tests_name("disk power cut", tests, NULL, NULL);
}
