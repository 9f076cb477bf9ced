/* SPDX-License-Identifier: Apache-2.0
 *
 * Lineage: what two copies have in common, and bytes from a peer.
 */
#include "disk/lineage.h"

#include "base/endian.h"
#include "base/macro.h"

// clang-format off
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>
// clang-format on
#include <errno.h>
#include <string.h>
#include <xxhash.h>

#define SIZE (1 * GiB)

static const struct id disk_id = {{1}}, other_disk = {{2}};

/* The id that generation g has in the history called `branch`. */
static struct id id_of(uint32_t g, char branch)
{
    return (struct id){{(uint8_t)g, (uint8_t)(g >> 8), (uint8_t)branch}};
}

static void add(struct lineage *l, uint32_t g, enum lineage_kind kind, char branch)
{
    struct id id = id_of(g, branch);
    assert_int_equal(lineage_add(l, g, &id, kind, "host", 1000), 0);
}

/* Generations 2, 4, .. 2 * count of one branch, after the base image. */
static struct lineage *history(unsigned count, char branch)
{
    struct lineage *l = lineage_new(&disk_id, SIZE);
    add(l, 1, LINEAGE_BASE, 'b');
    for (uint32_t g = 2; g <= 2 * count; g += 2)
        add(l, g, LINEAGE_HANDOVER, branch);
    return l;
}

static struct lineage *claiming(struct lineage *l, enum lineage_claim claim, uint32_t complete)
{
    l->claim = claim;
    l->complete = complete;
    return l;
}

#define L _cleanup_(lineage_cleanup) struct lineage *

static void expect(const struct lineage *ours, const struct lineage *theirs, struct lineage_base want)
{
    struct lineage_base got;
    lineage_compare(ours, theirs, &got);
    assert_int_equal(got.base, want.base);
    assert_int_equal(got.reached, want.reached);
    assert_int_equal(got.cursor, want.cursor);
    assert_int_equal(got.forked, want.forked);
    assert_int_equal(got.foreign, want.foreign);
}

static void test_a_replica_of_the_last_hand_over(void **state)
{
    L ours = history(3, 'a');
    L theirs = claiming(history(3, 'a'), LINEAGE_REPLICA, 6);
    expect(ours, theirs, (struct lineage_base){.base = 6});
}

static void test_a_replica_two_hand_overs_old(void **state)
{
    L ours = history(5, 'a');
    L theirs = claiming(history(3, 'a'), LINEAGE_REPLICA, 6);
    expect(ours, theirs, (struct lineage_base){.base = 6});
}

static void test_a_replica_that_knows_later_rounds_than_it_holds(void **state)
{
    L ours = history(5, 'a');
    L theirs = claiming(history(5, 'a'), LINEAGE_REPLICA, 4);
    expect(ours, theirs, (struct lineage_base){.base = 4});
}

static void test_a_third_host_whose_history_goes_on_without_ours(void **state)
{
    L ours = history(3, 'a');
    L theirs = claiming(history(3, 'a'), LINEAGE_REPLICA, 4);
    add(theirs, 9, LINEAGE_HANDOVER, 'z');
    expect(ours, theirs, (struct lineage_base){.base = 4});
}

static void test_a_partial_copy_keeps_its_cursor(void **state)
{
    L ours = history(5, 'a');
    L theirs = claiming(history(4, 'a'), LINEAGE_PARTIAL, 4);
    theirs->reached = 8;
    theirs->cursor = 1000;
    expect(ours, theirs, (struct lineage_base){.base = 4, .reached = 8, .cursor = 1000});
}

static void test_a_first_transfer_cut_short_counts(void **state)
{
    L ours = lineage_new(&disk_id, SIZE);
    add(ours, 7, LINEAGE_ROUND, 'a');
    L theirs = lineage_new(&disk_id, SIZE);
    add(theirs, 7, LINEAGE_ROUND, 'a');
    claiming(theirs, LINEAGE_PARTIAL, 0);
    theirs->reached = 7;
    theirs->cursor = 5;
    expect(ours, theirs, (struct lineage_base){.base = 0, .reached = 7, .cursor = 5});
}

