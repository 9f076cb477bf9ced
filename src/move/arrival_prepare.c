/* SPDX-License-Identifier: Apache-2.0
 *
 * The destination's first stage: see departure_prepare.c for the messages.
 *
 * Up to the source's "base" nothing here changes. Then the epoch record says ARRIVING, the disks are opened
 * frozen with a claim that says how little they are worth so far, and QEMU starts with -incoming. Rolling
 * back leaves a partial replica, which makes the next try cheaper.
 */
#include "base/clock.h"
#include "base/endian.h"
#include "base/json.h"
#include "base/log.h"
#include "base/macro.h"
#include "move/arrival.h"

#include <errno.h>
#include <limits.h>
#include <string.h>

#define CONNECT_NS (30 * NSEC_PER_SEC)
#define FORK_BATCH 4096

const char *arrival_disk_image(const struct arrival *arrival, size_t i, char path[PATH_MAX])
{
    snprintf(path, PATH_MAX, "%s/%s", arrival->host->env.vm_dir, arrival->config.disks[i].file);
    return path;
}

static bool base_image(const struct arrival *arrival, size_t i, char path[PATH_MAX], struct id *ret_hash)
{
    const char *hash = arrival->config.disks[i].image;
    uint8_t bytes[HASH_SIZE];
    if (hex_parse(hash, bytes, sizeof bytes) < 0)
        return false;
    memcpy(ret_hash->bytes, bytes, sizeof ret_hash->bytes);
    snprintf(path, PATH_MAX, "%s/images/%s/image.raw", arrival->host->state_dir, hash);
    return access(path, R_OK) == 0;
}

/* --- what we have --------------------------------------------------------------------------------------- */

/* The copy's lineage, or NULL: none, damaged, or of another size, which all mean "build it anew". Any other
 * failure to open it (in use, I/O error) is no reason to throw it away. */
static int copy_lineage(const struct arrival *arrival, size_t i, struct lineage **ret, struct err *err)
{
    char path[PATH_MAX];
    struct disk *disk;
    *ret = NULL;
    if (access(arrival_disk_image(arrival, i, path), F_OK) < 0)
        return errno == ENOENT ? 0 : err_sys(err, errno, "cannot look at the old copy %s", path);
    int r = disk_open(path, DISK_READ_ONLY, &disk, err);
    if (r == -ENOENT || r == -EBADMSG) {
        log_warning("the old copy %s is of no use: %s", path, err->text);
        return 0;
    }
    if (r < 0)
        return err_context(err, "the old copy cannot be used, nor replaced");
    if (disk_size(disk) == arrival->config.disks[i].size)
        r = disk_lineage(disk, ret, err);
    disk_close(disk, NULL);
    return r;
}

static int send_lineage(struct arrival *arrival, size_t i, const struct lineage *lineage, struct err *err)
{
    _cleanup_free_ void *bytes = NULL;
    size_t size;
    uint8_t head[WIRE_CLAIM_SIZE];
    if (lineage_encode(lineage, &bytes, &size) < 0)
        return err_set(err, ENOMEM, "out of memory");
    wire_claim_encode(&(struct wire_claim){.disk = (uint16_t)i}, head);
    return link_send(arrival->session.control, FRAME_LINEAGE, head, sizeof head, bytes, size, err);
}

/* What "prepared" says of memory. */
static json_t *memory_json(struct arrival *arrival)
{
    struct err err = ERR_NONE;
    json_t *memory = arrival_look_at_checkpoint(arrival);
    json_object_set_new(memory, "clock", json_true());
    if (!arrival->may_renew)
        return memory;
    bool anew = qemu_may_postcopy(arrival->host->env.uid, &err) == 0;
    json_object_set_new(memory, "anew", json_boolean(anew));
    if (!anew) {
        json_object_set_new(memory, "why", json_string(err.text));
        json_object_set_new(memory, "hint", json_string(err.hint));
    }
    return memory;
}

