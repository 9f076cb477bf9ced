/* SPDX-License-Identifier: Apache-2.0
 *
 * departure: the source's side of a move; its column of the stage table. Internal to src/move.
 *
 *   departure.c           the object, its thread, what others may ask of it
 *   departure_connect.c   the connections
 *   departure_prepare.c   lets the destination check, chooses bases, sends files
 *   departure_rounds.c    the disks' rounds, marks and claims
 *   departure_donor.c     what the destination finds in a donor is not sent
 *   departure_transfer.c  rounds, memory beside them, the pause
 *   departure_memory.c    QEMU's stream: before the switch, or after it
 *   departure_clock.c     how long the guest stands still
 *   departure_compare.c   an emulated guest's memory is compared, because QEMU's dirty tracking of it has
 * holes
 *   departure_split.c     what a post-copy move does otherwise
 *   departure_commit.c    the commit, and asking until the destination has answered
 *
 * One thread walks the stages and owns everything here but what is marked otherwise.
 */
#pragma once

#include "disk/relocate.h"
#include "disk/sums.h"
#include "memory/compare.h"
#include "memory/known.h"
#include "move/fault.h"
#include "move/lender.h"
#include "move/move.h"
#include "move/progress.h"
#include "move/session.h"
#include "move/stages.h"

#include <stdatomic.h>

struct departure {
    const struct move_host *host;
    struct machine *machine;
    struct epoch *epoch;
    struct move_options options;
    struct session session; /* its own lock */
    struct progress *progress;
    struct progress_numbers numbers;
    pthread_t thread;
    _Atomic enum move_outcome outcome;
    atomic_bool committed; /* what the epoch record says, for other threads */
    atomic_bool run_here;  /* a human decided; set by any thread */
    bool resumed;          /* after a crash of orai-vm: only the commit is left */

    uint64_t next_epoch;                /* what the destination will hold */
    struct departure_opening *openings; /* departure_connect.c; NULL: no handshake is under way */
    unsigned opening_count;
    unsigned greeted;      /* data connections whose hello was answered; guarded by the session's lock */
    uint64_t stream_taken; /* by the destination's QEMU, as the first of them heard */
    struct prediction prediction;
    uint64_t used_memory, memory_dirty_rate; /* bytes, bytes per second: what the prediction stands on */
    bool dirty_rate_known;
    double prepared; /* seconds until everything was open */
    int64_t began;   /* clock_now() */
    bool opened;     /* the destination said so */
    struct err why;  /* the stage that failed, for the destination */

    /* Disks: one of each per disk of the machine. */
    struct relocate *relocate[VM_MAX_DISKS];
    bool forked[VM_MAX_DISKS];
    bool donor[VM_MAX_DISKS]; /* the destination has one, and the first round is not over */
    struct asking *asking;    /* departure_donor.c; NULL: there is no donor */
    uint32_t sealed[VM_MAX_DISKS];
    uint32_t mark; /* sequence of the newest mark */
    unsigned next_link;
    bool round_open;
    int64_t round_ended;
    int64_t switch_judged; /* when allow_switch last looked at the whole map */