static void test_a_first_transfer_from_another_history_is_foreign(void **state)
{
    L ours = lineage_new(&disk_id, SIZE);
    add(ours, 7, LINEAGE_ROUND, 'a');
    L theirs = lineage_new(&disk_id, SIZE);
    add(theirs, 7, LINEAGE_ROUND, 'x');
    claiming(theirs, LINEAGE_PARTIAL, 0);
    theirs->reached = 7;
    theirs->cursor = 5;
    expect(ours, theirs, (struct lineage_base){.foreign = true});
}

static void test_a_partial_copy_filled_from_another_history_has_forked(void **state)
{
    L ours = history(4, 'a');
    L theirs = claiming(history(2, 'a'), LINEAGE_PARTIAL, 4);
    add(theirs, 6, LINEAGE_ROUND, 'x');
    theirs->reached = 6;
    theirs->cursor = 10;
    expect(ours, theirs, (struct lineage_base){.base = 4, .forked = true});
}

static void test_a_fork_falls_back_to_the_newest_common_ancestor(void **state)
{
    L ours = history(5, 'a');
    L theirs = claiming(history(3, 'a'), LINEAGE_FORK, 6);
    expect(ours, theirs, (struct lineage_base){.base = 6, .forked = true});
    add(theirs, 8, LINEAGE_ROUND, 'x'); /* same number as ours, another state */
    expect(ours, theirs, (struct lineage_base){.base = 6, .forked = true});
}

static void test_a_replica_of_a_fork_has_forked(void **state)
{
    L ours = history(5, 'a');
    L theirs = history(3, 'a');
    add(theirs, 8, LINEAGE_HANDOVER, 'x');
    claiming(theirs, LINEAGE_REPLICA, 8);
    expect(ours, theirs, (struct lineage_base){.base = 6, .forked = true});
}

static void test_a_partial_copy_of_a_fork_loses_its_cursor(void **state)
{
    L ours = history(5, 'a');
    L theirs = history(3, 'a');
    add(theirs, 8, LINEAGE_ROUND, 'x');
    add(theirs, 10, LINEAGE_ROUND, 'x');
    claiming(theirs, LINEAGE_PARTIAL, 8);
    theirs->reached = 10;
    theirs->cursor = 99;
    expect(ours, theirs, (struct lineage_base){.base = 6, .forked = true});
}

static void test_a_second_owner_counts_as_forked(void **state)
{
    L ours = history(5, 'a');
    L theirs = history(5, 'a');
    expect(ours, theirs, (struct lineage_base){.base = 10, .forked = true});
}

static void test_equal_numbers_with_different_ids_are_not_common(void **state)
{
    L ours = history(4, 'a');
    L theirs = claiming(history(4, 'x'), LINEAGE_REPLICA, 8);
    expect(ours, theirs, (struct lineage_base){.base = 1, .forked = true});
}

static void test_two_hosts_with_the_same_base_image_share_a_replica(void **state)
{
    L ours = history(4, 'a');
    L theirs = lineage_new(&other_disk, SIZE);
    add(theirs, 1, LINEAGE_BASE, 'b');
    claiming(theirs, LINEAGE_PARTIAL, 1);
    expect(ours, theirs, (struct lineage_base){.base = 1});
}

static void test_a_disk_with_nothing_in_common_is_foreign(void **state)
{
    L ours = history(4, 'a');
    L theirs = lineage_new(&other_disk, SIZE);
    add(theirs, 1, LINEAGE_BASE, 'c');
    claiming(theirs, LINEAGE_REPLICA, 1);
    expect(ours, theirs, (struct lineage_base){.foreign = true});
    L empty = claiming(lineage_new(&other_disk, SIZE), LINEAGE_PARTIAL, 0);
    expect(ours, empty, (struct lineage_base){.foreign = true});
}

static void test_a_disk_of_another_size_is_foreign(void **state)
{
    L ours = history(4, 'a');
    L theirs = claiming(history(4, 'a'), LINEAGE_REPLICA, 8);
    theirs->size = SIZE / 2;
    expect(ours, theirs, (struct lineage_base){.foreign = true});
}

