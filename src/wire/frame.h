/* SPDX-License-Identifier: Apache-2.0
 *
 * frame: the move protocol's unit on a TLS connection. Pure: encodes and decodes buffers, does no I/O; the
 * bytes are a peer's and may be anything. docs/protocol.md describes who sends what when.
 *
 *    0  magic "ORF1"      8  length u32 (payload bytes)    16  vm id, 16 bytes
 *    4  type u8          12  reserved u32, 0               32  epoch u64
 *    5  reserved, 3 bytes, 0                               40  payload
 *
 * Little-endian. Every frame names VM and epoch, so that a frame of an older hand-over, late on some wire, is
 * recognised and dropped.
 */
#pragma once

#include "base/err.h"
#include "base/id.h"

#include <stddef.h>
#include <stdint.h>

#define FRAME_HEADER_SIZE 40
#define FRAME_MAX_PAYLOAD (1U << 20)
#define FRAME_MAX_JSON (256U << 10)

#define MOVE_PROTOCOL_VERSION 1

enum frame_type {
    FRAME_HELLO = 1, /* JSON both ways, first on every connection */
    FRAME_PING,      /* nothing, or to be ignored; any frame proves life, this one when there is no other */
    FRAME_ERROR,     /* JSON err: the sender gave up and has rolled back, or is about to */
    FRAME_PREPARE,   /* JSON source -> destination */
    FRAME_PREPARED,  /* JSON destination -> source */
    FRAME_LINEAGE,   /* struct wire_claim_v1, lineage bytes; both directions */
    FRAME_FILE,      /* u16 file, u64 offset, bytes: kernel and initrd */
    FRAME_BASE,      /* JSON source -> destination: on which base the disks will be built */
    FRAME_FORK, /* n x (u64 block, u64 count): what the destination's fork of a disk wrote; empty = the end */
    FRAME_OPENED,   /* JSON destination -> source: disks open, QEMU waits */
    FRAME_RUN,      /* struct wire_run_v1, data */
    FRAME_MARK,     /* struct wire_mark_v1, on every data connection: all before it belongs to the mark */
    FRAME_MARKED,   /* struct wire_mark_v1 back: the mark's data is durable */
    FRAME_STREAM,   /* QEMU's migration stream, source -> destination */
    FRAME_BACK,     /* QEMU's return path, destination -> source */
    FRAME_PROBE,    /* bytes to measure the link with; answered by PROBED when `last` */
    FRAME_PROBED,   /* JSON */
    FRAME_READY,    /* JSON destination -> source: everything durable, the guest loaded and stopped */
    FRAME_COMMIT,   /* JSON source -> destination: the epoch is yours */
    FRAME_RUNNING,  /* JSON destination -> source: the guest runs here */
    FRAME_REFUSED,  /* JSON destination -> source: durably refused */
    FRAME_FINISH,   /* source -> destination: heard */
    FRAME_PROGRESS, /* JSON source -> destination, for people who watch there */
    FRAME_CANCEL,   /* destination -> source: a human cancelled there */
    FRAME_LOADED,   /* destination -> source: QEMU has loaded the guest, its memory may be compared */
    FRAME_HASHES,   /* memory/compare.h, source -> destination on data connection 0 */
    FRAME_WANTED,   /* n x u64 page, back: the pages that differ */
    FRAME_PAGE,     /* u64 page, 4096 bytes; empty: that was all */
    FRAME_MISSING,  /* struct wire_claim_v1, bits (disk/split.h), source -> destination: what comes later */
    FRAME_FETCH,    /* struct wire_fetch_v1, borrower -> lender: blocks are wanted */
    FRAME_FETCHED,  /* the same back, after the runs that answer it */
    FRAME_HOT,      /* struct wire_claim_v1, n x u32 extent, lender -> borrower: hottest first */
    FRAME_RELEASE,  /* borrower -> lender: nothing is wanted any more */
    FRAME_RELEASED, /* back: heard, durably */
    FRAME_TAKEN,    /* u64: so many bytes of a lasting stream, or of its return path, has QEMU here */
    FRAME_SUMS,     /* struct wire_sums_v1, source -> destination: blocks that it may have in a donor */
    FRAME_DIFFER,   /* struct wire_differ_v1 back on the same connection: which of them it has not */
    FRAME_NEWER,  /* struct wire_newer_v1, borrower -> lender; back with bits (disk/split.h): where is it? */
    FRAME_PACKED, /* a packet of memory/codec.h, instead of FRAME_STREAM where the destination can unpack it
                   */
    FRAME_KNOWN,  /* memory/known.h, destination -> source: pages that a checkpoint there has */
    FRAME_ANEW, /* source -> destination on data connection 0: no more of this stream of QEMU's comes; another
                   will, whose memory follows the guest. JSON back on the same connection: a new QEMU waits */
    FRAME_FAULTS,   /* JSON destination -> source: how long pages take that the guest there waits for */
    FRAME_RECOVER,  /* JSON source -> destination: both QEMUs' streams are to go on in a new one; JSON back:
                       the  destination's waits for it */
    FRAME_RECEIVED, /* memory/resync.h, destination -> source, before that answer: the pages that are there */
    FRAME_CLOCK,    /* struct wire_clock_v1, source -> destination: how long the guest has stood still */
    FRAME_WORKSET,  /* memory/workset.h, source -> destination: which pages the guest touches first */
    FRAME_TYPE_END
};

