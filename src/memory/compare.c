/* SPDX-License-Identifier: Apache-2.0 */
#include "memory/compare.h"

#include "base/endian.h"
#include "base/file.h"
#include "base/macro.h"
#include "base/zero.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <xxhash.h>

#define POPULATE_PAGES 1024U
#define WINDOW (2 * MiB) /* a huge page */

int ram_view_open(struct ram_view *view, int fd, uint64_t size, bool sparse, struct err *err)
{
    void *bytes = mmap(NULL, size, PROT_READ, MAP_SHARED, fd, 0);
    if (bytes == MAP_FAILED)
        return err_sys(err, errno, "cannot map the guest's memory");
    *view = (struct ram_view){.fd = fd, .bytes = bytes, .pages = size / COMPARE_PAGE, .sparse = sparse};
    return 0;
}

/* The first page at or after `page` that is made, or the RAM's end; view->hole is where the stretch ends. */
static uint64_t next_made(struct ram_view *view, uint64_t page)
{
    if (!view->sparse || (page >= view->data && page < view->hole))
        return page;
    off_t data = lseek(view->fd, (off_t)(page * COMPARE_PAGE), SEEK_DATA);
    if (data < 0 && errno == ENXIO)
        return view->pages;
    off_t hole = data < 0 ? -1 : lseek(view->fd, data, SEEK_HOLE);
    view->data = hole < 0 ? page : (uint64_t)data / COMPARE_PAGE;
    view->hole = hole < 0 ? view->pages : MIN((uint64_t)hole / COMPARE_PAGE, view->pages);
    return view->data;
}

bool ram_view_populate(struct ram_view *view)
{
    uint64_t from = next_made(view, view->populated), end = view->sparse ? view->hole : view->pages;
    if (from >= view->pages)
        return false;
    uint64_t count = MIN(end - from, (uint64_t)POPULATE_PAGES);
    /* A kernel before 5.14 does not know this: then the pause pays for the page faults. */
    if (count &&
        madvise((void *)(view->bytes + from * COMPARE_PAGE), count * COMPARE_PAGE, MADV_POPULATE_READ) < 0)
        count = view->pages - from;
    view->populated = from + count;
    return view->populated < view->pages;
}

void ram_view_close(struct ram_view *view)
{
    if (view->bytes)
        munmap((void *)view->bytes, view->pages * COMPARE_PAGE);
    *view = (struct ram_view){.fd = -1};
}

static uint64_t hash_page(const struct ram_view *ram, uint64_t page)
{
    return XXH3_64bits(ram->bytes + page * COMPARE_PAGE, COMPARE_PAGE);
}

/* The first page at or after `page` and before `end` that is not zero, or `end`. */
static uint64_t next_used(struct ram_view *ram, uint64_t page, uint64_t end)
{
    while ((page = next_made(ram, page)) < end && is_zero(ram->bytes + page * COMPARE_PAGE, COMPARE_PAGE))
        page++;
    return MIN(page, end);
}

void compare_hashes(struct ram_view *ram, uint64_t *page, uint8_t ret[COMPARE_MESSAGE], size_t *ret_size)
{
    uint64_t first = next_used(ram, *page, ram->pages), end = MIN(ram->pages, first + COMPARE_BATCH),
             i = first;
    put_le64(ret, first);
    for (; i < end && !is_zero(ram->bytes + i * COMPARE_PAGE, COMPARE_PAGE); i++)
        put_le64(ret + 8 + 8 * (i - first), hash_page(ram, i));
    *page = i;
    *ret_size = 8 + 8 * (size_t)(i - first);
}

void compare_done(struct compare *compare)
{
    ram_view_close(&compare->ram);
    free(compare->differ);
    compare->differ = NULL;
}

/* A memfd of huge pages knows no write(2). */
static int write_mapped(int fd, uint64_t page, const uint8_t bytes[COMPARE_PAGE])
{
    const uint64_t offset = page * COMPARE_PAGE, begin = offset / WINDOW * WINDOW;
    uint8_t *window = mmap(NULL, WINDOW, PROT_READ | PROT_WRITE, MAP_SHARED, fd, (off_t)begin);
    if (window == MAP_FAILED)
        return -errno;
    memcpy(window + (offset - begin), bytes, COMPARE_PAGE);
    munmap(window, WINDOW);
    return 0;
}

int compare_write(struct compare *compare, uint64_t page, const uint8_t bytes[COMPARE_PAGE], struct err *err)
{
    int r = file_pwrite_full(compare->ram.fd, bytes, COMPARE_PAGE, page * COMPARE_PAGE);
    if (r == -EINVAL)
        r = write_mapped(compare->ram.fd, page, bytes);
    return r < 0 ? err_sys(err, r, "cannot write the guest's memory") : 0;
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

/* What the source did not tell is zero there. */
static int check_gap(struct compare *compare, uint64_t end, struct err *err)
{
    int r = 0;
    while (r == 0 && (compare->next = next_used(&compare->ram, compare->next, end)) < end)
        r = add(compare, compare->next++, err);
    return r;
}

int compare_check(struct compare *compare, const uint8_t *message, size_t size, bool *ret_end,
                  struct err *err)
{
    size_t count = size < 8 ? 0 : (size - 8) / 8;
    uint64_t first = size < 8 ? 0 : get_le64(message), pages = compare->ram.pages;
    if (size < 8 || size % 8 || first < compare->next || first > pages || count > pages - first)
        return err_set(err, EPROTO, "the source's hashes are out of order");
    int r = check_gap(compare, first, err);
    for (size_t i = 0; r == 0 && i < count; i++)
        if (hash_page(&compare->ram, first + i) != get_le64(message + 8 + 8 * i))
            r = add(compare, first + i, err);
    if (r < 0)
        return r;
    compare->next = first + count;
    *ret_end = count == 0;
    return 0;
}