static void test_a_split_copy_is_nobodys_base(void **state)
{
    L ours = history(4, 'a');
    L theirs = claiming(history(4, 'a'), LINEAGE_SPLIT, 4);
    expect(ours, theirs, (struct lineage_base){.foreign = true});
}

static void test_a_replica_whose_entry_was_pruned_falls_back_to_the_base(void **state)
{
    L ours = history(1, 'a');
    for (uint32_t g = 10; g < 10 + 3 * LINEAGE_MAX_ENTRIES; g++)
        add(ours, g, LINEAGE_HANDOVER, 'a');
    assert_int_equal(ours->count, LINEAGE_MAX_ENTRIES);
    assert_int_equal(ours->entries[0].kind, LINEAGE_BASE);
    L theirs = claiming(history(1, 'a'), LINEAGE_REPLICA, 2);
    expect(ours, theirs, (struct lineage_base){.base = 1, .forked = true});
}

static void test_rounds_are_pruned_before_hand_overs(void **state)
{
    L l = history(2, 'a');
    for (uint32_t g = 10; g < 10 + LINEAGE_MAX_ENTRIES; g++)
        add(l, g, LINEAGE_ROUND, 'a');
    assert_non_null(lineage_find(l, 1));
    assert_non_null(lineage_find(l, 2));
    assert_non_null(lineage_find(l, 4));
    assert_null(lineage_find(l, 10));
    assert_int_equal(lineage_newest(l)->generation, 10 + LINEAGE_MAX_ENTRIES - 1);
}

static void test_what_the_claim_names_is_never_pruned(void **state)
{
    L l = claiming(history(2, 'a'), LINEAGE_PARTIAL, 2);
    add(l, 9, LINEAGE_ROUND, 'a');
    l->reached = 9;
    for (uint32_t g = 10; g < 10 + 2 * LINEAGE_MAX_ENTRIES; g++)
        add(l, g, LINEAGE_HANDOVER, 'a');
    assert_non_null(lineage_find(l, 2));
    assert_non_null(lineage_find(l, 9));
}

static void test_generations_must_grow(void **state)
{
    L l = history(2, 'a');
    struct id id = id_of(4, 'a');
    assert_int_equal(lineage_add(l, 4, &id, LINEAGE_ROUND, "h", 0), -EINVAL);
    assert_int_equal(lineage_add(l, 3, &id, LINEAGE_ROUND, "h", 0), -EINVAL);
    assert_int_equal(lineage_add(l, UINT32_MAX, &id, LINEAGE_ROUND, "h", 0), -EINVAL);
    assert_int_equal(l->count, 3);
}

/* --- bytes --------------------------------------------------------------------------------------------- */

static void test_encoding_and_decoding_gives_the_same(void **state)
{
    L l = claiming(history(3, 'a'), LINEAGE_PARTIAL, 4);
    l->reached = 6;
    l->cursor = 77;
    L back = NULL;
    _cleanup_free_ void *bytes = NULL, *again = NULL;
    size_t size, again_size;
    assert_int_equal(lineage_encode(l, &bytes, &size), 0);
    assert_int_equal(lineage_decode(bytes, size, &back, NULL), 0);
    assert_int_equal(lineage_encode(back, &again, &again_size), 0);
    assert_int_equal(size, again_size);
    assert_memory_equal(bytes, again, size);
    assert_string_equal(back->entries[2].host, "host");
}

static int decode_split(struct lineage *l)
{
    L back = NULL;
    _cleanup_free_ void *bytes = NULL;
    size_t size;
    assert_int_equal(lineage_encode(l, &bytes, &size), 0);
    return lineage_decode(bytes, size, &back, NULL);
}

static void test_a_split_copys_newest_entry_is_its_hand_over(void **state)
{
    L l = claiming(history(3, 'a'), LINEAGE_SPLIT, 4);
    l->reached = 6;
    l->cursor = 77;
    add(l, 9, LINEAGE_HANDOVER, 'a');
    assert_int_equal(decode_split(l), 0);
    add(l, 10, LINEAGE_ROUND, 'a');
    assert_int_equal(decode_split(l), -EBADMSG);
}

