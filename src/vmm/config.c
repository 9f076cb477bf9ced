/* SPDX-License-Identifier: Apache-2.0
 *
 * config: reads, checks and writes VM_DIR/vm.json. The JSON may come from a person's editor or from a peer,
 * so whatever is accepted here is safe to put on QEMU's command line and to use as a file name below VM_DIR:
 * every string has a closed alphabet, every number a bound, and no file may take the name of one of Orai's
 * own.
 *
 * Pure but for load and save. On failure the error names the member, and *ret is untouched.
 */
#include "vmm/config.h"

#include "base/json.h"
#include "base/macro.h"
#include "base/size.h"
#include "net/address.h"

#include <ctype.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

#define MEMORY_UNIT (2 * MiB)
#define MEMORY_MIN (16 * MiB)
#define MEMORY_MAX (4096 * GiB)
#define CPUS_MAX 240
#define DISK_SIZE_MAX (UINT64_C(1) << 50)

static const char alphanumeric[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";

/* Only characters that are letters, digits or in `more`; the first one a letter or digit. */
static bool plain(const char *text, const char *more)
{
    if (!isalnum((unsigned char)text[0]) || (unsigned char)text[0] > 127)
        return false;
    for (const char *c = text; *c; c++)
        if (!strchr(alphanumeric, *c) && !strchr(more, *c))
            return false;
    return true;
}

static bool ends_with(const char *text, const char *end)
{
    size_t n = strlen(text), m = strlen(end);
    return n > m && strcmp(text + n - m, end) == 0;
}

/* A kernel or initrd may not be called what Orai calls its own files in the VM's folder. */
static bool free_name(const char *name)
{
    static const char *const own[] = {".raw",  ".map", ".lineage", ".intent", ".missing",
                                      ".json", ".log", ".lock",    ".new"};
    for (size_t i = 0; i < ARRAY_SIZE(own); i++)
        if (ends_with(name, own[i]))
            return false;
    return plain(name, "._-");
}

/* Copies a string member, "" when it is missing; longer ones than `size` - 1 are refused. */
static int copy_string(const json_t *object, const char *key, const char *what, const char *otherwise,
                       char *ret, size_t size, struct err *err)
{
    const json_t *member = json_object_get(object, key);
    if (member && !json_is_string(member))
        return err_set(err, EINVAL, "%s: \"%s\" must be a string", what, key);
    const char *text = member ? json_string_value(member) : otherwise;
    if (member && json_string_length(member) != strlen(text))
        return err_set(err, EINVAL, "%s: \"%s\" contains a NUL character", what, key);
    if (strlen(text) >= size)
        return err_set(err, EINVAL, "%s: \"%s\" has more than %zu characters", what, key, size - 1);
    memcpy(ret, text, strlen(text) + 1);
    return 0;
}

/* An amount of bytes: a number, or text as people write it ("1G"). */
static int get_bytes(const json_t *object, const char *key, const char *what, uint64_t *ret, struct err *err)
{
    const json_t *member = json_object_get(object, key);
    if (!json_is_string(member))
        return json_get_u64(object, key, what, ret, err);
    int r = size_parse(json_string_value(member), ret, err);
    return r < 0 ? err_context(err, "%s: \"%s\"", what, key) : 0;
}

static int read_identity(const json_t *json, const char *what, struct vm_config *config, struct err *err)
{
    int r = copy_string(json, "name", what, "", config->name, sizeof config->name, err);
    if (r < 0)
        return r;
    if (!plain(config->name, "._-"))
        return err_set(
            err, EINVAL,
            "%s: \"name\" must begin with a letter or digit and have only letters, digits, '.', '_', '-'",
            what);
    r = json_get_id(json, "id", what, &config->id, err);
    if (r == 0 && id_is_zero(&config->id))
        r = err_set(err, EINVAL, "%s: \"id\" is zero", what);
    return r;
}

static int read_size(const json_t *json, const char *what, struct vm_config *config, struct err *err)
{
    uint64_t cpus = 1;
    int r = get_bytes(json, "memory", what, &config->memory, err);
    if (r == 0 && json_object_get(json, "cpus"))
        r = json_get_u64(json, "cpus", what, &cpus, err);
    if (r < 0)
        return r;
    if (config->memory < MEMORY_MIN || config->memory > MEMORY_MAX || config->memory % MEMORY_UNIT)
        return err_set(err, EINVAL, "%s: \"memory\" must be a multiple of 2 MiB between 16 MiB and 4 TiB",
                       what);
    if (cpus < 1 || cpus > CPUS_MAX)
        return err_set(err, EINVAL, "%s: \"cpus\" must be between 1 and %d", what, CPUS_MAX);
    config->cpus = (unsigned)cpus;
    return 0;
}

/* Only versioned PC machines: an alias such as "q35" would mean another machine on another host. */
static bool versioned_machine(const char *name)
{
    static const char *const families[] = {"pc-q35-", "pc-i440fx-"};
    for (size_t i = 0; i < ARRAY_SIZE(families); i++) {
        size_t n = strlen(families[i]);
        if (strncmp(name, families[i], n) == 0)
            return isdigit((unsigned char)name[n]) && plain(name, "._-");
    }
    return false;
}

static int read_processor(const json_t *json, const char *what, struct vm_config *config, struct err *err)
{
    int r = copy_string(json, "machine", what, "", config->machine, sizeof config->machine, err);
    if (r == 0)
        r = copy_string(json, "cpu", what, "x86-64-v2", config->cpu, sizeof config->cpu, err);
    if (r == 0)
        r = copy_string(json, "accel", what, "auto", config->accel, sizeof config->accel, err);
    if (r < 0)
        return r;
    if (!versioned_machine(config->machine))
        return err_set(err, EINVAL, "%s: \"machine\" must be a versioned PC machine such as \"pc-q35-7.2\"",
                       what);
    if (!plain(config->cpu, "._-,+=:"))
        return err_set(err, EINVAL, "%s: \"cpu\" is not a QEMU CPU model", what);
    if (strcmp(config->accel, "auto") != 0 && strcmp(config->accel, "kvm") != 0 &&
        strcmp(config->accel, "tcg") != 0)
        return err_set(err, EINVAL, "%s: \"accel\" must be \"auto\", \"kvm\" or \"tcg\"", what);
    return 0;
}

static const char *const ram_names[] = {
    [VM_RAM_SHARED] = "shared", [VM_RAM_PRIVATE] = "private", [VM_RAM_HUGE] = "huge"};
static_assert(ARRAY_SIZE(ram_names) == VM_RAM_HUGE + 1, "a name for each kind of RAM");

const char *vm_ram_name(enum vm_ram ram)
{
    return ram_names[ram];
}

static int read_ram(const json_t *json, const char *what, struct vm_config *config, struct err *err)
{
    char name[16];
    size_t ram = 0;
    int r = copy_string(json, "ram", what, ram_names[VM_RAM_SHARED], name, sizeof name, err);
    while (r == 0 && ram < ARRAY_SIZE(ram_names) && strcmp(ram_names[ram], name) != 0)
        ram++;
    if (r == 0 && ram == ARRAY_SIZE(ram_names))
        r = err_set(err, EINVAL, "%s: \"ram\" must be \"shared\", \"private\" or \"huge\"", what);
    if (r == 0)
        config->ram = (enum vm_ram)ram;
    return r;
}

static int read_autostart(const json_t *json, const char *what, struct vm_config *config, struct err *err)
{
    const json_t *member = json_object_get(json, "autostart");
    if (member && !json_is_boolean(member))
        return err_set(err, EINVAL, "%s: \"autostart\" must be true or false", what);
    config->autostart = json_is_true(member);
    return 0;
}

static int read_kernel(const json_t *json, const char *what, struct vm_config *config, struct err *err)
{
    int r = copy_string(json, "kernel", what, "", config->kernel, sizeof config->kernel, err);
    if (r == 0)
        r = copy_string(json, "initrd", what, "", config->initrd, sizeof config->initrd, err);
    if (r == 0)
        r = copy_string(json, "append", what, "", config->append, sizeof config->append, err);
    if (r < 0)
        return r;
    if (config->kernel[0] && !free_name(config->kernel))
        return err_set(err, EINVAL, "%s: \"kernel\" must be a plain file name in the VM's folder", what);
    if (config->initrd[0] && !free_name(config->initrd))
        return err_set(err, EINVAL, "%s: \"initrd\" must be a plain file name in the VM's folder", what);
    if (!config->kernel[0] && (config->initrd[0] || config->append[0]))
        return err_set(err, EINVAL, "%s: \"initrd\" and \"append\" need a \"kernel\"", what);
    for (const char *c = config->append; *c; c++)
        if (iscntrl((unsigned char)*c))
            return err_set(err, EINVAL, "%s: \"append\" contains a control character", what);
    return 0;
}

static const char *const disk_types[] = {
    [VM_DISK_PLAIN] = "disk", [VM_DISK_CDROM] = "cdrom", [VM_DISK_UEFI_VARS] = "uefi-vars"};
static_assert(ARRAY_SIZE(disk_types) == VM_DISK_UEFI_VARS + 1, "a name for each type of disk");

const char *vm_disk_type_name(enum vm_disk_type type)
{
    return disk_types[type];
}

bool vm_config_uefi(const struct vm_config *config)
{
    for (size_t i = 0; i < config->disk_count; i++)
        if (config->disks[i].type == VM_DISK_UEFI_VARS)
            return true;
    return false;
}

static int read_disk_type(const json_t *json, const char *what, struct vm_disk *disk, struct err *err)
{
    char name[16];
    size_t type = 0;
    int r = copy_string(json, "type", what, disk_types[VM_DISK_PLAIN], name, sizeof name, err);
    while (r == 0 && type < ARRAY_SIZE(disk_types) && strcmp(disk_types[type], name) != 0)
        type++;
    if (r == 0 && type == ARRAY_SIZE(disk_types))
        r = err_set(err, EINVAL, "%s: \"type\" must be \"disk\", \"cdrom\" or \"uefi-vars\"", what);
    if (r == 0)
        disk->type = (enum vm_disk_type)type;
    return r;
}

static int read_disk(const json_t *json, const char *what, struct vm_disk *disk, struct err *err)
{
    static const char *const keys[] = {"file", "size", "image", "type", NULL};
    uint8_t hash[HASH_SIZE];
    int r = json_only_keys(json, what, keys, err);
    if (r == 0)
        r = copy_string(json, "file", what, "", disk->file, sizeof disk->file, err);
    if (r == 0)
        r = get_bytes(json, "size", what, &disk->size, err);
    if (r == 0)
        r = copy_string(json, "image", what, "", disk->image, sizeof disk->image, err);
    if (r == 0)
        r = read_disk_type(json, what, disk, err);
    if (r < 0)
        return r;
    if (!plain(disk->file, "._-") || !ends_with(disk->file, ".raw"))
        return err_set(err, EINVAL, "%s: \"file\" must be a plain file name that ends in \".raw\"", what);
    if (disk->size == 0 || disk->size % 512 || disk->size > DISK_SIZE_MAX)
        return err_set(err, EINVAL, "%s: \"size\" must be a multiple of 512 bytes, at most 1 PiB", what);
    if (disk->image[0] && hex_parse(disk->image, hash, sizeof hash) < 0)
        return err_set(err, EINVAL, "%s: \"image\" must be a content hash of 64 hex digits", what);
    return 0;
}

/* Six hex pairs, unicast and not zero: a guest's own address, never a group's. */
static bool guest_mac(const char *text)
{
    static const uint8_t zero[MAC_SIZE];
    uint8_t mac[MAC_SIZE];
    return mac_parse(text, mac) == 0 && memcmp(mac, zero, sizeof mac) != 0 && !(mac[0] & 1);
}

static int read_nic(const json_t *json, const char *what, struct vm_nic *nic, struct err *err)
{
    static const char *const keys[] = {"bridge", "mac", NULL};
    int r = json_only_keys(json, what, keys, err);
    if (r == 0)
        r = copy_string(json, "bridge", what, "", nic->bridge, sizeof nic->bridge, err);
    if (r == 0)
        r = copy_string(json, "mac", what, "", nic->mac, sizeof nic->mac, err);
    if (r < 0)
        return r;
    if (nic->bridge[0] && !plain(nic->bridge, "._-@"))
        return err_set(err, EINVAL, "%s: \"bridge\" is not an interface name", what);
    if (!guest_mac(nic->mac))
        return err_set(err, EINVAL, "%s: \"mac\" must be a unicast address such as \"52:54:00:12:34:56\"",
                       what);
    return 0;
}

static int read_list(const json_t *json, const char *key, const char *what, size_t max, const json_t **ret,
                     struct err *err)
{
    const json_t *list = json_object_get(json, key);
    if (list && !json_is_array(list))
        return err_set(err, EINVAL, "%s: \"%s\" must be a list", what, key);
    if (json_array_size(list) > max)
        return err_set(err, EINVAL, "%s: \"%s\" has more than %zu entries", what, key, max);
    *ret = list;
    return 0;
}

/* No other disk before `index` has the same file, or is what a machine has one of. */
static int check_unique(const struct vm_config *config, size_t index, const char *what, struct err *err)
{
    const struct vm_disk *disk = &config->disks[index];
    for (size_t i = 0; i < index; i++) {
        if (strcmp(disk->file, config->disks[i].file) == 0)
            return err_set(err, EINVAL, "%s: the file %s is also disk %zu", what, disk->file, i);
        if (disk->type == VM_DISK_UEFI_VARS && config->disks[i].type == VM_DISK_UEFI_VARS)
            return err_set(err, EINVAL, "%s: disk %zu has the UEFI variables already", what, i);
    }
    return 0;
}

static int read_disks(const json_t *json, const char *what, struct vm_config *config, struct err *err)
{
    const json_t *list;
    int r = read_list(json, "disks", what, VM_MAX_DISKS, &list, err);
    for (size_t i = 0; r == 0 && i < json_array_size(list); i++) {
        char where[96];
        snprintf(where, sizeof where, "%.64s: disk %zu", what, i);
        r = read_disk(json_array_get(list, i), where, &config->disks[i], err);
        if (r == 0)
            r = check_unique(config, i, where, err);
        config->disk_count = i + 1;
    }
    return r;
}

static int read_nics(const json_t *json, const char *what, struct vm_config *config, struct err *err)
{
    const json_t *list;
    int r = read_list(json, "nics", what, VM_MAX_NICS, &list, err);
    for (size_t i = 0; r == 0 && i < json_array_size(list); i++) {
        char where[96];
        snprintf(where, sizeof where, "%.64s: NIC %zu", what, i);
        r = read_nic(json_array_get(list, i), where, &config->nics[i], err);
        for (size_t j = 0; r == 0 && j < i; j++)
            if (strcasecmp(config->nics[i].mac, config->nics[j].mac) == 0)
                r = err_set(err, EINVAL, "%s: its MAC is also that of NIC %zu", where, j);
        config->nic_count = i + 1;
    }
    return r;
}

int vm_config_from_json(const json_t *json, const char *what, struct vm_config *ret, struct err *err)
{
    static const char *const keys[] = {"name",   "id",     "memory", "cpus",      "machine",
                                       "cpu",    "accel",  "ram",    "autostart", "kernel",
                                       "initrd", "append", "disks",  "nics",      NULL};
    static int (*const readers[])(const json_t *, const char *, struct vm_config *, struct err *) = {
        read_identity,  read_size,   read_processor, read_ram,
        read_autostart, read_kernel, read_disks,     read_nics,
    };
    _cleanup_free_ struct vm_config *config = calloc(1, sizeof *config);
    if (!config)
        return err_set(err, ENOMEM, "out of memory reading %s", what);
    if (!json_is_object(json))
        return err_set(err, EINVAL, "%s is not a JSON object", what);
    int r = json_only_keys(json, what, keys, err);
    for (size_t i = 0; r == 0 && i < ARRAY_SIZE(readers); i++)
        r = readers[i](json, what, config, err);
    if (r < 0)
        return r;
    if (config->initrd[0] && strcmp(config->kernel, config->initrd) == 0)
        return err_set(err, EINVAL, "%s: \"kernel\" and \"initrd\" name the same file", what);
    *ret = *config;
    return 0;
}

json_t *vm_config_to_json(const struct vm_config *config)
{
    char id[ID_TEXT_SIZE];
    json_t *disks = json_array(), *nics = json_array();
    for (size_t i = 0; i < config->disk_count; i++) {
        const struct vm_disk *d = &config->disks[i];
        const char *type = d->type == VM_DISK_PLAIN ? NULL : vm_disk_type_name(d->type);
        json_array_append_new(disks, json_pack("{s:s, s:I, s:s, s:s*}", "file", d->file, "size",
                                               (json_int_t)d->size, "image", d->image, "type", type));
    }
    for (size_t i = 0; i < config->nic_count; i++)
        json_array_append_new(
            nics, json_pack("{s:s, s:s}", "bridge", config->nics[i].bridge, "mac", config->nics[i].mac));
    /* The usual kind of RAM is not said: a host with a version that knows no other takes the VM then. */
    const char *ram = config->ram == VM_RAM_SHARED ? NULL : vm_ram_name(config->ram);
    return json_pack("{s:s, s:s, s:I, s:i, s:s, s:s, s:s, s:s*, s:b, s:s, s:s, s:s, s:o, s:o}", "name",
                     config->name, "id", id_format(&config->id, id), "memory", (json_int_t)config->memory,
                     "cpus", (int)config->cpus, "machine", config->machine, "cpu", config->cpu, "accel",
                     config->accel, "ram", ram, "autostart", config->autostart, "kernel", config->kernel,
                     "initrd", config->initrd, "append", config->append, "disks", disks, "nics", nics);
}

static int config_path(const char *vm_dir, char path[PATH_MAX], struct err *err)
{
    if (snprintf(path, PATH_MAX, "%s/vm.json", vm_dir) >= PATH_MAX)
        return err_set(err, ENAMETOOLONG, "path too long: %s/vm.json", vm_dir);
    return 0;
}

int vm_config_load(const char *vm_dir, struct vm_config *ret, struct err *err)
{
    char path[PATH_MAX];
    _cleanup_json_ json_t *json = NULL;
    int r = config_path(vm_dir, path, err);
    if (r == 0)
        r = json_read_file(path, &json, err);
    if (r < 0)
        return r;
    return vm_config_from_json(json, path, ret, err);
}

int vm_config_save(const char *vm_dir, const struct vm_config *config, struct err *err)
{
    char path[PATH_MAX];
    int r = config_path(vm_dir, path, err);
    if (r < 0)
        return r;
    _cleanup_json_ json_t *json = vm_config_to_json(config);
    if (!json)
        return err_set(err, ENOMEM, "cannot write %s: not UTF-8 text, or out of memory", path);
    return json_write_file(path, json, 0640, err);
}
