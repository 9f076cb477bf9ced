/* SPDX-License-Identifier: Apache-2.0
 *
 * QEMU's migration stream and its return path, in pieces, past the zero pages that are kept away. Beside
 * memory errors: until QEMU asks, it gets all but them.
 *
 *   u8 size of a piece, u8 size of the return path, return path, stream
 */
#include "base/macro.h"
#include "memory/holes.h"
#include "memory/qstream.h"

#include <errno.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static size_t written;

static int write_to_qemu(void *arg, const void *data, size_t size, size_t *ret_written, struct err *err)
{
    const size_t *slow = arg;
    *ret_written = *slow ? size / 2 : size;
    written += *ret_written;
    return *slow && size > 1 ? err_set(err, EINTR, "interrupted") : 0;
}

static void take(struct holes *holes, const uint8_t *data, size_t size, size_t piece)
{
    for (size_t some; size; data += some, size -= some) {
        some = MIN(piece, size);
        if (holes_take(holes, data, some, NULL) < 0)
            abort();
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct holes *holes;
    if (size < 2 || size < 2U + data[1])
        return 0;
    size_t piece = 1 + data[0] * (size_t)67, back = data[1], slow = 0;
    const uint8_t *stream = data + 2 + back;
    size -= 2 + back;
    written = 0;
    if (holes_new("ram", 96 * MiB, write_to_qemu, &slow, &holes, NULL) < 0)
        abort();
    take(holes, stream, size / 2, piece);
    size_t kept = holes_kept(holes) * QSTREAM_ZERO_RECORD;
    if (kept && written + kept > size / 2) /* less with a page that comes twice, or a record that is cut */
        abort();
    for (size_t at = 0; at < back; at++)
        if (holes_back(holes, data + 2 + at, 1, NULL) < 0)
            abort();
    take(holes, stream + size / 2, size - size / 2, piece);
    slow = 1;
    holes_take(holes, stream, MIN(size, (size_t)64), NULL);
    slow = 0;
    if (holes_take(holes, "", 0, NULL) < 0)
        abort();
    holes_free(holes);
    return 0;
}