static int send_prepared(struct arrival *arrival, json_t *wanted, struct err *err)
{
    _cleanup_json_ json_t *disks = json_array();
    for (size_t i = 0; i < arrival->config.disk_count; i++) {
        char path[PATH_MAX], copy[PATH_MAX];
        struct id hash;
        _cleanup_(lineage_freep) struct lineage *lineage = NULL;
        int r = copy_lineage(arrival, i, &lineage, err);
        if (r == 0 && lineage)
            r = send_lineage(arrival, i, lineage, err);
        if (r < 0)
            return r;
        arrival_disk_image(arrival, i, copy);
        json_array_append_new(disks,
                              json_pack("{s:b, s:b, s:b, s:b}", "copy", lineage != NULL, "image",
                                        (int)base_image(arrival, i, path, &hash), "donor",
                                        (int)donor_possible(copy), "donor_left", donor_bytes(copy) > 0));
    }
    uint64_t epoch = MAX(arrival->before.epoch, arrival->before.refused);
    _cleanup_json_ json_t *prepared =
        json_pack("{s:I, s:O, s:O, s:s, s:o}", "epoch", (json_int_t)epoch, "disks", disks, "files", wanted,
                  "host", arrival->host->name, "memory", memory_json(arrival));
    return link_send_json(arrival->session.control, FRAME_PREPARED, prepared, err);
}

/* --- building ------------------------------------------------------------------------------------------- */

/* The blocks that our fork wrote since the common ancestor `above`. */
static int send_forked(struct arrival *arrival, struct disk *disk, uint32_t above, struct err *err)
{
    uint8_t batch[16 * FORK_BATCH];
    struct disk_run run = {0};
    size_t count = 0;
    int r = 0;
    for (uint64_t from = 0; r == 0 && disk_next_run(disk, from, above, UINT32_MAX, UINT32_MAX, &run);
         from = run.block + run.count) {
        put_le64(batch + 16 * count, run.block);
        put_le64(batch + 16 * count + 8, run.count);
        if (++count == FORK_BATCH) {
            r = link_send(arrival->session.control, FRAME_FORK, batch, sizeof batch, NULL, 0, err);
            count = 0;
        }
    }
    if (r == 0 && count)
        r = link_send(arrival->session.control, FRAME_FORK, batch, 16 * count, NULL, 0, err);
    return r < 0 ? r : link_send(arrival->session.control, FRAME_FORK, NULL, 0, NULL, 0, err);
}

static int build_disk(struct arrival *arrival, size_t i, const char *base, uint32_t generation,
                      struct err *err)
{
    char path[PATH_MAX], image[PATH_MAX];
    struct id hash;
    arrival_disk_image(arrival, i, path);
    if (strcmp(base, "fork") == 0) {
        struct disk *disk;
        int r = disk_open(path, DISK_READ_ONLY, &disk, err);
        if (r < 0)
            return r;
        arrival->forked[i] = generation;
        r = send_forked(arrival, disk, generation, err);
        disk_close(disk, NULL);
        return r;
    }
    if (strcmp(base, "replica") == 0 || strcmp(base, "partial") == 0)
        return 0;
    bool on_image = strcmp(base, "image") == 0;
    if (!on_image && strcmp(base, "none") != 0)
        return err_set(err, EPROTO, "the source wants disk %zu built on \"%s\"", i, base);
    if (on_image && !base_image(arrival, i, image, &hash))
        return err_set(err, ENOENT, "the base image of disk %zu has gone from this host", i);
    int r = disk_remove(path, err);
    return r < 0 ? r
                 : disk_create(path, arrival->config.disks[i].size, on_image ? image : NULL,
                               on_image ? &hash : NULL, err);
}

static int build_disks(struct arrival *arrival, const json_t *list, bool dry_run, struct err *err)
{
    for (size_t i = 0; i < arrival->config.disk_count; i++) {
        const char *base;
        uint64_t generation;
        json_t *entry = json_array_get(list, i);
        int r = json_get_string(entry, "base", "base", &base, err);
        if (r == 0)
            r = json_get_u64(entry, "generation", "base", &generation, err);
        if (r == 0 && !dry_run)
            r = arrival_put_aside(arrival, i, entry, err);
        if (r == 0 && (!dry_run || strcmp(base, "fork") == 0))
            r = build_disk(arrival, i, base, (uint32_t)generation, err);
        if (r < 0)
            return r;
    }
    return 0;
}

