/* SPDX-License-Identifier: Apache-2.0
 *
 * Threads: numbers are atomics that any thread may raise and read. A store is made before the data of its
 * write is, and a reader that must see it comes after a gate_drain, which orders the two.
 *
 * The header is smaller than a sector, which the drive writes whole or not at all.
 */
#include "disk/genmap.h"

#include "base/endian.h"
#include "base/file.h"
#include "base/macro.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <xxhash.h>

#define MAGIC "ORAI-MAP"
#define VERSION 1
#define PAGE 4096U
#define PER_PAGE (PAGE / sizeof(uint32_t))
#define KEEP_MAPPED 512U /* pages that scans may leave resident */

struct genmap_header_v1 {
    uint8_t magic[8];
    uint32_t version;
    uint32_t length; /* of the header: where the numbers begin */
    uint8_t map[16];
    uint8_t disk[16];
    uint8_t former[16];
    uint64_t size;
    uint64_t blocks;
    uint32_t block_size;
    uint32_t current;
    uint64_t hash; /* XXH3-64 of all before it */
};
static_assert(sizeof(struct genmap_header_v1) == 96, "as docs/formats.md says");
static_assert(sizeof(_Atomic uint32_t) == 4, "the numbers are mapped as they lie on disk");

static uint64_t blocks_of(uint64_t size)
{
    return (size + DISK_BLOCK - 1) / DISK_BLOCK;
}

/* Bytes of numbers, in whole pages. */
static size_t numbers_size(uint64_t blocks)
{
    return (blocks + PER_PAGE - 1) / PER_PAGE * PAGE;
}

void genmap_header_encode(const struct genmap_header *header, uint8_t ret[GENMAP_HEADER_SIZE])
{
    struct genmap_header_v1 h = {
        .magic = MAGIC,
        .version = htole32(VERSION),
        .length = htole32(GENMAP_HEADER_SIZE),
        .size = htole64(header->size),
        .blocks = htole64(blocks_of(header->size)),
        .block_size = htole32(DISK_BLOCK),
        .current = htole32(header->current),
    };
    memcpy(h.map, header->map.bytes, sizeof h.map);
    memcpy(h.disk, header->disk.bytes, sizeof h.disk);
    memcpy(h.former, header->former.bytes, sizeof h.former);
    h.hash = htole64(XXH3_64bits(&h, offsetof(struct genmap_header_v1, hash)));
    memset(ret, 0, GENMAP_HEADER_SIZE);
    memcpy(ret, &h, sizeof h);
}

int genmap_header_decode(const void *bytes, size_t size, struct genmap_header *ret, struct err *err)
{
    struct genmap_header_v1 h;
    if (size < sizeof h)
        return err_set(err, EBADMSG, "the generation map is cut short");
    memcpy(&h, bytes, sizeof h);
    if (memcmp(h.magic, MAGIC, sizeof h.magic) != 0)
        return err_set(err, EBADMSG, "this is no generation map (wrong first bytes)");
    if (le32toh(h.version) != VERSION)
        return err_set(err, EPROTONOSUPPORT, "the generation map has format version %u; this Orai knows %u",
                       le32toh(h.version), VERSION);
    if (le64toh(h.hash) != XXH3_64bits(&h, offsetof(struct genmap_header_v1, hash)))
        return err_set(err, EBADMSG, "the generation map's header is damaged (wrong checksum)");
    uint64_t disk_size = le64toh(h.size);
    if (disk_size == 0 || disk_size % 512 != 0 || disk_size > INT64_MAX ||
        le64toh(h.blocks) != blocks_of(disk_size) || le32toh(h.block_size) != DISK_BLOCK ||
        le32toh(h.length) != GENMAP_HEADER_SIZE || le32toh(h.current) > LINEAGE_MAX_GENERATION)
        return err_set(err, EBADMSG, "the generation map's header contradicts itself");
    *ret = (struct genmap_header){.size = disk_size, .current = le32toh(h.current)};
    memcpy(ret->map.bytes, h.map, sizeof h.map);
    memcpy(ret->disk.bytes, h.disk, sizeof h.disk);
    memcpy(ret->former.bytes, h.former, sizeof h.former);
    return 0;
}

