/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The Debian guest's writer: appends numbered, checksummed lines to /var/lib/writer/log.N, makes them durable
 * with fsync, and only then publishes the last number in /run/orai/writer.json (which Apache serves).
 *
 * Each line is 1 KiB, so `orai.writer=KiB/s` of the kernel command line is also lines per second (default 64,
 * 0 = none):
 *
 *     16 hex digits: FNV-1a of the rest | space | 16 digits: number, from 1 | space | hex filler | newline
 *
 * A log file holds 4096 lines; line n is in log.((n-1)/4096). The newest eight files are kept. At start all
 * lines are verified, a torn last line is cut off, and numbering goes on: lines lost by a move or a crash
 * show up as a smaller number than the one published before, damaged ones in `errors`.
 */
#include "pattern.h"

#include <dirent.h>
#include <err.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define LOG_DIR "/var/lib/writer"
#define PUBLISHED "/run/orai/writer.json"

enum {
    LINE = 1024,
    SUM_DIGITS = 16,
    LINES_PER_FILE = 4096,
    FILES_KEPT = 8,
    BATCHES_PER_SECOND = 4,
};

struct writer {
    uint64_t lines; /* durable, of all files ever */
    uint64_t errors;
    uint64_t rate;
};

static void line_make(char line[LINE], uint64_t number)
{
    /* The sum comes first and covers the rest, so the rest is made before it. */
    char *rest = line + SUM_DIGITS + 1;
    size_t room = LINE - SUM_DIGITS - 1;
    size_t used = (size_t)snprintf(rest, room, "%016" PRIu64 " ", number);
    for (uint64_t i = 0; used < room - 1; i++) {
        char hex[17];
        snprintf(hex, sizeof(hex), "%016" PRIx64, pattern_mix(i) ^ pattern_mix(number));
        size_t part = room - 1 - used < 16 ? room - 1 - used : 16;
        memcpy(rest + used, hex, part);
        used += part;
    }
    char sum[SUM_DIGITS + 1];
    snprintf(sum, sizeof(sum), "%016" PRIx64, pattern_sum(rest, room - 1));
    memcpy(line, sum, SUM_DIGITS);
    line[SUM_DIGITS] = ' ';
    line[LINE - 1] = '\n';
}

static void log_name(char name[32], uint64_t file)
{
    snprintf(name, 32, "log.%" PRIu64, file);
}

static int log_open(uint64_t file)
{
    char name[32];
    log_name(name, file);
    int fd = open(name, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    if (fd < 0)
        err(1, "%s", name);
    return fd;
}

/* The numbers of the oldest log file and of the one after the newest; both 0 when there is none. */
static void log_range(uint64_t *ret_oldest, uint64_t *ret_end)
{
    DIR *dir = opendir(".");
    if (dir == NULL)
        err(1, LOG_DIR);
    uint64_t oldest = UINT64_MAX, end = 0, file;
    for (struct dirent *entry; (entry = readdir(dir)) != NULL;) {
        if (sscanf(entry->d_name, "log.%" SCNu64, &file) != 1)
            continue;
        oldest = file < oldest ? file : oldest;
        end = file >= end ? file + 1 : end;
    }
    closedir(dir);
    *ret_oldest = end > 0 ? oldest : 0;
    *ret_end = end;
}

/* Returns how many whole lines the file has, and adds the damaged ones to *errors. */
static uint64_t log_verify(int fd, uint64_t file, uint64_t *errors)
{
    char found[LINE], expected[LINE];
    uint64_t count = 0;
    while (pread(fd, found, LINE, (off_t)(count * LINE)) == LINE) {
        line_make(expected, file * LINES_PER_FILE + count + 1);
        *errors += memcmp(found, expected, LINE) != 0;
        count++;
    }
    return count;
}

static void writer_resume(struct writer *writer)
{
    uint64_t file, end;
    log_range(&file, &end);
    for (; file < end; file++) {
        int fd = log_open(file);
        uint64_t count = log_verify(fd, file, &writer->errors);
        if (ftruncate(fd, (off_t)(count * LINE)) != 0 || fsync(fd) != 0)
            err(1, "log.%" PRIu64, file);
        close(fd);
        /* Only the newest file may be short. */
        writer->errors += count < LINES_PER_FILE && file + 1 < end;
        writer->lines = file * LINES_PER_FILE + count;
    }
}

/* Appends the next lines, but never over the end of a file, and makes them durable. Returns how many. */
static uint64_t writer_append(struct writer *writer, uint64_t count)
{
    static char batch[LINES_PER_FILE * LINE];
    uint64_t file = writer->lines / LINES_PER_FILE, left = LINES_PER_FILE - writer->lines % LINES_PER_FILE;
    count = count < left ? count : left;
    for (uint64_t i = 0; i < count; i++)
        line_make(batch + i * LINE, writer->lines + i + 1);

    int fd = log_open(file);
    if (write(fd, batch, count * LINE) != (ssize_t)(count * LINE) || fsync(fd) != 0)
        err(1, "log.%" PRIu64, file);
    close(fd);
    writer->lines += count;
    return count;
}

static void writer_drop_oldest(const struct writer *writer)
{
    uint64_t newest = writer->lines / LINES_PER_FILE;
    if (newest < FILES_KEPT)
        return;
    char name[32];
    log_name(name, newest - FILES_KEPT);
    unlink(name);
}

/* By rename, so that a reader never sees half a file. */
static void writer_publish(const struct writer *writer)
{
    FILE *file = fopen(PUBLISHED ".new", "we");
    if (file == NULL)
        err(1, PUBLISHED);
    fprintf(file, "{\"line\":%" PRIu64 ",\"errors\":%" PRIu64 ",\"rate\":%" PRIu64 "}\n", writer->lines,
            writer->errors, writer->rate);
    if (fclose(file) != 0 || rename(PUBLISHED ".new", PUBLISHED) != 0)
        err(1, PUBLISHED);
}

static uint64_t rate_from_kernel(void)
{
    char cmdline[4096] = "";
    FILE *file = fopen("/proc/cmdline", "re");
    if (file == NULL || fgets(cmdline, sizeof(cmdline), file) == NULL)
        err(1, "/proc/cmdline");
    fclose(file);
    const char *option = strstr(cmdline, "orai.writer=");
    return option != NULL ? strtoull(option + strlen("orai.writer="), NULL, 10) : 64;
}

static void sleep_batch(void)
{
    nanosleep(&(struct timespec){.tv_nsec = 1000000000 / BATCHES_PER_SECOND}, NULL);
}

int main(void)
{
    if (chdir(LOG_DIR) != 0)
        err(1, LOG_DIR);
    struct writer writer = {.rate = rate_from_kernel()};
    writer_resume(&writer);
    writer_publish(&writer);

    /* In quarters of a line, so that low rates do not round down to none. */
    uint64_t due = 0;
    while (writer.rate > 0) {
        sleep_batch();
        due += writer.rate;
        if (due < BATCHES_PER_SECOND)
            continue;
        due -= BATCHES_PER_SECOND * writer_append(&writer, due / BATCHES_PER_SECOND);
        writer_drop_oldest(&writer);
        writer_publish(&writer);
    }
    pause();
    return 0;
}
