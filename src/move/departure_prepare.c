/* SPDX-License-Identifier: Apache-2.0
 *
 * The source's first stage. Nothing changes here; the destination checks and reserves all that a move needs,
 * so that what fails later is only what nobody could know before.
 *
 *   hello ->                         <- hello
 *   hello on each data connection -> <- hello              at any moment until they are needed
 *   prepare (config, files) ->       <- lineage of each disk it has, prepared (what it has and needs)
 *   base (how to build the disks), lineage (first claims), file... ->
 *                                    <- [fork (blocks)...]
 *   probe... ->                      <- probed             the link's rate, for the prediction
 *                                    <- opened
 *
 * The last is what takes time (the disks are built, QEMU starts), so the link is measured meanwhile, and
 * "opened" may come at any moment after the forks.
 */
#include "base/clock.h"
#include "base/endian.h"
#include "base/file.h"
#include "base/json.h"
#include "base/log.h"
#include "base/macro.h"
#include "move/departure.h"
#include "vmm/firmware.h"

#include <errno.h>
#include <limits.h>
#include <string.h>
#include <sys/stat.h>
#include <xxhash.h>

#define FILE_CHUNK (256U << 10)

/* --- files that travel with the VM ---------------------------------------------------------------------- */

struct travelling_file {
    const char *name; /* plain, in the VM's folder; "" = none */
    void *data;
    size_t size;
};

#define FILE_LIMIT (512U << 20)

static void files_done(struct travelling_file files[2])
{
    free(files[0].data);
    free(files[1].data);
}

static int files_load(const struct departure *departure, struct travelling_file files[2], struct err *err)
{
    const struct vm_config *config = machine_config(departure->machine);
    files[0] = (struct travelling_file){.name = config->kernel};
    files[1] = (struct travelling_file){.name = config->initrd};
    for (int i = 0; i < 2; i++) {
        char path[PATH_MAX];
        if (!files[i].name[0])
            continue;
        snprintf(path, sizeof path, "%s/%s", departure->host->env.vm_dir, files[i].name);
        int r = file_load(path, FILE_LIMIT, &files[i].data, &files[i].size, err);
        if (r < 0)
            return r;
    }
    return 0;
}

static json_t *files_json(const struct travelling_file files[2])
{
    json_t *list = json_array();
    for (int i = 0; i < 2; i++) {
        char hash[HASH_TEXT_SIZE];
        XXH128_canonical_t digest;
        XXH128_canonicalFromHash(&digest, XXH3_128bits(files[i].data, files[i].size));
        json_array_append_new(list, json_pack("{s:s, s:I, s:s}", "name", files[i].name, "size",
                                              (json_int_t)files[i].size, "hash",
                                              hex_format(digest.digest, sizeof digest.digest, hash)));
    }
    return list;
}

static int files_send(struct departure *departure, const struct travelling_file files[2],
                      const json_t *wanted, struct err *err)
{
    size_t i;
    json_t *number;
    json_array_foreach((json_t *)wanted, i, number)
    {
        json_int_t file = json_integer_value(number);
        if (file < 0 || file > 1)
            return err_set(err, EPROTO, "the destination asks for the unknown file %lld", (long long)file);
        for (size_t at = 0; at < files[file].size; at += FILE_CHUNK) {
            uint8_t head[10];
            put_le16(head, (uint16_t)file);
            put_le64(head + 2, at);
            int r = link_send(departure->session.control, FRAME_FILE, head, sizeof head,
                              (uint8_t *)files[file].data + at,
                              MIN(files[file].size - at, (size_t)FILE_CHUNK), err);
            if (r < 0)
                return r;
        }
    }
    return 0;
}

/* --- what the destination has, and what it gets --------------------------------------------------------- */

struct offer {
    struct lineage *lineage[VM_MAX_DISKS]; /* NULL: no copy there */
    json_t *prepared;
};

static void offer_done(struct offer *offer)
{
    for (size_t i = 0; i < VM_MAX_DISKS; i++)
        lineage_free(offer->lineage[i]);
    json_decref(offer->prepared);
}

