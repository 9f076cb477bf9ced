/* SPDX-License-Identifier: Apache-2.0
 *
 * Threads: intent_cover from any thread that has entered the disk's gate; turn, settle, begin and finish from
 * one at a time (the disk's control lock).
 *
 * The file is written by one thread at a time, whoever needs it first; those who come meanwhile put their
 * extents into `wanted` and go with the next write. A failed write leaves `durable` as it was: the writer
 * that needed the bit gets the error, its data never reaches the image.
 *
 * Why settling is right against writers: a writer first sets its bit in `recent`, then looks at `durable`;
 * settling first clears the bit in `durable`, then looks at `recent`, and puts it back if it is set (all
 * sequentially consistent). So either the writer sees the cleared bit and waits for a new one, or settling
 * sees the writer.
 */
#include "disk/intent.h"

#include "base/clock.h"
#include "base/endian.h"
#include "base/file.h"
#include "base/macro.h"
#include "base/pid.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <xxhash.h>

#define MAGIC "ORAI-INT"
#define VERSION 1
#define PAGE 4096U
#define WORDS_PER_PAGE (PAGE / sizeof(uint64_t))
#define EXTENTS_PER_PAGE (WORDS_PER_PAGE * 64) /* a bit each */
#define QUICK NSEC_PER_SEC /* first writes that follow each other within this are a burst */

struct intent_header_v1 {
    uint8_t magic[8];
    uint32_t version;
    uint32_t length; /* of the header: where the bits begin */
    uint8_t map[16];
    uint8_t boot[16];
    uint64_t size;
    uint64_t extents;
    uint32_t extent_size;
    uint32_t clean; /* 0 or 1 */
    uint64_t hash;  /* XXH3-64 of all before it */
};
static_assert(sizeof(struct intent_header_v1) == 80, "as docs/formats.md says");

static uint64_t extents_of(uint64_t size)
{
    return (size + INTENT_EXTENT - 1) / INTENT_EXTENT;
}

static size_t words_of(uint64_t size)
{
    return (extents_of(size) + EXTENTS_PER_PAGE - 1) / EXTENTS_PER_PAGE * WORDS_PER_PAGE;
}

void intent_header_encode(const struct intent_header *header, uint8_t ret[INTENT_HEADER_SIZE])
{
    struct intent_header_v1 h = {
        .magic = MAGIC,
        .version = htole32(VERSION),
        .length = htole32(INTENT_HEADER_SIZE),
        .size = htole64(header->size),
        .extents = htole64(extents_of(header->size)),
        .extent_size = htole32(INTENT_EXTENT),
        .clean = htole32(header->clean),
    };
    memcpy(h.map, header->map.bytes, sizeof h.map);
    memcpy(h.boot, header->boot.bytes, sizeof h.boot);
    h.hash = htole64(XXH3_64bits(&h, offsetof(struct intent_header_v1, hash)));
    memset(ret, 0, INTENT_HEADER_SIZE);
    memcpy(ret, &h, sizeof h);
}

int intent_header_decode(const void *bytes, size_t size, struct intent_header *ret, struct err *err)
{
    struct intent_header_v1 h;
    if (size < sizeof h)
        return err_set(err, EBADMSG, "the intent record is cut short");
    memcpy(&h, bytes, sizeof h);
    if (memcmp(h.magic, MAGIC, sizeof h.magic) != 0)
        return err_set(err, EBADMSG, "this is no intent record (wrong first bytes)");
    if (le32toh(h.version) != VERSION)
        return err_set(err, EPROTONOSUPPORT, "the intent record has format version %u; this Orai knows %u",
                       le32toh(h.version), VERSION);
    if (le64toh(h.hash) != XXH3_64bits(&h, offsetof(struct intent_header_v1, hash)))
        return err_set(err, EBADMSG, "the intent record's header is damaged (wrong checksum)");
    uint64_t disk_size = le64toh(h.size);
    if (disk_size == 0 || disk_size % 512 != 0 || disk_size > INT64_MAX ||
        le64toh(h.extents) != extents_of(disk_size) || le32toh(h.extent_size) != INTENT_EXTENT ||
        le32toh(h.length) != INTENT_HEADER_SIZE || le32toh(h.clean) > 1)
        return err_set(err, EBADMSG, "the intent record's header contradicts itself");
    *ret = (struct intent_header){.size = disk_size, .clean = le32toh(h.clean)};
    memcpy(ret->map.bytes, h.map, sizeof h.map);
    memcpy(ret->boot.bytes, h.boot, sizeof h.boot);
    return 0;
}

