/* SPDX-License-Identifier: Apache-2.0
 *
 * power_cut: a recording layer under a disk's files (the linker's --wrap for pwrite, fallocate, fdatasync,
 * fsync and file_replace) that knows what a power cut may leave of them.
 *
 * It keeps, per file, what is durable, and in order every 512-byte sector written since. Stores into mapped
 * files are found by comparing their page cache at each event: they may reach the disk at any moment, with or
 * without a sync. A power cut at an event is then, for each sector on its own, any of its versions from the
 * durable one on; on such remains, in a folder of their own, the disk is opened with another boot id and
 * given to the test's check_copy.
 *
 * The story is random but repeatable: ORAI_SEED=n; ORAI_LIVES=n makes it longer.
 */
#pragma once

#include "disk_test.h"

#include "base/clock.h"

#include <limits.h>
#include <linux/falloc.h>
#include <pthread.h>
#include <stdatomic.h>

#define SIZE (192 * MiB + 512)
#define CLUSTERS 40u /* the places that are written, */
#define CLUSTER_BLOCKS 4u
#define CLUSTER (CLUSTER_BLOCKS * DISK_BLOCK)
#define POOL (CLUSTERS * CLUSTER) /* and all that is looked at */
#define SECTOR 512u
#define MAP_SIZE (4096u + (192 * MiB / DISK_BLOCK + 1 + 1023) / 1024 * 4096u)
#define INTENT_SIZE 8192u
#define MISSING_SIZE (4096u + 2u * 2u * 4096u) /* each kind of bits has two pages */

enum file { IMAGE, MAP, INTENT, MISSING, FILES };

static const size_t model_size[FILES] = {POOL, MAP_SIZE, INTENT_SIZE, MISSING_SIZE};
static const char *const names[FILES] = {"d", "d.map", "d.intent", "d.missing"};

struct version { /* of one sector, not durable yet */
    enum file file;
    uint32_t sector;
    uint8_t data[SECTOR];
};

/* The recording layer; `lock` makes events follow each other. */
static struct {
    pthread_mutex_t lock;
    bool on;
    int fd[FILES]; /* -1 = there is no such file, as most disks have none that says what is missing */
    ino_t inode[FILES];
    uint8_t *live[FILES]; /* as a reader sees it */
    uint8_t *durable[FILES];
    struct version *pending;
    size_t count, capacity;
    uint64_t cluster_at[CLUSTERS]; /* offset in the image, ascending */
    struct disk *disk;             /* NULL while it is being opened */
    unsigned checks, odds;
} m = {.lock = PTHREAD_MUTEX_INITIALIZER};

static _Thread_local bool inside; /* the layer's own doings are not recorded */
static _Thread_local uint64_t random_state;
static uint64_t seed;

#define expect(condition)                                                                                 \
    do {                                                                                                  \
        if (!(condition))                                                                                 \
            fail_in_any_thread("seed %llu, line %d: %s", (unsigned long long)seed, __LINE__, #condition); \
    } while (0)

static uint64_t rnd(uint64_t below)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state % below;
}

/* The test's: what must hold of what a power cut left. Called with the layer's lock. */
static void check_copy(struct disk *copy, const struct lineage *lineage);

/* --- the model ----------------------------------------------------------------------------------------- */

static void add_version(enum file file, uint32_t sector)
{
    if (m.count == m.capacity) {
        m.capacity = MAX(m.capacity * 2, 1024);
        m.pending = realloc(m.pending, m.capacity * sizeof *m.pending);
        expect(m.pending);
    }
    struct version *v = &m.pending[m.count++];
    v->file = file;
    v->sector = sector;
    memcpy(v->data, m.live[file] + sector * SECTOR, SECTOR);
}

/* `data` NULL = zeroes. */
static void model_write(enum file file, const uint8_t *data, uint64_t size, uint64_t at)
{
    if (data)
        memcpy(m.live[file] + at, data, size);
    else
        memset(m.live[file] + at, 0, size);
    for (uint64_t s = at / SECTOR; s <= (at + size - 1) / SECTOR; s++)
        add_version(file, (uint32_t)s);
}

/* Of the image only the clusters are modelled. */
static void image_write(const uint8_t *data, uint64_t size, uint64_t offset)
{
    for (unsigned i = 0; i < CLUSTERS; i++) {
        uint64_t from = MAX(offset, m.cluster_at[i]), to = MIN(offset + size, m.cluster_at[i] + CLUSTER);
        if (from < to)
            model_write(IMAGE, data ? data + (from - offset) : NULL, to - from,
                        i * CLUSTER + from - m.cluster_at[i]);
    }
}

static void notice_stores_in(enum file file)
{
    static uint8_t now[MAX(MAP_SIZE, MISSING_SIZE)];
    if (m.fd[file] < 0)
        return;
    expect(pread(m.fd[file], now, model_size[file], 0) == (ssize_t)model_size[file]);
    for (uint32_t s = 0; s < model_size[file] / SECTOR; s++) {
        if (memcmp(now + s * SECTOR, m.live[file] + s * SECTOR, SECTOR) != 0)
            model_write(file, now + s * SECTOR, SECTOR, s * SECTOR);
    }
}

