/* SPDX-License-Identifier: Apache-2.0
 *
 * size: amounts as people write them.
 */
#pragma once

#include "base/err.h"

#include <stdint.h>

/* "8G", "512MiB", "4096", "1.5T": powers of 1024, in bytes. */
int size_parse(const char *text, uint64_t *ret_bytes, struct err *err);
/* "500M", "1G", "500Mbit": decimal bits per second, as networks count; "60MB", "60MB/s" decimal bytes,
 * "60MiB", "60MiB/s" binary bytes per second; "0" and "unlimited" mean no limit. Returns bytes per second. */
int rate_parse(const char *text, uint64_t *ret_bytes_per_second, struct err *err);
/* "300ms", "10m", "2h", "90s", "90" (seconds); in milliseconds. */
int duration_parse(const char *text, uint64_t *ret_msec, struct err *err);

#define SIZE_TEXT 24
/* "1.5 GiB", "312 B". Returns `text`. */
const char *size_format(uint64_t bytes, char text[SIZE_TEXT]);
/* "940 Mbit/s". */
const char *rate_format(double bytes_per_second, char text[SIZE_TEXT]);
