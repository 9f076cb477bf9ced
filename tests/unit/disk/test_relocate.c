/* SPDX-License-Identifier: Apache-2.0
 *
 * The source's half of a transfer against the real destination half (disk_receive): what must go goes,
 * nothing else does, and a copy that got the pieces up to any point is what relocate_claim says that it is.
 */
#include "disk_test.h"

#include "disk/relocate.h"

#define BLOCKS 64u
#define SHORT_TAIL 512u /* the last block has only so much */
#define SIZE ((BLOCKS - 1) * (uint64_t)DISK_BLOCK + SHORT_TAIL)
#define PIECE (8 * DISK_BLOCK)

static struct disk *source, *copy;
static struct relocate *relocate;
static uint8_t data[PIECE];
static unsigned number; /* makes every write different */

static int setup(void **state)
{
    boot = 1;
    if (make_folder(state) < 0)
        return -1;
    source = new_disk(in_folder("s"), SIZE);
    copy = NULL;
    relocate = NULL;
    return 0;
}

static int teardown(void **state)
{
    relocate_free(relocate);
    if (copy)
        close_disk(copy);
    close_disk(source);
    return drop_folder(state);
}

static size_t size_of(uint64_t block)
{
    return block == BLOCKS - 1 ? SHORT_TAIL : DISK_BLOCK;
}

static void write_block(struct disk *disk, uint64_t block)
{
    uint8_t bytes[DISK_BLOCK];
    memset(bytes, (int)(++number % 255) + 1, sizeof bytes);
    memcpy(bytes, &number, sizeof number);
    assert_int_equal(disk_write(disk, bytes, size_of(block), block * DISK_BLOCK, false), 0);
}

static void write_blocks(uint64_t first, uint64_t count)
{
    for (uint64_t i = first; i < first + count; i++)
        write_block(source, i);
}

static void start(const struct lineage_base *base, const struct disk_range *fork, size_t fork_count)
{
    assert_ok(relocate_new(source, base, fork, fork_count, &relocate, &err));
}

/* What the pieces of one round covered; -1 = not, else the number of the piece's generation. */
static struct {
    bool sent[BLOCKS], zero[BLOCKS];
    uint32_t generation[BLOCKS];
    uint64_t bytes;
    unsigned pieces;
} seen;

static bool next_piece(struct relocate_piece *ret)
{
    struct err err = ERR_NONE;
    int r = relocate_next(relocate, data, sizeof data, ret, &err);
    if (r < 0)
        fail_msg("%s", err.text);
    if (r == 0)
        return false;
    assert_true(ret->run.count > 0 && ret->run.block + ret->run.count <= BLOCKS);
    if (ret->zero)
        assert_int_equal(ret->size, 0);
    else
        assert_true(ret->run.count <= PIECE / DISK_BLOCK);
    for (uint64_t b = ret->run.block; b < ret->run.block + ret->run.count; b++) {
        assert_false(seen.sent[b]);
        seen.sent[b] = true;
        seen.zero[b] = ret->zero;
        seen.generation[b] = ret->run.generation;
    }
    seen.bytes += ret->size;
    seen.pieces++;
    return true;
}

static void begin_round(void)
{
    memset(&seen, 0, sizeof seen);
    relocate_round(relocate, seal(source));
}

static void whole_round(void)
{
    struct relocate_piece piece;
    begin_round();
    while (next_piece(&piece))
        ;
}

static void assert_sent_only(uint64_t first, uint64_t count)
{
    for (uint64_t b = 0; b < BLOCKS; b++)
        if (seen.sent[b] != (b >= first && b < first + count))
            fail_msg("block %llu: %s", (unsigned long long)b, seen.sent[b] ? "sent" : "not sent");
}

static const struct lineage_base nothing = {0};

/* --- bases ---------------------------------------------------------------------------------------------- */

static void test_without_a_base_all_that_was_written_goes(void **state)
{
    write_blocks(3, 20);
    start(&nothing, NULL, 0);
    whole_round();
    assert_sent_only(3, 20);
    assert_int_equal(seen.bytes, 20 * DISK_BLOCK);
}

static void test_a_replica_gets_what_is_above_its_generation(void **state)
{
    write_blocks(0, 40);
    uint32_t base = seal(source);
    write_blocks(10, 5);
    start(&(struct lineage_base){.base = base}, NULL, 0);
    whole_round();
    assert_sent_only(10, 5);
}

static void test_a_partial_copy_gets_less_below_its_cursor(void **state)
{
    write_blocks(0, 40);
    uint32_t reached = seal(source);
    write_blocks(8, 4);
    start(&(struct lineage_base){.reached = reached, .cursor = 30}, NULL, 0);
    whole_round();
    for (uint64_t b = 0; b < BLOCKS; b++)
        assert_int_equal(seen.sent[b], (b >= 8 && b < 12) || (b >= 30 && b < 40));
}