/* Changes `width` bytes at `offset`, mends the hash, expects refusal. */
static void expect_refused(size_t offset, uint64_t value, size_t width, int error, const char *text)
{
    L l = claiming(history(3, 'a'), LINEAGE_REPLICA, 4);
    L back = NULL;
    _cleanup_free_ uint8_t *bytes = NULL;
    size_t size;
    assert_int_equal(lineage_encode(l, (void **)&bytes, &size), 0);
    value = htole64(value);
    memcpy(bytes + offset, &value, width);
    put_le64(bytes + size - 8, XXH3_64bits(bytes, size - 8));
    struct err err = ERR_NONE;
    assert_int_equal(lineage_decode(bytes, size, &back, &err), error);
    assert_non_null(strstr(err.text, text));
    assert_null(back);
}

static void test_hostile_bytes_are_refused(void **state)
{
    expect_refused(0, 'X', 1, -EBADMSG, "no lineage");
    expect_refused(8, 2, 4, -EPROTONOSUPPORT, "version 2");
    expect_refused(12, 9, 4, -EBADMSG, "length");
    expect_refused(32, 0, 8, -EBADMSG, "no disk has");
    expect_refused(32, 513, 8, -EBADMSG, "no disk has");
    expect_refused(32, UINT64_MAX - 511, 8, -EBADMSG, "no disk has");
    expect_refused(40, 9, 4, -EBADMSG, "claim 9");
    expect_refused(44, 0, 4, -EBADMSG, "of nothing");
    expect_refused(44, 5, 4, -EBADMSG, "does not list");
    expect_refused(48, 6, 4, -EBADMSG, "cursor");
    expect_refused(52, 3, 4, -EBADMSG, "length");
    expect_refused(52, UINT32_MAX, 4, -EBADMSG, "length");
    expect_refused(56, 1, 8, -EBADMSG, "cursor");
    expect_refused(64, 0, 4, -EBADMSG, "does not follow");
    expect_refused(64 + 96, 1, 4, -EBADMSG, "does not follow");
    expect_refused(64 + 3 * 96, UINT32_MAX, 4, -EBADMSG, "does not follow");
    expect_refused(64 + 4, 4, 4, -EBADMSG, "kind 4");
    expect_refused(64 + 32, '\n', 1, -EBADMSG, "host name");
    expect_refused(64 + 32 + 63, 'x', 1, -EBADMSG, "host name");
}

static void test_a_flipped_bit_or_a_cut_is_noticed(void **state)
{
    L l = claiming(history(3, 'a'), LINEAGE_REPLICA, 4);
    L back = NULL;
    _cleanup_free_ uint8_t *bytes = NULL;
    size_t size;
    assert_int_equal(lineage_encode(l, (void **)&bytes, &size), 0);
    for (size_t i = 0; i < size; i++) {
        bytes[i] ^= 0x10;
        assert_true(lineage_decode(bytes, size, &back, NULL) < 0);
        bytes[i] ^= 0x10;
        assert_true(lineage_decode(bytes, i, &back, NULL) < 0);
    }
    assert_null(back);
}

static void expect_shared(const struct lineage *a, const struct lineage *b, uint32_t want)
{
    assert_int_equal(lineage_shared(a, b), want);
    assert_int_equal(lineage_shared(b, a), want); /* whoever asks */
}

static void test_an_owner_shares_with_its_replica_what_that_has_whole(void **state)
{
    L ours = claiming(history(3, 'a'), LINEAGE_OWNER, 0);
    L theirs = claiming(history(3, 'a'), LINEAGE_REPLICA, 4);
    expect_shared(ours, theirs, 4);
    theirs->claim = LINEAGE_PARTIAL;
    theirs->reached = 6;
    expect_shared(ours, theirs, 4);
}

static void test_two_replicas_share_what_the_older_one_has(void **state)
{
    L one = claiming(history(4, 'a'), LINEAGE_REPLICA, 8);
    L other = claiming(history(2, 'a'), LINEAGE_REPLICA, 4);
    expect_shared(one, other, 4);
}

