/* SPDX-License-Identifier: Apache-2.0
 *
 * private: struct disk, shared by the files that implement disk.h:
 *
 *   disk.c        open and close, recovery after a power cut
 *   create.c      new disks, their side files, removal
 *   data.c        the data path
 *   generation.c  generations, lineage, the arriving disk
 *   checkpoint.c  making image and map durable, clearing intents
 *   split.c       a disk whose newest data is partly on another host
 *   wait.c        who needs its missing blocks
 *   heat.c        what is read most
 */
#pragma once

#include "disk/disk.h"
#include "disk/gate.h"
#include "disk/genmap.h"
#include "disk/heat.h"
#include "disk/image.h"
#include "disk/intent.h"
#include "disk/missing.h"
#include "disk/split.h"
#include "disk/wait.h"

#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>

struct disk {
    char *path;
    bool read_only;
    bool compare; /* DISK_COMPARE */
    struct image image;
    struct genmap *map; /* on the heap: scans of a const disk count the pages they touch */
    struct intent intent;

    atomic_uint current;   /* generation; grows only, and durably (in the map's header) before it is used */
    atomic_bool writable;  /* the claim is OWNER, FORK or SPLIT */
    atomic_bool receiving; /* the claim is PARTIAL, and nothing is expected */
    struct gate gate;

    _Atomic(struct missing *) split; /* NULL = not split. Set before `writable` is; what was once seen here
                                        may be used until the disk is closed */
    struct missing *expected;        /* of a PARTIAL copy that may become split; of control */
    struct missing *former;          /* of control */
    struct waiting waiting;
    struct heat heat;

    /* Lock order: control, then lineage_lock. No write of the data path ever takes either, so that control
     * may be held while the map or the lineage is made durable and while writes are waited for. */
    pthread_mutex_t control;      /* advance, receive's raise, freeze, thaw, checkpoint, lineage changes */
    pthread_mutex_t lineage_lock; /* the pointer below; also written only under control */
    struct lineage *lineage;

    pthread_t checkpointer;
    bool has_checkpointer;
    bool stopping; /* of stop_lock */
    pthread_mutex_t stop_lock;
    pthread_cond_t stop;
};

/* IMAGE plus one of these. */
#define SUFFIX_MAP ".map"
#define SUFFIX_LINEAGE ".lineage"
#define SUFFIX_INTENT ".intent"
#define SUFFIX_MISSING ".missing"
int side_path(const char *image, const char *suffix, char ret[PATH_MAX], struct err *err);

/* create.c: makes the side files of an image that has none. Blocks where `data`, which is the image itself or
 * what it was made from, has data become generation 1; NULL: the image is all zeroes. `base` may be NULL. The
 * caller keeps others out. */
int side_files_create(const char *path, const struct image *image, const struct image *data,
                      const struct id *base, struct err *err);
/* -EBUSY: another process has the disk open. */
int side_files_unused(const char *path, struct err *err);

/* generation.c, under control: raises the current generation durably, then waits for the writes of the old
 * one. */
int generation_raise(struct disk *disk, uint32_t generation, struct err *err);
/* Under control: makes image and map durable, then the lineage the disk's. */
int lineage_change(struct disk *disk, const struct lineage *lineage, struct err *err);

/* split.c: at opening, after the lineage and the map: finds what is missing of a split disk, or what is
 * expected of a partial one; removes a record that is neither. */
int split_load(struct disk *disk, struct err *err);
void split_free(struct disk *disk);
/* Under control: what was expected will not come; removes the record. */
int split_forget(struct disk *disk, struct err *err);
/* Under control, when the claim durably is SPLIT: from now on the data path knows. */
void split_begin(struct disk *disk);
bool split_fits(const struct missing *missing, const struct lineage *lineage);
/* What of a range must come first; returns how many of the two there are. */
size_t split_lacks(const struct missing *split, uint64_t disk_size, enum disk_need_kind kind, uint64_t size,
                   uint64_t offset, struct disk_need ret[2]);
/* The lock for blocks of the extent that `block` is in, and where that extent ends. */
pthread_mutex_t *split_stripe(struct missing *split, uint64_t block);
uint64_t split_stripe_end(const struct missing *split, uint64_t block);

/* checkpoint.c */
int checkpointer_start(struct disk *disk, struct err *err);
void checkpointer_stop(struct disk *disk);
/* Under control: image and map durable, and that what is in them is no longer missing. After it failed once
 * the side files trust no page cache any more. */
int make_durable(struct disk *disk);
/* What a flush of a split disk does: what the guest has written must not be fetched again. */
int flush_split(struct disk *disk, struct missing *split);
/* Under control. */
void distrust(struct disk *disk);
