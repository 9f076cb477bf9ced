/* SPDX-License-Identifier: Apache-2.0
 *
 * text: times as the API writes them.
 */
#pragma once

#include <stdint.h>

#define TIME_TEXT 32

/* The wall time now, UTC, RFC 3339 with milliseconds. Returns `text`. */
const char *time_text(char text[TIME_TEXT]);
/* The same for milliseconds since 1970. */
const char *time_format(int64_t wall_ms, char text[TIME_TEXT]);
