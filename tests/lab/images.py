# SPDX-License-Identifier: Apache-2.0
"""Raw images and their generation maps, read without any of Orai's code."""

import mmap
import os
import struct

BLOCK = 4096
HEADER = 4096
CHUNK = 4 << 20


def extents(fd, size):
    """(offset, length) of data; holes are left out."""
    at = 0
    while at < size:
        try:
            begin = os.lseek(fd, at, os.SEEK_DATA)
        except OSError:  # only a hole is left
            return
        at = min(os.lseek(fd, begin, os.SEEK_HOLE), size)
        yield begin, at - begin


def chunks_with_data(fds, size):
    found = set()
    for fd in fds:
        for offset, length in extents(fd, size):
            found.update(range(offset // CHUNK, (offset + length - 1) // CHUNK + 1))
    return sorted(found)


def differing_blocks(one, other):
    """Numbers of the 4 KiB blocks in which two images differ."""
    size = os.path.getsize(one)
    if os.path.getsize(other) != size:
        raise ValueError(f"{one} and {other} are not of one size")
    with open(one, "rb") as a, open(other, "rb") as b:
        different = []
        for chunk in chunks_with_data((a.fileno(), b.fileno()), size):
            x, y = os.pread(a.fileno(), CHUNK, chunk * CHUNK), os.pread(b.fileno(), CHUNK, chunk * CHUNK)
            if x != y:
                different += [chunk * CHUNK // BLOCK + i for i in range((len(x) + BLOCK - 1) // BLOCK)
                              if x[i * BLOCK:(i + 1) * BLOCK] != y[i * BLOCK:(i + 1) * BLOCK]]
        return different


class Generations:
    """IMAGE.map: for each block the generation of its last write (docs/formats.md)."""

    def __init__(self, image):
        with open(f"{image}.map", "rb") as f:
            if f.read(8) != b"ORAI-MAP":
                raise ValueError(f"{image}.map is no generation map")
            self.map = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)

    def of(self, block):
        return struct.unpack_from("<I", self.map, HEADER + 4 * block)[0]
