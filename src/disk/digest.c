/* SPDX-License-Identifier: Apache-2.0
 *
 * The map is read with pread, not mapped: another process changes it, and might cut it short.
 */
#include "disk/digest.h"

#include "base/endian.h"
#include "base/file.h"
#include "base/macro.h"
#include "disk/private.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#define ALIGN 4096U /* of direct I/O */
/* While a direct read is under way ext4 and XFS let no write to the same file begin: a guest's write waits
 * for a piece at most. */
#define READ_PIECE (128 * KiB)

struct digester {
    char path[PATH_MAX];
    struct image image;
    int map;
    struct genmap_header header;
    struct lineage *lineage;
    struct intent intent;
    bool crashed;  /* its intended extents may hold writes that the map does not know */
    uint8_t *data; /* an extent's */
};

/* --- opening ------------------------------------------------------------------------------------------- */

/* Some file systems know no direct I/O. */
static int open_image(struct digester *digester, struct err *err)
{
    if (image_open(digester->path, true, true, &digester->image, NULL) == 0)
        return 0;
    return image_open(digester->path, true, false, &digester->image, err);
}

static int open_map(struct digester *digester, struct err *err)
{
    char path[PATH_MAX];
    uint8_t bytes[GENMAP_HEADER_SIZE];
    int r = side_path(digester->path, SUFFIX_MAP, path, err);
    if (r < 0)
        return r;
    digester->map = open(path, O_RDONLY | O_CLOEXEC);
    if (digester->map < 0)
        return err_sys(err, errno, "cannot open the generation map %s", path);
    r = file_pread_full(digester->map, bytes, sizeof bytes, 0);
    if (r < 0)
        return err_sys(err, r, "cannot read the generation map %s", path);
    r = genmap_header_decode(bytes, sizeof bytes, &digester->header, err);
    if (r < 0)
        err_context(err, "%s", path);
    return r;
}

static int open_lineage(struct digester *digester, struct err *err)
{
    char path[PATH_MAX];
    _cleanup_free_ void *bytes = NULL;
    size_t size = 0;
    int r = side_path(digester->path, SUFFIX_LINEAGE, path, err);
    if (r == 0)
        r = file_load(path, LINEAGE_MAX_BYTES, &bytes, &size, err);
    if (r < 0)
        return r;
    r = lineage_decode(bytes, size, &digester->lineage, err);
    if (r < 0)
        err_context(err, "%s", path);
    return r;
}

/* As at the disk's next opening (disk.c, recover): after a power cut the map may not know all. */
static int open_intent(struct digester *digester, struct err *err)
{
    char path[PATH_MAX];
    struct id boot;
    int r = side_path(digester->path, SUFFIX_INTENT, path, err);
    if (r == 0)
        r = intent_open(path, true, &digester->intent, err);
    if (r == 0)
        r = intent_boot(&boot, err);
    if (r < 0)
        return r;
    const struct intent_header *header = &digester->intent.header;
    digester->crashed = !header->clean && !id_equal(&header->boot, &boot);
    if (!id_equal(&header->map, &digester->header.map))
        return err_set(err, EBADMSG, "%s belongs to another map: every block of the disk counts as written",
                       path);
    return 0;
}

static int check_parts(const struct digester *digester, struct err *err)
{
    uint64_t size = digester->image.size;
    const struct genmap_header *header = &digester->header;
    if (header->size != size || digester->lineage->size != size || digester->intent.header.size != size)
        return err_set(err, EBADMSG, "%s has %llu bytes, its side files are of a disk of another size",
                       digester->path, (unsigned long long)size);
    if (!id_equal(&digester->lineage->disk, &header->disk) &&
        !id_equal(&digester->lineage->disk, &header->former))
        return err_set(err, EBADMSG, "the map and the lineage of %s are of two different disks",
                       digester->path);
    return 0;
}

static int open_parts(struct digester *digester, struct err *err)
{
    int r = open_image(digester, err);
    if (r == 0)
        r = open_lineage(digester, err);
    if (r == 0)
        r = open_map(digester, err);
    if (r == 0)
        r = open_intent(digester, err);
    return r < 0 ? r : check_parts(digester, err);
}

int digester_open(const char *image, struct digester **ret, struct err *err)
{
    _cleanup_(digester_cleanup) struct digester *digester = calloc(1, sizeof *digester);
    if (!digester)
        return err_set(err, ENOMEM, "out of memory reading %s", image);
    digester->image = IMAGE_NONE;
    digester->map = digester->intent.fd = -1;
    if (snprintf(digester->path, sizeof digester->path, "%s", image) >= (int)sizeof digester->path)
        return err_set(err, ENAMETOOLONG, "path too long: %s", image);
    digester->data = aligned_alloc(ALIGN, DIGEST_EXTENT);
    if (!digester->data)
        return err_set(err, ENOMEM, "out of memory reading %s", image);
    int r = open_parts(digester, err);
    if (r < 0)
        return r;
    *ret = TAKE_PTR(digester);
    return 0;
}

void digester_free(struct digester *digester)
{
    if (!digester)
        return;
    intent_done(&digester->intent);
    lineage_free(digester->lineage);
    if (digester->map >= 0)
        close(digester->map);
    image_done(&digester->image);
    free(digester->data);
    free(digester);
}

const struct lineage *digester_lineage(const struct digester *digester)
{
    return digester->lineage;
}

