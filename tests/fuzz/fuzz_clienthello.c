/* SPDX-License-Identifier: Apache-2.0
 *
 * Beside memory errors, the promises of clienthello.h: a verdict never changes with more bytes, a shorter
 * prefix of a good hello asks for more, and the name is a short one of plain characters.
 */
#include "base/clienthello.h"

#include <ctype.h>
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(bool ok)
{
    if (!ok)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char name[SERVER_NAME_SIZE], part[SERVER_NAME_SIZE];
    int whole = clienthello_server_name(data, size, name);
    check(whole == 0 || whole == -EAGAIN || whole == -EPROTO);
    check(whole != -EAGAIN || size < CLIENTHELLO_MAX);
    for (const char *c = name; whole == 0 && *c; c++)
        check(isalnum((unsigned char)*c) || strchr("-._", *c));
    for (size_t cut = 0; cut < size; cut += 1 + size / 16) {
        int r = clienthello_server_name(data, cut, part);
        check(r == -EAGAIN || r == whole);
        check(r != 0 || strcmp(name, part) == 0);
    }
    return 0;
}
