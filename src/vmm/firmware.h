/* SPDX-License-Identifier: Apache-2.0
 *
 * firmware: the UEFI firmware of this host (OVMF, from Debian's package ovmf). The code is the host's own
 * file and stays on it; the variables of each VM are a disk of that VM, made from the package's empty ones,
 * and move with it.
 *
 * QEMU moves a running guest only between firmwares of the same size.
 */
#pragma once

#include "base/err.h"

#include <stdint.h>

#define FIRMWARE_DIR "/usr/share/OVMF"

enum firmware_part { FIRMWARE_CODE, FIRMWARE_VARS };

/* Opens it for reading; returns the descriptor, and its size in *ret_size. On failure the hint names the
 * package. */
int firmware_open(const char *dir, enum firmware_part part, uint64_t *ret_size, struct err *err);
/* Bytes of the code here, which the other host of a move must have too. */
int firmware_size(const char *dir, uint64_t *ret_size, struct err *err);
