/* SPDX-License-Identifier: Apache-2.0 */
#include "checksum.h"

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdlib.h>
#include <unistd.h>

enum { PIECE = 64 << 10 };

static uint32_t crc_update(uint32_t crc, const uint8_t *data, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        crc ^= data[i];
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (crc & 1 ? 0xedb88320U : 0);
    }
    return crc;
}

int checksum_device(const char *path, uint32_t *ret_crc, uint64_t *ret_bytes)
{
    uint32_t crc = UINT32_MAX;
    uint64_t bytes = 0;
    int fd = open(path, O_RDONLY | O_DIRECT | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    uint8_t *data = aligned_alloc(4096, PIECE);
    ssize_t n = data != NULL ? 1 : -1;
    while (n > 0 && (n = read(fd, data, PIECE)) > 0) {
        crc = crc_update(crc, data, (size_t)n);
        bytes += (uint64_t)n;
    }
    int r = n < 0 ? -errno : 0;
    free(data);
    close(fd);
    *ret_crc = ~crc;
    *ret_bytes = bytes;
    return r;
}
