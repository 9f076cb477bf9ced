/* SPDX-License-Identifier: Apache-2.0
 *
 * vm: the VMs of this host, replicas and arriving ones too. A VM is a folder STATE/vms/NAME; its epoch record
 * says what may be done with it, its orai-vm what it does. This table adds what oraid wants of it (desired
 * state, claims) and a keeper thread that watches every orai-vm and starts one again that ended without
 * saying so.
 *
 * Claims: whoever changes a VM (start, remove, move, arrival...) claims it first, so two of them never meet.
 *
 * Threads: any, unless said otherwise. vms->lock is never held across I/O, except the registry's own.
 */
#pragma once

#include "base/err.h"
#include "base/id.h"
#include "host/host.h"
#include "host/peer.h"
#include "move/epoch.h"
#include "vmm/config.h"

#include <jansson.h>
#include <limits.h>
#include <stdbool.h>

#define VM_ASK_MSEC 2000    /* for an orai-vm's answer that is only to be shown, or is asked for again */
#define VM_TELL_MSEC 10000  /* for its answer to a command, or to what a command depends on */
#define VM_YIELD_MSEC 10000 /* for the end of an orai-vm that has nothing to do here any more */

/* Scans STATE/vms, removes what unfinished creations and removals left. */
int vms_new(struct host *host, struct vms **ret, struct err *err);
/* Starts the keeper: watches what runs, resumes what should run. */
int vms_start(struct vms *vms, struct err *err);
/* Ends the keeper; the VMs go on. NULL is fine. */
void vms_free(struct vms *vms);

/* --- the table (vm.c) --- */

/* -ENOENT with a hint. `ret_id` may be NULL. */
int vm_lookup(struct vms *vms, const char *name, struct id *ret_id, struct err *err);
/* The VM of that id: its control socket (for the door), its name. -ENOENT. */
int vm_control_path(struct vms *vms, const struct id *id, char ret[PATH_MAX]);
int vm_name_of(struct vms *vms, const struct id *id, char ret[VM_NAME_SIZE]);
/* All names, malloc'ed. */
int vm_names(struct vms *vms, char (**ret)[VM_NAME_SIZE], size_t *ret_count, struct err *err);

/* Adds a VM whose folder stands already. -EEXIST when name or id is taken. */
int vm_add(struct vms *vms, const char *name, const struct id *id, struct err *err);
/* Takes it out of table and registry. The folder is the caller's. */
int vm_forget(struct vms *vms, const char *name, struct err *err);

/* `what`: a literal, "being started". -EBUSY while someone else has it. A name that is not in the table may
 * be claimed too: it is then reserved. */
int vm_claim(struct vms *vms, const char *name, const char *what, struct err *err);
void vm_release(struct vms *vms, const char *name);

int vm_set_desired(struct vms *vms, const char *name, bool running, struct err *err);
bool vm_desired(struct vms *vms, const char *name);

/* The move from here that is under way: at most one. -EBUSY. */
int vm_begin_move(struct vms *vms, const char *name, const struct id *move, struct err *err);
void vm_end_move(struct vms *vms, const char *name, const struct id *move);
/* Asks a move that has not reached orai-vm yet to stop. false: there is none, ask orai-vm. */
bool vm_cancel_move(struct vms *vms, const char *name);
bool vm_move_cancelled(struct vms *vms, const char *name);

/* Which VM an announced move from elsewhere is about. -ENOENT. */
void vm_note_arrival(struct vms *vms, const char *name, const struct id *move);
int vm_of_arrival(struct vms *vms, const struct id *move, char ret[VM_NAME_SIZE]);

/* --- folders (vm_folder.c) --- */

void vm_dir(const struct host *host, const char *name, char ret[PATH_MAX]);
void vm_run_dir(const struct host *host, const char *name, char ret[PATH_MAX]);
/* A path below vm_run_dir. */
void vm_run_path(const struct host *host, const char *name, const char *file, char ret[PATH_MAX]);
int vm_record(const struct host *host, const char *name, struct epoch_record *ret, struct err *err);
/* Makes STATE/vms/.new-NAME, empty. */
int vm_dir_begin(const struct host *host, const char *name, char ret[PATH_MAX], struct err *err);
/* Gives it its name, durably. -EEXIST. */
int vm_dir_finish(const struct host *host, const char *name, struct err *err);
/* Removes the VM's folder so that a crash leaves it whole or gone; and its run folder. */
int vm_dir_remove(const struct host *host, const char *name, struct err *err);
/* Removes what unfinished ones of the above left. */
void vm_dirs_clean(const struct host *host);

/* --- processes (vm_process.c) --- */

struct vm_mode {
    const char *name;          /* "start", "resume", "arrive", "share" */
    bool fork_old_copy;        /* start */
    const struct peer *source; /* arrive, share: the other host */
    struct id vm;              /* arrive, share */
};
/* Starts orai-vm. *ret_pidfd polls readable when it ends. */
int vm_spawn(const struct host *host, const char *name, const struct vm_mode *mode, int *ret_pidfd,
             struct err *err);
/* Opens the VM's living orai-vm. -ESRCH when there is none. */
int vm_process(const struct host *host, const char *name, int *ret_pidfd);
/* Waits up to `msec` for the end of such a process. */
bool vm_process_ends(int pidfd, int msec);
/* Opens the VM's living QEMU. -ESRCH when there is none. */
int vm_qemu(const struct host *host, const char *name, int *ret_pidfd);
/* Asks orai-vm. -ENOTCONN when none runs; -ETIMEDOUT when it does not answer. `request` is consumed. */
int vm_ask(const struct host *host, const char *name, json_t *request, int msec, json_t **ret_answer,
           struct err *err);
/* The orai-vm that lends blocks of a copy here, if one does, is told to stop, for ever: 0 once it has ended.
 */
int vm_end_lending(const struct host *host, const char *name, struct err *err);
/* The orai-vm that shares a copy here, if one does, ends: whoever wants blocks gets them elsewhere. */
int vm_end_sharing(const struct host *host, const char *name, struct err *err);
/* What an orai-vm that failed left behind: RUN_DIR/failure.json. false: nothing. */
bool vm_last_words(const struct host *host, const char *name, struct err *ret);
/* Waits until orai-vm answers with one of `states` (NULL at the end; NULL list: any answer), or ends: then
 * what it left in RUN/vms/NAME/failure.json is the error. */
int vm_await(const struct host *host, const char *name, int pidfd, const char *const *states,
             int64_t deadline, struct err *err);
/* Tells the keeper that an orai-vm was started (pidfd is consumed, may be -1). */
void vm_watch(struct vms *vms, const char *name, int pidfd);
/* Lets the keeper try again with a VM that it gave up. */
void vm_retry(struct vms *vms, const char *name);

/* --- views (vm_view.c) --- */

/* As the API shows it. */
int vm_json(struct host *host, const char *name, json_t **ret, struct err *err);
/* "failed" with its reason, "crashed", or NULL: what the keeper knows of a VM without orai-vm. */
const char *vm_sorrow(struct vms *vms, const char *name, char reason[256]);
