/* SPDX-License-Identifier: Apache-2.0 */
#include "base/json.h"
#include "base/log.h"
#include "base/macro.h"
#include "host/peer.h"
#include "host/vm_internal.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>

struct vm *vms_find(struct vms *vms, const char *name)
{
    for (struct vm *vm = vms->first; vm; vm = vm->next)
        if (!vm->gone && strcmp(vm->name, name) == 0)
            return vm;
    return NULL;
}

static struct vm *find_id(struct vms *vms, const struct id *id)
{
    for (struct vm *vm = vms->first; vm; vm = vm->next)
        if (!vm->gone && id_equal(&vm->id, id))
            return vm;
    return NULL;
}

struct claim *vms_find_claim(struct vms *vms, const char *name)
{
    for (struct claim *claim = vms->claims; claim; claim = claim->next)
        if (strcmp(claim->name, name) == 0)
            return claim;
    return NULL;
}

void vms_wake(struct vms *vms)
{
    eventfd_write(vms->wake, 1);
}

static int missing(const char *name, struct err *err)
{
    err_set(err, ENOENT, "there is no VM \"%.100s\" on this host", name);
    return err_hint(err, "orai list shows the VMs of this host");
}

int vm_lookup(struct vms *vms, const char *name, struct id *ret_id, struct err *err)
{
    pthread_mutex_lock(&vms->lock);
    const struct vm *vm = vms_find(vms, name);
    if (vm && ret_id)
        *ret_id = vm->id;
    pthread_mutex_unlock(&vms->lock);
    return vm ? 0 : missing(name, err);
}

int vm_name_of(struct vms *vms, const struct id *id, char ret[VM_NAME_SIZE])
{
    pthread_mutex_lock(&vms->lock);
    const struct vm *vm = find_id(vms, id);
    if (vm)
        memcpy(ret, vm->name, VM_NAME_SIZE);
    pthread_mutex_unlock(&vms->lock);
    return vm ? 0 : -ENOENT;
}

int vm_control_path(struct vms *vms, const struct id *id, char ret[PATH_MAX])
{
    char name[VM_NAME_SIZE];
    int r = vm_name_of(vms, id, name);
    if (r == 0)
        vm_run_path(vms->host, name, "control.sock", ret);
    return r;
}

static int compare_names(const void *a, const void *b)
{
    return strcmp(a, b);
}

int vm_names(struct vms *vms, char (**ret)[VM_NAME_SIZE], size_t *ret_count, struct err *err)
{
    size_t count = 0, used = 0;
    pthread_mutex_lock(&vms->lock);
    for (const struct vm *vm = vms->first; vm; vm = vm->next)
        count += !vm->gone;
    char(*names)[VM_NAME_SIZE] = calloc(count + 1, sizeof *names);
    for (const struct vm *vm = vms->first; vm && names; vm = vm->next)
        if (!vm->gone)
            memcpy(names[used++], vm->name, VM_NAME_SIZE);
    pthread_mutex_unlock(&vms->lock);
    if (!names)
        return err_set(err, ENOMEM, "out of memory");
    qsort(names, used, sizeof *names, compare_names);
    *ret = names;
    *ret_count = used;
    return 0;
}

static struct vm *insert(struct vms *vms, const char *name, const struct id *id, bool desired)
{
    struct vm *vm = calloc(1, sizeof *vm);
    if (!vm)
        return NULL;
    memcpy(vm->name, name, strnlen(name, sizeof vm->name - 1)); /* peer_name_ok(): all of it */
    vm->id = *id;
    vm->desired = desired;
    vm->fd = vm->pidfd = vm->expected_pidfd = -1;
    vm->next = vms->first;
    vms->first = vm;
    return vm;
}

/* Locked. */
static int add(struct vms *vms, const char *name, const struct id *id, struct err *err)
{
    char text[ID_TEXT_SIZE];
    if (vms_find(vms, name))
        return err_set(err, EEXIST, "a VM \"%s\" is on this host already", name);
    const struct vm *same = find_id(vms, id);
    if (same)
        return err_set(err, EEXIST, "this VM is on this host already, under the name \"%s\"", same->name);
    _cleanup_json_ json_t *row =
        json_pack("{s:s, s:s, s:s}", "name", name, "id", id_format(id, text), "desired", "stopped");
    int r = registry_insert(vms->host->registry, REGISTRY_VMS, row, err);
    if (r == 0 && !insert(vms, name, id, false))
        r = err_set(err, ENOMEM, "out of memory");
    return r;
}

