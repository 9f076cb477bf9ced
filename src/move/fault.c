/* SPDX-License-Identifier: Apache-2.0 */
#include "move/fault.h"

#include "base/clock.h"
#include "base/file.h"
#include "base/macro.h"

#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

static char fault_path[PATH_MAX];

void fault_enable(const char *run_dir)
{
    snprintf(fault_path, sizeof fault_path, "%s/fault", run_dir);
}

static void tell_reached(const char *point)
{
    char path[PATH_MAX + 16];
    snprintf(path, sizeof path, "%s.reached", fault_path);
    file_replace(path, point, strlen(point), 0600, NULL);
}

static int act(const char *point, const char *action, struct err *err)
{
    if (strcmp(action, "kill") == 0)
        raise(SIGKILL);
    if (strcmp(action, "stop") == 0)
        raise(SIGSTOP);
    while (strcmp(action, "hold") == 0 && access(fault_path, F_OK) == 0)
        clock_sleep(2 * NSEC_PER_MSEC);
    return strcmp(action, "fail") == 0 ? err_set(err, EIO, "fault point %s was told to fail", point) : 0;
}

static bool is_wanted(const char *point, char ret_action[16])
{
    char wanted[128];
    _cleanup_free_ void *text = NULL;
    size_t size;
    return file_load(fault_path, 256, &text, &size, NULL) == 0 &&
           sscanf(text, "%127s %15s", wanted, ret_action) == 2 && strcmp(wanted, point) == 0;
}

int fault_point(struct err *err, const char *format, ...)
{
    if (!fault_path[0])
        return 0;
    char point[128], action[16];
    va_list args;
    va_start(args, format);
    vsnprintf(point, sizeof point, format, args);
    va_end(args);

    if (!is_wanted(point, action))
        return 0;
    tell_reached(point);
    return act(point, action, err);
}

void fault_data(void *data, size_t size, const char *point)
{
    char action[16];
    if (!fault_path[0] || size == 0 || !is_wanted(point, action) || strcmp(action, "flip") != 0)
        return;
    ((unsigned char *)data)[size / 2] ^= 0x10;
    unlink(fault_path);
    tell_reached(point);
}
