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
#include "base/size.h"
#include "move/departure.h"

#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <string.h>

#define PROBE_CHUNK (64U << 10)
#define PROBE_ENOUGH_NS (20 * NSEC_PER_MSEC)
#define PROBE_MIN_BYTES (64U << 10)
#define PROBE_SURE_BYTES (1U << 20)
#define PROBE_MAX_BYTES (32U << 20)
#define SAMPLE_PAGES 2048U
#define PAGE 4096U
#define DIRTY_SECONDS 1
#define MOST_DIRTY_SAMPLE UINT64_C(4096) /* pages per GiB: QEMU 7.2 takes no more */

/* Rates of this program and of QEMU, on one core of an ordinary machine, for when the link is faster than
 * they are. */
#define DISK_PATH_RATE (400e6)
#define MEMORY_PATH_RATE (300e6)
#define SCAN_RATE (6e9)    /* zero pages are only looked at */
#define START_SECONDS 0.25 /* what a dry run leaves out: kernel and initrd, QEMU's start, connections */
#define ROUNDS_SECONDS 0.3 /* sealing generations, making rounds durable, the switch */
#define FIXED_BLACKOUT_MS 45
#define MOST_DIRTY 0.95    /* of the link's rate; passes over memory that gain less are hopeless */
#define COMPARE_RATE (6e9) /* an emulated guest's memory, while it stands still: all of it is hashed */

/* --- the link ------------------------------------------------------------------------------------------- */

/* Sends `bytes` and waits until the destination has them all; *ret_ns is how long that took. */
static int burst(struct departure *departure, size_t bytes, int64_t *ret_ns, struct err *err)
{
    static const uint8_t zeroes[PROBE_CHUNK];
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
    int r = departure_await(departure, FRAME_PROBED, began + MOVE_ANSWER_MS * NSEC_PER_MSEC, NULL, err);
    if (r < 0)
        return r;
    *ret_ns = clock_now() - began;
    return 0;
}

/* Nothing in a post-copy move hangs on the link's rate, and nothing there may wait for a measurement: it ends
 * as soon as the destination is open, and is not tried over a link on which it would take longer than that.
 */
static bool hurried(const struct departure *departure, int64_t rtt)
{
    return departure->options.mode == MOVE_POSTCOPY && !departure->options.dry_run &&
           (departure->opened || rtt > PROBE_ENOUGH_NS);
}

/* The shortest of three empty bursts. */
static int measure_rtt(struct departure *departure, int64_t *ret, struct err *err)
{
    int64_t rtt = INT64_MAX, took = 0;
    for (int i = 0; i < 3 && (i == 0 || !hurried(departure, rtt)); i++) {
        int r = burst(departure, 0, &took, err);
        if (r < 0)
            return r;
        rtt = MIN(rtt, took);
    }
    *ret = rtt;
    return 0;
}

/* A limited bandwidth is not asked for more than a tenth of a second of it. */
static size_t most_to_probe(const struct departure *departure)
{
    uint64_t bandwidth = departure->options.bandwidth;
    return bandwidth ? MIN((uint64_t)PROBE_MAX_BYTES, MAX(bandwidth / 10, (uint64_t)PROBE_MIN_BYTES))
                     : PROBE_MAX_BYTES;
}

/* A small burst may only have met a moment in which somebody slept; a slow link is not asked for more. */
static bool probed_enough(size_t bytes, int64_t took, int64_t net)
{
    return took > NSEC_PER_SEC || (net > PROBE_ENOUGH_NS && bytes >= PROBE_SURE_BYTES);
}

int plan_measure(struct departure *departure, struct err *err)
{
    struct prediction *prediction = &departure->prediction;
    int64_t rtt = 0, took = 0, net = 0;
    int r = measure_rtt(departure, &rtt, err);
    double rate = 0, before = 0;
    size_t most = most_to_probe(departure);
    for (size_t bytes = PROBE_MIN_BYTES; r == 0 && bytes <= most && !hurried(departure, rtt); bytes *= 2) {
        r = burst(departure, bytes, &took, err);
        net = MAX(took - rtt, INT64_C(1));
        before = rate;
        rate = (double)bytes * NSEC_PER_SEC / (double)net;
        if (probed_enough(bytes, took, net))
            break;
    }
    if (r < 0)
        return r;
    /* Of the two largest, since one of them may have met a slow moment. The smaller ones say too much: they
     * fit into the buffers on the way. */
    rate = MAX(rate, before);
    prediction->rtt_ms = (double)rtt / NSEC_PER_MSEC;
    prediction->link_rate = (uint64_t)rate;
    if (departure->options.bandwidth && rate > 0)
        prediction->link_rate = MIN(prediction->link_rate, departure->options.bandwidth);
    return 0;
}

