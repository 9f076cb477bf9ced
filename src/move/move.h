/* SPDX-License-Identifier: Apache-2.0
 *
 * move: hands a running VM from one host to another. The source runs a `struct departure`, the destination a
 * `struct arrival`; each is a thread that walks its column of the stage table (stages.h). Both end in exactly
 * one outcome, and the epoch record (epoch.h) says durably which.
 */
#pragma once

#include "base/err.h"
#include "base/tls.h"
#include "move/epoch.h"
#include "vmm/machine.h"

#include <jansson.h>

/* What both sides stand on; everything is borrowed and outlives the move. */
struct move_host {
    const char *name;      /* this host's, for lineage and errors */
    const char *state_dir; /* images/HASH/image.raw lie below it */
    const struct tls_identity *identity;
    struct qemu_env env;          /* vm_dir, run_dir, binary, user */
    void (*on_change)(void *arg); /* something that move status shows has changed; any thread */
    qmp_event_fn *on_qemu_event;  /* for machines that an arrival starts */
    void *arg;
};

enum move_outcome {
    MOVE_RUNNING = 0, /* not over yet */
    MOVE_STAYED,      /* departure: failed or cancelled, the guest runs here. arrival: nothing runs here */
    MOVE_MOVED,       /* departure: the guest runs there, we are a replica. arrival: the guest runs here */
    MOVE_PREDICTED,   /* a dry run ended */
    MOVE_GUEST_LOST,  /* departure: our QEMU died before the commit: a crashed guest, startable here */
};

struct move_peer {
    char name[64];
    char address[256];
    uint16_t port;
    struct fingerprint fingerprint;
};

/* When the disks go over: before the switch, after it, or first for a bounded time before it. */
enum move_mode { MOVE_PRECOPY, MOVE_POSTCOPY, MOVE_HYBRID, MOVE_AUTO };
const char *move_mode_name(enum move_mode mode);
int move_mode_parse(const char *name, enum move_mode *ret);

/* What happens when --timeout is over. MOVE_FOLLOW ("postcopy"): memory follows the guest. */
enum move_on_timeout { MOVE_CANCEL, MOVE_PAUSE, MOVE_FOLLOW };
int move_on_timeout_parse(const char *name, enum move_on_timeout *ret);

struct move_options {
    struct id move; /* random id of this try */
    struct move_peer peer;
    enum move_mode mode;
    bool memory_later; /* memory goes over after the switch, where both QEMUs can */
    bool dry_run;
    bool verify_memory; /* all of memory is compared before the guest goes on; what differs is an error */
    bool compare;       /* no copy there is trusted: all are compared, and what differs is sent */
    uint64_t bandwidth; /* bytes per second on the wire, 0 = unlimited */
    uint64_t max_blackout_ms;
    uint64_t timeout_ms; /* 0 = none */
    enum move_on_timeout on_timeout;
    unsigned throttle;    /* percent by which QEMU may slow the guest's CPUs down; 0 = not at all */
    unsigned connections; /* data connections, 1 to 8 */
};

/* {"peer":{"name","address","port","fingerprint"},"move":ID,"dry_run":..,"bandwidth":..,"max_blackout_ms":..,
 *  "timeout_ms":..,"on_timeout":"cancel"|"pause"|"postcopy","connections":..,"mode":..,"memory":"precopy"|"postcopy","compare":..,
 *  "throttle":..,"verify_memory":..}
 */
int move_options_from_json(const json_t *json, struct move_options *ret, struct err *err);

/* --- source --- */
struct departure;
/* Starts the thread. `machine` is the departure's until it is over. */
int departure_start(const struct move_host *host, struct machine *machine, struct epoch *epoch,
                    const struct move_options *options, struct departure **ret, struct err *err);
/* After a crash of orai-vm between commit and answer (epoch role COMMITTED): goes on asking the peer. */
int departure_resume(const struct move_host *host, struct machine *machine, struct epoch *epoch,
                     struct departure **ret, struct err *err);
