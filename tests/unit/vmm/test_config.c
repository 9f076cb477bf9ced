/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "../scratch.h"

#include "base/file.h"
#include "base/macro.h"
#include "vmm/config.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

static struct vm_config sample(void)
{
    return (struct vm_config){.name = "web1",
                              .id = {{1, 2, 3}},
                              .memory = 1 * GiB,
                              .cpus = 2,
                              .machine = "pc-q35-7.2",
                              .cpu = "x86-64-v2",
                              .accel = "auto",
                              .autostart = true,
                              .kernel = "kernel",
                              .initrd = "initrd",
                              .append = "console=ttyS0 root=/dev/vda quiet=\"a b\"",
                              .disk_count = 1,
                              .nic_count = 1,
                              .disks = {{.file = "disk0.raw", .size = 8 * GiB}},
                              .nics = {{.bridge = "br0", .mac = "52:54:00:12:34:56"}}};
}

static void assert_same(const struct vm_config *a, const struct vm_config *b)
{
    _cleanup_json_ json_t *x = vm_config_to_json(a), *y = vm_config_to_json(b);
    assert_non_null(x);
    assert_true(json_equal(x, y));
}

static int read_back(json_t *json, struct vm_config *ret, struct err *err)
{
    return vm_config_from_json(json, "vm.json", ret, err);
}

/* The sample with `key` set to `value` (stolen, NULL removes it) is refused, and the error names `named`. */
static void refused(const char *key, json_t *value, const char *named)
{
    struct vm_config config = sample(), back;
    struct err err = ERR_NONE;
    _cleanup_json_ json_t *json = vm_config_to_json(&config);
    if (value)
        json_object_set_new(json, key, value);
    else
        json_object_del(json, key);
    assert_int_equal(read_back(json, &back, &err), -EINVAL);
    if (!strstr(err.text, named))
        fail_msg("\"%s\" is not in: %s", named, err.text);
}

static void refused_text(const char *key, const char *value)
{
    char quoted[32];
    snprintf(quoted, sizeof quoted, "\"%s\"", key);
    refused(key, json_string(value), quoted);
}

static void refused_disk(const char *file, json_int_t size, const char *image, const char *named)
{
    refused("disks", json_pack("[{s:s, s:I, s:s}]", "file", file, "size", size, "image", image), named);
}

static void refused_nic(const char *bridge, const char *mac, const char *named)
{
    refused("nics", json_pack("[{s:s, s:s}]", "bridge", bridge, "mac", mac), named);
}

static void survives_a_round_trip(void **state)
{
    struct vm_config config = sample(), back;
    _cleanup_json_ json_t *json = vm_config_to_json(&config);
    assert_int_equal(read_back(json, &back, NULL), 0);
    assert_same(&back, &config);
    assert_memory_equal(&back.id, &config.id, sizeof back.id);
    assert_string_equal(back.append, config.append);
    assert_int_equal(back.memory, 1 * GiB);
    assert_true(back.autostart);
    assert_string_equal(back.disks[0].file, "disk0.raw");
    assert_string_equal(back.nics[0].bridge, "br0");
}

static void the_types_of_disks_survive_a_round_trip(void **state)
{
    struct vm_config config = sample(), back;
    assert_false(vm_config_uefi(&config));
    config.disk_count = 3;
    config.disks[1] = (struct vm_disk){.file = "cdrom.raw", .size = 4096, .type = VM_DISK_CDROM};
    config.disks[2] = (struct vm_disk){.file = "uefi-vars.raw", .size = 540672, .type = VM_DISK_UEFI_VARS};
    _cleanup_json_ json_t *json = vm_config_to_json(&config);
    assert_null(json_object_get(json_array_get(json_object_get(json, "disks"), 0), "type"));
    assert_int_equal(read_back(json, &back, NULL), 0);
    assert_same(&back, &config);
    assert_int_equal(back.disks[0].type, VM_DISK_PLAIN);
    assert_int_equal(back.disks[1].type, VM_DISK_CDROM);
    assert_true(vm_config_uefi(&back));
}

static void the_kinds_of_ram_survive_a_round_trip(void **state)
{
    (void)state;
    for (enum vm_ram ram = VM_RAM_SHARED; ram <= VM_RAM_HUGE; ram++) {
        struct vm_config config = sample(), back;
        config.ram = ram;
        _cleanup_json_ json_t *json = vm_config_to_json(&config);
        assert_int_equal(json_object_get(json, "ram") != NULL, ram != VM_RAM_SHARED);
        assert_int_equal(read_back(json, &back, NULL), 0);
        assert_int_equal(back.ram, ram);
    }
}

