/* SPDX-License-Identifier: Apache-2.0
 *
 * host: what all parts of oraid share. Made by main before any thread, read-only afterwards; each pointer's
 * module says which threads may use it.
 */
#pragma once

#include "base/tls.h"
#include "host/event.h"
#include "host/operation.h"
#include "host/pool.h"
#include "host/registry.h"
#include "host/text.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define API_VERSION 1
#define DEFAULT_PORT 7420

struct host_options {
    const char *name; /* default: the host's */
    const char *state_dir, *run_dir;
    const char *listen_address; /* "" = every address */
    const char *advertise;      /* address for peers; NULL = what they see */
    uint16_t port;
    const char *qemu, *qemu_user, *orai_vm;
    const char *firmware; /* folder of the UEFI firmware (vmm/firmware.h) */
    bool faults;
};

struct vms;
struct qemu_facts;

struct host {
    struct host_options options;
    struct tls_identity *identity;
    char fingerprint[HASH_TEXT_SIZE];
    char started[TIME_TEXT];
    struct registry *registry;
    struct events *events;
    struct operations *operations;
    struct pool *requests; /* API handlers */
    struct pool *jobs;     /* operations' work */
    struct pool *verifies; /* work of low priority that may last for hours; a move must not wait for it */
    struct vms *vms;
    struct qemu_facts *qemu;
    atomic_bool stopping; /* long jobs look at it */
};
