/* SPDX-License-Identifier: Apache-2.0
 *
 * vm_create: makes a VM: folder, disks, config, epoch record. The folder is built under another name and
 * renamed last, so the VM is there whole or not at all.
 */
#pragma once

#include "host/api.h"

/* Checks the request (openapi.json, VMRequest) and begins the operation. */
int vm_create(struct host *host, const struct request *request, struct id *ret_operation, struct err *err);

/* The newest versioned q35 in `own` (newest first) that every list of `others` has too. An empty list is a
 * host that cannot say. NULL when there is none. Pure. */
const char *vm_pick_machine(const json_t *own, const json_t *const *others, size_t count);