static void saved_and_loaded(void **state)
{
    char dir[64];
    struct vm_config config = sample(), back;
    assert_int_equal(scratch_make(dir, sizeof dir), 0);
    assert_int_equal(vm_config_load(dir, &back, NULL), -ENOENT);
    assert_int_equal(vm_config_save(dir, &config, NULL), 0);
    assert_int_equal(vm_config_load(dir, &back, NULL), 0);
    assert_same(&back, &config);
    assert_int_equal(file_remove_tree(dir, NULL), 0);
}

static void missing_members_get_their_defaults(void **state)
{
    struct vm_config back;
    _cleanup_json_ json_t *json =
        json_pack("{s:s, s:s, s:s, s:s}", "name", "a", "id", "00000000000000000000000000000001", "memory",
                  "1G", "machine", "pc-i440fx-10.0");
    assert_int_equal(read_back(json, &back, NULL), 0);
    assert_int_equal(back.cpus, 1);
    assert_string_equal(back.cpu, "x86-64-v2");
    assert_string_equal(back.accel, "auto");
    assert_int_equal(back.ram, VM_RAM_SHARED);
    assert_int_equal(back.disk_count, 0);
}

static void amounts_may_be_text(void **state)
{
    struct vm_config config = sample(), back;
    _cleanup_json_ json_t *json = vm_config_to_json(&config);
    json_object_set_new(json, "memory", json_string("512M"));
    assert_int_equal(read_back(json, &back, NULL), 0);
    assert_int_equal(back.memory, 512 * MiB);
}

static void a_typing_error_in_a_member_is_named(void **state)
{
    refused("memmory", json_integer(1), "memmory");
    refused("disks", json_pack("[{s:s, s:i, s:s}]", "file", "d.raw", "size", 512, "format", "raw"), "format");
    refused("nics", json_pack("[{s:s, s:s}]", "mac", "52:54:00:12:34:56", "model", "e1000"), "model");
}

static void members_of_the_wrong_type_are_refused(void **state)
{
    refused("name", json_integer(1), "name");
    refused("cpus", json_string("two"), "cpus");
    refused("disks", json_object(), "disks");
    refused("nics", json_string(""), "nics");
    refused("disks", json_pack("[i]", 1), "disk 0");
    refused("append", json_stringn("a\0b", 3), "append");
}

static void names_that_are_paths_or_options_are_refused(void **state)
{
    refused_text("name", "");
    refused_text("name", "../x");
    refused_text("name", "a/b");
    refused_text("name", ".hidden");
    refused_text("name", "-drive");
    refused_text("name", "a,b");
    refused_text("kernel", "/boot/vmlinuz");
    refused_text("kernel", "..");
    refused_text("initrd", "a/b");
}

static void files_may_not_be_orais_own(void **state)
{
    refused_text("kernel", "vm.json");
    refused_text("kernel", "epoch.json");
    refused_text("initrd", "disk0.raw.map");
    refused_text("initrd", "disk0.raw");
    refused_text("kernel", "qemu.log");
    refused_text("kernel", "orai-vm.lock");
    refused_text("initrd", "kernel"); /* one file for both */
    refused_disk("vm.json", 512, "", "file");
    refused_disk("disk0.raw.lineage", 512, "", "file");
    refused_disk(".raw", 512, "", "file");
}

static void what_could_add_qemu_options_is_refused(void **state)
{
    refused_text("machine", "pc-q35-7.2,usb=on");
    refused_text("machine", "q35");
    refused_text("machine", "none");
    refused_text("cpu", "host -monitor stdio");
    refused_text("cpu", "-help");
    refused_text("accel", "xen");
    refused_text("ram", "");
    refused_text("ram", "Huge");
    refused("ram", json_integer(2), "\"ram\"");
    refused_text("autostart", "yes");
    refused_text("append", "a\nb");
    refused_nic("br0,script=/x", "52:54:00:12:34:56", "bridge");
    refused_nic("br0", "52:54:00:12:34:56,romfile=/x", "mac");
}

static void amounts_have_bounds(void **state)
{
    refused("memory", json_integer(0), "memory");
    refused("memory", json_integer((json_int_t)GiB + 4096), "memory");
    refused("memory", json_integer(INT64_MAX), "memory");
    refused("cpus", json_integer(0), "cpus");
    refused("cpus", json_integer(1000), "cpus");
    refused_disk("d.raw", 0, "", "size");
    refused_disk("d.raw", 511, "", "size");
    refused_disk("d.raw", INT64_MAX / 512 * 512, "", "size");
}

