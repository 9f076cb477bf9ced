/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pulse: the tiny guest's only program. It keeps a disk, memory and a network busy in a way that can be
 * verified, so that a test can prove that a move lost nothing:
 *
 *   disk      numbered records to /dev/vda, some read back; the
 *             same on /dev/vdb if there is one                      records.h, disk.h
 *   memory    a buffer of known pages, rewritten and verified      memory.h
 *   beacon    a numbered UDP packet each 10 ms                     beacon.h
 *   control   a line protocol on TCP port 7000                     control.h
 *
 * Each part has a thread of its own and its own state. A part whose device is missing is left out: the serial
 * line says so, and all others go on. pulse runs as process 1 and never ends.
 */
#include "beacon.h"
#include "control.h"
#include "disk.h"
#include "memory.h"
#include "options.h"
#include "pattern.h"
#include "serial.h"

#include <inttypes.h>
#include <signal.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

static const char *const disks[PULSE_DISKS] = {"/dev/vda", "/dev/vdb"};

/* Need only be unique: waiting until the kernel calls its random numbers secure would cost a second of each
 * boot. */
static uint64_t unique_id(void)
{
    uint64_t id = 0;
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (getrandom(&id, sizeof(id), GRND_INSECURE) != sizeof(id))
        serial_say("pulse: no random numbers: the boot id is made from the clock");
    return id ^ pattern_mix((uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec);
}

static void start_parts(struct pulse *pulse, const struct options *options)
{
    int r = 0;
    for (size_t i = 0; r == 0 && i < PULSE_DISKS && (i == 0 || access(disks[i], F_OK) == 0); i++)
        if ((r = disk_start(&pulse->disks[i], disks[i], options, pulse->boot)) < 0)
            serial_say("pulse: no disk: %s: %s", disks[i], strerror(-r));
    if (options->memory_mib > 0 &&
        (pulse->memory = memory_start(options->memory_mib, options->dirty_mib)) == NULL)
        serial_say("pulse: no memory pattern: cannot have %" PRIu64 " MiB", options->memory_mib);
    if (options->udp[0] != '\0' && (r = beacon_start(&pulse->beacon, options->udp, pulse->boot)) < 0)
        serial_say("pulse: no beacon to %s: %s", options->udp, strerror(-r));
}

int main(void)
{
    serial_open();
    signal(SIGPIPE, SIG_IGN); /* clients come and go */
    struct options options;
    options_from_kernel(&options);
    struct pulse pulse = {.boot = unique_id()};
    start_parts(&pulse, &options);

    int listener = control_listen();
    if (listener < 0)
        serial_say("pulse: no control port: %s", strerror(-listener));
    serial_say("READY");
    if (listener >= 0)
        control_serve(listener, &pulse);
    for (;;)
        pause();
}
