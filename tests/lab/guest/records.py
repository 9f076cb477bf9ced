# SPDX-License-Identifier: Apache-2.0
"""pulse's records in Python: the same rules as pattern.c and records.c, which see."""

import struct

SIZE = 4096
MAGIC = int.from_bytes(b"ORAIPULS", "little")
HEADER = struct.Struct("<QQQQ")
SUM = struct.Struct("<Q")
WORD = (1 << 64) - 1
FILLER_AT = HEADER.size + SUM.size
FILLER_WORDS = (SIZE - FILLER_AT) // 8


def mix(value):
    value = (value + 0x9E3779B97F4A7C15) & WORD
    value = ((value ^ value >> 30) * 0xBF58476D1CE4E5B9) & WORD
    value = ((value ^ value >> 27) * 0x94D049BB133111EB) & WORD
    return value ^ value >> 31


def fnv1a(data):
    total = 0xCBF29CE484222325
    for byte in data:
        total = (total ^ byte) * 0x100000001B3 & WORD
    return total


# As one large integer each, so that a whole filler is made by one multiplication and one exclusive-or.
MIXED_INDEX = sum(mix(i) << 64 * i for i in range(FILLER_WORDS))
ONE_IN_EACH_WORD = sum(1 << 64 * i for i in range(FILLER_WORDS))


def slot_of(number, slots):
    return mix(number) % slots


def filler(number):
    return (MIXED_INDEX ^ mix(number) * ONE_IN_EACH_WORD).to_bytes(FILLER_WORDS * 8, "little")


def make(number, slot, boot):
    header = HEADER.pack(MAGIC, number, slot, boot)
    return header + SUM.pack(fnv1a(header)) + filler(number)


def parse(data):
    """Returns (number, slot, boot) of an undamaged record, else None."""
    magic, number, slot, boot = HEADER.unpack_from(data)
    if magic != MAGIC or data != make(number, slot, boot):
        return None
    return number, slot, boot
