/* SPDX-License-Identifier: Apache-2.0 */
/* What the kernel command line says to pulse. README.md lists the words. */
#pragma once

#include <stdint.h>

struct options {
    uint64_t memory_mib; /* pulse.mem */
    uint64_t dirty_mib;  /* pulse.dirty, per second */
    uint64_t rate;       /* pulse.rate, records per second */
    uint64_t region;     /* pulse.region, bytes; 0 = the whole disk */
    uint64_t first;      /* pulse.first, number of the first record */
    uint64_t sync;       /* pulse.sync, records between two fsyncs; 0 = only on request */
    char udp[64];        /* pulse.udp, ADDRESS:PORT; empty = none */
};

/* Unknown words belong to the kernel or to /init and are passed over. */
void options_parse(struct options *options, const char *cmdline);
void options_from_kernel(struct options *options);
