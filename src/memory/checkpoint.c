/* SPDX-License-Identifier: Apache-2.0 */
#include "memory/checkpoint.h"

#include "base/endian.h"
#include "base/file.h"
#include "base/log.h"
#include "base/macro.h"
#include "base/zero.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

#define NAME "memory.checkpoint"
#define VERSION 1U
#define HEAD 4096U /* pages lie aligned behind it */
#define SLICE (MiB)
#define PIECE (2 * MiB) /* of RAM; huge pages are given back whole */
#define SLICE_PAGES (SLICE / KNOWN_PAGE)

static const char magic[8] = {'O', 'R', 'A', 'I', 'C', 'K', 'P', 'T'};

static void path_of(const char *folder, const char *suffix, char ret[PATH_MAX])
{
    snprintf(ret, PATH_MAX, "%s/" NAME "%s", folder, suffix);
}

/* --- saving --------------------------------------------------------------------------------------------- */

/* So many bytes may be taken: a tenth of the file system stays free. */
static bool has_room(int fd, uint64_t bytes)
{
    struct statvfs fs;
    if (fstatvfs(fd, &fs) < 0)
        return false;
    uint64_t reserve = (uint64_t)fs.f_blocks * fs.f_frsize / 10;
    return (uint64_t)fs.f_bavail * fs.f_frsize >= reserve + bytes;
}

static int write_head(int fd, const struct checkpoint_head *head)
{
    uint8_t bytes[HEAD] = {0};
    memcpy(bytes, magic, sizeof magic);
    put_le32(bytes + 8, VERSION);
    memcpy(bytes + 16, head->vm.bytes, sizeof head->vm.bytes);
    put_le64(bytes + 32, head->epoch);
    put_le64(bytes + 40, head->ram);
    return file_pwrite_full(fd, bytes, sizeof bytes, 0);
}

/* The runs of pages in a slice that are not zero. */
static int write_slice(int fd, const uint8_t *ram, uint64_t offset, uint64_t size)
{
    int r = 0;
    for (uint64_t at = 0; r == 0 && at < size;) {
        uint64_t from = at;
        while (at < size && !is_zero(ram + at, KNOWN_PAGE))
            at += KNOWN_PAGE;
        if (at > from)
            r = file_pwrite_full(fd, ram + from, at - from, HEAD + offset + from);
        while (at < size && is_zero(ram + at, KNOWN_PAGE))
            at += KNOWN_PAGE;
    }
    return r;
}

/* What the memfd has no pages for is zero. */
static int write_ram(int fd, int ram_fd, uint64_t size)
{
    const uint8_t *ram = mmap(NULL, size, PROT_READ, MAP_SHARED, ram_fd, 0);
    if (ram == MAP_FAILED)
        return -errno;
    int r = 0;
    for (uint64_t at = 0; r == 0 && at < size; at += PIECE) {
        off_t data = lseek(ram_fd, (off_t)at, SEEK_DATA);
        if (data < 0)
            break;
        at = (uint64_t)data / PIECE * PIECE;
        uint64_t some = MIN(PIECE, size - at);
        r = has_room(fd, some) ? write_slice(fd, ram + at, at, some) : -ENOSPC;
        if (r == 0 &&
            fallocate(ram_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)at, (off_t)some) < 0)
            r = -errno;
    }
    munmap((void *)ram, size);
    return r;
}