/* The first claims and the files come in any order; both must be there before anything is opened. */
static int receive_files(struct arrival *arrival, struct arrival_file files[ARRIVAL_FILES], unsigned claims,
                         struct err *err)
{
    int r = arrival_open_files(arrival, files, err);
    while (r == 0 && (claims || !arrival_files_complete(files))) {
        struct mail *mail;
        r = session_next(&arrival->session, clock_now() + MOVE_ANSWER_MS * NSEC_PER_MSEC, &mail, err);
        if (r == -EAGAIN)
            return err_set(err, ETIMEDOUT, "the source stopped sending while preparing");
        if (r < 0)
            return r;
        if (mail->frame.type == FRAME_LINEAGE && claims) {
            claims--;
            r = arrival_claim(arrival, mail, err);
        } else if (mail->frame.type == FRAME_FILE) {
            r = arrival_take_file(files, mail, err);
        } else {
            r = err_set(err, EPROTO, "the source sent \"%s\" while preparing",
                        frame_type_name(mail->frame.type));
        }
        free(mail);
    }
    return r < 0 ? r : arrival_finish_files(arrival, files, err);
}

/* --- the stage ------------------------------------------------------------------------------------------ */

static int record_arriving(struct arrival *arrival, struct err *err)
{
    struct epoch_record record = arrival->before;
    record.role = EPOCH_ARRIVING;
    record.was = record.epoch;
    record.epoch = arrival->next_epoch;
    record.ready = false;
    record.move = arrival->move;
    record.borrowed = record.lent = record.memory_away = false;
    record.peer.fingerprint = arrival->source.fingerprint;
    record.peer.port = arrival->source.port;
    snprintf(record.peer.name, sizeof record.peer.name, "%s", arrival->source_name);
    snprintf(record.peer.address, sizeof record.peer.address, "%s", arrival->source.address);
    return arrival_record(arrival, &record, err);
}

/* Until all that it wrote has been replaced, the copy says that it is a fork of the common ancestor. */
static int claim_forks(struct arrival *arrival, struct err *err)
{
    for (size_t i = 0; i < arrival->config.disk_count; i++) {
        if (!arrival->forked[i])
            continue;
        struct disk *disk = machine_disk(arrival->machine, i);
        _cleanup_(lineage_freep) struct lineage *lineage = NULL;
        int r = disk_lineage(disk, &lineage, err);
        if (r < 0)
            return r;
        lineage->claim = LINEAGE_FORK;
        lineage->complete = arrival->forked[i];
        lineage->reached = 0;
        lineage->cursor = 0;
        if ((r = disk_set_lineage(disk, lineage, err)) < 0)
            return r;
    }
    return 0;
}

static void allow_memory_later(struct arrival *arrival)
{
    struct err err = ERR_NONE;
    if (arrival->config.ram == VM_RAM_HUGE) { /* the source does not ask for it */
        arrival->memory_later = false;
        snprintf(arrival->no_later, sizeof arrival->no_later, "its memory is made of huge pages");
    }
    if (!arrival->memory_later)
        return;
    bool can = (arrival->dry_run ? qemu_may_postcopy(arrival->host->env.uid, &err)
                                 : qemu_migrate_allow_postcopy(machine_qemu(arrival->machine), &err)) == 0;
    pthread_mutex_lock(&arrival->lock);
    arrival->memory_later = can;
    pthread_mutex_unlock(&arrival->lock);
    if (can)
        arrival->compare_memory = false; /* nothing of it goes over while the guest runs there */
    else
        snprintf(arrival->no_later, sizeof arrival->no_later, "%.160s; %.80s", err.text, err.hint);
}

/* What cannot be had is said in "opened"; memory comes before the switch then, if it can. */
static int choose_memory(struct arrival *arrival, struct err *err)
{
    allow_memory_later(arrival);
    if (arrival->config.ram != VM_RAM_PRIVATE || !arrival->compare_memory)
        return 0;
    err_set(
        err, ENOTSUP,
        "private memory of an emulated guest cannot come before the switch, for it cannot be compared%s%s",
        arrival->no_later[0] ? "; nor after it: " : "", arrival->no_later);
    return err_hint(err, "stop the VM and set its \"ram\" to \"shared\"");
}

