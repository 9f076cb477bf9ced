/* SPDX-License-Identifier: Apache-2.0
 *
 * epoch: who may run the guest. VM_DIR/epoch.json, replaced durably at every change (file_replace), is this
 * host's knowledge of the newest hand-over; docs/design "Epochs". It is read before anything is started.
 *
 *   OWNER      this host holds `epoch`; only then may the guest run here
 *   COMMITTED  this host wrote "epoch is the peer's" and has not heard the peer's answer: the guest is paused
 *              here, and neither runs nor is dropped until the peer answers or a human decides
 *   REPLICA    the guest is elsewhere (`peer`); this copy is for deltas
 *   ARRIVING   a move to here is under way; `epoch` is what we would hold. `ready` once everything is durable
 * here `refused`: the newest epoch that this host durably refused; a commit for it is answered "refused" for
 * ever.
 */
#pragma once

#include "base/err.h"
#include "base/id.h"
#include "base/tls.h"

#include <stdbool.h>
#include <stdint.h>

#define EPOCH_MAX (UINT64_C(1) << 62) /* JSON's integers have a sign */

enum epoch_role { EPOCH_OWNER = 1, EPOCH_COMMITTED, EPOCH_REPLICA, EPOCH_ARRIVING };

struct epoch_record {
    uint64_t epoch;
    enum epoch_role role;
    bool ready;       /* ARRIVING */
    bool guest_runs;  /* COMMITTED, ARRIVING: the guest is to be continued, not left paused */
    bool lent;        /* COMMITTED, REPLICA: `peer` fetches blocks from here; until it has them all, only here
                         they are */
    bool borrowed;    /* ARRIVING, OWNER: `peer` lends the disks' blocks to us */
    bool memory_away; /* ARRIVING, OWNER: some of the running guest's memory is only at `peer`; COMMITTED:
                         some of the peer's is only here, in QEMU */
    bool forked;      /* OWNER by a human's decision to run an old copy */
    uint64_t refused; /* 0 = none */
    uint64_t was;     /* ARRIVING: the epoch that this copy holds should nothing come of it */
    struct id move;   /* the try that made this record; zero at create */
    struct {          /* the other host: COMMITTED, REPLICA, ARRIVING */
        char name[64];
        char address[256];
        uint16_t port;
        struct fingerprint fingerprint;
    } peer;
    struct fingerprint
        from; /* whence the VM came last, if ever; it may still ask, wherever the VM is by now */
};

/* The record in memory and its file. One thread at a time. */
struct epoch;

/* -ENOENT when the folder has none (epoch_create makes one; -EEXIST when there is one). A damaged file is
 * -EBADMSG: nothing in it is ever guessed. */
int epoch_open(const char *vm_dir, struct epoch **ret, struct err *err);
int epoch_create(const char *vm_dir, const struct epoch_record *first, struct epoch **ret, struct err *err);
void epoch_free(struct epoch *epoch);
const struct epoch_record *epoch_get(const struct epoch *epoch);
/* Durable before it returns; on failure the old record holds in memory and on disk. Neither `epoch`
 * (but from ARRIVING) nor `refused` ever shrinks (-EINVAL). */
int epoch_set(struct epoch *epoch, const struct epoch_record *record, struct err *err);
const char *epoch_role_name(enum epoch_role role);
