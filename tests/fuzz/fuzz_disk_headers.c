/* SPDX-License-Identifier: Apache-2.0
 *
 * The headers of generation map, intent record and record of missing blocks, as they are and with their
 * checksums mended. What decodes, encodes to the same bytes.
 */
#include "disk/genmap.h"
#include "disk/intent.h"
#include "disk/missing.h"

#include "base/endian.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#define MAP_HASH 88u /* where the checksum lies */
#define INTENT_HASH 72u
#define MISSING_HASH 88u
static_assert(MISSING_HASH == MAP_HASH, "mended at once");

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(bool ok)
{
    if (!ok)
        abort();
}

static void try_map(const uint8_t *bytes, size_t size)
{
    struct genmap_header header;
    struct err err;
    if (genmap_header_decode(bytes, size, &header, &err) < 0) {
        check(err.code > 0 && err.text[0]);
        return;
    }
    uint8_t again[GENMAP_HEADER_SIZE];
    genmap_header_encode(&header, again);
    check(memcmp(again, bytes, MAP_HASH + 8) == 0);
}

static void try_intent(const uint8_t *bytes, size_t size)
{
    struct intent_header header;
    struct err err;
    if (intent_header_decode(bytes, size, &header, &err) < 0) {
        check(err.code > 0 && err.text[0]);
        return;
    }
    uint8_t again[INTENT_HEADER_SIZE];
    intent_header_encode(&header, again);
    check(memcmp(again, bytes, INTENT_HASH + 8) == 0);
}

static void try_missing(const uint8_t *bytes, size_t size)
{
    struct missing_header header;
    struct err err;
    if (missing_header_decode(bytes, size, &header, &err) < 0) {
        check(err.code > 0 && err.text[0]);
        return;
    }
    uint8_t again[MISSING_HEADER_SIZE];
    missing_header_encode(&header, again);
    check(memcmp(again, bytes, MISSING_HASH + 8) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint8_t mended[4096] = {0};
    try_map(data, size);
    try_intent(data, size);
    try_missing(data, size);
    memcpy(mended, data, size < sizeof mended ? size : sizeof mended);
    put_le64(mended + MAP_HASH, XXH3_64bits(mended, MAP_HASH));
    try_map(mended, sizeof mended);
    try_missing(mended, sizeof mended); /* its checksum lies in the same place */
    put_le64(mended + INTENT_HASH, XXH3_64bits(mended, INTENT_HASH));
    try_intent(mended, sizeof mended);
    return 0;
}
