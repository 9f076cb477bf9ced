/* SPDX-License-Identifier: Apache-2.0 */
#include "host/vm_create.h"

#include "base/file.h"
#include "base/json.h"
#include "base/macro.h"
#include "host/client.h"
#include "host/facts.h"
#include "host/image.h"
#include "host/vm.h"
#include "host/vm_media.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define DEFAULT_MEMORY (512 * MiB)
#define PEER_MSEC 2000           /* a peer that is slower has no say in the machine type */
#define ANY_MACHINE "pc-q35-7.2" /* stands in while the rest is checked */

struct creation {
    struct host *host;
    struct id operation;
    json_t *config; /* vm.json to be, perhaps without a machine */
    struct vm_media media;
    char name[VM_NAME_SIZE], dir[PATH_MAX];
};

/* --- the machine type ----------------------------------------------------------------------------------- */

static bool has(const json_t *list, const char *name)
{
    size_t index;
    json_t *entry;
    json_array_foreach(list, index, entry) if (strcmp(json_is_string(entry) ? json_string_value(entry) : "",
                                                      name) == 0) return true;
    return false;
}

const char *vm_pick_machine(const json_t *own, const json_t *const *others, size_t count)
{
    size_t index;
    json_t *entry;
    json_array_foreach(own, index, entry)
    {
        const char *name = json_string_value(entry);
        bool all = name && strncmp(name, "pc-q35-", 7) == 0;
        for (size_t i = 0; all && i < count; i++)
            all = json_array_size(others[i]) == 0 || has(others[i], name);
        if (all)
            return name;
    }
    return NULL;
}

static int ask_peers(struct host *host, struct client_call **ret, size_t *ret_count, struct peer **ret_peers,
                     struct err *err)
{
    size_t count = 0;
    int r = peer_list(host->registry, ret_peers, &count, err);
    if (r < 0)
        return r;
    struct client_call *calls = calloc(count + 1, sizeof *calls);
    if (!calls)
        return err_set(err, ENOMEM, "out of memory");
    for (size_t i = 0; i < count; i++)
        calls[i] = (struct client_call){
            .peer = &(*ret_peers)[i], .method = "GET", .path = "/v1/host", .msec = PEER_MSEC};
    client_calls(host, calls, count);
    *ret = calls;
    *ret_count = count;
    return 0;
}

static int pick_machine(struct host *host, json_t *config, struct err *err)
{
    _cleanup_json_ json_t *facts = qemu_facts_json(host->qemu);
    _cleanup_free_ struct peer *peers = NULL;
    _cleanup_free_ struct client_call *calls = NULL;
    const json_t *own = json_object_get(facts, "machines");
    const char *wanted = json_str(config, "machine", NULL);
    size_t count = 0;
    if (json_array_size(own) == 0)
        return err_set(err, ENOENT, "QEMU cannot be asked for its machine types: %s",
                       json_str(facts, "why", "?"));
    if (wanted)
        return has(own, wanted) ? 0
                                : err_set(err, EINVAL, "QEMU %s of this host has no machine type \"%s\"",
                                          json_str(facts, "version", "?"), wanted);
    int r = ask_peers(host, &calls, &count, &peers, err);
    if (r < 0)
        return r;
    _cleanup_free_ const json_t **lists = calloc(count + 1, sizeof(const json_t *));
    for (size_t i = 0; lists && i < count; i++)
        lists[i] = json_object_get(json_object_get(calls[i].answer, "qemu"), "machines");
    const char *machine = lists ? vm_pick_machine(own, lists, count) : NULL;
    if (machine)
        json_object_set_new(config, "machine", json_string(machine));
    for (size_t i = 0; i < count; i++)
        json_decref(calls[i].answer);
    if (machine)
        return 0;
    err_set(err, ENOTSUP, "no q35 machine type is known to the QEMU of every peer");
    return err_hint(err, "choose one with --machine; the VM can then move only to hosts that have it");
}

/* --- the config ----------------------------------------------------------------------------------------- */

static void make_mac(char text[18])
{
    uint8_t random[3];
    struct id id = id_random();
    memcpy(random, id.bytes, sizeof random);
    snprintf(text, 18, "52:54:00:%02x:%02x:%02x", random[0], random[1], random[2]);
}

static int resolve_image(struct host *host, json_t *disk, struct err *err)
{
    _cleanup_json_ json_t *image = NULL;
    const char *name = json_str(disk, "image", "");
    if (!name[0])
        return 0;
    int r = image_find(host, name, &image, err);
    if (r < 0)
        return r;
    uint64_t virtual_size = json_u64(image, "virtual_size", 0), size = json_u64(disk, "size", virtual_size);
    if (json_object_get(disk, "size") && json_is_integer(json_object_get(disk, "size")) &&
        size < virtual_size)
        return err_set(err, EINVAL, "the disk (%llu bytes) is smaller than its image \"%s\" (%llu bytes)",
                       (unsigned long long)size, name, (unsigned long long)virtual_size);
    if (!json_object_get(disk, "size"))
        json_object_set_new(disk, "size", json_integer((json_int_t)virtual_size));
    json_object_set(disk, "image", json_object_get(image, "hash"));
    return 0;
}

