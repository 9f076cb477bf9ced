/* SPDX-License-Identifier: Apache-2.0
 *
 * A guest's Ethernet frames: whatever is learned from one can be announced again, and is learned from that.
 */
#include "net/frame.h"

#include "base/macro.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint8_t mac[MAC_SIZE] = {0x52, 0x54, 0, 0x12, 0x34, 0x56}, frame[FRAME_MAX];
    struct address address, again;
    bool plain;
    if (!frame_learn(mac, data, size, &address, &plain))
        return 0;
    assert(address_usable(&address));
    size_t built =
        address.ipv6 ? frame_advertisement(mac, &address, frame) : frame_arp(mac, &address, false, frame);
    assert(built <= sizeof frame);
    assert(frame_learn(mac, frame, built, &again, &plain));
    assert(!plain && memcmp(again.bytes, address.bytes, sizeof again.bytes) == 0);
    return 0;
}
