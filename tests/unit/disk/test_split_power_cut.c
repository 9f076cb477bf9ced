/* SPDX-License-Identifier: Apache-2.0
 *
 * Power cuts of a split disk under writes, trims, flushes, fills and checkpoints (power_cut.h). After each:
 *
 *   - what was here when a flush was acknowledged is not missing;
 *   - a block that is not missing has what it had at the last flush, or what was written since, sector by
 *     sector; never what the image had before the move, if something newer was expected;
 *   - a block of which something newer was expected, and which is here, has the number that came with it, or
 * a later one.
 *
 * A killed process loses nothing at all.
 */
#include "power_cut.h"
#include "split_test.h"

#define BLOCKS (POOL / DISK_BLOCK) /* that are looked at */
#define PER_BLOCK (DISK_BLOCK / SECTOR)
#define EXTENTS (SIZE / MiB + 1)

/* What a sector may hold: what it had at the last flush, and all that was written since. */
struct sector {
    uint8_t allowed[256 / 8]; /* a set of bytes, each of which fills a sector */
    uint8_t now;
};

static struct block {
    bool expected; /* the source had newer data at the switch, or might have */
    bool here;     /* not missing any more */
    bool safe;     /* it was here when a flush was acknowledged */
    struct sector sectors[PER_BLOCK];
} blocks[BLOCKS];

/* Bytes with a meaning; the guest writes greater ones, or zeroes. */
enum { OLD = 1, FROM_SOURCE = 2, FIRST_WRITTEN = 3 };

/* With several threads nobody knows in which order things reached the disk: then a block may have whatever
 * was ever meant for it. */
static bool strict;

static uint64_t number_of(unsigned i)
{
    return m.cluster_at[i / CLUSTER_BLOCKS] / DISK_BLOCK + i % CLUSTER_BLOCKS;
}

/* --- what is allowed ----------------------------------------------------------------------------------- */

static void allow(struct sector *sector, uint8_t value, bool only)
{
    if (only)
        memset(sector->allowed, 0, sizeof sector->allowed);
    sector->allowed[value / 8] |= (uint8_t)(1U << value % 8);
    sector->now = value;
}

/* [from, to) counts sectors of the pool. Before the disk is asked, for the cut may come in the middle. */
static void note_write(unsigned from, unsigned to, uint8_t value)
{
    pthread_mutex_lock(&m.lock);
    for (unsigned s = from; s < to; s++) {
        struct block *block = &blocks[s / PER_BLOCK];
        allow(&block->sectors[s % PER_BLOCK], value, strict && !block->here);
    }
    pthread_mutex_unlock(&m.lock);
}

static void note_here(unsigned first, unsigned last)
{
    pthread_mutex_lock(&m.lock);
    for (unsigned i = first; i <= last; i++)
        blocks[i].here = true;
    pthread_mutex_unlock(&m.lock);
}

static void note_flushed(void)
{
    pthread_mutex_lock(&m.lock);
    for (unsigned i = 0; i < BLOCKS; i++) {
        blocks[i].safe = blocks[i].here;
        for (unsigned s = 0; s < PER_BLOCK; s++)
            allow(&blocks[i].sectors[s], blocks[i].sectors[s].now, true);
    }
    pthread_mutex_unlock(&m.lock);
}

static void check_sectors(const struct block *block, const uint8_t *data, uint64_t number)
{
    for (unsigned s = 0; s < PER_BLOCK; s++) {
        uint8_t value = data[s * SECTOR];
        for (unsigned i = 1; i < SECTOR; i++)
            expect(data[s * SECTOR + i] == value);
        if (!(block->sectors[s].allowed[value / 8] >> value % 8 & 1))
            fail_in_any_thread("seed %llu, check %u: sector %u of block %llu is %u", (unsigned long long)seed,
                               m.checks, s, (unsigned long long)number, value);
    }
}

