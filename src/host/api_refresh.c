/* SPDX-License-Identifier: Apache-2.0
 *
 * Refreshing a VM that runs here: its QEMU is replaced (move/refresh.h; orai-vm does it, this watches), or
 * its orai-vm is.
 *
 * The VM is claimed meanwhile. When its orai-vm dies, the claim's release lets the keeper start another one,
 * which finds the guest in one of the two QEMUs.
 *
 * When oraid dies, the next one goes on where it was: orai-vm says which operation its refresh belongs to,
 * and the operation which orai-vm is to be replaced.
 */
#include "base/clock.h"
#include "base/file.h"
#include "base/json.h"
#include "base/log.h"
#include "base/macro.h"
#include "host/api.h"
#include "host/vm.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define KIND "refresh"
#define LOOK_NSEC (20 * NSEC_PER_MSEC)
#define LET_GO_MSEC 30000 /* it makes the disks durable */
#define RESUME_NSEC (60 * NSEC_PER_SEC)

#define PROCESS_SIZE 80

struct refreshing {
    struct host *host;
    struct id operation;
    char name[VM_NAME_SIZE];
    char qemu[PATH_MAX];
    bool helper;
    char process[PROCESS_SIZE]; /* with helper: the orai-vm that is to go, as its record names it */
    bool taken_over;            /* an oraid before us began it */
};

/* --- QEMU ----------------------------------------------------------------------------------------------- */

static int ended_without_word(const struct refreshing *refreshing, struct err *err)
{
    err_set(err, EOWNERDEAD,
            "orai-vm of \"%s\" ended while it replaced QEMU; the guest goes on in the old one or the new",
            refreshing->name);
    return err_hint(err, "orai info %s shows its state; then refresh it again", refreshing->name);
}

/* orai-vm's last one may be another; a version of it that does not name operations is asked by who began. */
static bool is_ours(const struct refreshing *refreshing, const json_t *said)
{
    char id[ID_TEXT_SIZE];
    const char *operation = json_str(said, "operation", NULL);
    return operation ? strcmp(operation, id_format(&refreshing->operation, id)) == 0
                     : json_is_object(said) && !refreshing->taken_over;
}

/* What orai-vm says of its refresh. Not to answer in time is not to be dead. */
static int look(struct refreshing *refreshing, json_t **ret, struct err *err)
{
    _cleanup_json_ json_t *status = NULL;
    _cleanup_close_ int process = -1;
    int r = -ETIMEDOUT;
    while (r == -ETIMEDOUT &&
           (process >= 0 || vm_process(refreshing->host, refreshing->name, &process) == 0) &&
           !vm_process_ends(process, 0))
        r = vm_ask(refreshing->host, refreshing->name, json_pack("{s:s}", "do", "status"), VM_ASK_MSEC,
                   &status, NULL);
    json_t *said = json_object_get(status, "refresh");
    if (r < 0 || !is_ours(refreshing, said))
        return ended_without_word(refreshing, err);
    *ret = json_deep_copy(said);
    return 0;
}

static int watch(struct refreshing *refreshing, json_t **ret, struct err *err)
{
    for (;;) {
        json_t *said = NULL;
        int r = look(refreshing, &said, err);
        if (r < 0)
            return r;
        if (strcmp(json_str(said, "state", ""), "running") != 0) {
            *ret = said;
            return 0;
        }
        operation_progress(refreshing->host->operations, &refreshing->operation, said);
        clock_sleep(LOOK_NSEC);
    }
}

static int does_not_run(const char *name, struct err *err)
{
    err_set(err, EBUSY, "\"%s\" does not run: there is nothing to refresh", name);
    return err_hint(err, "its next start has the new programs: orai start %s", name);
}

static int replace_qemu(struct refreshing *refreshing, json_t **ret, struct err *err)
{
    char id[ID_TEXT_SIZE];
    int r = refreshing->taken_over
                ? 0
                : vm_ask(refreshing->host, refreshing->name,
                         json_pack("{s:s, s:s, s:s}", "do", "refresh", "qemu", refreshing->qemu, "operation",
                                   id_format(&refreshing->operation, id)),
                         VM_TELL_MSEC, NULL, err);
    if (r == -ENOTCONN) /* it has ended since we looked */
        r = does_not_run(refreshing->name, err);
    if (r == 0)
        r = watch(refreshing, ret, err);
    if (r == 0 && strcmp(json_str(*ret, "state", ""), "done") != 0)
        r = err_from_json(json_object_get(*ret, "error"), err);
    return r;
}

/* --- orai-vm -------------------------------------------------------------------------------------------- */

