/* SPDX-License-Identifier: Apache-2.0
 *
 * arrival: the destination's side of a move; its column of the stage table. Internal to src/move.
 *
 *   arrival.c           the object, its thread, what others may ask of it
 *   arrival_links.c     its connections: greeting, who is who, where frames go
 *   arrival_prepare.c   checks and reserves; builds the disks on their bases; starts QEMU with -incoming
 *   arrival_files.c     kernel and initrd
 *   arrival_transfer.c  blocks to the disks, the stream to QEMU, marks and claims; "ready"
 *   arrival_donor.c     what is found in a donor is not sent
 *   arrival_checkpoint.c what of memory is found in a checkpoint is not sent
 *   arrival_split.c     what a post-copy move does otherwise
 *   arrival_clock.c     the guest's clock is set forward by the time that it stood still
 *   arrival_memory.c    QEMU's stream, and memory that comes after the switch
 *   arrival_commit.c    the commit, waiting for it over broken links, refusing it
 *
 * Threads: the walker owns everything but what is marked; link threads write blocks (disk_receive) and feed
 * QEMU.
 */
#pragma once

#include "disk/donor.h"
#include "memory/checkpoint.h"
#include "memory/compare.h"
#include "move/fetch.h"
#include "move/move.h"
#include "move/porch.h"
#include "move/progress.h"
#include "move/session.h"
#include "move/stages.h"

#include <limits.h>
#include <stdatomic.h>

enum { ARRIVAL_MAX_LINKS = 2 * MOVE_MAX_CONNECTIONS };
#define ARRIVAL_MAX_CLAIMS 64 /* claims that wait for their marks */

struct arrival_claim {
    uint32_t sequence;
    uint16_t disk;
    bool split;              /* disk_expect, not disk_set_lineage */
    struct lineage *lineage; /* NULL = free */
};

struct arrival {
    const struct move_host *host;
    struct move_peer source;
    struct epoch *epoch;
    struct epoch_record before; /* what the record said before this try */
    struct session session;
    pthread_t thread;
    _Atomic enum move_outcome outcome;
    atomic_bool run_here;
    atomic_bool give_up,
        cancel_asked;  /* somebody here wants it over: refuse as soon as the source cannot be asked */
    atomic_bool taken; /* the epoch is ours */
    bool resumed;

    struct id move;
    uint64_t next_epoch;
    struct vm_config config;
    char source_name[64];
    struct machine *machine;
    bool dry_run;
    bool compare_memory;    /* the guest is emulated: see memory/compare.h */
    struct compare compare; /* of data link 0's thread, from "loaded" on */
    atomic_bool comparing, compared;
    bool clock; /* the source tells how long the guest stands still, and compares before devices are loaded */
    struct {
        int64_t began;                     /* clock_now() when */
        uint64_t ticks;                    /* the CPU's counter stood there */
        _Atomic int64_t durable;           /* nsec that the newest record took */
        _Atomic int64_t since, round_trip; /* clock_now() when the guest stopped there; 0: not told */
        _Atomic int64_t goes_on;           /* clock_now() for which its clocks were set; 0: they were not */
        _Atomic int64_t forward;           /* nsec, by which they were */
    } standstill;
    struct checkpoint *checkpoint; /* NULL: none; set before there are data connections */
    bool telling;                  /* not all of it was told; */
    size_t told;                   /* bytes that were */
    atomic_bool checkpoint_spoilt; /* it could not be read while memory followed */
    bool memory_later;  /* memory may come after the switch; guarded by `lock` once connections are there */
    bool tells_faults;  /* the source wants to hear how long pages take */
    char no_later[256]; /* why not, when the source wished it */
    bool may_renew; /* memory goes before the switch, and the source may begin it anew as one that follows */
    atomic_bool anew;                        /* it has: nothing more of the old stream comes */
    atomic_bool renewing;                    /* QEMU is being replaced: its end is no news */
    struct stream *old_stream;               /* links may still look at it */
    atomic_bool memory_whole, memory_failed; /* QEMU says so; its QMP thread */
    bool guest_runs;
    uint32_t forked[VM_MAX_DISKS];     /* the common ancestor where our copy is a fork, else 0 */
    struct donor *donor[VM_MAX_DISKS]; /* NULL: none; set before `receiving` */
    struct sums *sums;
    uint64_t stream_number; /* of QEMU's stream, as departure.h's; guarded by `lock` */
    uint8_t *ram_blocks; /* what it has to be told if it breaks (holes_blocks); NULL: it cannot be mended */
    size_t ram_blocks_size;    /* then */
    uint32_t ram_section;      /* ; 0: not known */
    atomic_bool memory_paused; /* QEMU says so: its stream has broken */
    unsigned relapses;         /* it did though we had not ended it */
    int64_t next_look;         /* arrival_look_at_memory; */
    bool met;                  /* QEMU has answered it */
    bool ready;                /* "ready" was said: from here on only a durable refusal ends the try */

