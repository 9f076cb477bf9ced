/* SPDX-License-Identifier: Apache-2.0
 *
 * Opening: image, lineage, map and intent record must be of one disk. What the last stop was decides the
 * rest:
 *
 *   in order                    nothing to do
 *   killed, same boot           the page cache has every mark; the intents stay, for the next power cut
 *   another boot, or no usable  every block of every intended extent gets a new generation, for its data and
 * its intent record               mark may have parted; durable before the intents go
 *
 * A replica or partial copy needs no marks: what its claim promises was durable before the claim was written.
 * Which blocks of a split disk are missing has nothing to do with marks: one that is marked and missing is
 * fetched, and then counts as written here, which costs its bytes in a later transfer.
 */
#include "disk/private.h"

#include "base/file.h"
#include "base/macro.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>

int side_path(const char *image, const char *suffix, char ret[PATH_MAX], struct err *err)
{
    if (snprintf(ret, PATH_MAX, "%s%s", image, suffix) >= PATH_MAX)
        return err_set(err, ENAMETOOLONG, "path too long: %s%s", image, suffix);
    return 0;
}

static int load_lineage(struct disk *disk, struct err *err)
{
    char path[PATH_MAX];
    _cleanup_free_ void *bytes = NULL;
    size_t size = 0;
    int r = side_path(disk->path, SUFFIX_LINEAGE, path, err);
    if (r == 0)
        r = file_load(path, LINEAGE_MAX_BYTES, &bytes, &size, err);
    if (r < 0)
        return r;
    r = lineage_decode(bytes, size, &disk->lineage, err);
    return r < 0 ? err_context(err, "%s", path) : 0;
}

/* The lineage is the last of the side files to be made: when it is there, all are. */
static int load_or_init(struct disk *disk, bool init, struct err *err)
{
    int r = load_lineage(disk, err);
    if (r != -ENOENT)
        return r;
    if (!init) {
        err_set(err, ENOENT, "%s has no generation map and lineage beside it", disk->path);
        err_hint(err, "orai disk serve --init makes them; the first transfer then sends the whole disk");
        return -ENOENT;
    }
    /* Keeps out a second process that would do the same now. */
    if (flock(disk->image.fd, LOCK_EX | LOCK_NB) < 0)
        return err_sys(err, errno, "cannot lock %s to make its side files", disk->path);
    r = load_lineage(disk, err); /* one may just have done it */
    if (r == -ENOENT)
        r = side_files_create(disk->path, &disk->image, &disk->image, NULL, err);
    flock(disk->image.fd, LOCK_UN);
    return r < 0 || disk->lineage ? r : load_lineage(disk, err);
}

static int check_claim(const struct disk *disk, unsigned flags, struct err *err)
{
    enum lineage_claim claim = disk->lineage->claim;
    if (flags & (DISK_READ_ONLY | DISK_FROZEN) || lineage_claim_runs(claim))
        return 0;
    err_set(err, EROFS, "%s is a %s: the disk's newest data is on another host", disk->path,
            lineage_claim_name(claim));
    if (claim == LINEAGE_REPLICA)
        err_hint(err,
                 "run it where it is now, or start this old copy as a fork: orai recover NAME --run-here");
    else
        err_hint(err, "move the VM here again; what has arrived already is kept");
    return -EROFS;
}

/* -1 = the record is missing, damaged or of another map: any extent may have been intended. */
static int open_intent(struct disk *disk, bool *ret_lost, struct err *err)
{
    char path[PATH_MAX];
    int r = side_path(disk->path, SUFFIX_INTENT, path, err);
    if (r < 0)
        return r;
    r = intent_open(path, disk->read_only, &disk->intent, err);
    bool lost = r == -ENOENT || r == -EBADMSG;
    if (r == 0 && (!id_equal(&disk->intent.header.map, &disk->map->header.map) ||
                   disk->intent.header.size != disk->map->header.size)) {
        intent_done(&disk->intent);
        lost = true;
    }
    if (r < 0 && !lost)
        return r;
    *ret_lost = lost;
    return 0;
}

