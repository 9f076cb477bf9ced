/* SPDX-License-Identifier: Apache-2.0
 *
 * Reads each file by itself first, so that one that is damaged does not hide what is wrong with the others;
 * what needs two of them is checked only when both could be read. Changes nothing.
 */
#include "disk/verify.h"

#include "base/file.h"
#include "base/macro.h"
#include "base/zero.h"
#include "disk/private.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>

#define READ_CHUNK (1 * MiB)

struct check {
    const char *path;
    struct disk_verdict *verdict;
    struct image image;
    struct genmap map;
    struct intent intent;
    struct lineage *lineage;
    struct missing *missing; /* of a split disk */
};

static int __attribute__((format(printf, 2, 3))) find(struct check *c, const char *format, ...)
{
    struct disk_verdict *v = c->verdict;
    char **findings = realloc(v->findings, (v->count + 1) * sizeof *findings);
    if (!findings)
        return -ENOMEM;
    v->findings = findings;
    va_list args;
    va_start(args, format);
    int r = vasprintf(&findings[v->count], format, args);
    va_end(args);
    if (r < 0)
        return -ENOMEM;
    v->count++;
    return 0;
}

/* A file that cannot be used is a finding, and the check goes on without it; that somebody writes, or that
 * memory ran out, ends it. */
static int note(struct check *c, int r, struct err *why, const char *consequence)
{
    if (r == 0 || r == -EBUSY || r == -ENOMEM)
        return r;
    r = find(c, "%s: %s", why->text, consequence);
    *why = ERR_NONE;
    return r;
}

/* --- the files, one by one ----------------------------------------------------------------------------- */

static int open_map(struct check *c, struct err *err)
{
    char path[PATH_MAX];
    int r = side_path(c->path, SUFFIX_MAP, path, err);
    if (r == 0)
        r = genmap_open(path, true, &c->map, err);
    if (r == 0)
        c->verdict->current = c->map.header.current;
    return note(c, r, err, "no difference to a copy can be told, only the whole disk can be sent");
}

static int open_intent(struct check *c, struct err *err)
{
    char path[PATH_MAX];
    int r = side_path(c->path, SUFFIX_INTENT, path, err);
    if (r == 0)
        r = intent_open(path, true, &c->intent, err);
    if (r == 0)
        c->verdict->clean = c->intent.header.clean;
    return note(c, r, err, "at the next opening every block counts as written");
}

static int open_lineage(struct check *c, struct err *err)
{
    char path[PATH_MAX];
    _cleanup_free_ void *bytes = NULL;
    size_t size = 0;
    int r = side_path(c->path, SUFFIX_LINEAGE, path, err);
    if (r == 0)
        r = file_load(path, LINEAGE_MAX_BYTES, &bytes, &size, err);
    if (r == 0)
        r = lineage_decode(bytes, size, &c->lineage, err);
    return note(c, r, err, "the disk cannot be opened for writing");
}

/* Only a split disk's says anything; what lies beside others is ignored, and goes at the next opening. */
static int open_missing(struct check *c, struct err *err)
{
    char path[PATH_MAX];
    struct id boot;
    if (!c->lineage || c->lineage->claim != LINEAGE_SPLIT)
        return 0;
    int r = side_path(c->path, SUFFIX_MISSING, path, err);
    if (r == 0)
        r = intent_boot(&boot, err);
    if (r == 0)
        r = missing_open(path, true, &boot, &c->missing, err);
    if (r == 0)
        c->verdict->missing = atomic_load(&c->missing->count);
    return note(c, r, err, "which blocks are still on another host is not known; the disk cannot be opened");
}

/* --- what must agree ----------------------------------------------------------------------------------- */

static int check_sizes(struct check *c)
{
    uint64_t size = c->image.size;
    int r = 0;
    if (c->map.fd >= 0 && c->map.header.size != size)
        r = find(c, "the image has %llu bytes, the map is of a disk of %llu", (unsigned long long)size,
                 (unsigned long long)c->map.header.size);
    if (r == 0 && c->intent.fd >= 0 && c->intent.header.size != size)
        r = find(c, "the image has %llu bytes, the intent record is of a disk of %llu",
                 (unsigned long long)size, (unsigned long long)c->intent.header.size);
    if (r == 0 && c->lineage && c->lineage->size != size)
        r = find(c, "the image has %llu bytes, the lineage is of a disk of %llu", (unsigned long long)size,
                 (unsigned long long)c->lineage->size);
    return r;
}

