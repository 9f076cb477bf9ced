/* SPDX-License-Identifier: Apache-2.0
 *
 * verify: compares this host's copy of a VM with a peer's without sending either: `orai disk verify NAME
 * --against HOST`. One of the two may be the VM itself, running.
 *
 *   here                                              the peer's oraid
 *   what copy have you?  (GET /v1/vms/NAME/copy)  ->  lineage of each disk
 *   finds the newest generation that both have whole (lineage_shared); then, piece by piece:
 *   hashes its blocks
 *   which sums?  (POST /v1/vms/NAME/hashes)       ->  hashes the same ones; sums per MiB
 *   compares; where sums differ, the blocks' hashes -> block hashes
 *
 * The peer keeps nothing between two requests, and each request is bounded in work and time, so a comparison
 * that is abandoned leaves nothing behind. Both sides read slowly enough (`rate`), at the lowest priority.
 * Nothing is changed on either side, and no VM is claimed: moves and stops go on as ever. A block that is
 * written meanwhile gets a number above the common generation, and is not compared (disk/digest.h).
 *
 * Threads: the job runs in host->verifies; a request's hashing in a thread of its own, one at a time per
 * host.
 */
#pragma once

#include "base/id.h"
#include "disk/digest.h"
#include "host/host.h"
#include "host/peer.h"
#include "vmm/config.h"

#define VERIFY_KIND "verify"    /* of the operation */
#define VERIFY_RATE (200 * MiB) /* bytes per second, unless another one is asked for */
#define VERIFY_MIN_RATE MiB
#define VERIFY_MAX_RATE (UINT64_C(1) << 40)
#define VERIFY_EXTENTS 1024U         /* in one request at most */
#define VERIFY_SLICE_NS NSEC_PER_SEC /* a side hashes so long at most before it answers */

/* Starts the operation. -EBUSY while this VM is being compared. */
int verify_begin(struct host *host, const char *name, const struct peer *peer, uint64_t rate,
                 struct id *ret_operation, struct err *err);

/* --- what both sides use --- */

/* Opens disk number `index` of this host's copy; `ret_file` (may be NULL) gets its name in the VM's folder.
 */
int verify_open(struct host *host, const char *name, size_t index, struct digester **ret, char ret_file[64],
                struct err *err);
/* The thread that calls it gets the lowest priority for processor and disk, for good. */
void verify_be_humble(void);
/* Sleeps until `bytes` that were read since `began` are no more than `rate` allows. */
void verify_pace(int64_t began, uint64_t bytes, uint64_t rate);
