/* SPDX-License-Identifier: Apache-2.0
 *
 * What a peer says of a guest's working set. Beside memory errors: no page of it is there twice, or none of
 * the guest's.
 */
#include "memory/qstream.h"
#include "memory/workset.h"

#include <stdlib.h>

#define PAGES UINT64_C(300)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct workset *workset;
    uint8_t seen[PAGES] = {0};
    if (workset_new(PAGES * QSTREAM_PAGE_SIZE, &workset, NULL) < 0)
        abort();
    int r = workset_decode(workset, data, size, NULL);
    if (r < 0 && workset_count(workset))
        abort();
    for (size_t i = 0; i < workset_count(workset); i++)
        if (workset_page(workset, i) >= PAGES || seen[workset_page(workset, i)]++)
            abort();
    workset_free(workset);
    return 0;
}