/* --- the file ------------------------------------------------------------------------------------------ */

void genmap_keep_in_place(int fd)
{
    int attributes;
    if (ioctl(fd, FS_IOC_GETFLAGS, &attributes) == 0) {
        attributes |= FS_NOCOW_FL;
        (void)ioctl(fd, FS_IOC_SETFLAGS, &attributes); /* others refuse, and need it not */
    }
}

int genmap_create(const char *path, const struct id *disk, uint64_t size, uint32_t current, struct err *err)
{
    struct genmap_header header = {
        .map = id_random(), .disk = *disk, .former = *disk, .size = size, .current = current};
    uint8_t bytes[GENMAP_HEADER_SIZE];
    genmap_header_encode(&header, bytes);
    _cleanup_close_ int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0)
        return err_sys(err, errno, "cannot create the generation map %s", path);
    genmap_keep_in_place(fd);
    int r = file_pwrite_full(fd, bytes, sizeof bytes, 0);
    if (r == 0 && (ftruncate(fd, (off_t)(sizeof bytes + numbers_size(blocks_of(size)))) < 0 || fsync(fd) < 0))
        r = -errno;
    if (r == 0)
        return 0;
    unlink(path);
    return err_sys(err, r, "cannot write the generation map %s", path);
}

static int read_header(const char *path, struct genmap *map, struct err *err)
{
    uint8_t bytes[GENMAP_HEADER_SIZE];
    int r = file_pread_full(map->fd, bytes, sizeof bytes, 0);
    if (r < 0 && r != -EPIPE)
        return err_sys(err, r, "cannot read the generation map %s", path);
    r = genmap_header_decode(bytes, r < 0 ? 0 : sizeof bytes, &map->header, err);
    if (r < 0)
        return err_context(err, "%s", path);
    map->blocks = blocks_of(map->header.size);
    map->mapped = GENMAP_HEADER_SIZE + numbers_size(map->blocks);
    map->pages = numbers_size(map->blocks) / PAGE;
    struct stat st;
    if (fstat(map->fd, &st) < 0)
        return err_sys(err, errno, "cannot examine the generation map %s", path);
    if ((uint64_t)st.st_size != map->mapped)
        return err_set(err, EBADMSG, "%s: the generation map has %lld bytes, its header says %llu", path,
                       (long long)st.st_size, (unsigned long long)map->mapped);
    return 0;
}

static int allocate_page(struct genmap *map, uint64_t page)
{
    static const uint8_t zeroes[PAGE];
    uint64_t offset = GENMAP_HEADER_SIZE + page * PAGE;
    int r;
    do
        r = fallocate(map->fd, 0, (off_t)offset, PAGE) < 0 ? -errno : 0;
    while (r == -EINTR);
    /* Nobody has stored into this page yet, and nobody does before we return: zeroes do no harm. */
    return r == -EOPNOTSUPP ? file_pwrite_full(map->fd, zeroes, PAGE, offset) : r;
}

/* A page that has data has space. One that was only reserved counts as a hole here, and is reserved again. */
static int find_allocated(struct genmap *map)
{
    off_t end = (off_t)map->mapped;
    for (off_t at = GENMAP_HEADER_SIZE; at < end;) {
        off_t data = lseek(map->fd, at, SEEK_DATA);
        if (data < 0)
            break;
        off_t hole = lseek(map->fd, data, SEEK_HOLE);
        if (hole < 0)
            hole = end;
        uint64_t from = ((uint64_t)data - GENMAP_HEADER_SIZE) / PAGE;
        uint64_t to = ((uint64_t)MIN(hole, end) - GENMAP_HEADER_SIZE + PAGE - 1) / PAGE;
        for (uint64_t page = from; page < to; page++)
            map->allocated[page / 64] |= UINT64_C(1) << page % 64;
        /* Where the file system's blocks are smaller than a page, a page may have space for a part only. */
        int r = 0;
        if (!map->private && data % PAGE != 0)
            r = allocate_page(map, from);
        if (r == 0 && !map->private && MIN(hole, end) % PAGE != 0)
            r = allocate_page(map, to - 1);
        if (r < 0)
            return r;
        at = hole;
    }
    return 0;
}

