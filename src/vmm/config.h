/* SPDX-License-Identifier: Apache-2.0
 *
 * config: what a VM is, as its owner may read and edit it: VM_DIR/vm.json (docs/formats.md). It travels with
 * the VM. Every file that it names is a plain name inside VM_DIR, so that it means the same on every host.
 */
#pragma once

#include "base/err.h"
#include "base/id.h"

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#define VM_NAME_SIZE 64
#define VM_MAX_DISKS 16
#define VM_MAX_NICS 8

/* All are raw images that orai-vm serves and a move carries in the same way; they differ in what the guest
 * sees. */
enum vm_disk_type {
    VM_DISK_PLAIN,     /* /dev/vda, /dev/vdb, ...; the first one is booted from */
    VM_DISK_CDROM,     /* read-only; booted from when no plain disk can be */
    VM_DISK_UEFI_VARS, /* the UEFI firmware's variables: a VM that has one boots by UEFI, else by BIOS */
};

/* What its RAM is made of (vmm/ram.h says what each can have). */
enum vm_ram {
    VM_RAM_SHARED,
    VM_RAM_PRIVATE,
    VM_RAM_HUGE,
};

struct vm_disk {
    char file[64];              /* "disk0.raw" */
    uint64_t size;              /* bytes */
    char image[HASH_TEXT_SIZE]; /* content hash of the base image (of a CD-ROM: its own), or "" */
    enum vm_disk_type type;
};

struct vm_nic {
    char bridge[16]; /* the host's bridge that the tap joins; "" = a tap without a bridge */
    char mac[18];    /* "52:54:00:..." */
};

struct vm_config {
    char name[VM_NAME_SIZE]; /* [a-zA-Z0-9][a-zA-Z0-9._-]* */
    struct id id;
    uint64_t memory; /* bytes, a multiple of 2 MiB */
    unsigned cpus;
    char machine[64]; /* versioned, pinned at create: "pc-q35-7.2" */
    char cpu[256];    /* "x86-64-v2" (portable, the default), "host", "max" or a QEMU -cpu value */
    char accel[8];    /* "auto", "kvm", "tcg" */
    enum vm_ram ram;
    bool autostart;              /* when its host has booted */
    char kernel[64], initrd[64]; /* plain names in VM_DIR, or "" */
    char append[2048];
    size_t disk_count, nic_count;
    struct vm_disk disks[VM_MAX_DISKS];
    struct vm_nic nics[VM_MAX_NICS];
};

/* "disk", "cdrom", "uefi-vars" */
const char *vm_disk_type_name(enum vm_disk_type type);
/* "shared", "private", "huge" */
const char *vm_ram_name(enum vm_ram ram);
/* Whether it boots by UEFI. */
bool vm_config_uefi(const struct vm_config *config);

/* Checks every member: bounds, names without slashes, MAC syntax, unknown members (typing errors). The JSON
 * may come from a peer. */
int vm_config_from_json(const json_t *json, const char *what, struct vm_config *ret, struct err *err);
json_t *vm_config_to_json(const struct vm_config *config);
int vm_config_load(const char *vm_dir, struct vm_config *ret, struct err *err);
int vm_config_save(const char *vm_dir, const struct vm_config *config, struct err *err);
