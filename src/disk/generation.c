/* SPDX-License-Identifier: Apache-2.0
 *
 * Generations and lineage. Whatever raises the current generation does it in this order: durably in the map's
 * header (a power cut must not let two different states have one number); in memory; then it waits for the
 * writes that may have seen the old one; only then the old one may be named in the lineage.
 */
#include "disk/private.h"

#include "base/clock.h"
#include "base/file.h"
#include "base/macro.h"

#include <errno.h>

uint32_t disk_generation(const struct disk *disk)
{
    return atomic_load(&disk->current);
}

bool disk_next_run(const struct disk *disk, uint64_t from, uint32_t above, uint32_t upto, uint64_t max_blocks,
                   struct disk_run *ret)
{
    return genmap_next_run(disk->map, from, above, upto, max_blocks, ret);
}

uint64_t disk_count(const struct disk *disk, uint32_t above, uint32_t upto)
{
    return genmap_count(disk->map, above, upto);
}

static int set_header(struct disk *disk, const struct genmap_header *header, struct err *err)
{
    int r = genmap_set_header(disk->map, header, err);
    if (r < 0)
        distrust(disk);
    return r;
}

int generation_raise(struct disk *disk, uint32_t generation, struct err *err)
{
    if (generation > LINEAGE_MAX_GENERATION)
        return err_set(err, EOVERFLOW, "%s has used up its generations", disk->path);
    struct genmap_header header = disk->map->header;
    header.current = generation;
    int r = set_header(disk, &header, err);
    if (r < 0)
        return r;
    atomic_store(&disk->current, generation);
    gate_drain(&disk->gate);
    return 0;
}

/* Writes the lineage durably and makes it the disk's. Takes it over in any case. */
static int replace_lineage(struct disk *disk, struct lineage *take, struct err *err)
{
    _cleanup_(lineage_cleanup) struct lineage *lineage = take;
    _cleanup_free_ void *bytes = NULL;
    size_t size;
    char path[PATH_MAX];
    int r = side_path(disk->path, SUFFIX_LINEAGE, path, err);
    if (r < 0)
        return r;
    r = lineage_encode(lineage, &bytes, &size);
    if (r < 0)
        return err_sys(err, r, "cannot encode the lineage of %s", disk->path);
    r = file_replace(path, bytes, size, 0600, err);
    if (r < 0)
        return r;
    pthread_mutex_lock(&disk->lineage_lock);
    struct lineage *old = disk->lineage;
    disk->lineage = TAKE_PTR(lineage);
    pthread_mutex_unlock(&disk->lineage_lock);
    lineage_free(old);
    return 0;
}

static int seal(struct disk *disk, const struct id *id, enum lineage_kind kind, const char *host,
                uint32_t *ret_sealed, struct err *err)
{
    if (!atomic_load(&disk->writable))
        return err_set(err, EROFS, "%s is a %s here; only its owner seals generations", disk->path,
                       disk->read_only ? "disk opened read-only" : lineage_claim_name(disk->lineage->claim));
    if (disk_is_split(disk)) {
        err_set(err, EBUSY, "%llu blocks of %s are still on another host",
                (unsigned long long)disk_missing(disk), disk->path);
        err_hint(err, "wait until they have come");
        return -EBUSY;
    }
    uint32_t sealed = atomic_load(&disk->current);
    struct lineage *lineage;
    int r = lineage_copy(disk->lineage, &lineage);
    if (r == 0) {
        r = lineage_add(lineage, sealed, id, kind, host, clock_wall_ms());
        if (r < 0)
            lineage_free(lineage);
    }
    if (r < 0)
        return err_sys(err, r, "cannot add generation %u to the lineage of %s", sealed, disk->path);
    r = generation_raise(disk, sealed + 1, err);
    if (r < 0) {
        lineage_free(lineage);
        return r;
    }
    r = replace_lineage(disk, lineage, err);
    if (r == 0)
        *ret_sealed = sealed;
    return r;
}

int disk_advance(struct disk *disk, const struct id *id, enum lineage_kind kind, const char *host,
                 uint32_t *ret_sealed, struct err *err)
{
    pthread_mutex_lock(&disk->control);
    int r = seal(disk, id, kind, host, ret_sealed, err);
    pthread_mutex_unlock(&disk->control);
    return r;
}

