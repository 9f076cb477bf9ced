# SPDX-License-Identifier: Apache-2.0
"""The host's disk is full: the guest waits, is told nothing of it, and goes on by itself when there is room."""

import time

from host import MIB, wait_until


def test_a_guest_waits_for_room_on_its_host(labs, guests):
    lab = labs("a", disk_sizes={"a": 192 * MIB})
    guest = guests(lab, lab.a, disk="128M", rate=0)
    guest.ask("write 500")
    lab.a.fill_disk(leave=4 * MIB)
    guest.pulse.ask("rate 2000")
    wait_until(lambda: lab.a.vm_state(guest.name) == "paused", 60, "the guest stands still")
    assert "no space left on a" in lab.a.vm(guest.name)["reason"]
    time.sleep(2.5)
    assert lab.a.vm_state(guest.name) == "paused", "there is no room yet"
    lab.a.free_disk()
    wait_until(lambda: lab.a.vm_state(guest.name) == "running", 20, "it goes on by itself")
    guest.check_alive()
    last = guest.power_off(lab.a)
    guest.check_records(lab.a, last["durable"], last["written"])
