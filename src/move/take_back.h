/* SPDX-License-Identifier: Apache-2.0
 *
 * take_back: a source's QEMU in post-copy, and nobody has its stream.
 */
#pragma once

#include "base/err.h"
#include "vmm/machine.h"

/* Has a QEMU in "postcopy-paused" connect again; the connection. */
int reconnect_qemu(const struct machine *machine, const struct qemu_env *env, struct err *err);
/* Ends its migration, so that its guest may be continued. */
int take_back_guest(const struct machine *machine, const struct qemu_env *env, struct err *err);
