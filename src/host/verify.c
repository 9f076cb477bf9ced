/* SPDX-License-Identifier: Apache-2.0
 *
 * The side that asks (verify.h). What the peer answers is bounded and checked; the worst that it can do is to
 * call a copy different, or equal, that is not: it speaks of its own disk.
 */
#include "host/verify.h"

#include "base/clock.h"
#include "base/endian.h"
#include "base/json.h"
#include "base/log.h"
#include "base/macro.h"
#include "host/client.h"
#include "host/vm.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ASK_MSEC 30000
#define PATIENCE_NS (30 * NSEC_PER_SEC) /* for a peer that is busy, or away for a moment */
#define AGAIN_NS (NSEC_PER_SEC / 2)
#define TELL_NS (NSEC_PER_SEC / 4)
#define MAX_RANGES 256U /* that are named; all are counted */

struct verifying {
    struct host *host;
    struct id operation, vm;
    char name[VM_NAME_SIZE];
    struct peer peer;
    uint64_t rate;
    struct vm_config *config;
    struct digest_extent *extents; /* VERIFY_EXTENTS */
    json_t *disks, *differences;   /* of the result */
    uint64_t different;            /* blocks, of all disks */
    bool cut;                      /* there are more differences than are named */
    uint64_t done, total;          /* bytes, of all disks */
    int64_t told;

    /* The disk that is being compared. */
    size_t index;
    struct digester *digester;
    uint64_t seed;
    struct lineage_entry upto;
    uint64_t changed, differing; /* blocks */
    uint64_t range_block, range_count;
};

static void verifying_free(struct verifying *v)
{
    digester_free(v->digester);
    json_decref(v->disks);
    json_decref(v->differences);
    free(v->extents);
    free(v->config);
    free(v);
}

static void verifying_cleanup(struct verifying **v)
{
    if (*v)
        verifying_free(*v);
}

static const char *file_of(const struct verifying *v)
{
    return v->config->disks[v->index].file;
}

static int check_cancelled(const struct verifying *v, struct err *err)
{
    if (v->host->stopping)
        return err_set(err, ECANCELED, "oraid is stopping");
    if (operation_cancelled(v->host->operations, &v->operation))
        return err_set(err, ECANCELED, "the comparison was cancelled");
    return 0;
}

static void tell(struct verifying *v)
{
    if (clock_now() - v->told < TELL_NS)
        return;
    v->told = clock_now();
    operation_progress(v->host->operations, &v->operation,
                       json_pack("{s:s, s:I, s:I}", "phase", "comparing", "done_bytes", (json_int_t)v->done,
                                 "total_bytes", (json_int_t)v->total));
}

/* --- asking the peer ------------------------------------------------------------------------------------ */

static bool passes(int r)
{
    return r == -EAGAIN || r == -EHOSTUNREACH || r == -ETIMEDOUT || r == -ECONNRESET;
}

static int ask(struct verifying *v, const char *method, const char *path, const json_t *body, json_t **ret,
               struct err *err)
{
    int64_t deadline = clock_now() + PATIENCE_NS;
    for (;;) {
        int r = check_cancelled(v, err);
        if (r < 0)
            return r;
        struct client_call call = {
            .peer = &v->peer, .method = method, .path = path, .body = body, .msec = ASK_MSEC};
        r = client_call(v->host, &call);
        *ret = call.answer;
        if (r >= 0)
            return 0;
        if (!passes(r) || clock_now() > deadline) {
            *err = call.err;
            err_where(err, v->peer.name, NULL);
            if (!err->hint[0])
                err_hint(err, "on %s: orai info %s", v->peer.name, v->name);
            return r;
        }
        clock_sleep(AGAIN_NS);
    }
}

static int odd_answer(const struct verifying *v, const char *what, struct err *err)
{
    return err_set(err, EPROTO, "\"%s\" answered with %s that make no sense", v->peer.name, what);
}