int vm_add(struct vms *vms, const char *name, const struct id *id, struct err *err)
{
    pthread_mutex_lock(&vms->lock);
    int r = add(vms, name, id, err);
    pthread_mutex_unlock(&vms->lock);
    return r;
}

int vm_forget(struct vms *vms, const char *name, struct err *err)
{
    pthread_mutex_lock(&vms->lock);
    int r = registry_remove(vms->host->registry, REGISTRY_VMS, name, err);
    struct vm *vm = r == 0 || r == -ENOENT ? vms_find(vms, name) : NULL;
    if (vm)
        vm->gone = true;
    pthread_mutex_unlock(&vms->lock);
    vms_wake(vms);
    return vm ? 0 : r;
}

/* --- claims --------------------------------------------------------------------------------------------- */

int vm_claim(struct vms *vms, const char *name, const char *what, struct err *err)
{
    struct claim *claim = malloc(sizeof *claim);
    if (!claim)
        return err_set(err, ENOMEM, "out of memory");
    snprintf(claim->name, sizeof claim->name, "%s", name);
    claim->what = what;
    pthread_mutex_lock(&vms->lock);
    const struct claim *other = vms_find_claim(vms, name);
    const char *busy = other ? other->what : NULL;
    if (!other) {
        claim->next = vms->claims;
        vms->claims = claim;
    }
    pthread_mutex_unlock(&vms->lock);
    if (!busy)
        return 0;
    free(claim);
    err_set(err, EBUSY, "the VM \"%s\" is %s just now", name, busy);
    return err_hint(err, "try again in a moment");
}

void vm_release(struct vms *vms, const char *name)
{
    pthread_mutex_lock(&vms->lock);
    for (struct claim **at = &vms->claims; *at; at = &(*at)->next)
        if (strcmp((*at)->name, name) == 0) {
            struct claim *claim = *at;
            *at = claim->next;
            free(claim);
            break;
        }
    pthread_mutex_unlock(&vms->lock);
    vms_wake(vms);
}

/* --- desired state and moves ---------------------------------------------------------------------------- */

int vm_set_desired(struct vms *vms, const char *name, bool running, struct err *err)
{
    _cleanup_json_ json_t *members = json_pack("{s:s}", "desired", running ? "running" : "stopped");
    pthread_mutex_lock(&vms->lock);
    struct vm *vm = vms_find(vms, name);
    int r = vm ? 0 : missing(name, err);
    if (vm && vm->desired != running) {
        r = registry_update(vms->host->registry, REGISTRY_VMS, name, members, err);
        if (r == 0)
            vm->desired = running;
    }
    pthread_mutex_unlock(&vms->lock);
    return r;
}

bool vm_desired(struct vms *vms, const char *name)
{
    pthread_mutex_lock(&vms->lock);
    const struct vm *vm = vms_find(vms, name);
    bool desired = vm && vm->desired;
    pthread_mutex_unlock(&vms->lock);
    return desired;
}

int vm_begin_move(struct vms *vms, const char *name, const struct id *move, struct err *err)
{
    char text[ID_TEXT_SIZE];
    pthread_mutex_lock(&vms->lock);
    struct vm *vm = vms_find(vms, name);
    int r = 0;
    if (!vm) {
        r = missing(name, err);
    } else if (!id_is_zero(&vm->move)) {
        err_set(err, EBUSY, "a move of \"%s\" is under way already (operation %s)", name,
                id_format(&vm->move, text));
        r = err_hint(err, "orai status %s shows it, orai cancel %s ends it", name, name);
    } else {
        vm->move = *move;
        vm->move_cancelled = false;
    }
    pthread_mutex_unlock(&vms->lock);
    return r;
}

void vm_end_move(struct vms *vms, const char *name, const struct id *move)
{
    pthread_mutex_lock(&vms->lock);
    struct vm *vm = vms_find(vms, name);
    if (vm && id_equal(&vm->move, move))
        vm->move = (struct id){0};
    pthread_mutex_unlock(&vms->lock);
}

