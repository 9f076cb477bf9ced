/* SPDX-License-Identifier: Apache-2.0 */
#include "host/caller.h"

#include "base/macro.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <pwd.h>
#include <stdbool.h>
#include <string.h>
#include <sys/fsuid.h>
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

int caller_open(const struct credentials *caller, const char *path, const char *what, int *ret_fd,
                struct err *err)
{
    struct identity own = {0};
    struct stat st;
    if (path[0] != '/')
        return err_set(err, EINVAL, "%s must be given as an absolute path, not \"%.200s\"", what, path);
    int r = become(caller, &own);
    /* Without O_NONBLOCK the open of a FIFO would wait for ever. */
    _cleanup_close_ int fd = r < 0 ? -1 : open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    int error = r < 0 ? -r : errno;
    come_back(&own);
    if (fd < 0)
        return err_sys(err, error, "cannot open %s %.300s", what, path);
    if (fstat(fd, &st) < 0)
        return err_sys(err, errno, "cannot read %s %.300s", what, path);
    if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode))
        return err_set(err, EINVAL, "%s %.300s is neither a file nor a block device", what, path);
    *ret_fd = TAKE_FD(fd);
    return 0;
}
