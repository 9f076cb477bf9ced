/* SPDX-License-Identifier: Apache-2.0 */
#include "memory/again.h"

#include "base/bits.h"
#include "memory/qstream.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

struct again {
    uint8_t name[256]; /* of the block, as it stands in a record */
    uint64_t pages;
    uint8_t *came; /* a bit for each */
    pthread_mutex_t lock;
    struct workset *twice;
};

int again_new(const char *block, uint64_t ram, struct again **ret, struct err *err)
{
    struct again *again = calloc(1, sizeof *again);
    if (!again)
        return err_set(err, ENOMEM, "out of memory for the guest's working set");
    assert(strlen(block) < sizeof again->name);
    again->name[0] = (uint8_t)strlen(block);
    memcpy(again->name + 1, block, again->name[0]);
    again->pages = ram / QSTREAM_PAGE_SIZE;
    again->came = calloc(1, again->pages / 8 + 1);
    pthread_mutex_init(&again->lock, NULL);
    int r = again->came ? workset_new(ram, &again->twice, err)
                        : err_set(err, ENOMEM, "out of memory for the guest's working set");
    if (r < 0)
        again_free(again);
    else
        *ret = again;
    return r;
}

void again_free(struct again *again)
{
    if (!again)
        return;
    pthread_mutex_destroy(&again->lock);
    workset_free(again->twice);
    free(again->came);
    free(again);
}

void again_came(struct again *again, const uint8_t *block, uint64_t page)
{
    if (page >= again->pages || memcmp(block, again->name, 1U + again->name[0]) != 0)
        return;
    if (!get_bit(again->came, page)) {
        set_bit(again->came, page, true);
        return;
    }
    pthread_mutex_lock(&again->lock);
    workset_add(again->twice, page);
    pthread_mutex_unlock(&again->lock);
}

void again_add(struct again *again, struct workset *workset)
{
    pthread_mutex_lock(&again->lock);
    workset_add_all(workset, again->twice);
    pthread_mutex_unlock(&again->lock);
}
