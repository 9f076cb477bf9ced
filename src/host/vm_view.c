/* SPDX-License-Identifier: Apache-2.0
 *
 * A VM as the API shows it: its config, its epoch record, and what orai-vm says when it runs. Each part may
 * be missing (a partial replica has no config yet); the view says so instead of failing.
 */
#include "base/json.h"
#include "base/macro.h"
#include "host/vm.h"
#include "memory/checkpoint.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

struct parts {
    const char *name, *dir;
    struct id id;
    struct vm_config *config; /* NULL: none yet */
    bool has_record;
    struct epoch_record record;
    json_t *status; /* orai-vm's answer, or NULL */
    bool lives;     /* an orai-vm runs, but does not answer */
};

/* What a disk takes; one on a block device takes all of it, and says which. */
static void put_storage(const char *dir, const struct vm_disk *disk, json_t *json)
{
    char path[PATH_MAX], device[PATH_MAX] = "";
    struct stat st;
    uint64_t allocated = 0;
    if (snprintf(path, sizeof path, "%s/%s", dir, disk->file) < (int)sizeof path) {
        ssize_t length = readlink(path, device, sizeof device - 1);
        device[MAX(length, 0)] = '\0';
        if (stat(path, &st) == 0)
            allocated = S_ISBLK(st.st_mode) ? disk->size : (uint64_t)st.st_blocks * 512;
    }
    json_object_set_new(json, "allocated", json_integer((json_int_t)allocated));
    json_object_set_new(json, "device", device[0] ? json_string(device) : json_null());
}

static const json_t *status_disk(const json_t *status, const char *file)
{
    size_t index;
    json_t *disk;
    json_array_foreach(json_object_get(status, "disks"), index,
                       disk) if (strcmp(json_str(disk, "file", ""), file) == 0) return disk;
    return NULL;
}

static json_t *disks_json(const struct parts *p)
{
    json_t *list = json_array();
    for (size_t i = 0; p->config && i < p->config->disk_count; i++) {
        const struct vm_disk *disk = &p->config->disks[i];
        json_t *json =
            json_pack("{s:s, s:s, s:I, s:s?}", "file", disk->file, "type", vm_disk_type_name(disk->type),
                      "size", (json_int_t)disk->size, "image", disk->image[0] ? disk->image : NULL);
        put_storage(p->dir, disk, json);
        const json_t *live = status_disk(p->status, disk->file);
        if (json_is_integer(json_object_get(live, "generation")))
            json_object_set(json, "generation", json_object_get(live, "generation"));
        json_array_append_new(list, json);
    }
    return list;
}

static json_t *nics_json(const struct parts *p)
{
    json_t *list = json_array();
    for (size_t i = 0; p->config && i < p->config->nic_count; i++)
        json_array_append_new(list, json_pack("{s:s, s:s}", "bridge", p->config->nics[i].bridge, "mac",
                                              p->config->nics[i].mac));
    return list;
}

/* The state of a VM whose orai-vm does not run. */
static const char *resting_state(struct host *host, const struct parts *p, char reason[256])
{
    const char *sorrow = vm_sorrow(host->vms, p->name, reason);
    if (sorrow)
        return sorrow;
    if (p->lives) {
        snprintf(reason, 256, "orai-vm runs and does not answer");
        return "unresponsive";
    }
    if (!p->has_record) {
        snprintf(reason, 256, "it has no readable epoch.json: it cannot be told which host may run it");
        return "failed";
    }
    switch (p->record.role) {
    case EPOCH_OWNER:
        if (!vm_desired(host->vms, p->name))
            return "stopped";
        snprintf(reason, 256, "its orai-vm ended and is being started again");
        return "starting";
    case EPOCH_COMMITTED:
        return "committed";
    case EPOCH_ARRIVING:
        return "arriving";
    case EPOCH_REPLICA:
        return p->config ? "replica" : "incomplete";
    }
    return "failed";
}

/* The orai-vm that shares knows a key, people a name. */
static json_t *shares_json(struct host *host, const struct parts *p)
{
    const json_t *shares = json_object_get(p->status, "shares");
    struct fingerprint key;
    struct peer peer;
    if (!json_is_object(shares) || fingerprint_parse(json_str(shares, "key", ""), &key) < 0)
        return json_null();
    bool known = peer_find_key(host->registry, &key, &peer, NULL) == 0;
    json_t *json = json_pack("{s:s?}", "to", known ? peer.name : NULL);
    static const char *const numbers[] = {"connections", "fetches", "bytes"};
    for (size_t i = 0; i < ARRAY_SIZE(numbers); i++)
        json_object_set_new(json, numbers[i], json_integer((json_int_t)json_u64(shares, numbers[i], 0)));
    return json;
}