    struct porch porch; /* its own lock, never taken with `lock` held */

    /* Guarded by `lock`; link threads and the porch's use it too. */
    pthread_mutex_t lock;
    struct unassigned {
        struct link *link;
        bool ended;
    } unassigned[ARRIVAL_MAX_LINKS]; /* no hello yet, or turned away */
    bool closing;                    /* no new connections */
    struct link *next_control;       /* the source's new connection, while `session` still has the old one */
    struct workset *workset;         /* as the source tells; NULL: nothing */
    uint32_t marks[MOVE_MAX_CONNECTIONS]; /* newest mark seen on each */
    atomic_bool receiving;                /* disks are open: runs are welcome */
    json_t *shown;                        /* the source's newest progress */
    struct err why;

    struct arrival_claim claims[ARRIVAL_MAX_CLAIMS];
    bool split;       /* the source may switch before the disks are over, */
    bool fetch_early; /* and surely will: we connect to it while the guest still runs there */
    struct {
        uint8_t *bits;
        size_t size;
    } missing[VM_MAX_DISKS]; /* what FRAME_MISSING said, for the hand-over's claim */
    struct fetch *fetch;

    uint32_t claimed_mark; /* all claims for the marks up to this one are here */
    uint32_t final_mark, done_mark;
};

int arrival_prepare(struct arrival *arrival, struct err *err);
int arrival_transfer(struct arrival *arrival, struct err *err);
int arrival_pause(struct arrival *arrival, struct err *err);
int arrival_commit(struct arrival *arrival, struct err *err);
int arrival_finish(struct arrival *arrival, struct err *err);
void arrival_unprepare(struct arrival *arrival);
void arrival_enter(struct arrival *arrival, const char *stage);
void arrival_failed(struct arrival *arrival, const struct err *err);
bool arrival_may_roll_back(const struct arrival *arrival);

/* arrival_transfer.c, for link threads. */
int arrival_run(struct arrival *arrival, const uint8_t *payload, size_t size, struct err *err);
int arrival_hashes(struct arrival *arrival, struct link *link, const uint8_t *payload, size_t size,
                   struct err *err);
int arrival_page(struct arrival *arrival, const uint8_t *payload, size_t size, struct err *err);
/* arrival_donor.c: puts what lies where disk `i` will be built aside; opens the donors that "base" names;
 * takes what they have (FRAME_SUMS, on a link's thread). Removed: the copies are whole. Closed: no link is
 * left. */
int arrival_put_aside(struct arrival *arrival, size_t i, const json_t *entry, struct err *err);
int arrival_open_donors(struct arrival *arrival, const json_t *base, struct err *err);
int arrival_sums(struct arrival *arrival, struct link *link, const uint8_t *payload, size_t size,
                 struct err *err);
void arrival_remove_donors(const struct arrival *arrival);
void arrival_close_donors(struct arrival *arrival);
/* arrival_checkpoint.c: opens it, and says in "prepared" what may come; begins to hash it, if "base" says so;
 * tells what is hashed, as far as the connection takes it now; how the stream is unpacked, and a packet of it
 * (on a link's thread). Removed: the guest's memory is here. */
json_t *arrival_look_at_checkpoint(struct arrival *arrival);
int arrival_hash_checkpoint(struct arrival *arrival, const json_t *base, struct err *err);
int arrival_tell_checkpoint(struct arrival *arrival, struct err *err);
int arrival_unpack(struct arrival *arrival, struct stream *stream, struct err *err);
int arrival_packed(struct arrival *arrival, struct link *link, const uint8_t *payload, size_t size,
                   struct err *err);
