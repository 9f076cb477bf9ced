/* SPDX-License-Identifier: Apache-2.0
 *
 * A lineage from a peer. Beside memory errors: what decodes, encodes to the same bytes; comparing it with
 * itself stays within it. A checksum keeps the fuzzer out, so the bytes are tried with it mended too.
 */
#include "disk/lineage.h"

#include "base/endian.h"

#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(bool ok)
{
    if (!ok)
        abort();
}

static void try(const uint8_t *bytes, size_t size)
{
    struct lineage *lineage;
    struct err err;
    if (lineage_decode(bytes, size, &lineage, &err) < 0) {
        check(err.code > 0 && err.text[0]);
        return;
    }
    void *again;
    size_t again_size;
    check(lineage_encode(lineage, &again, &again_size) == 0);
    check(again_size == size && memcmp(again, bytes, size) == 0);
    struct lineage_base base;
    lineage_compare(lineage, lineage, &base);
    check(base.base == 0 || lineage_find(lineage, base.base));
    check(base.reached == 0 || lineage_find(lineage, base.reached));
    check(base.cursor <= lineage->size / 4096 + 1);
    free(again);
    lineage_free(lineage);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    try(data, size);
    if (size < 72)
        return 0;
    uint8_t *mended = malloc(size);
    memcpy(mended, data, size);
    put_le32(mended + 12, (uint32_t)size);
    put_le32(mended + 52, (uint32_t)((size - 72) / 96));
    put_le64(mended + size - 8, XXH3_64bits(mended, size - 8));
    try(mended, size);
    free(mended);
    return 0;
}