static void put_state(struct host *host, const struct parts *p, json_t *json)
{
    char reason[256] = "";
    const char *state = json_str(p->status, "state", NULL);
    if (state)
        snprintf(reason, sizeof reason, "%s", json_str(p->status, "reason", ""));
    else
        state = resting_state(host, p, reason);
    json_object_set_new(json, "state", json_string(state));
    json_object_set_new(json, "reason", reason[0] ? json_string(reason) : json_null());
    json_t *pid = json_object_get(p->status, "qemu_pid");
    json_object_set_new(json, "qemu_pid",
                        json_is_integer(pid) && json_integer_value(pid) > 0 ? json_incref(pid) : json_null());
    json_t *ram = json_object_get(p->status, "ram");
    json_object_set_new(json, "ram_in_use", json_is_string(ram) ? json_incref(ram) : json_null());
    json_t *move = json_object_get(p->status, "move");
    json_object_set_new(json, "move", json_is_object(move) ? json_incref(move) : json_null());
    json_t *borrows = json_object_get(p->status, "borrows"), *lends = json_object_get(p->status, "lends");
    json_object_set_new(json, "borrows", json_is_object(borrows) ? json_incref(borrows) : json_null());
    json_object_set_new(json, "lends", json_is_object(lends) ? json_incref(lends) : json_null());
    json_object_set_new(json, "shares", shares_json(host, p));
}

static json_t *render(struct host *host, const struct parts *p)
{
    const struct vm_config *c = p->config;
    char id[ID_TEXT_SIZE];
    json_t *json = json_pack(
        "{s:s, s:s, s:s, s:s, s:I, s:b, s:s?, s:I, s:i, s:s, s:s, s:s, s:s, s:b, s:b, s:o, s:o, s:s}", "name",
        p->name, "id", id_format(&p->id, id), "desired",
        vm_desired(host->vms, p->name) ? "running" : "stopped", "role",
        p->has_record ? epoch_role_name(p->record.role) : "unknown", "epoch", (json_int_t)p->record.epoch,
        "forked", p->record.forked, "peer", p->record.peer.name[0] ? p->record.peer.name : NULL, "memory",
        (json_int_t)(c ? c->memory : 0), "cpus", c ? (int)c->cpus : 0, "machine", c ? c->machine : "", "cpu",
        c ? c->cpu : "", "accel", c ? c->accel : "", "ram", c ? vm_ram_name(c->ram) : "", "autostart",
        c && c->autostart, "uefi", c && vm_config_uefi(c), "disks", disks_json(p), "nics", nics_json(p),
        "folder", p->dir);
    json_object_set_new(json, "checkpoint", json_integer((json_int_t)checkpoint_bytes(p->dir)));
    put_state(host, p, json);
    return json;
}

/* An orai-vm that ends may hang up on who has just asked it; the second time nobody is there. */
static int ask_status(struct host *host, const char *name, json_t **ret)
{
    int r = -EPIPE;
    for (int tries = 0; tries < 2 && (r == -EPIPE || r == -ECONNRESET); tries++)
        r = vm_ask(host, name, json_pack("{s:s}", "do", "status"), VM_ASK_MSEC, ret, NULL);
    return r;
}

int vm_json(struct host *host, const char *name, json_t **ret, struct err *err)
{
    char dir[PATH_MAX];
    struct err unused;
    struct parts p = {.name = name, .dir = dir};
    _cleanup_json_ json_t *status = NULL;
    _cleanup_free_ struct vm_config *config = malloc(sizeof *config);
    int r = vm_lookup(host->vms, name, &p.id, err);
    if (r < 0)
        return r;
    vm_dir(host, name, dir);
    if (config && vm_config_load(dir, config, &unused) == 0)
        p.config = config;
    int asked = ask_status(host, name, &status);
    p.status = status;
    p.lives = asked < 0 && asked != -ENOTCONN;
    /* After the question: a record that is older than the status would be a lie, the other way round none. */
    p.has_record = vm_record(host, name, &p.record, &unused) == 0;
    *ret = render(host, &p);
    return *ret ? 0 : err_set(err, ENOMEM, "out of memory");
}
