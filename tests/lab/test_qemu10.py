# SPDX-License-Identifier: Apache-2.0
"""Hosts with different QEMUs: Debian 12's 7.2 and Debian 13's 10.0. A guest whose machine type both have goes from one to
the other and back; one that needs the newer QEMU is refused before anything has happened."""

import subprocess
from pathlib import Path

import pytest

from host import wait_until
from lab import CACHE
from test_move import check_equal_here_and_there, move_back_cheaply, move_unnoticed, refused

pytestmark = pytest.mark.alone

NEW_QEMU = CACHE / "qemu-10.0" / "qemu-system-x86_64"  # a script, which becomes:
NEW_PROGRAM = CACHE / "qemu-10.0" / "root" / "usr" / "bin" / "qemu-system-x86_64"
BUILDER = Path(__file__).parent / "guest" / "unpack-qemu10"


@pytest.fixture(scope="module")
def new_qemu():
    done = subprocess.run([BUILDER, CACHE], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"QEMU 10.0 cannot be had: {done.stderr.strip().splitlines()[-1]}")
    return NEW_QEMU


def qemu_version(host):
    return host.api("GET", "/v1/host")["qemu"]["version"]


def running_qemu(guest, host):
    """The program file that the guest runs in."""
    return Path(f"/proc/{host.pid_of('qemu', guest.name)}/exe").resolve()


def there_and_back(guest, one, other):
    """Twice on each host, with load; the second visits are cheap, and memory, disk and connection are whole."""
    guest.ask("write 2000")
    move_unnoticed(guest, one, other)
    written = guest.quiet()["written"]
    move_unnoticed(guest, other, one)
    check_equal_here_and_there(guest, one, other)

    guest.ask("dirty 2")
    guest.ask("rate 100")
    guest.ask("write 500")
    move_back_cheaply(guest, one, other, written)
    written = guest.quiet()["written"]
    guest.ask("write 200")
    guest.quiet()
    move_back_cheaply(guest, other, one, written)
    check_equal_here_and_there(guest, one, other)
    assert len(guest.datagrams.boots()) == 1
    last = guest.power_off(one)
    guest.check_records(one, last["durable"], last["written"])


def test_from_the_older_qemu_to_the_newer_and_back(labs, guests, new_qemu):
    lab = labs("a", "b", qemus={"b": new_qemu})
    assert qemu_version(lab.a).startswith("7.2.") and qemu_version(lab.b).startswith("10.0.")
    guest = guests(lab, lab.a)
    assert lab.a.vm(guest.name)["machine"] == "pc-q35-7.2", "the newest that both have"
    assert running_qemu(guest, lab.a) != NEW_PROGRAM
    there_and_back(guest, lab.a, lab.b)


def test_made_on_the_newer_qemu_to_the_older_and_back(labs, guests, new_qemu):
    lab = labs("a", "b", qemus={"a": new_qemu})
    guest = guests(lab, lab.a)
    assert lab.a.vm(guest.name)["machine"] == "pc-q35-7.2", "the newest that both have"
    assert running_qemu(guest, lab.a) == NEW_PROGRAM
    there_and_back(guest, lab.a, lab.b)


def test_between_two_of_the_newer_qemu(labs, guests, new_qemu):
    lab = labs("a", "b", qemus={"a": new_qemu, "b": new_qemu})
    guest = guests(lab, lab.a)
    assert lab.a.vm(guest.name)["machine"] == "pc-q35-10.0"
    there_and_back(guest, lab.a, lab.b)


def test_a_machine_type_that_only_the_newer_qemu_has_is_refused_before_anything_happens(labs, guests, new_qemu):
    lab = labs("a", qemus={"a": new_qemu})
    guest = guests(lab, lab.a, rate=0)
    lab.add("b")
    text = refused(lab.a, "move", guest.name, "b")
    assert "pc-q35-10.0" in text and "b" in text
    wait_until(lambda: lab.b.vm(guest.name) is None, 10, "nothing of it stays on b")
    guest.check_alive()
