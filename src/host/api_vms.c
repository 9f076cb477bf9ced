/* SPDX-License-Identifier: Apache-2.0
 *
 * A VM's life on this host: list, create, start, stop, kill, remove, config.
 */
#include "base/clock.h"
#include "base/json.h"
#include "base/macro.h"
#include "base/pid.h"
#include "host/api.h"
#include "host/vm.h"
#include "host/vm_create.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

#define START_MSEC 60000
#define STOP_MSEC 60000
#define STOP_MAX_MSEC 1800000 /* half an hour */
#define KILL_MSEC 20000

int api_vms(struct host *host, struct request *request, struct answer *ret, struct err *err)
{
    (void)request;
    _cleanup_free_ char(*names)[VM_NAME_SIZE] = NULL;
    _cleanup_json_ json_t *list = json_array();
    size_t count = 0;
    int r = vm_names(host->vms, &names, &count, err);
    for (size_t i = 0; r == 0 && i < count; i++) {
        json_t *vm = NULL;
        r = vm_json(host, names[i], &vm, err);
        if (r == 0)
            json_array_append_new(list, vm);
        else if (r == -ENOENT) /* removed meanwhile */
            r = 0;
    }
    return r < 0 ? r : answer_json(ret, 200, json_pack("{s:O}", "vms", list));
}

static int answer_vm(struct host *host, const char *name, struct answer *ret, struct err *err)
{
    json_t *vm = NULL;
    int r = vm_json(host, name, &vm, err);
    return r < 0 ? r : answer_json(ret, 200, vm);
}

int api_vm(struct host *host, struct request *request, struct answer *ret, struct err *err)
{
    return answer_vm(host, request->args[0], ret, err);
}

int api_vm_create(struct host *host, struct request *request, struct answer *ret, struct err *err)
{
    struct id operation;
    int r = vm_create(host, request, &operation, err);
    return r < 0 ? r : answer_operation(host, &operation, ret, err);
}

/* --- start ---------------------------------------------------------------------------------------------- */

/* The guest is off; its orai-vm, which has just said so, is about to be gone. */
static bool is_ending(const struct host *host, const char *name, int pidfd)
{
    _cleanup_json_ json_t *status = NULL;
    if (vm_ask(host, name, json_pack("{s:s}", "do", "status"), VM_ASK_MSEC, &status, NULL) < 0)
        return vm_process_ends(pidfd, VM_YIELD_MSEC);
    const char *state = json_str(status, "state", "");
    bool off = strcmp(state, "stopped") == 0 || strcmp(state, "crashed") == 0;
    return off && vm_process_ends(pidfd, VM_YIELD_MSEC);
}

static int check_startable(struct host *host, const char *name, bool fork_old_copy, struct err *err)
{
    _cleanup_close_ int pidfd = -1;
    struct epoch_record record;
    int r = vm_record(host, name, &record, err);
    if (r < 0)
        return r;
    const char *peer = record.peer.name[0] ? record.peer.name : "another host";
    if (record.role == EPOCH_REPLICA && !fork_old_copy) {
        err_set(err, EBUSY, "\"%s\" is on %s (epoch %llu); here is only a copy of it", name, peer,
                (unsigned long long)record.epoch);
        return err_hint(
            err, "on %s: orai move %s %s; or, if that host is lost for good: orai start %s --fork-old-copy",
            peer, name, host->options.name, name);
    }
    if (record.role == EPOCH_COMMITTED || record.role == EPOCH_ARRIVING) {
        err_set(err, EBUSY, "a move of \"%s\" between this host and %s is not finished", name, peer);
        return err_hint(err, "orai status %s; orai recover %s", name, name);
    }
    if (record.role == EPOCH_REPLICA)
        r = record.lent ? vm_end_lending(host, name, err) : vm_end_sharing(host, name, err);
    if (r < 0)
        return r;
    return vm_process(host, name, &pidfd) < 0 || is_ending(host, name, pidfd)
               ? 0
               : err_set(err, EBUSY, "\"%s\" runs already", name);
}

static int start(struct host *host, const char *name, bool fork_old_copy, struct err *err)
{
    static const char *const up[] = {"running", "paused", NULL};
    int pidfd = -1;
    int r = check_startable(host, name, fork_old_copy, err);
    if (r == 0)
        r = vm_spawn(host, name, &(struct vm_mode){.name = "start", .fork_old_copy = fork_old_copy}, &pidfd,
                     err);
    if (r == 0)
        r = vm_await(host, name, pidfd, up, clock_now() + START_MSEC * NSEC_PER_MSEC, err);
    if (r == 0)
        r = vm_set_desired(host->vms, name, true, err);
    if (pidfd >= 0)
        vm_watch(host->vms, name, pidfd);
    return r;
}

