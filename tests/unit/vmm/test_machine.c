/* SPDX-License-Identifier: Apache-2.0
 *
 * Disks, taps and QEMU together: a real QEMU on a disk that we serve.
 */
#include "lab.h"

#include "base/clock.h"
#include "base/macro.h"
#include "base/pid.h"
#include "vmm/firmware.h"

#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

static bool own_network;

static int enter_namespace(void **state)
{
    own_network = unshare(CLONE_NEWNET) == 0 && access("/dev/net/tun", R_OK | W_OK) == 0;
    return 0;
}

static void disk_path_of(struct lab *lab, char path[PATH_MAX])
{
    snprintf(path, PATH_MAX, "%s/disk0.raw", lab->vm_dir);
}

static int setup(void **state)
{
    char path[PATH_MAX];
    lab_need_qemu();
    struct lab *lab = calloc(1, sizeof *lab);
    lab_open(lab);
    lab->config.disk_count = 1;
    strcpy(lab->config.disks[0].file, "disk0.raw");
    lab->config.disks[0].size = 16 * MiB;
    disk_path_of(lab, path);
    assert_int_equal(disk_create(path, 16 * MiB, NULL, NULL, NULL), 0);
    *state = lab;
    return 0;
}

static int teardown(void **state)
{
    if (*state)
        lab_close(*state);
    free(*state);
    return 0;
}

static struct machine *new_machine(struct lab *lab)
{
    struct machine *machine;
    assert_int_equal(machine_new(&lab->env, &lab->config, &machine, NULL), 0);
    return machine;
}

static struct machine *running(struct lab *lab)
{
    struct err err = ERR_NONE;
    struct machine *machine = new_machine(lab);
    if (machine_open_disks(machine, 0, &err) < 0 || machine_start(machine, false, NULL, NULL, &err) < 0)
        fail_msg("%s", err.text);
    assert_int_equal(qemu_cont(machine_qemu(machine), NULL), 0);
    return machine;
}

/* SeaBIOS reads the boot sector of every disk. */
static bool reads_disk_within(struct machine *machine, size_t disk, int msec)
{
    struct nbd_statistics statistics = {0};
    for (; msec > 0 && statistics.reads == 0; msec -= 5) {
        clock_sleep(5 * NSEC_PER_MSEC);
        machine_disk_statistics(machine, disk, &statistics);
    }
    return statistics.reads > 0;
}

static bool reads_within(struct machine *machine, int msec)
{
    return reads_disk_within(machine, 0, msec);
}

/* QEMU itself reads: a CPU that is reset within its firmware may hang before it has met any disk. */
static bool reads_when_asked(struct machine *machine)
{
    _cleanup_json_ json_t *answer = NULL;
    json_t *arguments = json_pack("{s:s}", "command-line", "qemu-io disk0 \"read 0 4096\"");
    assert_int_equal(qmp_execute(qemu_qmp(machine_qemu(machine)), "human-monitor-command", arguments, 30000,
                                 &answer, NULL),
                     0);
    return reads_within(machine, 100);
}

static void end(struct machine *machine)
{
    assert_int_equal(machine_stop(machine, 2000, NULL), 0);
    assert_null(machine_qemu(machine));
    assert_int_equal(machine_close_disks(machine, NULL), 0);
    machine_free(machine);
}

static void the_firmware_reads_our_disk(void **state)
{
    struct machine *machine = running(*state);
    assert_true(reads_within(machine, 10000));
    end(machine);
}

static void add_disk(struct lab *lab, const char *file, uint64_t size, enum vm_disk_type type,
                     const char *content)
{
    char path[PATH_MAX];
    struct err err = ERR_NONE;
    struct vm_disk *disk = &lab->config.disks[lab->config.disk_count++];
    snprintf(disk->file, sizeof disk->file, "%s", file);
    disk->size = size;
    disk->type = type;
    snprintf(path, sizeof path, "%s/%s", lab->vm_dir, file);
    if (disk_create(path, size, content, NULL, &err) < 0)
        fail_msg("%s", err.text);
}

