/* SPDX-License-Identifier: Apache-2.0
 *
 * What a source with the right key may send to the disks of an arrival, and how its lies end: an error that
 * says what was wrong, and a disk as it was.
 */
#include "../disk/split_test.h"

#include "move/arrival.h"

#include <sys/mman.h>
#include <xxhash.h>

#define SIZE ((size_t)SPLIT_SIZE)

static struct disk *disk;
static struct arrival arrival;
static const struct move_host host = {.name = "b"};
static uint8_t payload[FRAME_MAX_PAYLOAD];

struct disk *__wrap_machine_disk(const struct machine *machine, size_t index);
struct disk *__wrap_machine_disk(const struct machine *machine, size_t index)
{
    assert_int_equal(index, 0);
    return disk;
}

static int setup(void **state)
{
    if (make_folder(state) < 0)
        return -1;
    disk = partial_disk(in_folder("d"));
    memset(&arrival, 0, sizeof arrival);
    arrival.host = &host;
    arrival.config.disk_count = 1;
    arrival.receiving = true;
    arrival.split = true;
    pthread_mutex_init(&arrival.lock, NULL);
    return session_init(&arrival.session, 0, NULL);
}

static int teardown(void **state)
{
    for (size_t i = 0; i < ARRIVAL_MAX_CLAIMS; i++)
        lineage_free(arrival.claims[i].lineage);
    free(arrival.missing[0].bits);
    session_done(&arrival.session);
    pthread_mutex_destroy(&arrival.lock);
    disk_close(disk, NULL);
    return drop_folder(state);
}

/* --- runs ----------------------------------------------------------------------------------------------- */

/* Puts a good run with `size` bytes of `letter` into `payload`; the whole size. */
static size_t make_run(struct wire_run run, char letter, size_t size)
{
    memset(payload + WIRE_RUN_SIZE, letter, size);
    run.generation = HANDOVER;
    run.checksum = size ? XXH3_64bits(payload + WIRE_RUN_SIZE, size) : 0;
    wire_run_encode(&run, payload);
    return WIRE_RUN_SIZE + size;
}

static int give(size_t size, struct err *err)
{
    return arrival_run(&arrival, payload, size, err);
}

static void assert_as_it_was(void)
{
    assert_int_equal(look(disk, SIZE, 0), 'o');
}

static void refused(struct wire_run run, size_t size, const char *words)
{
    struct err why = ERR_NONE;
    int r = give(make_run(run, 'x', size), &why);
    if (r != -EPROTO || !strstr(why.text, words))
        fail_msg("block %llu, %u blocks, %zu bytes: %d: %s", (unsigned long long)run.block, run.count, size,
                 r, why.text);
    assert_as_it_was();
}

static void test_an_honest_run_is_written(void **state)
{
    assert_ok(give(make_run((struct wire_run){.block = 3, .count = 2}, 'n', 2 * DISK_BLOCK), &err));
    assert_int_equal(look_at(disk, 2), 'o');
    assert_int_equal(look(disk, 2 * DISK_BLOCK, 3 * DISK_BLOCK), 'n');
    assert_int_equal(look_at(disk, 5), 'o');
}

static void test_runs_beyond_the_disks_end_are_refused(void **state)
{
    refused((struct wire_run){.block = SPLIT_BLOCKS, .count = 1}, DISK_BLOCK, "beyond the end");
    refused((struct wire_run){.block = SPLIT_BLOCKS - 1, .count = 2}, 2 * DISK_BLOCK, "beyond the end");
    refused((struct wire_run){.block = UINT64_MAX / DISK_BLOCK - 2, .count = 1}, DISK_BLOCK,
            "beyond the end");
    refused((struct wire_run){.block = UINT64_MAX, .count = 1}, DISK_BLOCK, "a run of");
    refused((struct wire_run){.block = UINT64_MAX - 1, .count = UINT32_MAX, .flags = WIRE_RUN_ZERO}, 0,
            "a run of");
    refused((struct wire_run){.block = 0, .count = UINT32_MAX, .flags = WIRE_RUN_ZERO}, 0, "beyond the end");
    refused((struct wire_run){.block = 1, .count = SPLIT_BLOCKS, .flags = WIRE_RUN_ZERO}, 0,
            "beyond the end");
}

