/* SPDX-License-Identifier: Apache-2.0
 *
 * The destination's part of departure_recover.c. What QEMU has to be asked for, should its stream break,
 * stands at the stream's beginning: it is kept in RUN_DIR/memory.json, for an orai-vm that has not seen it.
 */
#include "base/clock.h"
#include "base/json.h"
#include "base/log.h"
#include "base/macro.h"
#include "memory/resync.h"
#include "move/arrival.h"
#include "move/fault.h"
#include "vmm/unix_socket.h"

#include <errno.h>
#include <limits.h>
#include <string.h>
#include <unistd.h>

#define FORMAT "orai-memory-1"
#define LISTEN_NS (20 * NSEC_PER_SEC) /* until QEMU has noticed that its connection is gone */
#define RETRY_NS (5 * NSEC_PER_MSEC)
#define LOCAL_NS (10 * NSEC_PER_SEC)
#define LOOK_NS (200 * NSEC_PER_MSEC)
#define LOOK_MSEC 200 /* its main thread may wait for a page */
#define REFUSED_NS NSEC_PER_SEC

/* --- what was at the stream's beginning ----------------------------------------------------------------- */

static int blocks_path(const struct arrival *arrival, char path[PATH_MAX], struct err *err)
{
    const char *dir = arrival->host->env.run_dir;
    return snprintf(path, PATH_MAX, "%s/memory.json", dir) >= PATH_MAX
               ? err_set(err, ENAMETOOLONG, "path too long: %s", dir)
               : 0;
}

static json_t *blocks_to_json(const struct arrival *arrival)
{
    json_t *list = json_array();
    for (size_t at = 0; at < arrival->ram_blocks_size; at += 1U + arrival->ram_blocks[at])
        json_array_append_new(
            list, json_stringn((const char *)arrival->ram_blocks + at + 1, arrival->ram_blocks[at]));
    return json_pack("{s:s, s:I, s:o}", "format", FORMAT, "section", (json_int_t)arrival->ram_section,
                     "blocks", list);
}

void arrival_note_blocks(struct arrival *arrival)
{
    struct err err = ERR_NONE;
    char path[PATH_MAX];
    if (!arrival->memory_later)
        return;
    if (blocks_path(arrival, path, NULL) == 0)
        unlink(path); /* of an earlier stream */
    arrival->ram_blocks =
        stream_blocks(arrival->session.stream, &arrival->ram_blocks_size, &arrival->ram_section);
    int r = arrival->ram_blocks ? blocks_path(arrival, path, &err)
                                : err_set(&err, EPROTO, "QEMU's stream is not understood");
    if (r == 0) {
        _cleanup_json_ json_t *json = blocks_to_json(arrival);
        r = json_write_file(path, json, 0600, &err);
    }
    if (r < 0)
        log_warning("the guest would not outlive orai-vm while its memory follows: %s", err.text);
}

static int blocks_from_json(struct arrival *arrival, const json_t *json, struct err *err)
{
    uint64_t section;
    json_t *list = NULL, *item;
    size_t index;
    int r = strcmp(json_str(json, "format", ""), FORMAT) != 0
                ? err_set(err, EBADMSG, "\"format\" is not \"%s\"", FORMAT)
                : json_get_u64(json, "section", "memory.json", &section, err);
    if (r == 0)
        r = json_get_array(json, "blocks", "memory.json", &list, err);
    if (r < 0)
        return r;
    uint8_t *names = malloc(json_array_size(list) * RESYNC_NAME + 1);
    size_t size = 0;
    if (!names)
        return err_set(err, ENOMEM, "out of memory");
    json_array_foreach(list, index, item)
    {
        size_t length = MIN(json_string_length(item), (size_t)UINT8_MAX);
        names[size++] = (uint8_t)length;
        if (length)
            memcpy(names + size, json_string_value(item), length);
        size += length;
    }
    arrival->ram_blocks = names;
    arrival->ram_blocks_size = size;
    arrival->ram_section = (uint32_t)section;
    return 0;
}

int arrival_load_blocks(struct arrival *arrival, struct err *err)
{
    char path[PATH_MAX];
    _cleanup_json_ json_t *json = NULL;
    int r = blocks_path(arrival, path, err);
    if (r == 0)
        r = json_read_file(path, &json, err);
    return r < 0 ? r : blocks_from_json(arrival, json, err);
}

/* --- QEMU ----------------------------------------------------------------------------------------------- */

/* It may have been about to when our predecessor ended. */
static void let_run(struct arrival *arrival)
{
    char status[32];
    struct err err = ERR_NONE;
    struct qemu *qemu = machine_qemu(arrival->machine);
    int r = qemu_status(qemu, status, &err);
    bool waits = r == 0 && (strcmp(status, "paused") == 0 || strcmp(status, "prelaunch") == 0);
    if (waits && arrival->guest_runs)
        r = qemu_cont(qemu, &err);
    if (r < 0)
        log_error("the guest is here but does not run: %s", err.text);
    machine_announce(arrival->machine, NULL);
}

