/* SPDX-License-Identifier: Apache-2.0 */
#include "memory/compare.h"

#include "base/endian.h"
#include "base/file.h"
#include "base/macro.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

#define CHUNK_PAGES 16u /* a buffer for so many fits every thread's stack */
#define CHUNK_BYTES (CHUNK_PAGES * COMPARE_PAGE)

/* The run of allocated pages at or after `page`; false when there is none. */
static bool next_data(int ram, uint64_t page, uint64_t pages, uint64_t *ret_first, uint64_t *ret_end)
{
    off_t data = page < pages ? lseek(ram, (off_t)(page * COMPARE_PAGE), SEEK_DATA) : -1;
    if (data < 0)
        return false;
    off_t hole = lseek(ram, data, SEEK_HOLE);
    uint64_t end = hole < 0 ? pages : ((uint64_t)hole + COMPARE_PAGE - 1) / COMPARE_PAGE;
    *ret_first = (uint64_t)data / COMPARE_PAGE;
    *ret_end = MIN(end, pages);
    return *ret_first < *ret_end;
}

/* Hashes of `count` pages from `first` on, at most CHUNK_PAGES. */
static int hash_pages(int ram, uint64_t first, size_t count, uint64_t *ret, struct err *err)
{
    uint8_t chunk[CHUNK_BYTES];
    int r = file_pread_full(ram, chunk, count * COMPARE_PAGE, first * COMPARE_PAGE);
    if (r < 0)
        return err_sys(err, r, "cannot read the guest's memory");
    for (size_t i = 0; i < count; i++)
        ret[i] = XXH3_64bits(chunk + i * COMPARE_PAGE, COMPARE_PAGE);
    return 0;
}

int compare_hashes(int ram, uint64_t ram_size, uint64_t *page, uint8_t ret[COMPARE_MESSAGE], size_t *ret_size,
                   struct err *err)
{
    uint64_t pages = ram_size / COMPARE_PAGE, first, end, hashes[CHUNK_PAGES];
    size_t count = 0;
    if (!next_data(ram, *page, pages, &first, &end)) {
        put_le64(ret, pages);
        *page = pages;
        *ret_size = 8;
        return 0;
    }
    end = MIN(end, first + COMPARE_BATCH);
    put_le64(ret, first);
    while (first + count < end) {
        size_t some = MIN((size_t)(end - first - count), (size_t)CHUNK_PAGES);
        int r = hash_pages(ram, first + count, some, hashes, err);
        if (r < 0)
            return r;
        for (size_t i = 0; i < some; i++)
            put_le64(ret + 8 + 8 * (count + i), hashes[i]);
        count += some;
    }
    *page = end;
    *ret_size = 8 + 8 * count;
    return 0;
}

void compare_init(struct compare *compare, int ram, uint64_t ram_size)
{
    *compare = (struct compare){.ram = ram, .pages = ram_size / COMPARE_PAGE};
}

void compare_done(struct compare *compare)
{
    free(compare->differ);
    compare->differ = NULL;
}

static int add(struct compare *compare, uint64_t page, struct err *err)
{
    if (compare->count == compare->room) {
        size_t room = compare->room ? 2 * compare->room : 256;
        uint64_t *more = realloc(compare->differ, room * sizeof *more);
        if (!more)
            return err_set(err, ENOMEM, "out of memory comparing the guest's memory");
        compare->differ = more;
        compare->room = room;
    }
    compare->differ[compare->count++] = page;
    return 0;
}

/* Compares `count` pages with the hashes at `theirs` (little-endian), or with zero when that is NULL. */
static int check_pages(struct compare *compare, uint64_t first, size_t count, const uint8_t *theirs,
                       struct err *err)
{
    static const uint8_t zeroes[COMPARE_PAGE];
    uint64_t zero = XXH3_64bits(zeroes, sizeof zeroes), ours[CHUNK_PAGES];
    int r = hash_pages(compare->ram, first, count, ours, err);
    for (size_t i = 0; r == 0 && i < count; i++)
        if (ours[i] != (theirs ? get_le64(theirs + 8 * i) : zero))
            r = add(compare, first + i, err);
    return r;
}

/* What the source did not tell is zero there. */
static int check_gap(struct compare *compare, uint64_t end, struct err *err)
{
    uint64_t first, stop;
    while (next_data(compare->ram, compare->next, end, &first, &stop)) {
        size_t some = MIN((size_t)(stop - first), (size_t)CHUNK_PAGES);
        int r = check_pages(compare, first, some, NULL, err);
        if (r < 0)
            return r;
        compare->next = first + some;
    }
    compare->next = end;
    return 0;
}

int compare_check(struct compare *compare, const uint8_t *message, size_t size, bool *ret_end,
                  struct err *err)
{
    size_t count = size < 8 ? 0 : (size - 8) / 8;
    uint64_t first = size < 8 ? 0 : get_le64(message);
    if (size < 8 || size % 8 || first < compare->next || first > compare->pages ||
        count > compare->pages - first)
        return err_set(err, EPROTO, "the source's hashes are out of order");
    int r = check_gap(compare, first, err);
    for (size_t done = 0; r == 0 && done < count; done += CHUNK_PAGES) {
        size_t some = MIN(count - done, (size_t)CHUNK_PAGES);
        r = check_pages(compare, first + done, some, message + 8 + 8 * done, err);
    }
    if (r < 0)
        return r;
    compare->next = first + count;
    *ret_end = count == 0;
    return 0;
}