static int take_lineage(struct departure *departure, const struct mail *mail, struct offer *offer,
                        struct err *err)
{
    struct wire_claim claim;
    const uint8_t *bytes;
    size_t size;
    int r = wire_claim_decode(mail->payload, mail->frame.length, &claim, &bytes, &size, err);
    if (r < 0)
        return r;
    if (claim.disk >= departure_disks(departure) || offer->lineage[claim.disk])
        return err_set(err, EPROTO, "the destination sent the lineage of disk %u", claim.disk);
    return lineage_decode(bytes, size, &offer->lineage[claim.disk], err);
}

static int receive_offer(struct departure *departure, struct offer *offer, struct err *err)
{
    int64_t deadline = clock_now() + MOVE_ANSWER_MS * NSEC_PER_MSEC;
    for (;;) {
        struct mail *mail;
        int r = session_next(&departure->session, deadline, &mail, err);
        if (r == -EAGAIN)
            return err_set(err, ETIMEDOUT, "the destination did not finish its checks in time");
        if (r < 0)
            return r;
        enum frame_type type = mail->frame.type;
        if (type == FRAME_LINEAGE)
            r = take_lineage(departure, mail, offer, err);
        else if (type == FRAME_PREPARED)
            r = json_parse((char *)mail->payload, mail->frame.length, "the destination's answer",
                           &offer->prepared, err);
        else
            r = err_set(err, EPROTO, "the destination sent \"%s\" while preparing", frame_type_name(type));
        free(mail);
        if (r < 0 || type == FRAME_PREPARED)
            return r;
    }
}

/* When the time is over memory shall follow the guest. */
static bool may_renew(const struct departure *departure)
{
    return departure->options.timeout_ms && departure->options.on_timeout == MOVE_FOLLOW;
}

/* What the user relies on is refused at once, not at the timeout. */
static int check_renewable(struct departure *departure, const struct offer *offer, struct err *err)
{
    const json_t *memory = json_object_get(offer->prepared, "memory");
    if (!may_renew(departure) || json_bool(memory, "anew", false))
        return 0;
    const char *why = json_str(memory, "why", "its Orai is too old");
    err_set(err, ENOTSUP, "--on-timeout postcopy is not possible on %s: %s", departure->options.peer.name,
            why);
    err_where(err, departure->options.peer.name, "prepare");
    return err_hint(err, "%s",
                    json_str(memory, "hint", "upgrade Orai there, or choose another --on-timeout"));
}

static int send_prepare(struct departure *departure, const struct travelling_file files[2], struct err *err)
{
    uint64_t full = 0;
    for (size_t i = 0; i < departure_disks(departure); i++) {
        struct stat st;
        if (fstat(disk_fd(machine_disk(departure->machine, i)), &st) == 0)
            full += S_ISREG(st.st_mode)
                        ? (uint64_t)st.st_blocks * 512
                        : disk_count(machine_disk(departure->machine, i), 0, UINT32_MAX) * DISK_BLOCK;
    }
    departure->numbers.disk_full = full;
    _cleanup_json_ json_t *prepare = json_pack("{s:o, s:o, s:I, s:b, s:s}", "config",
                                               vm_config_to_json(machine_config(departure->machine)), "files",
                                               files_json(files), "disk_bytes", (json_int_t)full, "dry_run",
                                               departure->options.dry_run, "version", ORAI_VERSION);
    uint64_t firmware;
    if (vm_config_uefi(machine_config(departure->machine))) {
        int r = firmware_size(departure->host->env.firmware_dir, &firmware, err);
        if (r < 0)
            return r;
        json_object_set_new(prepare, "firmware_bytes", json_integer((json_int_t)firmware));
    }
    json_object_set_new(prepare, "compare_memory",
                        json_boolean(departure_emulated(departure) || departure->options.verify_memory));
    json_object_set_new(prepare, "memory_later", json_boolean(departure->memory_later));
    json_object_set_new(prepare, "memory_anew", json_boolean(may_renew(departure)));
    json_object_set_new(prepare, "faults", json_true());
    json_object_set_new(prepare, "clock", json_true());
    return link_send_json(departure->session.control, FRAME_PREPARE, prepare, err);
}

static const char *base_name(const struct lineage_base *base, const struct lineage *theirs, bool image)
{
    if (base->forked)
        return "fork";
    if (image)
        return "image";
    if (base->base == 0 && base->reached == 0)
        return "none";
    return theirs->claim == LINEAGE_PARTIAL ? "partial" : "replica";
}