    /* Memory. */
    bool packs;          /* the destination can unpack QEMU's stream, */
    bool packs_later;    /* also when memory comes after the switch */
    bool clock;          /* it sets the guest's clock, and compares before the devices are loaded */
    bool known_spoilt;   /* it cannot read its checkpoint any more; guarded by the session's lock */
    struct known *known; /* what it has in its checkpoint; NULL: it has none. Set with the session's lock */
    bool tells_workset;  /* it wants to know */
    struct workset *workset; /* what the guest touches first; NULL: nobody has looked yet */
    struct ram_view ram;     /* an emulated guest's, to compare */
    struct hash_message {
        struct hash_message *next;
        size_t length;
        uint8_t bytes[COMPARE_MESSAGE];
    } * hashes, **last_hashes;
    struct progress_faults faults; /* as the destination tells; guarded by the session's lock */
    bool migrating;                /* QEMU was told to migrate */
    bool memory_later;             /* after the switch: a wish until the destination has said "opened" */
    atomic_bool renewing;          /* what comes from the destination's QEMU is thrown away, until "anew" */
    struct stream *old_stream; /* of memory that was to go before the switch: links may still look at it */
    uint64_t spent;            /* bytes sent of it */
    uint64_t sent_before;      /* bytes of memory sent until */
    bool follows;              /* the guest runs there, and its memory follows */
    int64_t memory_began;      /* clock_now() */
    struct qemu_pages early;   /* what its devices need first; then */
    int kept_ram;              /* the guest's RAM once it has left; -1: it is not to be kept */
    bool memory_wanted;        /* the destination's newest hello: it waits for the rest, */
    bool peer_recovers;        /* and can go on in a new stream of QEMU's, */
    uint64_t peer_stream;      /* and which one it is in now */
    uint64_t stream_number; /* of the stream that lasts: 1, and more after each recovery; 0: it has broken */
    uint64_t last_number;   /* the newest */
    int futile;             /* passes over memory in a row that gained nothing */
    char obstacle[256];     /* why the move does not converge, or is not expected to; "" */
    _Atomic int64_t stopped_at; /* clock_now() of QEMU's STOP; set by the QMP thread */
    _Atomic int migration;      /* enum departure_migration; set by the QMP thread */

    bool split;            /* what the disks lack there is fetched after the switch: may change until it */
    struct lender *lender; /* then; guarded by the session's lock, for connections come on the main thread */

    bool frozen;     /* disks */
    bool guest_runs; /* it was not paused by its owner when the move began */
};

/* What QEMU's MIGRATION events have said so far, in the order of a good move. */
enum departure_migration {
    MIGRATION_NONE,
    MIGRATION_ACTIVE,
    MIGRATION_PRE_SWITCHOVER,
    MIGRATION_POSTCOPY,
    MIGRATION_PAUSED, /* its stream has broken in post-copy */
    MIGRATION_COMPLETED,
    MIGRATION_FAILED
};

/* The stages. */
int departure_prepare(struct departure *departure, struct err *err);
int departure_transfer(struct departure *departure, struct err *err);
int departure_pause(struct departure *departure, struct err *err);
int departure_commit(struct departure *departure, struct err *err);
int departure_finish(struct departure *departure, struct err *err);
void departure_unprepare(struct departure *departure);
void departure_untransfer(struct departure *departure);
void departure_unpause(struct departure *departure);

void departure_enter(struct departure *departure, const char *stage);
void departure_failed(struct departure *departure, const struct err *err);
bool departure_may_roll_back(const struct departure *departure);

/* Shared by the files. */
size_t departure_disks(const struct departure *departure);
void departure_show(struct departure *departure); /* publishes numbers */
/* The control connection with its hello; `again` = for the commit only. */
int departure_connect(struct departure *departure, bool again, int64_t deadline, struct err *err);
#define MOVE_CONNECT_NS (10 * NSEC_PER_SEC)
/* Begins the data connections' handshakes, which go on by themselves; whoever does not come to
 * departure_connect_data drops them. */
int departure_open_data(struct departure *departure, struct err *err);
void departure_drop_openings(struct departure *departure);
/* The data connections, once there is one for control; their hellos are on their way. */
int departure_connect_data(struct departure *departure, struct err *err);
/* All of them were answered: they may be used. */
int departure_wait_greeted(struct departure *departure, struct err *err);
/* Makes the first of them as fast as the link is, for a burst that will come soon. */
int departure_warm(struct departure *departure, struct err *err);
/* The next frame, of `type`. "opened" may come before it and is remembered. `ret` (may be NULL): the caller
 * frees it. */
int departure_await(struct departure *departure, enum frame_type type, int64_t deadline, struct mail **ret,
                    struct err *err);
bool departure_qemu_alive(const struct departure *departure);
/* 0, or why the move cannot go on: cancelled, link broken, QEMU gone; with the user's --timeout too, unless
 * it says that the move goes on otherwise then. */
int departure_check(struct departure *departure, struct err *err);
int departure_check_time(struct departure *departure, struct err *err);

/* --- departure_memory.c --- */

/* The least that QEMU may be told it can take for its last pass. At 0 it does not look at what the guest has
 * written since it last looked, once it has sent what it knew of: it stops the guest, and all of that goes
 * over in the pause. */
