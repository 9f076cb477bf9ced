/* SPDX-License-Identifier: Apache-2.0
 *
 * stream: QEMU's migration stream on its way over the move's first data connection, and its return path on
 * the way back; each side has one.
 *
 *   source        QEMU --relay--> stream --FRAME_STREAM--> stream --relay--> QEMU        destination
 *                 QEMU <--relay-- stream <---FRAME_BACK--- stream <--relay-- QEMU
 *
 * A *lasting* one outlives its connection, because a guest runs whose memory is on both hosts: what the
 * peer's QEMU has not taken yet stays here (at most 512 KiB, then QEMU waits; as much as fills the path once
 * widened, up to 16 MiB), each side tells the other how much its QEMU has taken (FRAME_TAKEN, and hello on a
 * new connection), and a new connection goes on at that byte. The two QEMUs notice nothing but a silence. A
 * stream that does not last ends with its connection.
 *
 * Either goes packed (memory/codec.h, FRAME_PACKED) where the destination can unpack it, which then tells by
 * FRAME_TAKEN, too, how much its QEMU has. A page goes as soon as all of it has come from QEMU: packets wait
 * for nothing but the rest of a record. What was packed once and has to be sent again goes as it is.
 */
#pragma once

#include "memory/codec.h"
#include "memory/faults.h"
#include "memory/relay.h"
#include "memory/timer.h"
#include "memory/workset.h"
#include "move/link.h"

struct stream;

/* Both borrow nothing. `sends`: FRAME_STREAM or FRAME_BACK, for what comes from QEMU; nothing is sent, and
 * QEMU waits, before stream_attach. */
int stream_listen(const char *path, uid_t uid, bool lasting, struct stream **ret, struct err *err);
int stream_connect(const char *path, bool lasting, struct stream **ret, struct err *err);
/* A lasting one that goes on where QEMU's connection broke (memory/resync.h). Owns `fd`; `first` is what
 * QEMU has said on it already. `ram` (NULL: QEMU gets all that comes): zero pages of that block are kept away
 * from it, as by stream_keep_holes. */
struct stream_ram {
    const char *block;
    uint64_t size;
    uint32_t section; /* of the stream that broke */
};
int stream_adopt(int fd, enum frame_type sends, const void *first, size_t first_size,
                 const struct stream_ram *ram, struct stream **ret, struct err *err);
/* How far a packed stream that does not last may be ahead of what the destination's QEMU has taken. A link's
 * queue of packets can stand for gigabytes, QEMU would take them for sent, and the guest stand still until
 * they are unpacked. */
struct stream_ahead {
    uint64_t path; /* packed bytes that fill the path, and stand in no queue that matters; 0: not known */
    uint64_t most; /* bytes of QEMU's */
};

/* Source, before stream_attach: it goes packed. `known` (may be NULL) is borrowed; `ahead` is NULL for a
 * lasting one. */
int stream_pack(struct stream *stream, struct known *known, const struct stream_ahead *ahead,
                struct err *err);
/* Source, then, a lasting one: of the RAM block `block`, of `size` bytes, nothing but what is asked for goes
 * until it is widened: what nobody needs before the switch must not be in its way. */
int stream_hold(struct stream *stream, const char *block, uint64_t size, struct err *err);
/* Source, then, one that does not last: notices which pages of that block come again, for stream_touched. */
int stream_notice(struct stream *stream, const char *block, uint64_t size, struct err *err);
/* A lasting one, held: once it is widened these pages go before the rest, behind what is asked for. */
int stream_prefer(struct stream *stream, const struct workset *workset, struct err *err);
/* Pages are not named any more; those that were and are not taken yet are sent. Before stream_attach. */
void stream_forget_known(struct stream *stream);
/* Destination, before stream_attach: it may come packed. decoder_new's arguments. */
int stream_unpack(struct stream *stream, codec_page_fn *page, void *arg, struct err *err);
/* Destination, before the first byte comes: zero pages of the RAM block `block`, of `size` bytes, are kept
 * away from QEMU until it asks for them (memory/holes.h). */
