/* SPDX-License-Identifier: Apache-2.0
 *
 * New disks, and the side files of an image that has none.
 *
 * The image of a new disk is built without a name (O_TMPFILE) and gets its name last, when everything is
 * durable: after a power cut there is the whole disk or none, and the next try replaces side files that were
 * left over. Of the side files the lineage comes last, for the same reason.
 *
 * Two creators of one disk at the same moment are kept apart by a lock on the folder (a new disk) or on the
 * image (side files of an image that is there), held only while names appear, not while a base image is
 * copied.
 */
#include "disk/private.h"

#include "base/file.h"
#include "base/macro.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

#define COPY_CHUNK (4 * MiB)

static const char *const side_suffixes[] = {SUFFIX_LINEAGE, SUFFIX_MISSING, SUFFIX_INTENT, SUFFIX_MAP};

static int remove_side_files(const char *path, struct err *err)
{
    int result = 0;
    for (size_t i = 0; i < ARRAY_SIZE(side_suffixes); i++) {
        char side[PATH_MAX];
        int r = side_path(path, side_suffixes[i], side, err);
        if (r == 0 && unlink(side) < 0 && errno != ENOENT)
            r = err_sys(err, errno, "cannot remove %s", side);
        if (r < 0)
            result = r;
    }
    return result;
}

/* --- side files ---------------------------------------------------------------------------------------- */

/* Of an image that was not written through us, what is not a hole counts as written. */
static int mark_data(const struct image *image, struct genmap *map)
{
    int r = 0;
    for (uint64_t at = image_next_data(image, 0); at < image->size && r == 0;) {
        uint64_t end = image_next_hole(image, at);
        uint64_t first = at / DISK_BLOCK, last = (end - 1) / DISK_BLOCK;
        r = genmap_mark(map, first, last - first + 1, 1);
        at = end < image->size ? image_next_data(image, end) : end;
    }
    return r < 0 ? r : genmap_sync(map);
}

static int create_map(const char *path, const struct image *image, const struct image *data,
                      const struct id *disk, uint32_t current, struct id *ret_map, struct err *err)
{
    char side[PATH_MAX];
    int r = side_path(path, SUFFIX_MAP, side, err);
    if (r == 0)
        r = genmap_create(side, disk, image->size, current, err);
    if (r < 0)
        return r;
    _cleanup_(genmap_done) struct genmap map;
    r = genmap_open(side, false, &map, err);
    if (r < 0)
        return r;
    *ret_map = map.header.map;
    r = data ? mark_data(data, &map) : 0;
    return r < 0 ? err_sys(err, r, "cannot write the generation map %s", side) : 0;
}

static int create_lineage(const char *path, const struct image *image, const struct id *disk,
                          const struct id *base, struct err *err)
{
    char side[PATH_MAX];
    _cleanup_free_ void *bytes = NULL;
    size_t size = 0;
    _cleanup_(lineage_cleanup) struct lineage *lineage = lineage_new(disk, image->size);
    /* Time 0: a base image is the same entry wherever and whenever it was taken. */
    int r = !lineage ? -ENOMEM : base ? lineage_add(lineage, 1, base, LINEAGE_BASE, "", 0) : 0;
    if (r == 0)
        r = lineage_encode(lineage, &bytes, &size);
    if (r < 0)
        return err_sys(err, r, "cannot make the lineage of %s", path);
    r = side_path(path, SUFFIX_LINEAGE, side, err);
    return r < 0 ? r : file_replace(side, bytes, size, 0600, err);
}

static int make_side_files(const char *path, const struct image *image, const struct image *data,
                           const struct id *base, struct err *err)
{
    char side[PATH_MAX];
    struct id disk = id_random(), map;
    /* Generation 1 is what is there already; the lineage's next is never below current. */
    int r = create_map(path, image, data, &disk, base ? 2 : 1, &map, err);
    if (r == 0)
        r = side_path(path, SUFFIX_INTENT, side, err);
    if (r == 0)
        r = intent_create(side, &map, image->size, err);
    if (r == 0)
        r = file_sync_parent(path, err);
    return r < 0 ? r : create_lineage(path, image, &disk, base, err);
}

