/* SPDX-License-Identifier: Apache-2.0
 *
 * vm: what the files of orai-vm share: the one VM of this process. Internal to src/vm.
 *
 *   main.c        arguments, folders, lock; the loop
 *   lifecycle.c   start, resume, and every end
 *   moving.c      departures and arrivals, from their beginning to their outcome
 *   refreshing.c  QEMU is replaced under the guest
 *   splitting.c   after a post-copy hand-over: fetching blocks, lending them
 *   hand_on.c     another orai-vm takes over
 *   io_pause.c    the guest stands still for a disk, until it may go on
 *   events.c      what other threads tell the main thread
 *   control.c     clients of the control socket
 *   verbs.c       what each request does, and in which states it is allowed
 *   status.c      what clients are told
 *
 * Threads: everything here belongs to the main thread, except `events`. A move owns the machine and the epoch
 * record while it runs, a refresh the machine; the main thread leaves both alone until the move has an
 * outcome.
 */
#pragma once

#include "base/err.h"
#include "move/fetch.h"
#include "move/lender.h"
#include "move/move.h"
#include "move/refresh.h"
#include "vm/options.h"
#include "vmm/machine.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>

enum vm_state {
    VM_STARTING,
    VM_RUNNING,
    VM_PAUSED,
    VM_ARRIVING,
    VM_LEAVING,
    VM_REFRESHING,
    VM_COMMITTED,
    VM_REPLICA,
    VM_STOPPED,
    VM_CRASHED,
    VM_STATE_COUNT
};

/* What QEMU has said, gathered by the QMP thread. */
struct qemu_news {
    bool stopped, resumed; /* STOP, RESUME; the later one counts */
    bool shut_down;        /* SHUTDOWN */
    bool by_guest;         /* ... asked for by the guest */
    bool gone;             /* the connection has ended */
    char io_error[160];    /* BLOCK_IO_ERROR that stopped the guest */
    bool no_space;         /* ... because the host's disk is full */
};

struct events {
    int wake; /* eventfd: readable when there is something new */
    atomic_bool move_changed;
    pthread_mutex_t mutex; /* the two below; held while a move is told of an event, which never blocks */
    struct qemu_news news;
    struct departure *departure; /* who gets QEMU's events */
    struct arrival *arrival;
};

struct vm {
    struct vm_options options;
    struct vm_config config; /* valid when has_config */
    bool has_config;
    struct id id;
    struct epoch *epoch;
    struct move_host host;
    struct machine *machine; /* NULL while arriving */
    struct departure *departure;
    struct arrival *arrival;
    struct refresh *refresh;
    bool arrived; /* it was said that the guest is here */
    struct fetch
        *fetch; /* while the machine's disks lack something, or the lender has not heard that none do */
    int64_t next_wish;     /* when other hosts that have blocks are to be looked for again */
    struct lender *lender; /* the guest left, and its disks are lent; then there is a machine without QEMU */
    int64_t share_until;   /* the disks are only shared, and nobody wanted any by then; 0 = lent */
    struct events events;
    struct control *control;

    enum io_pause {
        IO_PAUSE_NONE,
        IO_PAUSE_NO_SPACE,
        IO_PAUSE_BLOCKS,
        IO_PAUSE_OTHER
    } io_pause;      /* why QEMU stopped the guest by itself */
    int64_t io_look; /* whether it may go on: not before */

    enum vm_state state;
    char reason[256];                     /* why it is paused, crashed... */
    json_t *disks;                        /* as shown while a move owns the machine */
    json_t *last_move;                    /* status of the last move when none runs */
    json_t *last_refresh;                 /* the same of a refresh */
    char refresh_operation[ID_TEXT_SIZE]; /* oraid's, of either */
    int64_t stop_deadline;                /* of a stop request, 0 = none */
    uint64_t stop_msec;
    int64_t next_progress; /* not before */
    int64_t next_trim;
    int64_t lost_deadline; /* QMP is gone, QEMU is not: until when to wait for its exit, 0 = not so */
    bool let_go;           /* end this process, not QEMU */
    bool hand_on;          /* ... because another one is about to be started */
    const char *ended;     /* why, once the process may end */
    bool killed;           /* QEMU is ending because a human wished so */
};

/* --- lifecycle.c ---------------------------------------------------------------------------------------- */

int vm_start(struct vm *vm, struct err *err);
/* -ESRCH when no QEMU runs: the guest is gone. */
int vm_resume(struct vm *vm, struct err *err);
/* Asks QEMU what the guest does; sets state running or paused. */
void vm_look(struct vm *vm);
/* Takes what QEMU has said, and its exit. */
void vm_take_news(struct vm *vm);
bool vm_wants_paused(const struct vm *vm);
/* Remembers durably (for this boot) that its owner wants the guest paused, or not. */
void vm_want_paused(struct vm *vm, bool paused);
/* Ends QEMU at once. */
int vm_kill(struct vm *vm, struct err *err);
/* Closes everything; the process ends when the loop sees it. */
void vm_end(struct vm *vm, enum vm_state state, const char *why);
void vm_set_state(struct vm *vm, enum vm_state state);

