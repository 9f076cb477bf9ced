/* SPDX-License-Identifier: Apache-2.0 */
#include "disk/relocate.h"

#include "base/macro.h"
#include "base/zero.h"
#include "disk/split.h"

#include <errno.h>
#include <string.h>

/* The state is two regions: blocks below `cursor` are good up to `reached`, the rest up to `base`. A round
 * moves `cursor` through the disk. At its end the first region is all, and becomes the next round's base.
 *
 * A new round that begins in the middle of another has three regions for a while: [0, turn) good up to the
 * old round's generation, [turn, end) up to `base`. Both still have to be walked, so the walk starts anew at
 * 0 with `turn` as the border. */
struct relocate {
    struct disk *disk;
    uint64_t blocks;
    uint32_t base, reached; /* good up to, at and after / before `turn` */
    uint64_t turn;
    uint32_t sealed;         /* the round's generation; 0 = no round yet */
    uint64_t next;           /* the walk: everything below is good up to `sealed` */
    struct disk_range *fork; /* in blocks: offset and size count blocks here */
    size_t fork_count, fork_at;

    /* What is known about the allocation at `next`, so that holes are asked for once. */
    uint64_t extent_end; /* block */
    bool extent_hole;
};

int relocate_new(struct disk *disk, const struct lineage_base *base, const struct disk_range *fork,
                 size_t fork_count, struct relocate **ret, struct err *err)
{
    if (disk_is_split(disk)) {
        err_set(err, EBUSY, "%llu blocks of %s are still on the host that it came from",
                (unsigned long long)disk_missing(disk), disk_path(disk));
        err_hint(err, "move it again when they have come: `orai status` says how far they are");
        return -EBUSY;
    }
    struct relocate *relocate = calloc(1, sizeof *relocate);
    struct disk_range *copy = calloc(fork_count + 1, sizeof *copy);
    if (!relocate || !copy) {
        free(relocate);
        free(copy);
        return err_set(err, ENOMEM, "out of memory");
    }
    if (fork_count)
        memcpy(copy, fork, fork_count * sizeof *copy);
    *relocate = (struct relocate){
        .disk = disk,
        .blocks = disk_blocks(disk),
        .base = base->base,
        .reached = MAX(base->reached, base->base),
        .turn = base->cursor,
        .next = disk_blocks(disk),
        .fork = copy,
        .fork_count = fork_count,
    };
    *ret = relocate;
    return 0;
}

void relocate_free(struct relocate *relocate)
{
    if (!relocate)
        return;
    free(relocate->fork);
    free(relocate);
}

/* What was good when the walk stood at `next` becomes the two regions of the new walk. */
void relocate_round(struct relocate *relocate, uint32_t sealed)
{
    if (relocate->sealed && relocate->next >= relocate->blocks) {
        relocate->base = relocate->reached = relocate->sealed;
        relocate->turn = 0;
        relocate->fork_count = 0;
    } else if (relocate->sealed && relocate->next >= relocate->turn) {
        relocate->reached = relocate->sealed;
        relocate->turn = relocate->next;
    }
    /* Else the walk was still inside the first region: [0, next) is good up to `sealed`, [next, turn) up to
     * the older `reached`. Taking `reached` for both sends a little twice, never too little. */
    relocate->sealed = sealed;
    relocate->next = 0;
    relocate->fork_at = 0;
    relocate->extent_end = 0;
}

static uint32_t good_upto(const struct relocate *relocate, uint64_t block)
{
    return block < relocate->turn ? relocate->reached : relocate->base;
}

/* The first run of written blocks at or after `from`; stops at `turn`, where the bound changes. */
static bool next_written(const struct relocate *relocate, uint64_t from, uint64_t max, struct disk_run *ret)
{
    while (from < relocate->blocks) {
        bool found =
            disk_next_run(relocate->disk, from, good_upto(relocate, from), relocate->sealed, max, ret);
        if (from >= relocate->turn)
            return found;
        if (found && ret->block < relocate->turn) {
            ret->count = MIN(ret->count, relocate->turn - ret->block);
            return true;
        }
        from = relocate->turn;
    }
    return false;
}

