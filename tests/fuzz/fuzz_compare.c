/* SPDX-License-Identifier: Apache-2.0
 *
 * The source's hash messages, one after the other (u16 length before each), as the destination takes them. Beside memory
 * errors: pages that differ lie inside the RAM and ascend.
 */
#include "base/endian.h"
#include "base/macro.h"
#include "memory/compare.h"

#include <stdlib.h>
#include <sys/mman.h>

#define PAGES UINT64_C(64)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static int ram = -1;
    struct compare compare = {0};
    bool end = false;
    if (ram < 0 && ((ram = memfd_create("ram", 0)) < 0 || ftruncate(ram, (off_t)(PAGES * COMPARE_PAGE)) < 0 ||
                    pwrite(ram, "x", 1, 20 * COMPARE_PAGE) != 1))
        abort();
    if (ram_view_open(&compare.ram, ram, PAGES * COMPARE_PAGE, true, NULL) < 0)
        abort();
    while (size >= 2 && !end) {
        size_t length = MIN((size_t)get_le16(data), size - 2);
        if (compare_check(&compare, data + 2, length, &end, NULL) < 0)
            break;
        data += 2 + length;
        size -= 2 + length;
    }
    for (size_t i = 0; i < compare.count; i++)
        if (compare.differ[i] >= PAGES || (i > 0 && compare.differ[i] <= compare.differ[i - 1]))
            abort();
    compare_done(&compare);
    return 0;
}