/* --- moving.c ------------------------------------------------------------------------------------------- */

int vm_arrive(struct vm *vm, struct err *err);
int vm_arrival_resume(struct vm *vm, struct err *err);
/* The guest runs here and some of its memory is still away: goes on taking it. -ENOTSUP and others when that
 * cannot be; then nothing has changed. */
int vm_arrival_follow(struct vm *vm, struct err *err);
int vm_depart(struct vm *vm, const struct move_options *options, struct err *err);
int vm_departure_resume(struct vm *vm, struct err *err);
int vm_move_cancel(struct vm *vm, struct err *err);
int vm_move_run_here(struct vm *vm, struct err *err);
/* A connection from another host. Owns `socket` from here on. */
int vm_connection(struct vm *vm, int socket, struct err *err);
/* From here on machine and disks are the move's, or the refresh's; the disks are shown as they are now. */
void vm_hand_machine_over(struct vm *vm);
/* Looks whether the move that runs has an outcome. */
void vm_check_move(struct vm *vm);
/* Does something else own the machine: a move, or a refresh? */
bool vm_is_moving(const struct vm *vm);
/* Opens the host's key when it is needed for the first time. */
int vm_need_identity(struct vm *vm, struct err *err);

/* --- refreshing.c --------------------------------------------------------------------------------------- */

/* `binary`: the QEMU to go on in. */
/* `operation`: whose work it is, as the status is to say; any text. */
int vm_refresh(struct vm *vm, const char *binary, const char *operation, struct err *err);
/* Looks whether a refresh that runs has an outcome. */
void vm_check_refresh(struct vm *vm);
json_t *vm_refresh_status(const struct vm *vm);

/* --- splitting.c ---------------------------------------------------------------------------------------- */

/* If the record says that blocks are borrowed. Before the guest runs. */
int vm_start_fetch(struct vm *vm, struct err *err);
int vm_lend_resume(struct vm *vm, struct err *err);
/* The mode "share": an old copy here may help a VM that borrows. Ends when that wants nothing for a while. */
int vm_share(struct vm *vm, struct err *err);
/* {"hosts": [{"name","address","port","fingerprint"}]}: they share their copies with us. */
int vm_fetch_from(struct vm *vm, const json_t *request, struct err *err);
/* vm->lender is there: the state says so. */
void vm_lend(struct vm *vm);
/* For ever, whatever the borrower still lacks: a human says so, or the VM has gone on without us. */
int vm_stop_lending(struct vm *vm, struct err *err);
bool vm_is_split(const struct vm *vm);
/* Takes note of what has ended. */
void vm_check_split(struct vm *vm);
void vm_end_split(struct vm *vm);
json_t *vm_lends(const struct vm *vm);
json_t *vm_shares(const struct vm *vm);

/* --- io_pause.c ----------------------------------------------------------------------------------------- */

void vm_io_stopped(struct vm *vm, const struct qemu_news *news);
/* Lets the guest go on when what it waits for has come. */
void vm_check_io_pause(struct vm *vm, int64_t now);

/* --- hand_on.c ------------------------------------------------------------------------------------------ */

/* Before this process ends at once: the disks' connections outlive it until the next one listens. */
void vm_hand_on(struct vm *vm);

/* --- keep_ram.c ----------------------------------------------------------------------------------------- */

/* Takes the descriptor of the RAM of a guest that has left; -1: there is none. */
void vm_keep_ram(const struct vm *vm, int ram);
/* The mode "keep-ram": all that its process does. */
int keep_ram(const struct vm_options *options, struct err *err);

/* --- events.c ------------------------------------------------------------------------------------------- */

int events_init(struct events *events, struct err *err);
qmp_event_fn events_from_qemu; /* arg: struct vm */
void events_move_changed(void *arg);
/* What has gathered since; the flags that describe an end stay set. */
struct qemu_news events_take(struct events *events);

/* --- status.c ------------------------------------------------------------------------------------------- */

const char *vm_state_name(enum vm_state state);
json_t *vm_status(struct vm *vm);
json_t *vm_move_status(const struct vm *vm);
json_t *vm_disks(const struct vm *vm);

/* --- verbs.c -------------------------------------------------------------------------------------------- */

/* Carries out one request; `fd` (or -1) came with it and is consumed. Sets *ret_watch for "watch". The answer
 * is a new object. */
json_t *vm_request(struct vm *vm, const json_t *request, int fd, bool *ret_watch);

/* --- control.c ------------------------------------------------------------------------------------------ */

struct pollfd;
#define CONTROL_MAX_CLIENTS 32

int control_new(const char *path, struct control **ret, struct err *err);
/* Closes and removes the socket. */
void control_free(struct control *control);
/* Fills at most CONTROL_MAX_CLIENTS + 1 entries, returns how many. */
size_t control_poll_fds(const struct control *control, struct pollfd *ret);
/* Serves those that are ready. */
void control_serve(struct control *control, struct vm *vm, const struct pollfd *fds, size_t count);
/* Sends to all watchers; consumes `event`. Whoever does not read is cut off. */
void control_tell(struct control *control, json_t *event);
bool control_watched(const struct control *control);
