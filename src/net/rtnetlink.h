/* SPDX-License-Identifier: Apache-2.0
 *
 * rtnetlink: what of a network interface only the kernel's route netlink can change (rtnetlink(7)).
 */
#pragma once

#include "base/err.h"

/* Removes the interface, whoever holds descriptors of it. -ENODEV when there is none. */
int link_delete(const char *name, struct err *err);
/* Frames go to the driver at once, with no queue of the kernel's before it: "noqueue". Before the interface
 * is up. */
int link_without_queue(const char *name, struct err *err);
