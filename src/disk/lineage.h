/* SPDX-License-Identifier: Apache-2.0
 *
 * lineage: which generations a disk has been through, and what one copy of it is worth.
 *
 * An entry says: generation `generation` was sealed, with a random `id`, at `host`, at `time`. Two copies
 * whose lineages share an entry (generation and id) held the same data at that moment. The *claim* says what
 * this copy is:
 *
 *   LINEAGE_OWNER     the newest data there is; numbers above the newest entry are writes since
 *   LINEAGE_REPLICA   exactly the data of `complete`
 *   LINEAGE_PARTIAL   at least the data of `complete`, and of `reached` for blocks below `cursor`; it may
 *                     never run
 *   LINEAGE_FORK      a replica that a human started on purpose; blocks above `complete` are its own
 *   LINEAGE_SPLIT     it runs, but the newest data of some blocks, up to the newest entry, which is the
 *                     hand-over, is still on another host (split.h); else what PARTIAL said at the switch
 *
 * Pure: encode and decode work on buffers; the bytes may come from a peer.
 */
#pragma once

#include "base/err.h"
#include "base/id.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum lineage_kind { LINEAGE_BASE = 1, LINEAGE_ROUND = 2, LINEAGE_HANDOVER = 3 };
enum lineage_claim {
    LINEAGE_OWNER = 1,
    LINEAGE_REPLICA = 2,
    LINEAGE_PARTIAL = 3,
    LINEAGE_FORK = 4,
    LINEAGE_SPLIT = 5,
};

#define LINEAGE_HOST_SIZE 64
#define LINEAGE_MAX_ENTRIES 1024 /* rounds are dropped first, then the oldest hand-overs, never the base */
#define LINEAGE_MAX_BYTES (160U << 10)
#define LINEAGE_MAX_GENERATION                                                   \
    UINT32_C(0xfffffff0) /* no copy's current one goes above; entries stay below \
                          */

struct lineage_entry {
    uint32_t generation; /* strictly growing along the list */
    enum lineage_kind kind;
    struct id id;
    int64_t time_ms; /* wall time, for people */
    char host[LINEAGE_HOST_SIZE];
};

struct lineage {
    struct id disk;
    uint64_t size; /* of the disk, bytes */
    enum lineage_claim claim;
    uint32_t complete; /* generation of an entry, 0 = nothing */
    uint32_t reached;  /* PARTIAL, SPLIT: generation of an entry, else 0 */
    uint64_t cursor;   /* PARTIAL, SPLIT: block */
    size_t count;
    struct lineage_entry *entries;
};

struct lineage *lineage_new(const struct id *disk, uint64_t size);
void lineage_free(struct lineage *lineage);
static inline void lineage_freep(struct lineage **lineage) /* for _cleanup_ */
{
    lineage_free(*lineage);
}
static inline void lineage_cleanup(struct lineage **lineage)
{
    lineage_free(*lineage);
}
int lineage_copy(const struct lineage *lineage, struct lineage **ret);
/* -EINVAL unless generation is above the newest. Prunes to LINEAGE_MAX_ENTRIES. */
int lineage_add(struct lineage *lineage, uint32_t generation, const struct id *id, enum lineage_kind kind,
                const char *host, int64_t time_ms);
/* NULL when there is no such entry. */
const struct lineage_entry *lineage_find(const struct lineage *lineage, uint32_t generation);
const struct lineage_entry *lineage_newest(const struct lineage *lineage);

/* *ret_bytes is malloc'ed: header, entries, XXH3-64 of all before it (docs/formats.md). */
int lineage_encode(const struct lineage *lineage, void **ret_bytes, size_t *ret_size);
int lineage_decode(const void *bytes, size_t size, struct lineage **ret, struct err *err);

/* What the claim says in one word, for people: "owner", "replica", ... */
const char *lineage_claim_name(enum lineage_claim claim);
/* May its guest write to such a copy? */
bool lineage_claim_runs(enum lineage_claim claim);
const char *lineage_kind_name(enum lineage_kind kind);

/* What the copy described by `theirs` is worth as the base of a transfer of the disk described by `ours`
 * (owner). Blocks < cursor need what is above `reached`, the others what is above `base`. base 0 = send
 * everything. `forked`: their copy has data of its own after `base`; the blocks whose numbers in *their* map
 * are above `base` must be sent too. Mark them in ours first (disk_touch), so that a transfer that is cut
 * short does not forget them. `foreign`: send everything, and onto an empty image; a split copy, which is
 * nobody's base before it is whole, counts as such. */
struct lineage_base {
    uint32_t base, reached;
    uint64_t cursor;
    bool forked;
    bool foreign; /* another disk, or no common ancestor at all */
};
void lineage_compare(const struct lineage *ours, const struct lineage *theirs, struct lineage_base *ret);

/* Up to which generation two copies must hold the same, whatever each claims to be: the newest entry that
 * both lineages have, and that lies in what both copies have whole. Blocks whose numbers are at or below it
 * in both maps are equal; what an owner or a fork wrote since is above it. 0 = nothing is known to be common.
 */
uint32_t lineage_shared(const struct lineage *a, const struct lineage *b);
/* Does the copy have all of the sealed generation whose number and id these are? */
bool lineage_holds(const struct lineage *lineage, uint32_t generation, const struct id *id);