static void test_runs_of_other_disks_and_out_of_turn_are_refused(void **state)
{
    refused((struct wire_run){.disk = 1, .count = 1}, DISK_BLOCK, "not open");
    refused((struct wire_run){.disk = UINT16_MAX, .count = 1}, DISK_BLOCK, "not open");
    arrival.receiving = false;
    refused((struct wire_run){.count = 1}, DISK_BLOCK, "not open");
}

static void test_data_of_another_length_than_the_run_is_refused(void **state)
{
    refused((struct wire_run){.count = 0}, 0, "a run of 0");
    refused((struct wire_run){.count = 2}, DISK_BLOCK, "a run of 2");
    refused((struct wire_run){.count = 1}, 2 * DISK_BLOCK, "a run of 1");
    refused((struct wire_run){.count = 1}, 512, "came with 512 bytes"); /* short, and not the last one */
    refused((struct wire_run){.count = 1, .flags = WIRE_RUN_ZERO}, DISK_BLOCK, "a zero run with");
    refused((struct wire_run){.count = 1, .flags = 2}, DISK_BLOCK, "flags");
    refused((struct wire_run){.count = 65}, 65 * DISK_BLOCK, "a run of 65");
    struct err why = ERR_NONE;
    make_run((struct wire_run){.count = 1}, 'x', DISK_BLOCK);
    for (size_t size = 0; size < WIRE_RUN_SIZE; size++)
        assert_int_equal(give(size, &why), -EPROTO);
    assert_as_it_was();
}

static void test_overlapping_runs_leave_the_later_one(void **state)
{
    assert_ok(give(make_run((struct wire_run){.block = 0, .count = 4}, '1', 4 * DISK_BLOCK), &err));
    assert_ok(give(make_run((struct wire_run){.block = 2, .count = 4}, '2', 4 * DISK_BLOCK), &err));
    assert_ok(give(make_run((struct wire_run){.block = 3, .count = 1, .flags = WIRE_RUN_ZERO}, 0, 0), &err));
    assert_int_equal(look(disk, 2 * DISK_BLOCK, 0), '1');
    assert_int_equal(look_at(disk, 2), '2');
    assert_int_equal(look_at(disk, 3), 0);
    assert_int_equal(look(disk, 2 * DISK_BLOCK, 4 * DISK_BLOCK), '2');
    assert_int_equal(look_at(disk, 6), 'o');
}

/* Whichever bit of the data it is, and those of the checksum too. */
static void test_a_flipped_bit_is_found_named_and_not_written(void **state)
{
    size_t size = make_run((struct wire_run){.block = 7, .count = 2}, 'x', 2 * DISK_BLOCK);
    for (size_t bit = 24 * 8; bit < size * 8; bit += bit < 40 * 8 ? 1 : 509) {
        struct err why = ERR_NONE;
        payload[bit / 8] ^= (uint8_t)(1U << bit % 8);
        assert_int_equal(give(size, &why), -EBADMSG);
        assert_non_null(strstr(why.text, "blocks 7 to 8 of disk 0 arrived damaged"));
        payload[bit / 8] ^= (uint8_t)(1U << bit % 8);
    }
    assert_as_it_was();
    assert_ok(give(size, &err));
}

/* --- claims --------------------------------------------------------------------------------------------- */

static int claim_bytes(struct wire_claim head, const void *bytes, size_t size, struct err *err)
{
    struct mail *mail = calloc(1, sizeof *mail + WIRE_CLAIM_SIZE + size + 1);
    mail->frame = (struct frame){.type = FRAME_LINEAGE, .length = (uint32_t)(WIRE_CLAIM_SIZE + size)};
    wire_claim_encode(&head, mail->payload);
    memcpy(mail->payload + WIRE_CLAIM_SIZE, bytes, size);
    int r = arrival_claim(&arrival, mail, err);
    free(mail);
    return r;
}

static int claim(struct wire_claim head, enum lineage_claim what, struct err *err)
{
    _cleanup_(lineage_cleanup) struct lineage *lineage = arriving_lineage(disk, what);
    lineage->complete = what == LINEAGE_REPLICA ? HANDOVER : 0;
    _cleanup_free_ void *bytes = NULL;
    size_t size;
    assert_int_equal(lineage_encode(lineage, &bytes, &size), 0);
    return claim_bytes(head, bytes, size, err);
}

