/* SPDX-License-Identifier: Apache-2.0
 *
 * The requests of a comparison (verify.h): the local one that starts it, and the two that the other side
 * answers. What a peer may make this host do by them: read disks that it shares with it, one request at a
 * time, for a second each, at a rate.
 */
#include "base/clock.h"
#include "base/endian.h"
#include "base/json.h"
#include "base/macro.h"
#include "host/api.h"
#include "host/verify.h"
#include "host/vm.h"

#include <errno.h>
#include <linux/ioprio.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>

/* --- both sides ----------------------------------------------------------------------------------------- */

void verify_be_humble(void)
{
    /* On Linux both mean the one thread. Where it is refused, the rate alone is the guest's protection. */
    (void)setpriority(PRIO_PROCESS, (id_t)gettid(), 19);
    (void)syscall(SYS_ioprio_set, IOPRIO_WHO_PROCESS, gettid(), IOPRIO_PRIO_VALUE(IOPRIO_CLASS_IDLE, 0));
}

void verify_pace(int64_t began, uint64_t bytes, uint64_t rate)
{
    int64_t until = began + (int64_t)((double)bytes / (double)rate * NSEC_PER_SEC);
    if (until > clock_now())
        clock_sleep(until - clock_now());
}

int verify_open(struct host *host, const char *name, size_t index, struct digester **ret, char ret_file[64],
                struct err *err)
{
    _cleanup_free_ struct vm_config *config = malloc(sizeof *config);
    char dir[PATH_MAX], path[PATH_MAX];
    if (!config)
        return err_set(err, ENOMEM, "out of memory");
    vm_dir(host, name, dir);
    int r = vm_config_load(dir, config, err);
    if (r == -ENOENT)
        return err_set(err, ENOENT, "the copy of \"%s\" that began to come to %s has no config yet", name,
                       host->options.name);
    if (r < 0)
        return r;
    if (index >= config->disk_count)
        return err_set(err, EINVAL, "\"%s\" has %zu disks on %s, none with the number %zu", name,
                       config->disk_count, host->options.name, index);
    if (snprintf(path, sizeof path, "%s/%s", dir, config->disks[index].file) >= (int)sizeof path)
        return err_set(err, ENAMETOOLONG, "path too long: %s", dir);
    r = digester_open(path, ret, err);
    if (r == 0 && ret_file)
        snprintf(ret_file, 64, "%s", config->disks[index].file);
    return r;
}

/* --- starting one --------------------------------------------------------------------------------------- */

int api_vm_verify(struct host *host, struct request *request, struct answer *ret, struct err *err)
{
    static const char *const members[] = {"against", "rate", NULL};
    const char *name = request->args[0], *against = NULL;
    uint64_t rate = VERIFY_RATE;
    struct peer peer;
    struct id operation;
    int r = request_body(request, false, members, err);
    if (r == 0)
        r = vm_lookup(host->vms, name, NULL, err);
    if (r == 0)
        r = body_name(request->body, "against", &against, err);
    if (r == 0)
        r = body_number(request->body, "rate", VERIFY_MIN_RATE, VERIFY_MAX_RATE, &rate, err);
    if (r == 0 && strcmp(against, host->options.name) == 0)
        r = err_set(err, EINVAL, "\"%s\" is this host: a copy is compared with one at a peer", against);
    if (r == 0)
        r = peer_find(host->registry, against, &peer, err);
    if (r == 0)
        r = verify_begin(host, name, &peer, rate, &operation, err);
    return r < 0 ? r : answer_operation(host, &operation, ret, err);
}

/* --- the other side: what copy is here ------------------------------------------------------------------ */

