/* SPDX-License-Identifier: Apache-2.0
 *
 * learn: listens on a guest's taps for the addresses that the guest uses, so that they can be announced when
 * it arrives elsewhere. One thread for all NICs of a VM, asleep unless the guest does ARP or neighbour
 * discovery.
 */
#pragma once

#include "net/address.h"

struct learn;

struct learn_nic {
    const char *tap; /* interface name */
    const char *mac;
};

/* Starts to listen on `count` taps (at most 8). Needs CAP_NET_RAW. */
int learn_new(const struct learn_nic *nics, size_t count, struct learn **ret, struct err *err);
void learn_free(struct learn *learn);
/* A list with one object per NIC, as in address.h. Any thread. */
json_t *learn_addresses(struct learn *learn);
/* Adds what another host has learned; entries of MACs that are not ours are ignored. Any thread. */
int learn_add(struct learn *learn, const json_t *addresses, struct err *err);
/* What is known of NIC `index`. Any thread. */
void learn_get(struct learn *learn, size_t index, struct addresses *ret);
