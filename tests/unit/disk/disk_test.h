/* SPDX-License-Identifier: Apache-2.0
 *
 * What the disk store's tests share: a boot id that they choose (linked with --wrap=boot_id_read), a process
 * that is killed in the middle.
 */
#pragma once

#include "../folder_test.h"
#include "base/file.h"
#include "base/macro.h"
#include "base/pid.h"
#include "disk/disk.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static unsigned boot = 1;

int __wrap_boot_id_read(char ret[BOOT_ID_SIZE]);
int __wrap_boot_id_read(char ret[BOOT_ID_SIZE])
{
    snprintf(ret, BOOT_ID_SIZE, "00000000-0000-4000-8000-%012x", boot);
    return 0;
}

/* cmocka's own failures say nothing when they happen in a thread that a test made. */
static inline void __attribute__((format(printf, 1, 2), noreturn)) fail_in_any_thread(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fputc('\n', stderr);
    abort();
}

static inline struct disk *open_disk(const char *path, unsigned flags)
{
    struct disk *disk = NULL;
    assert_ok(disk_open(path, flags, &disk, &err));
    return disk;
}

static inline struct disk *new_disk(const char *path, uint64_t size)
{
    assert_ok(disk_create(path, size, NULL, NULL, &err));
    return open_disk(path, 0);
}

static inline void close_disk(struct disk *disk)
{
    assert_ok(disk_close(disk, &err));
}

static inline void write_byte(struct disk *disk, uint64_t offset)
{
    assert_int_equal(disk_write(disk, "x", 1, offset, false), 0);
}

static inline uint32_t seal(struct disk *disk)
{
    struct id id = id_random();
    uint32_t sealed = 0;
    assert_ok(disk_advance(disk, &id, LINEAGE_ROUND, "here", &sealed, &err));
    return sealed;
}

static inline void set_claim(struct disk *disk, enum lineage_claim claim, uint32_t complete)
{
    _cleanup_(lineage_cleanup) struct lineage *lineage = NULL;
    assert_ok(disk_lineage(disk, &lineage, &err));
    lineage->claim = claim;
    lineage->complete = complete;
    assert_ok(disk_set_lineage(disk, lineage, &err));
}

/* Runs `work` on the opened disk in a process that then dies without closing it. */
static inline void in_killed_process(const char *path, void (*work)(struct disk *))
{
    pid_t pid = fork();
    if (pid == 0) {
        struct disk *disk;
        if (disk_open(path, 0, &disk, NULL) < 0)
            _exit(1);
        work(disk);
        _exit(0);
    }
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static inline uint64_t space_of(const char *path)
{
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    return (uint64_t)st.st_blocks * 512;
}