static void the_firmware_looks_for_a_system_on_the_cdrom(void **state)
{
    add_disk(*state, "cdrom.raw", 2 * MiB, VM_DISK_CDROM, NULL);
    struct machine *machine = running(*state);
    assert_true(reads_disk_within(machine, 1, 20000));
    end(machine);
}

/* It formats its variables at its first start. */
static void uefi_writes_its_variables_to_our_disk(void **state)
{
    struct lab *lab = *state;
    struct nbd_statistics statistics = {0};
    uint64_t size;
    int fd = firmware_open(FIRMWARE_DIR, FIRMWARE_VARS, &size, NULL);
    if (fd < 0)
        skip(); /* needs the package ovmf */
    close(fd);
    add_disk(lab, "uefi-vars.raw", size, VM_DISK_UEFI_VARS, FIRMWARE_DIR "/OVMF_VARS_4M.fd");
    struct machine *machine = running(lab);
    for (int msec = 40000; msec > 0 && statistics.writes == 0; msec -= 5) {
        clock_sleep(5 * NSEC_PER_MSEC);
        machine_disk_statistics(machine, 1, &statistics);
    }
    assert_true(statistics.writes > 0);
    end(machine);
}

static void a_missing_firmware_is_named_with_its_package(void **state)
{
    struct lab *lab = *state;
    struct err err = ERR_NONE;
    lab->env.firmware_dir = lab->run_dir;
    add_disk(lab, "uefi-vars.raw", 540672, VM_DISK_UEFI_VARS, NULL);
    struct machine *machine = new_machine(lab);
    assert_int_equal(machine_open_disks(machine, 0, NULL), 0);
    assert_int_equal(machine_start(machine, false, NULL, NULL, &err), -ENOENT);
    assert_non_null(strstr(err.text, "OVMF_CODE_4M.fd"));
    assert_non_null(strstr(err.hint, "ovmf"));
    assert_null(machine_qemu(machine));
    machine_free(machine);
}

static void stopping_and_closing_twice_is_fine(void **state)
{
    struct machine *machine = running(*state);
    assert_int_equal(machine_stop(machine, 2000, NULL), 0);
    assert_int_equal(machine_stop(machine, 2000, NULL), 0);
    assert_int_equal(machine_close_disks(machine, NULL), 0);
    assert_int_equal(machine_close_disks(machine, NULL), 0);
    machine_free(machine);
}

static void the_same_qemu_reads_on_after_we_were_away(void **state)
{
    struct lab *lab = *state;
    struct machine *machine = running(lab);
    pid_t pid = qemu_pid(machine_qemu(machine));
    assert_true(reads_within(machine, 10000));
    machine_free(machine);

    machine = new_machine(lab);
    assert_int_equal(machine_open_disks(machine, 0, NULL), 0);
    assert_int_equal(machine_adopt(machine, NULL, NULL, NULL), 0);
    assert_int_equal(qemu_pid(machine_qemu(machine)), pid);
    assert_true(reads_when_asked(machine));
    end(machine);
}

static void nothing_to_adopt_is_ESRCH(void **state)
{
    struct machine *machine = new_machine(*state);
    assert_int_equal(machine_open_disks(machine, 0, NULL), 0);
    assert_int_equal(machine_adopt(machine, NULL, NULL, NULL), -ESRCH);
    machine_free(machine);
}

static void a_disk_of_another_size_than_configured_is_refused(void **state)
{
    struct lab *lab = *state;
    struct err err = ERR_NONE;
    lab->config.disks[0].size = 32 * MiB;
    struct machine *machine = new_machine(lab);
    assert_int_equal(machine_open_disks(machine, 0, &err), -EINVAL);
    assert_non_null(strstr(err.text, "vm.json"));
    assert_null(machine_disk(machine, 0));
    machine_free(machine);
}

