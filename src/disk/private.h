/* SPDX-License-Identifier: Apache-2.0
 *
 * private: struct disk, shared by the files that implement disk.h:
 *
 *   disk.c        open and close, recovery after a power cut
 *   create.c      new disks, their side files, removal
 *   data.c        the data path
 *   generation.c  generations, lineage, the arriving disk
 *   checkpoint.c  making image and map durable, clearing intents
 */
#pragma once

#include "disk/disk.h"
#include "disk/gate.h"
#include "disk/genmap.h"
#include "disk/image.h"
#include "disk/intent.h"

#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>

struct disk {
    char *path;
    bool read_only;
    struct image image;
    struct genmap *map; /* on the heap: scans of a const disk count the pages they touch */
    struct intent intent;

    atomic_uint current;   /* generation; grows only, and durably (in the map's header) before it is used */
    atomic_bool writable;  /* the claim is OWNER or FORK */
    atomic_bool receiving; /* the claim is PARTIAL */
    struct gate gate;

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
int side_path(const char *image, const char *suffix, char ret[PATH_MAX], struct err *err);

/* create.c: makes the side files of an image that has none. Blocks with data become generation 1. `base` may
 * be NULL. The caller keeps others out. */
int side_files_create(const char *path, const struct image *image, const struct id *base, struct err *err);

/* generation.c, under control: raises the current generation durably, then waits for the writes of the old
 * one. */
int generation_raise(struct disk *disk, uint32_t generation, struct err *err);

/* checkpoint.c */
int checkpointer_start(struct disk *disk, struct err *err);
void checkpointer_stop(struct disk *disk);
/* Under control: image and map durable. After it failed once the intent record trusts no page cache any more.
 */
int make_durable(struct disk *disk);
