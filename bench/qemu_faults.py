# SPDX-License-Identifier: Apache-2.0
"""How long a guest's faults wait in post-copy, seen by the QEMU at the destination, whoever brings the pages: its trace says when
it noticed that a thread of the guest waits for a page, and when it has put that page into place."""

import re

EVENTS = ("postcopy_ram_fault_thread_request", "postcopy_place_page", "postcopy_place_page_zero")
REQUEST = re.compile(r"\d+@(\d+\.\d+):postcopy_ram_fault_thread_request .*HVA=0x([0-9a-f]+)")
PLACED = re.compile(r"\d+@(\d+\.\d+):postcopy_place_page(?:_zero)? host=0x([0-9a-f]+)")


def options(path):
    """For QEMU's command line."""
    return [word for event in EVENTS for word in ("-trace", event)] + ["-msg", "timestamp=on", "-D", str(path)]


def wrap(script, path):
    """A program that is QEMU with such a trace: for those who start QEMU by themselves."""
    script.write_text(f'#!/bin/sh\nexec qemu-system-x86_64 "$@" {" ".join(options(path))}\n')
    script.chmod(0o755)
    path.touch()
    path.chmod(0o666)  # QEMU's user is another
    return script


def waits(path):
    """Seconds of each wait, in order."""
    asked, found = {}, []
    for line in open(path, errors="replace"):
        if match := REQUEST.match(line):
            asked.setdefault(int(match[2], 16) & ~0xfff, float(match[1]))
        elif (match := PLACED.match(line)) and int(match[2], 16) in asked:
            found.append(float(match[1]) - asked.pop(int(match[2], 16)))
    return found