static int open_side_files(struct disk *disk, unsigned flags, bool *ret_lost, struct err *err)
{
    int r = load_or_init(disk, flags & DISK_INIT, err);
    if (r == 0)
        r = check_claim(disk, flags, err);
    char path[PATH_MAX];
    if (r == 0)
        r = side_path(disk->path, SUFFIX_MAP, path, err);
    if (r == 0)
        r = genmap_open(path, disk->read_only, disk->map, err);
    if (r < 0)
        return r;
    const struct genmap_header *map = &disk->map->header;
    const struct lineage *lineage = disk->lineage;
    if (disk->image.size != map->size || lineage->size != map->size)
        return err_set(err, EINVAL, "%s has %llu bytes, but its map says %llu and its lineage %llu",
                       disk->path, (unsigned long long)disk->image.size, (unsigned long long)map->size,
                       (unsigned long long)lineage->size);
    if (!id_equal(&lineage->disk, &map->disk) && !id_equal(&lineage->disk, &map->former))
        return err_set(err, EINVAL, "the map and the lineage beside %s are of two different disks",
                       disk->path);
    return open_intent(disk, ret_lost, err);
}

/* --- recovery ------------------------------------------------------------------------------------------ */

static int mark_intended(struct disk *disk, bool all, uint32_t generation)
{
    const uint64_t blocks = disk->map->blocks, step = INTENT_EXTENT / DISK_BLOCK;
    if (all)
        return genmap_mark(disk->map, 0, blocks, generation);
    int r = 0;
    for (uint64_t e = intent_next(&disk->intent, 0); e < disk->intent.extents && r == 0;
         e = intent_next(&disk->intent, e + 1))
        r = genmap_mark(disk->map, e * step, MIN(step, blocks - e * step), generation);
    return r;
}

/* The record is begun anew for this boot; the marks are durable by now. */
static int begin_intent(struct disk *disk, bool lost, const struct id *boot, struct err *err)
{
    char path[PATH_MAX];
    int r = 0;
    if (lost) {
        r = side_path(disk->path, SUFFIX_INTENT, path, err);
        if (r == 0 && unlink(path) < 0 && errno != ENOENT)
            r = err_sys(err, errno, "cannot replace the damaged intent record %s", path);
        if (r == 0)
            r = intent_create(path, &disk->map->header.map, disk->image.size, err);
        if (r == 0)
            r = file_sync_parent(path, err);
        if (r == 0)
            r = intent_open(path, false, &disk->intent, err);
    }
    bool keep = !disk->intent.header.clean && id_equal(&disk->intent.header.boot, boot);
    return r < 0 ? r : intent_begin(&disk->intent, boot, keep, err);
}

static int recover(struct disk *disk, unsigned flags, bool lost, struct err *err)
{
    struct id boot;
    int r = intent_boot(&boot, err);
    if (r < 0)
        return r;
    const struct lineage_entry *newest = lineage_newest(disk->lineage);
    bool mine = lineage_claim_runs(disk->lineage->claim);
    bool unclean = lost || (!disk->intent.header.clean && !id_equal(&disk->intent.header.boot, &boot));
    bool fresh = !(flags & (DISK_READ_ONLY | DISK_FROZEN)) || (unclean && mine);
    uint32_t current = MAX(disk->map->header.current, newest ? newest->generation + 1 : 1);
    if (fresh && current >= LINEAGE_MAX_GENERATION)
        return err_set(err, EOVERFLOW, "%s has used up its generations", disk->path);
    if (fresh)
        current++;
    atomic_store(&disk->current, current);
    struct genmap_header header = disk->map->header;
    header.current = current;
    if (!disk->read_only && current != disk->map->header.current)
        r = genmap_set_header(disk->map, &header, err);
    if (r == 0 && unclean && mine) {
        r = mark_intended(disk, lost, current);
        if (r == 0 && !disk->read_only)
            r = genmap_sync(disk->map);
        if (r < 0)
            return err_sys(err, r, "cannot mark what was written before the power cut in the map of %s",
                           disk->path);
    }
    return r < 0 || disk->read_only ? r : begin_intent(disk, lost, &boot, err);
}