static void test_a_fork_shares_what_it_began_with(void **state)
{
    L ours = claiming(history(3, 'a'), LINEAGE_OWNER, 0);
    L fork = claiming(history(1, 'a'), LINEAGE_FORK, 2);
    add(fork, 4, LINEAGE_ROUND, 'f');
    expect_shared(ours, fork, 2);
}

static void test_nothing_is_shared_with_another_history_or_size(void **state)
{
    L ours = claiming(history(3, 'a'), LINEAGE_OWNER, 0);
    L empty = claiming(history(3, 'a'), LINEAGE_PARTIAL, 0);
    L foreign = claiming(lineage_new(&other_disk, SIZE), LINEAGE_OWNER, 0);
    L larger = claiming(history(3, 'a'), LINEAGE_REPLICA, 6);
    larger->size *= 2;
    add(foreign, 3, LINEAGE_HANDOVER, 'x');
    expect_shared(ours, empty, 0);
    expect_shared(ours, foreign, 0);
    expect_shared(ours, larger, 0);
}

static void test_a_copy_holds_a_generation_by_number_and_id_and_as_far_as_it_is_whole(void **state)
{
    L l = claiming(history(3, 'a'), LINEAGE_REPLICA, 4);
    struct id four = id_of(4, 'a'), six = id_of(6, 'a');
    assert_true(lineage_holds(l, 4, &four));
    assert_false(lineage_holds(l, 4, &six));
    assert_false(lineage_holds(l, 6, &six));
    l->claim = LINEAGE_OWNER;
    assert_true(lineage_holds(l, 6, &six));
    assert_false(lineage_holds(l, 5, &six));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_replica_of_the_last_hand_over),
        cmocka_unit_test(test_a_replica_two_hand_overs_old),
        cmocka_unit_test(test_a_replica_that_knows_later_rounds_than_it_holds),
        cmocka_unit_test(test_a_third_host_whose_history_goes_on_without_ours),
        cmocka_unit_test(test_a_partial_copy_keeps_its_cursor),
        cmocka_unit_test(test_a_first_transfer_cut_short_counts),
        cmocka_unit_test(test_a_first_transfer_from_another_history_is_foreign),
        cmocka_unit_test(test_a_partial_copy_filled_from_another_history_has_forked),
        cmocka_unit_test(test_a_fork_falls_back_to_the_newest_common_ancestor),
        cmocka_unit_test(test_a_replica_of_a_fork_has_forked),
        cmocka_unit_test(test_a_partial_copy_of_a_fork_loses_its_cursor),
        cmocka_unit_test(test_a_second_owner_counts_as_forked),
        cmocka_unit_test(test_equal_numbers_with_different_ids_are_not_common),
        cmocka_unit_test(test_two_hosts_with_the_same_base_image_share_a_replica),
        cmocka_unit_test(test_a_disk_with_nothing_in_common_is_foreign),
        cmocka_unit_test(test_a_disk_of_another_size_is_foreign),
        cmocka_unit_test(test_a_split_copy_is_nobodys_base),
        cmocka_unit_test(test_a_replica_whose_entry_was_pruned_falls_back_to_the_base),
        cmocka_unit_test(test_rounds_are_pruned_before_hand_overs),
        cmocka_unit_test(test_what_the_claim_names_is_never_pruned),
        cmocka_unit_test(test_generations_must_grow),
        cmocka_unit_test(test_a_split_copys_newest_entry_is_its_hand_over),
        cmocka_unit_test(test_encoding_and_decoding_gives_the_same),
        cmocka_unit_test(test_hostile_bytes_are_refused),
        cmocka_unit_test(test_a_flipped_bit_or_a_cut_is_noticed),
        cmocka_unit_test(test_an_owner_shares_with_its_replica_what_that_has_whole),
        cmocka_unit_test(test_two_replicas_share_what_the_older_one_has),
        cmocka_unit_test(test_a_fork_shares_what_it_began_with),
        cmocka_unit_test(test_nothing_is_shared_with_another_history_or_size),
        cmocka_unit_test(test_a_copy_holds_a_generation_by_number_and_id_and_as_far_as_it_is_whole),
    };
    return cmocka_run_group_tests_name("disk lineage", tests, NULL, NULL);
}
