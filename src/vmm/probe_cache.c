/* SPDX-License-Identifier: Apache-2.0
 *
 * probe_cache: what QEMU answered to qemu_probe, kept in a file for the next time. Starting QEMU twice only
 * to ask it takes a tenth of a second, for which a move would wait.
 *
 *   {"binary": {"path", "device", "inode", "size", "modified", "changed"}, "version", "machines": [...]}
 *
 * The answer is believed as long as all of "binary" is what it was; a package's update replaces the file.
 * What depends on the host (KVM) is looked at each time. A file that is missing, damaged or not writable only
 * means that QEMU is asked. Several processes may ask and write at once: they write the same.
 */
#include "base/file.h"
#include "base/json.h"
#include "base/log.h"
#include "vmm/qemu_internal.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define CACHE_MAX (256U << 10)

/* As execvp would find it. */
static int find_binary(const char *name, char ret[PATH_MAX], struct stat *ret_stat)
{
    const char *path = getenv("PATH");
    if (strchr(name, '/')) {
        snprintf(ret, PATH_MAX, "%s", name);
        return stat(ret, ret_stat);
    }
    for (path = path ? path : "/usr/bin:/bin"; *path;) {
        int length = (int)strcspn(path, ":");
        if (snprintf(ret, PATH_MAX, "%.*s/%s", length, path, name) < PATH_MAX && stat(ret, ret_stat) == 0)
            return 0;
        path += length + (path[length] == ':');
    }
    return -1;
}

static json_int_t nanoseconds(struct timespec time)
{
    return (json_int_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

/* NULL: there is no such file, so QEMU will not start either. */
static json_t *identify(const char *binary)
{
    char path[PATH_MAX];
    struct stat st;
    if (find_binary(binary, path, &st) < 0)
        return NULL;
    return json_pack("{s:s, s:I, s:I, s:I, s:I, s:I}", "path", path, "device", (json_int_t)st.st_dev, "inode",
                     (json_int_t)st.st_ino, "size", (json_int_t)st.st_size, "modified",
                     nanoseconds(st.st_mtim), "changed", nanoseconds(st.st_ctim));
}

static bool well_formed(const json_t *machines)
{
    size_t i;
    json_t *machine;
    json_array_foreach((json_t *)machines, i, machine) if (!json_is_string(machine)) return false;
    return json_array_size(machines) > 0;
}

static bool recall(const char *cache, const json_t *identity, struct qemu_host *ret)
{
    _cleanup_json_ json_t *kept = NULL;
    _cleanup_free_ void *text = NULL;
    size_t size;
    if (!identity || file_load(cache, CACHE_MAX, &text, &size, NULL) < 0 ||
        json_parse(text, size, cache, &kept, NULL) < 0)
        return false;
    json_t *machines = json_object_get(kept, "machines");
    if (!json_equal(json_object_get(kept, "binary"), identity) || !well_formed(machines))
        return false;
    *ret = (struct qemu_host){.machines = json_incref(machines)};
    snprintf(ret->version, sizeof ret->version, "%s", json_str(kept, "version", "unknown"));
    ret->kvm = kvm_usable(ret->kvm_why);
    return true;
}

static void keep(const char *cache, json_t *identity, const struct qemu_host *host)
{
    struct err err = ERR_NONE;
    _cleanup_json_ json_t *json = json_pack("{s:O, s:s, s:O}", "binary", identity, "version", host->version,
                                            "machines", host->machines);
    _cleanup_free_ char *text = json ? json_dumps(json, JSON_INDENT(1)) : NULL;
    if (text && file_replace(cache, text, strlen(text), 0644, &err) < 0)
        log_warning("what QEMU can do will be asked again: %s", err.text);
}

void qemu_cache_path(const char *state_dir, char ret[PATH_MAX])
{
    snprintf(ret, PATH_MAX, "%.4000s/qemu.json", state_dir);
}

int qemu_probe_cached(const char *binary, const char *cache, struct qemu_host *ret, struct err *err)
{
    /* Looked at before QEMU is asked: a file that changes meanwhile is asked again the next time. */
    _cleanup_json_ json_t *identity = identify(binary);
    if (recall(cache, identity, ret))
        return 0;
    int r = qemu_probe(binary, ret, err);
    if (r == 0 && identity)
        keep(cache, identity, ret);
    return r;
}
