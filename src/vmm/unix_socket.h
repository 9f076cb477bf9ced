/* SPDX-License-Identifier: Apache-2.0
 *
 * unix_socket: stream sockets in the file system between us and QEMU.
 */
#pragma once

#include "base/err.h"

#include <stdint.h>
#include <sys/types.h>

/* Listens at `path` (an old socket file is replaced), mode 0600, owned by uid:gid. Returns the descriptor or
 * -errno. */
int unix_listen(const char *path, uid_t uid, gid_t gid, struct err *err);
/* Connects, trying again until `deadline` (clock_now() units) while nobody listens there. */
int unix_connect(const char *path, int64_t deadline, struct err *err);
