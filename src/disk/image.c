/* SPDX-License-Identifier: Apache-2.0
 *
 * Any thread may call any function here but image_open and image_done; the kernel orders the I/O.
 *
 * A block device's trim is done as "write zeroes, unmapping where possible" and never as a discard: what a
 * discarded sector reads as may change from one read to the next, and two hosts could not hold equal copies
 * of it.
 */
#include "disk/image.h"

#include "base/file.h"
#include "base/macro.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#define DIRECT_ALIGN 4096U /* suits every device that Linux has */
#define ZERO_CHUNK (256 * KiB)
/* The page cache of a file gets folios as long as the writes that fill it, and ext4 walks all blocks of a
 * folio at each later write into it: 4 KiB into one of 1 MiB cost 8 us, into one of 64 KiB 2 us (Linux 6.18).
 * Longer pieces gain nothing. */
#define WRITE_PIECE (64 * KiB)

static int measure(const char *path, struct image *image, struct err *err)
{
    struct stat st;
    if (fstat(image->fd, &st) < 0)
        return err_sys(err, errno, "cannot examine the image %s", path);
    if (S_ISREG(st.st_mode)) {
        image->size = (uint64_t)st.st_size;
        image->sector = 1;
    } else if (S_ISBLK(st.st_mode)) {
        int sector;
        image->block_device = true;
        if (ioctl(image->fd, BLKGETSIZE64, &image->size) < 0 || ioctl(image->fd, BLKSSZGET, &sector) < 0)
            return err_sys(err, errno, "cannot get the size of the block device %s", path);
        image->sector = (uint32_t)sector;
    } else {
        return err_set(err, EINVAL, "the image %s is neither a file nor a block device", path);
    }
    if (image->size == 0 || image->size % 512 != 0)
        return err_set(err, EINVAL, "the image %s has %llu bytes; a disk has a multiple of 512, at least one",
                       path, (unsigned long long)image->size);
    return 0;
}

int image_open(const char *path, bool read_only, bool direct, struct image *ret, struct err *err)
{
    _cleanup_(image_done) struct image image = IMAGE_NONE;
    int flags = (read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC | O_NOCTTY;
    struct stat st;
    /* O_EXCL without O_CREAT claims a block device; it means nothing, and is left out, for a file. */
    if (!read_only && stat(path, &st) == 0 && S_ISBLK(st.st_mode))
        flags |= O_EXCL;
    image.fd = open(path, flags);
    if (image.fd < 0)
        return err_sys(err, errno, "cannot open the image %s", path);
    int r = measure(path, &image, err);
    if (r < 0)
        return r;
    if (direct) {
        image.direct_fd = open(path, (flags & ~O_EXCL) | O_DIRECT);
        if (image.direct_fd < 0)
            return err_sys(err, errno, "cannot open the image %s for direct I/O", path);
    }
    *ret = image;
    image = IMAGE_NONE;
    return 0;
}

void image_done(struct image *image)
{
    if (image->fd >= 0)
        close(image->fd);
    if (image->direct_fd >= 0)
        close(image->direct_fd);
    image->fd = image->direct_fd = -1;
}

/* Direct I/O where the request allows it; the kernel keeps it coherent with the buffered rest. */
static int choose_fd(const struct image *image, const void *data, size_t size, uint64_t offset)
{
    bool aligned = (((uintptr_t)data | size | offset) & (DIRECT_ALIGN - 1)) == 0;
    return image->direct_fd >= 0 && aligned ? image->direct_fd : image->fd;
}

int image_read(const struct image *image, void *data, size_t size, uint64_t offset)
{
    int r = file_pread_full(choose_fd(image, data, size, offset), data, size, offset);
    return r == -EPIPE ? -EIO : r; /* somebody cut the image short */
}

int image_write(const struct image *image, const void *data, size_t size, uint64_t offset)
{
    int fd = choose_fd(image, data, size, offset);
    if (fd == image->direct_fd)
        return file_pwrite_full(fd, data, size, offset);
    const uint8_t *at = data;
    int r = 0;
    for (size_t part; r == 0 && size > 0; at += part, offset += part, size -= part) {
        part = MIN(WRITE_PIECE - offset % WRITE_PIECE, size);
        r = file_pwrite_full(fd, at, part, offset);
    }
    return r;
}

static int write_zeroes(const struct image *image, uint64_t size, uint64_t offset)
{
    static const uint8_t zeroes[ZERO_CHUNK];
    while (size > 0) {
        size_t part = MIN(size, sizeof zeroes);
        int r = file_pwrite_full(image->fd, zeroes, part, offset);
        if (r < 0)
            return r;
        offset += part;
        size -= part;
    }
    return 0;
}

static int allocate(int fd, int mode, uint64_t offset, uint64_t size)
{
    int r;
    do
        r = fallocate(fd, mode | FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)size);
    while (r < 0 && errno == EINTR);
    return r < 0 ? -errno : 0;
}

static int clear_aligned(const struct image *image, int mode, uint64_t size, uint64_t offset, bool fast)
{
    /* The kernel's own fall-back for a device without "write zeroes" is to write them. */
    if (image->block_device && mode == FALLOC_FL_ZERO_RANGE && fast)
        return -ENOTSUP;
    int r = allocate(image->fd, mode, offset, size);
    if (r != -EOPNOTSUPP)
        return r;
    return fast ? -ENOTSUP : write_zeroes(image, size, offset);
}

static int clear(const struct image *image, int mode, uint64_t size, uint64_t offset, bool fast)
{
    uint64_t end = offset + size;
    uint64_t from = (offset + image->sector - 1) / image->sector * image->sector;
    uint64_t to = end / image->sector * image->sector;
    if (from >= to)
        return write_zeroes(image, size, offset);
    int r = clear_aligned(image, mode, to - from, from, fast);
    if (r == 0)
        r = write_zeroes(image, from - offset, offset);
    return r < 0 ? r : write_zeroes(image, end - to, to);
}

int image_punch(const struct image *image, uint64_t size, uint64_t offset, bool fast)
{
    return clear(image, FALLOC_FL_PUNCH_HOLE, size, offset, fast);
}

int image_zero(const struct image *image, uint64_t size, uint64_t offset, bool fast)
{
    return clear(image, FALLOC_FL_ZERO_RANGE, size, offset, fast);
}

int image_sync(struct image *image)
{
    int error = atomic_load(&image->sync_error);
    if (error < 0)
        return error;
    if (fdatasync(image->fd) == 0)
        return 0;
    error = -errno;
    atomic_store(&image->sync_error, error);
    return error;
}

uint64_t image_next_data(const struct image *image, uint64_t offset)
{
    if (image->block_device)
        return offset;
    off_t at = lseek(image->fd, (off_t)offset, SEEK_DATA);
    if (at < 0) /* a file system without SEEK_DATA: all is data */
        return errno == ENXIO ? image->size : offset;
    return MIN((uint64_t)at, image->size);
}

uint64_t image_next_hole(const struct image *image, uint64_t offset)
{
    off_t at = image->block_device ? -1 : lseek(image->fd, (off_t)offset, SEEK_HOLE);
    return at < 0 ? image->size : MIN((uint64_t)at, image->size);
}
