/* SPDX-License-Identifier: Apache-2.0
 *
 * share: several hosts help a VM whose disks still follow it. Its orai-vm says that it borrows; this host's
 * oraid asks the peers on which the VM has been whether they have a copy of that time, and tells orai-vm who
 * has; each of those starts an orai-vm that does nothing but share the copy, and ends when nobody asks.
 *
 *   orai-vm here   oraid here                              oraid there      orai-vm there
 *   "borrowing" -> POST /v1/vms/NAME/share              -> starts        -> "share"
 *   "fetch"     <- {"hosts": [...]}                     <- 200
 *   connects to it, as to the lender: move/fetch.h, move/lender.h
 *
 * Whom to believe: a peer is asked only when our disk's own lineage names it as a host where the VM ran. What
 * it sends afterwards is believed as the lender's is, for the generation that both copies came from.
 */
#pragma once

#include "host/host.h"

/* Looks for them, as a job; returns at once. */
void share_seek(struct host *host, const char *name);
