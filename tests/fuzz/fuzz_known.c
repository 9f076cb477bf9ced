/* SPDX-License-Identifier: Apache-2.0
 *
 * The destination's list of what its checkpoint has (u16 length before each message), as the source takes it.
 * Beside memory errors: no more is known than the guest has pages, and each is found again by its hash's
 * page.
 */
#include "base/endian.h"
#include "base/macro.h"
#include "memory/known.h"

#include <stdlib.h>

#define PAGES UINT64_C(300)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const uint8_t page[KNOWN_PAGE] = {1};
    struct known *known;
    uint64_t found = 0;
    if (known_new(PAGES, 0, &known, NULL) < 0)
        abort();
    while (size >= 2) {
        size_t length = MIN((size_t)get_le16(data), size - 2);
        known_add(known, data + 2, length, NULL);
        data += 2 + length;
        size -= 2 + length;
    }
    if (known_count(known) > PAGES || (known_find(known, page, 5, &found) && found >= PAGES))
        abort();
    known_free(known);
    return 0;
}
