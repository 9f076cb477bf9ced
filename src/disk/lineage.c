/* SPDX-License-Identifier: Apache-2.0
 *
 * The encoded lineage, all numbers little-endian (docs/formats.md):
 *
 *   struct lineage_header_v1            64 bytes
 *   struct lineage_entry_v1 [count]     96 bytes each, generations strictly growing
 *   u64                                 XXH3-64 of all bytes before it
 *
 * Pure: no I/O, no clock, no global state. What decode lets through always holds afterwards: every generation
 * that the claim names has its entry, and nothing in it can overflow.
 */
#include "disk/lineage.h"

#include "base/endian.h"
#include "base/macro.h"

#include <errno.h>
#include <string.h>
#include <xxhash.h>

#define MAGIC "ORAI-LIN"
#define VERSION 1
#define BLOCK 4096U /* DISK_BLOCK; the cursor counts them */

struct lineage_header_v1 {
    uint8_t magic[8];
    uint32_t version;
    uint32_t length; /* of the whole, the hash too */
    uint8_t disk[16];
    uint64_t size;
    uint32_t claim;
    uint32_t complete;
    uint32_t reached;
    uint32_t count;
    uint64_t cursor;
};
static_assert(sizeof(struct lineage_header_v1) == 64, "as docs/formats.md says");

struct lineage_entry_v1 {
    uint32_t generation;
    uint32_t kind;
    uint8_t id[16];
    int64_t time_ms;
    char host[LINEAGE_HOST_SIZE]; /* NUL-padded, at least one NUL */
};
static_assert(sizeof(struct lineage_entry_v1) == 96, "as docs/formats.md says");

#define SIZE_OF(count) \
    (sizeof(struct lineage_header_v1) + (count) * sizeof(struct lineage_entry_v1) + sizeof(uint64_t))
static_assert(SIZE_OF(LINEAGE_MAX_ENTRIES) <= LINEAGE_MAX_BYTES, "the longest lineage fits");

const char *lineage_claim_name(enum lineage_claim claim)
{
    static const char *const names[] = {[LINEAGE_OWNER] = "owner",
                                        [LINEAGE_REPLICA] = "replica",
                                        [LINEAGE_PARTIAL] = "partial replica",
                                        [LINEAGE_FORK] = "fork",
                                        [LINEAGE_SPLIT] = "split disk"};
    static_assert(ARRAY_SIZE(names) == LINEAGE_SPLIT + 1, "a name for each");
    return claim < ARRAY_SIZE(names) && names[claim] ? names[claim] : "unknown";
}

bool lineage_claim_runs(enum lineage_claim claim)
{
    return claim == LINEAGE_OWNER || claim == LINEAGE_FORK || claim == LINEAGE_SPLIT;
}

const char *lineage_kind_name(enum lineage_kind kind)
{
    static const char *const names[] = {
        [LINEAGE_BASE] = "base image", [LINEAGE_ROUND] = "round", [LINEAGE_HANDOVER] = "hand-over"};
    static_assert(ARRAY_SIZE(names) == LINEAGE_HANDOVER + 1, "a name for each");
    return kind < ARRAY_SIZE(names) && names[kind] ? names[kind] : "unknown";
}

struct lineage *lineage_new(const struct id *disk, uint64_t size)
{
    struct lineage *lineage = calloc(1, sizeof *lineage);
    if (!lineage)
        return NULL;
    lineage->disk = *disk;
    lineage->size = size;
    lineage->claim = LINEAGE_OWNER;
    return lineage;
}

void lineage_free(struct lineage *lineage)
{
    if (!lineage)
        return;
    free(lineage->entries);
    free(lineage);
}

int lineage_copy(const struct lineage *lineage, struct lineage **ret)
{
    _cleanup_(lineage_cleanup) struct lineage *copy = lineage_new(&lineage->disk, lineage->size);
    if (!copy)
        return -ENOMEM;
    *copy = *lineage;
    copy->entries = calloc(MAX(lineage->count, 1), sizeof *copy->entries);
    if (!copy->entries)
        return -ENOMEM;
    if (lineage->count > 0)
        memcpy(copy->entries, lineage->entries, lineage->count * sizeof *copy->entries);
    *ret = TAKE_PTR(copy);
    return 0;
}

