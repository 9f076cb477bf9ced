/* SPDX-License-Identifier: Apache-2.0 */
#include "base/macro.h"
#include "host/api.h"
#include "host/facts.h"
#include "host/join.h"
#include "host/openapi.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/statvfs.h>

int api_openapi(struct host *host, struct request *request, struct answer *ret, struct err *err)
{
    (void)host, (void)request, (void)err;
    *ret = (struct answer){.status = 200, .text = openapi_text, .text_size = openapi_size};
    return 0;
}

/* MemAvailable is the kernel's own estimate of what new programs may take. */
static json_t *memory_json(void)
{
    static const char total_key[] = "MemTotal:", available_key[] = "MemAvailable:";
    unsigned long long total = 0, available = 0;
    char line[128];
    FILE *file = fopen("/proc/meminfo", "re");
    while (file && fgets(line, sizeof line, file)) {
        if (strncmp(line, total_key, sizeof total_key - 1) == 0)
            total = strtoull(line + sizeof total_key - 1, NULL, 10) * 1024;
        else if (strncmp(line, available_key, sizeof available_key - 1) == 0)
            available = strtoull(line + sizeof available_key - 1, NULL, 10) * 1024;
    }
    if (file)
        fclose(file);
    return json_pack("{s:I, s:I}", "available", (json_int_t)available, "total", (json_int_t)total);
}

int api_host(struct host *host, struct request *request, struct answer *ret, struct err *err)
{
    (void)request;
    const struct host_options *o = &host->options;
    struct statvfs space;
    if (statvfs(o->state_dir, &space) < 0)
        return err_sys(err, errno, "cannot look at %s", o->state_dir);
    json_int_t unit = (json_int_t)space.f_frsize;
    json_int_t free_bytes = (json_int_t)space.f_bavail * unit,
               total_bytes = (json_int_t)space.f_blocks * unit;
    json_t *json =
        json_pack("{s:s, s:s, s:i, s:s, s:s?, s:i, s:o, s:o, s:{s:I, s:I}, s:o, s:i, s:s}", "name", o->name,
                  "version", ORAI_VERSION, "api", API_VERSION, "fingerprint", host->fingerprint, "address",
                  o->advertise, "port", (int)o->port, "protocol", protocol_range(), "qemu",
                  qemu_facts_json(host->qemu), "space", "free", free_bytes, "total", total_bytes, "memory",
                  memory_json(), "cpus", (int)sysconf(_SC_NPROCESSORS_ONLN), "started", host->started);
    return json ? answer_json(ret, 200, json) : err_set(err, ENOMEM, "out of memory");
}
