/* SPDX-License-Identifier: Apache-2.0
 *
 * qmp_lines: cuts QEMU's byte stream into messages, one per line (docs/interop/qmp-spec: every message ends
 * with CRLF, and no raw line break stands inside one). Pure; the bytes may be a hostile QEMU's.
 */
#pragma once

#include "base/json.h"

#include <stddef.h>

#define QMP_LINE_MAX JSON_MAX_SIZE

struct qmp_lines {
    char *data;
    size_t size, capacity; /* bytes held, bytes allocated */
    size_t scanned;        /* no line end stands before this offset */
    size_t taken;          /* bytes of lines that were handed out already */
};

void qmp_lines_done(struct qmp_lines *lines);
/* Room for at least one byte more: *ret_space bytes at the returned address; NULL with -EMSGSIZE or -ENOMEM
 * in *ret_error when a line grows beyond QMP_LINE_MAX. Lines handed out before are void from here on. */
char *qmp_lines_space(struct qmp_lines *lines, size_t *ret_space, int *ret_error);
/* `count` bytes were put there. */
void qmp_lines_added(struct qmp_lines *lines, size_t count);
/* The next whole line without its line end, NULL when there is none yet. Empty lines are skipped. */
const char *qmp_lines_next(struct qmp_lines *lines, size_t *ret_size);
