/* SPDX-License-Identifier: Apache-2.0
 *
 * The source's part of comparing an emulated guest's memory (memory/compare.h), between "completed" and
 * "ready".
 */
#include "base/clock.h"
#include "base/endian.h"
#include "base/log.h"
#include "base/macro.h"
#include "move/departure.h"

#include <errno.h>
#include <string.h>

#define COMPARE_NS (20 * NSEC_PER_SEC)

bool departure_emulated(const struct departure *departure)
{
    const char *accel;
    return qemu_accel(machine_config(departure->machine)->accel, &accel, NULL) < 0 ||
           strcmp(accel, "tcg") == 0;
}

bool departure_compares(const struct departure *departure)
{
    return departure_emulated(departure) && !departure->memory_later;
}

void departure_view_memory(struct departure *departure)
{
    struct err err;
    int fd = qemu_ram_fd(machine_qemu(departure->machine));
    if (ram_view_open(&departure->ram, fd, machine_config(departure->machine)->memory, &err) < 0)
        log_warning("%s", err.text); /* and the pause will fail by it */
}

bool departure_fill_view(struct departure *departure)
{
    return departure->ram.bytes && ram_view_populate(&departure->ram);
}

/* The guest stands still: its memory is what it will be. Done while QEMU sends its last pages. */
int departure_hash_memory(struct departure *departure, struct err *err)
{
    uint64_t page = 0;
    size_t length;
    if (!departure->ram.bytes)
        return err_set(err, EBADF, "the guest's memory cannot be read");
    do {
        struct hash_message *message = malloc(sizeof *message);
        if (!message)
            return err_set(err, ENOMEM, "out of memory comparing the guest's memory");
        compare_hashes(&departure->ram, &page, message->bytes, &length);
        message->length = length;
        message->next = NULL;
        *departure->last_hashes = message;
        departure->last_hashes = &message->next;
    } while (length > 8);
    return 0;
}

void departure_drop_hashes(struct departure *departure)
{
    for (struct hash_message *message; (message = departure->hashes);) {
        departure->hashes = message->next;
        free(message);
    }
    departure->last_hashes = &departure->hashes;
}

static int send_hashes(struct departure *departure, struct err *err)
{
    int r = 0;
    for (const struct hash_message *message = departure->hashes; r == 0 && message; message = message->next)
        r = link_send(departure->session.data[0], FRAME_HASHES, message->bytes, message->length, NULL, 0,
                      err);
    return r;
}

static int send_pages(struct departure *departure, const struct mail *wanted, struct err *err)
{
    const struct ram_view *ram = &departure->ram;
    for (size_t i = 0; i < wanted->frame.length / 8; i++) {
        uint8_t head[8];
        uint64_t page = get_le64(wanted->payload + 8 * i);
        if (page >= ram->pages)
            return err_set(err, EPROTO, "the destination wants page %llu of %llu", (unsigned long long)page,
                           (unsigned long long)ram->pages);
        put_le64(head, page);
        int r = link_send(departure->session.data[0], FRAME_PAGE, head, sizeof head,
                          ram->bytes + page * COMPARE_PAGE, COMPARE_PAGE, err);
        if (r < 0)
            return r;
    }
    return link_send(departure->session.data[0], FRAME_PAGE, NULL, 0, NULL, 0, err);
}

int departure_compare(struct departure *departure, struct err *err)
{
    int64_t deadline = clock_now() + COMPARE_NS;
    struct mail *mail;
    int r = session_wait(&departure->session, FRAME_LOADED, deadline, &mail, err);
    if (r < 0)
        return r;
    free(mail);
    if ((r = send_hashes(departure, err)) < 0 ||
        (r = session_wait(&departure->session, FRAME_WANTED, deadline, &mail, err)) < 0)
        return r;
    if (mail->frame.length)
        log_info("QEMU's dirty tracking had lost %u pages of the emulated guest: they are sent now",
                 mail->frame.length / 8);
    r = send_pages(departure, mail, err);
    free(mail);
    return r;
}