int intent_boot(struct id *ret, struct err *err)
{
    char text[BOOT_ID_SIZE];
    int r = boot_id_read(text);
    if (r == 0)
        r = id_parse(text, ret);
    return r < 0 ? err_sys(err, r, "cannot read the kernel's boot id") : 0;
}

/* --- the file ------------------------------------------------------------------------------------------ */

static int write_header(int fd, const struct intent_header *header)
{
    uint8_t bytes[INTENT_HEADER_SIZE];
    intent_header_encode(header, bytes);
    return file_pwrite_full(fd, bytes, sizeof bytes, 0);
}

int intent_create(const char *path, const struct id *map, uint64_t size, struct err *err)
{
    struct intent_header header = {.map = *map, .size = size, .clean = true};
    _cleanup_close_ int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0)
        return err_sys(err, errno, "cannot create the intent record %s", path);
    /* Written whole, not only reserved: setting a bit later costs no metadata, and never finds the disk full.
     */
    size_t bits = words_of(size) * sizeof(uint64_t);
    _cleanup_free_ void *zeroes = calloc(1, bits);
    int r = zeroes ? write_header(fd, &header) : -ENOMEM;
    if (r == 0)
        r = file_pwrite_full(fd, zeroes, bits, INTENT_HEADER_SIZE);
    if (r == 0 && fsync(fd) < 0)
        r = -errno;
    if (r == 0)
        return 0;
    unlink(path);
    return err_sys(err, r, "cannot write the intent record %s", path);
}

static int allocate(struct intent *intent, struct err *err)
{
    intent->extents = extents_of(intent->header.size);
    intent->words = words_of(intent->header.size);
    intent->durable = calloc(intent->words, sizeof *intent->durable);
    intent->recent = calloc(intent->words, sizeof *intent->recent);
    intent->before = calloc(intent->words, sizeof *intent->before);
    intent->wanted = calloc(intent->words, sizeof *intent->wanted);
    intent->picture = calloc(intent->words, sizeof *intent->picture);
    intent->next = calloc(intent->words, sizeof *intent->next);
    if (!intent->durable || !intent->recent || !intent->before || !intent->wanted || !intent->picture ||
        !intent->next)
        return err_set(err, ENOMEM, "out of memory reading an intent record");
    return 0;
}

static int load(struct intent *intent, struct err *err)
{
    uint8_t bytes[INTENT_HEADER_SIZE];
    int r = file_pread_full(intent->fd, bytes, sizeof bytes, 0);
    if (r < 0 && r != -EPIPE)
        return err_sys(err, r, "cannot read the intent record");
    r = intent_header_decode(bytes, r < 0 ? 0 : sizeof bytes, &intent->header, err);
    struct stat st;
    if (r < 0)
        return r;
    if (fstat(intent->fd, &st) < 0)
        return err_sys(err, errno, "cannot examine the intent record");
    size_t bits = words_of(intent->header.size) * sizeof(uint64_t);
    if ((uint64_t)st.st_size != INTENT_HEADER_SIZE + bits)
        return err_set(err, EBADMSG, "the intent record has %lld bytes, its header says %zu",
                       (long long)st.st_size, INTENT_HEADER_SIZE + bits);
    r = allocate(intent, err);
    if (r < 0)
        return r;
    r = file_pread_full(intent->fd, intent->picture, bits, INTENT_HEADER_SIZE);
    if (r < 0)
        return err_sys(err, r, "cannot read the intent record");
    for (size_t i = 0; i < intent->words && !intent->header.clean; i++)
        intent->durable[i] = le64toh(intent->picture[i]);
    return 0;
}

