/* SPDX-License-Identifier: Apache-2.0
 *
 * What an image without a history gives: keyed sums, what of it is found, and that nothing of it is lost when
 * a copy has to be begun again.
 */
#include "disk_test.h"

#include "disk/donor.h"

#include <sys/stat.h>

#define BLOCKS 6u
#define TAIL 512u
#define SIZE (BLOCKS * DISK_BLOCK + TAIL)

static const uint8_t key[SUMS_KEY] = "an entirely different key";
static uint8_t content[SIZE];
static struct sums *sums;

static int setup(void **state)
{
    for (size_t i = 0; i < sizeof content; i++)
        content[i] = (uint8_t)(i / DISK_BLOCK * 31 + i % 251);
    assert_ok(sums_new(key, &sums, &err));
    return make_folder(state);
}

static int teardown(void **state)
{
    sums_free(sums);
    return drop_folder(state);
}

static void write_image(const char *path, size_t size)
{
    assert_ok(file_replace(path, content, size, 0600, &err));
}

static bool there(const char *name)
{
    return access(in_folder(name), F_OK) == 0;
}

static uint64_t look(uint64_t block, unsigned count, size_t size, const uint8_t (*wanted)[SUMS_SIZE])
{
    static uint8_t data[SIZE];
    uint64_t differ = 0;
    struct donor *donor;
    assert_ok(donor_open(in_folder("d"), &donor, &err));
    assert_ok(donor_look(donor, sums, block, count, size, wanted, data, &differ, &err));
    donor_close(donor);
    for (unsigned i = 0; i < count; i++) {
        size_t at = i * (size_t)DISK_BLOCK;
        if (!(differ >> i & 1))
            assert_memory_equal(data + at, content + block * DISK_BLOCK + at, MIN(size - at, DISK_BLOCK));
    }
    return differ;
}

/* The expected ones are Python's hashlib.blake2b(block, key=key, digest_size=16), of the first block and of
 * the last, which is short. */
static void a_sum_depends_on_content_and_key(void **state)
{
    static const uint8_t first[SUMS_SIZE] = {0xf0, 0x9c, 0x66, 0xb0, 0x79, 0xe4, 0x23, 0x0e, 0xc4, 0x1e, 0x14, 0xc0, 0xbb, 0x07, 0xc6, 0x20};
    static const uint8_t last[SUMS_SIZE] = {0x97, 0xf7, 0x95, 0xe5, 0x05, 0x62, 0x4c, 0xb8, 0x67, 0xc9, 0xde, 0x2b, 0x20, 0xa5, 0x50, 0x54};
    uint8_t some[BLOCKS + 1][SUMS_SIZE], others[BLOCKS + 1][SUMS_SIZE], other_key[SUMS_KEY] = {0};
    struct sums *other;
    assert_ok(sums_make(sums, content, SIZE, some, &err));
    assert_memory_equal(some[0], first, SUMS_SIZE);
    assert_memory_equal(some[BLOCKS], last, SUMS_SIZE);
    assert_ok(sums_new(other_key, &other, &err));
    assert_ok(sums_make(other, content, SIZE, others, &err));
    sums_free(other);
    for (size_t i = 0; i <= BLOCKS; i++)
        assert_memory_not_equal(some[i], others[i], SUMS_SIZE);
    content[2 * DISK_BLOCK] ^= 1;
    assert_ok(sums_make(sums, content, SIZE, others, &err));
    for (size_t i = 0; i <= BLOCKS; i++)
        assert_int_equal(memcmp(some[i], others[i], SUMS_SIZE) == 0, i != 2);
}

static void what_is_alike_is_found(void **state)
{
    uint8_t wanted[BLOCKS + 1][SUMS_SIZE];
    assert_ok(sums_make(sums, content, SIZE, wanted, &err));
    write_image(in_folder("d.donor"), SIZE);
    assert_int_equal(look(0, BLOCKS + 1, SIZE, (const uint8_t(*)[SUMS_SIZE])wanted), 0);
    assert_int_equal(look(3, 2, 2 * DISK_BLOCK, (const uint8_t(*)[SUMS_SIZE])wanted + 3), 0);
    assert_int_equal(look(2, 2, 2 * DISK_BLOCK, (const uint8_t(*)[SUMS_SIZE])wanted + 3), 3);
    wanted[1][15] ^= 0x80;
    assert_int_equal(look(0, BLOCKS + 1, SIZE, (const uint8_t(*)[SUMS_SIZE])wanted), 2);
}

