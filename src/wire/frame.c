/* SPDX-License-Identifier: Apache-2.0 */
#include "wire/frame.h"

#include "base/endian.h"

#include <assert.h>
#include <errno.h>
#include <stdbool.h>
#include <string.h>
#include <xxhash.h>

#define BLOCK 4096U

static const char magic[4] = {'O', 'R', 'F', '1'};

static const char *const type_names[] = {
    [FRAME_HELLO] = "hello",       [FRAME_PING] = "ping",         [FRAME_ERROR] = "error",
    [FRAME_PREPARE] = "prepare",   [FRAME_PREPARED] = "prepared", [FRAME_LINEAGE] = "lineage",
    [FRAME_FILE] = "file",         [FRAME_BASE] = "base",         [FRAME_FORK] = "fork",
    [FRAME_OPENED] = "opened",     [FRAME_RUN] = "run",           [FRAME_MARK] = "mark",
    [FRAME_MARKED] = "marked",     [FRAME_STREAM] = "stream",     [FRAME_BACK] = "back",
    [FRAME_PROBE] = "probe",       [FRAME_PROBED] = "probed",     [FRAME_LOADED] = "loaded",
    [FRAME_HASHES] = "hashes",     [FRAME_WANTED] = "wanted",     [FRAME_PAGE] = "page",
    [FRAME_READY] = "ready",       [FRAME_COMMIT] = "commit",     [FRAME_RUNNING] = "running",
    [FRAME_REFUSED] = "refused",   [FRAME_FINISH] = "finish",     [FRAME_PROGRESS] = "progress",
    [FRAME_CANCEL] = "cancel",     [FRAME_MISSING] = "missing",   [FRAME_FETCH] = "fetch",
    [FRAME_FETCHED] = "fetched",   [FRAME_HOT] = "hot",           [FRAME_RELEASE] = "release",
    [FRAME_RELEASED] = "released", [FRAME_TAKEN] = "taken",       [FRAME_SUMS] = "sums",
    [FRAME_DIFFER] = "differ",     [FRAME_NEWER] = "newer",       [FRAME_PACKED] = "packed",
    [FRAME_KNOWN] = "known",       [FRAME_ANEW] = "anew",         [FRAME_FAULTS] = "faults",
    [FRAME_RECOVER] = "recover",   [FRAME_RECEIVED] = "received", [FRAME_CLOCK] = "clock",
    [FRAME_WORKSET] = "workset",
};
static_assert(sizeof type_names / sizeof *type_names == FRAME_TYPE_END, "a name for each type");

const char *frame_type_name(enum frame_type type)
{
    return type >= FRAME_HELLO && type < FRAME_TYPE_END ? type_names[type] : "unknown";
}

void frame_encode(const struct frame *frame, uint8_t ret[FRAME_HEADER_SIZE])
{
    memset(ret, 0, FRAME_HEADER_SIZE);
    memcpy(ret, magic, sizeof magic);
    ret[4] = (uint8_t)frame->type;
    put_le32(ret + 8, frame->length);
    memcpy(ret + 16, frame->vm.bytes, sizeof frame->vm.bytes);
    put_le64(ret + 32, frame->epoch);
}

int frame_decode(const uint8_t bytes[FRAME_HEADER_SIZE], struct frame *ret, struct err *err)
{
    if (memcmp(bytes, magic, sizeof magic) != 0)
        return err_set(err, EPROTO, "the peer does not speak the move protocol");
    if (bytes[4] < FRAME_HELLO || bytes[4] >= FRAME_TYPE_END)
        return err_set(err, EPROTO, "the peer sent a frame of the unknown type %u", bytes[4]);
    uint32_t length = get_le32(bytes + 8);
    if (length > FRAME_MAX_PAYLOAD)
        return err_set(err, EPROTO, "the peer announced a frame of %u bytes, more than %u", length,
                       FRAME_MAX_PAYLOAD);
    ret->type = (enum frame_type)bytes[4];
    ret->length = length;
    memcpy(ret->vm.bytes, bytes + 16, sizeof ret->vm.bytes);
    ret->epoch = get_le64(bytes + 32);
    return 0;
}

void wire_run_encode(const struct wire_run *run, uint8_t ret[WIRE_RUN_SIZE])
{
    memset(ret, 0, WIRE_RUN_SIZE);
    put_le16(ret, run->disk);
    put_le16(ret + 2, run->flags);
    put_le32(ret + 4, run->generation);
    put_le64(ret + 8, run->block);
    put_le32(ret + 16, run->count);
    put_le64(ret + 24, run->checksum);
}

