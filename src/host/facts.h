/* SPDX-License-Identifier: Apache-2.0
 *
 * facts: what this host's QEMU can do. Asking it takes a moment, so the answer is kept until QEMU's file
 * changes (an upgrade), in a file that orai-vm looks into as well. Threads: any.
 */
#pragma once

#include "base/err.h"

#include <jansson.h>

struct qemu_facts;

struct qemu_facts *qemu_facts_new(const char *binary, const char *state_dir);
void qemu_facts_free(struct qemu_facts *facts);
/* {"version", "kvm", "why", "machines"}; a QEMU that cannot be asked is null with the reason in "why". */
json_t *qemu_facts_json(struct qemu_facts *facts);
