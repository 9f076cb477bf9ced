/* SPDX-License-Identifier: Apache-2.0 */
#include "base/file.h"

#include "base/macro.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

int file_read_full(int fd, void *data, size_t size)
{
    for (size_t done = 0; done < size;) {
        ssize_t n = read(fd, (char *)data + done, size - done);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        if (n == 0)
            return -EPIPE;
        done += (size_t)n;
    }
    return 0;
}

int file_write_full(int fd, const void *data, size_t size)
{
    for (size_t done = 0; done < size;) {
        ssize_t n = write(fd, (const char *)data + done, size - done);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        done += (size_t)n;
    }
    return 0;
}

int file_pread_full(int fd, void *data, size_t size, uint64_t offset)
{
    for (size_t done = 0; done < size;) {
        ssize_t n = pread(fd, (char *)data + done, size - done, (off_t)(offset + done));
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        if (n == 0)
            return -EPIPE;
        done += (size_t)n;
    }
    return 0;
}

int file_pwrite_full(int fd, const void *data, size_t size, uint64_t offset)
{
    for (size_t done = 0; done < size;) {
        ssize_t n = pwrite(fd, (const char *)data + done, size - done, (off_t)(offset + done));
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        done += (size_t)n;
    }
    return 0;
}

int file_sync_parent(const char *path, struct err *err)
{
    char parent[PATH_MAX];
    snprintf(parent, sizeof parent, "%s", path);
    char *slash = strrchr(parent, '/');
    if (!slash)
        snprintf(parent, sizeof parent, ".");
    else if (slash == parent)
        slash[1] = '\0';
    else
        *slash = '\0';
    _cleanup_close_ int fd = open(parent, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 || fsync(fd) < 0)
        return err_sys(err, errno, "cannot make changes in %s durable", parent);
    return 0;
}

static int write_durably(const char *path, const void *data, size_t size, mode_t mode, struct err *err)
{
    _cleanup_close_ int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, mode);
    if (fd < 0)
        return err_sys(err, errno, "cannot create %s", path);
    int r = file_write_full(fd, data, size);
    if (r < 0)
        return err_sys(err, r, "cannot write %s", path);
    if (fchmod(fd, mode) < 0 || fsync(fd) < 0)
        return err_sys(err, errno, "cannot write %s durably", path);
    return 0;
}

int file_replace(const char *path, const void *data, size_t size, mode_t mode, struct err *err)
{
    char temporary[PATH_MAX];
    if (snprintf(temporary, sizeof temporary, "%s.new", path) >= (int)sizeof temporary)
        return err_set(err, ENAMETOOLONG, "path too long: %s", path);
    int r = write_durably(temporary, data, size, mode, err);
    if (r == 0 && rename(temporary, path) < 0)
        r = err_sys(err, errno, "cannot rename %s to %s", temporary, path);
    if (r < 0) {
        unlink(temporary);
        return r;
    }
    return file_sync_parent(path, err);
}

int file_load(const char *path, size_t limit, void **ret_data, size_t *ret_size, struct err *err)
{
    _cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct stat st;
    if (fd < 0 || fstat(fd, &st) < 0)
        return err_sys(err, errno, "cannot read %s", path);
    if (!S_ISREG(st.st_mode))
        return err_set(err, EINVAL, "%s is not a regular file", path);
    if ((uint64_t)st.st_size > limit)
        return err_set(err, EFBIG, "%s has %lld bytes, more than the %zu it may have", path,
                       (long long)st.st_size, limit);
    size_t size = (size_t)st.st_size;
    _cleanup_free_ char *data = malloc(size + 1);
    if (!data)
        return err_set(err, ENOMEM, "out of memory reading %s", path);
    int r = file_read_full(fd, data, size);
    if (r < 0)
        return err_sys(err, r, "cannot read %s", path);
    data[size] = '\0';
    *ret_data = TAKE_PTR(data);
    *ret_size = size;
    return 0;
}

static int make_folder(const char *path, mode_t mode, struct err *err)
{
    struct stat st;
    if (mkdir(path, mode) == 0)
        return 0;
    if (errno == EEXIST && stat(path, &st) == 0)
        errno = S_ISDIR(st.st_mode) ? 0 : ENOTDIR;
    return errno == 0 ? 0 : err_sys(err, errno, "cannot make the folder %s", path);
}

int file_mkdirs(const char *path, mode_t mode, struct err *err)
{
    char part[PATH_MAX];
    int length = snprintf(part, sizeof part, "%s", path);
    if (length <= 0 || length >= (int)sizeof part)
        return err_set(err, length <= 0 ? EINVAL : ENAMETOOLONG, "cannot make the folder \"%.80s\": bad path",
                       path);
    for (char *slash = part + 1; (slash = strchr(slash, '/')); *slash++ = '/') {
        *slash = '\0';
        int r = make_folder(part, mode, err);
        if (r < 0)
            return r;
    }
    return make_folder(part, mode, err);
}

static int remove_entry(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)st, (void)type, (void)ftw;
    return remove(path) < 0 && errno != ENOENT ? -1 : 0;
}

int file_remove_tree(const char *path, struct err *err)
{
    if (nftw(path, remove_entry, 16, FTW_DEPTH | FTW_PHYS | FTW_MOUNT) < 0 && errno != ENOENT)
        return err_sys(err, errno, "cannot remove %s", path);
    return 0;
}

void file_close_others(const int *kept, size_t count)
{
    unsigned from = 0;
    for (size_t i = 0; i < count; i++) {
        if ((unsigned)kept[i] > from)
            syscall(SYS_close_range, from, (unsigned)kept[i] - 1, 0U);
        from = (unsigned)kept[i] + 1;
    }
    syscall(SYS_close_range, from, ~0U, 0U);
}