/* The oldest entry of `kind` that the claim does not lean on, or `count`. */
static size_t oldest(const struct lineage *lineage, enum lineage_kind kind)
{
    size_t i = 0;
    for (; i < lineage->count; i++) {
        const struct lineage_entry *e = &lineage->entries[i];
        if (e->kind == kind && e->generation != lineage->complete && e->generation != lineage->reached)
            break;
    }
    return i;
}

static int prune_one(struct lineage *lineage)
{
    size_t victim = oldest(lineage, LINEAGE_ROUND);
    if (victim == lineage->count)
        victim = oldest(lineage, LINEAGE_HANDOVER);
    if (victim == lineage->count)
        return -ENOSPC;
    lineage->count--;
    memmove(&lineage->entries[victim], &lineage->entries[victim + 1],
            (lineage->count - victim) * sizeof *lineage->entries);
    return 0;
}

static void set_host(char host[LINEAGE_HOST_SIZE], const char *name)
{
    memset(host, 0, LINEAGE_HOST_SIZE);
    memcpy(host, name, strnlen(name, LINEAGE_HOST_SIZE - 1));
}

/* 0 = there is none. */
static uint32_t newest_generation(const struct lineage *lineage)
{
    return lineage->count > 0 ? lineage->entries[lineage->count - 1].generation : 0;
}

int lineage_add(struct lineage *lineage, uint32_t generation, const struct id *id, enum lineage_kind kind,
                const char *host, int64_t time_ms)
{
    if (generation <= newest_generation(lineage) || generation >= LINEAGE_MAX_GENERATION)
        return -EINVAL;
    while (lineage->count >= LINEAGE_MAX_ENTRIES) {
        int r = prune_one(lineage);
        if (r < 0)
            return r;
    }
    struct lineage_entry *entries = realloc(lineage->entries, (lineage->count + 1) * sizeof *entries);
    if (!entries)
        return -ENOMEM;
    lineage->entries = entries;
    struct lineage_entry *e = &entries[lineage->count++];
    *e = (struct lineage_entry){.generation = generation, .kind = kind, .id = *id, .time_ms = time_ms};
    set_host(e->host, host);
    return 0;
}

const struct lineage_entry *lineage_find(const struct lineage *lineage, uint32_t generation)
{
    for (size_t i = 0; i < lineage->count; i++)
        if (lineage->entries[i].generation == generation)
            return &lineage->entries[i];
    return NULL;
}

const struct lineage_entry *lineage_newest(const struct lineage *lineage)
{
    return lineage->count > 0 ? &lineage->entries[lineage->count - 1] : NULL;
}

/* --- encoded form -------------------------------------------------------------------------------------- */

static void encode_entry(const struct lineage_entry *entry, void *to)
{
    struct lineage_entry_v1 e = {
        .generation = htole32(entry->generation),
        .kind = htole32(entry->kind),
        .time_ms = (int64_t)htole64((uint64_t)entry->time_ms),
    };
    memcpy(e.id, entry->id.bytes, sizeof e.id);
    set_host(e.host, entry->host);
    memcpy(to, &e, sizeof e);
}

int lineage_encode(const struct lineage *lineage, void **ret_bytes, size_t *ret_size)
{
    if (lineage->count > LINEAGE_MAX_ENTRIES)
        return -E2BIG;
    size_t size = SIZE_OF(lineage->count);
    uint8_t *bytes = malloc(size);
    if (!bytes)
        return -ENOMEM;
    struct lineage_header_v1 h = {
        .magic = MAGIC,
        .version = htole32(VERSION),
        .length = htole32((uint32_t)size),
        .size = htole64(lineage->size),
        .claim = htole32(lineage->claim),
        .complete = htole32(lineage->complete),
        .reached = htole32(lineage->reached),
        .count = htole32((uint32_t)lineage->count),
        .cursor = htole64(lineage->cursor),
    };
    memcpy(h.disk, lineage->disk.bytes, sizeof h.disk);
    memcpy(bytes, &h, sizeof h);
    for (size_t i = 0; i < lineage->count; i++)
        encode_entry(&lineage->entries[i], bytes + sizeof h + i * sizeof(struct lineage_entry_v1));
    put_le64(bytes + size - 8, XXH3_64bits(bytes, size - 8));
    *ret_bytes = bytes;
    *ret_size = size;
    return 0;
}

