/* SPDX-License-Identifier: Apache-2.0
 *
 * What needs a file system or a device of its own: a disk that fills up, and a block device under the image.
 * Needs root and loop devices; says so and skips without.
 */
#include "split_test.h"

#include "disk/verify.h"

#include <linux/loop.h>
#include <sys/ioctl.h>
#include <sys/mount.h>

#define SMALL (24 * MiB)

static bool mounted;

static int setup_folder(void **state)
{
    boot = 1;
    mounted = false;
    return make_folder(state);
}

static int setup_tmpfs(void **state)
{
    if (setup_folder(state) < 0)
        return -1;
    mounted = mount("small", folder, "tmpfs", 0, "size=2m") == 0;
    return 0;
}

/* A real one: delayed allocation, extents, metadata of its own that fills up too. */
static int setup_ext4(void **state)
{
    if (setup_folder(state) < 0)
        return -1;
    char command[512];
    snprintf(command, sizeof command,
             "mkdir %s/m && truncate -s %llu %s/fs && mkfs.ext4 -q -F -m 0 -O ^has_journal %s/fs && "
             "mount -o loop %s/fs %s/m",
             folder, (unsigned long long)SMALL, folder, folder, folder, folder);
    mounted = system(command) == 0;
    return 0;
}

static int teardown_tmpfs(void **state)
{
    if (mounted)
        umount(folder);
    return drop_folder(state);
}

static int teardown_ext4(void **state)
{
    if (mounted)
        umount(in_folder("m"));
    return drop_folder(state);
}

static void require(bool condition, const char *what)
{
    if (condition)
        return;
    print_message("skipped: %s\n", what);
    skip();
}

/* Writes until the file system is full, every eighth MiB in a map page that has no space yet. */
static unsigned fill(struct disk *disk)
{
    static char data[64 * KiB];
    memset(data, 'f', sizeof data);
    unsigned failures = 0;
    for (uint64_t at = 0; at < disk_size(disk); at += 8 * MiB) {
        int r = disk_write(disk, data, sizeof data, at, false);
        if (r != 0)
            assert_int_equal(r, -ENOSPC);
        failures += r != 0;
    }
    return failures;
}

static void fill_up_and_recover(const char *path)
{
    struct disk *disk = new_disk(path, 16 * GiB);
    assert_true(fill(disk) > 0);
    /* Full down to the last byte: now even a mark finds no page. */
    assert_true(fill(disk) > 0);
    char byte;
    assert_int_equal(disk_read(disk, &byte, 1, 0), 0);
    assert_int_equal(byte, 'f');
    write_byte(disk, 100);
    assert_int_equal(disk_flush(disk), 0);
    /* Giving back helps at once. */
    assert_int_equal(disk_trim(disk, 64 * KiB, 0, false), 0);
    uint64_t written = disk_count(disk, 0, UINT32_MAX);
    assert_int_equal(disk_close(disk, NULL), 0);
    disk = open_disk(path, 0);
    assert_int_equal(disk_count(disk, 0, UINT32_MAX), written);
    close_disk(disk);
    struct disk_verdict verdict;
    assert_ok(disk_verify(path, &verdict, &err));
    assert_int_equal(verdict.count, 0);
    disk_verdict_done(&verdict);
}

static void test_a_full_tmpfs_is_an_error_and_no_signal(void **state)
{
    require(mounted, "cannot mount a tmpfs");
    fill_up_and_recover(in_folder("d"));
}

static void test_a_full_ext4_is_an_error_and_no_signal(void **state)
{
    require(mounted, "cannot mount an ext4 on a loop device");
    fill_up_and_recover(in_folder("m/d"));
}