static void check_copy(struct disk *copy, const struct lineage *lineage)
{
    expect(lineage->claim == LINEAGE_SPLIT);
    for (unsigned i = 0; i < BLOCKS; i++) {
        uint8_t data[DISK_BLOCK];
        uint64_t number = number_of(i);
        if (is_missing(copy, number)) {
            if (blocks[i].safe)
                fail_in_any_thread("seed %llu, check %u: block %llu is missing again",
                                   (unsigned long long)seed, m.checks, (unsigned long long)number);
            expect(disk_read(copy, data, sizeof data, number * DISK_BLOCK) == -EAGAIN);
            continue;
        }
        expect(disk_read(copy, data, sizeof data, number * DISK_BLOCK) == 0);
        check_sectors(&blocks[i], data, number);
        expect(!blocks[i].expected || number_at(copy, number) >= HANDOVER);
    }
}

/* --- the story ----------------------------------------------------------------------------------------- */

static void fetch_block(unsigned i)
{
    static _Thread_local uint8_t data[DISK_BLOCK];
    memset(data, FROM_SOURCE, sizeof data);
    struct disk_run run = {.block = number_of(i), .count = 1, .generation = HANDOVER};
    pthread_mutex_lock(&m.lock);
    for (unsigned s = 0; s < PER_BLOCK; s++)
        allow(&blocks[i].sectors[s], FROM_SOURCE, strict);
    pthread_mutex_unlock(&m.lock);
    assert_ok(disk_fill(m.disk, &run, data, &err));
    note_here(i, i);
}

static void do_fetch(void)
{
    for (unsigned tries = 0; tries < 20; tries++) {
        unsigned i = (unsigned)rnd(BLOCKS);
        if (!blocks[i].here) {
            fetch_block(i);
            return;
        }
    }
}

/* Writes or trims some sectors of one cluster; what it covers in part is fetched first. */
static void do_change(bool trim)
{
    static _Thread_local uint8_t data[CLUSTER];
    unsigned per_cluster = CLUSTER / SECTOR, from = (unsigned)rnd(per_cluster);
    unsigned count = 1 + (unsigned)rnd(per_cluster - from), base = (unsigned)rnd(CLUSTERS) * per_cluster;
    if (rnd(2)) { /* whole blocks */
        from -= from % PER_BLOCK;
        count = (count + PER_BLOCK - 1) / PER_BLOCK * PER_BLOCK;
    }
    unsigned first = (base + from) / PER_BLOCK, last = (base + from + count - 1) / PER_BLOCK;
    bool head = from % PER_BLOCK != 0, tail = (from + count) % PER_BLOCK != 0;
    if (!blocks[first].here && (head || (tail && first == last)))
        fetch_block(first);
    if (!blocks[last].here && tail)
        fetch_block(last);
    uint8_t value = trim ? 0 : (uint8_t)(FIRST_WRITTEN + rnd(256 - FIRST_WRITTEN));
    uint64_t offset = m.cluster_at[base / per_cluster] + from * SECTOR;
    bool fua = rnd(8) == 0;
    memset(data, value, sizeof data);
    note_write(base + from, base + from + count, value);
    expect(0 == (trim ? disk_trim(m.disk, count * SECTOR, offset, fua)
                      : disk_write(m.disk, data, count * SECTOR, offset, fua)));
    note_here(first, last);
    if (fua)
        note_flushed();
}

static void do_something(void)
{
    switch (rnd(20)) {
    case 0 ... 7:
        do_change(false);
        break;
    case 8:
        do_change(true);
        break;
    case 9 ... 15:
        do_fetch();
        break;
    case 16 ... 17:
        expect(0 == disk_flush(m.disk));
        note_flushed();
        break;
    case 18:
        expect(0 == disk_checkpoint(m.disk));
        break;
    case 19:
        assert_ok(disk_sync(m.disk, &err));
        note_flushed();
        break;
    }
}

