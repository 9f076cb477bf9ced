/* SPDX-License-Identifier: Apache-2.0 */
/* The line protocol on TCP port 7000 (see README.md): one thread per client, so a slow command holds up no
 * other. */
#pragma once

#include <stdint.h>

struct beacon;
struct disk;
struct memory;
struct reader;

enum { PULSE_DISKS = 2 };

/* The parts that commands act on; NULL = this guest has none. What is asked of "the disk" is done on each. */
struct pulse {
    uint64_t boot;
    struct disk *disks[PULSE_DISKS]; /* the second only if the first is there */
    struct memory *memory;
    struct beacon *beacon;
    struct reader *reader; /* from the first "read" on */
};

enum { CONTROL_PORT = 7000 };

/* Returns a listening socket or -errno. */
int control_listen(void);

/* Serves clients forever. */
void control_serve(int listener, struct pulse *pulse);
