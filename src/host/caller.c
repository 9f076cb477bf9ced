/* SPDX-License-Identifier: Apache-2.0 */
#include "host/caller.h"

#include "base/macro.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <linux/fs.h>
#include <pwd.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/fsuid.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#define MAX_GROUPS 256

struct identity {
    gid_t groups[MAX_GROUPS];
    int count;
    bool changed;
};

/* The system calls themselves: glibc's setgroups would change every thread. */
static int set_groups(const gid_t *groups, int count)
{
    return syscall(SYS_setgroups, (size_t)count, groups) < 0 ? -errno : 0;
}

static int groups_of(const struct credentials *caller, gid_t groups[MAX_GROUPS])
{
    char buffer[4096];
    struct passwd entry, *found = NULL;
    int count = MAX_GROUPS;
    groups[0] = caller->gid;
    if (getpwuid_r(caller->uid, &entry, buffer, sizeof buffer, &found) != 0 || !found)
        return 1;
    return getgrouplist(found->pw_name, caller->gid, groups, &count) < 0 ? 1 : count;
}

static int become(const struct credentials *caller, struct identity *own)
{
    gid_t groups[MAX_GROUPS];
    if (geteuid() != 0 || caller->uid == 0)
        return 0;
    own->count = getgroups(MAX_GROUPS, own->groups);
    if (own->count < 0)
        return -errno;
    int r = set_groups(groups, groups_of(caller, groups));
    if (r < 0)
        return r;
    own->changed = true;
    setfsgid(caller->gid);
    setfsuid(caller->uid);
    /* They report no failure; asking again with a value that is refused does. */
    return (uid_t)setfsuid((uid_t)-1) == caller->uid && (gid_t)setfsgid((gid_t)-1) == caller->gid ? 0
                                                                                                  : -EPERM;
}

static void come_back(const struct identity *own)
{
    if (!own->changed)
        return;
    setfsuid(geteuid());
    setfsgid(getegid());
    if (set_groups(own->groups, own->count) < 0)
        abort(); /* a thread that goes on with another's rights is worse */
}

/* Returns the descriptor. */
static int open_as(const struct credentials *caller, const char *path, int flags, const char *what,
                   struct err *err)
{
    struct identity own = {0};
    if (path[0] != '/')
        return err_set(err, EINVAL, "%s must be given as an absolute path, not \"%.200s\"", what, path);
    int r = become(caller, &own);
    /* Without O_NONBLOCK the open of a FIFO would wait for ever. */
    int fd = r < 0 ? -1 : open(path, flags | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    int error = r < 0 ? -r : errno;
    come_back(&own);
    return fd < 0 ? err_sys(err, error, "cannot open %s %.300s", what, path) : fd;
}

/* No folder on the way may be changed by anybody but root. */
static int check_folders(const char *path, struct err *err)
{
    char folder[PATH_MAX];
    if (snprintf(folder, sizeof folder, "%s", path) >= (int)sizeof folder)
        return err_set(err, ENAMETOOLONG, "path too long: %.200s...", path);
    for (char *slash; (slash = strrchr(folder, '/')) && slash > folder;) {
        struct stat st;
        *slash = '\0';
        if (stat(folder, &st) < 0)
            return err_sys(err, errno, "cannot look at the folder %.300s", folder);
        if (st.st_uid != 0 || st.st_mode & (S_IWGRP | S_IWOTH)) {
            err_set(err, EINVAL, "not only root can change the folder %.300s, on the way to %.300s", folder,
                    path);
            return err_hint(err, "name the block device by a path below /dev");
        }
    }
    return 0;
}

int caller_check_device(const struct credentials *caller, const char *path, uint64_t *ret_size,
                        dev_t *ret_device, struct err *err)
{
    struct stat st;
    uint64_t size;
    _cleanup_close_ int probe = open_as(caller, path, O_RDONLY, "the block device", err);
    if (probe < 0)
        return probe;
    if (fstat(probe, &st) < 0 || !S_ISBLK(st.st_mode))
        return err_set(err, EINVAL, "%.300s is not a block device", path);
    int r = check_folders(path, err);
    if (r < 0)
        return r;
    /* O_EXCL without O_CREAT: alone with the device. */
    _cleanup_close_ int fd = open_as(caller, path, O_RDWR | O_EXCL, "the block device", err);
    if (fd < 0)
        return fd;
    if (ioctl(fd, BLKGETSIZE64, &size) < 0)
        return err_sys(err, errno, "cannot get the size of %.300s", path);
    *ret_size = size;
    *ret_device = st.st_rdev;
    return 0;
}

int caller_open(const struct credentials *caller, const char *path, const char *what, int *ret_fd,
                struct err *err)
{
    struct stat st;
    _cleanup_close_ int fd = open_as(caller, path, O_RDONLY, what, err);
    if (fd < 0)
        return fd;
    if (fstat(fd, &st) < 0)
        return err_sys(err, errno, "cannot read %s %.300s", what, path);
    if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode))
        return err_set(err, EINVAL, "%s %.300s is neither a file nor a block device", what, path);
    *ret_fd = TAKE_FD(fd);
    return 0;
}
