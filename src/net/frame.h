/* SPDX-License-Identifier: Apache-2.0
 *
 * frame: reads a guest's addresses out of its Ethernet frames, and builds the frames that announce a guest.
 * Pure; the frames are the guest's and not trusted.
 */
#pragma once

#include "net/address.h"

#define FRAME_MAX 86 /* the longest that is built here: a neighbour advertisement */

/* The address that `frame` (its first `size` bytes) proves its sender `mac` to use; false when it proves
 * none. ARP (RFC 826; not probes, RFC 5227), neighbour and router discovery (RFC 4861), or plain IPv4.
 * *ret_plain: by plain IPv4 only, which a guest that is a router also sends for others. */
bool frame_learn(const uint8_t mac[MAC_SIZE], const uint8_t *frame, size_t size, struct address *ret,
                 bool *ret_plain);

/* Each writes one frame to `frame` (FRAME_MAX bytes) and returns its length. */

/* RARP request with which QEMU, too, tells bridges where a MAC is (RFC 903). */
size_t frame_rarp(const uint8_t mac[MAC_SIZE], uint8_t *frame);
/* ARP announcement (RFC 5227, 2.3): as a request, or as the reply that some stacks want instead. */
size_t frame_arp(const uint8_t mac[MAC_SIZE], const struct address *address, bool reply, uint8_t *frame);
/* Unsolicited neighbour advertisement to all nodes, override set (RFC 4861, 7.2.6). */
size_t frame_advertisement(const uint8_t mac[MAC_SIZE], const struct address *address, uint8_t *frame);