void arrival_remove_checkpoint(const struct arrival *arrival);
/* arrival_workset.c: FRAME_WORKSET, on a link's thread; keeps what is known once memory is here. */
int arrival_workset(struct arrival *arrival, const uint8_t *payload, size_t size, struct err *err);
void arrival_keep_workset(struct arrival *arrival);
/* arrival_prepare.c: where disk `i` is. */
const char *arrival_disk_image(const struct arrival *arrival, size_t i, char path[PATH_MAX]);
/* The mark that all data links have passed. */
uint32_t arrival_marked(struct arrival *arrival);
/* Keeps a claim until its mark is durable. */
int arrival_claim(struct arrival *arrival, const struct mail *mail, struct err *err);
/* Makes the kept claims up to the mark `sequence` the disks' own. */
int arrival_apply_claims(struct arrival *arrival, uint32_t sequence, struct err *err);
/* arrival_files.c: kernel and initrd. */
#define ARRIVAL_FILES 2
struct arrival_file {
    const char *name;
    uint64_t size, received;
    char hash[HASH_TEXT_SIZE];
    bool wanted; /* it does not lie here already */
    int fd;      /* of NAME.new, or -1 */
};
/* Which of those that "prepare" announces are wanted; their numbers into *ret_wanted. */
int arrival_look_at_files(const struct arrival *arrival, const json_t *prepare,
                          struct arrival_file files[ARRIVAL_FILES], json_t *ret_wanted, struct err *err);
int arrival_open_files(const struct arrival *arrival, struct arrival_file files[ARRIVAL_FILES],
                       struct err *err);
/* A piece; in order. */
int arrival_take_file(struct arrival_file files[ARRIVAL_FILES], const struct mail *mail, struct err *err);
bool arrival_files_complete(const struct arrival_file files[ARRIVAL_FILES]);
/* Checks them, and gives them their names, durably. */
int arrival_finish_files(const struct arrival *arrival, struct arrival_file files[ARRIVAL_FILES],
                         struct err *err);
void arrival_close_files(struct arrival_file files[ARRIVAL_FILES]);
/* arrival_links.c: connections may come. No connection from here on; joins those that there are. */
void arrival_open_porch(struct arrival *arrival);
void arrival_close_links(struct arrival *arrival);
/* arrival_split.c: what a post-copy move does otherwise. */
int arrival_missing(struct arrival *arrival, const struct mail *mail, struct err *err);
int arrival_new_fetch(struct arrival *arrival, struct err *err);
/* Some disk's blocks come after the switch. */
bool arrival_lacks(const struct arrival *arrival);
/* The guest is ours: its disks' claims say so, and what they lack may be fetched. */
int arrival_own_disk(struct disk *disk, struct err *err);
int arrival_open_fetch(struct arrival *arrival, struct err *err);
/* arrival_clock.c: FRAME_CLOCK, on a link's thread; lets the guest's clock be set on its way through the
 * stream; lets the guest run, when its clock is right. */
int arrival_stood_still(struct arrival *arrival, const uint8_t *payload, size_t size, struct err *err);
int arrival_watch_clock(struct arrival *arrival, struct stream *stream, struct err *err);
int arrival_go_on(struct arrival *arrival, struct err *err);
/* epoch_set; how long it takes tells how long the next one will. */
int arrival_record(struct arrival *arrival, const struct epoch_record *record, struct err *err);
/* arrival_memory.c: opens QEMU's stream; waits until the memory that comes after the switch is here, or the
 * guest is lost. */
int arrival_open_stream(struct arrival *arrival, struct err *err);
int arrival_follow(struct arrival *arrival, struct err *err);
/* Ends QEMU's stream; the next one is numbered. */
void arrival_put_stream_away(struct arrival *arrival);
/* arrival_recover.c: remembers what is needed should an orai-vm be lost while memory follows, before that
 * begins. */
void arrival_note_blocks(struct arrival *arrival);
int arrival_load_blocks(struct arrival *arrival, struct err *err);
/* FRAME_RECOVER: QEMU says what it has, and waits for more. */
int arrival_recover(struct arrival *arrival, const struct mail *mail, struct err *err);
/* In an orai-vm that was started while memory follows nobody hears QEMU's events before its main thread has
 * its pages: asks it, now and then, whether all is here. */
void arrival_look_at_memory(struct arrival *arrival);
/* Another QEMU in place of the one that waits for the guest, for memory that follows it (FRAME_ANEW). */
int arrival_renew(struct arrival *arrival, struct err *err);
/* arrival_prepare.c: taps and QEMU, and its stream. */
int arrival_start_qemu(struct arrival *arrival, struct err *err);
/* arrival_commit.c */
bool arrival_qemu_alive(const struct arrival *arrival);
int arrival_say_running(struct arrival *arrival);
int arrival_refuse(struct arrival *arrival, struct err *err);
/* Takes the source's new connection in place of the broken one. false: there is none. */
bool arrival_take_connection(struct arrival *arrival);
/* arrival_check.c: 0, or why this VM cannot come here. */
int arrival_check(const struct arrival *arrival, const json_t *prepare, struct err *err);
/* Asks QEMU what arrival_check will want to know, while the source is still on its way. */
void arrival_warm_up(const struct arrival *arrival);
