/* SPDX-License-Identifier: Apache-2.0
 *
 * Threads: bits are atomics that any thread may look at and clear (with the stripe's lock, where data goes
 * with it). All their accesses are sequentially consistent: a reader that finds a bit cleared sees the data,
 * and whoever is about to wait cannot miss a wake-up (wait.c).
 *
 * The header is smaller than a sector, which the drive writes whole or not at all; it is written last when
 * the file is made. So a power cut leaves no file, one without a header, or a whole one.
 */
#include "disk/missing.h"

#include "base/endian.h"
#include "base/file.h"
#include "base/macro.h"
#include "disk/disk.h"
#include "disk/genmap.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <xxhash.h>

#define MAGIC "ORAI-MIS"
#define VERSION 1
#define PAGE 4096U
#define BLOCKS_PER_PAGE (PAGE * UINT64_C(8))
#define WORDS_PER_PAGE (PAGE / sizeof(uint64_t))
#define STEP 256U /* blocks; every extent is a multiple of it */

struct missing_header_v1 {
    uint8_t magic[8];
    uint32_t version;
    uint32_t length; /* of the header: where the durable bits begin */
    uint8_t map[16];
    uint8_t boot[16];
    uint8_t handover[16];
    uint64_t size;
    uint64_t blocks;
    uint32_t block_size;
    uint32_t generation;
    uint64_t hash; /* XXH3-64 of all before it */
};
static_assert(sizeof(struct missing_header_v1) == 96, "as docs/formats.md says");
static_assert(sizeof(_Atomic uint64_t) == 8, "the bits are mapped as they lie on disk");

static uint64_t blocks_of(uint64_t size)
{
    return (size + DISK_BLOCK - 1) / DISK_BLOCK;
}

static size_t pages_of(uint64_t size)
{
    return (blocks_of(size) + BLOCKS_PER_PAGE - 1) / BLOCKS_PER_PAGE;
}

static uint64_t durable_offset(size_t page)
{
    return MISSING_HEADER_SIZE + page * (uint64_t)PAGE;
}

static uint64_t live_offset(const struct missing *missing, size_t page)
{
    return MISSING_HEADER_SIZE + (missing->pages + page) * (uint64_t)PAGE;
}

void missing_header_encode(const struct missing_header *header, uint8_t ret[MISSING_HEADER_SIZE])
{
    struct missing_header_v1 h = {
        .magic = MAGIC,
        .version = htole32(VERSION),
        .length = htole32(MISSING_HEADER_SIZE),
        .size = htole64(header->size),
        .blocks = htole64(blocks_of(header->size)),
        .block_size = htole32(DISK_BLOCK),
        .generation = htole32(header->generation),
    };
    memcpy(h.map, header->map.bytes, sizeof h.map);
    memcpy(h.boot, header->boot.bytes, sizeof h.boot);
    memcpy(h.handover, header->handover.bytes, sizeof h.handover);
    h.hash = htole64(XXH3_64bits(&h, offsetof(struct missing_header_v1, hash)));
    memset(ret, 0, MISSING_HEADER_SIZE);
    memcpy(ret, &h, sizeof h);
}

int missing_header_decode(const void *bytes, size_t size, struct missing_header *ret, struct err *err)
{
    struct missing_header_v1 h;
    if (size < sizeof h)
        return err_set(err, EBADMSG, "the record of missing blocks is cut short");
    memcpy(&h, bytes, sizeof h);
    if (memcmp(h.magic, MAGIC, sizeof h.magic) != 0)
        return err_set(err, EBADMSG, "this is no record of missing blocks (wrong first bytes)");
    if (le32toh(h.version) != VERSION)
        return err_set(err, EPROTONOSUPPORT,
                       "the record of missing blocks has format version %u; this Orai knows %u",
                       le32toh(h.version), VERSION);
    if (le64toh(h.hash) != XXH3_64bits(&h, offsetof(struct missing_header_v1, hash)))
        return err_set(err, EBADMSG, "the header of the missing blocks is damaged (wrong checksum)");
    uint64_t disk_size = le64toh(h.size);
    if (disk_size == 0 || disk_size % 512 != 0 || disk_size > INT64_MAX ||
        le64toh(h.blocks) != blocks_of(disk_size) || le32toh(h.block_size) != DISK_BLOCK ||
        le32toh(h.length) != MISSING_HEADER_SIZE || le32toh(h.generation) == 0 ||
        le32toh(h.generation) >= LINEAGE_MAX_GENERATION)
        return err_set(err, EBADMSG, "the header of the missing blocks contradicts itself");
    *ret = (struct missing_header){.size = disk_size, .generation = le32toh(h.generation)};
    memcpy(ret->map.bytes, h.map, sizeof h.map);
    memcpy(ret->boot.bytes, h.boot, sizeof h.boot);
    memcpy(ret->handover.bytes, h.handover, sizeof h.handover);
    return 0;
}

