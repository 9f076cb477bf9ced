/* SPDX-License-Identifier: Apache-2.0
 *
 * The hashes lie in an array by page. A table with open addressing leads from a hash to its page: slots of
 * page + 1, at most half of them used.
 */
#include "memory/known.h"

#include "base/endian.h"
#include "base/macro.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#define MAX_PAGES (UINT64_C(1) << 31) /* 8 TiB */

struct known {
    uint64_t pages, seed;
    pthread_mutex_t lock;          /* guards what follows */
    uint8_t (*hashes)[KNOWN_HASH]; /* all zero: not told */
    uint32_t *slots;
    uint64_t mask, count;
};

void known_hash(uint64_t seed, const void *page, uint8_t ret[KNOWN_HASH])
{
    XXH128_canonical_t hash;
    XXH128_canonicalFromHash(&hash, XXH3_128bits_withSeed(page, KNOWN_PAGE, seed));
    memcpy(ret, hash.digest, KNOWN_HASH);
}

int known_new(uint64_t pages, uint64_t seed, struct known **ret, struct err *err)
{
    uint64_t slots = 16;
    while (slots < 2 * pages && pages <= MAX_PAGES)
        slots *= 2;
    struct known *known = pages <= MAX_PAGES ? calloc(1, sizeof *known) : NULL;
    if (!known)
        return err_set(err, ENOMEM, "out of memory for what the destination knows");
    *known = (struct known){.pages = pages, .seed = seed, .mask = slots - 1};
    pthread_mutex_init(&known->lock, NULL);
    known->hashes = calloc(pages + 1, sizeof *known->hashes); /* the kernel gives what is used of these */
    known->slots = calloc(slots, sizeof *known->slots);
    if (!known->hashes || !known->slots) {
        known_free(known);
        return err_set(err, ENOMEM, "out of memory for what the destination knows");
    }
    *ret = known;
    return 0;
}

void known_free(struct known *known)
{
    if (!known)
        return;
    pthread_mutex_destroy(&known->lock);
    free(known->hashes);
    free(known->slots);
    free(known);
}

static bool is_told(const struct known *known, uint64_t page)
{
    static const uint8_t none[KNOWN_HASH];
    return memcmp(known->hashes[page], none, KNOWN_HASH) != 0;
}

/* Its slot, or the empty one where it belongs. */
static uint32_t *slot_of(const struct known *known, const uint8_t hash[KNOWN_HASH])
{
    uint64_t at = get_le64(hash) & known->mask;
    while (known->slots[at] && memcmp(known->hashes[known->slots[at] - 1], hash, KNOWN_HASH) != 0)
        at = (at + 1) & known->mask;
    return &known->slots[at];
}

static int add(struct known *known, uint64_t page, const uint8_t hash[KNOWN_HASH], struct err *err)
{
    if (is_told(known, page))
        return err_set(err, EPROTO, "the destination names page %llu of its checkpoint twice",
                       (unsigned long long)page);
    memcpy(known->hashes[page], hash, KNOWN_HASH);
    uint32_t *slot = slot_of(known, hash);
    if (!*slot)
        *slot = (uint32_t)(page + 1);
    known->count++;
    return 0;
}

int known_add(struct known *known, const uint8_t *message, size_t size, struct err *err)
{
    size_t count = size < 8 ? 0 : (size - 8) / KNOWN_HASH;
    uint64_t first = size < 8 ? 0 : get_le64(message);
    if (count == 0 || count > KNOWN_BATCH || (size - 8) % KNOWN_HASH || first >= known->pages ||
        count > known->pages - first)
        return err_set(err, EPROTO, "the destination's list of what it has in its checkpoint makes no sense");
    int r = 0;
    pthread_mutex_lock(&known->lock);
    for (size_t i = 0; r == 0 && i < count; i++)
        r = add(known, first + i, message + 8 + KNOWN_HASH * i, err);
    pthread_mutex_unlock(&known->lock);
    return r;
}

bool known_find(struct known *known, const void *page, uint64_t hint, uint64_t *ret)
{
    uint8_t hash[KNOWN_HASH];
    if (known_count(known) == 0)
        return false;
    known_hash(known->seed, page, hash);
    pthread_mutex_lock(&known->lock);
    bool same = hint < known->pages && memcmp(known->hashes[hint], hash, KNOWN_HASH) == 0;
    uint32_t found = same ? (uint32_t)(hint + 1) : *slot_of(known, hash);
    pthread_mutex_unlock(&known->lock);
    if (found)
        *ret = found - 1;
    return found > 0;
}

uint64_t known_count(struct known *known)
{
    pthread_mutex_lock(&known->lock);
    uint64_t count = known->count;
    pthread_mutex_unlock(&known->lock);
    return count;
}