int intent_open(const char *path, bool read_only, struct intent *ret, struct err *err)
{
    *ret = (struct intent){.ahead = 1};
    ret->fd = open(path, (read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC);
    if (ret->fd < 0)
        return err_sys(err, errno, "cannot open the intent record %s", path);
    pthread_mutex_init(&ret->lock, NULL);
    pthread_cond_init(&ret->written, NULL);
    int r = load(ret, err);
    if (r < 0) {
        intent_done(ret);
        return err_context(err, "%s", path);
    }
    return 0;
}

void intent_done(struct intent *intent)
{
    if (intent->fd < 0)
        return;
    free(intent->durable);
    free(intent->recent);
    free(intent->before);
    free(intent->wanted);
    free(intent->picture);
    free(intent->next);
    pthread_mutex_destroy(&intent->lock);
    pthread_cond_destroy(&intent->written);
    close(intent->fd);
    *intent = (struct intent){.fd = -1};
}

/* Writes the pages that differ from the picture, durably if asked. */
static int write_bits(struct intent *intent, bool durably)
{
    int r = 0;
    for (size_t at = 0; at < intent->words && r == 0; at += WORDS_PER_PAGE) {
        if (intent->unsure || memcmp(&intent->picture[at], &intent->next[at], PAGE) != 0)
            r = file_pwrite_full(intent->fd, &intent->next[at], PAGE,
                                 INTENT_HEADER_SIZE + at * sizeof(uint64_t));
    }
    if (r == 0 && durably && fdatasync(intent->fd) < 0)
        r = -errno;
    intent->unsure = r < 0;
    if (r == 0)
        memcpy(intent->picture, intent->next, intent->words * sizeof *intent->next);
    return r;
}

static int replace_all(struct intent *intent, const struct intent_header *header, struct err *err)
{
    for (size_t i = 0; i < intent->words; i++)
        intent->next[i] = htole64(intent->durable[i]);
    int r = write_header(intent->fd, header);
    if (r == 0)
        r = write_bits(intent, true); /* the file's fdatasync, so the header's too */
    if (r < 0)
        return err_sys(err, r, "cannot write the intent record durably");
    intent->header = *header;
    return 0;
}

int intent_begin(struct intent *intent, const struct id *boot, bool keep, struct err *err)
{
    struct intent_header header = intent->header;
    header.boot = *boot;
    header.clean = false;
    for (size_t i = 0; i < intent->words && !keep; i++)
        intent->durable[i] = 0;
    return replace_all(intent, &header, err);
}

int intent_finish(struct intent *intent, struct err *err)
{
    struct intent_header header = intent->header;
    header.clean = true;
    for (size_t i = 0; i < intent->words; i++)
        intent->durable[i] = 0;
    return replace_all(intent, &header, err);
}

void intent_distrust(struct intent *intent)
{
    intent->header.boot = (struct id){0};
    if (write_header(intent->fd, &intent->header) == 0)
        (void)fdatasync(intent->fd); /* the disk is failing; that it says so here too changes nothing */
}

/* --- covering ------------------------------------------------------------------------------------------ */

static bool get_bit(const _Atomic uint64_t *bits, uint64_t n)
{
    return atomic_load(&bits[n / 64]) >> n % 64 & 1;
}

static uint64_t last_extent(const struct disk_range *range)
{
    return (range->offset + range->size - 1) / INTENT_EXTENT;
}

static bool is_covered(const struct intent *intent, const struct disk_range *ranges, size_t count)
{
    for (size_t i = 0; i < count; i++)
        for (uint64_t e = ranges[i].offset / INTENT_EXTENT;
             ranges[i].size > 0 && e <= last_extent(&ranges[i]); e++)
            if (!get_bit(intent->durable, e))
                return false;
    return true;
}

static void announce(struct intent *intent, const struct disk_range *ranges, size_t count)
{
    for (size_t i = 0; i < count; i++)
        for (uint64_t e = ranges[i].offset / INTENT_EXTENT;
             ranges[i].size > 0 && e <= last_extent(&ranges[i]); e++)
            if (!get_bit(intent->recent, e)) /* mostly set: then the cache line stays shared */
                atomic_fetch_or(&intent->recent[e / 64], UINT64_C(1) << e % 64);
}

static void want(struct intent *intent, const struct disk_range *ranges, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (ranges[i].size == 0)
            continue;
        uint64_t end = MIN(last_extent(&ranges[i]) + intent->ahead, intent->extents);
        for (uint64_t e = ranges[i].offset / INTENT_EXTENT; e < end; e++)
            intent->wanted[e / 64] |= UINT64_C(1) << e % 64;
    }
}