/* --- making the file ----------------------------------------------------------------------------------- */

static int write_header(int fd, const struct missing_header *header)
{
    uint8_t bytes[MISSING_HEADER_SIZE];
    missing_header_encode(header, bytes);
    int r = file_pwrite_full(fd, bytes, sizeof bytes, 0);
    return r == 0 && fdatasync(fd) < 0 ? -errno : r;
}

/* One page of bits out of the coarse picture. false = all zeroes. */
static bool draw_page(const uint8_t *picture, uint64_t extent, uint64_t blocks, size_t page,
                      uint8_t ret[PAGE])
{
    bool any = false;
    memset(ret, 0, PAGE);
    for (uint64_t i = 0; i < BLOCKS_PER_PAGE / STEP; i++) {
        uint64_t block = page * BLOCKS_PER_PAGE + i * STEP, e = block / extent;
        if (block >= blocks || !(picture[e / 8] >> e % 8 & 1))
            continue;
        any = true;
        for (uint64_t n = 0; n < MIN(STEP, blocks - block); n++)
            ret[(i * STEP + n) / 8] |= (uint8_t)(1U << n % 8);
    }
    return any;
}

static int write_pages(int fd, uint64_t size, const uint8_t *picture, uint64_t extent)
{
    uint8_t bits[PAGE];
    size_t pages = pages_of(size);
    int r = ftruncate(fd, (off_t)(MISSING_HEADER_SIZE + 2 * pages * (uint64_t)PAGE)) < 0 ? -errno : 0;
    for (size_t page = 0; page < pages && r == 0; page++) {
        if (!draw_page(picture, extent, blocks_of(size), page, bits))
            continue;
        r = file_pwrite_full(fd, bits, PAGE, durable_offset(page));
        if (r == 0)
            r = file_pwrite_full(fd, bits, PAGE, durable_offset(pages + page));
    }
    return r == 0 && fsync(fd) < 0 ? -errno : r;
}

int missing_create(const char *path, const struct missing_header *header, const uint8_t *picture,
                   uint64_t extent, struct err *err)
{
    assert(extent % STEP == 0);
    if (unlink(path) < 0 && errno != ENOENT)
        return err_sys(err, errno, "cannot replace the record of missing blocks %s", path);
    _cleanup_close_ int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0)
        return err_sys(err, errno, "cannot create the record of missing blocks %s", path);
    genmap_keep_in_place(fd);
    int r = write_pages(fd, header->size, picture, extent);
    if (r == 0)
        r = write_header(fd, header);
    if (r < 0)
        err_sys(err, r, "cannot write the record of missing blocks %s", path);
    else
        r = file_sync_parent(path, err);
    if (r < 0)
        unlink(path);
    return r;
}

/* --- opening ------------------------------------------------------------------------------------------- */

static int read_header(struct missing *missing, struct err *err)
{
    uint8_t bytes[MISSING_HEADER_SIZE];
    int r = file_pread_full(missing->fd, bytes, sizeof bytes, 0);
    if (r < 0 && r != -EPIPE)
        return err_sys(err, r, "cannot read the record of missing blocks");
    r = missing_header_decode(bytes, r < 0 ? 0 : sizeof bytes, &missing->header, err);
    struct stat st;
    if (r < 0)
        return r;
    if (fstat(missing->fd, &st) < 0)
        return err_sys(err, errno, "cannot examine the record of missing blocks");
    missing->blocks = blocks_of(missing->header.size);
    missing->pages = pages_of(missing->header.size);
    missing->mapped = live_offset(missing, missing->pages);
    if ((uint64_t)st.st_size != missing->mapped)
        return err_set(err, EBADMSG, "the record of missing blocks has %lld bytes, its header says %zu",
                       (long long)st.st_size, missing->mapped);
    return 0;
}

/* After a power cut: what the live bits were is anybody's guess. The header follows when they are durable. */
static int restart(struct missing *missing, const struct id *boot)
{
    uint8_t durable[PAGE], live[PAGE];
    int r = 0;
    for (size_t page = 0; page < missing->pages && r == 0; page++) {
        r = file_pread_full(missing->fd, durable, PAGE, durable_offset(page));
        if (r == 0)
            r = file_pread_full(missing->fd, live, PAGE, live_offset(missing, page));
        if (r == 0 && memcmp(durable, live, PAGE) != 0)
            r = file_pwrite_full(missing->fd, durable, PAGE, live_offset(missing, page));
    }
    if (r == 0 && fdatasync(missing->fd) < 0)
        r = -errno;
    missing->header.boot = *boot;
    return r < 0 ? r : write_header(missing->fd, &missing->header);
}

