/* SPDX-License-Identifier: Apache-2.0
 *
 * stream: QEMU's migration stream on its way over the move's first data connection, and its return path on
 * the way back; each side has one.
 *
 *   source        QEMU --relay--> stream --FRAME_STREAM--> stream --relay--> QEMU        destination
 *                 QEMU <--relay-- stream <---FRAME_BACK--- stream <--relay-- QEMU
 *
 * A *lasting* one outlives its connection, because a guest runs whose memory is on both hosts: what the
 * peer's QEMU has not taken yet stays here (at most 512 KiB, then QEMU waits; 8 MiB once widened), each side
 * tells the other how much its QEMU has taken (FRAME_TAKEN, and hello on a new connection), and a new
 * connection goes on at that byte. The two QEMUs notice nothing but a silence. A stream that does not last
 * ends with its connection.
 */
#pragma once

#include "memory/relay.h"
#include "move/link.h"

struct stream;

/* Both borrow nothing. `sends`: FRAME_STREAM or FRAME_BACK, for what comes from QEMU; nothing is sent, and
 * QEMU waits, before stream_attach. */
int stream_listen(const char *path, uid_t uid, bool lasting, struct stream **ret, struct err *err);
int stream_connect(const char *path, bool lasting, struct stream **ret, struct err *err);
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
/* FRAME_TAKEN's payload. */
int stream_peer_took(struct stream *stream, const uint8_t *payload, size_t size, struct err *err);
/* Bytes that our QEMU has taken, for a hello; 0 for NULL. */
uint64_t stream_taken(const struct stream *stream);
/* Bytes that came from our QEMU; 0 for NULL. */
uint64_t stream_bytes(const struct stream *stream);
/* A lasting one: what nobody has asked for may go ahead of what will be asked for, from here on. */
void stream_widen(struct stream *stream);
/* From here on what comes from our QEMU is thrown away. */
void stream_discard(struct stream *stream);
/* To our QEMU, as if from the peer's, between two frames of the peer's. */
int stream_inject(struct stream *stream, const void *data, size_t size, struct err *err);
/* QEMU sees its connection end. NULL is allowed. */
void stream_stop(struct stream *stream);
/* Detached. */
void stream_free(struct stream *stream);