int stream_keep_holes(struct stream *stream, const char *block, uint64_t size, struct err *err);
/* Destination, before the first byte comes, of one that does not last: pages of the RAM block `block`, of
 * `size` bytes, which is the memfd `ram` (borrowed), are put there (memory/direct.h). */
int stream_put_directly(struct stream *stream, const char *block, int ram, uint64_t size, struct err *err);
/* Destination, before the first byte comes, after these: the guest's clocks are set forward on their way, and
 * for that the state of its devices is held back (memory/timer.h, whose calls these are). `shift` is called
 * on the thread of whoever lets go. */
int stream_set_clock(struct stream *stream, timer_shift_fn *shift, void *arg, struct err *err);
int stream_let_go(struct stream *stream, struct err *err);
int stream_finish(struct stream *stream, struct err *err);
/* QEMU has read all that was let through to it: the rest is held back. Never blocks. */
bool stream_is_awaited(struct stream *stream);
/* Destination: what has to be known of a stream so that it can be gone on with (holes_blocks). */
uint8_t *stream_blocks(struct stream *stream, size_t *ret_size, uint32_t *ret_section);
/* Source: lets QEMU's connection in (relay_admit). */
int stream_admit(struct stream *stream, struct err *err);
/* Goes on over `link`, after the first `peer_taken` bytes. -EPROTO: the peer cannot have taken so many, or
 * so few. */
int stream_attach(struct stream *stream, struct link *link, uint64_t peer_taken, struct err *err);
/* The link has been stopped: returns once nobody waits for it here, nor for QEMU on its thread, and nobody
 * will. One that does not last ends. NULL is allowed. */
void stream_interrupt(struct stream *stream);
/* The link has ended; another may come, and its bytes be taken even before it is attached. NULL is allowed.
 */
void stream_detach(struct stream *stream);
bool stream_is_lasting(const struct stream *stream);
/* A frame's bytes for QEMU. Blocks while QEMU does not read. On `link`'s thread. */
int stream_take(struct stream *stream, struct link *link, const void *data, size_t size, struct err *err);
/* The same for a packet. */
int stream_take_packed(struct stream *stream, struct link *link, const void *packet, size_t size,
                       struct err *err);
/* FRAME_TAKEN's payload. */
int stream_peer_took(struct stream *stream, const uint8_t *payload, size_t size, struct err *err);
/* Bytes that our QEMU has taken, for a hello; 0 for NULL. */
uint64_t stream_taken(const struct stream *stream);
/* Bytes that came from our QEMU; 0 for NULL. */
uint64_t stream_bytes(const struct stream *stream);
/* Bytes that were sent for them, and how it came to be fewer. NULL is allowed. */
struct stream_count {
    uint64_t sent;
    struct codec_count packed; /* all 0: it goes as it is */
};
struct stream_count stream_count(struct stream *stream);
/* Destination: how long the pages that its QEMU asked for took. false: it cannot be said now, or there is
 * nothing to say. NULL is allowed. */
bool stream_faults(struct stream *stream, struct faults *ret);
/* Adds the pages that the guest is known to have touched: at the destination those that its QEMU asked for, at
 * the source those that came again. NULL is allowed. */
void stream_touched(struct stream *stream, struct workset *workset);
/* A lasting one: what nobody has asked for may go ahead of what will be asked for, from here on, as much as
 * fills the path (window.h); it is thought to hold `path` bytes. */
void stream_widen(struct stream *stream, uint64_t path);
/* From here on what comes from our QEMU is thrown away. */
void stream_discard(struct stream *stream);
/* To our QEMU, as if from the peer's, between two frames of the peer's. */
int stream_inject(struct stream *stream, const void *data, size_t size, struct err *err);
/* QEMU sees its connection end. NULL is allowed. */
void stream_stop(struct stream *stream);
/* Detached. */
void stream_free(struct stream *stream);