/* The fork's blocks have the number that our own map gives them, 0 if we never wrote them. */
static bool next_forked(struct relocate *relocate, uint64_t from, uint64_t max, struct disk_run *ret)
{
    while (relocate->fork_at < relocate->fork_count &&
           relocate->fork[relocate->fork_at].offset + relocate->fork[relocate->fork_at].size <= from)
        relocate->fork_at++;
    if (relocate->fork_at == relocate->fork_count)
        return false;
    const struct disk_range *range = &relocate->fork[relocate->fork_at];
    uint64_t block = MAX(range->offset, from), end = MIN(range->offset + range->size, relocate->blocks);
    if (block >= end)
        return false;
    struct disk_run numbered;
    *ret = (struct disk_run){.block = block, .count = MIN(end - block, max)};
    if (!disk_next_run(relocate->disk, block, 0, relocate->sealed, max, &numbered) ||
        numbered.block >= block + ret->count)
        return true;
    if (numbered.block > block) {
        ret->count = numbered.block - block;
    } else {
        ret->count = MIN(ret->count, numbered.count);
        ret->generation = numbered.generation;
    }
    return true;
}

static bool next_run(struct relocate *relocate, uint64_t max, struct disk_run *ret)
{
    struct disk_run written, forked;
    bool have_written = next_written(relocate, relocate->next, max, &written);
    bool have_forked = next_forked(relocate, relocate->next, max, &forked);
    if (!have_forked || (have_written && written.block <= forked.block)) {
        *ret = written;
        return have_written;
    }
    if (have_written && forked.block + forked.count > written.block)
        forked.count = written.block - forked.block;
    *ret = forked;
    return true;
}

static uint64_t bytes_before(const struct relocate *relocate, uint64_t block)
{
    return MIN(block * DISK_BLOCK, disk_size(relocate->disk));
}

/* Cuts the run where the allocation changes; says whether it is a hole. */
static int cut_at_hole(struct relocate *relocate, struct disk_run *run, bool *ret_hole, struct err *err)
{
    if (run->block >= relocate->extent_end) {
        struct disk_extent extent;
        uint64_t offset = run->block * DISK_BLOCK;
        int r = disk_extent(relocate->disk, offset, disk_size(relocate->disk) - offset, &extent);
        if (r < 0)
            return err_sys(err, r, "cannot read the allocation of %s", disk_path(relocate->disk));
        uint64_t whole = (offset + extent.length) / DISK_BLOCK;
        /* An extent that ends inside a block leaves that block to be read. */
        relocate->extent_hole = extent.hole && whole > run->block;
        relocate->extent_end = MAX(
            offset + extent.length >= disk_size(relocate->disk) ? relocate->blocks : whole, run->block + 1);
    }
    run->count = MIN(run->count, relocate->extent_end - run->block);
    *ret_hole = relocate->extent_hole;
    return 0;
}

/* Of the blocks just read, keeps the leading ones that are alike: all zero or all not. */
static void cut_at_zero(const uint8_t *data, struct relocate_piece *piece)
{
    size_t block = 0;
    for (size_t at = 0; at < piece->size; at += DISK_BLOCK, block++) {
        bool zero = is_zero(data + at, MIN((size_t)DISK_BLOCK, piece->size - at));
        if (block == 0)
            piece->zero = zero;
        else if (zero != piece->zero)
            break;
    }
    piece->run.count = block;
    piece->size = MIN(piece->size, block * (size_t)DISK_BLOCK);
}

