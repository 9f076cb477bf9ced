/* SPDX-License-Identifier: Apache-2.0
 *
 * vm_media: what a new VM is filled with: kernel and initrd, its disks, the CD-ROM, the UEFI variables. Files
 * of this host are opened at the request, with the caller's rights (caller.h), and copied by the job.
 */
#pragma once

#include "host/api.h"
#include "host/host.h"
#include "vmm/config.h"

struct vm_media {
    int kernel, initrd, cdrom, uefi_vars; /* -1 = none */
    uint64_t cdrom_size, uefi_vars_size;  /* bytes */
    char *devices[VM_MAX_DISKS];          /* the block device that this disk is on; NULL = a file */
};

#define VM_MEDIA_NONE                                            \
    (struct vm_media)                                            \
    {                                                            \
        .kernel = -1, .initrd = -1, .cdrom = -1, .uefi_vars = -1 \
    }

/* Opens what the request names, and looks whether it will do. */
int vm_media_open(struct vm_media *media, struct host *host, const struct request *request, struct err *err);
/* Where an entry of the "disks" has a "device": looks whether the caller may use it, keeps it, and puts its
 * size in the place of that member. */
int vm_media_take_device(struct vm_media *media, struct host *host, const struct credentials *caller,
                         size_t index, json_t *disk, struct err *err);
void vm_media_done(struct vm_media *media);
/* Appends their entries to the "disks" of a vm.json to be. */
void vm_media_add_disks(const struct vm_media *media, json_t *disks);

typedef void vm_media_tell_fn(void *arg, const char *phase, uint64_t done, uint64_t total);
/* Makes all files of the VM but vm.json and epoch.json in the new folder `dir`. Gives a CD-ROM its content
 * hash in `config`. What a failure leaves is the caller's to remove, with the folder. */
int vm_media_fill(const struct vm_media *media, struct host *host, const char *dir, struct vm_config *config,
                  vm_media_tell_fn *tell, void *arg, struct err *err);