/* Counts, and finds the pages that a killed process had not carried over. */
static int look_through(struct missing *missing)
{
    uint64_t durable[WORDS_PER_PAGE], count = 0;
    for (size_t page = 0; page < missing->pages; page++) {
        int r = file_pread_full(missing->fd, durable, PAGE, durable_offset(page));
        if (r < 0)
            return r;
        bool differs = false;
        for (size_t i = 0; i < WORDS_PER_PAGE; i++) {
            uint64_t live = atomic_load(&missing->live[page * WORDS_PER_PAGE + i]);
            differs |= live != durable[i];
            count += (uint64_t)__builtin_popcountll(live);
        }
        if (differs)
            missing->changed[page / 64] |= UINT64_C(1) << page % 64;
    }
    atomic_store(&missing->count, count);
    return 0;
}

static int map_bits(struct missing *missing, bool read_only, bool from_durable, struct err *err)
{
    missing->changed = calloc(missing->pages / 64 + 1, sizeof *missing->changed);
    if (!missing->changed)
        return err_set(err, ENOMEM, "out of memory reading the record of missing blocks");
    void *at = mmap(NULL, missing->mapped, PROT_READ | PROT_WRITE, read_only ? MAP_PRIVATE : MAP_SHARED,
                    missing->fd, 0);
    if (at == MAP_FAILED)
        return err_sys(err, errno, "cannot map the record of missing blocks");
    missing->mapping = at;
    uint64_t offset = from_durable ? durable_offset(0) : live_offset(missing, 0);
    missing->live = (_Atomic uint64_t *)((uint8_t *)at + offset);
    int r = look_through(missing);
    return r < 0 ? err_sys(err, r, "cannot read the record of missing blocks") : 0;
}

static struct missing *new_missing(void)
{
    struct missing *missing = calloc(1, sizeof *missing);
    if (!missing)
        return NULL;
    missing->fd = -1;
    pthread_mutex_init(&missing->settling, NULL);
    for (size_t i = 0; i < MISSING_STRIPES; i++)
        pthread_mutex_init(&missing->stripes[i], NULL);
    return missing;
}

static void missing_cleanup(struct missing **missing)
{
    missing_free(*missing);
}