static void test_what_a_fork_wrote_is_sent_whatever_our_map_says(void **state)
{
    write_blocks(0, 10);
    uint32_t base = seal(source);
    const struct disk_range fork[] = {{.offset = 5, .size = 10}, {.offset = 60, .size = 4}};
    write_blocks(8, 1);
    start(&(struct lineage_base){.base = base, .forked = true}, fork, 2);
    assert_int_equal(relocate_remaining(relocate) > 0, true);
    whole_round();
    for (uint64_t b = 0; b < BLOCKS; b++)
        assert_int_equal(seen.sent[b], (b >= 5 && b < 15) || b >= 60);
    assert_false(seen.zero[5]);
    assert_true(seen.zero[12]); /* we never wrote it: the fork's data becomes a hole */
    assert_int_equal(seen.generation[12], 0);
    assert_int_equal(seen.generation[5], base);
    whole_round();
    assert_int_equal(seen.pieces, 0); /* once is enough */
}

/* --- what is not sent as data --------------------------------------------------------------------------- */

static void test_zero_blocks_are_told_not_sent(void **state)
{
    static const uint8_t zeroes[4 * DISK_BLOCK];
    write_blocks(0, 2);
    assert_int_equal(disk_write(source, zeroes, sizeof zeroes, 2 * DISK_BLOCK, false), 0);
    write_blocks(6, 2);
    start(&nothing, NULL, 0);
    whole_round();
    assert_sent_only(0, 8);
    for (uint64_t b = 0; b < 8; b++)
        assert_int_equal(seen.zero[b], b >= 2 && b < 6);
    assert_int_equal(seen.bytes, 4 * DISK_BLOCK);
}

static void test_a_trimmed_range_is_told_not_sent(void **state)
{
    write_blocks(0, 32);
    uint32_t base = seal(source);
    assert_int_equal(disk_trim(source, 16 * DISK_BLOCK, 8 * DISK_BLOCK, false), 0);
    start(&(struct lineage_base){.base = base}, NULL, 0);
    whole_round();
    assert_sent_only(8, 16);
    assert_true(seen.zero[8] && seen.zero[23]);
    assert_int_equal(seen.bytes, 0);
    assert_int_equal(seen.pieces, 1);
}

static void test_the_short_last_block_has_its_own_size(void **state)
{
    struct relocate_piece piece;
    write_blocks(BLOCKS - 2, 2);
    start(&nothing, NULL, 0);
    begin_round();
    assert_true(next_piece(&piece));
    assert_int_equal(piece.run.count, 2);
    assert_int_equal(piece.size, DISK_BLOCK + SHORT_TAIL);
    assert_false(next_piece(&piece));
}

static void test_a_piece_never_exceeds_the_buffer(void **state)
{
    struct relocate_piece piece;
    write_blocks(0, 32);
    start(&nothing, NULL, 0);
    begin_round();
    assert_int_equal(relocate_next(relocate, data, DISK_BLOCK, &piece, NULL), 1);
    assert_int_equal(piece.run.count, 1);
    assert_int_equal(piece.size, DISK_BLOCK);
}

/* --- rounds --------------------------------------------------------------------------------------------- */

static void test_writes_during_a_round_wait_for_the_next(void **state)
{
    struct relocate_piece piece;
    write_blocks(0, 32);
    start(&nothing, NULL, 0);
    begin_round();
    assert_true(next_piece(&piece));
    write_blocks(40, 3); /* ahead of the walk */
    write_blocks(0, 1);  /* behind it */
    while (next_piece(&piece))
        ;
    assert_sent_only(0, 32);
    whole_round();
    for (uint64_t b = 0; b < BLOCKS; b++)
        assert_int_equal(seen.sent[b], b == 0 || (b >= 40 && b < 43));
}

static void test_a_round_begun_in_the_middle_of_another_takes_its_rest_along(void **state)
{
    struct relocate_piece piece;
    write_blocks(0, 32);
    start(&nothing, NULL, 0);
    begin_round();
    assert_true(next_piece(&piece)); /* 0 to 7 */
    write_blocks(2, 1);
    uint64_t pending = relocate_pending(relocate, disk_generation(source));
    begin_round();
    while (next_piece(&piece))
        ;
    for (uint64_t b = 0; b < BLOCKS; b++)
        assert_int_equal(seen.sent[b], b == 2 || (b >= 8 && b < 32));
    assert_in_range(pending, 25, 26);
    assert_int_equal(relocate_pending(relocate, disk_generation(source)), 0);
}