static void test_only_the_hand_overs_claim_may_call_the_copy_whole(void **state)
{
    static const enum lineage_claim too_much[] = {LINEAGE_REPLICA, LINEAGE_OWNER, LINEAGE_FORK,
                                                  LINEAGE_SPLIT};
    struct err why = ERR_NONE;
    for (size_t i = 0; i < ARRAY_SIZE(too_much); i++)
        assert_true(claim((struct wire_claim){.sequence = 1}, too_much[i], &why) < 0);
    assert_int_equal(
        claim((struct wire_claim){.sequence = 1, .flags = WIRE_CLAIM_FINAL}, LINEAGE_PARTIAL, &why), -EPROTO);
    assert_int_equal(
        claim((struct wire_claim){.sequence = 1, .flags = WIRE_CLAIM_FINAL}, LINEAGE_OWNER, &why), -EPROTO);
    assert_int_equal(claim((struct wire_claim){.sequence = 1, .flags = WIRE_CLAIM_FINAL | WIRE_CLAIM_SPLIT},
                           LINEAGE_REPLICA, &why),
                     -EPROTO);
}

static void test_claims_for_a_mark_that_does_not_come_are_bounded(void **state)
{
    struct err why = ERR_NONE;
    for (unsigned i = 0; i < ARRIVAL_MAX_CLAIMS; i++)
        assert_ok(claim((struct wire_claim){.sequence = 1000 + i}, LINEAGE_PARTIAL, &err));
    assert_int_equal(claim((struct wire_claim){.sequence = 1}, LINEAGE_PARTIAL, &why), -EMSGSIZE);
}

static void test_claims_that_contradict_leave_the_newest(void **state)
{
    struct err why = ERR_NONE;
    _cleanup_(lineage_cleanup) struct lineage *lineage = NULL;
    assert_ok(claim((struct wire_claim){.sequence = 2, .flags = WIRE_CLAIM_FINAL}, LINEAGE_REPLICA, &err));
    assert_ok(claim((struct wire_claim){.sequence = 1}, LINEAGE_PARTIAL, &err));
    assert_ok(arrival_apply_claims(&arrival, 0, &err)); /* for no mark that has passed */
    assert_ok(disk_lineage(disk, &lineage, &err));
    assert_int_equal(lineage->claim, LINEAGE_PARTIAL);
    assert_ok(arrival_apply_claims(&arrival, 2, &err));
    lineage_cleanup(&lineage);
    assert_ok(disk_lineage(disk, &lineage, &err));
    assert_int_equal(lineage->claim, LINEAGE_REPLICA);
    /* What is whole now is not written to any more, whatever still comes. */
    assert_int_equal(give(make_run((struct wire_run){.block = 3, .count = 1}, 'x', DISK_BLOCK), &why),
                     -EROFS);
    assert_as_it_was();
}

static void test_claims_that_make_no_sense_are_refused(void **state)
{
    struct err why = ERR_NONE;
    static const uint8_t noise[300] = {0xff, 1, 2, 3};
    assert_int_equal(claim((struct wire_claim){.disk = 1, .sequence = 1}, LINEAGE_PARTIAL, &why), -EPROTO);
    assert_true(claim_bytes((struct wire_claim){.sequence = 1}, noise, sizeof noise, &why) < 0);
    assert_true(claim_bytes((struct wire_claim){.sequence = 1}, noise, 0, &why) < 0);
    for (size_t i = 0; i < ARRIVAL_MAX_CLAIMS; i++)
        assert_null(arrival.claims[i].lineage);
}

static int missing(uint16_t which, size_t size, struct err *err)
{
    struct mail *mail = calloc(1, sizeof *mail + WIRE_CLAIM_SIZE + size + 1);
    mail->frame = (struct frame){.type = FRAME_MISSING, .length = (uint32_t)(WIRE_CLAIM_SIZE + size)};
    wire_claim_encode(&(struct wire_claim){.disk = which}, mail->payload);
    int r = arrival_missing(&arrival, mail, err);
    free(mail);
    return r;
}