/* How disk `i` will be built there: on its copy, on the base image, or from nothing. */
static const char *choose_base(struct departure *departure, const struct offer *offer, size_t i,
                               struct lineage_base *ret, struct err *err)
{
    _cleanup_(lineage_freep) struct lineage *ours = NULL;
    json_t *has = json_array_get(json_object_get(offer->prepared, "disks"), i);
    /* What is left of a donor says that a comparison has begun: it goes on. */
    bool distrusted = departure->options.compare && !json_bool(has, "donor_left", false);
    *ret = (struct lineage_base){0};
    if (disk_lineage(machine_disk(departure->machine, i), &ours, err) < 0)
        return NULL;
    if (offer->lineage[i])
        lineage_compare(ours, offer->lineage[i], ret);
    if (offer->lineage[i] && !ret->foreign && (ret->base || ret->reached) && !distrusted)
        return base_name(ret, offer->lineage[i], false);
    const struct lineage_entry *first = lineage_find(ours, 1);
    *ret = (struct lineage_base){0};
    if (first && first->kind == LINEAGE_BASE && json_bool(has, "image", false)) {
        ret->base = 1;
        return "image";
    }
    return "none";
}

/* The claim that the copy there may make from the first byte on, until a mark says better. */
static int send_first_claim(struct departure *departure, size_t i, const struct lineage_base *base,
                            struct err *err)
{
    _cleanup_(lineage_freep) struct lineage *claim = NULL;
    int r = disk_lineage(machine_disk(departure->machine, i), &claim, err);
    if (r < 0)
        return r;
    claim->claim = LINEAGE_PARTIAL;
    claim->complete = base->base;
    claim->reached = base->reached;
    claim->cursor = base->cursor;
    return departure_send_claim(departure, i, claim, 0, 0, err);
}

/* The blocks that a fork wrote, as the destination lists them, disk after disk: frames of n x (u64 block, u64
 * count), an empty one at the end. */
static int receive_forks(struct departure *departure, size_t disk, struct disk_range **ret, size_t *ret_count,
                         struct err *err)
{
    struct disk_range *ranges = NULL;
    size_t count = 0;
    for (;;) {
        struct mail *mail = NULL;
        int r = session_wait(&departure->session, FRAME_FORK, clock_now() + MOVE_ANSWER_MS * NSEC_PER_MSEC,
                             &mail, err);
        size_t here = r < 0 ? 0 : mail->frame.length / 16;
        struct disk_range *more = r < 0 ? NULL : realloc(ranges, (count + here + 1) * sizeof *ranges);
        if (r == 0 && (!more || count + here > (64U << 20) / sizeof *ranges))
            r = err_set(err, EPROTO, "the destination's list of forked blocks makes no sense");
        if (more)
            ranges = more;
        uint64_t blocks = disk_blocks(machine_disk(departure->machine, disk));
        for (size_t i = 0; r == 0 && i < here; i++) {
            struct disk_range *range = &ranges[count++];
            range->offset = get_le64(mail->payload + 16 * i);
            range->size = get_le64(mail->payload + 8 + 16 * i);
            uint64_t previous = count > 1 ? ranges[count - 2].offset + ranges[count - 2].size : 0;
            if (range->size == 0 || range->offset < previous || range->offset >= blocks ||
                range->size > blocks - range->offset)
                r = err_set(err, EPROTO, "the destination's list of forked blocks makes no sense");
        }
        free(mail);
        if (r < 0) {
            free(ranges);
            return r;
        }
        if (here == 0) /* an empty frame ends the list */
            break;
    }
    *ret = ranges;
    *ret_count = count;
    return 0;
}

static int make_relocate(struct departure *departure, size_t i, const struct lineage_base *base,
                         struct err *err)
{
    struct disk_range *fork = NULL;
    size_t fork_count = 0;
    if (base->forked) {
        progress_note(
            departure->progress,
            "the copy of disk %zu on %s is a fork: it had been run by itself, and what it wrote is replaced",
            i, departure->options.peer.name);
        int r = receive_forks(departure, i, &fork, &fork_count, err);
        if (r < 0)
            return r;
    }
    departure->forked[i] = base->forked;
    int r = relocate_new(machine_disk(departure->machine, i), base, fork, fork_count, &departure->relocate[i],
                         err);
    free(fork);
    return r;
}