/* A donor of another size; beyond its end there is nothing, not even a part of a block. */
static void a_short_donor(void **state)
{
    uint8_t wanted[BLOCKS + 1][SUMS_SIZE];
    assert_ok(sums_make(sums, content, SIZE, wanted, &err));
    write_image(in_folder("d.donor"), 2 * DISK_BLOCK + TAIL);
    assert_int_equal(look(0, BLOCKS + 1, SIZE, (const uint8_t(*)[SUMS_SIZE])wanted), 0x7c);
    assert_int_equal(look(5, 2, DISK_BLOCK + TAIL, (const uint8_t(*)[SUMS_SIZE])wanted + 5), 3);
}

static void what_is_needed_no_more_takes_no_room(void **state)
{
    uint8_t wanted[BLOCKS + 1][SUMS_SIZE];
    struct donor *donor;
    assert_ok(sums_make(sums, content, SIZE, wanted, &err));
    write_image(in_folder("d.donor"), SIZE);
    uint64_t before = donor_bytes(in_folder("d"));
    assert_ok(donor_open(in_folder("d"), &donor, &err));
    donor_punch(donor, 0);
    donor_punch(donor, 4);
    donor_close(donor);
    assert_int_equal(look(0, BLOCKS + 1, SIZE, (const uint8_t(*)[SUMS_SIZE])wanted), 0x0f);
    assert_true(donor_bytes(in_folder("d")) + 4 * DISK_BLOCK <= before);
}

static void a_copy_becomes_the_donor_once(void **state)
{
    assert_false(donor_possible(in_folder("d")));
    assert_ok(donor_put_aside(in_folder("d"), &err)); /* nothing there */
    assert_false(there("d.donor"));

    struct disk *disk = new_disk(in_folder("d"), SIZE);
    assert_int_equal(disk_write(disk, content, DISK_BLOCK, 0, true), 0);
    assert_int_equal(donor_put_aside(in_folder("d"), NULL), -EBUSY);
    assert_true(there("d") && there("d.lineage") && !there("d.donor"));
    close_disk(disk);
    assert_true(donor_possible(in_folder("d")));
    assert_int_equal(donor_bytes(in_folder("d")), 0);
    assert_ok(donor_put_aside(in_folder("d"), &err));
    assert_true(there("d.donor") && !there("d") && !there("d.lineage") && !there("d.map"));
    assert_true(donor_bytes(in_folder("d")) >= DISK_BLOCK);

    /* A copy that was begun beside it is no donor. */
    struct stat before, after;
    assert_int_equal(stat(in_folder("d.donor"), &before), 0);
    disk = new_disk(in_folder("d"), SIZE);
    assert_int_equal(disk_write(disk, content + DISK_BLOCK, DISK_BLOCK, 0, true), 0);
    close_disk(disk);
    assert_ok(donor_put_aside(in_folder("d"), &err));
    assert_false(there("d"));
    assert_int_equal(stat(in_folder("d.donor"), &after), 0);
    assert_int_equal(before.st_ino, after.st_ino);

    donor_remove(in_folder("d"));
    assert_false(donor_possible(in_folder("d")));
    struct donor *donor;
    assert_int_equal(donor_open(in_folder("d"), &donor, NULL), -ENOENT);
}

/* A link that leads elsewhere is nobody's donor. */
static void a_link_is_no_donor(void **state)
{
    struct donor *donor;
    write_image(in_folder("elsewhere"), SIZE);
    assert_int_equal(symlink(in_folder("elsewhere"), in_folder("d.donor")), 0);
    assert_int_equal(donor_bytes(in_folder("d")), 0);
    assert_true(donor_open(in_folder("d"), &donor, NULL) < 0);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(a_sum_depends_on_content_and_key), TEST(what_is_alike_is_found),
        TEST(a_short_donor),                    TEST(what_is_needed_no_more_takes_no_room),
        TEST(a_copy_becomes_the_donor_once),    TEST(a_link_is_no_donor),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