static void lists_have_bounds(void **state)
{
    json_t *disks = json_array(), *nics = json_array();
    for (int i = 0; i <= VM_MAX_DISKS; i++)
        json_array_append_new(disks, json_object());
    for (int i = 0; i <= VM_MAX_NICS; i++)
        json_array_append_new(nics, json_object());
    refused("disks", disks, "disks");
    refused("nics", nics, "nics");
}

static void two_of_the_same_are_refused(void **state)
{
    refused("disks",
            json_pack("[{s:s, s:i}, {s:s, s:i}]", "file", "d.raw", "size", 512, "file", "d.raw", "size", 512),
            "disk 1");
    refused("nics", json_pack("[{s:s}, {s:s}]", "mac", "52:54:00:12:34:5a", "mac", "52:54:00:12:34:5A"),
            "NIC 1");
}

static void a_disk_is_of_a_known_type(void **state)
{
    refused("disks", json_pack("[{s:s, s:i, s:s}]", "file", "d.raw", "size", 512, "type", "floppy"), "type");
    refused("disks", json_pack("[{s:s, s:i, s:s}]", "file", "d.raw", "size", 512, "type", ""), "type");
    refused("disks", json_pack("[{s:s, s:i, s:i}]", "file", "d.raw", "size", 512, "type", 1), "type");
}

static void a_machine_has_one_set_of_uefi_variables(void **state)
{
    refused("disks",
            json_pack("[{s:s, s:i, s:s}, {s:s, s:i, s:s}]", "file", "a.raw", "size", 4096, "type",
                      "uefi-vars", "file", "b.raw", "size", 4096, "type", "uefi-vars"),
            "disk 1");
}

static void macs_are_unicast(void **state)
{
    refused_nic("br0", "01:54:00:12:34:56", "mac");
    refused_nic("br0", "00:00:00:00:00:00", "mac");
    refused_nic("br0", "52:54:00:12:34", "mac");
    refused_nic("br0", "52-54-00-12-34-56", "mac");
    refused_nic("a-bridge-name-too-long", "52:54:00:12:34:56", "bridge");
}

static void an_initrd_needs_a_kernel(void **state)
{
    refused("kernel", NULL, "kernel");
}

static void an_image_is_a_content_hash(void **state)
{
    refused_disk("d.raw", 512, "debian12", "image");
}

static void an_id_is_needed_and_not_zero(void **state)
{
    refused("id", NULL, "id");
    refused("id", json_string("00000000000000000000000000000000"), "id");
}

static void a_failure_leaves_the_output_untouched(void **state)
{
    struct vm_config config = sample(), back = sample();
    _cleanup_json_ json_t *json = vm_config_to_json(&config);
    json_object_set_new(json, "name", json_string("other"));
    json_object_set_new(json, "accel", json_string("xen"));
    assert_int_equal(read_back(json, &back, NULL), -EINVAL);
    assert_string_equal(back.name, "web1");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(survives_a_round_trip),
        cmocka_unit_test(the_types_of_disks_survive_a_round_trip),
        cmocka_unit_test(the_kinds_of_ram_survive_a_round_trip),
        cmocka_unit_test(saved_and_loaded),
        cmocka_unit_test(missing_members_get_their_defaults),
        cmocka_unit_test(amounts_may_be_text),
        cmocka_unit_test(a_typing_error_in_a_member_is_named),
        cmocka_unit_test(members_of_the_wrong_type_are_refused),
        cmocka_unit_test(names_that_are_paths_or_options_are_refused),
        cmocka_unit_test(files_may_not_be_orais_own),
        cmocka_unit_test(what_could_add_qemu_options_is_refused),
        cmocka_unit_test(amounts_have_bounds),
        cmocka_unit_test(lists_have_bounds),
        cmocka_unit_test(two_of_the_same_are_refused),
        cmocka_unit_test(a_disk_is_of_a_known_type),
        cmocka_unit_test(a_machine_has_one_set_of_uefi_variables),
        cmocka_unit_test(macs_are_unicast),
        cmocka_unit_test(an_initrd_needs_a_kernel),
        cmocka_unit_test(an_image_is_a_content_hash),
        cmocka_unit_test(an_id_is_needed_and_not_zero),
        cmocka_unit_test(a_failure_leaves_the_output_untouched),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
