/* SPDX-License-Identifier: Apache-2.0
 *
 * Making disks, with and without a base image, side files for images that have none, removal.
 */
#include "disk_test.h"

#include "disk/verify.h"

#include <dirent.h>

#define SIZE (32 * MiB)

static const struct id base_hash = {{0xba, 0x5e}};

static int setup(void **state)
{
    boot = 1;
    return make_folder(state);
}

static unsigned files_in_folder(void)
{
    unsigned count = 0;
    DIR *dir = opendir(folder);
    for (struct dirent *e; (e = readdir(dir));)
        count += e->d_name[0] != '.';
    closedir(dir);
    return count;
}

/* 1 MiB of data at 0 and one odd sector at 20 MiB + 512, holes between. */
static void make_base(const char *path)
{
    int fd = open(path, O_RDWR | O_CREAT, 0600);
    static char data[MiB];
    memset(data, 'b', sizeof data);
    assert_int_equal(pwrite(fd, data, sizeof data, 0), sizeof data);
    assert_int_equal(pwrite(fd, data, 512, 20 * MiB + 512), 512);
    assert_int_equal(ftruncate(fd, 24 * MiB), 0);
    close(fd);
}

static void test_a_new_disk_is_empty_and_sparse(void **state)
{
    struct disk *disk = new_disk(in_folder("d"), SIZE);
    assert_int_equal(disk_size(disk), SIZE);
    assert_int_equal(disk_count(disk, 0, UINT32_MAX), 0);
    close_disk(disk);
    assert_int_equal(space_of(in_folder("d")), 0);
    assert_int_equal(files_in_folder(), 4);
}

static void test_a_base_image_becomes_generation_1(void **state)
{
    make_base(in_folder("base"));
    assert_ok(disk_create(in_folder("d"), SIZE, in_folder("base"), &base_hash, &err));
    struct disk *disk = open_disk(in_folder("d"), 0);
    assert_int_equal(disk_count(disk, 0, 1), 257);
    assert_int_equal(disk_count(disk, 1, UINT32_MAX), 0);
    assert_true(disk_generation(disk) > 1);
    _cleanup_(lineage_cleanup) struct lineage *lineage = NULL;
    assert_ok(disk_lineage(disk, &lineage, &err));
    assert_int_equal(lineage->count, 1);
    assert_int_equal(lineage->entries[0].generation, 1);
    assert_int_equal(lineage->entries[0].kind, LINEAGE_BASE);
    assert_true(id_equal(&lineage->entries[0].id, &base_hash));
    char data[1024];
    assert_int_equal(disk_read(disk, data, sizeof data, 20 * MiB), 0);
    assert_int_equal(data[511], 0);
    assert_int_equal(data[512], 'b');
    close_disk(disk);
    assert_true(space_of(in_folder("d")) < 2 * MiB);
}

static void test_two_disks_of_one_base_share_it(void **state)
{
    make_base(in_folder("base"));
    struct lineage *lineages[2];
    for (int i = 0; i < 2; i++) {
        const char *path = in_folder(i ? "e" : "d");
        assert_ok(disk_create(path, SIZE, in_folder("base"), &base_hash, &err));
        struct disk *disk = open_disk(path, 0);
        assert_ok(disk_lineage(disk, &lineages[i], &err));
        close_disk(disk);
    }
    struct lineage_base base;
    lineages[1]->claim = LINEAGE_PARTIAL;
    lineages[1]->complete = 1;
    lineage_compare(lineages[0], lineages[1], &base);
    assert_int_equal(base.base, 1);
    assert_false(base.foreign || base.forked);
    lineage_free(lineages[0]);
    lineage_free(lineages[1]);
}

static void test_an_image_that_is_there_is_left_alone(void **state)
{
    int fd = open(in_folder("d"), O_RDWR | O_CREAT, 0600);
    assert_int_equal(write(fd, "precious", 8), 8);
    close(fd);
    assert_int_equal(disk_create(in_folder("d"), SIZE, NULL, NULL, NULL), -EEXIST);
    struct stat st;
    assert_int_equal(stat(in_folder("d"), &st), 0);
    assert_int_equal(st.st_size, 8);
    assert_int_equal(files_in_folder(), 1);
}

static void test_failure_leaves_nothing_behind(void **state)
{
    assert_int_equal(disk_create(in_folder("d"), SIZE, in_folder("missing"), &base_hash, NULL), -ENOENT);
    make_base(in_folder("base"));
    assert_int_equal(disk_create(in_folder("d"), 4 * MiB, in_folder("base"), &base_hash, NULL), -EINVAL);
    assert_int_equal(disk_create(in_folder("d"), 1000, NULL, NULL, NULL), -EINVAL);
    assert_int_equal(disk_create(in_folder("d"), 0, NULL, NULL, NULL), -EINVAL);
    assert_int_equal(disk_create(in_folder("no/such/d"), SIZE, NULL, NULL, NULL), -ENOENT);
    assert_int_equal(files_in_folder(), 1);
    /* The last side file cannot be written: its temporary name is taken by a folder. */
    assert_int_equal(mkdir(in_folder("d.lineage.new"), 0700), 0);
    assert_true(disk_create(in_folder("d"), SIZE, NULL, NULL, NULL) < 0);
    assert_int_equal(files_in_folder(), 2);
}

static void test_side_files_left_over_are_replaced(void **state)
{
    close_disk(new_disk(in_folder("d"), SIZE));
    assert_int_equal(unlink(in_folder("d")), 0);
    struct disk *disk = new_disk(in_folder("d"), SIZE / 2);
    assert_int_equal(disk_size(disk), SIZE / 2);
    close_disk(disk);
}