/* Nothing of it is here, and it does not all find room. */
static void test_what_finds_no_room_stays_missing(void **state)
{
    require(mounted, "cannot mount a tmpfs");
    static char data[MiB];
    memset(data, 'f', sizeof data);
    assert_ok(disk_create(in_folder("d"), SPLIT_SIZE, NULL, NULL, &err));
    struct disk *disk = open_disk(in_folder("d"), DISK_FROZEN);
    set_claim(disk, LINEAGE_PARTIAL, 0);
    expect_missing(disk, 0x1ff);
    become_split(disk);
    struct disk_run run = {.count = EXTENT, .generation = HANDOVER};
    int r = 0;
    while (run.block < 8 * EXTENT && (r = disk_fill(disk, &run, data, NULL)) == 0)
        run.block += EXTENT;
    assert_int_equal(r, -ENOSPC);
    assert_true(is_missing(disk, run.block));
    assert_int_equal(look_at(disk, run.block), -EAGAIN);
    assert_int_equal(look_at(disk, 0), 'f');
    assert_int_equal(disk_flush(disk), 0);
    assert_int_equal(write_w(disk, MiB, run.block * DISK_BLOCK), -ENOSPC);
    assert_true(is_missing(disk, run.block));
    assert_int_equal(disk_trim(disk, MiB, 0, false), 0); /* the guest makes room */
    assert_ok(disk_fill(disk, &run, data, &err));
    assert_int_equal(look(disk, MiB, run.block * DISK_BLOCK), 'f');
    close_disk(disk);
    boot++;
    disk = open_disk(in_folder("d"), 0);
    assert_int_equal(look(disk, MiB, 0), 0);
    assert_int_equal(look(disk, MiB, run.block * DISK_BLOCK), 'f');
    close_disk(disk);
}

static void test_creating_on_a_full_disk_leaves_nothing(void **state)
{
    require(mounted, "cannot mount a tmpfs");
    int fd = open(in_folder("filler"), O_RDWR | O_CREAT, 0600);
    assert_true(posix_fallocate(fd, 0, 2 * MiB - 4096) == 0 || errno);
    close(fd);
    assert_int_equal(disk_create(in_folder("d"), 16 * GiB, NULL, NULL, NULL), -ENOSPC);
    assert_int_equal(access(in_folder("d"), F_OK), -1);
    assert_int_equal(access(in_folder("d.map"), F_OK), -1);
    assert_int_equal(access(in_folder("d.intent"), F_OK), -1);
}

/* --- a block device ------------------------------------------------------------------------------------ */