static void test_what_a_disk_lacks_is_said_once_and_of_a_disk_that_there_is(void **state)
{
    struct err why = ERR_NONE;
    arrival.fetch = (struct fetch *)&arrival; /* so that none is made; nobody looks into it */
    assert_int_equal(missing(1, 2, &why), -EPROTO);
    assert_ok(missing(0, 2, &err));
    assert_int_equal(missing(0, 2, &why), -EPROTO);
    free(TAKE_PTR(arrival.missing[0].bits));
    arrival.split = false;
    assert_int_equal(missing(0, 2, &why), -EPROTO);
    arrival.fetch = NULL;
}

/* A picture of another size than the disk's. */
static void test_what_a_disk_lacks_must_be_of_its_size(void **state)
{
    struct err why = ERR_NONE;
    const struct wire_claim last = {.sequence = 1, .flags = WIRE_CLAIM_FINAL | WIRE_CLAIM_SPLIT};
    arrival.fetch = (struct fetch *)&arrival;
    assert_ok(missing(0, 1000, &err));
    assert_ok(claim(last, LINEAGE_PARTIAL, &err));
    assert_true(arrival_apply_claims(&arrival, 1, &why) < 0);
    arrival.fetch = NULL;
}

/* --- memory --------------------------------------------------------------------------------------------- */

static void test_a_seed_that_makes_no_sense_is_refused(void **state)
{
    _cleanup_json_ json_t *base = json_pack("{s:s}", "memory_seed", "0011"), *none = json_object();
    const struct id vm = {{1}};
    const struct checkpoint_head head = {.vm = vm, .ram = 2 * MiB};
    int ram = memfd_create("ram", MFD_CLOEXEC);
    assert_int_equal(ftruncate(ram, (off_t)head.ram), 0);
    assert_int_equal(arrival_hash_checkpoint(&arrival, base, NULL), 0); /* there is no checkpoint */
    assert_ok(checkpoint_save(folder, ram, &head, &err));
    assert_ok(checkpoint_open(folder, &vm, head.ram, &arrival.checkpoint, &err));
    assert_int_equal(arrival_hash_checkpoint(&arrival, base, NULL), -EPROTO);
    assert_int_equal(arrival_hash_checkpoint(&arrival, none, NULL), 0); /* the source does without */
    assert_false(arrival.telling);
    checkpoint_close(arrival.checkpoint);
    close(ram);
}

static void test_sums_out_of_turn_are_refused(void **state)
{
    struct err why = ERR_NONE;
    wire_sums_encode(&(struct wire_sums){.count = 1}, payload);
    assert_int_equal(arrival_sums(&arrival, NULL, payload, WIRE_SUMS_SIZE + WIRE_SUM_SIZE, &why), -EPROTO);
    assert_non_null(strstr(why.text, "no donor"));
    wire_sums_encode(&(struct wire_sums){.disk = UINT16_MAX, .count = 1}, payload);
    assert_int_equal(arrival_sums(&arrival, NULL, payload, WIRE_SUMS_SIZE + WIRE_SUM_SIZE, &why), -EPROTO);
    wire_sums_encode(&(struct wire_sums){.count = 65}, payload);
    assert_int_equal(arrival_sums(&arrival, NULL, payload, WIRE_SUMS_SIZE + 65 * WIRE_SUM_SIZE, &why),
                     -EPROTO);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_an_honest_run_is_written),
        TEST(test_runs_beyond_the_disks_end_are_refused),
        TEST(test_runs_of_other_disks_and_out_of_turn_are_refused),
        TEST(test_data_of_another_length_than_the_run_is_refused),
        TEST(test_overlapping_runs_leave_the_later_one),
        TEST(test_a_flipped_bit_is_found_named_and_not_written),
        TEST(test_only_the_hand_overs_claim_may_call_the_copy_whole),
        TEST(test_claims_for_a_mark_that_does_not_come_are_bounded),
        TEST(test_claims_that_contradict_leave_the_newest),
        TEST(test_claims_that_make_no_sense_are_refused),
        TEST(test_what_a_disk_lacks_is_said_once_and_of_a_disk_that_there_is),
        TEST(test_what_a_disk_lacks_must_be_of_its_size),
        TEST(test_a_seed_that_makes_no_sense_is_refused),
        TEST(test_sums_out_of_turn_are_refused),
    };
    return cmocka_run_group_tests_name("arrival_lies", tests, NULL, NULL);
}