/* Asks for a rollback; -EALREADY when the commit was made. Does not wait. */
int departure_cancel(struct departure *departure, struct err *err);
/* A human decides while COMMITTED and the peer is silent: run here. -EINVAL in any other state. */
int departure_run_here(struct departure *departure, struct err *err);
/* Every event of the machine's QEMU goes here while the departure lives; QMP reader thread. */
void departure_qemu_event(struct departure *departure, const char *event, const json_t *data);
enum move_outcome departure_outcome(const struct departure *departure);
/* Stage, phase, bytes, rates, prediction, error...: docs/protocol.md, "move status". */
json_t *departure_status(const struct departure *departure);
/* A connection that oraid handed over: of the destination, which will fetch blocks. Owns `socket`. */
int departure_connection(struct departure *departure, int socket, struct err *err);
/* After MOVE_MOVED: who lends the disks, which stay open; NULL: nothing is lent, and they are closed. */
struct lender;
struct lender *departure_take_lender(struct departure *departure);
/* The RAM of the guest that has left, for a checkpoint (memory/checkpoint.h); -1: there is none. The caller
 * closes it. */
int departure_take_ram(struct departure *departure);
void departure_free(struct departure *departure); /* joins the thread: only when the outcome is known */

/* --- destination --- */
struct arrival;
/* Waits for connections (arrival_connection) of `source` about the VM `vm`; gives up after a while without
 * any. */
int arrival_start(const struct move_host *host, const struct move_peer *source, const struct id *vm,
                  struct epoch *epoch, struct arrival **ret, struct err *err);
/* After a crash of orai-vm while READY (epoch role ARRIVING): adopts the incoming QEMU and waits for the
 * source. When that QEMU is gone too it durably refuses. */
int arrival_resume(const struct move_host *host, const struct vm_config *config, struct epoch *epoch,
                   struct arrival **ret, struct err *err);
/* After a crash of orai-vm while the guest runs here and some of its memory is still away (epoch role OWNER,
 * `memory_away`): goes on taking it. *machine (its disks open; machine_adopt_waiting) is the arrival's, and
 * NULL, if it succeeds. */
int arrival_resume_following(const struct move_host *host, struct machine **machine, struct epoch *epoch,
                             struct arrival **ret, struct err *err);
/* Answers a source that asks about a commit when no arrival is under way any more: "running" when this host
 * took the epoch (or a later one), "refused" when the record says so. On a thread of its own, for a few
 * seconds. Owns `socket`. */
void arrival_answer(const struct move_host *host, const struct id *vm, const struct epoch_record *record,
                    int socket);
/* A connection that oraid handed over (TLS not begun). Owns `socket` from here on. */
void arrival_connection(struct arrival *arrival, int socket);
int arrival_cancel(struct arrival *arrival, struct err *err);
int arrival_run_here(struct arrival *arrival, struct err *err);
enum move_outcome arrival_outcome(const struct arrival *arrival);
json_t *arrival_status(const struct arrival *arrival);
/* Every event of the machine's QEMU goes here while the arrival lives; QMP reader thread. */
void arrival_qemu_event(struct arrival *arrival, const char *event, const json_t *data);
/* Its QEMU is ended because it will use another one. Any thread. */
bool arrival_is_renewing(const struct arrival *arrival);
/* Ends a guest that runs here already while its memory still comes. -EBUSY before that. */
int arrival_kill(struct arrival *arrival, struct err *err);
/* This host owns the guest, though some of its memory may still come. */
bool arrival_is_here(const struct arrival *arrival);
/* Once it is over: what went wrong, though the VM is here; code 0 = nothing. */
const struct err *arrival_error(const struct arrival *arrival);
/* The machine that came, once MOVE_MOVED; the caller's from then on. */
struct machine *arrival_machine(struct arrival *arrival);
/* Who fetches what its disks still lack; NULL: nothing. The caller's from then on. */
struct fetch;
struct fetch *arrival_fetch(struct arrival *arrival);
void arrival_free(struct arrival *arrival);