int api_vm_copy(struct host *host, struct request *request, struct answer *ret, struct err *err)
{
    _cleanup_(digester_cleanup) struct digester *digester = NULL;
    _cleanup_free_ void *bytes = NULL;
    char id[ID_TEXT_SIZE], file[64];
    struct id vm;
    uint64_t index;
    size_t size = 0;
    int r = request_number(request, "disk", 0, 0, VM_MAX_DISKS - 1, &index, err);
    if (r == 0)
        r = vm_lookup(host->vms, request->args[0], &vm, err);
    if (r == 0)
        r = verify_open(host, request->args[0], index, &digester, file, err);
    if (r == 0)
        r = lineage_encode(digester_lineage(digester), &bytes, &size);
    _cleanup_free_ char *text = r < 0 ? NULL : malloc(2 * size + 1);
    if (r < 0 || !text)
        return r < 0 && err->code ? r : err_set(err, ENOMEM, "out of memory");
    return answer_json(ret, 200,
                       json_pack("{s:s, s:s, s:I, s:s}", "vm", id_format(&vm, id), "file", file, "size",
                                 (json_int_t)digester_size(digester), "lineage",
                                 hex_format(bytes, size, text)));
}

/* --- the other side: hashes ----------------------------------------------------------------------------- */

struct hashing {
    struct digester *digester;
    uint64_t seed, rate, from, count;
    uint64_t generation;
    bool detail;
    uint8_t (*changed)[DIGEST_BITS_SIZE]; /* `count`: what the asker leaves out; then with ours */
    uint8_t (*sums)[DIGEST_SIZE];
    struct digest_extent extent;
    uint64_t done;
    int r;
    struct err err;
};

static void hashing_done(struct hashing *h)
{
    digester_free(h->digester);
    free(h->changed);
    free(h->sums);
}

static pthread_mutex_t hashing_now = PTHREAD_MUTEX_INITIALIZER; /* one at a time */

static void *hash_thread(void *arg)
{
    struct hashing *h = arg;
    int64_t began = clock_now();
    uint64_t bytes = 0;
    verify_be_humble();
    while (h->done < h->count && (h->done == 0 || clock_now() - began < VERIFY_SLICE_NS)) {
        h->r = digester_extent(h->digester, h->seed, (uint32_t)h->generation, h->from + h->done, &h->extent,
                               &h->err);
        if (h->r < 0)
            break;
        uint8_t *changed = h->changed[h->done];
        for (size_t i = 0; i < DIGEST_BITS_SIZE; i++)
            changed[i] |= h->extent.changed[i];
        digest_sum(&h->extent, changed, h->seed, h->sums[h->done]);
        h->done++;
        bytes += h->extent.hole ? 0 : DIGEST_EXTENT;
        verify_pace(began, bytes, h->rate);
    }
    return NULL;
}

static int hash_quietly(struct hashing *h, struct err *err)
{
    pthread_t thread;
    if (pthread_mutex_trylock(&hashing_now) != 0)
        return err_set(err, EAGAIN, "another comparison is reading disks here");
    int error = pthread_create(&thread, NULL, hash_thread, h);
    if (error == 0)
        pthread_join(thread, NULL);
    pthread_mutex_unlock(&hashing_now);
    if (error)
        return err_sys(err, error, "cannot start a thread");
    if (h->r < 0)
        *err = h->err;
    return h->r;
}

static int read_changed(struct hashing *h, const json_t *body, struct err *err)
{
    const char *text = NULL;
    h->changed = calloc(h->count, sizeof *h->changed);
    h->sums = calloc(h->count, sizeof *h->sums);
    if (!h->changed || !h->sums)
        return err_set(err, ENOMEM, "out of memory");
    int r = body_string(body, "changed", &text, err);
    if (r == 0 && text && hex_parse(text, h->changed, h->count * sizeof *h->changed) < 0)
        r = err_set(err, EINVAL, "\"changed\" must be %llu hex digits",
                    (unsigned long long)h->count * DIGEST_BITS_SIZE * 2);
    return r;
}