int relocate_read(struct disk *disk, const struct disk_run *run, void *data, size_t capacity,
                  struct relocate_piece *ret, struct err *err)
{
    struct relocate_piece piece = {.run = *run};
    uint64_t offset = run->block * DISK_BLOCK, blocks = MIN(run->count, capacity / DISK_BLOCK);
    piece.size = MIN(blocks * DISK_BLOCK, disk_size(disk) - offset);
    int r = disk_read(disk, data, piece.size, offset);
    if (r < 0)
        return err_sys(err, r, "cannot read block %llu of %s", (unsigned long long)run->block,
                       disk_path(disk));
    cut_at_zero(data, &piece);
    if (piece.zero)
        piece.size = 0;
    *ret = piece;
    return 0;
}

int relocate_next(struct relocate *relocate, void *data, size_t capacity, struct relocate_piece *ret,
                  struct err *err)
{
    struct relocate_piece piece = {0};
    bool hole = false;
    if (!next_run(relocate, UINT32_MAX, &piece.run)) {
        relocate->next = relocate->blocks;
        return 0;
    }
    int r = cut_at_hole(relocate, &piece.run, &hole, err);
    if (r < 0)
        return r;
    if (hole)
        piece.zero = true;
    else if ((r = relocate_read(relocate->disk, &piece.run, data, capacity, &piece, err)) < 0)
        return r;
    relocate->next = piece.run.block + piece.run.count;
    *ret = piece;
    return 1;
}

static uint64_t fork_blocks(const struct relocate *relocate)
{
    uint64_t blocks = 0;
    for (size_t i = relocate->fork_at; i < relocate->fork_count; i++)
        blocks += relocate->fork[i].size;
    return blocks;
}

/* Blocks with numbers in (above, upto] within [from, end). */
static uint64_t count_between(const struct relocate *relocate, uint64_t from, uint64_t end, uint32_t above,
                              uint32_t upto)
{
    uint64_t count = 0;
    struct disk_run run;
    while (from < end && disk_next_run(relocate->disk, from, above, upto, UINT32_MAX, &run) &&
           run.block < end) {
        count += MIN(run.count, end - run.block);
        from = run.block + run.count;
    }
    return count;
}

uint64_t relocate_remaining(const struct relocate *relocate)
{
    uint64_t turn = MAX(relocate->next, MIN(relocate->turn, relocate->blocks));
    return count_between(relocate, relocate->next, turn, relocate->reached, relocate->sealed) +
           count_between(relocate, turn, relocate->blocks, relocate->base, relocate->sealed) +
           fork_blocks(relocate);
}

uint64_t relocate_pending(const struct relocate *relocate, uint32_t upto)
{
    uint64_t turn = MIN(relocate->turn, relocate->blocks);
    if (!relocate->sealed)
        return count_between(relocate, 0, turn, relocate->reached, upto) +
               count_between(relocate, turn, relocate->blocks, relocate->base, upto) + fork_blocks(relocate);
    return relocate_remaining(relocate) + disk_count(relocate->disk, relocate->sealed, upto);
}

uint64_t relocate_estimate(struct relocate *relocate, uint32_t upto)
{
    struct relocate look = *relocate; /* the walk of a copy changes nothing here */
    struct disk_run run;
    uint64_t bytes = 0;
    bool hole = false;
    relocate_round(&look, upto);
    while (next_run(&look, UINT32_MAX, &run) && cut_at_hole(&look, &run, &hole, NULL) == 0) {
        bytes += hole ? 0 : bytes_before(&look, run.block + run.count) - run.block * DISK_BLOCK;
        look.next = run.block + run.count;
    }
    return bytes;
}

void relocate_claim(const struct relocate *relocate, struct lineage *claim)
{
    bool whole = relocate->sealed && relocate->next >= relocate->blocks;
    bool past_turn = relocate->sealed && relocate->next >= relocate->turn;
    claim->claim = LINEAGE_PARTIAL;
    claim->complete = whole ? relocate->sealed : relocate->base;
    claim->reached = whole ? 0 : past_turn ? relocate->sealed : relocate->reached;
    claim->cursor = whole ? 0 : past_turn ? relocate->next : relocate->turn;
}