int api_vm_start(struct host *host, struct request *request, struct answer *ret, struct err *err)
{
    static const char *const members[] = {"fork_old_copy", NULL};
    const char *name = request->args[0];
    bool fork_old_copy = false;
    int r = request_body(request, true, members, err);
    if (r == 0)
        r = body_flag(request->body, "fork_old_copy", &fork_old_copy, err);
    if (r == 0)
        r = vm_lookup(host->vms, name, NULL, err);
    if (r == 0)
        r = vm_claim(host->vms, name, "being started", err);
    if (r < 0)
        return r;
    r = start(host, name, fork_old_copy, err);
    vm_release(host->vms, name);
    return r < 0 ? r : answer_vm(host, name, ret, err);
}

/* --- stop and kill -------------------------------------------------------------------------------------- */

static int stop(struct host *host, const char *name, uint64_t msec, struct err *err)
{
    _cleanup_close_ int pidfd = -1;
    if (vm_process(host, name, &pidfd) < 0)
        return err_set(err, EBUSY, "\"%s\" does not run", name);
    int r = vm_ask(host, name, json_pack("{s:s, s:I}", "do", "stop", "timeout_ms", (json_int_t)msec),
                   VM_TELL_MSEC, NULL, err);
    if (r < 0 || msec == 0 || vm_process_ends(pidfd, (int)msec))
        return r;
    err_set(err, ETIMEDOUT, "the guest of \"%s\" did not shut down within %llu s of the power button", name,
            (unsigned long long)msec / 1000);
    return err_hint(err, "stop it from within, or: orai kill %s", name);
}

int api_vm_stop(struct host *host, struct request *request, struct answer *ret, struct err *err)
{
    static const char *const members[] = {"timeout_ms", NULL};
    const char *name = request->args[0];
    uint64_t msec = STOP_MSEC;
    int r = request_body(request, true, members, err);
    if (r == 0)
        r = body_number(request->body, "timeout_ms", 0, STOP_MAX_MSEC, &msec, err);
    if (r == 0)
        r = vm_lookup(host->vms, name, NULL, err);
    if (r == 0)
        r = stop(host, name, msec, err);
    return r < 0 ? r : answer_vm(host, name, ret, err);
}

/* Without orai-vm (it failed too often, say) QEMU itself is ended. */
static int kill_qemu(struct host *host, const char *name, struct err *err)
{
    _cleanup_close_ int pidfd = -1;
    struct epoch_record record;
    int r = vm_qemu(host, name, &pidfd);
    if (r < 0)
        return err_set(err, EBUSY, "\"%s\" does not run", name);
    r = vm_record(host, name, &record, err);
    if (r == 0 && record.role != EPOCH_OWNER) {
        err_set(err, EBUSY, "a move of \"%s\" is not finished: its QEMU may be needed", name);
        return err_hint(err, "orai recover %s", name);
    }
    if (r == 0 && (r = pid_signal_wait(pidfd, SIGKILL, KILL_MSEC)) < 0)
        r = err_sys(err, r, "cannot end QEMU of \"%s\"", name);
    return r == 0 ? vm_set_desired(host->vms, name, false, err) : r;
}

static int kill_vm(struct host *host, const char *name, struct err *err)
{
    _cleanup_close_ int pidfd = -1;
    if (vm_process(host, name, &pidfd) < 0)
        return kill_qemu(host, name, err);
    int r = vm_ask(host, name, json_pack("{s:s}", "do", "kill"), KILL_MSEC, NULL, err);
    if (r < 0)
        return r;
    return vm_process_ends(pidfd, KILL_MSEC)
               ? 0
               : err_set(err, ETIMEDOUT, "orai-vm of \"%s\" does not end", name);
}

int api_vm_kill(struct host *host, struct request *request, struct answer *ret, struct err *err)
{
    const char *name = request->args[0];
    int r = vm_lookup(host->vms, name, NULL, err);
    if (r == 0)
        r = vm_claim(host->vms, name, "being killed", err);
    if (r < 0)
        return r;
    r = kill_vm(host, name, err);
    if (r == 0)
        r = vm_set_desired(host->vms, name, false, err);
    vm_release(host->vms, name);
    return r < 0 ? r : answer_vm(host, name, ret, err);
}

/* --- remove and config ---------------------------------------------------------------------------------- */

static int check_rests(struct host *host, const char *name, struct err *err)
{
    _cleanup_close_ int pidfd = -1;
    _cleanup_close_ int qemu = -1;
    if (vm_process(host, name, &pidfd) < 0 && vm_qemu(host, name, &qemu) < 0)
        return 0;
    err_set(err, EBUSY, "\"%s\" runs", name);
    return err_hint(err, "orai stop %s", name);
}

