/* SPDX-License-Identifier: Apache-2.0
 *
 * vmview: how VMs are shown, by every verb that shows one.
 */
#pragma once

#include "cli/format.h"

#include <jansson.h>

extern const struct view view_vm;   /* one, in full */
extern const struct view view_vms;  /* a list */
extern const struct view view_move; /* the status of a move */

/* "web1 is running on a": where the guest of an API's VM is now, in words; `host` is the answering host's
 * name. malloc'ed. */
char *vm_whereabouts(const json_t *vm, const char *host);
