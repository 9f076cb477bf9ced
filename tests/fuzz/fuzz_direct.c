/* SPDX-License-Identifier: Apache-2.0
 *
 * QEMU's migration stream, whose pages go into RAM directly. Beside memory errors: QEMU gets no more than
 * what came, and it makes no difference into which pieces the stream is cut.
 *
 *   u8 size of a piece, stream
 */
#include "base/macro.h"
#include "memory/direct.h"
#include "memory/qstream.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define RAM_SIZE (64 * (size_t)QSTREAM_PAGE_SIZE)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct result {
    int ram;
    uint8_t *qemu;
    size_t qemu_size, room;
};

static int to_qemu(void *arg, const void *data, size_t size, size_t *ret_written, struct err *err)
{
    struct result *result = arg;
    (void)err;
    if (size > result->room - result->qemu_size)
        abort();
    memcpy(result->qemu + result->qemu_size, data, size);
    result->qemu_size += size;
    *ret_written = size;
    return 0;
}

static void take(struct result *result, const uint8_t *data, size_t size, size_t piece)
{
    struct direct *direct;
    *result =
        (struct result){.ram = memfd_create("ram", MFD_CLOEXEC), .qemu = malloc(size + 1), .room = size};
    if (result->ram < 0 || ftruncate(result->ram, RAM_SIZE) < 0 || !result->qemu ||
        direct_new("ram", result->ram, RAM_SIZE, to_qemu, result, &direct, NULL) < 0)
        abort();
    for (size_t some; size; data += some, size -= some) {
        some = MIN(piece, size);
        if (direct_take(direct, data, some, NULL) < 0)
            abort();
    }
    direct_free(direct);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct result whole, cut;
    static uint8_t one[RAM_SIZE], other[RAM_SIZE];
    if (size < 2)
        return 0;
    take(&whole, data + 1, size - 1, size);
    take(&cut, data + 1, size - 1, 1 + data[0] * (size_t)67);
    /* What waits for its end is held back in both. */
    if (whole.qemu_size != cut.qemu_size || memcmp(whole.qemu, cut.qemu, whole.qemu_size) != 0)
        abort();
    if (pread(whole.ram, one, RAM_SIZE, 0) != RAM_SIZE || pread(cut.ram, other, RAM_SIZE, 0) != RAM_SIZE ||
        memcmp(one, other, RAM_SIZE) != 0)
        abort();
    free(whole.qemu);
    free(cut.qemu);
    close(whole.ram);
    close(cut.ram);
    return 0;
}