/* What a power cut left is what there is from now on. */
static void look_again(void)
{
    pthread_mutex_lock(&m.lock);
    inside = true;
    for (unsigned i = 0; i < BLOCKS; i++) {
        uint8_t data[DISK_BLOCK];
        struct block *block = &blocks[i];
        block->here = block->safe = !is_missing(m.disk, number_of(i));
        if (block->here)
            expect(disk_read(m.disk, data, sizeof data, number_of(i) * DISK_BLOCK) == 0);
        for (unsigned s = 0; block->here && s < PER_BLOCK; s++)
            allow(&block->sectors[s], data[s * SECTOR], true);
    }
    inside = false;
    pthread_mutex_unlock(&m.lock);
}

/* What the living disk says must be exactly what was done to it. */
static void check_live(void)
{
    for (unsigned i = 0; i < BLOCKS; i++) {
        uint8_t data[DISK_BLOCK];
        int r = disk_read(m.disk, data, sizeof data, number_of(i) * DISK_BLOCK);
        expect(r == (blocks[i].here ? 0 : -EAGAIN));
        for (unsigned s = 0; r == 0 && s < PER_BLOCK; s++)
            expect(data[s * SECTOR] == blocks[i].sectors[s].now);
    }
}

static void begin_life(bool after_cut)
{
    m.disk = open_disk(in_folder("d"), 0);
    if (after_cut)
        look_again();
    check_live();
}

/* true = by a power cut. */
static bool end_life(void)
{
    unsigned how = (unsigned)rnd(3);
    check_live();
    if (how == 0)
        close_disk(m.disk);
    else if (how == 1)
        kill_process();
    else
        cut_power();
    m.disk = NULL;
    if (how == 0)
        note_flushed();
    return how == 2;
}

/* --- the disk ------------------------------------------------------------------------------------------ */

static void receive_old_data(struct disk *disk)
{
    static uint8_t old[CLUSTER];
    memset(old, OLD, sizeof old);
    for (unsigned c = 0; c < CLUSTERS; c++) {
        struct disk_run run = {
            .block = m.cluster_at[c] / DISK_BLOCK, .count = CLUSTER_BLOCKS, .generation = 3};
        assert_ok(disk_receive(disk, &run, old, &err));
    }
}

static void make_split(void)
{
    uint8_t picture[(EXTENTS + 7) / 8] = {0};
    assert_ok(disk_create(in_folder("d"), SIZE, NULL, NULL, &err));
    struct disk *disk = open_disk(in_folder("d"), DISK_FROZEN);
    set_claim(disk, LINEAGE_PARTIAL, 0);
    receive_old_data(disk);
    for (unsigned e = 0; e < EXTENTS; e++)
        if (rnd(4) > 0)
            picture[e / 8] |= (uint8_t)(1U << e % 8);
    _cleanup_(lineage_cleanup) struct lineage *lineage = arriving_lineage(disk, LINEAGE_PARTIAL);
    assert_ok(disk_expect(disk, lineage, picture, sizeof picture, &err));
    become_split(disk);
    for (unsigned i = 0; i < BLOCKS; i++) {
        blocks[i] = (struct block){.expected = is_missing(disk, number_of(i))};
        blocks[i].here = blocks[i].safe = !blocks[i].expected;
        for (unsigned s = 0; s < PER_BLOCK; s++)
            allow(&blocks[i].sectors[s], blocks[i].expected ? FROM_SOURCE : OLD, true);
    }
    close_disk(disk);
}

static int setup(void **state)
{
    begin_story();
    strict = true;
    if (make_folder(state) < 0)
        return -1;
    make_split();
    start_recording();
    return 0;
}

static int teardown(void **state)
{
    stop_recording();
    return drop_folder(state);
}