static void notice_stores(void)
{
    notice_stores_in(MAP);
    notice_stores_in(MISSING);
}

static void model_sync(enum file file)
{
    size_t kept = 0;
    for (size_t i = 0; i < m.count; i++) {
        struct version *v = &m.pending[i];
        if (v->file == file)
            memcpy(m.durable[file] + v->sector * SECTOR, v->data, SECTOR);
        else
            m.pending[kept++] = *v;
    }
    m.count = kept;
}

static enum file file_of(int fd)
{
    struct stat st;
    enum file file = 0;
    expect(fstat(fd, &st) == 0);
    while (file < FILES && m.inode[file] != st.st_ino)
        file++;
    return file;
}

/* --- the power cut ------------------------------------------------------------------------------------- */

/* What a cut now leaves: nothing of what is pending, all, or any version of each sector. */
static void remains(uint8_t *ret[FILES])
{
    unsigned chance[FILES];
    for (enum file f = 0; f < FILES; f++) {
        static const unsigned chances[] = {0, 100, 50, 10, 90};
        chance[f] = chances[rnd(ARRAY_SIZE(chances))];
        memcpy(ret[f], m.durable[f], model_size[f]);
    }
    for (size_t i = 0; i < m.count; i++) {
        const struct version *v = &m.pending[i];
        if (rnd(100) < chance[v->file])
            memcpy(ret[v->file] + v->sector * SECTOR, v->data, SECTOR);
    }
}

static void put(const char *path, const void *data, size_t size, uint64_t offset)
{
    int fd = open(path, O_WRONLY | O_CREAT, 0600);
    expect(fd >= 0);
    expect(pwrite(fd, data, size, (off_t)offset) == (ssize_t)size);
    close(fd);
}

static void put_files(const char *prefix, uint8_t *from[FILES])
{
    char path[PATH_MAX];
    for (enum file f = 0; f < FILES; f++) {
        snprintf(path, sizeof path, "%s/%s%s", folder, prefix, names[f]);
        if (m.fd[f] < 0)
            continue;
        for (unsigned i = 0; f == IMAGE && i < CLUSTERS; i++)
            put(path, from[f] + i * CLUSTER, CLUSTER, m.cluster_at[i]);
        if (f != IMAGE)
            put(path, from[f], model_size[f], 0);
        else
            expect(truncate(path, SIZE) == 0);
    }
}

static void check_folder(const char *path)
{
    struct disk *copy = open_disk(path, 0);
    _cleanup_(lineage_cleanup) struct lineage *lineage = NULL;
    assert_ok(disk_lineage(copy, &lineage, &err));
    if (m.disk && disk_generation(copy) <= disk_generation(m.disk))
        fail_in_any_thread("seed %llu: generation %u is used twice", (unsigned long long)seed,
                           disk_generation(copy));
    check_copy(copy, lineage);
    close_disk(copy);
    m.checks++;
}

static void check_power_cut(void)
{
    static uint8_t image[POOL], map[MAP_SIZE], intent[INTENT_SIZE], missing[MISSING_SIZE];
    uint8_t *left[FILES] = {image, map, intent, missing};
    remains(left);
    unlink(in_folder("cut-d"));
    put_files("cut-", left);
    void *lineage;
    size_t size;
    assert_ok(file_load(in_folder("d.lineage"), LINEAGE_MAX_BYTES, &lineage, &size, &err));
    put(in_folder("cut-d.lineage"), lineage, size, 0);
    expect(truncate(in_folder("cut-d.lineage"), (off_t)size) == 0);
    free(lineage);
    boot += 1000;
    check_folder(in_folder("cut-d"));
    boot -= 1000;
}

/* --- the recording layer ------------------------------------------------------------------------------- */

ssize_t __real_pwrite64(int fd, const void *data, size_t size, off64_t offset);
ssize_t __wrap_pwrite64(int fd, const void *data, size_t size, off64_t offset);
int __real_fallocate64(int fd, int mode, off64_t offset, off64_t size);
int __wrap_fallocate64(int fd, int mode, off64_t offset, off64_t size);
int __wrap_fdatasync(int fd);
int __wrap_fsync(int fd);
int __real_file_replace(const char *path, const void *data, size_t size, mode_t mode, struct err *err);
int __wrap_file_replace(const char *path, const void *data, size_t size, mode_t mode, struct err *err);

static bool begin_event(void)
{
    if (inside || !m.on)
        return false;
    pthread_mutex_lock(&m.lock);
    inside = true;
    notice_stores();
    return true;
}

static void end_event(void)
{
    if (m.odds > 0 && rnd(m.odds) == 0)
        check_power_cut();
    inside = false;
    pthread_mutex_unlock(&m.lock);
}

