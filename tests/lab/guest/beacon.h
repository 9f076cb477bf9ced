/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sends a UDP packet each 10 ms: sequence number from 0 and boot id, both 64 bits big-endian. A number is
 * used up only by a packet that the kernel took, so each gap at the receiver is a packet that the network
 * lost.
 */
#pragma once

#include <stdint.h>

struct beacon;

/* `target` is ADDRESS:PORT. Returns 0 or -errno. */
int beacon_start(struct beacon **ret_beacon, const char *target, uint64_t boot);

/* Packets sent; NULL gives 0. */
uint64_t beacon_sent(const struct beacon *beacon);
