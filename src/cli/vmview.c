/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/vmview.h"

#include "base/json.h"
#include "base/macro.h"

#include <string.h>

static const struct view view_disks = {
    .columns = (const struct column[]){{"file", "FILE"},
                                       {"type", "TYPE"},
                                       {"size", "SIZE", COLUMN_BYTES},
                                       {"allocated", "TAKES", COLUMN_BYTES},
                                       {"generation", "GENERATION", COLUMN_COUNT},
                                       {"image", "IMAGE"},
                                       {"device", "DEVICE"},
                                       {0}},
};

static const struct view view_nics = {
    .columns = (const struct column[]){{"mac", "MAC"}, {"bridge", "BRIDGE"}, {0}},
};

const struct view view_move = {
    .columns = (const struct column[]){{"state", "State"},
                                       {"from", "From"},
                                       {"to", "To"},
                                       {"stage", "Stage"},
                                       {"phase", "Phase"},
                                       {"elapsed_ms", "Elapsed", COLUMN_MSEC},
                                       {"eta_ms", "Time left", COLUMN_MSEC},
                                       {"converging", "Converging", COLUMN_BOOL},
                                       {"obstacle", "Obstacle"},
                                       {"rate", "Rate", COLUMN_RATE},
                                       {"dirty_rate", "Dirty rate", COLUMN_RATE},
                                       {"disk.sent_bytes", "Disk sent", COLUMN_BYTES},
                                       {"disk.remaining_bytes", "Disk left", COLUMN_BYTES},
                                       {"disk.full_bytes", "Full disk copy", COLUMN_BYTES},
                                       {"disk.base", "Disk base"},
                                       {"memory.sent_bytes", "Memory sent", COLUMN_BYTES},
                                       {"memory.remaining_bytes", "Memory left", COLUMN_BYTES},
                                       {"blackout_ms", "Blackout", COLUMN_MSEC},
                                       {"predicted.seconds", "Predicted time", COLUMN_SECONDS},
                                       {"predicted.blackout_ms", "Predicted blackout", COLUMN_MSEC},
                                       {"predicted.disk_bytes", "Predicted disk", COLUMN_BYTES},
                                       {"predicted.memory_bytes", "Predicted memory", COLUMN_BYTES},
                                       {"notes", "Notes", COLUMN_LIST},
                                       {"error.text", "Error"},
                                       {0}},
};

const struct view view_vm = {
    .columns = (const struct column[]){{"name", "Name"},
                                       {"id", "Id"},
                                       {"state", "State"},
                                       {"reason", "Reason"},
                                       {"desired", "Wanted"},
                                       {"role", "This copy"},
                                       {"peer", "Other host"},
                                       {"epoch", "Epoch", COLUMN_COUNT},
                                       {"forked", "Forked", COLUMN_BOOL},
                                       {"memory", "Memory", COLUMN_BYTES},
                                       {"cpus", "CPUs", COLUMN_COUNT},
                                       {"machine", "Machine"},
                                       {"cpu", "CPU model"},
                                       {"accel", "Accelerator"},
                                       {"uefi", "UEFI", COLUMN_BOOL},
                                       {"ram", "Kind of memory"},
                                       {"ram_in_use", "Kind in use"},
                                       {"autostart", "Starts with host", COLUMN_BOOL},
                                       {"qemu_pid", "QEMU process", COLUMN_COUNT},
                                       {"folder", "Folder"},
                                       {0}},
    .sections = (const struct section[]){{"disks", "Disks", &view_disks},
                                         {"nics", "Network cards", &view_nics},
                                         {"move", "Newest move", &view_move},
                                         {0}},
};

const struct view view_vms = {
    .columns = (const struct column[]){{"name", "NAME"},
                                       {"state", "STATE"},
                                       {"peer", "OTHER HOST"},
                                       {"memory", "MEMORY", COLUMN_BYTES},
                                       {"cpus", "CPUS", COLUMN_COUNT},
                                       {"epoch", "EPOCH", COLUMN_COUNT},
                                       {"reason", "REASON"},
                                       {0}},
    .empty = "No VMs on this host; make one with: orai create NAME --image IMAGE",
};

char *vm_whereabouts(const json_t *vm, const char *host)
{
    const char *name = json_str(vm, "name", "the VM"), *state = json_str(vm, "state", "");
    const char *peer = json_str(vm, "peer", "the other host");
    char *text;
    int length;
    if (strcmp(state, "replica") == 0)
        length = asprintf(&text, "%s is on %s; %s has a replica", name, peer, host);
    else if (strcmp(state, "incomplete") == 0)
        length = asprintf(&text, "%s is on %s; %s has part of a replica", name, peer, host);
    else if (strcmp(state, "committed") == 0)
        length =
            asprintf(&text, "%s is paused on %s until %s answers whether it runs there", name, host, peer);
    else if (strcmp(state, "arriving") == 0)
        length = asprintf(&text, "%s is on %s and on its way to %s", name, peer, host);
    else if (strcmp(state, "leaving") == 0)
        length = asprintf(&text, "%s is running on %s and on its way to %s", name, host, peer);
    else
        length = asprintf(&text, "%s is %s on %s", name, *state ? state : "in an unknown state", host);
    if (length < 0)
        abort();
    return text;
}
