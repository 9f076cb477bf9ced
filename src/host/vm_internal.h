/* SPDX-License-Identifier: Apache-2.0
 *
 * vm_internal: the table of vm.h, shared by vm.c, vm_keeper.c and vm_news.c only.
 */
#pragma once

#include "host/vm.h"

#include <pthread.h>

enum watch {
    WATCH_IDLE,       /* nothing runs, nothing should */
    WATCH_CONNECTING, /* orai-vm lives, or has been started a moment ago */
    WATCH_OPEN,
    WATCH_BACKOFF, /* to be resumed at `due` */
};

struct vm {
    struct vm *next;
    char name[VM_NAME_SIZE];
    struct id id;

    /* Under the lock. */
    bool gone; /* removed: only the keeper may free it */
    bool desired;
    struct id move; /* from here, under way; zero = none */
    bool move_cancelled;
    struct id arrival; /* to here, announced last */
    bool expected;     /* someone started an orai-vm for it */
    int expected_pidfd;
    bool retry;  /* forget the failures */
    bool failed; /* given up after too many failures */
    char sorrow[256];
    bool crashed;   /* how the guest ended last, as orai-vm said */
    char state[16]; /* what orai-vm said last */

    /* The keeper's own. */
    enum watch watch;
    int fd, pidfd;
    int64_t due;     /* CONNECTING: next try, BACKOFF: resume */
    int64_t spawned; /* 0 = not by us */
    unsigned failures;
    bool ended; /* orai-vm said that it will end */
    bool boot;  /* the host has booted: to be started if its config says so */
};

struct claim {
    struct claim *next;
    char name[VM_NAME_SIZE];
    const char *what;
};

struct vms {
    struct host *host;
    pthread_mutex_t lock; /* then the registry's */
    struct vm *first;
    struct claim *claims;
    int wake; /* eventfd: the keeper looks at everything again */
    pthread_t keeper;
    bool running, stop;
    bool booted; /* the keeper's own: vm_note_boot() has not been called yet */
};

/* Locked; NULL when there is none. */
struct vm *vms_find(struct vms *vms, const char *name);
struct claim *vms_find_claim(struct vms *vms, const char *name);
void vms_wake(struct vms *vms);
void *vms_keep(void *arg); /* the thread; arg is the table */

/* --- what the keeper hears (vm_news.c); on its thread --- */

void vms_take_event(struct vms *vms, struct vm *vm, const json_t *event);
/* The answer to "status": what was missed before the watch began. */
void vms_take_status(struct vms *vms, struct vm *vm, const json_t *status);
/* orai-vm is gone and so is its move status: the epoch record says how the move ended. */
void vms_settle_move(struct vms *vms, struct vm *vm, const struct epoch_record *record);
/* QEMU ended while neither orai-vm nor we looked, perhaps with the whole host. */
void vms_take_crash(struct vms *vms, struct vm *vm);

/* --- starting with the host (vm_boot.c) --- */

/* Is this another boot than the one that was noted last? false when nobody can tell. */
bool vm_host_has_booted(const struct host *host);
/* Durably: the VMs of this boot have been started. */
int vm_note_boot(const struct host *host, struct err *err);
/* Does the VM's config say so? */
bool vm_starts_with_host(const struct host *host, const char *name);