static int read_range(struct hashing *h, const json_t *body, struct err *err)
{
    const char *seed = NULL;
    uint8_t bytes[sizeof h->seed];
    uint64_t extents = digester_extents(h->digester);
    int r = body_string(body, "seed", &seed, err);
    if (r == 0 && (!seed || hex_parse(seed, bytes, sizeof bytes) < 0))
        r = err_set(err, EINVAL, "\"seed\" must be 16 hex digits");
    if (r == 0)
        r = body_number(body, "from", 0, extents - 1, &h->from, err);
    if (r == 0)
        r = body_number(body, "count", 1, MIN((uint64_t)VERIFY_EXTENTS, extents - h->from), &h->count, err);
    if (r == 0)
        r = body_number(body, "rate", VERIFY_MIN_RATE, VERIFY_MAX_RATE, &h->rate, err);
    if (r == 0)
        r = body_flag(body, "detail", &h->detail, err);
    if (r == 0 && h->detail && h->count != 1)
        r = err_set(err, EINVAL, "block hashes are given for one extent at a time");
    if (r == 0)
        h->seed = get_le64(bytes);
    return r;
}

/* The VM that is meant, and a copy that has the generation that both are to have. */
static int read_meant(struct host *host, const char *name, struct hashing *h, const json_t *body,
                      struct err *err)
{
    struct id meant, here, generation;
    uint64_t index = 0;
    int r = vm_lookup(host->vms, name, &here, err);
    if (r == 0)
        r = json_get_id(body, "vm", "the request", &meant, err);
    if (r == 0 && !id_equal(&meant, &here))
        r = err_set(err, EEXIST, "another VM on %s is called \"%s\"", host->options.name, name);
    if (r == 0)
        r = body_number(body, "disk", 0, VM_MAX_DISKS - 1, &index, err);
    if (r == 0)
        r = json_get_id(body, "generation_id", "the request", &generation, err);
    if (r == 0)
        r = body_number(body, "generation", 1, LINEAGE_MAX_GENERATION, &h->generation, err);
    if (r == 0)
        r = verify_open(host, name, index, &h->digester, NULL, err);
    if (r == 0 && !lineage_holds(digester_lineage(h->digester), (uint32_t)h->generation, &generation))
        r = err_set(err, ESTALE, "the copy of \"%s\" on %s no longer has generation %llu whole", name,
                    host->options.name, (unsigned long long)h->generation);
    return r;
}

static json_t *hex_json(const void *bytes, size_t size)
{
    _cleanup_free_ char *text = malloc(2 * size + 1);
    return text ? json_string(hex_format(bytes, size, text)) : NULL;
}

static int answer_hashes(const struct hashing *h, struct answer *ret, struct err *err)
{
    json_t *json = json_pack("{s:I, s:o, s:o, s:o*}", "count", (json_int_t)h->done, "changed",
                             hex_json(h->changed, h->done * sizeof *h->changed), "sums",
                             hex_json(h->sums, h->done * sizeof *h->sums), "blocks",
                             h->detail ? hex_json(h->extent.blocks, sizeof h->extent.blocks) : NULL);
    return json ? answer_json(ret, 200, json) : err_set(err, ENOMEM, "out of memory");
}

int api_vm_hashes(struct host *host, struct request *request, struct answer *ret, struct err *err)
{
    static const char *const members[] = {"vm",    "disk",    "generation", "generation_id", "seed", "from",
                                          "count", "changed", "rate",       "detail",        NULL};
    _cleanup_(hashing_done) struct hashing h = {.rate = VERIFY_RATE, .count = 1};
    int r = request_body(request, false, members, err);
    if (r == 0)
        r = read_meant(host, request->args[0], &h, request->body, err);
    if (r == 0)
        r = read_range(&h, request->body, err);
    if (r == 0)
        r = read_changed(&h, request->body, err);
    if (r == 0)
        r = hash_quietly(&h, err);
    return r < 0 ? r : answer_hashes(&h, ret, err);
}
