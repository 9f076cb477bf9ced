/* SPDX-License-Identifier: Apache-2.0 */
#include "disk.h"

#include "pace.h"
#include "pattern.h"
#include "records.h"
#include "serial.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/fs.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

enum { RECORDS_PER_CHECK = 8 };

struct disk {
    int fd;
    uint64_t region, slots;
    uint64_t boot, first, sync_every;

    /* Held for each record, check and fsync; guards what follows. */
    pthread_mutex_t lock;
    struct record *record; /* aligned for O_DIRECT */
    uint64_t *newest;      /* per slot: the number written there; 0 = none, or known to be damaged */
    bool failing;          /* said so already */

    _Atomic uint64_t rate;
    _Atomic uint64_t written, durable, errors;
};

/* A disk that stays broken is said once, not at each try. */
static void disk_failed(struct disk *disk, const char *what, uint64_t number, const char *reason)
{
    atomic_fetch_add(&disk->errors, 1);
    if (!disk->failing)
        serial_say("pulse: disk error: %s record %" PRIu64 ": %s", what, number, reason);
    disk->failing = true;
}

/* The result of a pread or pwrite as an errno; a short transfer is an error too. */
static int transfer_error(ssize_t done)
{
    return done == RECORD_SIZE ? 0 : done < 0 ? errno : EIO;
}

static int write_next(struct disk *disk)
{
    uint64_t number = disk->written + 1, slot = record_slot(number, disk->slots);
    record_make(disk->record, number, slot, disk->boot);
    int error = transfer_error(pwrite(disk->fd, disk->record, RECORD_SIZE, (off_t)(slot * RECORD_SIZE)));
    if (error != 0) {
        disk_failed(disk, "cannot write", number, strerror(error));
        return -error;
    }
    disk->failing = false;
    disk->newest[slot] = number;
    atomic_store(&disk->written, number);
    return 0;
}

/* Each record is named once: a bad slot is not looked at again until it is rewritten. */
static void check_one(struct disk *disk)
{
    uint64_t range = disk->written - disk->first + 1;
    uint64_t slot = record_slot(disk->first + pattern_mix(disk->written) % range, disk->slots);
    uint64_t number = disk->newest[slot];
    if (number == 0)
        return;
    struct record *record = disk->record;
    int error = transfer_error(pread(disk->fd, record, RECORD_SIZE, (off_t)(slot * RECORD_SIZE)));
    if (error != 0) {
        disk_failed(disk, "cannot read", number, strerror(error));
        return;
    }
    if (record_valid(record) && record->number == number && record->slot == slot &&
        record->boot == disk->boot)
        return;
    disk->newest[slot] = 0;
    disk->failing = false;
    disk_failed(disk, "lost", number, "other data is in its place");
}

static int sync_locked(struct disk *disk)
{
    uint64_t written = disk->written;
    if (fsync(disk->fd) != 0) {
        int error = errno;
        disk_failed(disk, "cannot sync", written, strerror(error));
        return -error;
    }
    atomic_store(&disk->durable, written);
    return 0;
}

static int write_locked(struct disk *disk)
{
    int r = write_next(disk);
    if (r == 0 && disk->written % RECORDS_PER_CHECK == 0)
        check_one(disk);
    if (r == 0 && disk->sync_every > 0 && disk->written % disk->sync_every == 0)
        r = sync_locked(disk);
    return r;
}

static int write_one(struct disk *disk)
{
    pthread_mutex_lock(&disk->lock);
    int r = write_locked(disk);
    pthread_mutex_unlock(&disk->lock);
    return r;
}

/* Its turn has come, unless it was told to stop while it waited for that (disk_set_rate). */
static int write_paced(struct disk *disk)
{
    pthread_mutex_lock(&disk->lock);
    int r = atomic_load(&disk->rate) > 0 ? write_locked(disk) : 0;
    pthread_mutex_unlock(&disk->lock);
    return r;
}