static void a_missing_second_disk_closes_the_first(void **state)
{
    struct lab *lab = *state;
    struct disk *disk;
    char path[PATH_MAX];
    lab->config.disk_count = 2;
    strcpy(lab->config.disks[1].file, "disk1.raw");
    lab->config.disks[1].size = 16 * MiB;
    struct machine *machine = new_machine(lab);
    assert_int_equal(machine_open_disks(machine, 0, NULL), -ENOENT);
    disk_path_of(lab, path);
    assert_int_equal(disk_open(path, 0, &disk, NULL), 0); /* it is free again */
    assert_int_equal(disk_close(disk, NULL), 0);
    machine_free(machine);
}

static void a_failed_start_leaves_no_tap(void **state)
{
    struct lab *lab = *state;
    char name[16], sys[64];
    if (!own_network)
        skip(); /* needs root and /dev/net/tun */
    lab->config.nic_count = 1;
    strcpy(lab->config.nics[0].mac, "52:54:00:12:34:56");
    strcpy(lab->config.cpu, "abacus");
    struct machine *machine = new_machine(lab);
    assert_int_equal(machine_open_disks(machine, 0, NULL), 0);
    assert_true(machine_start(machine, false, NULL, NULL, NULL) < 0);
    snprintf(name, sizeof name, "orai%02x%02x%02x%02x0", lab->config.id.bytes[0], lab->config.id.bytes[1],
             lab->config.id.bytes[2], lab->config.id.bytes[3]);
    snprintf(sys, sizeof sys, "/proc/sys/net/ipv4/conf/%s", name);
    assert_int_not_equal(access(sys, F_OK), 0);
    machine_free(machine);
}

static void a_nic_survives_our_absence(void **state)
{
    struct lab *lab = *state;
    if (!own_network)
        skip(); /* needs root and /dev/net/tun */
    lab->config.nic_count = 2;
    strcpy(lab->config.nics[0].mac, "52:54:00:12:34:56");
    strcpy(lab->config.nics[1].mac, "52:54:00:12:34:57");
    machine_free(running(lab));

    struct machine *machine = new_machine(lab);
    assert_int_equal(machine_open_disks(machine, 0, NULL), 0);
    assert_int_equal(machine_adopt(machine, NULL, NULL, NULL), 0);
    _cleanup_json_ json_t *sent =
        json_pack("[{s:s, s:[{s:s}]}]", "mac", "52:54:00:12:34:57", "addresses", "address", "192.0.2.7");
    machine_announce(machine, sent);
    _cleanup_json_ json_t *known = machine_addresses(machine);
    assert_int_equal(json_array_size(known), 2);
    assert_int_equal(json_array_size(json_object_get(json_array_get(known, 0), "addresses")), 0);
    assert_int_equal(json_array_size(json_object_get(json_array_get(known, 1), "addresses")), 1);
    end(machine);
}

/* --- a second QEMU -------------------------------------------------------------------------------------- */

static struct machine *running_twice(struct lab *lab)
{
    struct err err = ERR_NONE;
    struct machine *machine = running(lab);
    if (machine_next_start(machine, lab->env.binary, NULL, NULL, &err) < 0)
        fail_msg("%s", err.text);
    return machine;
}

static pid_t recorded(struct lab *lab, const char *name)
{
    char path[PATH_MAX];
    pid_t pid = 0;
    int pidfd = -1;
    snprintf(path, sizeof path, "%s/%s", lab->run_dir, name);
    if (pid_open_record(path, &pid, &pidfd, NULL) < 0)
        return 0;
    close(pidfd);
    return pid;
}

static void the_second_qemu_has_the_same_memory_and_ends_without_a_trace(void **state)
{
    struct lab *lab = *state;
    struct machine *machine = running_twice(lab);
    struct stat one, other;
    char status[32];
    pid_t first = qemu_pid(machine_qemu(machine)), second = qemu_pid(machine_next(machine));
    assert_int_equal(fstat(qemu_ram_fd(machine_qemu(machine)), &one), 0);
    assert_int_equal(fstat(qemu_ram_fd(machine_next(machine)), &other), 0);
    assert_int_equal(one.st_ino, other.st_ino);
    assert_int_equal(recorded(lab, "qemu.pid"), first);
    assert_int_equal(recorded(lab, QEMU_NEXT_RECORD), second);
    assert_int_equal(qemu_status(machine_next(machine), status, NULL), 0);
    assert_string_equal(status, "inmigrate");
    assert_int_equal(machine_next_end(machine, NULL), 0);
    assert_null(machine_next(machine));
    assert_int_equal(recorded(lab, QEMU_NEXT_RECORD), 0);
    assert_int_equal(qemu_status(machine_qemu(machine), status, NULL), 0);
    assert_string_equal(status, "running");
    end(machine);
}