#define MEMORY_LEAST_MS 1
/* A page that the guest waits for there waits behind no more than that. */
#define MEMORY_PROMPT_BYTES (128 * KiB)
/* QEMU begins its stream. */
int departure_start_memory(struct departure *departure, struct err *err);
/* The destination will tell hashes of its checkpoint, with that seed. */
int departure_new_known(struct departure *departure, const uint8_t seed[KNOWN_SEED], struct err *err);
/* FRAME_KNOWN, on a link's thread. */
int departure_known(struct departure *departure, const uint8_t *payload, size_t size, struct err *err);
/* FRAME_FAULTS, likewise. */
int departure_faults(struct departure *departure, const uint8_t *payload, size_t size, struct err *err);
/* departure_workset.c: what is known of it, to be sent first (NULL: there is no memory for it); with what the
 * stream, which ends, has shown; and to the destination, which keeps it for the guest's next move. */
const struct workset *departure_workset(struct departure *departure);
void departure_renew_workset(struct departure *departure);
void departure_tell_workset(struct departure *departure);
/* How much of memory has gone, for those who watch. */
void departure_count_memory(struct departure *departure);
/* QEMU's numbers for those who watch; -EIO when it gave up. */
int departure_watch_memory(struct departure *departure, struct err *err);
/* Before memory that follows is let go: none of it may have gone, and what is needed first goes first. */
int departure_lead_memory(struct departure *departure, struct err *err);
/* What memory that follows can have ready, so that the pause is short. */
int departure_before_memory(struct departure *departure, struct err *err);
/* Takes back what has gone of memory before the switch: QEMU will begin again, and memory follow the guest.
 */
int departure_renew_memory(struct departure *departure, struct err *err);
/* Until QEMU has sent everything and the destination's has confirmed it. */
int departure_wait_completed(struct departure *departure, struct err *err);
/* After this QEMU knows of no migration; at any moment before the commit, or when the guest comes back. */
void departure_cancel_memory(struct departure *departure);
/* After the switch: memory goes over, however often the link breaks, until all of it is there or one of the
 * two guests is gone. Fails only when a human decides that the guest runs here. */
int departure_follow(struct departure *departure, struct err *err);
/* The guest was continued here after the commit. QMP's thread. */
void departure_fence(struct departure *departure);
/* After a crash of orai-vm: if it was continued meanwhile. */
void departure_fence_resumed(struct departure *departure);

/* The stream may go ahead as far as the link allows. */
void departure_widen_memory(struct departure *departure);

/* --- departure_recover.c --- */

/* Memory follows, but this orai-vm or the destination's has lost its stream: both QEMUs go on in a new one.
 * The control connection is there, and no other. When nothing can come of it any more departure->migration
 * says so. */
int departure_recover(struct departure *departure, struct err *err);

/* --- departure_commit.c --- */

/* Asks over new connections what became of the commit. */
int departure_ask_again(struct departure *departure, struct err *err);
/* The guest comes back: the record first, then the rollbacks of the stage table continue it. Fails always. */
int departure_keep(struct departure *departure, int code, const char *why, struct err *err);

/* --- departure_donor.c --- */

/* There is a donor: its key, for the destination. */
int departure_new_asking(struct departure *departure, uint8_t ret_key[SUMS_KEY], struct err *err);
void departure_free_asking(struct departure *departure);
/* Asks for the blocks of a piece that is not zero. */
int departure_ask_donor(struct departure *departure, size_t i, const struct relocate_piece *piece,
                        const void *data, struct err *err);
/* Sends what an answer says is needed. 1 = it did, 0 = there is none. With `wait` 0 = all is answered. */
int departure_take_answer(struct departure *departure, bool wait, struct err *err);
/* FRAME_DIFFER, on a link's thread. */
int departure_differ(struct departure *departure, const uint8_t *payload, size_t size, struct err *err);

/* --- departure_rounds.c --- */

#define SHOW_NS (200 * NSEC_PER_MSEC)
#define MAX_OPEN_MARKS 2 /* a destination with a slow disk is not given more to make durable */

struct round_slice {
    uint64_t max_bytes; /* stop after that many */
    int64_t deadline;   /* or then (clock_now() units), 0 = no */
    bool until_switch;  /* stop as soon as QEMU holds the guest */
};