int side_files_create(const char *path, const struct image *image, const struct image *data,
                      const struct id *base, struct err *err)
{
    int r = remove_side_files(path, err);
    if (r == 0)
        r = make_side_files(path, image, data, base, err);
    if (r < 0)
        (void)remove_side_files(path, NULL); /* the first error is the one to tell */
    return r;
}

/* --- the image of a new disk --------------------------------------------------------------------------- */

static int copy_range(int from, int to, uint64_t offset, uint64_t size, void *buffer)
{
    bool in_kernel = true;
    for (uint64_t end = offset + size; offset < end;) {
        size_t part = MIN(end - offset, COPY_CHUNK);
        off_t in = (off_t)offset, out = (off_t)offset;
        ssize_t n = in_kernel ? copy_file_range(from, &in, to, &out, part, 0) : 0;
        if (n > 0) {
            offset += (uint64_t)n;
            continue;
        }
        if (n < 0 && errno != EXDEV && errno != EOPNOTSUPP && errno != EINVAL && errno != ENOSYS)
            return -errno;
        in_kernel = false;
        int r = file_pread_full(from, buffer, part, offset);
        if (r == 0)
            r = file_pwrite_full(to, buffer, part, offset);
        if (r < 0)
            return r == -EPIPE ? -EIO : r;
        offset += part;
    }
    return 0;
}

static int copy_data(const struct image *base, int to)
{
    if (ioctl(to, FICLONE, base->fd) == 0)
        return 0;
    _cleanup_free_ void *buffer = malloc(COPY_CHUNK);
    if (!buffer)
        return -ENOMEM;
    int r = 0;
    for (uint64_t at = image_next_data(base, 0); at < base->size && r == 0;) {
        uint64_t end = image_next_hole(base, at);
        r = copy_range(base->fd, to, at, end - at, buffer);
        at = end < base->size ? image_next_data(base, end) : end;
    }
    return r;
}

static int open_base(const char *base, uint64_t size, struct image *ret, struct err *err)
{
    int r = image_open(base, true, false, ret, err);
    if (r == 0 && ret->size > size)
        r = err_set(err, EINVAL, "the base image %s has %llu bytes, more than the disk's %llu", base,
                    (unsigned long long)ret->size, (unsigned long long)size);
    return r;
}

static int copy_base(const char *base, uint64_t size, int to, struct err *err)
{
    _cleanup_(image_done) struct image image = IMAGE_NONE;
    int r = open_base(base, size, &image, err);
    if (r < 0)
        return r;
    r = copy_data(&image, to);
    return r < 0 ? err_sys(err, r, "cannot copy the base image %s", base) : 0;
}