/* --- a disk that arrives ------------------------------------------------------------------------------- */

/* The sender's numbers may be above ours; none may stand in the map that the header does not cover. */
static int cover_generation(struct disk *disk, uint32_t generation, struct err *err)
{
    if (generation <= atomic_load(&disk->current))
        return 0;
    pthread_mutex_lock(&disk->control);
    int r = generation <= atomic_load(&disk->current) ? 0 : generation_raise(disk, generation, err);
    pthread_mutex_unlock(&disk->control);
    return r;
}

int disk_lineage(const struct disk *disk, struct lineage **ret, struct err *err)
{
    pthread_mutex_t *lock = (pthread_mutex_t *)&disk->lineage_lock; /* locking does not change the disk */
    pthread_mutex_lock(lock);
    int r = lineage_copy(disk->lineage, ret);
    pthread_mutex_unlock(lock);
    return r < 0 ? err_sys(err, r, "cannot copy the lineage of %s", disk->path) : 0;
}

/* A copy that decoding accepts, so that what is written can be opened again. */
static int checked_copy(const struct disk *disk, const struct lineage *lineage, struct lineage **ret,
                        struct err *err)
{
    _cleanup_free_ void *bytes = NULL;
    size_t size;
    if (lineage->size != disk->image.size)
        return err_set(err, EINVAL, "the lineage is of a disk of %llu bytes, %s has %llu",
                       (unsigned long long)lineage->size, disk->path, (unsigned long long)disk->image.size);
    int r = lineage_encode(lineage, &bytes, &size);
    if (r < 0)
        return err_sys(err, r, "cannot encode the lineage of %s", disk->path);
    return lineage_decode(bytes, size, ret, err);
}

static int raise_for(struct disk *disk, const struct lineage *lineage, struct err *err)
{
    const struct lineage_entry *newest = lineage_newest(lineage);
    struct genmap_header header = disk->map->header;
    if (!id_equal(&header.disk, &lineage->disk)) {
        header.former = disk->lineage->disk; /* what the lineage says until it is replaced */
        header.disk = lineage->disk;
        int r = set_header(disk, &header, err);
        if (r < 0)
            return r;
    }
    /* Never lower: the map may hold numbers of this copy's own past above all of the lineage's. */
    uint32_t next = newest ? newest->generation + 1 : 1;
    return next > atomic_load(&disk->current) ? generation_raise(disk, next, err) : 0;
}

int lineage_change(struct disk *disk, const struct lineage *lineage, struct err *err)
{
    struct lineage *copy = NULL;
    int r = checked_copy(disk, lineage, &copy, err);
    if (r < 0)
        return r;
    enum lineage_claim claim = lineage->claim;
    intent_turn(&disk->intent);
    r = raise_for(disk, lineage, err);
    if (r == 0) {
        gate_drain(&disk->gate);
        r = make_durable(disk);
        if (r < 0)
            err_sys(err, r, "cannot make %s durable", disk->path);
    }
    if (r < 0) {
        lineage_free(copy);
        return r;
    }
    r = replace_lineage(disk, copy, err);
    if (r < 0)
        return r;
    if (claim == LINEAGE_SPLIT)
        split_begin(disk);
    else if (disk->expected && (claim != LINEAGE_PARTIAL || !split_fits(disk->expected, lineage)))
        (void)split_forget(disk, NULL); /* the lineage no longer fits it: nobody will take it for good */
    atomic_store(&disk->writable, lineage_claim_runs(claim));
    atomic_store(&disk->receiving, claim == LINEAGE_PARTIAL && !disk->expected);
    (void)intent_settle(&disk->intent, false); /* bits that stay do no harm */
    return 0;
}

/* The first byte that a fork receives makes it a mixture, which must never run; yet it must not be forgotten
 * that blocks above `complete` are its own. So it becomes a partial copy whose history strayed: an entry that
 * nobody else has, from which lineage_compare concludes "forked". */