/* Attaches FOLDER/backing; the descriptor holds the device, which goes with its last user. */
static int attach(char ret_device[32])
{
    int backing = open(in_folder("backing"), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    assert_int_equal(ftruncate(backing, 16 * MiB), 0);
    int control = open("/dev/loop-control", O_RDWR | O_CLOEXEC);
    int number = control < 0 ? -1 : ioctl(control, LOOP_CTL_GET_FREE);
    if (control >= 0)
        close(control);
    snprintf(ret_device, 32, "/dev/loop%d", number);
    int device = number < 0 ? -1 : open(ret_device, O_RDWR | O_CLOEXEC);
    struct loop_config config = {.fd = (unsigned)backing, .info.lo_flags = LO_FLAGS_AUTOCLEAR};
    if (device >= 0 && ioctl(device, LOOP_CONFIGURE, &config) < 0) {
        close(device);
        device = -1;
    }
    close(backing);
    return device;
}

static void test_a_block_device_behind_a_link(void **state)
{
    char device[32];
    _cleanup_close_ int held = attach(device);
    require(held >= 0, "cannot attach a loop device");
    assert_int_equal(symlink(device, in_folder("d")), 0);

    struct disk *disk = open_disk(in_folder("d"), DISK_INIT);
    assert_int_equal(disk_size(disk), 16 * MiB);
    /* Nobody knows what a device held before: all of it counts. */
    assert_int_equal(disk_count(disk, 0, UINT32_MAX), 16 * MiB / DISK_BLOCK);
    assert_int_equal(access(in_folder("d.map"), F_OK), 0);

    static char data[MiB], back[MiB];
    memset(data, 'x', sizeof data);
    uint32_t sealed = seal(disk);
    assert_int_equal(disk_write(disk, data, sizeof data, MiB, true), 0);
    assert_int_equal(disk_trim(disk, 100000, MiB + 1000, true), 0);
    assert_int_equal(disk_zero(disk, 5000, MiB + 200000, DISK_ZERO_NO_HOLE), 0);
    assert_int_equal(disk_count(disk, sealed, UINT32_MAX), 256);
    memset(data + 1000, 0, 100000);
    memset(data + 200000, 0, 5000);
    close_disk(disk);

    disk = open_disk(in_folder("d"), DISK_READ_ONLY);
    assert_int_equal(disk_read(disk, back, sizeof back, MiB), 0);
    assert_memory_equal(data, back, sizeof data);
    close_disk(disk);

    assert_ok(disk_remove(in_folder("d"), &err));
    assert_int_equal(access(device, F_OK), 0);
    assert_int_equal(access(in_folder("d.map"), F_OK), -1);
}

static void test_a_new_disk_on_a_device_overwrites_what_it_held(void **state)
{
    static const struct id hash = {{0xba, 0x5e}};
    static char old[MiB], back[MiB];
    char device[32];
    _cleanup_close_ int held = attach(device);
    require(held >= 0, "cannot attach a loop device");
    memset(old, 'o', sizeof old);
    for (uint64_t at = 0; at < 16 * MiB; at += sizeof old)
        assert_int_equal(pwrite(held, old, sizeof old, (off_t)at), sizeof old);
    int base = open(in_folder("base"), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    assert_int_equal(ftruncate(base, 4 * MiB), 0);
    assert_int_equal(pwrite(base, "base", 4, MiB), 4);
    close(base);
    assert_int_equal(symlink(device, in_folder("d")), 0);

    assert_ok(disk_create(in_folder("d"), 16 * MiB, in_folder("base"), &hash, &err));
    assert_int_equal(disk_create(in_folder("d"), 16 * MiB, NULL, NULL, NULL), -EEXIST);
    struct disk *disk = open_disk(in_folder("d"), 0);
    assert_int_equal(disk_count(disk, 0, UINT32_MAX), 1); /* the base's data; zeroes are never sent */
    for (uint64_t at = 0; at < 16 * MiB; at += sizeof back) {
        memset(old, 0, sizeof old);
        memcpy(old, "base", at == MiB ? 4 : 0);
        assert_int_equal(disk_read(disk, back, sizeof back, at), 0);
        assert_memory_equal(back, old, sizeof back);
    }
    close_disk(disk);

    assert_ok(disk_remove(in_folder("d"), &err));
    assert_ok(disk_create(in_folder("d"), 16 * MiB, NULL, NULL, &err));
    disk = open_disk(in_folder("d"), 0);
    assert_int_equal(disk_count(disk, 0, UINT32_MAX), 0);
    memset(old, 0, sizeof old);
    assert_int_equal(disk_read(disk, back, sizeof back, MiB), 0);
    assert_memory_equal(back, old, sizeof back);
    close_disk(disk);
}

static void test_a_device_of_another_size_is_refused_and_kept(void **state)
{
    char device[32], back[4];
    _cleanup_close_ int held = attach(device);
    require(held >= 0, "cannot attach a loop device");
    assert_int_equal(pwrite(held, "kept", 4, 0), 4);
    assert_int_equal(symlink(device, in_folder("d")), 0);
    assert_int_equal(disk_create(in_folder("d"), 8 * MiB, NULL, NULL, NULL), -EINVAL);
    assert_int_equal(disk_create(in_folder("d"), 32 * MiB, NULL, NULL, NULL), -EINVAL);
    assert_int_equal(pread(held, back, 4, 0), 4);
    assert_memory_equal(back, "kept", 4);
    assert_int_equal(access(in_folder("d.lineage"), F_OK), -1);
}

static void test_a_block_device_in_use_is_refused(void **state)
{
    char device[32];
    _cleanup_close_ int held = attach(device);
    require(held >= 0, "cannot attach a loop device");
    assert_int_equal(symlink(device, in_folder("d")), 0);
    int exclusive = open(device, O_RDWR | O_EXCL | O_CLOEXEC);
    assert_true(exclusive >= 0);
    struct disk *disk;
    assert_int_equal(disk_open(in_folder("d"), DISK_INIT, &disk, NULL), -EBUSY);
    assert_int_equal(disk_create(in_folder("d"), 16 * MiB, NULL, NULL, NULL), -EBUSY);
    close(exclusive);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_a_full_tmpfs_is_an_error_and_no_signal, setup_tmpfs,
                                        teardown_tmpfs),
        cmocka_unit_test_setup_teardown(test_a_full_ext4_is_an_error_and_no_signal, setup_ext4,
                                        teardown_ext4),
        cmocka_unit_test_setup_teardown(test_what_finds_no_room_stays_missing, setup_tmpfs, teardown_tmpfs),
        cmocka_unit_test_setup_teardown(test_creating_on_a_full_disk_leaves_nothing, setup_tmpfs,
                                        teardown_tmpfs),
        cmocka_unit_test_setup_teardown(test_a_block_device_behind_a_link, setup_folder, drop_folder),
        cmocka_unit_test_setup_teardown(test_a_new_disk_on_a_device_overwrites_what_it_held, setup_folder,
                                        drop_folder),
        cmocka_unit_test_setup_teardown(test_a_device_of_another_size_is_refused_and_kept, setup_folder,
                                        drop_folder),
        cmocka_unit_test_setup_teardown(test_a_block_device_in_use_is_refused, setup_folder, drop_folder),
    };
    return cmocka_run_group_tests_name("disk mounts", tests, NULL, NULL);
}