/* QEMU holds the guest, or has given up. */
bool departure_switch_waits(const struct departure *departure);
/* Seals every disk's current generation; what the destination lacks up to it is the new round. */
int rounds_begin(struct departure *departure, enum lineage_kind kind, struct err *err);
/* Goes on with the round. 1 = it is over, 0 = the slice is. */
int rounds_send(struct departure *departure, const struct round_slice *slice, struct err *err);
/* Claims and mark of the round that is over; `final`: the hand-over's. */
int rounds_mark(struct departure *departure, bool final, struct err *err);
/* Sends blocks of disk `i` over some data connection. Takes `payload` (link_buffer): WIRE_RUN_SIZE free
 * bytes, then the data. */
int rounds_send_run(struct departure *departure, size_t i, uint8_t *payload,
                    const struct relocate_piece *piece, struct err *err);
/* The data connection with the least in its queue. */
struct link *rounds_quietest(struct departure *departure);
/* A round from beginning to mark. */
int rounds_whole(struct departure *departure, struct err *err);
/* Marks that the destination has not made durable yet; waits until at most `open` are. */
uint32_t rounds_open_marks(struct departure *departure);
int rounds_wait_marked(struct departure *departure, uint32_t open, struct err *err);
/* Bytes that a round from now on would take, what is left of the one under way included. */
uint64_t rounds_pending(const struct departure *departure);
/* Sends the claim that the copy of disk `i` there may make once mark `sequence` is durable (0: at once). */
int departure_send_claim(struct departure *departure, size_t i, const struct lineage *claim,
                         uint32_t sequence, unsigned flags, struct err *err);

/* --- departure_split.c --- */

#define HYBRID_SECONDS 20 /* of disks before the switch */
/* In mode auto: whether the switch comes before the disks are over, and says why. Once the link is known. */
void departure_choose_mode(struct departure *departure);
/* In mode auto: it does from now on. */
bool departure_not_converging(struct departure *departure);
/* Whether the move may switch before the disks are over. Says why not, if not. */
bool departure_may_split(const struct departure *departure, const struct lineage_base bases[VM_MAX_DISKS]);
int departure_new_lender(struct departure *departure, struct err *err);
void departure_drop_lender(struct departure *departure);
/* All that the guest wrote is durable here. */
int departure_sync(struct departure *departure, struct err *err);
/* In the pause, after the hand-over's generation was sealed: what each disk there will lack. */
int departure_send_missing(struct departure *departure, struct err *err);

/* Maps the memory before the guest stands still; hashes it as soon as it does; once it is loaded there, makes
 * it equal. departure_fill_view spends some milliseconds on filling the mapping; false: there is nothing left
 * to fill. */
void departure_view_memory(struct departure *departure);
bool departure_fill_view(struct departure *departure);
int departure_hash_memory(struct departure *departure, struct err *err);
void departure_drop_hashes(struct departure *departure);
int departure_compare(struct departure *departure, struct err *err);
/* departure_clock.c: from the stop on, over `link`; nothing where the destination has no use for it. */
int departure_tell_clock(struct departure *departure, struct link *link, struct err *err);
bool departure_emulated(const struct departure *departure);
/* QEMU's dirty tracking decides what goes over, and cannot be trusted with this guest. */
bool departure_compares(const struct departure *departure);
/* Can what the guest's RAM is made of (vmm/ram.h) go over as is wished? */
int departure_check_ram(const struct machine *machine, const struct move_options *options, struct err *err);

/* plan.c. plan_begin starts what takes a second to measure, plan_estimate looks at the relocates and at
 * memory, plan_measure measures the link, and plan_predict fills departure->prediction from all of these and
 * the time that "prepare" has taken. */
void plan_begin(struct departure *departure);
void plan_estimate(struct departure *departure);
int plan_measure(struct departure *departure, struct err *err);
void plan_predict(struct departure *departure);
/* Once the dirty rate has been measured the prediction takes it into account. Cheap; call now and then. */
void plan_refine(struct departure *departure);
/* For those who watch: why the move does not converge, and what will come of it. Without a text: it does. */
void plan_obstacle(struct departure *departure, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