/* An image without a common history is a donor; so is a copy that the user does not trust, and what is left
 * from an earlier try. Not in a post-copy move, where nothing is sent before the switch. */
static bool choose_donor(const struct departure *departure, const struct offer *offer, size_t i,
                         const char *base)
{
    const json_t *has = json_array_get(json_object_get(offer->prepared, "disks"), i);
    bool before = departure->options.mode == MOVE_PRECOPY || departure->options.mode == MOVE_AUTO;
    bool fresh = strcmp(base, "none") == 0 || strcmp(base, "image") == 0;
    return before && ((fresh && json_bool(has, "donor", false)) ||
                      (strcmp(base, "partial") == 0 && json_bool(has, "donor_left", false)));
}

/* Says in the list of bases which disks have a donor, and makes the key of their sums. */
static int choose_donors(struct departure *departure, const struct offer *offer, json_t *list,
                         json_t **ret_key, struct err *err)
{
    uint8_t key[SUMS_KEY];
    char text[2 * SUMS_KEY + 1];
    bool any = false;
    for (size_t i = 0; i < departure_disks(departure); i++) {
        json_t *entry = json_array_get(list, i);
        departure->donor[i] = choose_donor(departure, offer, i, json_str(entry, "base", ""));
        json_object_set_new(entry, "donor", json_boolean(departure->donor[i]));
        if (!departure->donor[i])
            continue;
        any = true;
        progress_note(departure->progress,
                      "disk %zu is compared with what is on %s: only what differs is sent", i,
                      departure->options.peer.name);
    }
    if (!any || departure->options.dry_run)
        return 0;
    int r = departure_new_asking(departure, key, err);
    if (r == 0)
        *ret_key = json_string(hex_format(key, sizeof key, text));
    return r;
}

/* The seed of the hashes, if the memory that the guest had when it was last there can be used; NULL: it goes
 * whole. */
static json_t *choose_checkpoint(struct departure *departure, const struct offer *offer)
{
    struct err err = ERR_NONE;
    const struct id random = id_random(); /* more than is needed */
    char text[2 * KNOWN_SEED + 1];
    const json_t *memory = json_object_get(offer->prepared, "memory");
    departure->packs = json_bool(memory, "packed", false);
    departure->packs_later = json_bool(memory, "packed_later", false);
    departure->clock = json_bool(memory, "clock", false);
    departure->tells_workset = json_bool(memory, "workset", false);
    bool packs = departure->memory_later ? departure->packs_later : departure->packs;
    if (!packs || !json_bool(memory, "checkpoint", false) || departure->options.dry_run)
        return NULL;
    if (departure_new_known(departure, random.bytes, &err) == 0)
        return json_string(hex_format(random.bytes, KNOWN_SEED, text));
    log_warning("memory goes whole: %s", err.text);
    return NULL;
}

/* Chooses and announces all bases, with the claims that the copies there may make from now on. */
static int send_bases(struct departure *departure, const struct offer *offer,
                      struct lineage_base bases[VM_MAX_DISKS], struct err *err)
{
    _cleanup_json_ json_t *list = json_array();
    json_t *key = NULL;
    for (size_t i = 0; i < departure_disks(departure); i++) {
        const char *base = choose_base(departure, offer, i, &bases[i], err);
        if (!base)
            return -EIO;
        json_array_append_new(list,
                              json_pack("{s:s, s:I}", "base", base, "generation", (json_int_t)bases[i].base));
        departure->prediction.disks[i].base = base;
        if (i == 0)
            departure->numbers.disk_base = base;
    }
    departure->prediction.disk_count = departure_disks(departure);
    int r = choose_donors(departure, offer, list, &key, err);
    if (r < 0)
        return r;
    departure->split = departure_may_split(departure, bases);
    if (departure->split && departure_new_lender(departure, err) < 0)
        return -err->code;
    _cleanup_json_ json_t *message = json_pack(
        "{s:O, s:I, s:b, s:b, s:o*, s:o*}", "disks", list, "epoch", (json_int_t)departure->next_epoch,
        "split", departure->split, "fetch", departure->split && departure->options.mode != MOVE_AUTO, "key",
        key, "memory_seed", choose_checkpoint(departure, offer));
    r = link_send_json(departure->session.control, FRAME_BASE, message, err);
    for (size_t i = 0; r == 0 && !departure->options.dry_run && i < departure_disks(departure); i++)
        if (!bases[i].forked)
            r = send_first_claim(departure, i, &bases[i], err);
    return r;
}