static int check_frame(const uint8_t *bytes, size_t size, struct lineage_header_v1 *h, struct err *err)
{
    if (size < SIZE_OF(0) || size > LINEAGE_MAX_BYTES)
        return err_set(err, EBADMSG, "a lineage cannot have %zu bytes", size);
    memcpy(h, bytes, sizeof *h);
    if (memcmp(h->magic, MAGIC, sizeof h->magic) != 0)
        return err_set(err, EBADMSG, "this is no lineage (wrong first bytes)");
    if (le32toh(h->version) != VERSION)
        return err_set(err, EPROTONOSUPPORT, "the lineage has format version %u; this Orai knows %u",
                       le32toh(h->version), VERSION);
    uint32_t count = le32toh(h->count);
    if (count > LINEAGE_MAX_ENTRIES || le32toh(h->length) != size || SIZE_OF((size_t)count) != size)
        return err_set(err, EBADMSG, "the lineage is cut short or its length is damaged");
    if (get_le64(bytes + size - 8) != XXH3_64bits(bytes, size - 8))
        return err_set(err, EBADMSG, "the lineage's checksum is wrong: it is damaged");
    return 0;
}

static int decode_entry(const uint8_t *from, uint32_t above, struct lineage_entry *ret, struct err *err)
{
    struct lineage_entry_v1 e;
    memcpy(&e, from, sizeof e);
    *ret = (struct lineage_entry){
        .generation = le32toh(e.generation),
        .kind = le32toh(e.kind),
        .time_ms = (int64_t)le64toh((uint64_t)e.time_ms),
    };
    if (ret->generation <= above || ret->generation >= LINEAGE_MAX_GENERATION)
        return err_set(err, EBADMSG, "the lineage's generation %u does not follow %u", ret->generation,
                       above);
    if (ret->kind < LINEAGE_BASE || ret->kind > LINEAGE_HANDOVER)
        return err_set(err, EBADMSG, "generation %u in the lineage has the unknown kind %u", ret->generation,
                       (unsigned)ret->kind);
    size_t length = strnlen(e.host, sizeof e.host);
    for (size_t i = 0; i < sizeof e.host; i++) {
        bool text = i < length;
        if (length == sizeof e.host ||
            (text ? (uint8_t)e.host[i] < ' ' || e.host[i] == 0x7f : e.host[i] != 0))
            return err_set(err, EBADMSG, "generation %u in the lineage has a malformed host name",
                           ret->generation);
    }
    memcpy(ret->id.bytes, e.id, sizeof ret->id.bytes);
    memcpy(ret->host, e.host, sizeof ret->host);
    return 0;
}

static int check_claim(const struct lineage *l, struct err *err)
{
    if (l->size == 0 || l->size % 512 != 0 || l->size > INT64_MAX)
        return err_set(err, EBADMSG, "the lineage says that its disk has %llu bytes, which no disk has",
                       (unsigned long long)l->size);
    if (l->claim < LINEAGE_OWNER || l->claim > LINEAGE_SPLIT)
        return err_set(err, EBADMSG, "the lineage makes the unknown claim %u", (unsigned)l->claim);
    if (l->complete == 0 && (l->claim == LINEAGE_REPLICA || l->claim == LINEAGE_FORK))
        return err_set(err, EBADMSG, "the lineage claims a %s of nothing", lineage_claim_name(l->claim));
    if ((l->complete != 0 && !lineage_find(l, l->complete)) ||
        (l->reached != 0 && !lineage_find(l, l->reached)))
        return err_set(err, EBADMSG, "the lineage claims a generation that it does not list");
    const struct lineage_entry *newest = lineage_newest(l);
    if (l->claim == LINEAGE_SPLIT && (!newest || newest->kind != LINEAGE_HANDOVER))
        return err_set(err, EBADMSG, "the lineage of a split disk does not end with its hand-over");
    if (l->claim != LINEAGE_PARTIAL && l->claim != LINEAGE_SPLIT && (l->reached != 0 || l->cursor != 0))
        return err_set(err, EBADMSG, "the lineage of a whole copy has a cursor");
    if (l->cursor > (l->size + BLOCK - 1) / BLOCK)
        return err_set(err, EBADMSG, "the lineage's cursor lies outside the disk");
    return 0;
}

