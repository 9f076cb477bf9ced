/* SPDX-License-Identifier: Apache-2.0
 *
 * The source's part of comparing an emulated guest's memory (memory/compare.h), between QEMU's
 * last page and the loading of its devices. Of any guest when the user wants its memory verified: then
 * nothing may differ that QEMU's dirty tracking does not explain, nor anything when what it had lost has been
 * sent.
 */
#include "base/clock.h"
#include "base/endian.h"
#include "base/log.h"
#include "base/macro.h"
#include "base/size.h"
#include "move/departure.h"
#include "move/fault.h"

#include <errno.h>
#include <string.h>

#define COMPARE_NS (20 * NSEC_PER_SEC)

static bool emulated(const struct machine *machine)
{
    const char *accel;
    return qemu_accel(machine_config(machine)->accel, &accel, NULL) < 0 || strcmp(accel, "tcg") == 0;
}

bool departure_emulated(const struct departure *departure)
{
    return emulated(departure->machine);
}

bool departure_compares(const struct departure *departure)
{
    return (departure_emulated(departure) || departure->options.verify_memory) && !departure->memory_later;
}

int departure_check_ram(const struct machine *machine, const struct move_options *options, struct err *err)
{
    enum vm_ram ram = qemu_ram(machine_qemu(machine));
    bool follows = options->memory_later || (options->timeout_ms && options->on_timeout == MOVE_FOLLOW);
    if (ram == VM_RAM_HUGE && follows) {
        err_set(err, ENOTSUP,
                "memory that is made of huge pages cannot follow the guest: it would wait for 2 MiB wherever "
                "it touches one");
        return err_hint(err, "move it without --memory postcopy, and without --on-timeout postcopy");
    }
    if (ram == VM_RAM_PRIVATE && options->verify_memory)
        return err_set(err, ENOTSUP, "private memory cannot be verified: only its QEMU can read it");
    if (ram == VM_RAM_PRIVATE && emulated(machine) && !options->memory_later) {
        err_set(
            err, ENOTSUP,
            "private memory of an emulated guest cannot go before the switch: QEMU loses track of some of "
            "what it writes, and nobody else can look");
        return err_hint(err, "move it with --memory postcopy; or stop it and set \"ram\" to \"shared\"");
    }
    return 0;
}

void departure_view_memory(struct departure *departure)
{
    struct err err;
    int fd = qemu_ram_fd(machine_qemu(departure->machine));
    if (ram_view_open(&departure->ram, fd, machine_config(departure->machine)->memory, false, &err) < 0)
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
    struct ram_view *ram = &departure->ram;
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
    return 0;
}

static int differs(const struct departure *departure, uint32_t pages, struct err *err)
{
    err_set(err, EIO, "%u pages of the guest's memory are others on %s than here, after all had been loaded",
            pages, departure->options.peer.name);
    return err_hint(err,
                    "the guest goes on here; this is an error of Orai, QEMU or the hardware of either host");
}

/* What differs is sent, and counted. */
static int compare_once(struct departure *departure, int64_t deadline, uint32_t *ret_pages, struct err *err)
{
    struct mail *mail;
    int r;
    if ((r = send_hashes(departure, err)) < 0 ||
        (r = session_wait(&departure->session, FRAME_WANTED, deadline, &mail, err)) < 0)
        return r;
    *ret_pages = mail->frame.length / 8;
    /* Nothing is on its way there now. */
    r = departure_tell_clock(departure, departure->session.data[0], err);
    if (r == 0)
        r = send_pages(departure, mail, err);
    free(mail);
    return r;
}

/* The second comparison, after `lost` pages have been sent once more. */
static int verify(struct departure *departure, int64_t deadline, uint32_t lost, struct err *err)
{
    char size[SIZE_TEXT];
    uint32_t pages = 0;
    int r = lost && !departure_emulated(departure) ? differs(departure, lost, err)
                                                   : fault_point(err, "source.verify");
    if (r == 0)
        r = compare_once(departure, deadline, &pages, err);
    if (r == 0 && pages)
        r = differs(departure, pages, err);
    if (r < 0)
        return r;
    departure->numbers.memory_verified = departure->ram.pages * COMPARE_PAGE;
    progress_note(departure->progress, "all of memory (%s) is the same on both hosts",
                  size_format(departure->numbers.memory_verified, size));
    return 0;
}

/* QEMU may end here meanwhile, or give up. */
static int await_loaded(struct departure *departure, int64_t deadline, struct err *err)
{
    struct mail *mail = NULL;
    int r;
    while ((r = departure_check(departure, err)) == 0 &&
           (r = session_next(&departure->session, clock_now() + 50 * NSEC_PER_MSEC, &mail, err)) == -EAGAIN) {
        if (departure->migration == MIGRATION_FAILED)
            return err_set(err, EIO, "QEMU gave the migration up at its end");
        if (clock_now() > deadline)
            return err_set(err, ETIMEDOUT,
                           "the destination did not load the guest's memory within %d s of the pause",
                           (int)(MOVE_PAUSE_NS / NSEC_PER_SEC));
    }
    if (!mail)
        return r;
    enum frame_type type = mail->frame.type;
    free(mail);
    return type == FRAME_LOADED ? 0
                                : err_set(err, EPROTO, "the destination sent \"%s\" where \"%s\" was due",
                                          frame_type_name(type), frame_type_name(FRAME_LOADED));
}

int departure_compare(struct departure *departure, struct err *err)
{
    uint32_t lost = 0;
    int r = await_loaded(departure, clock_now() + MOVE_PAUSE_NS, err);
    if (r < 0)
        return r;
    int64_t deadline = clock_now() + COMPARE_NS;
    r = compare_once(departure, deadline, &lost, err);
    if (r == 0 && lost && departure_emulated(departure))
        log_info("QEMU's dirty tracking had lost %u pages of the emulated guest: they are sent now", lost);
    if (r == 0 && departure->options.verify_memory)
        r = verify(departure, deadline, lost, err);
    return r < 0 ? r : link_send(departure->session.data[0], FRAME_PAGE, NULL, 0, NULL, 0, err);
}