static void test_what_was_flushed_is_never_missing_and_never_stale(void **state)
{
    bool cut = false;
    m.odds = 6;
    for (unsigned life = from_environment("ORAI_LIVES", 12); life > 0; life--) {
        begin_life(cut);
        for (uint64_t i = 10 + rnd(30); i > 0; i--)
            do_something();
        cut = end_life();
    }
    print_message("%u power cuts\n", m.checks);
    assert_true(m.checks > 40);
    begin_life(cut);
    assert_true(disk_missing(m.disk) > 0);
    m.odds = 0;
    for (unsigned i = 0; i < BLOCKS; i++)
        if (!blocks[i].here)
            fetch_block(i);
    assert_ok(disk_filled(m.disk, 0, disk_blocks(m.disk), &err));
    check_live();
    assert_ok(disk_whole(m.disk, &err));
    check_live();
    close_disk(m.disk);
    m.disk = NULL;
}

/* --- several threads ----------------------------------------------------------------------------------- */

static atomic_bool stop;

static void write_or_fetch_one(void)
{
    unsigned i = (unsigned)rnd(BLOCKS);
    if (!rnd(4)) {
        fetch_block(i);
        return;
    }
    uint8_t data[DISK_BLOCK], value = (uint8_t)(FIRST_WRITTEN + rnd(256 - FIRST_WRITTEN));
    memset(data, value, sizeof data);
    note_write(i * PER_BLOCK, (i + 1) * PER_BLOCK, value);
    expect(0 == disk_write(m.disk, data, sizeof data, number_of(i) * DISK_BLOCK, false));
    note_here(i, i);
}

static void *change_for_a_while(void *arg)
{
    random_state = seed * 31 + *(unsigned *)arg;
    while (!atomic_load(&stop))
        write_or_fetch_one();
    return NULL;
}

/* What was here before a flush began is safe once it has ended. A checkpoint promises nothing: another may have
 * the changes in hand. */
static void *flush_for_a_while(void *arg)
{
    bool here[BLOCKS];
    random_state = seed * 31 + *(unsigned *)arg;
    while (!atomic_load(&stop)) {
        pthread_mutex_lock(&m.lock);
        for (unsigned i = 0; i < BLOCKS; i++)
            here[i] = blocks[i].here;
        pthread_mutex_unlock(&m.lock);
        bool flush = rnd(4) > 0;
        expect(0 == (flush ? disk_flush(m.disk) : disk_checkpoint(m.disk)));
        pthread_mutex_lock(&m.lock);
        for (unsigned i = 0; flush && i < BLOCKS; i++)
            blocks[i].safe |= here[i];
        pthread_mutex_unlock(&m.lock);
    }
    return NULL;
}

static void test_flushes_and_checkpoints_between_writes_and_fills(void **state)
{
    static void *(*const work[])(void *) = {change_for_a_while, change_for_a_while, flush_for_a_while,
                                            flush_for_a_while};
    pthread_t threads[ARRAY_SIZE(work)];
    unsigned numbers[ARRAY_SIZE(work)];
    m.odds = 12;
    for (unsigned round = from_environment("ORAI_LIVES", 12) / 4 + 1; round > 0; round--) {
        strict = false;
        m.disk = open_disk(in_folder("d"), 0);
        atomic_store(&stop, false);
        for (unsigned i = 0; i < ARRAY_SIZE(work); i++) {
            numbers[i] = i + 10 * round;
            pthread_create(&threads[i], NULL, work[i], &numbers[i]);
        }
        clock_sleep(300 * NSEC_PER_MSEC);
        atomic_store(&stop, true);
        for (unsigned i = 0; i < ARRAY_SIZE(work); i++)
            pthread_join(threads[i], NULL);
        close_disk(m.disk);
        m.disk = NULL;
        /* Another disk, with everything missing again. */
        stop_recording();
        assert_ok(disk_remove(in_folder("d"), &err));
        unsigned checks = m.checks;
        make_split();
        start_recording();
        m.checks = checks;
    }
    print_message("%u power cuts\n", m.checks);
    assert_true(m.checks > 20);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_what_was_flushed_is_never_missing_and_never_stale, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_flushes_and_checkpoints_between_writes_and_fills, setup,
                                        teardown),
    };
    return cmocka_run_group_tests_name("disk split power cut", tests, NULL, NULL);
}