static int take_lineage(const struct verifying *v, const json_t *answer, struct lineage **ret,
                        struct err *err)
{
    struct id vm;
    const char *text = json_str(answer, "lineage", "");
    size_t size = strlen(text) / 2;
    int r = json_get_id(answer, "vm", "the answer", &vm, err);
    if (r < 0)
        return r;
    if (!id_equal(&vm, &v->vm))
        return err_set(err, EEXIST, "another VM on \"%s\" is called \"%s\"", v->peer.name, v->name);
    _cleanup_free_ uint8_t *bytes = size <= LINEAGE_MAX_BYTES ? malloc(size + 1) : NULL;
    if (!bytes || hex_parse(text, bytes, size) < 0)
        return odd_answer(v, "a disk's lineage", err);
    return lineage_decode(bytes, size, ret, err);
}

static int no_common(const struct verifying *v, const struct lineage *theirs, struct err *err)
{
    const struct lineage *ours = digester_lineage(v->digester);
    if (ours->size != theirs->size)
        return err_set(err, EINVAL, "%s of \"%s\" has %llu bytes here and %llu on \"%s\"", file_of(v),
                       v->name, (unsigned long long)ours->size, (unsigned long long)theirs->size,
                       v->peer.name);
    err_set(err, EINVAL,
            "%s of \"%s\" on \"%s\" is %s and shares no whole generation with the copy here (%s): nothing in "
            "them is known to be equal",
            file_of(v), v->name, v->peer.name, lineage_claim_name(theirs->claim),
            lineage_claim_name(ours->claim));
    return err_hint(err, "a finished move makes a copy that can be compared: orai move %s HOST", v->name);
}

/* Which generation both have whole. */
static int agree(struct verifying *v, struct err *err)
{
    char path[192];
    _cleanup_json_ json_t *answer = NULL;
    _cleanup_(lineage_cleanup) struct lineage *theirs = NULL;
    snprintf(path, sizeof path, "/v1/vms/%.63s/copy?disk=%zu", v->name, v->index);
    int r = ask(v, "GET", path, NULL, &answer, err);
    if (r == 0)
        r = take_lineage(v, answer, &theirs, err);
    if (r < 0)
        return r;
    assert(theirs);
    const struct lineage *ours = digester_lineage(v->digester);
    const struct lineage_entry *entry = lineage_find(ours, lineage_shared(ours, theirs));
    if (!entry)
        return no_common(v, theirs, err);
    v->upto = *entry;
    return 0;
}

static unsigned count_bits(const uint8_t bits[DIGEST_BITS_SIZE])
{
    unsigned count = 0;
    for (size_t i = 0; i < DIGEST_BITS_SIZE; i++)
        count += (unsigned)__builtin_popcount(bits[i]);
    return count;
}

struct sums {
    uint64_t count;
    uint8_t changed[VERIFY_EXTENTS][DIGEST_BITS_SIZE]; /* on either side */
    uint8_t sums[VERIFY_EXTENTS][DIGEST_SIZE];
    uint8_t blocks[DIGEST_EXTENT_BLOCKS][DIGEST_SIZE]; /* with detail */
};

static json_t *make_question(const struct verifying *v, uint64_t from, const struct digest_extent *extents,
                             uint64_t count, bool detail)
{
    char vm[ID_TEXT_SIZE], generation[ID_TEXT_SIZE], seed[2 * sizeof v->seed + 1];
    uint8_t key[sizeof v->seed];
    _cleanup_free_ char *changed = malloc(count * DIGEST_BITS_SIZE * 2 + 1);
    if (!changed)
        return NULL;
    put_le64(key, v->seed);
    bool any = false; /* mostly there is nothing to leave out */
    for (uint64_t i = 0; i < count; i++) {
        hex_format(extents[i].changed, DIGEST_BITS_SIZE, changed + i * DIGEST_BITS_SIZE * 2);
        any |= count_bits(extents[i].changed) > 0;
    }
    return json_pack("{s:s, s:I, s:I, s:s, s:s, s:I, s:I, s:s*, s:I, s:b}", "vm", id_format(&v->vm, vm),
                     "disk", (json_int_t)v->index, "generation", (json_int_t)v->upto.generation,
                     "generation_id", id_format(&v->upto.id, generation), "seed",
                     hex_format(key, sizeof key, seed), "from", (json_int_t)from, "count", (json_int_t)count,
                     "changed", any ? changed : NULL, "rate", (json_int_t)v->rate, "detail", detail);
}

