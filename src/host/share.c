/* SPDX-License-Identifier: Apache-2.0 */
#include "host/share.h"

#include "base/clock.h"
#include "base/json.h"
#include "base/log.h"
#include "base/macro.h"
#include "host/api.h"
#include "host/client.h"
#include "host/pool.h"
#include "host/verify.h"
#include "host/vm.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define READY_MSEC 5000
#define MAX_HOSTS 7 /* fetch_order.h, without the lender */

/* --- the host that has a copy --------------------------------------------------------------------------- */

/* Whoever uses the copy for something else needs it more. */
static int check_copy(struct host *host, const char *name, struct err *err)
{
    struct epoch_record record;
    _cleanup_close_ int pidfd = -1;
    int r = vm_record(host, name, &record, err);
    if (r < 0)
        return r;
    if (record.role != EPOCH_REPLICA || record.lent)
        return err_set(err, EBUSY, "\"%s\" on %s is no copy that can be shared", name, host->options.name);
    r = vm_end_sharing(host, name, err); /* perhaps with another host */
    if (r == 0 && vm_process(host, name, &pidfd) == 0 && !vm_process_ends(pidfd, VM_YIELD_MSEC))
        r = err_set(err, EBUSY, "the copy of \"%s\" on %s is in use", name, host->options.name);
    return r;
}

static int begin(struct host *host, const struct request *request, const char *name, const struct id *vm,
                 struct err *err)
{
    static const char *const ready[] = {"replica", NULL};
    struct vm_mode mode = {.name = "share", .source = &request->peer, .vm = *vm};
    int pidfd = -1;
    int r = check_copy(host, name, err);
    if (r == 0)
        r = vm_spawn(host, name, &mode, &pidfd, err);
    if (r == 0)
        r = vm_await(host, name, pidfd, ready, clock_now() + READY_MSEC * NSEC_PER_MSEC, err);
    if (pidfd >= 0)
        vm_watch(host->vms, name, pidfd);
    return r;
}

/* The host that fetches asks now and then whether we still do. */
static bool shares_already(struct host *host, const struct request *request, const char *name)
{
    _cleanup_json_ json_t *status = NULL;
    char key[HASH_TEXT_SIZE];
    if (vm_ask(host, name, json_pack("{s:s}", "do", "status"), VM_TELL_MSEC, &status, NULL) < 0)
        return false;
    const json_t *shares = json_object_get(status, "shares");
    return strcmp(json_str(shares, "key", ""), fingerprint_format(&request->key, key)) == 0;
}

int api_vm_share(struct host *host, struct request *request, struct answer *ret, struct err *err)
{
    static const char *const members[] = {"vm", NULL};
    const char *name = request->args[0];
    struct id vm, here;
    int r = request_body(request, false, members, err);
    if (r == 0)
        r = json_get_id(request->body, "vm", "the request", &vm, err);
    if (r == 0)
        r = vm_lookup(host->vms, name, &here, err);
    if (r == 0 && !id_equal(&vm, &here))
        r = err_set(err, ENOENT, "\"%s\" on %s is another VM", name, host->options.name);
    if (r < 0)
        return r;
    if (shares_already(host, request, name))
        return answer_ok(ret);
    if ((r = vm_claim(host->vms, name, "being shared", err)) < 0)
        return r;
    r = begin(host, request, name, &vm, err);
    vm_release(host->vms, name);
    return r < 0 ? r : answer_ok(ret);
}

/* --- the host that looks for copies --------------------------------------------------------------------- */

struct seeking {
    struct host *host;
    char name[VM_NAME_SIZE];
    struct id vm;
    struct epoch_record record;
};

static bool ran_at(const struct lineage *lineage, const char *host)
{
    for (size_t i = 0; i < lineage->count; i++)
        if (strcmp(lineage->entries[i].host, host) == 0)
            return true;
    return false;
}

/* Those peers of the list that may have a copy, moved to its beginning. */
static size_t choose(const struct seeking *seeking, const struct lineage *lineage, struct peer *peers,
                     size_t count)
{
    size_t chosen = 0;
    for (size_t i = 0; i < count && chosen < MAX_HOSTS; i++)
        if (ran_at(lineage, peers[i].name) &&
            !fingerprint_equal(&peers[i].fingerprint, &seeking->record.peer.fingerprint))
            peers[chosen++] = peers[i];
    return chosen;
}

/* A new array of those that said yes. */
static json_t *ask_peers(const struct seeking *seeking, const struct peer *peers, size_t count)
{
    struct client_call calls[MAX_HOSTS];
    char path[128], id[ID_TEXT_SIZE];
    json_t *list = json_array();
    _cleanup_json_ json_t *body = json_pack("{s:s}", "vm", id_format(&seeking->vm, id));
    snprintf(path, sizeof path, "/v1/vms/%.63s/share", seeking->name);
    for (size_t i = 0; i < count; i++)
        calls[i] = (struct client_call){
            .peer = &peers[i], .method = "POST", .path = path, .body = body, .msec = CLIENT_MSEC};
    client_calls(seeking->host, calls, count);
    for (size_t i = 0; i < count; i++) {
        json_decref(calls[i].answer);
        if (calls[i].r == 0)
            json_array_append_new(list, peer_to_json(&peers[i]));
        else
            log_debug("%s shares no copy of \"%s\": %s", peers[i].name, seeking->name, calls[i].err.text);
    }
    return list;
}

static int seek(const struct seeking *seeking, struct err *err)
{
    _cleanup_(digester_cleanup) struct digester *digester = NULL;
    _cleanup_free_ struct peer *peers = NULL;
    size_t count = 0;
    int r = verify_open(seeking->host, seeking->name, 0, &digester, NULL, err);
    if (r == 0)
        r = peer_list(seeking->host->registry, &peers, &count, err);
    if (r < 0)
        return r;
    count = choose(seeking, digester_lineage(digester), peers, count);
    if (count == 0)
        return 0;
    json_t *hosts = ask_peers(seeking, peers, count);
    return vm_ask(seeking->host, seeking->name, json_pack("{s:s, s:o}", "do", "fetch", "hosts", hosts),
                  VM_TELL_MSEC, NULL, err);
}

static void seek_work(void *arg)
{
    _cleanup_free_ struct seeking *seeking = arg;
    struct err err = ERR_NONE;
    int r = vm_lookup(seeking->host->vms, seeking->name, &seeking->vm, &err);
    if (r == 0)
        r = vm_record(seeking->host, seeking->name, &seeking->record, &err);
    if (r == 0)
        r = seek(seeking, &err);
    if (r < 0)
        log_warning("%s: no other host was asked for blocks: %s", seeking->name, err.text);
}

void share_seek(struct host *host, const char *name)
{
    struct seeking *seeking = calloc(1, sizeof *seeking);
    struct err err = ERR_NONE;
    if (!seeking)
        return; /* orai-vm will say it again */
    seeking->host = host;
    snprintf(seeking->name, sizeof seeking->name, "%.63s", name);
    if (pool_run(host->jobs, seek_work, seeking, &err) < 0) {
        log_warning("%s: %s", name, err.text);
        free(seeking);
    }
}
