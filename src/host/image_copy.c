/* SPDX-License-Identifier: Apache-2.0 */
#include "host/image_copy.h"

#include "base/file.h"
#include "base/macro.h"
#include "base/zero.h"

#include <errno.h>
#include <openssl/evp.h>
#include <string.h>
#include <unistd.h>

#define PIECE (1U << 20)
#define ZERO_UNIT 4096U

static const uint8_t zeroes[64 << 10];

static void context_cleanup(EVP_MD_CTX **context)
{
    EVP_MD_CTX_free(*context);
}

/* Writes the units of `data` that hold anything, runs of them at once. */
static int write_data(const struct image_pass *pass, const uint8_t *data, size_t size, uint64_t offset,
                      struct err *err)
{
    size_t begin = 0;
    for (size_t at = 0; pass->to >= 0 && at <= size; at += ZERO_UNIT) {
        if (at < size && !is_zero(data + at, MIN(ZERO_UNIT, size - at)))
            continue;
        size_t end = MIN(at, size);
        int r = end > begin ? file_pwrite_full(pass->to, data + begin, end - begin, offset + begin) : 0;
        if (r < 0)
            return err_sys(err, r, "cannot write the image");
        begin = at + ZERO_UNIT;
    }
    /* The loop's last step stands at or beyond `size` only when that is a multiple of the unit. */
    if (pass->to >= 0 && begin < size) {
        int r = file_pwrite_full(pass->to, data + begin, size - begin, offset + begin);
        if (r < 0)
            return err_sys(err, r, "cannot write the image");
    }
    return 0;
}

/* Up to `size` bytes at `offset`; what the file does not have is zero. */
static int read_piece(int fd, uint8_t *data, size_t size, uint64_t offset, struct err *err)
{
    size_t done = 0;
    while (done < size) {
        ssize_t n = pread(fd, data + done, size - done, (off_t)(offset + done));
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return err_sys(err, errno, "cannot read the image");
        if (n == 0)
            break;
        done += (size_t)n;
    }
    memset(data + done, 0, size - done);
    return 0;
}

/* Where data begins at or after `offset`; the end when there is none, `offset` where holes are not known. */
static uint64_t next_data(const struct image_pass *pass, uint64_t offset)
{
    off_t at = lseek(pass->from, (off_t)offset, SEEK_DATA);
    if (at >= 0)
        return MIN((uint64_t)at, pass->size);
    return errno == ENXIO ? pass->size : offset;
}

static int check(const struct image_pass *pass, uint64_t done, struct err *err)
{
    if (pass->cancel && *pass->cancel)
        return err_set(err, ECANCELED, "it was stopped");
    if (pass->tick)
        pass->tick(pass->arg, done);
    return 0;
}

static int hash_hole(const struct image_pass *pass, EVP_MD_CTX *hash, uint64_t from, uint64_t to,
                     struct err *err)
{
    int r = 0;
    for (uint64_t at = from; r == 0 && at < to; at += sizeof zeroes) {
        EVP_DigestUpdate(hash, zeroes, MIN(sizeof zeroes, to - at));
        if ((at - from) % (64 * MiB) == 0)
            r = check(pass, at, err);
    }
    return r;
}

int image_pass(const struct image_pass *pass, uint8_t ret_hash[HASH_SIZE], struct err *err)
{
    _cleanup_(context_cleanup) EVP_MD_CTX *hash = EVP_MD_CTX_new();
    _cleanup_free_ uint8_t *data = malloc(PIECE);
    if (!hash || !data || !EVP_DigestInit_ex(hash, EVP_sha256(), NULL))
        return err_set(err, ENOMEM, "out of memory");
    if (pass->to >= 0 && ftruncate(pass->to, (off_t)pass->size) < 0)
        return err_sys(err, errno, "cannot make the image %llu bytes large", (unsigned long long)pass->size);
    for (uint64_t at = 0; at < pass->size;) {
        uint64_t begin = next_data(pass, at);
        int r = hash_hole(pass, hash, at, begin, err);
        size_t size = MIN(PIECE, pass->size - begin);
        if (r == 0 && size > 0)
            r = read_piece(pass->from, data, size, begin, err);
        if (r == 0 && size > 0)
            r = write_data(pass, data, size, begin, err);
        if (r == 0)
            r = check(pass, begin, err);
        if (r < 0)
            return r;
        EVP_DigestUpdate(hash, data, size);
        at = begin + size;
    }
    return EVP_DigestFinal_ex(hash, ret_hash, NULL) ? 0 : err_set(err, ENOMEM, "out of memory");
}
