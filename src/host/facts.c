/* SPDX-License-Identifier: Apache-2.0 */
#include "host/facts.h"

#include "base/macro.h"
#include "vmm/qemu.h"

#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

struct qemu_facts {
    pthread_mutex_t lock; /* held across the probe: the second asker waits instead of probing too */
    const char *binary;
    json_t *known;
    struct timespec changed; /* of the file that `known` is about */
    ino_t inode;
};

struct qemu_facts *qemu_facts_new(const char *binary)
{
    struct qemu_facts *facts = calloc(1, sizeof *facts);
    if (!facts)
        return NULL;
    pthread_mutex_init(&facts->lock, NULL);
    facts->binary = binary;
    return facts;
}

void qemu_facts_free(struct qemu_facts *facts)
{
    if (!facts)
        return;
    json_decref(facts->known);
    pthread_mutex_destroy(&facts->lock);
    free(facts);
}

/* The file behind the name, as execvp would find it. */
static int find_binary(const char *name, struct stat *ret)
{
    const char *path = getenv("PATH");
    if (strchr(name, '/'))
        return stat(name, ret);
    for (path = path ? path : "/usr/bin:/bin"; *path;) {
        char full[PATH_MAX];
        int length = (int)strcspn(path, ":");
        snprintf(full, sizeof full, "%.*s/%s", length, path, name);
        if (stat(full, ret) == 0)
            return 0;
        path += length + (path[length] == ':');
    }
    return -1;
}

static json_t *probe(const char *binary)
{
    struct qemu_host qemu;
    struct err err = ERR_NONE;
    if (qemu_probe(binary, &qemu, &err) < 0)
        return json_pack("{s:n, s:b, s:s, s:[]}", "version", "kvm", 0, "why", err.text, "machines");
    json_t *json = json_pack("{s:s, s:b, s:s, s:O}", "version", qemu.version, "kvm", qemu.kvm, "why",
                             qemu.kvm_why, "machines", qemu.machines);
    qemu_host_done(&qemu);
    return json;
}

json_t *qemu_facts_json(struct qemu_facts *facts)
{
    struct stat st = {0};
    bool there = find_binary(facts->binary, &st) == 0;
    pthread_mutex_lock(&facts->lock);
    bool same = facts->known && there && st.st_ino == facts->inode &&
                st.st_mtim.tv_sec == facts->changed.tv_sec && st.st_mtim.tv_nsec == facts->changed.tv_nsec;
    if (!same) {
        json_decref(facts->known);
        facts->known = probe(facts->binary);
        facts->inode = st.st_ino;
        facts->changed = st.st_mtim;
    }
    json_t *json = json_deep_copy(facts->known);
    pthread_mutex_unlock(&facts->lock);
    return json;
}