/* The record of the VM's orai-vm: two processes never have the same. */
static int read_process(const struct host *host, const char *name, char ret[PROCESS_SIZE], struct err *err)
{
    char path[PATH_MAX];
    _cleanup_free_ void *record = NULL;
    size_t size = 0;
    vm_run_path(host, name, "orai-vm.pid", path);
    int r = file_load(path, PROCESS_SIZE - 1, &record, &size, err);
    if (r < 0)
        return r;
    snprintf(ret, PROCESS_SIZE, "%.*s", (int)size, (const char *)record);
    ret[strcspn(ret, "\n")] = '\0';
    return 0;
}

/* Opens the VM's orai-vm. -ESRCH when there is none. */
static int open_process(const struct refreshing *refreshing, bool *ret_is_old)
{
    char process[PROCESS_SIZE];
    int pidfd = -1;
    if (vm_process(refreshing->host, refreshing->name, &pidfd) < 0 ||
        read_process(refreshing->host, refreshing->name, process, NULL) < 0) {
        close_cleanup(&pidfd);
        return -ESRCH;
    }
    *ret_is_old = strcmp(process, refreshing->process) == 0;
    return pidfd;
}

/* The old orai-vm ends, unless it has already. */
static int end_old(const struct refreshing *refreshing, struct err *err)
{
    bool is_old = false;
    _cleanup_close_ int old = open_process(refreshing, &is_old);
    if (old < 0 || !is_old)
        return 0;
    int r = vm_ask(refreshing->host, refreshing->name, json_pack("{s:s}", "do", "let-go"), VM_TELL_MSEC, NULL,
                   err);
    if (r < 0 &&
        !refreshing->taken_over) /* else it may have been told before, and does not listen any more */
        return r;
    return vm_process_ends(old, LET_GO_MSEC)
               ? 0
               : err_set(err, ETIMEDOUT, "orai-vm of \"%s\" does not let go", refreshing->name);
}

/* Another one comes, unless it has already. */
static int begin_new(const struct refreshing *refreshing, int *ret_new, struct err *err)
{
    bool is_old = false;
    _cleanup_close_ int qemu = -1;
    *ret_new = open_process(refreshing, &is_old);
    if (*ret_new >= 0)
        return 0;
    if (vm_qemu(refreshing->host, refreshing->name, &qemu) < 0)
        return err_set(err, EOWNERDEAD, "the QEMU of \"%s\" has ended", refreshing->name);
    return vm_spawn(refreshing->host, refreshing->name, &(struct vm_mode){.name = "resume"}, ret_new, err);
}

/* The guest runs on; what it asks of its disks meanwhile waits in QEMU. */
static int replace_helper(struct refreshing *refreshing, json_t **ret, struct err *err)
{
    static const char *const up[] = {"running", "paused", NULL};
    struct host *host = refreshing->host;
    int new = -1;
    int64_t began = clock_now();
    int r = end_old(refreshing, err);
    if (r == 0)
        r = begin_new(refreshing, &new, err);
    if (r == 0)
        r = vm_await(host, refreshing->name, new, up, clock_now() + RESUME_NSEC, err);
    if (new >= 0)
        vm_watch(host->vms, refreshing->name, new);
    if (r < 0)
        return r;
    *ret = json_pack("{s:s}", "state", "done");
    if (!refreshing->taken_over)
        json_object_set_new(*ret, "silence_ms", json_real((double)(clock_now() - began) / NSEC_PER_MSEC));
    return 0;
}

/* --- the request ---------------------------------------------------------------------------------------- */

static void refresh(void *arg)
{
    struct refreshing *refreshing = arg;
    struct host *host = refreshing->host;
    struct err err = ERR_NONE;
    json_t *result = NULL;
    int r = refreshing->helper ? replace_helper(refreshing, &result, &err)
                               : replace_qemu(refreshing, &result, &err);
    if (result)
        json_object_set_new(result, "vm", json_string(refreshing->name));
    if (r < 0)
        err_where(&err, host->options.name, NULL);
    vm_release(host->vms, refreshing->name); /* first: who sees the end may refresh again */
    operation_end(host->operations, &refreshing->operation, result, r < 0 ? &err : NULL);
    free(refreshing);
}

