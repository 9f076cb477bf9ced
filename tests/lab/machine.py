# SPDX-License-Identifier: Apache-2.0
"""Settings of the whole machine, which one run at a time may change: pytest's and the benches'."""

import contextlib
import errno
import socket
import time
from pathlib import Path

USERFAULTFD = Path("/proc/sys/vm/unprivileged_userfaultfd")


@contextlib.contextmanager
def alone(name):
    """Waits until no other process has this name: one of an abstract socket, which nothing outlives."""
    with socket.socket(socket.AF_UNIX) as held:
        while True:
            try:
                held.bind(f"\0orai-lab-{name}")
                break
            except OSError as e:
                if e.errno != errno.EADDRINUSE:
                    raise
            time.sleep(0.2)
        yield


@contextlib.contextmanager
def userfaultfd():
    """Memory can follow a guest, as with the package's sysctl.d: QEMU needs it for that, and Orai's does not run as root. What the
    machine had is restored. Gives a function that forbids it again: allow(False)."""
    def allow(allowed):
        USERFAULTFD.write_text("1" if allowed else "0")
    with alone("userfaultfd"):
        before = USERFAULTFD.read_text()
        allow(True)
        try:
            yield allow
        finally:
            USERFAULTFD.write_text(before)