static int check_data(const struct wire_run *run, const uint8_t *data, size_t size, struct err *err)
{
    bool zero = run->flags & WIRE_RUN_ZERO;
    if (zero && size != 0)
        return err_set(err, EPROTO, "a zero run with %zu bytes of data", size);
    if (zero)
        return 0;
    if (run->count > WIRE_RUN_MAX_BLOCKS || size > (size_t)run->count * BLOCK ||
        size <= (size_t)(run->count - 1) * BLOCK)
        return err_set(err, EPROTO, "a run of %u blocks with %zu bytes of data", run->count, size);
    if (XXH3_64bits(data, size) != run->checksum)
        return err_set(err, EBADMSG, "blocks %llu to %llu of disk %u arrived damaged (wrong checksum)",
                       (unsigned long long)run->block, (unsigned long long)run->block + run->count - 1,
                       run->disk);
    return 0;
}

int wire_run_decode(const uint8_t *payload, size_t size, struct wire_run *ret, const uint8_t **ret_data,
                    size_t *ret_size, struct err *err)
{
    if (size < WIRE_RUN_SIZE)
        return err_set(err, EPROTO, "a run of only %zu bytes", size);
    struct wire_run run = {
        .disk = get_le16(payload),
        .flags = get_le16(payload + 2),
        .generation = get_le32(payload + 4),
        .block = get_le64(payload + 8),
        .count = get_le32(payload + 16),
        .checksum = get_le64(payload + 24),
    };
    if (run.count == 0 || run.block > UINT64_MAX / BLOCK - run.count || (run.flags & ~WIRE_RUN_ZERO))
        return err_set(err, EPROTO, "a run of %u blocks at block %llu with flags %#x", run.count,
                       (unsigned long long)run.block, run.flags);
    const uint8_t *data = payload + WIRE_RUN_SIZE;
    int r = check_data(&run, data, size - WIRE_RUN_SIZE, err);
    if (r < 0)
        return r;
    *ret = run;
    *ret_data = run.flags & WIRE_RUN_ZERO ? NULL : data;
    *ret_size = size - WIRE_RUN_SIZE;
    return 0;
}

void wire_sums_encode(const struct wire_sums *sums, uint8_t ret[WIRE_SUMS_SIZE])
{
    put_le16(ret, sums->disk);
    put_le16(ret + 2, 0);
    put_le32(ret + 4, sums->generation);
    put_le64(ret + 8, sums->block);
    put_le32(ret + 16, sums->count);
    put_le32(ret + 20, sums->ticket);
}

int wire_sums_decode(const uint8_t *payload, size_t size, struct wire_sums *ret,
                     const uint8_t (**ret_sums)[WIRE_SUM_SIZE], struct err *err)
{
    if (size < WIRE_SUMS_SIZE)
        return err_set(err, EPROTO, "sums of only %zu bytes", size);
    const struct wire_sums sums = {
        .disk = get_le16(payload),
        .generation = get_le32(payload + 4),
        .block = get_le64(payload + 8),
        .count = get_le32(payload + 16),
        .ticket = get_le32(payload + 20),
    };
    if (get_le16(payload + 2) || sums.count == 0 || sums.count > WIRE_RUN_MAX_BLOCKS ||
        sums.block > UINT64_MAX / BLOCK - sums.count ||
        size != WIRE_SUMS_SIZE + (size_t)sums.count * WIRE_SUM_SIZE)
        return err_set(err, EPROTO, "the sums of %u blocks at block %llu in %zu bytes", sums.count,
                       (unsigned long long)sums.block, size);
    *ret = sums;
    *ret_sums = (const uint8_t(*)[WIRE_SUM_SIZE])(payload + WIRE_SUMS_SIZE);
    return 0;
}

void wire_differ_encode(const struct wire_differ *differ, uint8_t ret[WIRE_DIFFER_SIZE])
{
    put_le32(ret, differ->ticket);
    put_le32(ret + 4, 0);
    put_le64(ret + 8, differ->bits);
}

int wire_differ_decode(const uint8_t *payload, size_t size, struct wire_differ *ret, struct err *err)
{
    if (size != WIRE_DIFFER_SIZE || get_le32(payload + 4))
        return err_set(err, EPROTO, "an answer to sums of %zu bytes", size);
    *ret = (struct wire_differ){.ticket = get_le32(payload), .bits = get_le64(payload + 8)};
    return 0;
}

void wire_mark_encode(const struct wire_mark *mark, uint8_t ret[WIRE_MARK_SIZE])
{
    put_le32(ret, mark->sequence);
    put_le32(ret + 4, 0);
}

