/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reads 4 KiB at random places of a disk, past the page cache, as fast as it can, the way programs do: an
 * eighth of its MiB, scattered over it, some of them again and again and others seldom (Zipf's law; any 4 KiB
 * within one alike).
 * How many reads each tenth of a second had is kept, so that one sees how a disk that is still coming over
 * slows its guest down.
 */
#pragma once

#include <stdint.h>
#include <stdio.h>

struct reader;

/* Reads the first `mib` MiB until the guest ends. 0 or -errno. */
int reader_start(struct reader **ret_reader, const char *path, uint64_t mib, uint64_t seed);
/* One JSON line: uptime in ms now, length of a slot in ms, reads in each slot so far, errors. */
void reader_print(const struct reader *reader, FILE *out);
