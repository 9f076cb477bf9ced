/* SPDX-License-Identifier: Apache-2.0
 *
 * The source's part of comparing an emulated guest's memory (memory/compare.h), between "completed" and
 * "ready".
 */
#include "base/clock.h"
#include "base/endian.h"
#include "base/file.h"
#include "base/log.h"
#include "base/macro.h"
#include "memory/compare.h"
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

static int send_hashes(struct departure *departure, int ram, struct err *err)
{
    uint64_t size = machine_config(departure->machine)->memory, page = 0;
    uint8_t message[COMPARE_MESSAGE];
    size_t length;
    do {
        int r = compare_hashes(ram, size, &page, message, &length, err);
        if (r == 0)
            r = link_send(departure->session.data[0], FRAME_HASHES, message, length, NULL, 0, err);
        if (r < 0)
            return r;
    } while (length > 8);
    return 0;
}

static int send_pages(struct departure *departure, int ram, const struct mail *wanted, struct err *err)
{
    uint8_t message[8 + COMPARE_PAGE];
    uint64_t pages = machine_config(departure->machine)->memory / COMPARE_PAGE;
    for (size_t i = 0; i < wanted->frame.length / 8; i++) {
        uint64_t page = get_le64(wanted->payload + 8 * i);
        if (page >= pages)
            return err_set(err, EPROTO, "the destination wants page %llu of %llu", (unsigned long long)page,
                           (unsigned long long)pages);
        put_le64(message, page);
        int r = file_pread_full(ram, message + 8, COMPARE_PAGE, page * COMPARE_PAGE);
        if (r < 0)
            return err_sys(err, r, "cannot read the guest's memory");
        r = link_send(departure->session.data[0], FRAME_PAGE, message, sizeof message, NULL, 0, err);
        if (r < 0)
            return r;
    }
    return link_send(departure->session.data[0], FRAME_PAGE, NULL, 0, NULL, 0, err);
}

int departure_compare(struct departure *departure, struct err *err)
{
    int64_t deadline = clock_now() + COMPARE_NS;
    int ram = qemu_ram_fd(machine_qemu(departure->machine));
    struct mail *mail;
    if (ram < 0)
        return err_set(err, EBADF, "the guest's memory cannot be read");
    int r = session_wait(&departure->session, FRAME_LOADED, deadline, &mail, err);
    if (r < 0)
        return r;
    free(mail);
    if ((r = send_hashes(departure, ram, err)) < 0 ||
        (r = session_wait(&departure->session, FRAME_WANTED, deadline, &mail, err)) < 0)
        return r;
    if (mail->frame.length)
        log_info("QEMU's dirty tracking had lost %u pages of the emulated guest: they are sent now",
                 mail->frame.length / 8);
    r = send_pages(departure, ram, mail, err);
    free(mail);
    return r;
}