struct frame {
    enum frame_type type;
    uint32_t length;
    struct id vm;
    uint64_t epoch;
};

void frame_encode(const struct frame *frame, uint8_t ret[FRAME_HEADER_SIZE]);
/* -EPROTO on a wrong magic, an unknown type or a length beyond FRAME_MAX_PAYLOAD. */
int frame_decode(const uint8_t bytes[FRAME_HEADER_SIZE], struct frame *ret, struct err *err);
const char *frame_type_name(enum frame_type type);

/* A run of blocks with one generation number: data follows unless WIRE_RUN_ZERO.
 *   0 disk u16   2 flags u16   4 generation u32   8 block u64   16 count u32   20 reserved u32   24 XXH3-64
 * of the data */
#define WIRE_RUN_SIZE 32
#define WIRE_RUN_MAX_BLOCKS 64U /* with data: 256 KiB; zero runs may have any count */
enum wire_run_flags { WIRE_RUN_ZERO = 1 };

struct wire_run {
    uint16_t disk, flags;
    uint32_t generation;
    uint64_t block;
    uint32_t count;
    uint64_t checksum;
};

void wire_run_encode(const struct wire_run *run, uint8_t ret[WIRE_RUN_SIZE]);
/* `payload` is the whole frame's. *ret_data points into it (NULL for zero runs). Only the last block of a
 * disk may be short: the data is (count - 1) * 4096 + 1 to count * 4096 bytes long; ret_size says how long.
 * Checks the checksum (-EBADMSG). */
int wire_run_decode(const uint8_t *payload, size_t size, struct wire_run *ret, const uint8_t **ret_data,
                    size_t *ret_size, struct err *err);

/* Instead of a run: the sums (disk/sums.h) of blocks that are not zero, 16 bytes each. What the destination
 * finds in its donor (disk/donor.h) it takes as received; its answer says what has to be sent.
 *   0 disk u16   2 reserved u16   4 generation u32   8 block u64   16 count u32   20 ticket u32   24 sums */
#define WIRE_SUMS_SIZE 24
#define WIRE_SUM_SIZE 16
struct wire_sums {
    uint16_t disk;
    uint32_t generation, count; /* count: 1 to WIRE_RUN_MAX_BLOCKS */
    uint64_t block;
    uint32_t ticket; /* the source's own, for the answer */
};
void wire_sums_encode(const struct wire_sums *sums, uint8_t ret[WIRE_SUMS_SIZE]);
/* *ret_sums points into `payload`. */
int wire_sums_decode(const uint8_t *payload, size_t size, struct wire_sums *ret,
                     const uint8_t (**ret_sums)[WIRE_SUM_SIZE], struct err *err);

