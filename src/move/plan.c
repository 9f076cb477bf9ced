/* SPDX-License-Identifier: Apache-2.0
 *
 * plan: what a move will cost, from what can be measured before it: the link (a short burst of bytes over the
 * control connection), the disks' deltas (generation maps and allocation), the guest's memory (a sample of
 * its pages) and how fast it gets dirty (QEMU's calc-dirty-rate, which runs while the destination prepares).
 *
 * The model is the usual geometric one for pre-copy (Clark et al., NSDI 2005): each pass sends what got dirty
 * during the one before, so V bytes at rate R with dirty rate D take V / (R - D).
 */
#include "base/clock.h"
#include "base/json.h"
#include "base/macro.h"
#include "move/departure.h"

#include <errno.h>
#include <string.h>

#define PROBE_CHUNK (64u << 10)
#define PROBE_ENOUGH_NS (120 * NSEC_PER_MSEC)
#define PROBE_MIN_BYTES (64u << 10)
#define PROBE_MAX_BYTES (32u << 20)
#define SAMPLE_PAGES 2048u
#define PAGE 4096u
#define DIRTY_SECONDS 1

/* Rates of this program and of QEMU, on one core of an ordinary machine, for when the link is faster than
 * they are. */
#define DISK_PATH_RATE (400e6)
#define MEMORY_PATH_RATE (300e6)
#define SCAN_RATE (6e9)   /* zero pages are only looked at */
#define FIXED_SECONDS 0.9 /* QEMU's start at the destination, hand-shakes, the last fsyncs */
#define FIXED_BLACKOUT_MS 45

/* --- the link ------------------------------------------------------------------------------------------- */

/* Sends `bytes` and waits until the destination has them all; *ret_ns is how long that took. */
static int burst(struct departure *departure, size_t bytes, int64_t *ret_ns, struct err *err)
{
    static const uint8_t zeroes[PROBE_CHUNK];
    struct mail *mail;
    uint8_t last;
    int64_t began = clock_now();
    do {
        size_t size = MIN(bytes, (size_t)PROBE_CHUNK);
        bytes -= size;
        last = bytes == 0;
        int r = link_send(departure->session.control, FRAME_PROBE, &last, 1, zeroes, size, err);
        if (r < 0)
            return r;
    } while (!last);
    int r =
        session_wait(&departure->session, FRAME_PROBED, began + MOVE_ANSWER_MS * NSEC_PER_MSEC, &mail, err);
    if (r < 0)
        return r;
    free(mail);
    *ret_ns = clock_now() - began;
    return 0;
}

static int measure_link(struct departure *departure, struct err *err)
{
    struct prediction *prediction = &departure->prediction;
    int64_t rtt = INT64_MAX, took = 0;
    for (int i = 0; i < 3; i++) {
        int r = burst(departure, 0, &took, err);
        if (r < 0)
            return r;
        rtt = MIN(rtt, took);
    }
    double rate = 0;
    size_t most = PROBE_MAX_BYTES;
    if (departure->options.bandwidth) /* a tenth of a second of it */
        most = MIN(most, MAX(departure->options.bandwidth / 10, (uint64_t)PROBE_MIN_BYTES));
    for (size_t bytes = PROBE_MIN_BYTES; bytes <= most; bytes *= 2) {
        int r = burst(departure, bytes, &took, err);
        if (r < 0)
            return r;
        rate = (double)bytes * NSEC_PER_SEC / (double)MAX(took - rtt, INT64_C(1));
        if (took > PROBE_ENOUGH_NS)
            break;
    }
    prediction->rtt_ms = (double)rtt / NSEC_PER_MSEC;
    prediction->link_rate = (uint64_t)rate;
    if (departure->options.bandwidth)
        prediction->link_rate = MIN(prediction->link_rate, departure->options.bandwidth);
    return 0;
}

/* --- memory --------------------------------------------------------------------------------------------- */

static bool page_is_zero(int fd, off_t offset)
{
    uint64_t page[PAGE / sizeof(uint64_t)];
    if (pread(fd, page, sizeof page, offset) != (ssize_t)sizeof page)
        return true;
    return page[0] == 0 && memcmp(page, page + 1, sizeof page - sizeof *page) == 0;
}

/* Bytes of RAM that are not zero: allocated extents of the memfd, and of those the share in an even sample.
 */
