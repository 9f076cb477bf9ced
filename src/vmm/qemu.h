/* SPDX-License-Identifier: Apache-2.0
 *
 * qemu: one unmodified QEMU process: its command line, its start as an unprivileged user under -sandbox on,
 * finding it again after a restart of orai-vm, and what a move asks of it. QEMU outlives orai-vm.
 */
#pragma once

#include "base/err.h"
#include "vmm/config.h"
#include "vmm/qmp.h"

#include <limits.h>
#include <stdbool.h>
#include <sys/types.h>

struct qemu;

/* In RUN_DIR: the record of the QEMU that is not the guest's, while there are two. Whoever finds one without
 * knowing of it ends that process, before anything else. */
#define QEMU_NEXT_RECORD "qemu-next.pid"

struct qemu_env {
    const char *binary;       /* "qemu-system-x86_64" */
    const char *firmware_dir; /* UEFI (firmware.h) */
    const char *vm_dir;       /* kernel, initrd, qemu.log */
    const char *run_dir;      /* sockets: qmp-PID.sock, diskN.sock (NBD, served by us), migrate.sock,
                                 incoming.sock;      qemu.pid */
    uid_t uid;                /* whom QEMU runs as; 0 = do not change (a lab without the user) */
    gid_t gid;
};

/* "kvm" or "tcg" for the wanted "auto", "kvm" or "tcg": KVM only where it is real (qemu_probe). -EOPNOTSUPP
 * when it is wanted and is not. */
int qemu_accel(const char *wanted, const char **ret, struct err *err);
/* Starts QEMU with its CPUs stopped (-S). `incoming`: with -incoming defer. tap_fds are inherited, one per
 * NIC. RAM is a memfd that we make (ram.h; memory-backend-file on /proc/self/fd/N, share=on), or QEMU's own.
 * NBD disks by unix socket with reconnect-delay. Waits until QMP answers; on failure the last lines of QEMU's
 * stderr stand in the error and nothing is left running. */
int qemu_start(const struct qemu_env *env, const struct vm_config *config, bool incoming, const int *tap_fds,
               qmp_event_fn *on_event, void *arg, struct qemu **ret, struct err *err);
/* Starts a second QEMU for the guest that `qemu` runs, with -incoming defer and on the same RAM; which
 * program is env's word. It is recorded in qemu-next.pid, and until qemu_take_place it may be ended at any
 * time, after it `qemu`: never may both run the guest. -ENOTSUP when the RAM cannot be shared. */
int qemu_start_next(const struct qemu *qemu, const struct qemu_env *env, const struct vm_config *config,
                    const int *tap_fds, qmp_event_fn *on_event, void *arg, struct qemu **ret,
                    struct err *err);
/* In one step that no crash can cut in two, qemu.pid names `next` and qemu-next.pid `qemu`, or both stay as
 * they are. */
int qemu_take_place(struct qemu *next, struct qemu *qemu, struct err *err);
/* Finds the QEMU that qemu.pid records and connects to it. -ESRCH when there is none. */
int qemu_adopt(const struct qemu_env *env, qmp_event_fn *on_event, void *arg, struct qemu **ret,
               struct err *err);
/* The same for one whose main thread may wait for memory of the guest (qemu_rescue.c), and cannot be spoken
 * to before it comes. Until qemu_connect (which tries for `msec`) it only takes qemu_migrate_recover,
 * qemu_signal and what needs no answer. -ENOTSUP: it cannot be recovered. */
int qemu_adopt_waiting(const struct qemu_env *env, struct qemu **ret, struct err *err);
int qemu_connect(struct qemu *qemu, int msec, qmp_event_fn *on_event, void *arg, struct err *err);
bool qemu_connected(const struct qemu *qemu);
/* Lets go of it without touching the process. */
void qemu_free(struct qemu *qemu);
/* SIGTERM-less end: QMP quit, then SIGKILL after `msec`; returns when it is gone. Its memory is lost. */
int qemu_kill(struct qemu *qemu, int msec, struct err *err);
/* kill(2). */
void qemu_signal(struct qemu *qemu, int number);
/* Polls readable when the process has exited. Owned by `qemu`. */
int qemu_pidfd(const struct qemu *qemu);
bool qemu_ended(const struct qemu *qemu);
pid_t qemu_pid(const struct qemu *qemu);
struct qmp *qemu_qmp(const struct qemu *qemu);
/* The guest's RAM: our end of the memfd (after adoption taken again from /proc/PID/fd); -1 if it cannot be
 * had, as that of private RAM. */
int qemu_ram_fd(const struct qemu *qemu);
/* What this QEMU's RAM is made of, whatever the VM's config says by now. */
enum vm_ram qemu_ram(const struct qemu *qemu);

/* What QEMU calls the guest's RAM in its migration stream. */
#define QEMU_RAM_BLOCK "ram"

/* query-status: "running", "paused", "prelaunch", "inmigrate", "postmigrate", "finish-migrate", "shutdown",
 * ... */
int qemu_status(struct qemu *qemu, char ret[32], struct err *err);
int qemu_cont(struct qemu *qemu, struct err *err);
int qemu_pause(struct qemu *qemu, struct err *err);
int qemu_powerdown(struct qemu *qemu, struct err *err);

/* --- migration (docs: QEMU's migration framework; pause-before-switchover, return-path) ----------------- */