/*   0 ticket u32   4 reserved u32   8 bits u64: bit n, block n has to be sent */
#define WIRE_DIFFER_SIZE 16
struct wire_differ {
    uint32_t ticket;
    uint64_t bits;
};
void wire_differ_encode(const struct wire_differ *differ, uint8_t ret[WIRE_DIFFER_SIZE]);
int wire_differ_decode(const uint8_t *payload, size_t size, struct wire_differ *ret, struct err *err);

/* A mark: all runs sent before it on this connection count for it.
 *   0 sequence u32   4 flags u32 */
#define WIRE_MARK_SIZE 8
struct wire_mark {
    uint32_t sequence;
};
void wire_mark_encode(const struct wire_mark *mark, uint8_t ret[WIRE_MARK_SIZE]);
int wire_mark_decode(const uint8_t *payload, size_t size, struct wire_mark *ret, struct err *err);

/* A lineage on its way: what a copy is (destination -> source, sequence 0), or what it may claim to be once
 * the mark `sequence` is durable (source -> destination; 0 = from now on). 0 disk u16   2 flags u16   4
 * sequence u32   8 lineage bytes (disk/lineage.h) */
#define WIRE_CLAIM_SIZE 8
enum wire_claim_flags {
    WIRE_CLAIM_FINAL = 1, /* the hand-over's: nothing comes after this mark */
    WIRE_CLAIM_LAST = 2,  /* no further claim belongs to this mark */
    WIRE_CLAIM_SPLIT = 4, /* with FINAL: the copy lacks what the disk's MISSING named */
};
struct wire_claim {
    uint16_t disk, flags;
    uint32_t sequence;
};
void wire_claim_encode(const struct wire_claim *claim, uint8_t ret[WIRE_CLAIM_SIZE]);
/* *ret_lineage points into `payload`. */
int wire_claim_decode(const uint8_t *payload, size_t size, struct wire_claim *ret,
                      const uint8_t **ret_lineage, size_t *ret_size, struct err *err);

/* Blocks of a split disk that are wanted, as far as their numbers are above `above`; `upto` is the
 * hand-over's, and no number in the answer is above it. An answer is runs, then the same message as
 * FRAME_FETCHED: what it names and no run brought is as the borrower has it.
 *
 *   0 disk u16   2 flags u16   4 above u32   8 upto u32   12 count u32   16 block u64   24 serial u64 */
#define WIRE_FETCH_SIZE 32
#define WIRE_FETCH_MAX_BLOCKS 256U
#define WIRE_HOT_MAX_EXTENTS 8192U /* of one FRAME_HOT */
struct wire_fetch {
    uint16_t disk;
    uint32_t above, upto, count;
    uint64_t block;
    uint64_t serial; /* the borrower's own */
};
void wire_fetch_encode(const struct wire_fetch *fetch, uint8_t ret[WIRE_FETCH_SIZE]);
int wire_fetch_decode(const uint8_t *payload, size_t size, struct wire_fetch *ret, struct err *err);

/* How long the guest had stood still when this was sent, and how long a question and its answer take.
 *   0 stood u64, nanoseconds   8 round trip u64, nanoseconds */
#define WIRE_CLOCK_SIZE 16
#define WIRE_CLOCK_MOST (UINT64_C(86400) * 1000000000)
struct wire_clock {
    int64_t stood, round_trip; /* 0 to WIRE_CLOCK_MOST */
};
void wire_clock_encode(const struct wire_clock *clock, uint8_t ret[WIRE_CLOCK_SIZE]);
int wire_clock_decode(const uint8_t *payload, size_t size, struct wire_clock *ret, struct err *err);

/* Which extents of a disk have blocks whose numbers are above `above`: the question alone, or with the bits
 * that answer it.   0 disk u16   2 reserved u16   4 above u32   8 bits */
#define WIRE_NEWER_SIZE 8
struct wire_newer {
    uint16_t disk;
    uint32_t above;
};
void wire_newer_encode(const struct wire_newer *newer, uint8_t ret[WIRE_NEWER_SIZE]);
/* *ret_bits points into `payload`. */
int wire_newer_decode(const uint8_t *payload, size_t size, struct wire_newer *ret, const uint8_t **ret_bits,
                      size_t *ret_size, struct err *err);