static void test_counts_and_estimates_fit_what_is_sent(void **state)
{
    write_blocks(0, 20);
    assert_int_equal(disk_trim(source, 4 * DISK_BLOCK, 4 * DISK_BLOCK, false), 0);
    start(&nothing, NULL, 0);
    assert_int_equal(relocate_pending(relocate, disk_generation(source)), 20);
    assert_int_equal(relocate_estimate(relocate, disk_generation(source)), 16 * DISK_BLOCK);
    begin_round();
    assert_int_equal(relocate_remaining(relocate), 20);
    struct relocate_piece piece;
    while (next_piece(&piece))
        ;
    assert_int_equal(seen.bytes, 16 * DISK_BLOCK);
    assert_int_equal(relocate_remaining(relocate), 0);
}

/* --- the claim is true ---------------------------------------------------------------------------------- */

static uint64_t seed = 88172645463325252u;

static uint64_t random_below(uint64_t bound)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return seed % bound;
}

/* The disk as it was when each generation was sealed. */
#define MAX_HISTORY 400
static uint8_t *history[MAX_HISTORY];

static uint8_t *contents(struct disk *disk)
{
    uint8_t *bytes = malloc(SIZE);
    assert_int_equal(disk_read(disk, bytes, SIZE, 0), 0);
    return bytes;
}

static uint32_t seal_and_remember(void)
{
    uint32_t sealed = seal(source);
    assert_true(sealed < MAX_HISTORY && !history[sealed]);
    history[sealed] = contents(source);
    return sealed;
}

static void forget(void)
{
    for (size_t i = 0; i < MAX_HISTORY; i++) {
        free(history[i]);
        history[i] = NULL;
    }
}

static void change_source(void)
{
    static const uint8_t zeroes[DISK_BLOCK];
    for (uint64_t n = random_below(12); n > 0; n--) {
        uint64_t block = random_below(BLOCKS), count = 1 + random_below(6);
        count = MIN(count, BLOCKS - block);
        uint64_t offset = block * DISK_BLOCK, size = MIN(count * DISK_BLOCK, SIZE - offset);
        switch (random_below(5)) {
        case 0:
            assert_int_equal(disk_trim(source, size, offset, false), 0);
            break;
        case 1:
            assert_int_equal(disk_write(source, zeroes, size_of(block), offset, false), 0);
            break;
        default:
            write_blocks(block, count);
        }
    }
}

/* A block whose number is `good` or less holds there what it held when `good` was sealed. The others have
 * changed on the source since, and count as not known yet. */
static void assert_claim_is_true(const struct lineage *claim)
{
    _cleanup_free_ uint8_t *now = contents(copy);
    assert_int_equal(claim->claim, LINEAGE_PARTIAL);
    for (uint64_t b = 0; b < BLOCKS; b++) {
        struct disk_run run;
        uint32_t good = b < claim->cursor ? claim->reached : claim->complete;
        if (disk_next_run(source, b, good, UINT32_MAX, 1, &run) && run.block == b)
            continue;
        if (good && memcmp(now + b * DISK_BLOCK, history[good] + b * DISK_BLOCK, size_of(b)) != 0)
            fail_msg("block %llu is not what the claim (%u, %u below %llu) says", (unsigned long long)b,
                     claim->complete, claim->reached, (unsigned long long)claim->cursor);
    }
}

/* As the destination does it: the copy's own lineage becomes the claim, which a power cut may then be
 * believed by. */
static void claim_now(void)
{
    _cleanup_(lineage_cleanup) struct lineage *claim = NULL;
    assert_ok(disk_lineage(source, &claim, &err));
    relocate_claim(relocate, claim);
    assert_claim_is_true(claim);
    assert_ok(disk_sync(copy, &err));
    assert_ok(disk_set_lineage(copy, claim, &err));
}

static void new_copy(const char *name)
{
    _cleanup_(lineage_cleanup) struct lineage *claim = NULL;
    assert_ok(disk_create(in_folder(name), SIZE, NULL, NULL, &err));
    copy = open_disk(in_folder(name), DISK_FROZEN);
    assert_ok(disk_lineage(source, &claim, &err));
    claim->claim = LINEAGE_PARTIAL;
    claim->complete = 0;
    assert_ok(disk_set_lineage(copy, claim, &err));
}

/* What a new try would find there. */
static void start_from_claim(void)
{
    _cleanup_(lineage_cleanup) struct lineage *ours = NULL, *theirs = NULL;
    struct lineage_base base;
    assert_ok(disk_lineage(source, &ours, &err));
    assert_ok(disk_lineage(copy, &theirs, &err));
    lineage_compare(ours, theirs, &base);
    assert_false(base.foreign);
    assert_false(base.forked);
    relocate_free(TAKE_PTR(relocate));
    start(&base, NULL, 0);
}

