/* SPDX-License-Identifier: Apache-2.0 */
#include "nbd_fake_disk.h"

#include "base/file.h"
#include "base/macro.h"
#include "disk/heat.h"
#include "disk/split.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

void fake_disk_init(struct disk *disk, uint64_t size)
{
    *disk = (struct disk){.fd = memfd_create("disk", MFD_CLOEXEC), .size = size};
    disk->fd_for_splice = disk->fd;
    assert(disk->fd >= 0 && ftruncate(disk->fd, (off_t)size) == 0);
    pthread_mutex_init(&disk->lock, NULL);
    pthread_cond_init(&disk->changed, NULL);
}

void fake_disk_done(struct disk *disk)
{
    close(disk->fd);
    pthread_mutex_destroy(&disk->lock);
    pthread_cond_destroy(&disk->changed);
}

void fake_disk_wait_for_writers(struct disk *disk, unsigned count)
{
    pthread_mutex_lock(&disk->lock);
    while (disk->waiting < count)
        pthread_cond_wait(&disk->changed, &disk->lock);
    pthread_mutex_unlock(&disk->lock);
}

void disk_freeze(struct disk *disk)
{
    pthread_mutex_lock(&disk->lock);
    disk->frozen = true;
    pthread_mutex_unlock(&disk->lock);
}

void disk_thaw(struct disk *disk)
{
    pthread_mutex_lock(&disk->lock);
    disk->frozen = false;
    pthread_cond_broadcast(&disk->changed);
    pthread_mutex_unlock(&disk->lock);
}

static void pass_gate(struct disk *disk)
{
    pthread_mutex_lock(&disk->lock);
    disk->waiting++;
    pthread_cond_broadcast(&disk->changed);
    while (disk->frozen)
        pthread_cond_wait(&disk->changed, &disk->lock);
    disk->waiting--;
    pthread_mutex_unlock(&disk->lock);
}

uint64_t disk_size(const struct disk *disk)
{
    return disk->size;
}

const char *disk_path(const struct disk *disk)
{
    return "fake";
}

int disk_fd(const struct disk *disk)
{
    return disk->fd_for_splice;
}

int disk_read(struct disk *disk, void *data, size_t size, uint64_t offset)
{
    assert(offset + size <= disk->size);
    disk->largest_read = MAX(disk->largest_read, size);
    if (disk->read_error && disk->good_reads == 0)
        return -disk->read_error;
    disk->good_reads -= disk->good_reads > 0;
    return file_pread_full(disk->fd, data, size, offset);
}

int disk_write(struct disk *disk, const void *data, size_t size, uint64_t offset, bool fua)
{
    assert(size > 0 && offset + size <= disk->size);
    pass_gate(disk);
    disk->fua_writes += fua;
    disk->largest_write = MAX(disk->largest_write, size);
    return disk->write_error ? -disk->write_error : file_pwrite_full(disk->fd, data, size, offset);
}

int disk_zero(struct disk *disk, uint64_t size, uint64_t offset, unsigned flags)
{
    disk->zero_flags = flags;
    if (disk->zero_error)
        return -disk->zero_error;
    return fallocate(disk->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)size)
               ? -errno
               : 0;
}

int disk_trim(struct disk *disk, uint64_t size, uint64_t offset, bool fua)
{
    disk->trims++;
    return disk_zero(disk, size, offset, fua ? DISK_ZERO_FUA : 0);
}

int disk_flush(struct disk *disk)
{
    disk->flushes++;
    return -disk->flush_error;
}

int disk_intend(struct disk *disk, const struct disk_range *ranges, size_t count)
{
    disk->intends++;
    disk->intended_ranges += (unsigned)count;
    return 0;
}

int disk_extent(struct disk *disk, uint64_t offset, uint64_t size, struct disk_extent *ret)
{
    off_t data = lseek(disk->fd, (off_t)offset, SEEK_DATA);
    if (data < 0)
        data = (off_t)disk->size;
    bool hole = (uint64_t)data > offset;
    uint64_t end = hole ? (uint64_t)data : (uint64_t)lseek(disk->fd, (off_t)offset, SEEK_HOLE);
    *ret = (struct disk_extent){.length = MIN(end - offset, size), .hole = hole};
    return 0;
}

/* Nothing is ever missing here; tests/unit/disk/test_nbd_split.c has a disk where something is. */
bool disk_is_split(const struct disk *disk)
{
    return false;
}

bool disk_ready(struct disk *disk, enum disk_need_kind kind, uint64_t size, uint64_t offset, unsigned *told)
{
    return true;
}

int disk_watch(struct disk *disk, int eventfd)
{
    abort();
}

void disk_unwatch(struct disk *disk, int eventfd)
{
    abort();
}

void disk_waits(struct disk *disk, int eventfd, int64_t since)
{
    abort();
}

void disk_heat(struct disk *disk, uint64_t size, uint64_t offset)
{
}
