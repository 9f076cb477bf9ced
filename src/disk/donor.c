/* SPDX-License-Identifier: Apache-2.0 */
#include "disk/donor.h"

#include "base/file.h"
#include "base/macro.h"
#include "disk/private.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

struct donor {
    int fd;
};

static int donor_path(const char *image, char path[PATH_MAX], struct err *err)
{
    return side_path(image, ".donor", path, err);
}

/* Of a file that has any. */
static uint64_t file_bytes(const char *path)
{
    struct stat st;
    return lstat(path, &st) == 0 && S_ISREG(st.st_mode) ? (uint64_t)st.st_blocks * 512 : 0;
}

uint64_t donor_bytes(const char *image)
{
    char path[PATH_MAX];
    return donor_path(image, path, NULL) == 0 ? file_bytes(path) : 0;
}

bool donor_possible(const char *image)
{
    return file_bytes(image) || donor_bytes(image);
}

int donor_put_aside(const char *image, struct err *err)
{
    char path[PATH_MAX];
    int r = donor_path(image, path, err);
    if (r == 0)
        r = side_files_unused(image, err);
    if (r < 0)
        return r;
    if (file_bytes(image) && !donor_bytes(image) && rename(image, path) < 0)
        return err_sys(err, errno, "cannot put %s aside", image);
    return disk_remove(image, err); /* its side files, or all of it */
}

int donor_open(const char *image, struct donor **ret, struct err *err)
{
    char path[PATH_MAX];
    int r = donor_path(image, path, err);
    if (r < 0)
        return r;
    _cleanup_close_ int fd = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0)
        return err_sys(err, errno, "cannot open %s", path);
    struct donor *donor = malloc(sizeof *donor);
    if (!donor)
        return err_set(err, ENOMEM, "out of memory");
    donor->fd = TAKE_FD(fd);
    *ret = donor;
    return 0;
}

void donor_close(struct donor *donor)
{
    if (!donor)
        return;
    close(donor->fd);
    free(donor);
}

void donor_remove(const char *image)
{
    char path[PATH_MAX];
    if (donor_path(image, path, NULL) == 0)
        unlink(path);
}

/* Fewer at its end. */
static ssize_t read_some(int fd, void *data, size_t size, uint64_t offset)
{
    size_t got = 0;
    while (got < size) {
        ssize_t n = pread(fd, (char *)data + got, size - got, (off_t)(offset + got));
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        if (n == 0)
            break;
        got += (size_t)n;
    }
    return (ssize_t)got;
}

int donor_look(const struct donor *donor, const struct sums *sums, uint64_t block, unsigned count,
               size_t size, const uint8_t (*wanted)[SUMS_SIZE], void *data, uint64_t *ret, struct err *err)
{
    uint8_t ours[DONOR_BLOCKS][SUMS_SIZE] = {0};
    ssize_t got = read_some(donor->fd, data, size, block * DISK_BLOCK);
    *ret = UINT64_MAX >> (64 - count);
    if (got < 0) /* what cannot be read is sent */
        return 0;
    int r = sums_make(sums, data, (size_t)got, ours, err);
    for (unsigned i = 0; r == 0 && i < count; i++) {
        size_t end = MIN(size, (i + 1) * (size_t)DISK_BLOCK);
        if ((size_t)got >= end && memcmp(ours[i], wanted[i], SUMS_SIZE) == 0)
            *ret &= ~(UINT64_C(1) << i);
    }
    return r;
}

void donor_punch(const struct donor *donor, uint64_t end)
{
    if (end)
        (void)fallocate(donor->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, (off_t)(end * DISK_BLOCK));
}