static int read_request(struct refreshing *refreshing, const struct request *request, struct err *err)
{
    static const char *const members[] = {"qemu", "helper", NULL};
    const char *qemu = NULL;
    int r = request_body(request, true, members, err);
    if (r == 0)
        r = body_string(request->body, "qemu", &qemu, err);
    if (r == 0)
        r = body_flag(request->body, "helper", &refreshing->helper, err);
    if (r < 0)
        return r;
    if (qemu && refreshing->helper)
        return err_set(err, EINVAL, "\"qemu\" and \"helper\" do not go together: one is replaced at a time");
    if (qemu && request->credentials.uid != 0)
        return err_set(err, EPERM, "only root may say which program runs the guest");
    if (qemu && (qemu[0] != '/' || strlen(qemu) >= sizeof refreshing->qemu))
        return err_set(err, EINVAL, "\"qemu\" must be an absolute path");
    snprintf(refreshing->qemu, sizeof refreshing->qemu, "%s", qemu ? qemu : refreshing->host->options.qemu);
    return 0;
}

static int check_runs(struct host *host, const char *name, struct err *err)
{
    _cleanup_close_ int pidfd = -1;
    struct epoch_record record;
    int r = vm_record(host, name, &record, err);
    if (r < 0)
        return r;
    if (record.role == EPOCH_REPLICA) {
        err_set(err, EBUSY, "\"%s\" is on %s; here is only a copy of it", name, record.peer.name);
        return err_hint(err, "give the command on %s", record.peer.name);
    }
    return vm_process(host, name, &pidfd) == 0 ? 0 : does_not_run(name, err);
}

/* Makes the operation; what is needed to go on with it stands there as its progress. */
static int record(struct refreshing *refreshing, struct err *err)
{
    json_t *progress = NULL;
    int r =
        refreshing->helper ? read_process(refreshing->host, refreshing->name, refreshing->process, err) : 0;
    if (r < 0)
        return r;
    if (refreshing->helper)
        progress = json_pack("{s:s}", "replaces", refreshing->process);
    return operation_begin_with(refreshing->host->operations, &refreshing->operation, KIND, refreshing->name,
                                progress, err);
}

/* After this the job owns `refreshing`. */
static int begin(struct refreshing *refreshing, struct err *err)
{
    struct host *host = refreshing->host;
    int r = vm_claim(host->vms, refreshing->name, "being refreshed", err);
    if (r < 0)
        return r;
    if (!refreshing->taken_over)
        r = record(refreshing, err);
    if (r == 0 && (r = pool_run(host->jobs, refresh, refreshing, err)) < 0)
        operation_end(host->operations, &refreshing->operation, NULL, err);
    if (r < 0)
        vm_release(host->vms, refreshing->name);
    return r;
}

int api_vm_refresh(struct host *host, struct request *request, struct answer *ret, struct err *err)
{
    struct refreshing *refreshing = calloc(1, sizeof *refreshing);
    if (!refreshing)
        return err_set(err, ENOMEM, "out of memory");
    refreshing->host = host;
    struct id operation = refreshing->operation = id_random();
    snprintf(refreshing->name, sizeof refreshing->name, "%.63s", request->args[0]);
    int r = read_request(refreshing, request, err);
    if (r == 0)
        r = vm_lookup(host->vms, request->args[0], NULL, err);
    if (r == 0)
        r = check_runs(host, refreshing->name, err);
    if (r == 0)
        r = begin(refreshing, err);
    if (r < 0) {
        free(refreshing);
        return r;
    }
    return answer_operation(host, &operation, ret, err);
}

/* --- after a restart ------------------------------------------------------------------------------------ */

static void take_over(struct host *host, const json_t *operation)
{
    struct err err = ERR_NONE;
    struct id id;
    if (id_parse(json_str(operation, "id", ""), &id) < 0)
        return;
    const char *process = json_str(json_object_get(operation, "progress"), "replaces", "");
    struct refreshing *refreshing = calloc(1, sizeof *refreshing);
    int r = refreshing ? 0 : err_set(&err, ENOMEM, "out of memory");
    if (r == 0) {
        refreshing->host = host;
        refreshing->operation = id;
        refreshing->taken_over = true;
        refreshing->helper = process[0];
        snprintf(refreshing->name, sizeof refreshing->name, "%.63s", json_str(operation, "vm", ""));
        snprintf(refreshing->process, sizeof refreshing->process, "%s", process);
        log_info("%s: its refresh goes on", refreshing->name);
        r = begin(refreshing, &err);
    }
    if (r == 0)
        return;
    free(refreshing);
    operation_end(host->operations, &id, NULL, &err);
}

int refreshes_take_over(struct host *host, struct err *err)
{
    _cleanup_json_ json_t *list = NULL;
    size_t index;
    json_t *operation;
    int r = operation_list(host->operations, NULL, SIZE_MAX, &list, err);
    json_array_foreach(list, index, operation)
    {
        if (strcmp(json_str(operation, "kind", ""), KIND) == 0 &&
            strcmp(json_str(operation, "state", ""), "running") == 0)
            take_over(host, operation);
    }
    return r;
}