/* The config's list of that name, with the request's laid over it: entry over entry, and what is more behind
 * them. *ret is the config's. */
static int merge_list(const json_t *body, const char *key, const char *const members[], json_t *config,
                      json_t **ret, struct err *err)
{
    json_t *list = json_object_get(config, key), *wanted = json_object_get(body, key), *entry;
    size_t index;
    if (wanted && !json_is_array(wanted))
        return err_set(err, EINVAL, "\"%s\" must be a list", key);
    if (!json_is_array(list)) {
        list = json_array();
        json_object_set_new(config, key, list);
    }
    json_array_foreach(wanted, index, entry)
    {
        char what[32];
        snprintf(what, sizeof what, "%s: entry %zu", key, index);
        if (!json_is_object(entry))
            return err_set(err, EINVAL, "%s must be an object", what);
        int r = json_only_keys(entry, what, members, err);
        if (r < 0)
            return r;
        if (index == json_array_size(list))
            json_array_append_new(list, json_object());
        json_object_update(json_array_get(list, index), entry);
    }
    *ret = list;
    return 0;
}

/* The request's image is the first disk's; each disk gets its file name. */
static int set_disks(struct creation *c, const struct request *request, json_t *config, struct err *err)
{
    static const char *const members[] = {"size", "device", NULL};
    const json_t *body = request->body;
    json_t *disks, *disk, *image = json_object_get(body, "image");
    size_t index;
    int r = merge_list(body, "disks", members, config, &disks, err);
    if (r < 0)
        return r;
    if (image && json_array_size(disks) == 0)
        json_array_append_new(disks, json_object());
    if (image)
        json_object_set(json_array_get(disks, 0), "image", image);
    json_array_foreach(disks, index, disk)
    {
        char file[32];
        if (strcmp(json_str(disk, "type", "disk"), "disk") != 0)
            return err_set(err, EINVAL, "\"config\": disk %zu: give a CD-ROM with --cdrom, UEFI with --uefi",
                           index);
        snprintf(file, sizeof file, "disk%zu.raw", index);
        json_object_set_new(disk, "file", json_string(file));
        if (r == 0)
            r = vm_media_take_device(&c->media, c->host, &request->credentials, index, disk, err);
        if (r == 0)
            r = resolve_image(c->host, disk, err);
    }
    return r;
}

static int set_nics(const json_t *body, json_t *config, struct err *err)
{
    static const char *const members[] = {"bridge", "mac", NULL};
    json_t *nics, *nic;
    size_t index;
    int r = merge_list(body, "nics", members, config, &nics, err);
    if (r < 0)
        return r;
    json_array_foreach(nics, index, nic)
    {
        char mac[18];
        make_mac(mac);
        if (!json_object_get(nic, "mac"))
            json_object_set_new(nic, "mac", json_string(mac));
    }
    return 0;
}

static int build_config(struct creation *c, const struct request *request, struct err *err)
{
    const json_t *body = request->body;
    static const char *const plain[] = {"memory", "cpus",  "append", "machine",
                                        "cpu",    "accel", "ram",    "autostart"};
    const json_t *given = json_object_get(body, "config");
    char id[ID_TEXT_SIZE];
    struct id random = id_random();
    if (given && !json_is_object(given))
        return err_set(err, EINVAL, "\"config\" must be an object");
    if (json_object_get(given, "kernel") || json_object_get(given, "initrd"))
        return err_set(err, EINVAL,
                       "\"config\": kernel and initrd are files of this host: give their paths with --kernel "
                       "and --initrd");
    _cleanup_json_ json_t *config = given ? json_deep_copy(given) : json_object();
    if (!json_object_get(config, "memory"))
        json_object_set_new(config, "memory", json_integer(DEFAULT_MEMORY));
    for (size_t i = 0; i < ARRAY_SIZE(plain); i++)
        if (json_object_get(body, plain[i]))
            json_object_set(config, plain[i], json_object_get(body, plain[i]));
    json_object_set(config, "name", json_object_get(body, "name"));
    json_object_set_new(config, "id", json_string(id_format(&random, id)));
    if (json_object_get(body, "kernel"))
        json_object_set_new(config, "kernel", json_string("kernel"));
    if (json_object_get(body, "initrd"))
        json_object_set_new(config, "initrd", json_string("initrd"));
    int r = set_nics(body, config, err);
    if (r == 0)
        r = set_disks(c, request, config, err);
    if (r == 0)
        vm_media_add_disks(&c->media, json_object_get(config, "disks"));
    if (r == 0)
        c->config = TAKE_PTR(config);
    return r;
}