static int take_sums(const struct verifying *v, const json_t *answer, uint64_t count, bool detail,
                     struct sums *ret, struct err *err)
{
    ret->count = json_u64(answer, "count", 0);
    if (ret->count == 0 || ret->count > count ||
        hex_parse(json_str(answer, "changed", ""), ret->changed, ret->count * DIGEST_BITS_SIZE) < 0 ||
        hex_parse(json_str(answer, "sums", ""), ret->sums, ret->count * DIGEST_SIZE) < 0 ||
        (detail && hex_parse(json_str(answer, "blocks", ""), ret->blocks, sizeof ret->blocks) < 0))
        return odd_answer(v, "hashes", err);
    return 0;
}

/* The peer's sums of the first of `count` extents from `from` on: as many as it answers at once. */
static int ask_sums(struct verifying *v, uint64_t from, const struct digest_extent *extents, uint64_t count,
                    bool detail, struct sums *ret, struct err *err)
{
    char path[160];
    _cleanup_json_ json_t *answer = NULL;
    _cleanup_json_ json_t *question = make_question(v, from, extents, count, detail);
    if (!question)
        return err_set(err, ENOMEM, "out of memory");
    snprintf(path, sizeof path, "/v1/vms/%.63s/hashes", v->name);
    int r = ask(v, "POST", path, question, &answer, err);
    return r < 0 ? r : take_sums(v, answer, count, detail, ret, err);
}

/* --- what differs --------------------------------------------------------------------------------------- */

/* Tells the range that was being collected. */
static void end_range(struct verifying *v)
{
    uint64_t offset = v->range_block * DISK_BLOCK;
    if (v->range_count == 0)
        return;
    if (json_array_size(v->differences) < MAX_RANGES)
        json_array_append_new(v->differences,
                              json_pack("{s:s, s:I, s:I, s:I}", "file", file_of(v), "block",
                                        (json_int_t)v->range_block, "count", (json_int_t)v->range_count,
                                        "offset", (json_int_t)offset));
    else
        v->cut = true;
    v->range_count = 0;
}

static void note_difference(struct verifying *v, uint64_t block)
{
    v->differing++;
    if (v->range_count > 0 && v->range_block + v->range_count == block) {
        v->range_count++;
        return;
    }
    end_range(v);
    v->range_block = block;
    v->range_count = 1;
}

/* Both sides read this extent again, so that what is called different was so twice. */
static int look_closer(struct verifying *v, uint64_t extent, struct sums *sums, struct err *err)
{
    struct digest_extent ours;
    int r = digester_extent(v->digester, v->seed, v->upto.generation, extent, &ours, err);
    if (r == 0)
        r = ask_sums(v, extent, &ours, 1, true, sums, err);
    if (r < 0)
        return r;
    uint64_t before = v->differing;
    for (unsigned i = 0; i < digester_extent_blocks(v->digester, extent); i++)
        if (!digest_bit(sums->changed[0], i) && memcmp(ours.blocks[i], sums->blocks[i], DIGEST_SIZE) != 0)
            note_difference(v, extent * DIGEST_EXTENT_BLOCKS + i);
    if (v->differing == before && count_bits(sums->changed[0]) == count_bits(ours.changed))
        log_warning("%s: extent %llu of %s differed from \"%s\" once, and was equal at a second look: a disk "
                    "or a memory that does not always return the same",
                    v->name, (unsigned long long)extent, file_of(v), v->peer.name);
    return 0;
}