int arrival_start_qemu(struct arrival *arrival, struct err *err)
{
    int r = machine_start(arrival->machine, true, arrival->host->on_qemu_event, arrival->host->arg, err);
    if (r == 0 && arrival->fetch_early && !arrival->fetch)
        r = arrival_new_fetch(arrival, err);
    if (r == 0)
        r = choose_memory(arrival, err);
    if (r == 0)
        r = qemu_migrate_incoming(machine_qemu(arrival->machine), err);
    if (r < 0)
        return r;
    qemu_hurry(machine_qemu(arrival->machine), true);
    return arrival_open_stream(arrival, err);
}

static int start_machine(struct arrival *arrival, struct err *err)
{
    int r = machine_open_disks(arrival->machine, DISK_FROZEN, err);
    if (r == 0) /* before the first byte changes a copy */
        r = arrival_apply_claims(arrival, 0, err);
    if (r == 0)
        r = claim_forks(arrival, err);
    return r < 0 ? r : arrival_start_qemu(arrival, err);
}

static unsigned first_claims(const json_t *list)
{
    unsigned claims = 0;
    size_t i;
    json_t *entry;
    json_array_foreach((json_t *)list, i, entry) if (strcmp(json_str(entry, "base", ""), "fork") != 0)
        claims++;
    return claims;
}

static int say_opened(struct arrival *arrival, struct err *err)
{
    _cleanup_json_ json_t *opened = json_pack("{s:s, s:b, s:s}", "host", arrival->host->name, "memory_later",
                                              (int)arrival->memory_later, "why", arrival->no_later);
    return link_send_json(arrival->session.control, FRAME_OPENED, opened, err);
}

/* From here on things change; "base" is the source's word that it goes on. */
static int build(struct arrival *arrival, const json_t *base, struct arrival_file files[ARRIVAL_FILES],
                 struct err *err)
{
    json_t *list;
    int r = json_get_array(base, "disks", "base", &list, err);
    if (r < 0 || (r = arrival_hash_checkpoint(arrival, base, err)) < 0 ||
        (r = record_arriving(arrival, err)) < 0 ||
        (r = receive_files(arrival, files, first_claims(list), err)) < 0 ||
        (r = vm_config_save(arrival->host->env.vm_dir, &arrival->config, err)) < 0 ||
        (r = build_disks(arrival, list, false, err)) < 0 ||
        (r = arrival_open_donors(arrival, base, err)) < 0 ||
        (r = machine_new(&arrival->host->env, &arrival->config, &arrival->machine, err)) < 0 ||
        (r = start_machine(arrival, err)) < 0)
        return r;
    pthread_mutex_lock(&arrival->lock);
    arrival->receiving = true;
    pthread_mutex_unlock(&arrival->lock);
    if ((r = arrival_tell_checkpoint(arrival, err)) < 0)
        return r;
    return say_opened(arrival, err);
}

static int wait_control(struct arrival *arrival, struct err *err)
{
    int64_t deadline = clock_now() + CONNECT_NS;
    int r = session_check(&arrival->session, err);
    while (r == 0 && !arrival->session.control) {
        if (clock_now() > deadline)
            return err_set(err, ETIMEDOUT, "the source did not connect");
        r = session_nap(&arrival->session, clock_now() + 100 * NSEC_PER_MSEC, err);
    }
    return r;
}

static int dry_run_end(struct arrival *arrival, const json_t *base, struct err *err)
{
    struct mail *mail = NULL;
    int r = build_disks(arrival, json_object_get(base, "disks"), true, err);
    if (r == 0)
        r = choose_memory(arrival, err);
    if (r == 0)
        r = say_opened(arrival, err);
    if (r == 0)
        r = session_wait(&arrival->session, FRAME_FINISH, clock_now() + MOVE_ANSWER_MS * NSEC_PER_MSEC, &mail,
                         err);
    if (r < 0)
        return r;
    free(mail);
    return err_set(err, ECANCELED, "a dry run: nothing was changed");
}