int lineage_decode(const void *bytes, size_t size, struct lineage **ret, struct err *err)
{
    struct lineage_header_v1 h;
    int r = check_frame(bytes, size, &h, err);
    if (r < 0)
        return r;
    struct id disk;
    memcpy(disk.bytes, h.disk, sizeof disk.bytes);
    _cleanup_(lineage_cleanup) struct lineage *l = lineage_new(&disk, le64toh(h.size));
    size_t count = le32toh(h.count);
    if (!l || !(l->entries = calloc(MAX(count, 1), sizeof *l->entries)))
        return err_set(err, ENOMEM, "out of memory decoding a lineage");
    l->claim = le32toh(h.claim);
    l->complete = le32toh(h.complete);
    l->reached = le32toh(h.reached);
    l->cursor = le64toh(h.cursor);
    for (uint32_t above = 0; l->count < count; above = l->entries[l->count++].generation) {
        const uint8_t *from = (const uint8_t *)bytes + sizeof h + l->count * sizeof(struct lineage_entry_v1);
        r = decode_entry(from, above, &l->entries[l->count], err);
        if (r < 0)
            return r;
    }
    r = check_claim(l, err);
    if (r < 0)
        return r;
    *ret = TAKE_PTR(l);
    return 0;
}

/* --- what a copy is worth ------------------------------------------------------------------------------ */

static bool common(const struct lineage *ours, const struct lineage_entry *theirs)
{
    const struct lineage_entry *e = lineage_find(ours, theirs->generation);
    return e && id_equal(&e->id, &theirs->id);
}

static bool has(const struct lineage *ours, const struct lineage *theirs, uint32_t generation)
{
    const struct lineage_entry *e = lineage_find(theirs, generation);
    return e && common(ours, e);
}

/* Their newest entry at or below `upto` that ours has too; 0 = none. */
static uint32_t newest_common(const struct lineage *ours, const struct lineage *theirs, uint32_t upto)
{
    uint32_t found = 0;
    for (size_t i = 0; i < theirs->count && theirs->entries[i].generation <= upto; i++)
        if (common(ours, &theirs->entries[i]))
            found = theirs->entries[i].generation;
    return found;
}

/* Did a partial copy, before or while it was filled, take data that is not in our history? */
static bool partial_strayed(const struct lineage *ours, const struct lineage *theirs)
{
    if (theirs->reached != 0 && !has(ours, theirs, theirs->reached))
        return true;
    const struct lineage_entry *newest = lineage_newest(theirs);
    return newest && newest->generation > theirs->complete && !common(ours, newest);
}

void lineage_compare(const struct lineage *ours, const struct lineage *theirs, struct lineage_base *ret)
{
    *ret = (struct lineage_base){.foreign = true};
    bool same_disk = id_equal(&ours->disk, &theirs->disk);
    bool owner = theirs->claim == LINEAGE_OWNER, partial = theirs->claim == LINEAGE_PARTIAL;
    /* What an owner's copy was last sealed as; what it wrote since is its own. */
    uint32_t complete = owner ? newest_generation(theirs) : theirs->complete;
    uint32_t base = newest_common(ours, theirs, complete);
    bool strayed = base != complete || (partial && partial_strayed(ours, theirs));

    /* A first transfer that was cut short began on an empty image: nothing is common, and still it counts. */
    bool fresh = same_disk && partial && complete == 0 && !strayed;
    if (ours->size != theirs->size || theirs->claim == LINEAGE_SPLIT || (base == 0 && !fresh))
        return;
    *ret = (struct lineage_base){.base = base, .forked = owner || theirs->claim == LINEAGE_FORK || strayed};
    if (partial && !strayed && theirs->reached != 0) {
        ret->reached = theirs->reached;
        ret->cursor = theirs->cursor;
    }
}

static uint32_t whole_upto(const struct lineage *l)
{
    return l->claim == LINEAGE_OWNER ? newest_generation(l) : l->complete;
}

uint32_t lineage_shared(const struct lineage *a, const struct lineage *b)
{
    if (a->size != b->size)
        return 0;
    return newest_common(a, b, MIN(whole_upto(a), whole_upto(b)));
}

bool lineage_holds(const struct lineage *lineage, uint32_t generation, const struct id *id)
{
    const struct lineage_entry *e = lineage_find(lineage, generation);
    return e && id_equal(&e->id, id) && generation <= whole_upto(lineage);
}
