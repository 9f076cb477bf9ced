/* SPDX-License-Identifier: Apache-2.0
 *
 * options: orai-vm's command line.
 */
#pragma once

#include "base/err.h"
#include "base/id.h"
#include "move/move.h"

#include <stdbool.h>

enum vm_mode { MODE_START, MODE_ARRIVE, MODE_RESUME, MODE_SHARE, MODE_KEEP_RAM };

struct vm_options {
    const char *state_dir, *vm_dir, *run_dir, *host_name;
    const char *qemu;      /* "qemu-system-x86_64" */
    const char *firmware;  /* folder */
    const char *qemu_user; /* NULL: orai-qemu if there is such a user, else our own */
    bool faults;
    enum vm_mode mode;
    bool fork_old_copy;      /* start */
    struct move_peer source; /* arrive, share: name is not known */
    struct id vm;            /* arrive, share: zero when vm.json must say it; keep-ram */
    uint64_t epoch;          /* keep-ram: in which the VM left */
    uint64_t ram_bytes;      /* keep-ram */
};

extern const char options_help[];

/* 0, or -EINVAL with what is wrong. *ret_text: what --help or --version print, else NULL. */
int options_parse(int argc, char **argv, struct vm_options *ret, const char **ret_text, struct err *err);
