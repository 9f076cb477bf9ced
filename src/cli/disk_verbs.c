/* SPDX-License-Identifier: Apache-2.0
 *
 * The table's part of `orai disk`: for help, completions and the check of the command line. disk.c reads the
 * words again by itself, for it stands alone, without oraid.
 */
#include "cli/cli.h"
#include "cli/verbs.h"

const struct verb verb_disk_serve = {
    .group = "disk",
    .name = "serve",
    .summary = "Serve a raw image over NBD and track what is written, without oraid",
    .operands = {{.name = "FILE", .kind = ARG_FILE, .help = "A raw image: a file or a block device"}},
    .options = {{.name = "socket", .kind = ARG_FILE, .value = "PATH", .help = "Unix socket to make; needed"},
                {.name = "read-only", .kind = ARG_FLAG, .help = "Refuse writes"},
                {.name = "direct", .kind = ARG_FLAG, .help = "Bypass the page cache for aligned requests"},
                {.name = "export",
                 .kind = ARG_TEXT,
                 .value = "NAME",
                 .help = "Name of the export; the empty name works always"},
                {.name = "max-connections",
                 .kind = ARG_COUNT,
                 .value = "N",
                 .help = "Clients at once; others wait (default: 16)"},
                {.name = "pid-file",
                 .kind = ARG_FILE,
                 .value = "PATH",
                 .help = "Write the process id there once clients can connect"}},
    .run_raw = cli_disk,
};

const struct verb verb_disk_info = {
    .group = "disk",
    .name = "info",
    .summary = "Show what is known of a raw image: generations, lineage",
    .flags = VERB_FORMATS,
    .operands = {{.name = "FILE", .kind = ARG_FILE, .help = "The image"}},
    .run_raw = cli_disk,
};
