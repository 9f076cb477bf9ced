/* SPDX-License-Identifier: Apache-2.0
 *
 * The return path of a peer, at the source: what it asks for. Beside memory errors: in pieces it says the
 * same as in one, and nothing is missing once every page has come.
 */
#include "memory/asked.h"
#include "memory/qstream.h"

#include <stdlib.h>

#define PAGES 64U

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void come(struct asked *asked, uint64_t page)
{
    asked_came(asked, (const uint8_t *)"\3ram", page);
}

static bool same(struct asked *one, struct asked *other)
{
    uint64_t missing[2];
    return asked_state(one, &missing[0]) == asked_state(other, &missing[1]) && missing[0] == missing[1];
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct asked *whole, *pieces, *late;
    if (asked_new("ram", PAGES * QSTREAM_PAGE_SIZE, &whole, NULL) < 0 ||
        asked_new("ram", PAGES * QSTREAM_PAGE_SIZE, &pieces, NULL) < 0 ||
        asked_new("ram", PAGES * QSTREAM_PAGE_SIZE, &late, NULL) < 0)
        abort();
    asked_hear(whole, data, size);
    for (size_t at = 0; at < size; at++)
        asked_hear(pieces, data + at, 1);
    come(whole, 0);
    come(pieces, 0);
    come(late, PAGES);
    if (!same(whole, pieces))
        abort();
    for (uint64_t page = 0; page < PAGES; page++) {
        come(whole, page);
        come(whole, page);
        come(late, page);
    }
    asked_hear(late, data, size); /* all of it has gone */
    if (!same(whole, late))
        abort();
    uint8_t ours[REQUESTS_ROOM];
    if (asked_neighbours(whole, PAGES, ours) || asked_neighbours(late, PAGES, ours)) /* all have come */
        abort();
    if (asked_neighbours(pieces, 8, ours) > sizeof ours || asked_neighbours(pieces, 8, ours))
        abort();
    asked_free(whole);
    asked_free(pieces);
    asked_free(late);
    return 0;
}
