/* SPDX-License-Identifier: Apache-2.0 */
#include "memory/workset.h"

#include "base/bits.h"
#include "base/endian.h"
#include "base/file.h"
#include "base/macro.h"
#include "memory/qstream.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

#define NAME "memory.workset"
#define VERSION 1U
#define HEAD 48U
#define HASH 40U /* where it stands */

static const char magic[8] = {'O', 'R', 'A', 'I', 'W', 'S', 'E', 'T'};

struct workset {
    uint64_t ram;  /* bytes */
    uint8_t *have; /* a bit for each page */
    size_t count;
    uint32_t pages[WORKSET_MOST];
};

int workset_new(uint64_t ram, struct workset **ret, struct err *err)
{
    struct workset *workset = malloc(sizeof *workset);
    uint8_t *have = calloc(1, ram / QSTREAM_PAGE_SIZE / 8 + 1);
    if (!workset || !have) {
        free(workset);
        free(have);
        return err_set(err, ENOMEM, "out of memory for the guest's working set");
    }
    workset->ram = ram;
    workset->have = have;
    workset->count = 0;
    *ret = workset;
    return 0;
}

void workset_free(struct workset *workset)
{
    if (!workset)
        return;
    free(workset->have);
    free(workset);
}

static uint64_t pages_of(const struct workset *workset)
{
    return MIN(workset->ram / QSTREAM_PAGE_SIZE, (uint64_t)UINT32_MAX);
}

void workset_add(struct workset *workset, uint64_t page)
{
    if (workset->count == WORKSET_MOST || page >= pages_of(workset) || get_bit(workset->have, page))
        return;
    set_bit(workset->have, page, true);
    workset->pages[workset->count++] = (uint32_t)page;
}

void workset_add_all(struct workset *workset, const struct workset *more)
{
    for (size_t i = 0; i < more->count; i++)
        workset_add(workset, more->pages[i]);
}

int workset_copy(const struct workset *workset, struct workset **ret, struct err *err)
{
    int r = workset_new(workset->ram, ret, err);
    if (r == 0)
        workset_add_all(*ret, workset);
    return r;
}

size_t workset_count(const struct workset *workset)
{
    return workset->count;
}

uint64_t workset_page(const struct workset *workset, size_t index)
{
    return workset->pages[index];
}

/* --- elsewhere ------------------------------------------------------------------------------------------ */

size_t workset_encode(const struct workset *workset, uint8_t ret[WORKSET_MESSAGE])
{
    for (size_t i = 0; i < workset->count; i++)
        put_le32(ret + 4 * i, workset->pages[i]);
    return 4 * workset->count;
}

int workset_decode(struct workset *workset, const uint8_t *payload, size_t size, struct err *err)
{
    bool good = size % 4 == 0 && size <= WORKSET_MESSAGE;
    for (size_t at = 0; good && at < size; at += 4)
        good = get_le32(payload + at) < pages_of(workset);
    if (!good)
        return err_set(err, EPROTO, "the guest's working set makes no sense");
    for (size_t at = 0; at < size; at += 4)
        workset_add(workset, get_le32(payload + at));
    return 0;
}

/* --- in the VM's folder --------------------------------------------------------------------------------- */

static void path_of(const char *folder, const char *suffix, char ret[PATH_MAX])
{
    snprintf(ret, PATH_MAX, "%s/" NAME "%s", folder, suffix);
}

static int replace(const char *folder, const uint8_t *file, size_t size, struct err *err)
{
    char path[PATH_MAX], new[PATH_MAX];
    path_of(folder, "", path);
    path_of(folder, ".new", new);
    _cleanup_close_ int fd = open(new, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    int r = fd < 0 ? -errno : file_write_full(fd, file, size);
    if (r == 0 &&
        rename(new, path) < 0) /* NOLINT(readability-suspicious-call-argument): it becomes the old one */
        r = -errno;
    if (r < 0 && fd >= 0)
        unlink(new);
    return r < 0 ? err_sys(err, r, "cannot write %s", path) : 0;
}

static uint64_t hash_of(const uint8_t *file, size_t size)
{
    return XXH3_64bits_withSeed(file + HEAD, size - HEAD, XXH3_64bits(file, HASH));
}

int workset_save(const struct workset *workset, const char *folder, const struct id *vm, struct err *err)
{
    size_t size = HEAD + 4 * workset->count;
    _cleanup_free_ uint8_t *file = calloc(1, HEAD + WORKSET_MESSAGE);
    if (!file)
        return err_set(err, ENOMEM, "out of memory for the guest's working set");
    memcpy(file, magic, sizeof magic);
    put_le32(file + 8, VERSION);
    put_le32(file + 12, (uint32_t)workset->count);
    memcpy(file + 16, vm->bytes, sizeof vm->bytes);
    put_le64(file + 32, workset->ram);
    workset_encode(workset, file + HEAD);
    put_le64(file + HASH, hash_of(file, size));
    return replace(folder, file, size, err);
}

int workset_load(struct workset *workset, const char *folder, const struct id *vm, struct err *err)
{
    char path[PATH_MAX];
    void *data = NULL;
    size_t size;
    path_of(folder, "", path);
    int r = file_load(path, HEAD + WORKSET_MESSAGE, &data, &size, err);
    _cleanup_free_ uint8_t *file = data;
    if (r < 0)
        return r;
    bool good = size >= HEAD && memcmp(file, magic, sizeof magic) == 0 && get_le32(file + 8) == VERSION &&
                size == HEAD + 4 * (size_t)get_le32(file + 12) &&
                memcmp(file + 16, vm->bytes, sizeof vm->bytes) == 0 && get_le64(file + 32) == workset->ram &&
                get_le64(file + HASH) == hash_of(file, size);
    if (!good || workset_decode(workset, file + HEAD, size - HEAD, NULL) < 0)
        return err_set(err, EBADMSG, "%s is not the working set of this VM", path);
    return 0;
}