static void *disk_thread(void *arg)
{
    struct disk *disk = arg;
    struct pace pace = {0};
    for (;;) {
        uint64_t rate = atomic_load(&disk->rate);
        pace_wait(&pace, rate > 0 ? (int64_t)(SECOND / rate) : 50 * MS);
        if (rate > 0 && write_paced(disk) != 0)
            sleep(1);
    }
    return NULL;
}

static int find_region(struct disk *disk, uint64_t wanted)
{
    uint64_t size;
    if (ioctl(disk->fd, BLKGETSIZE64, &size) != 0)
        return -errno;
    disk->region = wanted > 0 && wanted < size ? wanted : size;
    disk->slots = disk->region / RECORD_SIZE;
    return disk->slots > 0 ? 0 : -ENOSPC;
}

/* Untouched pages of the map cost nothing, so a large disk does not need a large guest. */
static uint64_t *map_newest(uint64_t slots)
{
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void *newest = mmap(NULL, slots * sizeof(uint64_t), PROT_READ | PROT_WRITE, flags, -1, 0);
    return newest != MAP_FAILED ? newest : NULL;
}

static int disk_open(struct disk *disk, const char *path, const struct options *options)
{
    disk->fd = open(path, O_RDWR | O_DIRECT | O_CLOEXEC);
    if (disk->fd < 0)
        return -errno;
    int r = find_region(disk, options->region);
    if (r < 0)
        return r;
    disk->record = aligned_alloc(RECORD_SIZE, RECORD_SIZE);
    disk->newest = map_newest(disk->slots);
    return disk->record != NULL && disk->newest != NULL ? 0 : -ENOMEM;
}

static void disk_free(struct disk *disk)
{
    if (disk->fd >= 0)
        close(disk->fd);
    if (disk->newest != NULL)
        munmap(disk->newest, disk->slots * sizeof(uint64_t));
    free(disk->record);
    free(disk);
}

int disk_start(struct disk **ret_disk, const char *path, const struct options *options, uint64_t boot)
{
    struct disk *disk = calloc(1, sizeof(*disk));
    if (disk == NULL)
        return -ENOMEM;
    pthread_mutex_init(&disk->lock, NULL);
    disk->boot = boot;
    disk->first = options->first;
    disk->sync_every = options->sync;
    disk->rate = options->rate;
    disk->written = disk->durable = options->first - 1;

    pthread_t thread;
    int r = disk_open(disk, path, options);
    if (r == 0)
        r = -pthread_create(&thread, NULL, disk_thread, disk);
    if (r < 0) {
        disk_free(disk);
        return r;
    }
    *ret_disk = disk;
    return 0;
}

int disk_write(struct disk *disk, uint64_t count)
{
    int r = 0;
    for (uint64_t i = 0; i < count && r == 0; i++)
        r = write_one(disk);
    return r;
}

int disk_sync(struct disk *disk)
{
    pthread_mutex_lock(&disk->lock);
    int r = sync_locked(disk);
    pthread_mutex_unlock(&disk->lock);
    return r;
}

int disk_stop(struct disk *disk)
{
    pthread_mutex_lock(&disk->lock); /* kept */
    return sync_locked(disk);
}

int disk_trim(struct disk *disk, uint64_t offset, uint64_t length)
{
    if (offset < disk->region)
        return -EPERM;
    uint64_t range[2] = {offset, length};
    return ioctl(disk->fd, BLKDISCARD, range) == 0 ? 0 : -errno;
}

void disk_set_rate(struct disk *disk, uint64_t records_per_second)
{
    pthread_mutex_lock(&disk->lock); /* at rate 0 nothing more comes once this has returned */
    atomic_store(&disk->rate, records_per_second);
    pthread_mutex_unlock(&disk->lock);
}

struct disk_status disk_status(const struct disk *disk)
{
    if (disk == NULL)
        return (struct disk_status){0};
    /* In this order, so that durable <= written holds in every answer. */
    uint64_t durable = disk->durable;
    return (struct disk_status){.durable = durable, .written = disk->written, .errors = disk->errors};
}
