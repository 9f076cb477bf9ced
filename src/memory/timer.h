/* SPDX-License-Identifier: Apache-2.0
 *
 * timer: sets an emulated guest's clocks forward, in QEMU's stream at the destination, by the time that the
 * guest stood still. QEMU stops them at the pause (its vm_clock, which HPET, PM timer, PIT and APIC count
 * by, and the guest's TSC) and would let them go on where they stopped.
 *
 * They are one section of the device state, "timer" (softmmu/cpu-timers.c in 7.2, system/cpu-timers.c in
 * 10.0), the first of QEMU's that is not RAM:
 *
 *   04  be32 section  05 "timer"  be32 instance 0  be32 version 2
 *   be64 ticks, 8 bytes unused, be64 ns        both as they were when the guest stopped
 *   7e  be32 section
 *
 * How far forward can only be said when it is known how long it still takes until the guest goes on. So the
 * device state is held back until then:
 *
 *   before the switch   RAM, END | FULL "timer" ... FULL | EOF, VMDESCRIPTION
 *                       passes   | timer_let_go          | timer_finish, with a second "timer" before it:
 *                                |                       | QEMU takes the newest
 *   memory follows      PACKAGED { LISTEN, FULL "timer" ... RUN }
 *                       held until it is whole, for QEMU reads it whole; "timer" is rewritten
 *
 * A device state whose end cannot be found goes whole at timer_let_go, "timer" rewritten. It never fails of
 * itself: where it does not find what it looks for, the stream passes as it is and `timer_strange` says why.
 * At most TIMER_MOST is held. Incremental, knows no clock; one thread at a time.
 */
#pragma once

#include "base/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define TIMER_MOST (64U << 20)

struct timer;

/* To QEMU; less than all only if it fails. */
typedef int timer_write_fn(void *arg, const void *data, size_t size, size_t *ret_written, struct err *err);
/* How far the clocks are to be set forward, as seen when the answer is on its way to QEMU at once. `loads`:
 * QEMU has yet to load the devices. Both 0: they stay as they are. */
struct timer_shift {
    int64_t nsec, ticks;
};
typedef struct timer_shift timer_shift_fn(void *arg, bool loads);

int timer_new(timer_write_fn *write, void *write_arg, timer_shift_fn *shift, void *shift_arg,
              struct timer **ret, struct err *err);
/* Takes bytes of the stream, all of them unless it fails. */
int timer_take(struct timer *timer, const void *data, size_t size, struct err *err);
/* All of RAM has been written, and what came of the device state, or its end, is held. */
bool timer_holds(const struct timer *timer);
/* Nothing passes here any more but what comes. */
bool timer_is_over(const struct timer *timer);
/* In a stream whose memory goes before the switch: QEMU may load the devices, */
int timer_let_go(struct timer *timer, struct err *err);
/* and has done so. */
int timer_finish(struct timer *timer, struct err *err);
/* Why the clocks were not set; NULL: nothing is wrong. */
const char *timer_strange(const struct timer *timer);
void timer_free(struct timer *timer);