/* Listens for the incoming stream at run_dir/incoming.sock: of another host, or of the QEMU beside this one.
 */
int qemu_migrate_incoming(struct qemu *qemu, struct err *err);
/* The incoming stream may switch to post-copy. -ENOTSUP: QEMU may not use userfaultfd(2). Before
 * qemu_migrate_incoming. */
int qemu_migrate_allow_postcopy(struct qemu *qemu, struct err *err);
/* After its stream has broken in post-copy: listens again, as qemu_migrate_incoming. -EREMOTEIO while it has
 * not noticed that. A QEMU that qemu_migrate_allow_postcopy was called for. */
int qemu_migrate_recover(struct qemu *qemu, struct err *err);
/* The source's part, to run_dir/migrate.sock. Goes on with what the destination says that it lacks. */
int qemu_migrate_resume(struct qemu *qemu, struct err *err);
/* Would that succeed for a QEMU of this user? As far as can be told without one. */
int qemu_may_postcopy(uid_t uid, struct err *err);
/* Sends the stream to run_dir/migrate.sock, where we listen. Capabilities events, return-path,
 * pause-before-switchover, and postcopy-ram if wished; bandwidth and downtime as for qemu_migrate_set. */
int qemu_migrate_start(struct qemu *qemu, uint64_t bandwidth, uint64_t downtime_ms, bool postcopy,
                       struct err *err);
/* What qemu_migrate_start lets QEMU do from then on, until that migration has ended: slow the guest's CPUs
 * down by up to so many percent of their time while memory changes faster than it goes over. 0 = not at all,
 * up to QEMU_THROTTLE_MAX. */
#define QEMU_THROTTLE_MAX 99
void qemu_migrate_throttle(struct qemu *qemu, unsigned percent);
/* Sends the stream, without RAM, to the QEMU of qemu_start_next, which listens (qemu_migrate_incoming). */
int qemu_migrate_to_next(struct qemu *qemu, struct err *err);
/* To post-copy as soon as it can. After qemu_migrate_start. */
int qemu_migrate_start_postcopy(struct qemu *qemu, struct err *err);
/* max-bandwidth in bytes/s (0 = unlimited); downtime limit in ms. */
int qemu_migrate_set(struct qemu *qemu, uint64_t bandwidth, uint64_t downtime_ms, struct err *err);

/* The blocks of RAM that QEMU has: their names, bytes that are used. The callback's failure ends it. */
typedef int qemu_block_fn(void *arg, const char *name, uint64_t used, struct err *err);
int qemu_each_block(struct qemu *qemu, qemu_block_fn *each, void *arg, struct err *err);

struct qemu_migration {
    char status[32]; /* query-migrate: "setup", "active", "pre-switchover", "device", "completed", "failed",
                        "cancelled"... */
    uint64_t ram_total, ram_transferred, ram_remaining; /* bytes */
    uint64_t ram_pages;                                 /* sent, zero ones too */
    uint64_t dirty_rate;                                /* bytes per second, 0 = not known yet */
    uint64_t iterations;
    unsigned throttle; /* percent of their time that the CPUs are held now */
    char error[256];
};
int qemu_migrate_query(struct qemu *qemu, struct qemu_migration *ret, struct err *err);
/* Waits so long for its answer. */
int qemu_migrate_query_for(struct qemu *qemu, int msec, struct qemu_migration *ret, struct err *err);
int qemu_migrate_continue(struct qemu *qemu, struct err *err); /* out of pre-switchover */
/* Ends a migration in any state but post-copy (-EBUSY), waits until QEMU says it is over; the guest may then
 * be continued. */
int qemu_migrate_cancel(struct qemu *qemu, struct err *err);
/* Waits up to `msec` until a migration that is ending is over. */
int qemu_migrate_settle(struct qemu *qemu, int msec, struct err *err);

/* Pages of the guest's RAM, as offsets in it. */
struct qemu_pages {
    size_t count;
    uint64_t offsets[256];
};
/* Adds those that its devices look at while they are loaded, and those that its CPUs look at when they go on:
 * the latter may be asked for as long as they stand still only. None when QEMU does not tell. */
void qemu_early_devices(struct qemu *qemu, const struct vm_config *config, struct qemu_pages *pages);
void qemu_early_cpus(struct qemu *qemu, const struct vm_config *config, struct qemu_pages *pages);

/* Lets what carries the migration in QEMU (its migration thread; its main thread, which loads the stream) run
 * before the guest's CPUs, or takes that back: a guest that keeps its host busy would otherwise slow its own
 * move down, and stand still for longer. Without effect where the right to do so is missing. */
void qemu_hurry(struct qemu *qemu, bool hurry);

/* --- what this host's QEMU can do ----------------------------------------------------------------------- */

struct qemu_host {
    char version[32];
    bool kvm;          /* /dev/kvm opens and the CPU has vmx or svm: only then is KVM real */
    char kvm_why[128]; /* why not */
    json_t *machines;  /* list of versioned q35 and i440fx names, newest first */
};
int qemu_probe(const char *binary, struct qemu_host *ret, struct err *err);
/* The same without starting QEMU when the file `cache` has its answer already, else it is kept there. */
void qemu_cache_path(const char *state_dir, char ret[PATH_MAX]);
int qemu_probe_cached(const char *binary, const char *cache, struct qemu_host *ret, struct err *err);
void qemu_host_done(struct qemu_host *host);