static int demote_fork(struct disk *disk, struct err *err)
{
    _cleanup_(lineage_cleanup) struct lineage *lineage = NULL;
    int r = lineage_copy(disk->lineage, &lineage);
    if (r == 0) {
        struct id stray = id_random();
        lineage->claim = LINEAGE_PARTIAL;
        r = lineage_add(lineage, lineage_newest(lineage)->generation + 1, &stray, LINEAGE_ROUND, "",
                        clock_wall_ms());
    }
    if (r < 0)
        return err_sys(err, r, "cannot turn the fork %s into a partial replica", disk->path);
    atomic_store(&disk->writable, false);
    r = lineage_change(disk, lineage, err);
    if (r < 0)
        atomic_store(&disk->writable, true);
    return r;
}

static int begin_receiving(struct disk *disk, struct err *err)
{
    if (atomic_load(&disk->receiving))
        return 0;
    pthread_mutex_lock(&disk->control);
    int r = 0;
    if (disk->read_only || (disk->lineage->claim != LINEAGE_PARTIAL &&
                            (disk->lineage->claim != LINEAGE_FORK || !gate_is_frozen(&disk->gate))))
        r = err_set(err, EROFS, "%s may receive data only while it is a partial replica, or a frozen fork",
                    disk->path);
    else if (disk->lineage->claim == LINEAGE_FORK)
        r = demote_fork(disk, err);
    else if (disk->expected) /* of a hand-over that never was */
        r = split_forget(disk, err);
    if (r == 0)
        atomic_store(&disk->receiving, true);
    pthread_mutex_unlock(&disk->control);
    return r;
}

int disk_receive(struct disk *disk, const struct disk_run *run, const void *data, struct err *err)
{
    uint64_t blocks = disk->map->blocks;
    if (run->block > blocks || run->count > blocks - run->block)
        return err_set(err, EPROTO, "a received run lies outside %s", disk->path);
    if (run->count == 0)
        return 0;
    int r = begin_receiving(disk, err);
    if (r == 0)
        r = cover_generation(disk, run->generation, err);
    if (r < 0)
        return r;
    uint64_t offset = run->block * DISK_BLOCK;
    uint64_t size = MIN(run->count * DISK_BLOCK, disk->image.size - offset);
    r = genmap_mark(disk->map, run->block, run->count, run->generation);
    if (r == 0)
        r = data ? image_write(&disk->image, data, size, offset)
                 : image_punch(&disk->image, size, offset, false);
    if (r == -ENOSPC) {
        err_set(err, ENOSPC, "no space left for the image %s", disk->path);
        return err_hint(err, "free space here and move again: what has arrived already is kept");
    }
    return r < 0 ? err_sys(err, r, "cannot write the image %s", disk->path) : 0;
}

/* A split disk leaves that state through disk_whole only; a partial one enters it only when what will be
 * missing is known. */
static int check_split(const struct disk *disk, const struct lineage *lineage, struct err *err)
{
    const struct missing *split = atomic_load(&disk->split);
    if (split && (lineage->claim != LINEAGE_SPLIT || !split_fits(split, lineage)))
        return err_set(err, EBUSY, "%s is a split disk; it must be whole before it can be a %s", disk->path,
                       lineage_claim_name(lineage->claim));
    if (!split && lineage->claim == LINEAGE_SPLIT && !(disk->expected && split_fits(disk->expected, lineage)))
        return err_set(err, EINVAL, "%s cannot be split: what would be missing of it is not known",
                       disk->path);
    return 0;
}

int disk_set_lineage(struct disk *disk, const struct lineage *lineage, struct err *err)
{
    if (disk->read_only)
        return err_set(err, EROFS, "%s is opened read-only", disk->path);
    pthread_mutex_lock(&disk->control);
    int r = check_split(disk, lineage, err);
    if (r == 0) {
        bool writable = atomic_load(&disk->writable);
        /* No write may slip between what is made durable and the claim that promises it. */
        if (!lineage_claim_runs(lineage->claim))
            atomic_store(&disk->writable, false);
        r = lineage_change(disk, lineage, err);
        if (r < 0)
            atomic_store(&disk->writable, writable);
    }
    pthread_mutex_unlock(&disk->control);
    return r;
}