int checkpoint_save(const char *folder, int ram_fd, const struct checkpoint_head *head, struct err *err)
{
    char path[PATH_MAX], new[PATH_MAX];
    struct stat st;
    path_of(folder, "", path);
    path_of(folder, ".new", new);
    checkpoint_remove(folder);
    _cleanup_close_ int fd = open(new, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0)
        return err_sys(err, errno, "cannot make %s", new);
    int r = fstat(ram_fd, &st) < 0 ? -errno : 0;
    if (r == 0 && ((uint64_t)st.st_size < head->ram || head->ram % KNOWN_PAGE))
        r = -EINVAL;
    if (r == 0 && !has_room(fd, (uint64_t)st.st_blocks * 512))
        r = -ENOSPC;
    if (r == 0)
        r = write_head(fd, head);
    if (r == 0)
        r = write_ram(fd, ram_fd, head->ram);
    if (r == 0 && ftruncate(fd, (off_t)(HEAD + head->ram)) < 0)
        r = -errno;
    if (r == 0 &&
        rename(new, path) < 0) /* NOLINT(readability-suspicious-call-argument): it becomes the old one */
        r = -errno;
    if (r < 0)
        unlink(new);
    return r < 0 ? err_sys(err, r, "cannot write %s", path) : 0;
}

uint64_t checkpoint_bytes(const char *folder)
{
    char path[PATH_MAX];
    struct stat st;
    path_of(folder, "", path);
    return lstat(path, &st) == 0 && S_ISREG(st.st_mode) ? (uint64_t)st.st_blocks * 512 : 0;
}

void checkpoint_remove(const char *folder)
{
    char path[PATH_MAX];
    path_of(folder, "", path);
    unlink(path);
    path_of(folder, ".new", path); /* of a try that was cut short */
    unlink(path);
}

/* --- using ---------------------------------------------------------------------------------------------- */

struct checkpoint {
    int fd;
    uint64_t pages, seed;
    char path[PATH_MAX];
    pthread_t thread;
    bool started;
    atomic_bool stop, hashed_all;
    _Atomic uint64_t hashed;       /* pages below are hashed */
    uint64_t told;                 /* pages below were told, or are zero */
    uint8_t (*hashes)[KNOWN_HASH]; /* all zero: there is nothing to tell */
};

static const uint8_t no_hash[KNOWN_HASH];

static bool is_told(const struct checkpoint *checkpoint, uint64_t page)
{
    return memcmp(checkpoint->hashes[page], no_hash, KNOWN_HASH) != 0;
}

static int check_head(const struct checkpoint *checkpoint, const struct id *vm, uint64_t ram, struct err *err)
{
    uint8_t head[48];
    struct stat st;
    int r = file_pread_full(checkpoint->fd, head, sizeof head, 0);
    if (r < 0 || fstat(checkpoint->fd, &st) < 0 || memcmp(head, magic, sizeof magic) != 0 ||
        get_le32(head + 8) != VERSION || memcmp(head + 16, vm->bytes, sizeof vm->bytes) != 0 ||
        get_le64(head + 40) != ram || (uint64_t)st.st_size != HEAD + ram)
        return err_set(err, EBADMSG, "%s is not one of this VM with %llu MiB of RAM", checkpoint->path,
                       (unsigned long long)(ram / MiB));
    return 0;
}

