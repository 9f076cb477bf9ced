/* SPDX-License-Identifier: Apache-2.0 */
/* The serial line, where pulse says what people and tests must see even when the network is gone. */
#pragma once

void serial_open(void);

/* One line; safe from every thread. Does not wait for anything but the serial port. */
__attribute__((format(printf, 1, 2))) void serial_say(const char *format, ...);