/* The folder that `path` is or will be in; its descriptor, or -errno. */
static int open_folder(const char *path, struct err *err)
{
    char folder[PATH_MAX];
    snprintf(folder, sizeof folder, "%s", path);
    char *slash = strrchr(folder, '/');
    if (slash)
        slash[slash == folder] = '\0';
    int fd = open(slash ? folder : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return fd < 0 ? err_sys(err, errno, "cannot open the folder of %s", path) : fd;
}

static int fill_image(int folder, const char *path, uint64_t size, const char *base, struct err *err)
{
    _cleanup_close_ int fd = openat(folder, ".", O_RDWR | O_TMPFILE | O_CLOEXEC, 0600);
    if (fd < 0)
        return err_sys(err, errno, "cannot make a file that has no name yet beside %s", path);
    int r = base ? copy_base(base, size, fd, err) : 0;
    if (r == 0 && (ftruncate(fd, (off_t)size) < 0 || fsync(fd) < 0))
        r = err_sys(err, errno, "cannot make %s with %llu bytes", path, (unsigned long long)size);
    return r < 0 ? r : TAKE_FD(fd);
}

static int give_name(int fd, const char *path, struct err *err)
{
    char unnamed[64];
    snprintf(unnamed, sizeof unnamed, "/proc/self/fd/%d", fd);
    if (linkat(AT_FDCWD, unnamed, AT_FDCWD, path, AT_SYMLINK_FOLLOW) < 0)
        return err_sys(err, errno, "cannot give %s its name", path);
    int r = file_sync_parent(path, err);
    if (r < 0)
        unlink(path);
    return r;
}

static int check_absent(const char *path, struct err *err)
{
    struct stat st;
    return lstat(path, &st) == 0 ? err_set(err, EEXIST, "%s is there already", path) : 0;
}

/* Under the folder's lock. */
static int publish(const char *path, const struct image *image, const struct id *base_hash, struct err *err)
{
    int r = check_absent(path, err);
    if (r == 0)
        r = side_files_create(path, image, image, base_hash, err);
    if (r < 0)
        return r;
    r = give_name(image->fd, path, err);
    if (r < 0)
        (void)remove_side_files(path, NULL);
    return r;
}

/* --- a new disk on a block device ---------------------------------------------------------------------- */

static bool is_device(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && S_ISBLK(st.st_mode);
}

/* The device is ours alone while `device` is open. */
static int open_device(const char *path, uint64_t size, struct image *device, struct err *err)
{
    char side[PATH_MAX];
    int r = side_path(path, SUFFIX_LINEAGE, side, err);
    if (r < 0)
        return r;
    if (access(side, F_OK) == 0)
        return err_set(err, EEXIST, "%s is a disk already", path);
    r = image_open(path, false, false, device, err);
    if (r == 0 && device->size != size)
        r = err_set(err, EINVAL, "the block device %s has %llu bytes, the disk %llu", path,
                    (unsigned long long)device->size, (unsigned long long)size);
    return r;
}

/* What a disk has never been written to reads as zeroes, on a device too. */
static int create_on_device(const char *path, uint64_t size, const char *base, const struct id *base_hash,
                            struct err *err)
{
    _cleanup_(image_done) struct image device = IMAGE_NONE, image = IMAGE_NONE;
    int r = open_device(path, size, &device, err);
    if (r == 0 && base)
        r = open_base(base, size, &image, err);
    if (r < 0)
        return r;
    r = image_punch(&device, size, 0, false);
    if (r == 0 && base)
        r = copy_data(&image, device.fd);
    if (r == 0)
        r = image_sync(&device);
    if (r < 0)
        return err_sys(err, r, "cannot write the block device %s", path);
    return side_files_create(path, &device, base ? &image : NULL, base ? base_hash : NULL, err);
}

int disk_create(const char *path, uint64_t size, const char *base, const struct id *base_hash,
                struct err *err)
{
    if (size == 0 || size % 512 != 0 || size > INT64_MAX)
        return err_set(err, EINVAL, "a disk has a multiple of 512 bytes, not %llu", (unsigned long long)size);
    if (is_device(path))
        return create_on_device(path, size, base, base_hash, err);
    int r = check_absent(path, err); /* again under the lock; this one saves the copying */
    if (r < 0)
        return r;
    _cleanup_close_ int folder = open_folder(path, err);
    if (folder < 0)
        return folder;
    _cleanup_close_ int fd = fill_image(folder, path, size, base, err);
    if (fd < 0)
        return fd;
    const struct image image = {.fd = fd, .direct_fd = -1, .sector = 1, .size = size};
    if (flock(folder, LOCK_EX) < 0)
        return err_sys(err, errno, "cannot lock the folder of %s", path);
    return publish(path, &image, base ? base_hash : NULL, err);
}

/* --- removal ------------------------------------------------------------------------------------------- */

int side_files_unused(const char *path, struct err *err)
{
    char side[PATH_MAX];
    int r = side_path(path, SUFFIX_MAP, side, err);
    if (r < 0)
        return r;
    _cleanup_close_ int fd = open(side, O_RDONLY | O_CLOEXEC);
    if (fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) < 0)
        return err_set(err, EBUSY, "%s is in use by another process", path);
    return 0;
}

int disk_remove(const char *path, struct err *err)
{
    struct stat st;
    int r = side_files_unused(path, err);
    if (r < 0)
        return r;
    bool device = stat(path, &st) == 0 && S_ISBLK(st.st_mode);
    /* The image first: without it the side files are worth nothing, with a part of them it would look odd. */
    if (!device && unlink(path) < 0 && errno != ENOENT)
        return err_sys(err, errno, "cannot remove %s", path);
    r = remove_side_files(path, err);
    return r < 0 ? r : file_sync_parent(path, err);
}