int checkpoint_open(const char *folder, const struct id *vm, uint64_t ram, struct checkpoint **ret,
                    struct err *err)
{
    struct checkpoint *checkpoint = calloc(1, sizeof *checkpoint);
    if (!checkpoint)
        return err_set(err, ENOMEM, "out of memory for a checkpoint");
    path_of(folder, "", checkpoint->path);
    checkpoint->pages = ram / KNOWN_PAGE;
    checkpoint->fd = open(checkpoint->path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    int r = checkpoint->fd < 0 ? err_sys(err, errno, "cannot open %s", checkpoint->path)
                               : check_head(checkpoint, vm, ram, err);
    if (r == 0 && !(checkpoint->hashes = calloc(checkpoint->pages + 1, KNOWN_HASH)))
        r = err_set(err, ENOMEM, "out of memory for a checkpoint");
    if (r < 0)
        checkpoint_close(checkpoint);
    else
        *ret = checkpoint;
    return r;
}

static int hash_slice(struct checkpoint *checkpoint, uint64_t page, uint8_t *slice)
{
    uint64_t count = MIN(SLICE_PAGES, checkpoint->pages - page);
    int r = file_pread_full(checkpoint->fd, slice, count * KNOWN_PAGE, HEAD + page * KNOWN_PAGE);
    for (uint64_t i = 0; r == 0 && i < count; i++)
        if (!is_zero(slice + i * KNOWN_PAGE, KNOWN_PAGE))
            known_hash(checkpoint->seed, slice + i * KNOWN_PAGE, checkpoint->hashes[page + i]);
    return r;
}

/* What cannot be read is not told. */
static void *hash_all(void *arg)
{
    struct checkpoint *checkpoint = arg;
    struct err err = ERR_NONE;
    _cleanup_free_ uint8_t *slice = malloc(SLICE);
    uint64_t page = 0;
    int r = slice ? 0 : -ENOMEM;
    while (r == 0 && page < checkpoint->pages && !checkpoint->stop) {
        off_t data = lseek(checkpoint->fd, (off_t)(HEAD + page * KNOWN_PAGE), SEEK_DATA);
        if (data < 0)
            break;
        page = ((uint64_t)data - HEAD) / KNOWN_PAGE;
        r = hash_slice(checkpoint, page, slice);
        page += r == 0 ? MIN(SLICE_PAGES, checkpoint->pages - page) : 0;
        atomic_store(&checkpoint->hashed, page);
    }
    if (r < 0) {
        err_sys(&err, r, "cannot read all of %s", checkpoint->path);
        log_warning("%s", err.text);
    }
    checkpoint->hashed_all = true;
    return NULL;
}

int checkpoint_hash(struct checkpoint *checkpoint, uint64_t seed, struct err *err)
{
    checkpoint->seed = seed;
    int r = pthread_create(&checkpoint->thread, NULL, hash_all, checkpoint);
    checkpoint->started = r == 0;
    return r ? err_sys(err, r, "cannot start a thread for a checkpoint") : 0;
}

bool checkpoint_tell(struct checkpoint *checkpoint, uint8_t ret[KNOWN_MESSAGE], size_t *ret_size)
{
    bool all = checkpoint->hashed_all; /* before `hashed` is looked at */
    uint64_t end = atomic_load(&checkpoint->hashed), at = checkpoint->told, count = 0;
    while (at < end && !is_told(checkpoint, at))
        at++;
    put_le64(ret, at);
    for (; at < end && count < KNOWN_BATCH && is_told(checkpoint, at); at++)
        memcpy(ret + 8 + KNOWN_HASH * count++, checkpoint->hashes[at], KNOWN_HASH);
    checkpoint->told = at;
    *ret_size = count ? 8 + KNOWN_HASH * count : 0;
    return count || !all;
}

int checkpoint_page(void *arg, uint64_t page, uint8_t ret[KNOWN_PAGE], struct err *err)
{
    const struct checkpoint *checkpoint = arg;
    uint8_t hash[KNOWN_HASH];
    if (page >= checkpoint->pages || page >= atomic_load(&checkpoint->hashed) || !is_told(checkpoint, page))
        return err_set(err, EPROTO, "the source names page %llu of the checkpoint, which it was not told of",
                       (unsigned long long)page);
    int r = file_pread_full(checkpoint->fd, ret, KNOWN_PAGE, HEAD + page * KNOWN_PAGE);
    if (r == 0) {
        known_hash(checkpoint->seed, ret, hash);
        r = memcmp(hash, checkpoint->hashes[page], KNOWN_HASH) == 0 ? 0 : -EBADMSG;
    }
    if (r == 0)
        return 0;
    err_set(err, EBADMSG, "%s has changed while it was in use (page %llu)", checkpoint->path,
            (unsigned long long)page);
    err_hint(err, "it is removed: move again, and nothing of it is used");
    return -EBADMSG;
}

void checkpoint_close(struct checkpoint *checkpoint)
{
    if (!checkpoint)
        return;
    checkpoint->stop = true;
    if (checkpoint->started)
        pthread_join(checkpoint->thread, NULL);
    if (checkpoint->fd >= 0)
        close(checkpoint->fd);
    free(checkpoint->hashes);
    free(checkpoint);
}
