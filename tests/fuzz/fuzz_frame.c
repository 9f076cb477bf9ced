/* SPDX-License-Identifier: Apache-2.0
 *
 * One frame of the move protocol as a peer would send it: header, then the payload given to the decoder of
 * its type. Beside memory errors: what was decoded lies inside the input, and encodes to the same bytes where
 * the format leaves no choice.
 */
#include "disk/lineage.h"
#include "wire/frame.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(bool ok)
{
    if (!ok)
        abort();
}

static void try_run(const uint8_t *payload, size_t size)
{
    struct wire_run run;
    const uint8_t *data;
    size_t data_size;
    uint8_t again[WIRE_RUN_SIZE];
    if (wire_run_decode(payload, size, &run, &data, &data_size, NULL) < 0)
        return;
    check(run.count > 0 && run.block + run.count > run.block);
    check(data ? data == payload + WIRE_RUN_SIZE && data_size == size - WIRE_RUN_SIZE : data_size == 0);
    check(!data || data_size <= WIRE_RUN_MAX_BLOCKS * 4096u);
    wire_run_encode(&run, again);
    check(memcmp(again, payload, 20) == 0 && memcmp(again + 24, payload + 24, 8) == 0);
}

static void try_claim(const uint8_t *payload, size_t size)
{
    struct wire_claim claim;
    struct lineage *lineage;
    const uint8_t *bytes;
    size_t bytes_size;
    uint8_t again[WIRE_CLAIM_SIZE];
    if (wire_claim_decode(payload, size, &claim, &bytes, &bytes_size, NULL) < 0)
        return;
    check(bytes == payload + WIRE_CLAIM_SIZE && bytes_size == size - WIRE_CLAIM_SIZE);
    wire_claim_encode(&claim, again);
    check(memcmp(again, payload, sizeof again) == 0);
    if (lineage_decode(bytes, bytes_size, &lineage, NULL) == 0)
        lineage_free(lineage);
}

static void try_sums(const uint8_t *payload, size_t size)
{
    struct wire_sums sums;
    const uint8_t(*each)[WIRE_SUM_SIZE];
    uint8_t again[WIRE_SUMS_SIZE];
    if (wire_sums_decode(payload, size, &sums, &each, NULL) < 0)
        return;
    check(sums.count > 0 && sums.count <= WIRE_RUN_MAX_BLOCKS && sums.block + sums.count > sums.block);
    check((const uint8_t *)(each + sums.count) == payload + size);
    wire_sums_encode(&sums, again);
    check(memcmp(again, payload, sizeof again) == 0);
}

static void try_differ(const uint8_t *payload, size_t size)
{
    struct wire_differ differ;
    uint8_t again[WIRE_DIFFER_SIZE];
    if (wire_differ_decode(payload, size, &differ, NULL) < 0)
        return;
    wire_differ_encode(&differ, again);
    check(memcmp(again, payload, sizeof again) == 0);
}

static void try_newer(const uint8_t *payload, size_t size)
{
    struct wire_newer newer;
    const uint8_t *bits;
    size_t bits_size;
    uint8_t again[WIRE_NEWER_SIZE];
    if (wire_newer_decode(payload, size, &newer, &bits, &bits_size, NULL) < 0)
        return;
    check(bits + bits_size == payload + size);
    wire_newer_encode(&newer, again);
    check(memcmp(again, payload, sizeof again) == 0);
}

static void try_fetch(const uint8_t *payload, size_t size)
{
    struct wire_fetch fetch;
    uint8_t again[WIRE_FETCH_SIZE];
    if (wire_fetch_decode(payload, size, &fetch, NULL) < 0)
        return;
    check(fetch.count > 0 && fetch.count <= WIRE_FETCH_MAX_BLOCKS && fetch.block + fetch.count > fetch.block);
    wire_fetch_encode(&fetch, again);
    check(memcmp(again, payload, sizeof again) == 0);
}

static void try_clock(const uint8_t *payload, size_t size)
{
    struct wire_clock clock;
    uint8_t again[WIRE_CLOCK_SIZE];
    if (wire_clock_decode(payload, size, &clock, NULL) < 0)
        return;
    check(clock.stood >= 0 && clock.round_trip >= 0);
    wire_clock_encode(&clock, again);
    check(size == sizeof again && memcmp(again, payload, sizeof again) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct frame frame;
    struct wire_mark mark;
    uint8_t again[FRAME_HEADER_SIZE];
    if (size < FRAME_HEADER_SIZE || frame_decode(data, &frame, NULL) < 0)
        return 0;
    check(frame.length <= FRAME_MAX_PAYLOAD && strcmp(frame_type_name(frame.type), "unknown") != 0);
    frame_encode(&frame, again);
    check(memcmp(again, data, 5) == 0 && memcmp(again + 8, data + 8, 4) == 0 &&
          memcmp(again + 16, data + 16, 24) == 0);

    /* The length that the header announces is what the decoders get, as far as the input goes. */
    const uint8_t *payload = data + FRAME_HEADER_SIZE;
    size_t length = size - FRAME_HEADER_SIZE;
    if (frame.length < length)
        length = frame.length;
    if (frame.type == FRAME_RUN)
        try_run(payload, length);
    else if (frame.type == FRAME_MARK || frame.type == FRAME_MARKED)
        check(wire_mark_decode(payload, length, &mark, NULL) == 0 ? length == WIRE_MARK_SIZE
                                                                  : length != WIRE_MARK_SIZE);
    else if (frame.type == FRAME_LINEAGE || frame.type == FRAME_MISSING || frame.type == FRAME_HOT)
        try_claim(payload, length);
    else if (frame.type == FRAME_FETCH || frame.type == FRAME_FETCHED)
        try_fetch(payload, length);
    else if (frame.type == FRAME_SUMS)
        try_sums(payload, length);
    else if (frame.type == FRAME_DIFFER)
        try_differ(payload, length);
    else if (frame.type == FRAME_CLOCK)
        try_clock(payload, length);
    try_newer(payload, length);
    return 0;
}
