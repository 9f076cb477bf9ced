/* SPDX-License-Identifier: Apache-2.0
 *
 * log: lines on standard error, "TIME program[pid] level: text". Under systemd (standard error is the
 * journal) the time is left out and the level goes as "<N>". Safe from every thread: one write(2) per line.
 */
#pragma once

enum log_level { LOG_LEVEL_ERROR = 3, LOG_LEVEL_WARNING = 4, LOG_LEVEL_INFO = 6, LOG_LEVEL_DEBUG = 7 };

/* `program` must live as long as the process. ORAI_LOG=error|warning|info|debug sets the level (default
 * info). */
void log_open(const char *program);
void log_write(enum log_level level, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* For lines that strangers can cause as often as they like: LOG_BURST of them in a minute, then none; the
 * first one of the next minute comes after how many were left out. A static, zeroed. */
#define LOG_BURST 10
struct log_limit {
    long long began; /* clock_now(); 0 = never */
    unsigned lines, left_out;
};
void log_limited(struct log_limit *limit, enum log_level level, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

#define log_error(...) log_write(LOG_LEVEL_ERROR, __VA_ARGS__)
#define log_warning(...) log_write(LOG_LEVEL_WARNING, __VA_ARGS__)
#define log_info(...) log_write(LOG_LEVEL_INFO, __VA_ARGS__)
#define log_debug(...) log_write(LOG_LEVEL_DEBUG, __VA_ARGS__)