static int map_numbers(const char *path, struct genmap *map, struct err *err)
{
    map->allocated = calloc((map->pages + 63) / 64, sizeof *map->allocated);
    if (!map->allocated)
        return err_set(err, ENOMEM, "out of memory opening %s", path);
    void *at =
        mmap(NULL, map->mapped, PROT_READ | PROT_WRITE, map->private ? MAP_PRIVATE : MAP_SHARED, map->fd, 0);
    if (at == MAP_FAILED)
        return err_sys(err, errno, "cannot map the generation map %s", path);
    /* With the mapping a child of ours would hold the file's lock, whatever descriptors it closes. */
    madvise(at, map->mapped, MADV_DONTFORK);
    map->mapping = at;
    map->numbers = (_Atomic uint32_t *)((uint8_t *)at + GENMAP_HEADER_SIZE);
    int r = find_allocated(map);
    return r < 0 ? err_sys(err, r, "cannot prepare the generation map %s", path) : 0;
}

int genmap_open(const char *path, bool read_only, struct genmap *ret, struct err *err)
{
    *ret = (struct genmap){.private = read_only};
    ret->fd = open(path, (read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC);
    if (ret->fd < 0)
        return err_sys(err, errno, "cannot open the generation map %s", path);
    pthread_mutex_init(&ret->allocating, NULL);
    int r;
    if (flock(ret->fd, (read_only ? LOCK_SH : LOCK_EX) | LOCK_NB) < 0) {
        r = errno == EWOULDBLOCK ? err_set(err, EBUSY, "the disk of %s is in use by another process", path)
                                 : err_sys(err, errno, "cannot lock %s", path);
    } else {
        r = read_header(path, ret, err);
        if (r == 0)
            r = map_numbers(path, ret, err);
    }
    if (r < 0)
        genmap_done(ret);
    return r;
}

void genmap_done(struct genmap *map)
{
    if (map->fd < 0)
        return;
    if (map->mapping)
        munmap(map->mapping, map->mapped);
    free(map->allocated);
    pthread_mutex_destroy(&map->allocating);
    close(map->fd);
    *map = (struct genmap){.fd = -1};
}

int genmap_set_header(struct genmap *map, const struct genmap_header *header, struct err *err)
{
    uint8_t bytes[GENMAP_HEADER_SIZE];
    genmap_header_encode(header, bytes);
    int r = file_pwrite_full(map->fd, bytes, sizeof bytes, 0);
    if (r == 0)
        r = genmap_sync(map);
    if (r < 0)
        return err_sys(err, r, "cannot write the generation map's header durably");
    map->header = *header;
    return 0;
}

int genmap_sync(struct genmap *map)
{
    int error = atomic_load(&map->sync_error);
    if (error < 0)
        return error;
    /* Linux counts mapped stores among a file's dirty pages: fdatasync covers them, as msync would. */
    if (fdatasync(map->fd) == 0)
        return 0;
    error = -errno;
    atomic_store(&map->sync_error, error);
    return error;
}

/* --- the numbers --------------------------------------------------------------------------------------- */

static bool is_allocated(const struct genmap *map, uint64_t page)
{
    return atomic_load_explicit(&map->allocated[page / 64], memory_order_acquire) >> page % 64 & 1;
}

static int reserve_page(struct genmap *map, uint64_t page)
{
    if (is_allocated(map, page))
        return 0;
    int r = 0;
    pthread_mutex_lock(&map->allocating);
    if (!is_allocated(map, page)) {
        r = map->private ? 0 : allocate_page(map, page);
        if (r == 0)
            atomic_fetch_or(&map->allocated[page / 64], UINT64_C(1) << page % 64);
    }
    pthread_mutex_unlock(&map->allocating);
    return r;
}

/* A slow writer of an old generation must not undo the mark of a quick one of the next. */
static void raise_number(_Atomic uint32_t *number, uint32_t generation)
{
    uint32_t value = htole32(generation);
    uint32_t old = atomic_load_explicit(number, memory_order_relaxed);
    while (le32toh(old) < generation && !atomic_compare_exchange_weak_explicit(
                                            number, &old, value, memory_order_release, memory_order_relaxed))
        ;
}

int genmap_mark(struct genmap *map, uint64_t block, uint64_t count, uint32_t generation)
{
    assert(block <= map->blocks && count <= map->blocks - block);
    if (count == 0)
        return 0;
    for (uint64_t page = block / PER_PAGE; page <= (block + count - 1) / PER_PAGE; page++) {
        int r = reserve_page(map, page);
        if (r < 0)
            return r;
    }
    for (uint64_t i = block; i < block + count; i++)
        raise_number(&map->numbers[i], generation);
    return 0;
}

uint32_t genmap_get(const struct genmap *map, uint64_t block)
{
    if (!is_allocated(map, block / PER_PAGE))
        return 0;
    return le32toh(atomic_load_explicit(&map->numbers[block], memory_order_acquire));
}

void genmap_drop(struct genmap *map)
{
    atomic_store(&map->touched, 0);
    if (!map->private) /* a private page's stores would be lost */
        madvise(map->mapping, map->mapped, MADV_DONTNEED);
}

/* Counts pages that a scan has made resident, and gives them back when they are many. */
static void count_touched(struct genmap *map, uint64_t pages)
{
    if (pages > 0 && atomic_fetch_add(&map->touched, (unsigned)pages) > KEEP_MAPPED)
        genmap_drop(map);
}

#define GROUP 16 /* blocks */

/* Past groups of blocks that were never written: most of a large disk, usually. Eight loads instead of
 * sixteen comparisons; a block that is written meanwhile may be seen or not, as in the slow walk. */
static uint64_t skip_unwritten(const struct genmap *map, uint64_t from, uint64_t end)
{
    for (; from % GROUP == 0 && end - from >= GROUP; from += GROUP) {
        const uint64_t *pairs = (const void *)&map->numbers[from];
        uint64_t any = 0;
        for (size_t i = 0; i < GROUP / 2; i++)
            any |= __atomic_load_n(&pairs[i], __ATOMIC_RELAXED);
        if (any)
            break;
    }
    return from;
}

/* First block at or after `from` with a number > above and <= upto, and that number; `blocks` when there is
 * none. */
static uint64_t find(struct genmap *map, uint64_t from, uint32_t above, uint32_t upto, uint32_t *ret_number)
{
    while (from < map->blocks) {
        uint64_t page = from / PER_PAGE, end = MIN((page + 1) * PER_PAGE, map->blocks);
        if (!is_allocated(map, page)) {
            from = end;
            continue;
        }
        for (; (from = skip_unwritten(map, from, end)) < end; from++) {
            uint32_t n = le32toh(atomic_load_explicit(&map->numbers[from], memory_order_acquire));
            if (n > above && n <= upto) {
                *ret_number = n;
                return from;
            }
        }
        count_touched(map, 1);
    }
    return map->blocks;
}

uint64_t genmap_next_marked(struct genmap *map, uint64_t from)
{
    uint32_t number;
    return find(map, from, 0, UINT32_MAX, &number);
}

bool genmap_next_run(struct genmap *map, uint64_t from, uint32_t above, uint32_t upto, uint64_t max_blocks,
                     struct disk_run *ret)
{
    uint32_t generation;
    uint64_t block = find(map, from, above, upto, &generation);
    if (block >= map->blocks || max_blocks == 0)
        return false;
    uint64_t end = block + 1, limit = block + MIN(max_blocks, map->blocks - block);
    while (end < limit && genmap_get(map, end) == generation)
        end++;
    count_touched(map, end / PER_PAGE - block / PER_PAGE);
    *ret = (struct disk_run){.block = block, .count = end - block, .generation = generation};
    return true;
}

uint64_t genmap_count(struct genmap *map, uint32_t above, uint32_t upto)
{
    uint64_t count = 0;
    struct disk_run run;
    for (uint64_t at = 0; genmap_next_run(map, at, above, upto, UINT64_MAX, &run); at = run.block + run.count)
        count += run.count;
    genmap_drop(map);
    return count;
}