bool vm_cancel_move(struct vms *vms, const char *name)
{
    pthread_mutex_lock(&vms->lock);
    struct vm *vm = vms_find(vms, name);
    bool moving = vm && !id_is_zero(&vm->move);
    if (moving)
        vm->move_cancelled = true;
    pthread_mutex_unlock(&vms->lock);
    return moving;
}

bool vm_move_cancelled(struct vms *vms, const char *name)
{
    pthread_mutex_lock(&vms->lock);
    const struct vm *vm = vms_find(vms, name);
    bool cancelled = vm && vm->move_cancelled;
    pthread_mutex_unlock(&vms->lock);
    return cancelled;
}

void vm_note_arrival(struct vms *vms, const char *name, const struct id *move)
{
    pthread_mutex_lock(&vms->lock);
    struct vm *vm = vms_find(vms, name);
    if (vm)
        vm->arrival = *move;
    pthread_mutex_unlock(&vms->lock);
}

int vm_of_arrival(struct vms *vms, const struct id *move, char ret[VM_NAME_SIZE])
{
    int r = -ENOENT;
    pthread_mutex_lock(&vms->lock);
    for (const struct vm *vm = vms->first; vm && r < 0; vm = vm->next)
        if (!vm->gone && id_equal(&vm->arrival, move)) {
            memcpy(ret, vm->name, VM_NAME_SIZE);
            r = 0;
        }
    pthread_mutex_unlock(&vms->lock);
    return r;
}

/* --- what the keeper is told, and knows ----------------------------------------------------------------- */

void vm_watch(struct vms *vms, const char *name, int pidfd)
{
    pthread_mutex_lock(&vms->lock);
    struct vm *vm = vms_find(vms, name);
    if (vm) {
        vm->expected = true;
        vm->failed = vm->crashed = false;
        close_cleanup(&vm->expected_pidfd);
        vm->expected_pidfd = TAKE_FD(pidfd);
    }
    pthread_mutex_unlock(&vms->lock);
    close_cleanup(&pidfd);
    vms_wake(vms);
}

void vm_retry(struct vms *vms, const char *name)
{
    pthread_mutex_lock(&vms->lock);
    struct vm *vm = vms_find(vms, name);
    if (vm) {
        vm->retry = true;
        vm->failed = vm->crashed = false;
    }
    pthread_mutex_unlock(&vms->lock);
    vms_wake(vms);
}

const char *vm_sorrow(struct vms *vms, const char *name, char reason[256])
{
    const char *sorrow = NULL;
    pthread_mutex_lock(&vms->lock);
    const struct vm *vm = vms_find(vms, name);
    if (vm && (vm->failed || vm->crashed)) {
        sorrow = vm->failed ? "failed" : "crashed";
        memcpy(reason, vm->sorrow, 256);
    }
    pthread_mutex_unlock(&vms->lock);
    return sorrow;
}

/* --- beginning and end ---------------------------------------------------------------------------------- */

/* The id of a folder's VM: its config says so; a partial replica without one is known to the registry only.
 */
static int folder_id(struct vms *vms, const char *name, const json_t *row, struct id *ret)
{
    char dir[PATH_MAX];
    _cleanup_free_ struct vm_config *config = malloc(sizeof *config);
    struct err err;
    vm_dir(vms->host, name, dir);
    if (config && vm_config_load(dir, config, &err) == 0) {
        *ret = config->id;
        return 0;
    }
    if (row && id_parse(json_str(row, "id", ""), ret) == 0)
        return 0;
    log_error("the VM \"%s\" is left out: %s", name, err.text);
    return -EBADMSG;
}

static int scan_one(struct vms *vms, const char *name, struct err *err)
{
    _cleanup_json_ json_t *row = NULL;
    struct id id;
    int r = registry_get(vms->host->registry, REGISTRY_VMS, NULL, name, &row, err);
    if ((r < 0 && r != -ENOENT) || folder_id(vms, name, row, &id) < 0)
        return r == -ENOENT ? 0 : r;
    if (!row) { /* a folder that came by hand, or a kill between rename and row */
        r = add(vms, name, &id, err);
        if (r < 0)
            log_error("the VM \"%s\" is left out: %s", name, err->text);
        return 0;
    }
    bool desired = strcmp(json_str(row, "desired", ""), "running") == 0;
    return insert(vms, name, &id, desired) ? 0 : err_set(err, ENOMEM, "out of memory");
}

