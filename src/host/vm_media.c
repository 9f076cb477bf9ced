/* SPDX-License-Identifier: Apache-2.0 */
#include "host/vm_media.h"

#include "base/file.h"
#include "base/macro.h"
#include "disk/disk.h"
#include "host/caller.h"
#include "host/image.h"
#include "host/image_copy.h"
#include "host/vm.h"
#include "vmm/firmware.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#define BOOT_FILE_MAX (1 * GiB)
#define CDROM_SECTOR 2048U

struct filling {
    const struct vm_media *media;
    struct host *host;
    const char *dir;
    vm_media_tell_fn *tell;
    void *arg;
    uint64_t done, total;
};

/* --- opening -------------------------------------------------------------------------------------------- */

static int open_file(const struct request *request, const char *key, int *ret, struct err *err)
{
    const char *path = NULL;
    int r = body_string(request->body, key, &path, err);
    return r < 0 || !path ? r : caller_open(&request->credentials, path, key, ret, err);
}

/* A file that is no image of a CD-ROM is padded to whole sectors. */
static int measure_cdrom(struct vm_media *media, struct err *err)
{
    off_t end = lseek(media->cdrom, 0, SEEK_END);
    if (end <= 0)
        return err_set(err, EINVAL, "the cdrom is empty");
    media->cdrom_size = ((uint64_t)end + CDROM_SECTOR - 1) / CDROM_SECTOR * CDROM_SECTOR;
    return 0;
}

static int open_uefi_vars(struct vm_media *media, const struct host *host, struct err *err)
{
    uint64_t unused;
    int r = firmware_size(host->options.firmware, &unused, err);
    if (r == 0)
        r = firmware_open(host->options.firmware, FIRMWARE_VARS, &media->uefi_vars_size, err);
    if (r < 0)
        return r;
    media->uefi_vars = r;
    return 0;
}

int vm_media_open(struct vm_media *media, struct host *host, const struct request *request, struct err *err)
{
    bool uefi = false;
    int r = open_file(request, "kernel", &media->kernel, err);
    if (r == 0)
        r = open_file(request, "initrd", &media->initrd, err);
    if (r == 0)
        r = open_file(request, "cdrom", &media->cdrom, err);
    if (r == 0 && media->cdrom >= 0)
        r = measure_cdrom(media, err);
    if (r == 0)
        r = body_flag(request->body, "uefi", &uefi, err);
    if (r == 0 && uefi)
        r = open_uefi_vars(media, host, err);
    return r;
}

/* A stopped VM does not hold its device. */
static int check_no_other_vm(struct host *host, dev_t device, struct err *err)
{
    _cleanup_free_ char(*names)[VM_NAME_SIZE] = NULL;
    _cleanup_free_ struct vm_config *config = malloc(sizeof *config);
    size_t count = 0;
    int r = config ? vm_names(host->vms, &names, &count, err) : err_set(err, ENOMEM, "out of memory");
    for (size_t i = 0; r == 0 && i < count; i++) {
        char dir[PATH_MAX], path[PATH_MAX + sizeof config->disks->file + 1];
        struct err unused;
        struct stat st;
        vm_dir(host, names[i], dir);
        if (vm_config_load(dir, config, &unused) < 0)
            continue;
        for (size_t d = 0; r == 0 && d < config->disk_count; d++) {
            snprintf(path, sizeof path, "%s/%s", dir, config->disks[d].file);
            if (stat(path, &st) == 0 && S_ISBLK(st.st_mode) && st.st_rdev == device)
                r = err_set(err, EBUSY, "the VM \"%s\" has this block device as %s", names[i],
                            config->disks[d].file);
        }
    }
    return r;
}

int vm_media_take_device(struct vm_media *media, struct host *host, const struct credentials *caller,
                         size_t index, json_t *disk, struct err *err)
{
    const char *path = NULL;
    uint64_t size = 0, wanted;
    dev_t device = 0;
    int r = body_string(disk, "device", &path, err);
    if (r < 0 || !path || index >= VM_MAX_DISKS)
        return r;
    r = caller_check_device(caller, path, &size, &device, err);
    if (r == 0)
        r = check_no_other_vm(host, device, err);
    wanted = size;
    if (r == 0)
        r = body_number(disk, "size", 1, INT64_MAX, &wanted, err);
    if (r < 0)
        return r;
    if (wanted != size)
        return err_set(err, EINVAL, "disk %zu: the block device %.300s has %llu bytes, and no other size",
                       index, path, (unsigned long long)size);
    free(media->devices[index]);
    media->devices[index] = strdup(path);
    if (!media->devices[index])
        return err_set(err, ENOMEM, "out of memory");
    json_object_del(disk, "device");
    json_object_set_new(disk, "size", json_integer((json_int_t)size));
    return 0;
}

void vm_media_done(struct vm_media *media)
{
    for (size_t i = 0; i < VM_MAX_DISKS; i++)
        free(media->devices[i]);
    close_cleanup(&media->kernel);
    close_cleanup(&media->initrd);
    close_cleanup(&media->cdrom);
    close_cleanup(&media->uefi_vars);
    *media = VM_MEDIA_NONE;
}

static void add_disk(json_t *disks, const char *file, enum vm_disk_type type, uint64_t size)
{
    json_array_append_new(disks, json_pack("{s:s, s:s, s:I}", "file", file, "type", vm_disk_type_name(type),
                                           "size", (json_int_t)size));
}

void vm_media_add_disks(const struct vm_media *media, json_t *disks)
{
    if (media->cdrom >= 0)
        add_disk(disks, "cdrom.raw", VM_DISK_CDROM, media->cdrom_size);
    if (media->uefi_vars >= 0)
        add_disk(disks, "uefi-vars.raw", VM_DISK_UEFI_VARS, media->uefi_vars_size);
}

