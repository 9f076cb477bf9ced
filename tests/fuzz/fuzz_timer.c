/* SPDX-License-Identifier: Apache-2.0
 *
 * QEMU's migration stream, in which the guest's clocks are set. Beside memory errors: it makes no difference
 * into which pieces the stream is cut; what is set forward by nothing is as it came; what is set forward has
 * at most one section more.
 *
 *   u8 size of a piece, stream
 */
#include "base/macro.h"
#include "memory/timer.h"

#include <stdlib.h>
#include <string.h>

#define SECTION 48U

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct result {
    uint8_t *qemu;
    size_t qemu_size, room;
    struct timer_shift shift;
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

static struct timer_shift shift(void *arg, bool loads)
{
    (void)loads;
    return ((struct result *)arg)->shift;
}

static void take(struct result *result, const uint8_t *data, size_t size, size_t piece, int64_t forward)
{
    struct timer *timer;
    *result = (struct result){.qemu = malloc(size + SECTION),
                              .room = size + SECTION,
                              .shift = {.nsec = forward, .ticks = 2 * forward}};
    if (!result->qemu || timer_new(to_qemu, result, shift, result, &timer, NULL) < 0)
        abort();
    for (size_t some; size; data += some, size -= some) {
        some = MIN(piece, size);
        if (timer_take(timer, data, some, NULL) < 0)
            abort();
    }
    if (timer_let_go(timer, NULL) < 0 || timer_finish(timer, NULL) < 0 || timer_holds(timer))
        abort();
    timer_free(timer);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct result whole, cut, same;
    if (size < 2)
        return 0;
    const uint8_t *stream = data + 1;
    take(&whole, stream, size - 1, size, 123456789);
    take(&cut, stream, size - 1, 1 + data[0], 123456789);
    take(&same, stream, size - 1, size, 0);
    if (whole.qemu_size != cut.qemu_size || memcmp(whole.qemu, cut.qemu, whole.qemu_size) != 0)
        abort();
    /* What waits for its end is held back. */
    if (same.qemu_size > size - 1 || memcmp(same.qemu, stream, same.qemu_size) != 0)
        abort();
    if (whole.qemu_size != same.qemu_size && whole.qemu_size != same.qemu_size + SECTION)
        abort();
    free(whole.qemu);
    free(cut.qemu);
    free(same.qemu);
    return 0;
}