/* Rows without a folder: a kill between removing the two. */
static int drop_rows(struct vms *vms, struct err *err)
{
    _cleanup_json_ json_t *rows = NULL;
    size_t index;
    json_t *row;
    int r = registry_list(vms->host->registry, REGISTRY_VMS, &rows, err);
    json_array_foreach(rows, index, row)
    {
        const char *name = json_str(row, "name", "");
        char dir[PATH_MAX];
        vm_dir(vms->host, name, dir);
        if (r == 0 && access(dir, F_OK) < 0 && errno == ENOENT)
            r = registry_remove(vms->host->registry, REGISTRY_VMS, name, err);
    }
    return r;
}

static int scan(struct vms *vms, struct err *err)
{
    char path[PATH_MAX];
    vm_dir(vms->host, "", path);
    DIR *dir = opendir(path);
    if (!dir)
        return err_sys(err, errno, "cannot read %s", path);
    int r = drop_rows(vms, err);
    for (struct dirent *entry; r == 0 && (entry = readdir(dir));)
        if (peer_name_ok(entry->d_name))
            r = scan_one(vms, entry->d_name, err);
    closedir(dir);
    return r;
}

/* Moves that were under way when the oraid before ended go on in orai-vm. */
static int find_moves(struct vms *vms, struct err *err)
{
    _cleanup_json_ json_t *list = NULL;
    size_t index;
    json_t *operation;
    int r = operation_list(vms->host->operations, NULL, OPERATIONS_KEPT, &list, err);
    json_array_foreach(list, index, operation)
    {
        struct vm *vm = vms_find(vms, json_str(operation, "vm", ""));
        struct id id;
        if (strcmp(json_str(operation, "kind", ""), "move") != 0 ||
            strcmp(json_str(operation, "state", ""), "running") != 0 ||
            id_parse(json_str(operation, "id", ""), &id) < 0)
            continue;
        if (vm) {
            vm->move = id;
            continue;
        }
        struct err why;
        err_set(&why, ENOENT, "the VM is not on this host any more");
        operation_end(vms->host->operations, &id, NULL, &why);
    }
    return r;
}

int vms_new(struct host *host, struct vms **ret, struct err *err)
{
    struct vms *vms = calloc(1, sizeof *vms);
    if (!vms)
        return err_set(err, ENOMEM, "out of memory");
    vms->host = host;
    pthread_mutex_init(&vms->lock, NULL);
    vms->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    vm_dirs_clean(host);
    int r = vms->wake < 0 ? err_sys(err, errno, "cannot make an eventfd") : scan(vms, err);
    if (r == 0)
        r = find_moves(vms, err);
    if (r < 0) {
        vms_free(vms);
        return r;
    }
    *ret = vms;
    return 0;
}

int vms_start(struct vms *vms, struct err *err)
{
    int r = pthread_create(&vms->keeper, NULL, vms_keep, vms);
    if (r)
        return err_sys(err, r, "cannot start a thread");
    pthread_setname_np(vms->keeper, "keeper");
    vms->running = true;
    return 0;
}

void vms_free(struct vms *vms)
{
    if (!vms)
        return;
    if (vms->running) {
        pthread_mutex_lock(&vms->lock);
        vms->stop = true;
        pthread_mutex_unlock(&vms->lock);
        vms_wake(vms);
        pthread_join(vms->keeper, NULL);
    }
    while (vms->first) {
        struct vm *vm = vms->first;
        vms->first = vm->next;
        close_cleanup(&vm->fd);
        close_cleanup(&vm->pidfd);
        close_cleanup(&vm->expected_pidfd);
        free(vm);
    }
    while (vms->claims)
        vm_release(vms, vms->claims->name);
    close_cleanup(&vms->wake);
    pthread_mutex_destroy(&vms->lock);
    free(vms);
}