/* Everything that can be wrong is said at once, not later in the operation. */
static int check_config(const json_t *config, struct err *err)
{
    _cleanup_json_ json_t *copy = json_deep_copy(config);
    _cleanup_free_ struct vm_config *parsed = malloc(sizeof *parsed);
    if (!copy || !parsed)
        return err_set(err, ENOMEM, "out of memory");
    if (!json_object_get(copy, "machine"))
        json_object_set_new(copy, "machine", json_string(ANY_MACHINE));
    return vm_config_from_json(copy, "the VM", parsed, err);
}

/* --- the folder ----------------------------------------------------------------------------------------- */

static void tell(void *arg, const char *phase, uint64_t done, uint64_t total)
{
    struct creation *c = arg;
    operation_progress(c->host->operations, &c->operation,
                       json_pack("{s:s, s:I, s:I}", "phase", phase, "done_bytes", (json_int_t)done,
                                 "total_bytes", (json_int_t)total));
}

static int fill_folder(struct creation *c, struct vm_config *config, struct err *err)
{
    static const struct epoch_record first = {.epoch = 1, .role = EPOCH_OWNER};
    struct epoch *epoch = NULL;
    int r = vm_media_fill(&c->media, c->host, c->dir, config, tell, c, err);
    if (r == 0)
        r = vm_config_save(c->dir, config, err);
    if (r == 0)
        r = epoch_create(c->dir, &first, &epoch, err);
    epoch_free(epoch);
    return r;
}

static int make(struct creation *c, struct err *err)
{
    _cleanup_free_ struct vm_config *config = calloc(1, sizeof *config);
    struct err unused;
    if (!config)
        return err_set(err, ENOMEM, "out of memory");
    tell(c, "machine", 0, 0);
    int r = pick_machine(c->host, c->config, err);
    if (r == 0)
        r = vm_config_from_json(c->config, "the VM", config, err);
    if (r == 0)
        r = vm_dir_begin(c->host, c->name, c->dir, err);
    if (r < 0)
        return r;
    r = fill_folder(c, config, err);
    if (r == 0)
        r = vm_dir_finish(c->host, c->name, err);
    if (r < 0) {
        file_remove_tree(c->dir, &unused);
        return r;
    }
    r = vm_add(c->host->vms, c->name, &config->id, err);
    if (r < 0)
        vm_dir_remove(c->host, c->name, &unused);
    return r;
}

static void creation_free(struct creation *c)
{
    if (!c)
        return;
    vm_media_done(&c->media);
    json_decref(c->config);
    free(c);
}

static void work(void *arg)
{
    struct creation *c = arg;
    struct err err = ERR_NONE;
    json_t *vm = NULL;
    int r = make(c, &err);
    vm_release(c->host->vms, c->name);
    if (r == 0) {
        event_add(c->host->events, "vm.created", c->name, NULL);
        r = vm_json(c->host, c->name, &vm, &err);
    }
    if (r < 0)
        err_where(&err, c->host->options.name, NULL);
    operation_end(c->host->operations, &c->operation, vm, r < 0 ? &err : NULL);
    creation_free(c);
}

/* --- the request ---------------------------------------------------------------------------------------- */

static int prepare(struct creation *c, const struct request *request, struct err *err)
{
    static const char *const members[] = {"name",  "image", "memory", "cpus",      "disks",  "nics",
                                          "cdrom", "uefi",  "kernel", "initrd",    "append", "machine",
                                          "cpu",   "accel", "ram",    "autostart", "config", NULL};
    const char *name = NULL;
    uint64_t ignored = 0;
    int r = request_body(request, false, members, err);
    if (r == 0)
        r = body_name(request->body, "name", &name, err);
    if (r == 0)
        r = body_number(request->body, "memory", 1, INT64_MAX, &ignored, err);
    if (r == 0 && vm_lookup(c->host->vms, name, NULL, err) == 0)
        r = err_set(err, EEXIST, "there is a VM \"%s\" on this host already", name);
    if (r == 0)
        r = vm_media_open(&c->media, c->host, request, err);
    if (r == 0)
        r = build_config(c, request, err);
    if (r == 0)
        r = check_config(c->config, err);
    if (r == 0)
        snprintf(c->name, sizeof c->name, "%s", name);
    return r;
}

static int begin(struct creation *c, struct err *err)
{
    struct host *host = c->host;
    int r = vm_claim(host->vms, c->name, "being created", err);
    if (r < 0)
        return r;
    r = operation_begin(host->operations, &c->operation, "vm-create", c->name, err);
    if (r == 0 && (r = pool_run(host->jobs, work, c, err)) < 0)
        operation_end(host->operations, &c->operation, NULL, err);
    if (r < 0)
        vm_release(host->vms, c->name);
    return r;
}

int vm_create(struct host *host, const struct request *request, struct id *ret_operation, struct err *err)
{
    struct creation *c = calloc(1, sizeof *c);
    if (!c)
        return err_set(err, ENOMEM, "out of memory");
    c->host = host;
    c->operation = id_random();
    c->media = VM_MEDIA_NONE;
    int r = prepare(c, request, err);
    *ret_operation = c->operation; /* once begun, it is the job's to free */
    if (r == 0)
        r = begin(c, err);
    if (r < 0)
        creation_free(c);
    return r;
}