static void taking_exchanges_the_records_and_can_be_taken_back(void **state)
{
    struct lab *lab = *state;
    struct machine *machine = running_twice(lab);
    pid_t first = qemu_pid(machine_qemu(machine)), second = qemu_pid(machine_next(machine));
    for (int i = 0; i < 2; i++) {
        assert_int_equal(machine_next_take(machine, NULL), 0);
        assert_int_equal(qemu_pid(machine_qemu(machine)), i == 0 ? second : first);
        assert_int_equal(recorded(lab, "qemu.pid"), i == 0 ? second : first);
        assert_int_equal(recorded(lab, QEMU_NEXT_RECORD), i == 0 ? first : second);
    }
    assert_int_equal(machine_next_end(machine, NULL), 0);
    assert_int_equal(recorded(lab, "qemu.pid"), first);
    end(machine);
}

static void a_leftover_is_ended_and_the_guest_s_qemu_adopted(void **state)
{
    struct lab *lab = *state;
    struct machine *machine = running_twice(lab);
    pid_t first = qemu_pid(machine_qemu(machine));
    assert_int_equal(machine_next_take(machine, NULL), 0);
    pid_t second = qemu_pid(machine_qemu(machine));
    machine_free(machine);
    assert_int_equal(recorded(lab, QEMU_NEXT_RECORD), first);

    assert_int_equal(machine_end_leftover(lab->run_dir, NULL), 0);
    assert_int_equal(machine_end_leftover(lab->run_dir, NULL), 0);
    assert_int_equal(recorded(lab, QEMU_NEXT_RECORD), 0);
    machine = new_machine(lab);
    assert_int_equal(machine_open_disks(machine, 0, NULL), 0);
    assert_int_equal(machine_adopt(machine, NULL, NULL, NULL), 0);
    assert_int_equal(qemu_pid(machine_qemu(machine)), second);
    end(machine);
}

static void a_second_qemu_that_does_not_start_changes_nothing(void **state)
{
    struct lab *lab = *state;
    struct machine *machine = running(lab);
    pid_t first = qemu_pid(machine_qemu(machine));
    assert_true(machine_next_start(machine, "/bin/false", NULL, NULL, NULL) < 0);
    assert_true(machine_next_start(machine, "/nonexistent/qemu", NULL, NULL, NULL) < 0);
    assert_null(machine_next(machine));
    assert_int_equal(recorded(lab, "qemu.pid"), first);
    assert_int_equal(recorded(lab, QEMU_NEXT_RECORD), 0);
    end(machine);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(the_firmware_reads_our_disk),
        TEST(the_firmware_looks_for_a_system_on_the_cdrom),
        TEST(uefi_writes_its_variables_to_our_disk),
        TEST(a_missing_firmware_is_named_with_its_package),
        TEST(stopping_and_closing_twice_is_fine),
        TEST(the_same_qemu_reads_on_after_we_were_away),
        TEST(nothing_to_adopt_is_ESRCH),
        TEST(a_disk_of_another_size_than_configured_is_refused),
        TEST(a_missing_second_disk_closes_the_first),
        TEST(a_failed_start_leaves_no_tap),
        TEST(a_nic_survives_our_absence),
        TEST(the_second_qemu_has_the_same_memory_and_ends_without_a_trace),
        TEST(taking_exchanges_the_records_and_can_be_taken_back),
        TEST(a_leftover_is_ended_and_the_guest_s_qemu_adopted),
        TEST(a_second_qemu_that_does_not_start_changes_nothing),
    };
    return cmocka_run_group_tests(tests, enter_namespace, NULL);
}
