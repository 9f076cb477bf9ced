/* SPDX-License-Identifier: Apache-2.0 */
#include "options.h"

#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct number_option {
    const char *name;
    size_t offset;
} number_options[] = {
    {"pulse.mem=", offsetof(struct options, memory_mib)},
    {"pulse.dirty=", offsetof(struct options, dirty_mib)},
    {"pulse.rate=", offsetof(struct options, rate)},
    {"pulse.region=", offsetof(struct options, region)},
    {"pulse.first=", offsetof(struct options, first)},
    {"pulse.sync=", offsetof(struct options, sync)},
};

static const struct options defaults = {
    .memory_mib = 64, .dirty_mib = 4, .rate = 200, .first = 1, .sync = 64};

/* Takes 4096, 4K, 512M and 2G. */
static uint64_t parse_size(const char *text)
{
    char *end;
    uint64_t value = strtoull(text, &end, 10);
    switch (*end) {
    case 'K':
        return value << 10;
    case 'M':
        return value << 20;
    case 'G':
        return value << 30;
    default:
        return value;
    }
}

static const char *value_of(const char *word, const char *name)
{
    size_t length = strlen(name);
    return strncmp(word, name, length) == 0 ? word + length : NULL;
}

static void parse_word(struct options *options, const char *word)
{
    const char *value;
    for (size_t i = 0; i < sizeof(number_options) / sizeof(number_options[0]); i++) {
        if ((value = value_of(word, number_options[i].name)) != NULL)
            *(uint64_t *)((char *)options + number_options[i].offset) = parse_size(value);
    }
    if ((value = value_of(word, "pulse.udp=")) != NULL)
        snprintf(options->udp, sizeof(options->udp), "%s", value);
}

void options_parse(struct options *options, const char *cmdline)
{
    *options = defaults;
    char words[4096], *rest = words;
    snprintf(words, sizeof(words), "%s", cmdline);
    for (char *word; (word = strsep(&rest, " \n")) != NULL;)
        parse_word(options, word);
    if (options->first == 0)
        options->first = 1;
}

void options_from_kernel(struct options *options)
{
    char cmdline[4096] = "";
    FILE *file = fopen("/proc/cmdline", "re");
    if (file != NULL) {
        if (fgets(cmdline, sizeof(cmdline), file) == NULL)
            cmdline[0] = '\0';
        fclose(file);
    }
    options_parse(options, cmdline);
}