int wire_mark_decode(const uint8_t *payload, size_t size, struct wire_mark *ret, struct err *err)
{
    if (size != WIRE_MARK_SIZE)
        return err_set(err, EPROTO, "a mark of %zu bytes", size);
    ret->sequence = get_le32(payload);
    return 0;
}

void wire_claim_encode(const struct wire_claim *claim, uint8_t ret[WIRE_CLAIM_SIZE])
{
    put_le16(ret, claim->disk);
    put_le16(ret + 2, claim->flags);
    put_le32(ret + 4, claim->sequence);
}

int wire_claim_decode(const uint8_t *payload, size_t size, struct wire_claim *ret,
                      const uint8_t **ret_lineage, size_t *ret_size, struct err *err)
{
    if (size < WIRE_CLAIM_SIZE ||
        (get_le16(payload + 2) & ~(WIRE_CLAIM_FINAL | WIRE_CLAIM_LAST | WIRE_CLAIM_SPLIT)))
        return err_set(err, EPROTO, "a lineage message of %zu bytes that makes no sense", size);
    *ret = (struct wire_claim){
        .disk = get_le16(payload), .flags = get_le16(payload + 2), .sequence = get_le32(payload + 4)};
    *ret_lineage = payload + WIRE_CLAIM_SIZE;
    *ret_size = size - WIRE_CLAIM_SIZE;
    return 0;
}

void wire_fetch_encode(const struct wire_fetch *fetch, uint8_t ret[WIRE_FETCH_SIZE])
{
    put_le16(ret, fetch->disk);
    put_le16(ret + 2, 0);
    put_le32(ret + 4, fetch->above);
    put_le32(ret + 8, fetch->upto);
    put_le32(ret + 12, fetch->count);
    put_le64(ret + 16, fetch->block);
    put_le64(ret + 24, fetch->serial);
}

int wire_fetch_decode(const uint8_t *payload, size_t size, struct wire_fetch *ret, struct err *err)
{
    if (size != WIRE_FETCH_SIZE)
        return err_set(err, EPROTO, "a request for blocks of %zu bytes", size);
    struct wire_fetch fetch = {
        .disk = get_le16(payload),
        .above = get_le32(payload + 4),
        .upto = get_le32(payload + 8),
        .count = get_le32(payload + 12),
        .block = get_le64(payload + 16),
        .serial = get_le64(payload + 24),
    };
    if (get_le16(payload + 2) || fetch.count == 0 || fetch.count > WIRE_FETCH_MAX_BLOCKS ||
        fetch.block > UINT64_MAX / BLOCK - fetch.count)
        return err_set(err, EPROTO, "a request for %u blocks at block %llu", fetch.count,
                       (unsigned long long)fetch.block);
    *ret = fetch;
    return 0;
}

void wire_clock_encode(const struct wire_clock *clock, uint8_t ret[WIRE_CLOCK_SIZE])
{
    put_le64(ret, (uint64_t)clock->stood);
    put_le64(ret + 8, (uint64_t)clock->round_trip);
}

int wire_clock_decode(const uint8_t *payload, size_t size, struct wire_clock *ret, struct err *err)
{
    uint64_t stood = size == WIRE_CLOCK_SIZE ? get_le64(payload) : UINT64_MAX;
    uint64_t round_trip = size == WIRE_CLOCK_SIZE ? get_le64(payload + 8) : 0;
    if (stood > WIRE_CLOCK_MOST || round_trip > WIRE_CLOCK_MOST)
        return err_set(err, EPROTO, "the time that the guest stood still makes no sense");
    *ret = (struct wire_clock){.stood = (int64_t)stood, .round_trip = (int64_t)round_trip};
    return 0;
}

void wire_newer_encode(const struct wire_newer *newer, uint8_t ret[WIRE_NEWER_SIZE])
{
    put_le16(ret, newer->disk);
    put_le16(ret + 2, 0);
    put_le32(ret + 4, newer->above);
}

int wire_newer_decode(const uint8_t *payload, size_t size, struct wire_newer *ret, const uint8_t **ret_bits,
                      size_t *ret_size, struct err *err)
{
    if (size < WIRE_NEWER_SIZE || get_le16(payload + 2))
        return err_set(err, EPROTO, "what is newer in %zu bytes", size);
    *ret = (struct wire_newer){.disk = get_le16(payload), .above = get_le32(payload + 4)};
    *ret_bits = payload + WIRE_NEWER_SIZE;
    *ret_size = size - WIRE_NEWER_SIZE;
    return 0;
}
