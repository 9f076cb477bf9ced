# SPDX-License-Identifier: Apache-2.0
"""All of a guest's memory is compared before it goes on in another place; what differs there it never sees."""

import json
import os
from pathlib import Path

from host import MIB, wait_until
from test_move import refused

MEMORY = 96 * MIB


def ram(host, guest):
    """The memory of the guest's QEMU, as a file."""
    folder = Path(f"/proc/{host.pid_of('qemu', guest.name)}/fd")
    return next(fd for fd in folder.iterdir() if os.readlink(fd).startswith("/memfd:") and fd.stat().st_size == MEMORY)


def check_verified(result):
    assert result["memory_verified_bytes"] == MEMORY and result["state"] == "moved"
    assert any("is the same on both hosts" in note for note in result["notes"]), result["notes"]


def test_all_of_it_is_the_same_also_on_the_way_back(lab, guests):
    """There with all of it sent, back with most of it found in a checkpoint."""
    guest = guests(lab, lab.a)
    check_verified(lab.a.orai("move", guest.name, "b", "--verify-memory", json=True))
    guest.check_alive()
    file = lab.a.state / "vms" / guest.name / "memory.checkpoint"
    wait_until(file.exists, 30, "the memory is kept on a")
    back = lab.b.orai("move", guest.name, "a", "--verify-memory", json=True)
    check_verified(back)
    assert back["memory_found_bytes"] > 0
    unasked = lab.a.orai("move", guest.name, "b", json=True)
    assert unasked["memory_verified_bytes"] == 0
    last = guest.power_off(lab.b)
    guest.check_records(lab.b, last["durable"], last["written"])


def test_what_differs_keeps_the_guest_where_it_is(lab, guests):
    guest = guests(lab, lab.a)
    lab.a.fault(guest.name, "source.verify", "hold")
    mover = lab.a.begin("move", guest.name, "b", "--verify-memory", "--format", "json")
    lab.a.wait_fault_reached(guest.name, "source.verify")
    with open(ram(lab.b, guest), "r+b", buffering=0) as memory:
        for page in (20 * MIB, 30 * MIB):
            memory.seek(page + 8)
            byte = memory.read(1)[0]
            memory.seek(page + 8)
            memory.write(bytes([byte ^ 1]))
    lab.a.clear_fault(guest.name)
    out, err = mover.communicate(timeout=60)
    assert mover.returncode == 6 and "2 pages of the guest's memory are others on b" in err
    assert json.loads(out)["memory_verified_bytes"] == 0
    wait_until(lambda: lab.where(guest.name).get("a") == "running", 30, "it runs on a")
    guest.check_alive()
    wait_until(lambda: lab.b.vm_state(guest.name) in ("incomplete", "replica"), 30, "b has given up")
    check_verified(lab.a.orai("move", guest.name, "b", "--verify-memory", json=True))
    last = guest.power_off(lab.b)
    guest.check_records(lab.b, last["durable"], last["written"])


def test_memory_that_follows_is_not_verified(lab, guests):
    guest = guests(lab, lab.a, rate=0)
    for options in (["--memory", "postcopy"], ["--timeout", "10s", "--on-timeout", "postcopy"]):
        refused(lab.a, "move", guest.name, "b", "--verify-memory", *options)
    assert lab.where(guest.name) == {"a": "running"}
    guest.check_alive()