static int check_identity(struct check *c)
{
    int r = 0;
    if (c->map.fd < 0)
        return 0;
    const struct genmap_header *map = &c->map.header;
    if (c->intent.fd >= 0 && !id_equal(&c->intent.header.map, &map->map))
        r = find(
            c, "the intent record belongs to another map: at the next opening every block counts as written");
    if (r == 0 && c->lineage && !id_equal(&c->lineage->disk, &map->disk) &&
        !id_equal(&c->lineage->disk, &map->former))
        r = find(c, "the map and the lineage are of two different disks");
    if (r == 0 && c->missing &&
        (!id_equal(&c->missing->header.map, &map->map) || !split_fits(c->missing, c->lineage)))
        r = find(c, "the record of missing blocks is of another hand-over: the disk cannot be opened");
    const struct lineage_entry *newest = c->lineage ? lineage_newest(c->lineage) : NULL;
    if (r == 0 && newest && newest->generation >= map->current)
        r = find(c, "the lineage names generation %u, which the map's current one, %u, does not exceed",
                 newest->generation, map->current);
    return r;
}

static int check_numbers(struct check *c)
{
    c->verdict->written = genmap_count(&c->map, 0, UINT32_MAX);
    uint64_t above = genmap_count(&c->map, c->map.header.current, UINT32_MAX);
    if (above == 0)
        return 0;
    return find(c, "%llu blocks have numbers above the current generation %u", (unsigned long long)above,
                c->map.header.current);
}

/* --- the image ----------------------------------------------------------------------------------------- */

/* At the next opening this block counts as written, whatever the map says. */
static bool is_intended(const struct check *c, uint64_t block)
{
    uint64_t extent = block / (INTENT_EXTENT / DISK_BLOCK);
    return c->intent.fd < 0 || (extent < c->intent.extents && intent_next(&c->intent, extent) == extent);
}

static bool is_missing(const struct check *c, uint64_t block)
{
    return c->missing && block < c->missing->blocks && missing_next(c->missing, block, block + 1) == block;
}

/* Counts the blocks of the chunk that have data but no number; what is not here yet has neither. */
static uint64_t count_unnamed(const struct check *c, const uint8_t *data, uint64_t size, uint64_t offset)
{
    uint64_t count = 0;
    for (uint64_t at = 0; at < size; at += DISK_BLOCK) {
        uint64_t block = (offset + at) / DISK_BLOCK;
        if (genmap_get(&c->map, block) == 0 && !is_intended(c, block) && !is_missing(c, block))
            count += !is_zero(data + at, MIN(DISK_BLOCK, size - at));
    }
    return count;
}

/* Every block that the map calls never written must read as zeroes. */
static int check_image(struct check *c, struct err *err)
{
    _cleanup_free_ uint8_t *data = malloc(READ_CHUNK);
    if (!data)
        return err_set(err, ENOMEM, "out of memory verifying %s", c->path);
    uint64_t size = c->image.size;
    for (uint64_t at = 0; (at = image_next_data(&c->image, at)) < size;) {
        at = at / DISK_BLOCK * DISK_BLOCK;
        uint64_t end = MIN(size, at + READ_CHUNK);
        int r = image_read(&c->image, data, end - at, at);
        if (r < 0)
            return err_sys(err, r, "cannot read %s", c->path);
        c->verdict->data_unnamed += count_unnamed(c, data, end - at, at);
        at = end;
    }
    if (c->verdict->data_unnamed == 0)
        return 0;
    return find(
        c,
        "%llu blocks have data that the map calls never written: something else wrote to the image, or "
        "the map is of another time; no transfer would send them",
        (unsigned long long)c->verdict->data_unnamed);
}

static int check(struct check *c, struct err *err)
{
    int r = image_open(c->path, true, false, &c->image, err);
    if (r < 0)
        return r;
    c->verdict->size = c->image.size;
    r = open_map(c, err);
    if (r == 0)
        r = open_intent(c, err);
    if (r == 0)
        r = open_lineage(c, err);
    if (r == 0)
        r = open_missing(c, err);
    if (r == 0)
        r = check_sizes(c);
    if (r == 0)
        r = check_identity(c);
    if (r == 0 && c->map.fd >= 0)
        r = check_numbers(c);
    if (r == 0 && c->map.fd >= 0 && c->map.header.size == c->image.size)
        r = check_image(c, err);
    return r;
}

int disk_verify(const char *image, struct disk_verdict *ret, struct err *err)
{
    struct disk_verdict verdict = {0};
    struct check c = {
        .path = image, .verdict = &verdict, .image = IMAGE_NONE, .map = {.fd = -1}, .intent = {.fd = -1}};
    struct err local = ERR_NONE;
    int r = check(&c, &local);
    lineage_free(c.lineage);
    missing_free(c.missing);
    intent_done(&c.intent);
    genmap_done(&c.map);
    image_done(&c.image);
    if (r < 0) {
        disk_verdict_done(&verdict);
        return local.code ? err_set(err, local.code, "%s", local.text)
                          : err_sys(err, r, "cannot verify %s", image);
    }
    *ret = verdict;
    return 0;
}

void disk_verdict_done(struct disk_verdict *verdict)
{
    for (size_t i = 0; i < verdict->count; i++)
        free(verdict->findings[i]);
    free(verdict->findings);
    *verdict = (struct disk_verdict){0};
}