static int compare_extent(struct verifying *v, uint64_t extent, const struct digest_extent *ours,
                          const uint8_t changed[DIGEST_BITS_SIZE], const uint8_t theirs[DIGEST_SIZE],
                          struct sums *scratch, struct err *err)
{
    uint8_t sum[DIGEST_SIZE], both[DIGEST_BITS_SIZE];
    for (size_t i = 0; i < DIGEST_BITS_SIZE; i++)
        both[i] = changed[i] | ours->changed[i];
    v->changed += count_bits(both);
    v->done += MIN(DIGEST_EXTENT, digester_size(v->digester) - extent * DIGEST_EXTENT);
    digest_sum(ours, both, v->seed, sum);
    return memcmp(sum, theirs, DIGEST_SIZE) == 0 ? 0 : look_closer(v, extent, scratch, err);
}

/* --- all of it ------------------------------------------------------------------------------------------ */

/* Hashes extents of ours, for a slice of time at most. */
static int hash_ours(struct verifying *v, uint64_t from, uint64_t *ret_count, struct err *err)
{
    uint64_t end = MIN((uint64_t)VERIFY_EXTENTS, digester_extents(v->digester) - from), count = 0, bytes = 0;
    int64_t began = clock_now();
    while (count < end && (count == 0 || clock_now() - began < VERIFY_SLICE_NS)) {
        struct digest_extent *extent = &v->extents[count];
        int r = digester_extent(v->digester, v->seed, v->upto.generation, from + count, extent, err);
        if (r < 0) {
            err_hint(err, "the disk below this host's copy fails: look at the kernel's log");
            return r;
        }
        bytes += extent->hole ? 0 : DIGEST_EXTENT;
        count++;
        verify_pace(began, bytes, v->rate);
    }
    *ret_count = count;
    return 0;
}

static int compare_batch(struct verifying *v, uint64_t from, uint64_t count, struct err *err)
{
    _cleanup_free_ struct sums *sums = calloc(2, sizeof *sums); /* and one to look closer with */
    if (!sums)
        return err_set(err, ENOMEM, "out of memory");
    for (uint64_t done = 0; done < count;) {
        int r = ask_sums(v, from + done, v->extents + done, count - done, false, sums, err);
        for (uint64_t i = 0; r == 0 && i < sums->count; i++)
            r = compare_extent(v, from + done + i, &v->extents[done + i], sums->changed[i], sums->sums[i],
                               sums + 1, err);
        if (r < 0)
            return r;
        done += sums->count;
        tell(v);
    }
    return 0;
}

static void add_disk(struct verifying *v)
{
    uint64_t changed = v->changed * DISK_BLOCK, size = digester_size(v->digester);
    uint64_t compared = (size + DISK_BLOCK - 1) / DISK_BLOCK * DISK_BLOCK - changed;
    end_range(v);
    v->different += v->differing;
    json_array_append_new(v->disks,
                          json_pack("{s:s, s:b, s:I, s:I, s:s, s:I, s:I, s:I, s:I}", "file", file_of(v),
                                    "equal", v->differing == 0, "generation", (json_int_t)v->upto.generation,
                                    "sealed", (json_int_t)v->upto.time_ms, "sealed_at", v->upto.host, "size",
                                    (json_int_t)size, "compared", (json_int_t)compared, "changed",
                                    (json_int_t)changed, "different", (json_int_t)v->differing));
}

static int compare_disk(struct verifying *v, size_t index, struct err *err)
{
    struct id random = id_random();
    v->index = index;
    v->seed = get_le64(random.bytes);
    v->changed = v->differing = 0;
    digester_free(v->digester);
    v->digester = NULL;
    int r = verify_open(v->host, v->name, index, &v->digester, NULL, err);
    if (r == 0)
        r = agree(v, err);
    for (uint64_t at = 0, count = 0; r == 0 && at < digester_extents(v->digester); at += count)
        if ((r = check_cancelled(v, err)) == 0 && (r = hash_ours(v, at, &count, err)) == 0)
            r = compare_batch(v, at, count, err);
    if (r == 0)
        add_disk(v);
    return r;
}