/* --- memory --------------------------------------------------------------------------------------------- */

/* It is not zero, nor in the destination's checkpoint as far as that is known. */
static bool is_sent(const struct departure *departure, int fd, off_t offset)
{
    uint64_t page[PAGE / sizeof(uint64_t)], found;
    if (pread(fd, page, sizeof page, offset) != (ssize_t)sizeof page ||
        (page[0] == 0 && memcmp(page, page + 1, sizeof page - sizeof *page) == 0))
        return false;
    return !departure->known || !known_find(departure->known, page, (uint64_t)offset / PAGE, &found);
}

/* Bytes of RAM that will go over: allocated extents of the memfd, and of those the share in an even sample.
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
            used += is_sent(departure, fd, page);
        }
    }
    return looked ? allocated / looked * used : allocated;
}

/* Asks for the measurement that plan_begin has started. false: QEMU is still at it. */
static bool ask_dirty_rate(struct departure *departure)
{
    _cleanup_json_ json_t *answer = NULL;
    struct qmp *qmp = qemu_qmp(machine_qemu(departure->machine));
    bool answered = qmp_execute(qmp, "query-dirty-rate", NULL, 2000, &answer, NULL) == 0;
    const char *status = json_str(answer, "status", "");
    if (answered && strcmp(status, "measured") == 0)
        departure->memory_dirty_rate = json_u64(answer, "dirty-rate", 0) * MiB;
    departure->dirty_rate_known = !answered || strcmp(status, "measuring") != 0;
    return departure->dirty_rate_known;
}

/* A dry run waits for it; a move has better things to do and takes it into account when it is there. */
static void wait_dirty_rate(struct departure *departure)
{
    int64_t until = clock_now() + (DIRTY_SECONDS + 1) * NSEC_PER_SEC;
    while (!ask_dirty_rate(departure) && clock_now() < until)
        if (session_nap(&departure->session, clock_now() + 20 * NSEC_PER_MSEC, NULL) < 0)
            return;
}

void plan_begin(struct departure *departure)
{
    /* QEMU's own choice of sample, 512 pages per GiB, says little about a guest with few of them. */
    uint64_t memory = machine_config(departure->machine)->memory, most = MOST_DIRTY_SAMPLE;
    uint64_t sample = MIN(MAX(most * GiB / MAX(memory, UINT64_C(1)), UINT64_C(512)), most);
    qmp_execute(qemu_qmp(machine_qemu(departure->machine)), "calc-dirty-rate",
                json_pack("{s:i, s:I}", "calc-time", DIRTY_SECONDS, "sample-pages", (json_int_t)sample), 2000,
                NULL, NULL); /* without an answer the dirty rate counts as 0 */
}

/* --- the model ------------------------------------------------------------------------------------------ */

/* Bytes that pre-copy sends for `volume`, and the seconds that takes. */
static double precopy_seconds(double volume, double rate, double dirty, double *ret_bytes)
{
    double gain = MAX(rate - dirty, rate * (1 - MOST_DIRTY)); /* what does not converge has no end */
    *ret_bytes = volume * rate / gain;
    return volume / gain;
}

/* A host with more to run than cores does the same work later, though a move's part of it goes before
 * others'. The link's rate was measured on this host as it is, so only what the programs do is stretched. */
static double busy_factor(void)
{
    double load = 0, cores = (double)sysconf(_SC_NPROCESSORS_ONLN);
    if (getloadavg(&load, 1) != 1 || load + 1 <= cores)
        return 1;
    return sqrt((load + 1) / cores);
}

/* What becomes of a move that does not converge. */
static const char *outlook(const struct departure *departure)
{
    static const char *const at_timeout[] = {
        [MOVE_CANCEL] = "at its --timeout it is given up, unless --on-timeout says postcopy or pause",
        [MOVE_PAUSE] = "at its --timeout the guest stands still for the rest",
        [MOVE_FOLLOW] = "at its --timeout memory follows the guest"};
    static const char *const without[] = {
        "--memory postcopy moves it all the same, or --timeout with --on-timeout postcopy or pause; "
        "--throttle "
        "slows it down",
        "--memory postcopy moves it all the same, or --timeout with --on-timeout postcopy or pause"};
    return departure->options.timeout_ms ? at_timeout[departure->options.on_timeout]
                                         : without[departure->options.throttle > 0];
}

void plan_obstacle(struct departure *departure, const char *format, ...)
{
    char text[512];
    va_list args;
    va_start(args, format);
    vsnprintf(departure->obstacle, sizeof departure->obstacle, format, args);
    va_end(args);
    snprintf(text, sizeof text, "%s; %s", departure->obstacle, outlook(departure));
    progress_obstacle(departure->progress, departure->obstacle[0] ? text : NULL);
}