static int prepare(struct arrival *arrival, struct arrival_file files[ARRIVAL_FILES], struct err *err)
{
    _cleanup_json_ json_t *message = NULL, *wanted = json_array(), *base = NULL;
    int64_t deadline = clock_now() + MOVE_ANSWER_MS * NSEC_PER_MSEC;
    struct vm_config coming;
    int r = session_wait_json(&arrival->session, FRAME_PREPARE, deadline, &message, err);
    if (r < 0)
        return r;
    r = vm_config_from_json(json_object_get(message, "config"), "the source's vm.json", &coming, err);
    if (r < 0)
        return r;
    if (!id_equal(&coming.id, &arrival->config.id))
        return err_set(err, EPROTO, "the source speaks of another VM than it announced");
    pthread_mutex_lock(&arrival->lock);
    arrival->config = coming;
    pthread_mutex_unlock(&arrival->lock);
    arrival->dry_run = json_bool(message, "dry_run", false);
    arrival->compare_memory = json_bool(message, "compare_memory", false);
    arrival->memory_later = json_bool(message, "memory_later", false);
    arrival->may_renew = json_bool(message, "memory_anew", false);
    arrival->tells_faults = json_bool(message, "faults", false);
    arrival->clock = json_bool(message, "clock", false);
    if ((r = arrival_check(arrival, message, err)) < 0 ||
        (r = arrival_look_at_files(arrival, message, files, wanted, err)) < 0 ||
        (r = send_prepared(arrival, wanted, err)) < 0 ||
        (r = session_wait_json(&arrival->session, FRAME_BASE,
                               clock_now() + 2 * MOVE_ANSWER_MS * NSEC_PER_MSEC, &base, err)) < 0)
        return r;
    arrival->next_epoch = json_u64(base, "epoch", 0);
    if (arrival->next_epoch <= MAX(arrival->before.epoch, arrival->before.refused))
        return err_set(err, ESTALE, "the source offers epoch %llu, but %llu is known here",
                       (unsigned long long)arrival->next_epoch,
                       (unsigned long long)MAX(arrival->before.epoch, arrival->before.refused));
    link_set_epoch(arrival->session.control, arrival->next_epoch);
    arrival->split = json_bool(base, "split", false);
    arrival->fetch_early = arrival->split && json_bool(base, "fetch", false);
    return arrival->dry_run ? dry_run_end(arrival, base, err) : build(arrival, base, files, err);
}

int arrival_prepare(struct arrival *arrival, struct err *err)
{
    struct arrival_file files[ARRIVAL_FILES] = {{.name = "", .fd = -1}, {.name = "", .fd = -1}};
    arrival_warm_up(arrival);
    int r = wait_control(arrival, err);
    if (r == 0)
        r = prepare(arrival, files, err);
    arrival_close_files(files);
    return r;
}

/* Whatever was built ends; the copy stays as the replica that its claim says it is. */
void arrival_unprepare(struct arrival *arrival)
{
    struct err err;
    pthread_mutex_lock(&arrival->lock);
    arrival->receiving = false;
    pthread_mutex_unlock(&arrival->lock);
    arrival_close_links(arrival); /* joins the threads that write to the disks */
    fetch_free(TAKE_PTR(arrival->fetch));
    if (arrival->machine) {
        if (machine_qemu(arrival->machine) && machine_stop(arrival->machine, 2000, &err) < 0)
            log_warning("%s", err.text);
        if (machine_close_disks(arrival->machine, &err) < 0)
            log_warning("%s", err.text);
        machine_free(TAKE_PTR(arrival->machine));
    }
    if (epoch_get(arrival->epoch)->role != EPOCH_ARRIVING)
        return;
    if (epoch_get(arrival->epoch)->ready) { /* the source may have committed: to give up is to refuse */
        if (arrival_refuse(arrival, &err) < 0)
            log_error("cannot refuse durably: %s", err.text);
        return;
    }
    struct epoch_record record = arrival->before;
    record.role = EPOCH_REPLICA; /* also if it was a fork: what it wrote may be gone by now */
    record.forked = false;
    record.refused = epoch_get(arrival->epoch)->refused;
    record.move = arrival->move;
    record.peer.fingerprint = arrival->source.fingerprint;
    snprintf(record.peer.name, sizeof record.peer.name, "%s", arrival->source_name);
    if (epoch_set(arrival->epoch, &record, &err) < 0)
        log_error("%s", err.text);
}
