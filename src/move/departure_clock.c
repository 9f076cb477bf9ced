/* SPDX-License-Identifier: Apache-2.0
 *
 * The source tells how long the guest has stood still, so that the destination can set its clock forward by
 * that (arrival_clock.c). Durations only: no host need know the other's time.
 */
#include "base/clock.h"
#include "move/departure.h"

int departure_tell_clock(struct departure *departure, struct link *link, struct err *err)
{
    int64_t stopped_at = departure->stopped_at;
    if (!departure->clock || !departure_emulated(departure) || !stopped_at)
        return 0;
    uint8_t bytes[WIRE_CLOCK_SIZE];
    struct wire_clock clock = {.stood = clock_now() - stopped_at,
                               .round_trip = (int64_t)(departure->prediction.rtt_ms * NSEC_PER_MSEC)};
    wire_clock_encode(&clock, bytes);
    return link_send(link, FRAME_CLOCK, bytes, sizeof bytes, NULL, 0, err);
}
