/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/term.h"

#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define USUAL_WIDTH 80

static unsigned width_of(int fd)
{
    struct winsize size;
    if (ioctl(fd, TIOCGWINSZ, &size) == 0 && size.ws_col > 0)
        return size.ws_col;
    return USUAL_WIDTH;
}

struct style term_style(FILE *out, enum format format)
{
    struct style style = {.format = format};
    if (!isatty(fileno(out)))
        return style;
    const char *no_color = getenv("NO_COLOR"), *term = getenv("TERM");
    style.width = width_of(fileno(out));
    style.colour = !(no_color && *no_color) && term && strcmp(term, "dumb") != 0;
    return style;
}
