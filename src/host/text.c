/* SPDX-License-Identifier: Apache-2.0 */
#include "host/text.h"

#include "base/clock.h"

#include <stdio.h>
#include <time.h>

const char *time_format(int64_t wall_ms, char text[TIME_TEXT])
{
    time_t second = (time_t)(wall_ms / 1000);
    struct tm tm;
    char seconds[24];
    gmtime_r(&second, &tm);
    strftime(seconds, sizeof seconds, "%Y-%m-%dT%H:%M:%S", &tm);
    snprintf(text, TIME_TEXT, "%s.%03dZ", seconds, (int)(wall_ms % 1000));
    return text;
}

const char *time_text(char text[TIME_TEXT])
{
    return time_format(clock_wall_ms(), text);
}