/* --- open and close ------------------------------------------------------------------------------------ */

static struct disk *new_disk(const char *path, unsigned flags)
{
    struct disk *disk = calloc(1, sizeof *disk);
    if (!disk)
        return NULL;
    disk->read_only = flags & DISK_READ_ONLY;
    disk->compare = flags & DISK_COMPARE;
    disk->image = IMAGE_NONE;
    disk->intent.fd = -1;
    gate_init(&disk->gate);
    pthread_mutex_init(&disk->control, NULL);
    pthread_mutex_init(&disk->lineage_lock, NULL);
    pthread_mutex_init(&disk->stop_lock, NULL);
    waiting_init(&disk->waiting);
    disk->path = strdup(path);
    disk->map = calloc(1, sizeof *disk->map);
    if (disk->map)
        disk->map->fd = -1;
    return disk;
}

static void free_disk(struct disk *disk)
{
    intent_done(&disk->intent);
    if (disk->map)
        genmap_done(disk->map);
    free(disk->map);
    lineage_free(disk->lineage);
    image_done(&disk->image);
    split_free(disk);
    heat_done(&disk->heat);
    waiting_done(&disk->waiting);
    pthread_mutex_destroy(&disk->stop_lock);
    pthread_mutex_destroy(&disk->lineage_lock);
    pthread_mutex_destroy(&disk->control);
    gate_done(&disk->gate);
    free(disk->path);
    free(disk);
}

static void disk_cleanup(struct disk **disk)
{
    if (*disk)
        free_disk(*disk);
}

int disk_open(const char *image, unsigned flags, struct disk **ret, struct err *err)
{
    _cleanup_(disk_cleanup) struct disk *disk = new_disk(image, flags);
    if (!disk || !disk->path || !disk->map)
        return err_set(err, ENOMEM, "out of memory opening %s", image);
    bool lost = false;
    int r = image_open(image, disk->read_only, flags & DISK_DIRECT, &disk->image, err);
    if (r == 0)
        r = open_side_files(disk, flags, &lost, err);
    if (r == 0)
        r = recover(disk, flags, lost, err);
    if (r == 0)
        r = split_load(disk, err);
    if (r < 0)
        return r;
    heat_init(&disk->heat, disk->map->blocks);
    enum lineage_claim claim = disk->lineage->claim;
    atomic_store(&disk->writable, !disk->read_only && lineage_claim_runs(claim));
    if (flags & DISK_FROZEN)
        gate_freeze(&disk->gate);
    atomic_store(&disk->receiving, !disk->read_only && claim == LINEAGE_PARTIAL && !disk->expected);
    if (!disk->read_only)
        r = checkpointer_start(disk, err);
    if (r < 0)
        return r;
    *ret = TAKE_PTR(disk);
    return 0;
}

int disk_close(struct disk *disk, struct err *err)
{
    if (!disk)
        return 0;
    int r = 0;
    if (!disk->read_only) {
        checkpointer_stop(disk);
        disk_freeze(disk);
        r = make_durable(disk);
        if (r < 0)
            r = err_sys(err, r, "cannot make %s durable", disk->path);
        else
            r = intent_finish(&disk->intent, err);
    }
    free_disk(disk);
    return r;
}

uint64_t disk_size(const struct disk *disk)
{
    return disk->image.size;
}

uint64_t disk_blocks(const struct disk *disk)
{
    return disk->map->blocks;
}

const char *disk_path(const struct disk *disk)
{
    return disk->path;
}

int disk_fd(const struct disk *disk)
{
    return disk->image.fd;
}
