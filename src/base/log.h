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

#define log_error(...) log_write(LOG_LEVEL_ERROR, __VA_ARGS__)
#define log_warning(...) log_write(LOG_LEVEL_WARNING, __VA_ARGS__)
#define log_info(...) log_write(LOG_LEVEL_INFO, __VA_ARGS__)
#define log_debug(...) log_write(LOG_LEVEL_DEBUG, __VA_ARGS__)
