/* SPDX-License-Identifier: Apache-2.0 */
/* What a whole block device holds, in 32 bits. */
#pragma once

#include <stdint.h>

/* CRC-32 (that of zlib) of all its bytes, read past the page cache. 0 or -errno. */
int checksum_device(const char *path, uint32_t *ret_crc, uint64_t *ret_bytes);
