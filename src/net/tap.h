/* SPDX-License-Identifier: Apache-2.0
 *
 * tap: a network interface of the host that is a guest's NIC on the other side. It is not persistent: it
 * vanishes with the last descriptor, ours or QEMU's.
 *
 * It takes several descriptors (IFF_MULTI_QUEUE), of which one at a time is in use: so a guest's NIC goes
 * from one QEMU to another while the interface, its bridge port, counters and addresses stay. Whoever is not
 * in use gets no frames. QEMU sets the size of the header anew when it starts, for the whole interface, so
 * the second QEMU starts with a *stand-in* of its own, and its descriptor joins the real interface when it
 * has done so.
 */
#pragma once

#include "base/err.h"
#include "base/id.h"

#include <net/if.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

/* "orai", 8 hex digits of the VM's id, the NIC's number. Returns `name`. */
const char *tap_name(const struct id *vm, size_t nic, char name[IFNAMSIZ]);
/* Makes the interface `name` up, with the MTU of `bridge` and joined to it ("" = no bridge). Frames carry a
 * virtio net header. Returns the descriptor (non-blocking) or -errno. */
int tap_open(const char *name, const char *bridge, struct err *err);
/* The descriptor of `name` that the process behind `pidfd` holds; ours from here on. -ENOENT if it has none.
 */
int tap_take(pid_t pid, int pidfd, const char *name, struct err *err);
/* Up, or down: then it takes frames from nobody, and gives none. */
int tap_set(const char *name, bool up, struct err *err);
/* Size of the virtio net header before each frame (10 or 12), 0 if there is none, or -errno. */
int tap_header_size(int fd);

/* Makes the stand-in for `name`: not up, on no bridge. Its descriptor is for the second QEMU. */
int tap_stand_in(const char *name, struct err *err);
/* The stand-in's descriptor becomes one of `name`, not in use; the stand-in is gone. -ENOTSUP when `name`
 * takes no second one. After an error the descriptor is of no use any more. */
int tap_join(int fd, const char *name, struct err *err);
/* Puts a descriptor into use, or out of it; what waits in it is then lost. One that is so already is fine. */
int tap_use(int fd, bool use, struct err *err);