static void receive(const struct relocate_piece *piece)
{
    assert_ok(disk_receive(copy, &piece->run, piece->zero ? NULL : data, &err));
}

/* Some pieces of the round; true when it is over. */
static bool some_pieces(uint64_t most)
{
    struct relocate_piece piece;
    memset(&seen, 0, sizeof seen); /* a new walk may send a block again */
    for (; most > 0; most--) {
        int r = relocate_next(relocate, data, DISK_BLOCK * (1 + random_below(8)), &piece, NULL);
        assert_true(r >= 0);
        if (r == 0)
            return true;
        receive(&piece);
        if (random_below(4) == 0)
            change_source(); /* the guest goes on */
    }
    return false;
}

static void assert_equal_images(void)
{
    _cleanup_free_ uint8_t *a = contents(source), *b = contents(copy);
    assert_memory_equal(a, b, SIZE);
}

static void finish_transfer(void)
{
    relocate_round(relocate, seal_and_remember()); /* nothing is written any more */
    struct relocate_piece piece;
    memset(&seen, 0, sizeof seen);
    while (next_piece(&piece))
        receive(&piece);
    claim_now();
    assert_equal_images();
}

static void one_interrupted_history(unsigned nth)
{
    char name[16];
    snprintf(name, sizeof name, "c%u", nth);
    change_source();
    new_copy(name);
    start_from_claim();
    relocate_round(relocate, seal_and_remember());
    for (uint64_t steps = random_below(12); steps > 0; steps--) {
        bool over = some_pieces(random_below(30));
        claim_now();
        switch (random_below(3)) {
        case 0: /* the move breaks off here; another begins */
            if (random_below(2)) {
                close_disk(copy);
                copy = open_disk(in_folder(name), DISK_FROZEN);
            }
            start_from_claim();
            change_source();
            relocate_round(relocate, seal_and_remember());
            break;
        case 1: /* a new round, whether or not the old one is over */
            relocate_round(relocate, seal_and_remember());
            break;
        default:
            if (over)
                relocate_round(relocate, seal_and_remember());
        }
    }
    if (random_below(2))
        start_from_claim();
    finish_transfer();
    relocate_free(TAKE_PTR(relocate));
    close_disk(TAKE_PTR(copy));
}

static void test_the_claim_is_true_wherever_the_transfer_breaks_off(void **state)
{
    for (unsigned i = 0; i < 60; i++) {
        close_disk(source);
        assert_ok(disk_remove(in_folder("s"), &err));
        source = new_disk(in_folder("s"), SIZE);
        one_interrupted_history(i);
        forget();
    }
}

static void test_before_the_first_round_nothing_is_promised_beyond_the_base(void **state)
{
    _cleanup_(lineage_cleanup) struct lineage *claim = NULL;
    write_blocks(0, 8);
    uint32_t base = seal(source);
    start(&(struct lineage_base){.base = base}, NULL, 0);
    assert_ok(disk_lineage(source, &claim, &err));
    relocate_claim(relocate, claim);
    assert_int_equal(claim->claim, LINEAGE_PARTIAL);
    assert_int_equal(claim->complete, base);
    _cleanup_free_ void *bytes = NULL;
    size_t size;
    assert_int_equal(lineage_encode(claim, &bytes, &size), 0);
    struct lineage *back = NULL;
    assert_ok(lineage_decode(bytes, size, &back, &err)); /* it could be sent */
    lineage_free(back);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_without_a_base_all_that_was_written_goes),
        TEST(test_a_replica_gets_what_is_above_its_generation),
        TEST(test_a_partial_copy_gets_less_below_its_cursor),
        TEST(test_what_a_fork_wrote_is_sent_whatever_our_map_says),
        TEST(test_zero_blocks_are_told_not_sent),
        TEST(test_a_trimmed_range_is_told_not_sent),
        TEST(test_the_short_last_block_has_its_own_size),
        TEST(test_a_piece_never_exceeds_the_buffer),
        TEST(test_writes_during_a_round_wait_for_the_next),
        TEST(test_a_round_begun_in_the_middle_of_another_takes_its_rest_along),
        TEST(test_counts_and_estimates_fit_what_is_sent),
        TEST(test_before_the_first_round_nothing_is_promised_beyond_the_base),
        TEST(test_the_claim_is_true_wherever_the_transfer_breaks_off),
    };
    return cmocka_run_group_tests_name("relocate", tests, NULL, NULL);
}
