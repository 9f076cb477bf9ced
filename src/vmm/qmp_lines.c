/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/qmp_lines.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define CHUNK 4096U
#define KEEP 65536U /* above this the memory goes once it is empty */

void qmp_lines_done(struct qmp_lines *lines)
{
    free(lines->data);
    *lines = (struct qmp_lines){0};
}

/* Drops what was handed out, and with it the memory of an unusually long message. */
static void compact(struct qmp_lines *lines)
{
    lines->size -= lines->taken;
    lines->scanned -= lines->taken;
    if (lines->size == 0 && lines->capacity > KEEP) {
        qmp_lines_done(lines);
        return;
    }
    if (lines->taken && lines->size)
        memmove(lines->data, lines->data + lines->taken, lines->size);
    lines->taken = 0;
}

char *qmp_lines_space(struct qmp_lines *lines, size_t *ret_space, int *ret_error)
{
    compact(lines);
    if (lines->size >= QMP_LINE_MAX) {
        *ret_error = -EMSGSIZE;
        return NULL;
    }
    if (lines->capacity == lines->size) {
        size_t capacity = lines->capacity ? 2 * lines->capacity : CHUNK;
        char *data = realloc(lines->data, capacity);
        if (!data) {
            *ret_error = -ENOMEM;
            return NULL;
        }
        lines->data = data;
        lines->capacity = capacity;
    }
    *ret_space = lines->capacity - lines->size;
    return lines->data + lines->size;
}

void qmp_lines_added(struct qmp_lines *lines, size_t count)
{
    lines->size += count;
}

const char *qmp_lines_next(struct qmp_lines *lines, size_t *ret_size)
{
    while (lines->scanned < lines->size) {
        char *start = lines->data + lines->taken;
        char *end = memchr(lines->data + lines->scanned, '\n', lines->size - lines->scanned);
        if (!end) {
            lines->scanned = lines->size;
            return NULL;
        }
        size_t size = (size_t)(end - start);
        lines->taken += size + 1;
        lines->scanned = lines->taken;
        if (size && start[size - 1] == '\r')
            size--;
        if (size) {
            *ret_size = size;
            return start;
        }
    }
    return NULL;
}