static void look(struct arrival *arrival)
{
    struct qemu_migration migration;
    struct qemu *qemu = machine_qemu(arrival->machine);
    int r =
        machine_connect(arrival->machine, LOOK_MSEC, arrival->host->on_qemu_event, arrival->host->arg, NULL);
    if (r < 0 || qemu_migrate_query_for(qemu, LOOK_MSEC, &migration, NULL) < 0)
        return;
    if (!arrival->met)
        let_run(arrival);
    arrival->met = true;
    arrival->memory_whole = arrival->memory_whole || strcmp(migration.status, "completed") == 0;
    arrival->memory_failed = arrival->memory_failed || strcmp(migration.status, "failed") == 0;
}

void arrival_look_at_memory(struct arrival *arrival)
{
    bool resumed = arrival->resumed && arrival->taken && arrival->stream_number;
    if (!resumed || clock_now() < arrival->next_look)
        return;
    look(arrival);
    arrival->next_look = clock_now() + LOOK_NS;
}

static int listen_again(struct arrival *arrival, struct err *err)
{
    int64_t began = clock_now(), deadline = began + LISTEN_NS;
    int r;
    while ((r = qemu_migrate_recover(machine_qemu(arrival->machine), err)) == -EREMOTEIO) {
        if (arrival->resumed && clock_now() > began + REFUSED_NS)
            look(arrival); /* perhaps all is here */
        if (arrival->memory_whole || arrival->memory_failed || clock_now() > deadline ||
            !arrival_qemu_alive(arrival))
            break;
        clock_sleep(RETRY_NS);
    }
    return r;
}

static int connect_qemu(const struct arrival *arrival, struct err *err)
{
    char path[PATH_MAX];
    if (snprintf(path, sizeof path, "%s/incoming.sock", arrival->host->env.run_dir) >= (int)sizeof path)
        return err_set(err, ENAMETOOLONG, "path too long: %s", arrival->host->env.run_dir);
    return unix_connect(path, clock_now() + NSEC_PER_SEC, err);
}

static int new_stream(struct arrival *arrival, struct resync *resync, struct stream **ret, struct err *err)
{
    uint8_t *said = NULL;
    size_t said_size = 0;
    const struct stream_ram ram = {
        .block = QEMU_RAM_BLOCK, .size = arrival->config.memory, .section = arrival->ram_section};
    int fd = connect_qemu(arrival, err);
    if (fd < 0)
        return fd;
    int r = resync_destination(fd, resync, clock_now() + LOCAL_NS, &said, &said_size, err);
    if (r < 0)
        close(fd);
    else
        r = stream_adopt(fd, FRAME_BACK, said, said_size, &ram, ret, err);
    free(said);
    return r;
}

/* What QEMU says of itself comes a moment after what it says to its peer. */
static void wait_active(struct arrival *arrival)
{
    int64_t deadline = clock_now() + LOCAL_NS;
    while (arrival->memory_paused && arrival_qemu_alive(arrival) && clock_now() < deadline)
        clock_sleep(NSEC_PER_MSEC);
}

/* --- the source ----------------------------------------------------------------------------------------- */

static int tell_map(struct arrival *arrival, const struct resync *resync, size_t index, struct err *err)
{
    uint8_t head[RESYNC_HEAD_MAX];
    const uint8_t *data;
    size_t offset = 0, size, head_size;
    int r = 0;
    while (r == 0 && (head_size = resync_put(resync, index, &offset, head, &data, &size)) > 0)
        r = link_send(arrival->session.control, FRAME_RECEIVED, head, head_size, data, size, err);
    return r;
}

static int answer(struct arrival *arrival, const struct resync *resync, uint64_t number, struct err *err)
{
    _cleanup_json_ json_t *json =
        json_pack("{s:s, s:I}", "host", arrival->host->name, "stream", (json_int_t)number);
    int r = 0;
    for (size_t i = 0; r == 0 && i < resync->count; i++)
        r = tell_map(arrival, resync, i, err);
    return r < 0 ? r : link_send_json(arrival->session.control, FRAME_RECOVER, json, err);
}

int arrival_recover(struct arrival *arrival, const struct mail *mail, struct err *err)
{
    _cleanup_json_ json_t *json = NULL;
    struct resync resync = {0};
    struct stream *stream = NULL;
    uint64_t number = 0;
    int r = json_parse((const char *)mail->payload, mail->frame.length, "recover", &json, err);
    if (r == 0)
        r = json_get_u64(json, "stream", "recover", &number, err);
    if (r == 0 && !arrival->ram_blocks)
        r = err_set(err, EPROTO, "a \"recover\" out of turn");
    if (r < 0)
        return r;
    arrival_put_stream_away(arrival);
    arrival->telling = false; /* of a checkpoint: what comes is not packed */
    r = fault_point(err, "destination.recover.begin");
    if (r == 0)
        r = listen_again(arrival, err);
    if (r == 0)
        r = resync_init(&resync, arrival->ram_blocks, arrival->ram_blocks_size, err);
    if (r == 0)
        r = fault_point(err, "destination.recover.listening");
    if (r == 0)
        r = new_stream(arrival, &resync, &stream, err);
    if (r == 0) {
        wait_active(arrival);
        pthread_mutex_lock(&arrival->lock);
        arrival->session.stream = stream;
        arrival->stream_number = number;
        pthread_mutex_unlock(&arrival->lock);
        r = fault_point(err, "destination.recover.end");
    }
    if (r == 0)
        r = answer(arrival, &resync, number, err);
    resync_done(&resync);
    return r;
}