/* First writes in quick succession, a sequential stream or a busy spread, double what is marked at once. */
static void adapt(struct intent *intent)
{
    int64_t now = clock_now();
    bool burst = intent->last_miss != 0 && now - intent->last_miss < QUICK;
    intent->ahead = burst ? MIN(intent->ahead * 2, INTENT_AHEAD) : 1;
    intent->last_miss = now;
}

/* Writes what everybody wants by now. Called and left with the lock held. */
static int write_wanted(struct intent *intent)
{
    intent->writing = true;
    for (size_t i = 0; i < intent->words; i++)
        intent->next[i] = htole64(atomic_load(&intent->durable[i]) | intent->wanted[i]);
    pthread_mutex_unlock(&intent->lock);
    int r = write_bits(intent, true);
    pthread_mutex_lock(&intent->lock);
    for (size_t i = 0; i < intent->words && r == 0; i++) {
        uint64_t written = le64toh(intent->next[i]);
        atomic_fetch_or(&intent->durable[i], written);
        intent->wanted[i] &= ~written;
    }
    intent->writing = false;
    pthread_cond_broadcast(&intent->written);
    return r;
}

int intent_cover(struct intent *intent, const struct disk_range *ranges, size_t count)
{
    announce(intent, ranges, count);
    if (is_covered(intent, ranges, count))
        return 0;
    int r = 0;
    pthread_mutex_lock(&intent->lock);
    adapt(intent);
    want(intent, ranges, count);
    while (r == 0 && !is_covered(intent, ranges, count)) {
        if (intent->writing) {
            pthread_cond_wait(&intent->written, &intent->lock);
        } else {
            want(intent, ranges, count); /* a settling may have come between */
            r = write_wanted(intent);
        }
    }
    pthread_mutex_unlock(&intent->lock);
    return r;
}

uint64_t intent_next(const struct intent *intent, uint64_t from)
{
    while (from < intent->extents && !get_bit(intent->durable, from))
        from++;
    return from;
}

/* --- checkpoint ---------------------------------------------------------------------------------------- */

void intent_turn(struct intent *intent)
{
    for (size_t i = 0; i < intent->words; i++)
        intent->before[i] = atomic_exchange(&intent->recent[i], 0);
}

bool intent_has_cold(const struct intent *intent)
{
    for (size_t i = 0; i < intent->words; i++)
        if (atomic_load(&intent->durable[i]) & ~(atomic_load(&intent->recent[i]) | intent->before[i]))
            return true;
    return false;
}

int intent_settle(struct intent *intent, bool keep_hot)
{
    pthread_mutex_lock(&intent->lock);
    while (intent->writing)
        pthread_cond_wait(&intent->written, &intent->lock);
    intent->writing = true;
    pthread_mutex_unlock(&intent->lock);

    for (size_t i = 0; i < intent->words; i++) {
        uint64_t keep = atomic_load(&intent->recent[i]) | (keep_hot ? intent->before[i] : 0);
        uint64_t cold = atomic_load(&intent->durable[i]) & ~keep;
        atomic_fetch_and(&intent->durable[i], ~cold);
        atomic_fetch_or(&intent->durable[i], atomic_load(&intent->recent[i]) & cold);
        intent->next[i] = htole64(atomic_load(&intent->durable[i]));
    }
    int r = write_bits(intent, false);

    pthread_mutex_lock(&intent->lock);
    intent->writing = false;
    pthread_cond_broadcast(&intent->written);
    pthread_mutex_unlock(&intent->lock);
    return r;
}