ssize_t __wrap_pwrite64(int fd, const void *data, size_t size, off64_t offset)
{
    if (!begin_event())
        return __real_pwrite64(fd, data, size, offset);
    ssize_t n = __real_pwrite64(fd, data, size, offset);
    enum file file = file_of(fd);
    if (n > 0 && file == IMAGE)
        image_write(data, (uint64_t)n, (uint64_t)offset);
    else if (n > 0 && file != FILES)
        model_write(file, data, (uint64_t)n, (uint64_t)offset);
    end_event();
    return n;
}

int __wrap_fallocate64(int fd, int mode, off64_t offset, off64_t size)
{
    if (!begin_event())
        return __real_fallocate64(fd, mode, offset, size);
    int r = __real_fallocate64(fd, mode, offset, size);
    if (r == 0 && file_of(fd) == IMAGE && mode & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE))
        image_write(NULL, (uint64_t)size, (uint64_t)offset);
    end_event();
    return r;
}

/* The model decides what is durable; the machine's disk need not be troubled. */
int __wrap_fdatasync(int fd)
{
    if (!begin_event())
        return 0;
    enum file file = file_of(fd);
    if (file != FILES)
        model_sync(file);
    end_event();
    return 0;
}

int __wrap_fsync(int fd)
{
    return __wrap_fdatasync(fd);
}

int __wrap_file_replace(const char *path, const void *data, size_t size, mode_t mode, struct err *err)
{
    if (!begin_event())
        return __real_file_replace(path, data, size, mode, err);
    check_power_cut(); /* just before, and perhaps just after */
    int r = __real_file_replace(path, data, size, mode, err);
    end_event();
    return r;
}

/* --- lives ---------------------------------------------------------------------------------------------- */

static unsigned from_environment(const char *name, unsigned otherwise)
{
    const char *text = getenv(name);
    return text ? (unsigned)strtoul(text, NULL, 0) : otherwise;
}

/* A seed, and clusters somewhere on the disk. */
static void begin_story(void)
{
    seed = from_environment("ORAI_SEED", (unsigned)(clock_wall_ms() ^ getpid()));
    print_message("ORAI_SEED=%llu\n", (unsigned long long)seed);
    random_state = seed * UINT64_C(0x9e3779b97f4a7c15) | 1;
    boot = 1;
    uint64_t step = SIZE / CLUSTERS;
    for (unsigned i = 0; i < CLUSTERS; i++)
        m.cluster_at[i] = (i * step + rnd(step - CLUSTER)) / DISK_BLOCK * DISK_BLOCK;
}

static void start_recording(void)
{
    inside = true;
    for (enum file f = 0; f < FILES; f++) {
        struct stat st;
        m.fd[f] = open(in_folder(names[f]), O_RDWR | O_CLOEXEC);
        assert_true(m.fd[f] >= 0 || f == MISSING);
        m.live[f] = calloc(1, model_size[f]);
        m.durable[f] = calloc(1, model_size[f]);
        m.inode[f] = 0;
        if (m.fd[f] < 0)
            continue;
        expect(fstat(m.fd[f], &st) == 0);
        m.inode[f] = st.st_ino;
        for (unsigned i = 0; f == IMAGE && i < CLUSTERS; i++)
            expect(pread(m.fd[f], m.live[f] + i * CLUSTER, CLUSTER, (off_t)m.cluster_at[i]) == CLUSTER);
        if (f != IMAGE)
            expect(pread(m.fd[f], m.live[f], model_size[f], 0) == (ssize_t)model_size[f]);
        memcpy(m.durable[f], m.live[f], model_size[f]);
    }
    m.count = m.checks = 0;
    m.on = true;
    inside = false;
}

static void stop_recording(void)
{
    m.on = false;
    free(m.pending);
    m.pending = NULL;
    m.capacity = 0;
    for (enum file f = 0; f < FILES; f++) {
        close_cleanup(&m.fd[f]);
        free(m.live[f]);
        free(m.durable[f]);
    }
}

/* Closes without a trace: the files are put back to what they were before. */
static void kill_process(void)
{
    static uint8_t image[POOL], map[MAP_SIZE], intent[INTENT_SIZE], missing[MISSING_SIZE];
    uint8_t *was[FILES] = {image, map, intent, missing};
    inside = true;
    notice_stores();
    for (enum file f = 0; f < FILES; f++)
        memcpy(was[f], m.live[f], model_size[f]);
    close_disk(m.disk);
    put_files("", was);
    inside = false;
}

static void cut_power(void)
{
    static uint8_t image[POOL], map[MAP_SIZE], intent[INTENT_SIZE], missing[MISSING_SIZE];
    uint8_t *left[FILES] = {image, map, intent, missing};
    inside = true;
    notice_stores();
    remains(left);
    close_disk(m.disk);
    put_files("", left);
    for (enum file f = 0; f < FILES; f++) {
        memcpy(m.live[f], left[f], model_size[f]);
        memcpy(m.durable[f], left[f], model_size[f]);
    }
    m.count = 0;
    boot++;
    inside = false;
}
