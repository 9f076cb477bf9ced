/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/ram.h"

#include "base/file.h"
#include "base/macro.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <linux/memfd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#define RAM_NAME "orai-ram"
#define POOL "/sys/kernel/mm/hugepages/hugepages-2048kB/"

/* --- huge pages ----------------------------------------------------------------------------------------- */

static uint64_t pool_number(const char *path)
{
    char text[32] = "";
    _cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
    return n > 0 ? strtoull(text, NULL, 10) : 0;
}

/* Why `size` bytes of them cannot be had. */
static int no_huge_pages(uint64_t size, int error, struct err *err)
{
    uint64_t need = size / RAM_HUGE_PAGE, all = pool_number(POOL "nr_hugepages");
    uint64_t unused = pool_number(POOL "free_hugepages"), promised = pool_number(POOL "resv_hugepages");
    uint64_t left = unused > promised ? unused - promised : 0;
    if (error != ENOMEM || left >= need)
        return err_sys(err, error, "cannot have %llu huge pages of 2 MiB for the VM's memory",
                       (unsigned long long)need);
    err_set(err, ENOMEM, "the VM's memory takes %llu huge pages of 2 MiB, this host has %llu left",
            (unsigned long long)need, (unsigned long long)left);
    return err_hint(err,
                    "set more aside on that host: sysctl -w vm.nr_hugepages=%llu; or stop the VM and set its "
                    "\"ram\" to \"shared\"",
                    (unsigned long long)(all + need - left));
}

/* A shared mapping reserves all that it maps, for as long as the file exists. */
static int reserve(int fd, uint64_t size)
{
    void *map = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (map == MAP_FAILED)
        return -errno;
    munmap(map, size);
    return 0;
}

/* --- making, finding ------------------------------------------------------------------------------------ */

/* A QEMU that shrank it would kill whoever reads the guest's memory with SIGBUS. */
int ram_make(enum vm_ram kind, uint64_t size, int *ret, struct err *err)
{
    bool huge = kind == VM_RAM_HUGE;
    if (kind == VM_RAM_PRIVATE) {
        *ret = -1;
        return 0;
    }
    _cleanup_close_ int fd =
        memfd_create(RAM_NAME, MFD_CLOEXEC | MFD_ALLOW_SEALING | (huge ? MFD_HUGETLB | MFD_HUGE_2MB : 0));
    if (fd < 0 && huge)
        return no_huge_pages(size, errno, err);
    if (fd < 0 || ftruncate(fd, (off_t)size) < 0 ||
        fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0)
        return err_sys(err, errno, "cannot make the guest's memory of %llu MiB",
                       (unsigned long long)(size / MiB));
    int r = huge ? reserve(fd, size) : 0;
    if (r < 0)
        return no_huge_pages(size, -r, err);
    *ret = TAKE_FD(fd);
    return 0;
}

int ram_check(enum vm_ram kind, uint64_t size, struct err *err)
{
    int fd = -1, r = ram_make(kind, size, &fd, err);
    if (fd >= 0)
        close(fd);
    return r;
}

int ram_take(pid_t pid, int pidfd)
{
    char path[64], target[64];
    int fd = -1;
    snprintf(path, sizeof path, "/proc/%d/fd", (int)pid);
    DIR *dir = opendir(path);
    if (!dir)
        return -1;
    for (struct dirent *entry; fd < 0 && (entry = readdir(dir));) {
        ssize_t n = readlinkat(dirfd(dir), entry->d_name, target, sizeof target - 1);
        target[MAX(n, 0)] = '\0';
        if (strncmp(target, "/memfd:" RAM_NAME " ", strlen("/memfd:" RAM_NAME " ")) == 0)
            fd = (int)syscall(SYS_pidfd_getfd, pidfd, (int)strtol(entry->d_name, NULL, 10), 0);
    }
    closedir(dir);
    return fd;
}

enum vm_ram ram_kind(int fd)
{
    struct statfs fs;
    return fstatfs(fd, &fs) == 0 && fs.f_type == HUGETLBFS_MAGIC ? VM_RAM_HUGE : VM_RAM_SHARED;
}
