/* SPDX-License-Identifier: Apache-2.0 */
#include "serial.h"

#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <unistd.h>

static int serial_fd = STDERR_FILENO;

void serial_open(void)
{
    int fd = open("/dev/ttyS0", O_WRONLY | O_NOCTTY | O_CLOEXEC);
    if (fd >= 0)
        serial_fd = fd;
}

void serial_say(const char *format, ...)
{
    char text[256];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    /* One write, so that lines of two threads do not mix. */
    dprintf(serial_fd, "%s\n", text);
}
