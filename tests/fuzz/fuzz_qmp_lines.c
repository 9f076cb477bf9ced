/* SPDX-License-Identifier: Apache-2.0
 *
 * QEMU's byte stream in pieces of every size: the same lines come out as when it comes at once.
 */
#include "vmm/qmp_lines.h"

#include "base/macro.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Sums up all lines that come out when at most `piece` bytes go in at a time. */
static uint64_t digest(const uint8_t *data, size_t size, size_t piece)
{
    struct qmp_lines lines = {0};
    uint64_t sum = 0;
    while (size) {
        size_t space, length;
        int error = 0;
        char *at = qmp_lines_space(&lines, &space, &error);
        if (!at)
            break;
        size_t n = MIN(MIN(space, piece), size);
        memcpy(at, data, n);
        qmp_lines_added(&lines, n);
        data += n;
        size -= n;
        for (const char *line; (line = qmp_lines_next(&lines, &length));) {
            assert(length > 0 && !memchr(line, '\n', length));
            for (size_t i = 0; i < length; i++)
                sum = sum * 31 + (uint8_t)line[i];
            sum = sum * 31 + 256;
        }
    }
    qmp_lines_done(&lines);
    return sum;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0)
        return 0;
    uint64_t whole = digest(data, size, size);
    assert(digest(data, size, 1) == whole);
    assert(digest(data, size, 1 + data[0] % 64) == whole);
    return 0;
}