/* --- the stage ------------------------------------------------------------------------------------------ */

/* The new epoch is above everything that either side has ever held (a fork may have gone ahead). */
static void choose_epoch(struct departure *departure, const struct offer *offer)
{
    uint64_t theirs = json_u64(offer->prepared, "epoch", 0);
    departure->next_epoch = MAX(epoch_get(departure->epoch)->epoch, theirs) + 1;
    link_set_epoch(departure->session.control, departure->next_epoch);
}

static int wait_opened(struct departure *departure, struct err *err)
{
    return departure->opened ? 0
                             : departure_await(departure, FRAME_OPENED,
                                               clock_now() + MOVE_OPEN_MS * NSEC_PER_MSEC, NULL, err);
}

/* A limited bandwidth is not spent on it. */
int departure_before_memory(struct departure *departure, struct err *err)
{
    int r = departure->options.bandwidth ? 0 : departure_warm(departure, err);
    qemu_early_devices(machine_qemu(departure->machine), machine_config(departure->machine),
                       &departure->early);
    return r;
}

static int prepare(struct departure *departure, const struct travelling_file files[2], struct offer *offer,
                   struct err *err)
{
    int r = send_prepare(departure, files, err);
    if (r == 0)
        r = receive_offer(departure, offer, err);
    if (r < 0)
        return r;
    if ((r = check_renewable(departure, offer, err)) < 0)
        return r;
    struct lineage_base bases[VM_MAX_DISKS] = {0};
    choose_epoch(departure, offer);
    r = send_bases(departure, offer, bases, err);
    if (r == 0 && !departure->options.dry_run)
        r = files_send(departure, files, json_object_get(offer->prepared, "files"), err);
    for (size_t i = 0; r == 0 && i < departure_disks(departure); i++)
        r = make_relocate(departure, i, &bases[i], err);
    if (r == 0 && !departure->options.dry_run)
        r = departure_wait_greeted(departure, err);
    if (r == 0 && departure->memory_later && !departure->options.dry_run)
        r = departure_before_memory(departure, err);
    if (r == 0) {
        plan_estimate(departure);
        r = plan_measure(departure, err);
    }
    if (r == 0)
        r = wait_opened(departure, err);
    if (r < 0)
        return r;
    plan_predict(departure);
    departure_choose_mode(departure);
    departure_show(departure);
    return departure->options.dry_run
               ? link_send(departure->session.control, FRAME_FINISH, NULL, 0, NULL, 0, err)
               : 0;
}

int departure_prepare(struct departure *departure, struct err *err)
{
    struct travelling_file files[2] = {0};
    struct offer offer = {0};
    char status[32];
    int r = qemu_status(machine_qemu(departure->machine), status, err);
    departure->guest_runs = r == 0 && strcmp(status, "running") == 0;
    departure->memory_later = departure->options.memory_later;
    plan_begin(departure);
    if (r == 0 && !departure->options.dry_run)
        r = departure_open_data(departure, err);
    if (r == 0)
        r = departure_connect(departure, false, clock_now() + MOVE_CONNECT_NS, err);
    if (r == 0 && !departure->options.dry_run)
        r = departure_connect_data(departure, err);
    departure_drop_openings(departure);
    if (r == 0)
        r = files_load(departure, files, err);
    if (r == 0)
        r = prepare(departure, files, &offer, err);
    files_done(files);
    offer_done(&offer);
    return r;
}

/* Tells the destination why, if it can still be told and does not know; then it cleans up at once instead of
 * later. */
void departure_unprepare(struct departure *departure)
{
    departure_drop_lender(departure);
    struct session *session = &departure->session;
    if (!session->control || session->peer_failed)
        return;
    _cleanup_json_ json_t *json = err_to_json(&departure->why);
    if (link_send_json(session->control, FRAME_ERROR, json, NULL) == 0)
        link_drain(session->control, clock_now() + 2 * NSEC_PER_SEC, NULL);
}
