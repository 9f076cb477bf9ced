# SPDX-License-Identifier: Apache-2.0
"""The ways of moving a guest with its memory that benches compare, and the links for it."""

LINKS = {"100M": 100_000_000, "1G": 1_000_000_000, "unlimited": None}
WAYS = {  # who moves it, and options of `orai move` or arguments of qemu_own.move
    "Orai": ("orai", (), {}),
    "QEMU": ("qemu", (), {}),
    "QEMU, xbzrle": ("qemu", ("xbzrle",), {}),
    "QEMU, multifd zstd": ("qemu", ("multifd",), {"multifd_compression": "zstd", "multifd_channels": 2}),
    "Orai, after": ("orai", ("--memory", "postcopy"), {}),
    "QEMU, after": ("qemu", ("postcopy-ram",), {}),
}
TRIPS = ("first move", "return")


def add_arguments(parser):
    parser.add_argument("--link", action="append", choices=LINKS, help="rate of the link (default 1G); may be repeated")
    parser.add_argument("--way", action="append", choices=WAYS, help="only this one; may be repeated")


def other(way):
    """What it is compared with."""
    return "QEMU, after" if way.endswith("after") else "QEMU"