int missing_open(const char *path, bool read_only, const struct id *boot, struct missing **ret,
                 struct err *err)
{
    _cleanup_(missing_cleanup) struct missing *missing = new_missing();
    if (!missing)
        return err_set(err, ENOMEM, "out of memory opening %s", path);
    missing->fd = open(path, (read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC);
    if (missing->fd < 0)
        return err_sys(err, errno, "cannot open the record of missing blocks %s", path);
    int r = read_header(missing, err);
    if (r < 0)
        return err_context(err, "%s", path);
    bool other_boot = !id_equal(&missing->header.boot, boot);
    if (other_boot && !read_only && (r = restart(missing, boot)) < 0)
        return err_sys(err, r, "cannot write the record of missing blocks %s", path);
    r = map_bits(missing, read_only, other_boot && read_only, err);
    if (r < 0)
        return err_context(err, "%s", path);
    *ret = TAKE_PTR(missing);
    return 0;
}

void missing_free(struct missing *missing)
{
    while (missing) {
        struct missing *former = missing->former;
        if (missing->mapping)
            munmap(missing->mapping, missing->mapped);
        if (missing->fd >= 0)
            close(missing->fd);
        pthread_mutex_destroy(&missing->settling);
        for (size_t i = 0; i < MISSING_STRIPES; i++)
            pthread_mutex_destroy(&missing->stripes[i]);
        free(missing->changed);
        free(missing);
        missing = former;
    }
}

/* --- bits ---------------------------------------------------------------------------------------------- */

/* Of the word with block `from`: the bits of [from, end). */
static uint64_t mask_of(uint64_t from, uint64_t end)
{
    uint64_t mask = UINT64_MAX << from % 64;
    uint64_t word_end = (from / 64 + 1) * 64;
    return end < word_end ? mask & ~(UINT64_MAX << end % 64) : mask;
}

/* The first bit in [from, end) that is unlike those of `flip`. */
static uint64_t find(const struct missing *missing, uint64_t from, uint64_t end, uint64_t flip)
{
    assert(end <= missing->blocks);
    while (from < end) {
        uint64_t word = (le64toh(atomic_load(&missing->live[from / 64])) ^ flip) & mask_of(from, end);
        if (word != 0)
            return from / 64 * 64 + (uint64_t)__builtin_ctzll(word);
        from = (from / 64 + 1) * 64;
    }
    return end;
}

uint64_t missing_next(const struct missing *missing, uint64_t from, uint64_t end)
{
    return find(missing, from, end, 0);
}

uint64_t missing_next_here(const struct missing *missing, uint64_t from, uint64_t end)
{
    return find(missing, from, end, UINT64_MAX);
}

uint64_t missing_clear(struct missing *missing, uint64_t from, uint64_t end)
{
    assert(end <= missing->blocks);
    uint64_t cleared = 0;
    for (uint64_t at = missing_next(missing, from, end); at < end; at = missing_next(missing, at, end)) {
        uint64_t mask = htole64(mask_of(at, end));
        uint64_t was = atomic_fetch_and(&missing->live[at / 64], ~mask) & mask;
        cleared += (uint64_t)__builtin_popcountll(was);
        uint64_t page = at / BLOCKS_PER_PAGE; /* after the bit: who takes the page later takes the bit too */
        atomic_fetch_or(&missing->changed[page / 64], UINT64_C(1) << page % 64);
    }
    atomic_fetch_sub(&missing->count, cleared);
    return cleared;
}

/* --- carrying over ------------------------------------------------------------------------------------- */

struct missing_picture {
    size_t count;
    struct picture_page {
        size_t page;
        uint64_t bits[WORDS_PER_PAGE];
    } pages[];
};

bool missing_has_changed(const struct missing *missing)
{
    for (size_t i = 0; i < (missing->pages + 63) / 64; i++)
        if (atomic_load(&missing->changed[i]) != 0)
            return true;
    return false;
}

/* Takes the marks of what has changed; returns how many pages. */
static size_t take_marks(struct missing *missing, uint64_t *marks)
{
    size_t count = 0;
    for (size_t i = 0; i < (missing->pages + 63) / 64; i++) {
        marks[i] = atomic_exchange(&missing->changed[i], 0);
        count += (size_t)__builtin_popcountll(marks[i]);
    }
    return count;
}

int missing_take(struct missing *missing, struct missing_picture **ret)
{
    if (!missing_has_changed(missing)) {
        *ret = NULL;
        return 0;
    }
    size_t words = (missing->pages + 63) / 64;
    _cleanup_free_ uint64_t *marks = calloc(words, sizeof *marks);
    if (!marks)
        return -ENOMEM;
    size_t count = take_marks(missing, marks);
    struct missing_picture *picture = malloc(sizeof *picture + count * sizeof *picture->pages);
    if (!picture) {
        for (size_t i = 0; i < words; i++)
            atomic_fetch_or(&missing->changed[i], marks[i]);
        return -ENOMEM;
    }
    picture->count = 0;
    for (size_t page = 0; page < missing->pages; page++) {
        if (!(marks[page / 64] >> page % 64 & 1))
            continue;
        struct picture_page *p = &picture->pages[picture->count++];
        p->page = page;
        for (size_t i = 0; i < WORDS_PER_PAGE; i++)
            p->bits[i] = atomic_load(&missing->live[page * WORDS_PER_PAGE + i]);
    }
    *ret = picture;
    return 0;
}

void missing_put_back(struct missing *missing, struct missing_picture *picture)
{
    for (size_t i = 0; picture && i < picture->count; i++) {
        size_t page = picture->pages[i].page;
        atomic_fetch_or(&missing->changed[page / 64], UINT64_C(1) << page % 64);
    }
    free(picture);
}

int missing_put(struct missing *missing, struct missing_picture *picture)
{
    int r = atomic_load(&missing->sync_error);
    for (size_t i = 0; i < picture->count && r == 0; i++)
        r = file_pwrite_full(missing->fd, picture->pages[i].bits, PAGE,
                             durable_offset(picture->pages[i].page));
    if (r == 0 && fdatasync(missing->fd) < 0) {
        r = -errno;
        atomic_store(&missing->sync_error, r);
    }
    if (r == 0)
        free(picture);
    else
        missing_put_back(missing, picture);
    return r;
}

void missing_distrust(struct missing *missing)
{
    missing->header.boot = (struct id){0};
    (void)write_header(missing->fd, &missing->header); /* the disk is failing; that it fails here too changes
                                                          nothing */
}