/* A guest that writes faster than the link carries: it goes as far as the user allowed for that. */
static void model_not_converging(struct departure *departure, double rate)
{
    char dirty[SIZE_TEXT], link[SIZE_TEXT], slowed[64] = "";
    struct prediction *prediction = &departure->prediction;
    double timeout = (double)departure->options.timeout_ms / 1000,
           rest = (double)departure->used_memory / rate;
    if (departure->options.throttle)
        snprintf(slowed, sizeof slowed, " also when it is slowed down by %u %%", departure->options.throttle);
    plan_obstacle(departure,
                  "memory is not expected to converge%s: the guest changes %s of it, and %s can be sent",
                  slowed, rate_format((double)departure->memory_dirty_rate, dirty), rate_format(rate, link));
    prediction->endless = timeout == 0 || departure->options.on_timeout == MOVE_CANCEL;
    if (prediction->endless)
        return;
    prediction->seconds = timeout + rest;
    prediction->memory_bytes = (uint64_t)(timeout * rate) + departure->used_memory;
    if (departure->options.on_timeout == MOVE_PAUSE)
        prediction->blackout_ms += (uint64_t)(rest * 1000);
}

/* Whether passes over memory become shorter until the last one fits into the pause. */
static bool converges(const struct departure *departure, double rate, double dirty)
{
    double pause = (double)departure->options.max_blackout_ms / 2 / 1000;
    return departure->memory_later || dirty < rate * MOST_DIRTY ||
           (double)departure->used_memory < rate * pause;
}

/* A guest that may be slowed down is so only as far as it must be. */
static double slowed_dirty_rate(const struct departure *departure, double rate)
{
    double dirty = (double)departure->memory_dirty_rate,
           least = dirty * (100 - departure->options.throttle) / 100;
    return MIN(dirty, MAX(least, rate / 2));
}

static void model(struct departure *departure)
{
    struct prediction *prediction = &departure->prediction;
    double link = (double)prediction->link_rate, memory_bytes;
    double busy = busy_factor(), memory_rate = MIN(link, MEMORY_PATH_RATE / busy);
    double dirty = slowed_dirty_rate(departure, memory_rate);
    double again = departure->memory_later ? 0 : dirty; /* a page that follows the guest goes once */
    double work = precopy_seconds((double)departure->used_memory, memory_rate, again, &memory_bytes);
    work += (double)machine_config(departure->machine)->memory / SCAN_RATE * busy;
    work += (double)prediction->disk_bytes / MIN(link, DISK_PATH_RATE / busy);
    prediction->seconds = departure->prepared + ROUNDS_SECONDS * busy + work + 6 * prediction->rtt_ms / 1000;
    prediction->memory_bytes = (uint64_t)memory_bytes;
    double last_pass = departure->memory_later ? 0 : dirty / memory_rate * 100;
    double compare = departure_compares(departure)
                         ? (double)machine_config(departure->machine)->memory / COMPARE_RATE * 1000
                         : 0;
    prediction->blackout_ms = (uint64_t)((FIXED_BLACKOUT_MS + compare) * busy + 3 * prediction->rtt_ms +
                                         MIN((double)departure->options.max_blackout_ms / 2, last_pass));
    prediction->known = true;
    prediction->dirty_rate = departure->memory_dirty_rate;
    prediction->dirty_rate_known = departure->dirty_rate_known;
    prediction->converges = converges(departure, memory_rate, dirty);
    prediction->endless = false;
    if (!prediction->converges)
        model_not_converging(departure, memory_rate);
    progress_predict(departure->progress, prediction);
}

void plan_refine(struct departure *departure)
{
    if (departure->prediction.known && !departure->dirty_rate_known && ask_dirty_rate(departure))
        model(departure);
}

void plan_estimate(struct departure *departure)
{
    struct prediction *prediction = &departure->prediction;
    for (size_t i = 0; i < departure_disks(departure); i++) {
        struct disk *disk = machine_disk(departure->machine, i);
        prediction->disks[i].bytes = relocate_estimate(departure->relocate[i], disk_generation(disk));
        snprintf(prediction->disks[i].file, sizeof prediction->disks[i].file, "%s",
                 machine_config(departure->machine)->disks[i].file);
        prediction->disk_bytes += prediction->disks[i].bytes;
    }
    departure->numbers.disk_remaining = prediction->disk_bytes;
    departure->used_memory = used_memory(departure);
}

void plan_predict(struct departure *departure)
{
    departure->prepared = (double)(clock_now() - departure->began) / NSEC_PER_SEC;
    if (departure->options.dry_run) {
        departure->prepared += START_SECONDS * busy_factor();
        wait_dirty_rate(departure);
    }
    if (departure->known && known_count(departure->known))
        departure->used_memory = used_memory(departure);
    if (departure->prediction.link_rate)
        model(departure);
}
