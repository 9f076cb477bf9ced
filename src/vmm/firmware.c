/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/firmware.h"

#include "base/macro.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <sys/stat.h>

/* QEMU's flash memory takes whole pages, 8 MiB in all. */
#define FIRMWARE_UNIT 4096
#define FIRMWARE_MAX (8 * MiB)

static int open_part(const char *path, uint64_t *ret_size, struct err *err)
{
    struct stat st;
    _cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd < 0 || fstat(fd, &st) < 0)
        return err_sys(err, errno, "cannot open the UEFI firmware %s", path);
    if (!S_ISREG(st.st_mode) || st.st_size <= 0 || st.st_size % FIRMWARE_UNIT ||
        (uint64_t)st.st_size > FIRMWARE_MAX)
        return err_set(err, EINVAL, "%s is not a UEFI firmware that QEMU can use", path);
    *ret_size = (uint64_t)st.st_size;
    return TAKE_FD(fd);
}

int firmware_open(const char *dir, enum firmware_part part, uint64_t *ret_size, struct err *err)
{
    static const char *const names[] = {
        [FIRMWARE_CODE] = "OVMF_CODE_4M.fd", [FIRMWARE_VARS] = "OVMF_VARS_4M.fd"};
    static_assert(ARRAY_SIZE(names) == FIRMWARE_VARS + 1, "a file for each part");
    char path[PATH_MAX];
    if (snprintf(path, sizeof path, "%s/%s", dir, names[part]) >= (int)sizeof path)
        return err_set(err, ENAMETOOLONG, "path too long: %s", dir);
    int fd = open_part(path, ret_size, err);
    return fd < 0
               ? err_hint(err,
                          "install the package ovmf on this host, or say where it lies: oraid --firmware DIR")
               : fd;
}

int firmware_size(const char *dir, uint64_t *ret_size, struct err *err)
{
    int fd = firmware_open(dir, FIRMWARE_CODE, ret_size, err);
    if (fd < 0)
        return fd;
    close(fd);
    return 0;
}
