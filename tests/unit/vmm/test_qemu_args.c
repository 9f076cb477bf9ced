/* SPDX-License-Identifier: Apache-2.0
 *
 * QEMU's command line for machines of several parts. That QEMU takes it is what test_machine.c shows.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/macro.h"
#include "vmm/qemu_internal.h"

#include <string.h>

static const struct qemu_env env = {.binary = "qemu", .run_dir = "/run/vm", .vm_dir = "/vm"};

static struct vm_config sample(void)
{
    return (struct vm_config){
        .name = "web1",
        .memory = 64 * MiB,
        .cpus = 1,
        .machine = "pc-q35-7.2",
        .cpu = "max",
        .disk_count = 5,
        .nic_count = 2,
        .disks = {{.file = "cd0.raw", .type = VM_DISK_CDROM},
                  {.file = "disk0.raw"},
                  {.file = "disk1.raw"},
                  {.file = "vars.raw", .type = VM_DISK_UEFI_VARS},
                  {.file = "cd1.raw", .type = VM_DISK_CDROM}},
        .nics = {{.mac = "52:54:00:00:00:01"}, {.mac = "52:54:00:00:00:02"}},
    };
}

static char **build(const struct vm_config *config)
{
    const struct qemu_fds fds = {
        .ram = 3, .qmp = 4, .console = 5, .kernel = 6, .initrd = -1, .firmware = 7, .taps = {8, 9}};
    char **argv = qemu_args_build(&env, config, "tcg", false, &fds);
    assert_non_null(argv);
    return argv;
}

/* The argument that begins so; there is exactly one, or none (NULL). */
static const char *find(char **argv, const char *begin)
{
    const char *found = NULL;
    for (; *argv; argv++)
        if (strncmp(*argv, begin, strlen(begin)) == 0) {
            assert_null(found);
            found = *argv;
        }
    return found;
}

static void assert_has(char **argv, const char *begin, const char *part)
{
    const char *found = find(argv, begin);
    if (!found || !strstr(found, part))
        fail_msg("%s: %s is not in %s", begin, part, found ? found : "the command line");
}

static void the_first_plain_disk_is_booted_then_cdroms_in_their_order(void **state)
{
    struct vm_config config = sample();
    char **argv = build(&config);
    (void)state;
    assert_has(argv, "virtio-blk-pci,id=vd1,", ",bootindex=1");
    assert_null(strstr(find(argv, "virtio-blk-pci,id=vd2,"), "bootindex"));
    assert_has(argv, "scsi-cd,id=cd0,", ",bootindex=2");
    assert_has(argv, "scsi-cd,id=cd4,", ",bootindex=3");
    qemu_args_free(argv);
}

static void a_kernel_is_booted_instead(void **state)
{
    struct vm_config config = sample();
    (void)state;
    strcpy(config.kernel, "kernel");
    char **argv = build(&config);
    for (char **arg = argv; *arg; arg++)
        assert_null(strstr(*arg, "bootindex"));
    qemu_args_free(argv);
}

static void cdroms_share_a_controller_and_are_read_only(void **state)
{
    struct vm_config config = sample();
    char **argv = build(&config);
    (void)state;
    assert_non_null(find(argv, "virtio-scsi-pci,"));
    assert_has(argv, "{\"driver\":\"nbd\",\"node-name\":\"disk0\"", "\"read-only\":true");
    assert_has(argv, "{\"driver\":\"nbd\",\"node-name\":\"disk1\"", "\"read-only\":false");
    qemu_args_free(argv);
}

static void uefi_variables_are_the_machines_and_no_device(void **state)
{
    struct vm_config config = sample();
    char **argv = build(&config);
    (void)state;
    assert_has(argv, "pc-q35-7.2,", ",pflash0=firmware,pflash1=disk3");
    assert_has(argv, "{\"driver\":\"file\",\"node-name\":\"firmware\"", "\"read-only\":true");
    assert_has(argv, "{\"driver\":\"nbd\",\"node-name\":\"disk3\"", "\"read-only\":false");
    assert_null(find(argv, "virtio-blk-pci,id=vd3,"));
    qemu_args_free(argv);
}

static void what_a_machine_has_not_leaves_no_trace(void **state)
{
    struct vm_config config = sample();
    (void)state;
    config.disks[0] = config.disks[1];
    config.disk_count = config.nic_count = 1;
    const struct qemu_fds fds = {
        .ram = 3, .qmp = 4, .console = 5, .kernel = -1, .initrd = -1, .firmware = -1};
    char **argv = qemu_args_build(&env, &config, "tcg", false, &fds);
    assert_non_null(argv);
    for (char **arg = argv; *arg; arg++)
        assert_true(!strstr(*arg, "scsi") && !strstr(*arg, "pflash") && !strstr(*arg, "firmware"));
    qemu_args_free(argv);
}

static void ram_without_a_descriptor_is_qemus_own(void **state)
{
    struct vm_config config = sample();
    const struct qemu_fds fds = {
        .ram = -1, .qmp = 4, .console = 5, .kernel = -1, .initrd = -1, .firmware = 7, .taps = {8, 9}};
    (void)state;
    char **argv = build(&config);
    assert_has(argv, "memory-backend-file,id=ram,", ",share=on,align=2M,mem-path=/proc/self/fd/3");
    qemu_args_free(argv);
    argv = qemu_args_build(&env, &config, "tcg", false, &fds);
    assert_non_null(argv);
    assert_null(find(argv, "memory-backend-file"));
    assert_has(argv, "memory-backend-ram,id=ram,", ",share=off");
    qemu_args_free(argv);
}

static void each_card_has_its_slot_and_tap(void **state)
{
    struct vm_config config = sample();
    char **argv = build(&config);
    (void)state;
    assert_has(argv, "tap,id=net0,", "fd=8");
    assert_has(argv, "tap,id=net1,", "fd=9");
    assert_has(argv, "virtio-net-pci,id=nic0,", "mac=52:54:00:00:00:01,romfile=,addr=0x4");
    assert_has(argv, "virtio-net-pci,id=nic1,", "mac=52:54:00:00:00:02,romfile=,addr=0x5");
    qemu_args_free(argv);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_first_plain_disk_is_booted_then_cdroms_in_their_order),
        cmocka_unit_test(a_kernel_is_booted_instead),
        cmocka_unit_test(cdroms_share_a_controller_and_are_read_only),
        cmocka_unit_test(uefi_variables_are_the_machines_and_no_device),
        cmocka_unit_test(what_a_machine_has_not_leaves_no_trace),
        cmocka_unit_test(ram_without_a_descriptor_is_qemus_own),
        cmocka_unit_test(each_card_has_its_slot_and_tap),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