/* --- filling -------------------------------------------------------------------------------------------- */

/* Kernel and initrd: QEMU's user reads them. */
static int copy_boot_file(int from, const char *dir, const char *name, struct err *err)
{
    char path[PATH_MAX];
    struct stat st;
    if (from < 0)
        return 0;
    if (snprintf(path, sizeof path, "%s/%s", dir, name) >= (int)sizeof path)
        return err_set(err, ENAMETOOLONG, "path too long: %s", dir);
    if (fstat(from, &st) < 0 || !S_ISREG(st.st_mode) || (uint64_t)st.st_size > BOOT_FILE_MAX)
        return err_set(err, EINVAL, "the %s must be a file of at most 1 GiB", name);
    _cleanup_close_ int to = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    _cleanup_free_ char *data = malloc(MAX(st.st_size, 1));
    if (to < 0 || !data)
        return err_sys(err, to < 0 ? errno : ENOMEM, "cannot create %s", path);
    int r = file_pread_full(from, data, (size_t)st.st_size, 0);
    if (r == 0)
        r = file_write_full(to, data, (size_t)st.st_size);
    if (r == 0 && (fchmod(to, 0644) < 0 || fsync(to) < 0))
        r = -errno;
    return r < 0 ? err_sys(err, r, "cannot copy the %s", name) : 0;
}

static int id_of_hash(const char *hash, struct id *ret)
{
    char half[ID_TEXT_SIZE];
    snprintf(half, sizeof half, "%.32s", hash);
    return id_parse(half, ret);
}

/* Without a base image the device's content is the disk's. */
static int adopt_device(const char *path, struct err *err)
{
    struct disk *disk;
    int r = disk_open(path, DISK_INIT, &disk, err);
    return r < 0 ? r : disk_close(disk, err);
}

static int create_plain(const struct filling *filling, const char *path, const struct vm_disk *disk,
                        const char *device, struct err *err)
{
    char base[PATH_MAX];
    struct id hash;
    if (device && symlink(device, path) < 0)
        return err_sys(err, errno, "cannot make the link %s", path);
    if (device && !disk->image[0])
        return adopt_device(path, err);
    if (!disk->image[0])
        return disk_create(path, disk->size, NULL, NULL, err);
    int r = id_of_hash(disk->image, &hash);
    if (r == 0)
        r = image_path(filling->host, disk->image, base, err);
    return r < 0 ? r : disk_create(path, disk->size, base, &hash, err);
}

static void tell_copied(void *arg, uint64_t done)
{
    const struct filling *filling = arg;
    filling->tell(filling->arg, "cdrom", filling->done + done, filling->total);
}

/* The copy is hashed as it is written, and the disk is made from that copy: the file may change meanwhile. */
static int copy_cdrom(struct filling *filling, const char *copy, struct vm_disk *disk, struct err *err)
{
    uint8_t hash[HASH_SIZE];
    _cleanup_close_ int to = open(copy, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (to < 0)
        return err_sys(err, errno, "cannot create %s", copy);
    struct image_pass pass = {filling->media->cdrom,    to,          disk->size,
                              &filling->host->stopping, tell_copied, filling};
    int r = image_pass(&pass, hash, err);
    if (r < 0)
        return err_context(err, "the cdrom");
    hex_format(hash, sizeof hash, disk->image);
    return 0;
}

/* Its hash is its base: a destination that has an image of this content need not be sent it. */
static int create_cdrom(struct filling *filling, const char *path, struct vm_disk *disk, struct err *err)
{
    char copy[PATH_MAX + 8];
    struct id hash;
    snprintf(copy, sizeof copy, "%s.new", path);
    int r = copy_cdrom(filling, copy, disk, err);
    if (r == 0)
        r = id_of_hash(disk->image, &hash);
    if (r == 0)
        r = disk_create(path, disk->size, copy, &hash, err);
    unlink(copy);
    return r;
}

static int create_uefi_vars(const struct filling *filling, const char *path, const struct vm_disk *disk,
                            struct err *err)
{
    char from[32];
    snprintf(from, sizeof from, "/proc/self/fd/%d", filling->media->uefi_vars);
    return disk_create(path, disk->size, from, NULL, err);
}

static int create_disk(struct filling *filling, struct vm_disk *disk, const char *device, struct err *err)
{
    char path[PATH_MAX];
    if (snprintf(path, sizeof path, "%s/%s", filling->dir, disk->file) >= (int)sizeof path)
        return err_set(err, ENAMETOOLONG, "path too long: %s", filling->dir);
    switch (disk->type) {
    case VM_DISK_PLAIN:
        return create_plain(filling, path, disk, device, err);
    case VM_DISK_CDROM:
        return create_cdrom(filling, path, disk, err);
    case VM_DISK_UEFI_VARS:
        return create_uefi_vars(filling, path, disk, err);
    }
    return err_set(err, EINVAL, "an unknown type of disk");
}

int vm_media_fill(const struct vm_media *media, struct host *host, const char *dir, struct vm_config *config,
                  vm_media_tell_fn *tell, void *arg, struct err *err)
{
    struct filling filling = {.media = media, .host = host, .dir = dir, .tell = tell, .arg = arg};
    int r = copy_boot_file(media->kernel, dir, "kernel", err);
    if (r == 0)
        r = copy_boot_file(media->initrd, dir, "initrd", err);
    for (size_t i = 0; i < config->disk_count; i++)
        filling.total += config->disks[i].size;
    for (size_t i = 0; r == 0 && i < config->disk_count; i++) {
        tell(arg, "disk", filling.done, filling.total);
        r = create_disk(&filling, &config->disks[i], media->devices[i], err);
        filling.done += config->disks[i].size;
    }
    return r;
}