/* Only the VM itself: a copy goes by another verb, so that nobody takes one for the other. */
static int check_owner(struct host *host, const char *name, struct err *err)
{
    struct epoch_record record = {0};
    int r = check_rests(host, name, err);
    if (r == 0)
        r = vm_record(host, name, &record, err);
    if (r < 0 || record.role == EPOCH_OWNER)
        return r;
    if (record.role == EPOCH_REPLICA) {
        err_set(err, EBUSY, "here is only a copy of \"%s\"; the VM is on %s", name, record.peer.name);
        return err_hint(err, "orai replica drop %s deletes the copy", name);
    }
    err_set(err, EBUSY, "a move of \"%s\" is not finished", name);
    return err_hint(err, "orai recover %s", name);
}

static int remove_vm(struct host *host, const char *name, struct err *err)
{
    int r = check_owner(host, name, err);
    if (r == 0)
        r = vm_dir_remove(host, name, err);
    if (r == 0)
        r = vm_forget(host->vms, name, err);
    if (r == 0)
        event_add(host->events, "vm.removed", name, NULL);
    return r;
}

int api_vm_remove(struct host *host, struct request *request, struct answer *ret, struct err *err)
{
    const char *name = request->args[0];
    int r = vm_lookup(host->vms, name, NULL, err);
    if (r == 0)
        r = vm_claim(host->vms, name, "being removed", err);
    if (r < 0)
        return r;
    r = remove_vm(host, name, err);
    vm_release(host->vms, name);
    return r < 0 ? r : answer_ok(ret);
}

static int load_config(struct host *host, const char *name, struct vm_config *config, struct err *err)
{
    char dir[PATH_MAX];
    vm_dir(host, name, dir);
    int r = vm_config_load(dir, config, err);
    if (r == -ENOENT)
        r = err_set(err, ENOENT, "the copy of \"%s\" that began to come here has no config yet", name);
    return r;
}

int api_vm_config(struct host *host, struct request *request, struct answer *ret, struct err *err)
{
    _cleanup_free_ struct vm_config *config = malloc(sizeof *config);
    int r = vm_lookup(host->vms, request->args[0], NULL, err);
    if (r == 0)
        r = config ? load_config(host, request->args[0], config, err) : err_set(err, ENOMEM, "out of memory");
    return r < 0 ? r : answer_json(ret, 200, vm_config_to_json(config));
}

/* What a config may not change: who the VM is, and disks, which are more than their names. */
static int check_change(struct host *host, const struct vm_config *old, const struct vm_config *new,
                        struct err *err)
{
    char dir[PATH_MAX], path[PATH_MAX];
    const char *const files[] = {new->kernel, new->initrd};
    if (strcmp(old->name, new->name) != 0 || !id_equal(&old->id, &new->id))
        return err_set(err, EINVAL, "a VM's name and id cannot be changed");
    bool same = old->disk_count == new->disk_count;
    for (size_t i = 0; same && i < old->disk_count; i++)
        same =
            strcmp(old->disks[i].file, new->disks[i].file) == 0 &&
            old->disks[i].size == new->disks[i].size &&strcmp(old->disks[i].image, new->disks[i].image) == 0;
    if (!same)
        return err_set(err, EINVAL, "disks cannot be changed by editing the config");
    vm_dir(host, new->name, dir);
    for (size_t i = 0; i < ARRAY_SIZE(files); i++)
        if (files[i][0] && snprintf(path, sizeof path, "%s/%s", dir, files[i]) < (int)sizeof path &&
            access(path, F_OK) < 0)
            return err_set(err, EINVAL, "there is no file \"%s\" in %s", files[i], dir);
    return 0;
}

static int put_config(struct host *host, const char *name, const json_t *body, json_t **ret, struct err *err)
{
    _cleanup_free_ struct vm_config *config = calloc(2, sizeof *config);
    char dir[PATH_MAX];
    if (!config)
        return err_set(err, ENOMEM, "out of memory");
    struct vm_config *old = &config[0], *new = &config[1];
    int r = check_owner(host, name, err);
    if (r == 0)
        r = load_config(host, name, old, err);
    if (r == 0)
        r = vm_config_from_json(body, "the config", new, err);
    if (r == 0)
        r = check_change(host, old, new, err);
    vm_dir(host, name, dir);
    if (r == 0)
        r = vm_config_save(dir, new, err);
    if (r == 0)
        *ret = vm_config_to_json(new);
    return r;
}

int api_vm_config_put(struct host *host, struct request *request, struct answer *ret, struct err *err)
{
    const char *name = request->args[0];
    json_t *config = NULL;
    int r = request->body ? vm_lookup(host->vms, name, NULL, err)
                          : err_set(err, EINVAL, "the request needs a body");
    if (r == 0)
        r = vm_claim(host->vms, name, "being edited", err);
    if (r < 0)
        return r;
    r = put_config(host, name, request->body, &config, err);
    vm_release(host->vms, name);
    return r < 0 ? r : answer_json(ret, 200, config);
}
