/* SPDX-License-Identifier: Apache-2.0
 *
 * Bitmaps of RAM as a hostile destination might send them: u16 length before each piece. Beside memory
 * errors: what is whole stands under its name once, and begins with its size.
 */
#include "base/endian.h"
#include "base/macro.h"
#include "memory/resync.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct resync resync = {0};
    struct resync names;
    if (resync_init(&names, data, size, NULL) == 0)
        resync_done(&names);
    while (size >= 2) {
        size_t length = MIN((size_t)get_le16(data), size - 2);
        /* As much memory as a real guest's, not as much as is allowed. */
        if (length < 8 || get_le64(data + 2) < (1U << 20))
            resync_take(&resync, data + 2, length, NULL);
        data += 2 + length;
        size -= 2 + length;
    }
    for (size_t i = 0; i < resync.count; i++) {
        if (resync.maps[i].got > resync.maps[i].size)
            abort();
        for (size_t j = 0; j < i; j++)
            if (memcmp(resync.maps[i].name, resync.maps[j].name, 1U + resync.maps[i].name[0]) == 0)
                abort();
    }
    resync_done(&resync);
    return 0;
}
