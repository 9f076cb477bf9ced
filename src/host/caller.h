/* SPDX-License-Identifier: Apache-2.0
 *
 * caller: files that a local client names are opened with that client's rights, not with root's: members of
 * the group orai may use VMs, but not read what only root may (through a base image, say).
 *
 * Threads: any; the calling thread's file-system identity is changed for the moment of the open only.
 */
#pragma once

#include "base/err.h"
#include "host/api.h"

#include <stdint.h>
#include <sys/types.h>

/* Opens for reading. `what` names the file in the error ("the image"). */
int caller_open(const struct credentials *caller, const char *path, const char *what, int *ret_fd,
                struct err *err);
/* Whether the client may write to the block device, and nobody else has it in use; gives its size in bytes
 * and its number. The path must be one that only root can make lead elsewhere: it is opened again later, with
 * root's rights. */
int caller_check_device(const struct credentials *caller, const char *path, uint64_t *ret_size,
                        dev_t *ret_device, struct err *err);