static uint64_t used_memory(struct departure *departure)
{
    int fd = qemu_ram_fd(machine_qemu(departure->machine));
    uint64_t size = machine_config(departure->machine)->memory, allocated = 0;
    size_t looked = 0, used = 0;
    if (fd < 0)
        return size;
    off_t step = (off_t)MAX(size / SAMPLE_PAGES / PAGE, UINT64_C(1)) * PAGE;
    for (off_t at = 0, end; (at = lseek(fd, at, SEEK_DATA)) >= 0; at = end) {
        end = lseek(fd, at, SEEK_HOLE);
        if (end <= at)
            break;
        allocated += (uint64_t)(end - at);
        for (off_t page = (at + step - 1) / step * step; page < end; page += step) {
            looked++;
            used += page_is_zero(fd, page) ? 0 : 1;
        }
    }
    return looked ? allocated / looked * used : allocated;
}

/* Bytes per second; QEMU was asked to measure at the stage's beginning. Waits for what is left of its second.
 */
static uint64_t memory_dirty_rate(struct departure *departure)
{
    int64_t until = clock_now() + (DIRTY_SECONDS + 1) * NSEC_PER_SEC;
    while (clock_now() < until) {
        _cleanup_json_ json_t *answer = NULL;
        if (qmp_execute(qemu_qmp(machine_qemu(departure->machine)), "query-dirty-rate", NULL, 2000, &answer,
                        NULL) < 0)
            return 0;
        if (strcmp(json_str(answer, "status", ""), "measured") == 0)
            return json_u64(answer, "dirty-rate", 0) * MiB;
        if (strcmp(json_str(answer, "status", ""), "measuring") != 0 ||
            session_nap(&departure->session, clock_now() + 20 * NSEC_PER_MSEC, NULL) < 0)
            return 0;
    }
    return 0;
}

void plan_begin(struct departure *departure)
{
    qmp_execute(qemu_qmp(machine_qemu(departure->machine)), "calc-dirty-rate",
                json_pack("{s:i}", "calc-time", DIRTY_SECONDS), 2000, NULL,
                NULL); /* without an answer the dirty rate counts as 0 */
}

/* --- the model ------------------------------------------------------------------------------------------ */

/* Bytes that pre-copy sends for `volume`, and the seconds that takes. */
static double precopy_seconds(double volume, double rate, double dirty, double *ret_bytes)
{
    double gain = MAX(rate - dirty, rate / 20); /* what does not converge is given up after a while */
    *ret_bytes = volume * rate / gain;
    return volume / gain;
}

int plan_predict(struct departure *departure, struct err *err)
{
    struct prediction *prediction = &departure->prediction;
    double disk_bytes = 0, memory_bytes;
    int r = measure_link(departure, err);
    if (r < 0)
        return r;
    for (size_t i = 0; i < departure_disks(departure); i++) {
        struct disk *disk = machine_disk(departure->machine, i);
        prediction->disks[i].bytes = relocate_estimate(departure->relocate[i], disk_generation(disk));
        snprintf(prediction->disks[i].file, sizeof prediction->disks[i].file, "%s",
                 machine_config(departure->machine)->disks[i].file);
        disk_bytes += (double)prediction->disks[i].bytes;
    }
    double link = (double)prediction->link_rate;
    double memory_rate = MIN(link, MEMORY_PATH_RATE), dirty = (double)memory_dirty_rate(departure);
    double seconds = precopy_seconds((double)used_memory(departure), memory_rate, dirty, &memory_bytes);
    seconds += (double)machine_config(departure->machine)->memory / SCAN_RATE;
    seconds += disk_bytes / MIN(link, DISK_PATH_RATE) + 6 * prediction->rtt_ms / 1000;
    seconds += departure->options.dry_run ? FIXED_SECONDS
                                          : (double)(clock_now() - departure->began) / NSEC_PER_SEC + 0.1;
    prediction->seconds = seconds;
    prediction->disk_bytes = (uint64_t)disk_bytes;
    prediction->memory_bytes = (uint64_t)memory_bytes;
    prediction->blackout_ms =
        (uint64_t)(FIXED_BLACKOUT_MS + 3 * prediction->rtt_ms +
                   MIN((double)departure->options.max_blackout_ms * 2 / 5, dirty / memory_rate * 100));
    prediction->known = true;
    progress_predict(departure->progress, prediction);
    return 0;
}