uint64_t digester_size(const struct digester *digester)
{
    return digester->image.size;
}

uint64_t digester_extents(const struct digester *digester)
{
    return (digester->image.size + DIGEST_EXTENT - 1) / DIGEST_EXTENT;
}

/* --- one extent ---------------------------------------------------------------------------------------- */

static uint64_t extent_size(const struct digester *digester, uint64_t extent)
{
    return MIN(DIGEST_EXTENT, digester->image.size - extent * DIGEST_EXTENT);
}

unsigned digester_extent_blocks(const struct digester *digester, uint64_t extent)
{
    return (unsigned)((extent_size(digester, extent) + DISK_BLOCK - 1) / DISK_BLOCK);
}

/* Names the block that cannot be read. */
static int find_unreadable(struct digester *digester, uint64_t offset, uint64_t size, int error,
                           struct err *err)
{
    uint64_t end = offset + size;
    for (uint64_t at = offset; at < end; at += DISK_BLOCK) {
        int r = image_read(&digester->image, digester->data, MIN(DISK_BLOCK, end - at), at);
        if (r < 0)
            return err_sys(err, r, "block %llu of %s cannot be read", (unsigned long long)(at / DISK_BLOCK),
                           digester->path);
    }
    return err_sys(err, error, "blocks %llu to %llu of %s could not be read at once",
                   (unsigned long long)(offset / DISK_BLOCK), (unsigned long long)((end - 1) / DISK_BLOCK),
                   digester->path);
}

static int read_data(struct digester *digester, uint64_t extent, bool *ret_hole, struct err *err)
{
    uint64_t offset = extent * DIGEST_EXTENT, size = extent_size(digester, extent);
    *ret_hole = image_next_data(&digester->image, offset) >= offset + size;
    if (*ret_hole) {
        memset(digester->data, 0, size);
        return 0;
    }
    for (uint64_t at = 0; at < size; at += READ_PIECE) {
        uint64_t piece = MIN(READ_PIECE, size - at);
        int r = image_read(&digester->image, digester->data + at, piece, offset + at);
        if (r < 0)
            return find_unreadable(digester, offset + at, piece, r, err);
    }
    return 0;
}

/* After the data: see the header. */
static int read_changed(const struct digester *digester, uint32_t upto, uint64_t extent,
                        uint8_t ret[DIGEST_BITS_SIZE], struct err *err)
{
    uint8_t numbers[DIGEST_EXTENT_BLOCKS * 4];
    unsigned blocks = digester_extent_blocks(digester, extent);
    int r = file_pread_full(digester->map, numbers, (size_t)blocks * 4,
                            GENMAP_HEADER_SIZE + extent * DIGEST_EXTENT_BLOCKS * 4);
    if (r < 0)
        return err_sys(err, r, "cannot read the generation map of %s", digester->path);
    bool crashed = digester->crashed && intent_next(&digester->intent, extent) == extent;
    memset(ret, 0, DIGEST_BITS_SIZE);
    for (unsigned i = 0; i < blocks; i++)
        if (crashed || get_le32(numbers + (size_t)i * 4) > upto)
            ret[i / 8] |= (uint8_t)(1U << i % 8);
    return 0;
}

static void hash(const void *data, size_t size, uint64_t seed, uint8_t ret[DIGEST_SIZE])
{
    XXH128_canonical_t canonical;
    XXH128_canonicalFromHash(&canonical, XXH3_128bits_withSeed(data, size, seed));
    memcpy(ret, canonical.digest, DIGEST_SIZE);
}

int digester_extent(struct digester *digester, uint64_t seed, uint32_t upto, uint64_t extent,
                    struct digest_extent *ret, struct err *err)
{
    static_assert(INTENT_EXTENT == DIGEST_EXTENT, "an extent of the intent record is one here too");
    if (extent >= digester_extents(digester))
        return err_set(err, EINVAL, "extent %llu is beyond the end of the disk", (unsigned long long)extent);
    uint8_t changed[DIGEST_BITS_SIZE] = {0};
    bool hole = false;
    int r = read_data(digester, extent, &hole, err);
    if (r == 0)
        r = read_changed(digester, upto, extent, changed, err);
    if (r < 0)
        return r;
    uint64_t size = extent_size(digester, extent);
    memset(ret, 0, sizeof *ret);
    ret->hole = hole;
    memcpy(ret->changed, changed, sizeof changed);
    for (unsigned i = 0; (uint64_t)i * DISK_BLOCK < size; i++) {
        uint64_t at = (uint64_t)i * DISK_BLOCK;
        if (!digest_bit(changed, i))
            hash(digester->data + at, MIN(DISK_BLOCK, size - at), seed, ret->blocks[i]);
    }
    return 0;
}

void digest_sum(const struct digest_extent *extent, const uint8_t changed[DIGEST_BITS_SIZE], uint64_t seed,
                uint8_t ret[DIGEST_SIZE])
{
    uint8_t blocks[DIGEST_EXTENT_BLOCKS][DIGEST_SIZE];
    memcpy(blocks, extent->blocks, sizeof blocks);
    for (unsigned i = 0; i < DIGEST_EXTENT_BLOCKS; i++)
        if (digest_bit(changed, i))
            memset(blocks[i], 0, DIGEST_SIZE);
    hash(blocks, sizeof blocks, seed, ret);
}
