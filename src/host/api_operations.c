/* SPDX-License-Identifier: Apache-2.0
 *
 * Operations and events.
 */
#include "base/clock.h"
#include "base/json.h"
#include "base/macro.h"
#include "host/api.h"

#include <errno.h>
#include <stdio.h>

int api_operations(struct host *host, struct request *request, struct answer *ret, struct err *err)
{
    uint64_t limit;
    json_t *list = NULL;
    int r = request_number(request, "limit", 100, 1, 1000, &limit, err);
    if (r == 0)
        r = operation_list(host->operations, json_str(request->query, "vm", NULL), limit, &list, err);
    return r < 0 ? r : answer_json(ret, 200, json_pack("{s:o}", "operations", list));
}

int api_operation(struct host *host, struct request *request, struct answer *ret, struct err *err)
{
    struct id id;
    uint64_t wait_ms = 0, since = 0;
    json_t *operation = NULL;
    if (id_parse(request->args[0], &id) < 0)
        return err_set(err, ENOENT, "there is no operation %.64s", request->args[0]);
    int r = request_number(request, "wait_ms", 0, 0, 60000, &wait_ms, err);
    if (r == 0)
        r = request_number(request, "since_version", 0, 0, INT64_MAX, &since, err);
    if (r < 0)
        return r;
    if (ret->wait_until == 0)
        ret->wait_until = clock_now() + (int64_t)wait_ms * NSEC_PER_MSEC;
    ret->wait = clock_now() < ret->wait_until && !operation_changed(host->operations, &id, since);
    ret->wait_operation = id;
    ret->wait_since = since;
    if (ret->wait)
        return 0;
    r = operation_get(host->operations, &id, &operation, err);
    return r < 0 ? r : answer_json(ret, 200, operation);
}

int api_events(struct host *host, struct request *request, struct answer *ret, struct err *err)
{
    bool follow = request_flag(request, "follow"), given = json_object_get(request->query, "since") != NULL;
    const char *vm = json_str(request->query, "vm", NULL);
    uint64_t since, limit, newest = events_newest(host->events);
    _cleanup_json_ json_t *list = NULL;
    int r = request_number(request, "since", follow ? newest : 0, 0, INT64_MAX, &since, err);
    if (r == 0)
        r = request_number(request, "limit", given ? REGISTRY_MAX_EVENTS : 100, 1, REGISTRY_MAX_EVENTS,
                           &limit, err);
    if (r == 0 && vm && !peer_name_ok(vm))
        r = err_set(err, EINVAL, "\"%.100s\" is not a name", vm);
    if (r == 0)
        r = registry_events(host->registry, since, vm, limit, &list, err);
    if (r < 0)
        return r;
    if (!follow)
        return answer_json(ret, 200, json_pack("{s:O}", "events", list));
    const json_t *last = json_array_get(list, json_array_size(list) - 1);
    ret->stream = true;
    ret->stream_after = MAX(newest, json_u64(last, "id", 0));
    snprintf(ret->stream_vm, sizeof ret->stream_vm, "%s", vm ? vm : "");
    return answer_json(ret, 200, TAKE_PTR(list));
}