static int compare_all(struct verifying *v, struct err *err)
{
    int r = 0;
    for (size_t i = 0; i < v->config->disk_count; i++)
        v->total += v->config->disks[i].size;
    for (size_t i = 0; r == 0 && i < v->config->disk_count; i++)
        r = compare_disk(v, i, err);
    return r;
}

static void verify_work(void *arg)
{
    _cleanup_(verifying_cleanup) struct verifying *v = arg;
    struct host *host = v->host;
    struct err err = ERR_NONE;
    verify_be_humble();
    int r = compare_all(v, &err);
    if (r < 0) {
        err_where(&err, host->options.name, NULL);
        operation_end(host->operations, &v->operation, NULL, &err);
        return;
    }
    json_t *result =
        json_pack("{s:s, s:s, s:s, s:b, s:I, s:O, s:O, s:b}", "vm", v->name, "here", host->options.name,
                  "against", v->peer.name, "equal", v->different == 0, "different", (json_int_t)v->different,
                  "disks", v->disks, "differences", v->differences, "more", v->cut);
    if (v->different > 0)
        log_warning("%llu blocks of \"%s\" differ between this host and \"%s\", and neither changed them",
                    (unsigned long long)v->different, v->name, v->peer.name);
    event_add(host->events, "vm.verified", v->name,
              json_pack("{s:s, s:b, s:I}", "against", v->peer.name, "equal", v->different == 0, "different",
                        (json_int_t)v->different));
    operation_end(host->operations, &v->operation, result, NULL);
}

static int check_idle(struct host *host, const char *name, struct err *err)
{
    _cleanup_json_ json_t *newest = NULL;
    int r = operation_newest(host->operations, VERIFY_KIND, name, &newest, err);
    if (r < 0 || !newest || strcmp(json_str(newest, "state", ""), "running") != 0)
        return r;
    err_set(err, EBUSY, "\"%s\" is being compared already", name);
    return err_hint(err, "orai cancel %s stops that", name);
}

static int prepare(struct verifying *v, struct err *err)
{
    char dir[PATH_MAX];
    v->config = malloc(sizeof *v->config);
    v->extents = malloc(VERIFY_EXTENTS * sizeof *v->extents);
    v->disks = json_array();
    v->differences = json_array();
    if (!v->config || !v->extents || !v->disks || !v->differences)
        return err_set(err, ENOMEM, "out of memory");
    int r = vm_lookup(v->host->vms, v->name, &v->vm, err);
    if (r == 0)
        r = check_idle(v->host, v->name, err);
    vm_dir(v->host, v->name, dir);
    if (r == 0 && (r = vm_config_load(dir, v->config, err)) == -ENOENT)
        err_set(err, ENOENT, "the copy of \"%s\" that began to come here has no config yet", v->name);
    return r;
}

int verify_begin(struct host *host, const char *name, const struct peer *peer, uint64_t rate,
                 struct id *ret_operation, struct err *err)
{
    _cleanup_(verifying_cleanup) struct verifying *v = calloc(1, sizeof *v);
    if (!v)
        return err_set(err, ENOMEM, "out of memory");
    v->host = host;
    v->peer = *peer;
    v->rate = rate;
    struct id operation = v->operation = id_random();
    snprintf(v->name, sizeof v->name, "%.63s", name);
    int r = prepare(v, err);
    if (r == 0)
        r = operation_begin(host->operations, &operation, VERIFY_KIND, v->name, err);
    if (r < 0)
        return r;
    r = pool_run(host->verifies, verify_work, v, err);
    if (r < 0) {
        operation_end(host->operations, &operation, NULL, err);
        return r;
    }
    v = NULL; /* the job's */
    *ret_operation = operation;
    return 0;
}
