/* SPDX-License-Identifier: Apache-2.0 */
#include "host/facts.h"

#include "base/macro.h"
#include "vmm/qemu.h"

#include <limits.h>
#include <pthread.h>
#include <stdio.h>

struct qemu_facts {
    pthread_mutex_t lock; /* held across the probe: the second asker waits instead of probing too */
    const char *binary;
    char cache[PATH_MAX];
};

struct qemu_facts *qemu_facts_new(const char *binary, const char *state_dir)
{
    struct qemu_facts *facts = calloc(1, sizeof *facts);
    if (!facts)
        return NULL;
    pthread_mutex_init(&facts->lock, NULL);
    facts->binary = binary;
    qemu_cache_path(state_dir, facts->cache);
    return facts;
}

void qemu_facts_free(struct qemu_facts *facts)
{
    if (!facts)
        return;
    pthread_mutex_destroy(&facts->lock);
    free(facts);
}

json_t *qemu_facts_json(struct qemu_facts *facts)
{
    struct qemu_host qemu;
    struct err err = ERR_NONE;
    pthread_mutex_lock(&facts->lock);
    int r = qemu_probe_cached(facts->binary, facts->cache, &qemu, &err);
    pthread_mutex_unlock(&facts->lock);
    if (r < 0)
        return json_pack("{s:n, s:b, s:s, s:[]}", "version", "kvm", 0, "why", err.text, "machines");
    json_t *json = json_pack("{s:s, s:b, s:s, s:O}", "version", qemu.version, "kvm", qemu.kvm, "why",
                             qemu.kvm_why, "machines", qemu.machines);
    qemu_host_done(&qemu);
    return json;
}
