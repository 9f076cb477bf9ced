/* SPDX-License-Identifier: Apache-2.0 */
#include "memory/asked.h"

#include "base/macro.h"
#include "memory/qstream.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define CAME 1U
#define ASKED 2U
#define MOST_PAGES 512U /* of a request that is believed: QEMU asks for one page of its host's */

struct asked {
    pthread_mutex_t lock; /* for all that follows */
    struct requests requests;
    uint8_t *pages; /* CAME, ASKED */
    uint64_t missing;
    uint64_t newest; /* page of a request whose neighbours nobody wanted yet; 0: there is none */
    bool began, unsure;
};

int asked_new(const char *block, uint64_t size, struct asked **ret, struct err *err)
{
    struct asked *asked = calloc(1, sizeof *asked);
    if (asked)
        asked->pages = calloc(1, size / QSTREAM_PAGE_SIZE + 1);
    if (!asked || !asked->pages) {
        free(asked);
        return err_set(err, ENOMEM, "out of memory for the pages that are asked for");
    }
    requests_init(&asked->requests, block, size);
    pthread_mutex_init(&asked->lock, NULL);
    *ret = asked;
    return 0;
}

void asked_free(struct asked *asked)
{
    if (!asked)
        return;
    pthread_mutex_destroy(&asked->lock);
    free(asked->pages);
    free(asked);
}

/* With the lock held. */
static void ask(struct asked *asked, uint64_t page, uint64_t end)
{
    for (; page < end; page++) {
        asked->missing += asked->pages[page] == 0;
        asked->pages[page] |= ASKED;
    }
}

void asked_hear(struct asked *asked, const void *data, size_t size)
{
    struct page_request request;
    const uint8_t *bytes = data;
    pthread_mutex_lock(&asked->lock);
    while (requests_next(&asked->requests, &bytes, &size, &request)) {
        if (!request.ours || request.end > request.page + MOST_PAGES) {
            asked->unsure = true;
            continue;
        }
        ask(asked, request.page, request.end);
        asked->newest = request.page;
    }
    asked->unsure = asked->unsure || asked->requests.deaf;
    pthread_mutex_unlock(&asked->lock);
}

void asked_came(struct asked *asked, const uint8_t *block, uint64_t page)
{
    pthread_mutex_lock(&asked->lock);
    asked->began = true;
    if (page < asked->requests.pages &&
        memcmp(block, asked->requests.name, 1U + asked->requests.name[0]) == 0) {
        asked->missing -= asked->pages[page] == ASKED;
        asked->pages[page] |= CAME;
    }
    pthread_mutex_unlock(&asked->lock);
}

enum asked_state asked_state(struct asked *asked, uint64_t *ret_missing)
{
    pthread_mutex_lock(&asked->lock);
    enum asked_state state = asked->unsure    ? ASKED_UNSURE
                             : !asked->began  ? ASKED_EARLY
                             : asked->missing ? ASKED_MISSING
                                              : ASKED_IDLE;
    *ret_missing = asked->missing;
    pthread_mutex_unlock(&asked->lock);
    return state;
}

/* With the lock held: a request for these, after which they count as asked for. 0: there are none. */
static size_t request(struct asked *asked, uint64_t page, uint64_t end, uint8_t ret[REQUESTS_ROOM])
{
    ask(asked, page, end);
    return page == end ? 0
                       : requests_make(ret, (const char *)asked->requests.name + 1, page * QSTREAM_PAGE_SIZE,
                                       (uint32_t)(end - page) * QSTREAM_PAGE_SIZE);
}

size_t asked_neighbours(struct asked *asked, uint64_t most, uint8_t ret[REQUESTS_ROOM])
{
    pthread_mutex_lock(&asked->lock);
    uint64_t end = asked->requests.size || asked->unsure ? 0 : asked->newest;
    uint64_t page = end - MIN(end, MIN(most, MOST_PAGES));
    while (page < end && asked->pages[page])
        page++;
    if (end)
        asked->newest = 0;
    size_t size = request(asked, page, end, ret);
    pthread_mutex_unlock(&asked->lock);
    return size;
}

size_t asked_next(struct asked *asked, const struct workset *workset, size_t *index, uint64_t most,
                  uint8_t ret[REQUESTS_ROOM])
{
    size_t size = 0, count = workset_count(workset);
    pthread_mutex_lock(&asked->lock);
    bool may = !asked->requests.size && !asked->unsure && asked->missing < most;
    while (may && size == 0 && *index < count) {
        uint64_t page = workset_page(workset, (*index)++);
        if (page < asked->requests.pages && !asked->pages[page])
            size = request(asked, page, page + 1, ret);
    }
    pthread_mutex_unlock(&asked->lock);
    return size;
}