static void test_a_plain_image_is_taken_on_only_when_asked(void **state)
{
    make_base(in_folder("plain"));
    struct disk *disk = NULL;
    struct err why = ERR_NONE;
    assert_int_equal(disk_open(in_folder("plain"), 0, &disk, &why), -ENOENT);
    assert_true(why.hint[0]);
    assert_int_equal(files_in_folder(), 1);
    disk = open_disk(in_folder("plain"), DISK_INIT);
    assert_int_equal(disk_count(disk, 0, UINT32_MAX), 257);
    struct id first = {0}, second = {0};
    struct lineage *lineage;
    assert_ok(disk_lineage(disk, &lineage, &err));
    first = lineage->disk;
    lineage_free(lineage);
    close_disk(disk);
    disk = open_disk(in_folder("plain"), DISK_INIT);
    assert_ok(disk_lineage(disk, &lineage, &err));
    second = lineage->disk;
    lineage_free(lineage);
    close_disk(disk);
    assert_true(id_equal(&first, &second));
}

static void test_removing_takes_everything(void **state)
{
    close_disk(new_disk(in_folder("d"), SIZE));
    assert_ok(disk_remove(in_folder("d"), &err));
    assert_int_equal(files_in_folder(), 0);
    assert_ok(disk_remove(in_folder("d"), &err));
}

/* --- verify -------------------------------------------------------------------------------------------- */

static void expect_finding(const char *text)
{
    struct disk_verdict verdict;
    assert_ok(disk_verify(in_folder("d"), &verdict, &err));
    if (!text)
        assert_int_equal(verdict.count, 0);
    else if (verdict.count == 0 || !strstr(verdict.findings[0], text))
        fail_msg("wanted \"%s\", got %s", text, verdict.count ? verdict.findings[0] : "nothing");
    disk_verdict_done(&verdict);
}

static void poke(const char *name, const void *data, size_t size, uint64_t offset)
{
    int fd = open(in_folder(name), O_RDWR);
    assert_int_equal(pwrite(fd, data, size, (off_t)offset), size);
    close(fd);
}

static void write_and_close(void)
{
    struct disk *disk = new_disk(in_folder("d"), SIZE);
    write_byte(disk, 5 * MiB);
    seal(disk);
    write_byte(disk, 6 * MiB);
    close_disk(disk);
}

static void test_verify_finds_nothing_wrong_with_a_good_disk(void **state)
{
    write_and_close();
    expect_finding(NULL);
    struct disk_verdict verdict;
    assert_ok(disk_verify(in_folder("d"), &verdict, &err));
    assert_int_equal(verdict.size, SIZE);
    assert_int_equal(verdict.written, 2);
    assert_true(verdict.clean);
    disk_verdict_done(&verdict);
}

static void test_verify_finds_data_that_the_map_denies(void **state)
{
    write_and_close();
    poke("d", "foreign", 7, 9 * MiB);
    expect_finding("1 blocks have data that the map calls never written");
}

static void test_verify_finds_numbers_above_the_current(void **state)
{
    write_and_close();
    uint32_t number = htole32(1000);
    poke("d.map", &number, sizeof number, 4096 + 4 * (5 * MiB / DISK_BLOCK));
    expect_finding("1 blocks have numbers above");
}

static void test_verify_finds_damage_in_each_file(void **state)
{
    static const struct {
        const char *name, *text;
    } cases[] = {
        {"d.map", "generation map's header is damaged"},
        {"d.intent", "intent record's header is damaged"},
        {"d.lineage", "lineage's checksum"},
    };
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        write_and_close();
        poke(cases[i].name, "\xff\xff", 2, 34);
        expect_finding(cases[i].text);
        assert_ok(disk_remove(in_folder("d"), &err));
    }
}

static void test_verify_finds_files_of_different_disks(void **state)
{
    write_and_close();
    close_disk(new_disk(in_folder("e"), SIZE));
    assert_int_equal(rename(in_folder("e.lineage"), in_folder("d.lineage")), 0);
    expect_finding("two different disks");
    assert_int_equal(truncate(in_folder("d"), SIZE / 2), 0);
    expect_finding("the map is of a disk of");
}

static void test_verify_does_not_look_while_somebody_writes(void **state)
{
    struct disk *disk = new_disk(in_folder("d"), SIZE);
    struct disk_verdict verdict;
    assert_int_equal(disk_verify(in_folder("d"), &verdict, NULL), -EBUSY);
    close_disk(disk);
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, drop_folder)

int main(void)
{
    const struct CMUnitTest tests[] = {
        T(test_a_new_disk_is_empty_and_sparse),
        T(test_a_base_image_becomes_generation_1),
        T(test_two_disks_of_one_base_share_it),
        T(test_an_image_that_is_there_is_left_alone),
        T(test_failure_leaves_nothing_behind),
        T(test_side_files_left_over_are_replaced),
        T(test_a_plain_image_is_taken_on_only_when_asked),
        T(test_removing_takes_everything),
        T(test_verify_finds_nothing_wrong_with_a_good_disk),
        T(test_verify_finds_data_that_the_map_denies),
        T(test_verify_finds_numbers_above_the_current),
        T(test_verify_finds_damage_in_each_file),
        T(test_verify_finds_files_of_different_disks),
        T(test_verify_does_not_look_while_somebody_writes),
    };
    return cmocka_run_group_tests_name("disk create", tests, NULL, NULL);
}
