/* SPDX-License-Identifier: Apache-2.0 */
#include "base/log.h"

#include "base/clock.h"

#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define LIMIT_NSEC (60 * NSEC_PER_SEC)

static const char *program_name = "orai";
static int max_level = LOG_LEVEL_INFO;
static bool journal;

static const char *level_name(enum log_level level)
{
    switch (level) {
    case LOG_LEVEL_ERROR:
        return "error";
    case LOG_LEVEL_WARNING:
        return "warning";
    case LOG_LEVEL_INFO:
        return "info";
    case LOG_LEVEL_DEBUG:
        return "debug";
    }
    return "?";
}

/* systemd names the stream's file there (systemd.exec(5)). Whoever inherits the variable and has another
 * standard error, as orai-vm does, is not read by the journal. */
static bool stderr_is_journal(void)
{
    const char *named = getenv("JOURNAL_STREAM");
    char own[48];
    struct stat st;
    if (!named || fstat(STDERR_FILENO, &st) < 0)
        return false;
    snprintf(own, sizeof own, "%llu:%llu", (unsigned long long)st.st_dev, (unsigned long long)st.st_ino);
    return strcmp(named, own) == 0;
}

void log_open(const char *program)
{
    static const enum log_level levels[] = {LOG_LEVEL_ERROR, LOG_LEVEL_WARNING, LOG_LEVEL_INFO,
                                            LOG_LEVEL_DEBUG};
    program_name = program;
    journal = stderr_is_journal();
    const char *wanted = getenv("ORAI_LOG");
    for (size_t i = 0; wanted && i < sizeof levels / sizeof *levels; i++)
        if (strcmp(wanted, level_name(levels[i])) == 0)
            max_level = (int)levels[i];
}

static int put_prefix(char *line, size_t size, enum log_level level)
{
    if (journal)
        return snprintf(line, size, "<%d>", (int)level);
    struct timespec now;
    struct tm tm;
    clock_gettime(CLOCK_REALTIME, &now);
    localtime_r(&now.tv_sec, &tm);
    char date[32];
    strftime(date, sizeof date, "%Y-%m-%dT%H:%M:%S", &tm);
    return snprintf(line, size, "%s.%03ld %s[%d] %s: ", date, now.tv_nsec / 1000000, program_name,
                    (int)getpid(), level_name(level));
}

/* Texts may come from a peer: they must not begin lines of their own. */
static void keep_one_line(char *text)
{
    for (; *text; text++)
        if ((unsigned char)*text < 0x20 || *text == 0x7f)
            *text = ' ';
}

__attribute__((format(printf, 2, 0))) static void write_line(enum log_level level, const char *format,
                                                             va_list args)
{
    char line[2048];
    int used = put_prefix(line, sizeof line, level);
    int more = vsnprintf(line + used, sizeof line - (size_t)used - 1, format, args);
    keep_one_line(line + used);
    size_t length = (size_t)used + (size_t)(more < 0 ? 0 : more);
    if (length > sizeof line - 2)
        length = sizeof line - 2;
    line[length++] = '\n';
    ssize_t written = write(STDERR_FILENO, line, length);
    (void)written; /* there is nowhere left to report a failure to */
}

/* Leaves errno alone: callers log on the way to using it. */
void log_write(enum log_level level, const char *format, ...)
{
    if ((int)level > max_level)
        return;
    int saved_errno = errno;
    va_list args;
    va_start(args, format);
    write_line(level, format, args);
    va_end(args);
    errno = saved_errno;
}

/* Whether the line may be written. *ret_left_out: how many before it were not, to be said now. */
static bool admit(struct log_limit *limit, unsigned *ret_left_out)
{
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    int64_t now = clock_now();
    *ret_left_out = 0;
    pthread_mutex_lock(&lock);
    if (limit->began == 0 || now - limit->began >= LIMIT_NSEC) {
        *ret_left_out = limit->left_out;
        *limit = (struct log_limit){.began = now};
    }
    bool may = limit->lines < LOG_BURST;
    limit->lines += may;
    limit->left_out += !may;
    pthread_mutex_unlock(&lock);
    return may;
}

void log_limited(struct log_limit *limit, enum log_level level, const char *format, ...)
{
    unsigned left_out;
    int saved_errno = errno;
    if ((int)level > max_level || !admit(limit, &left_out))
        return;
    if (left_out)
        log_write(level, "%u lines like the next one were left out", left_out);
    va_list args;
    va_start(args, format);
    errno = saved_errno;
    write_line(level, format, args);
    va_end(args);
    errno = saved_errno;
}
