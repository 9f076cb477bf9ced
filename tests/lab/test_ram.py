# SPDX-License-Identifier: Apache-2.0
"""What a VM's memory is made of (orai create --ram): each kind starts and moves, and what a kind cannot have is refused with
the reason, before anything happens to the guest."""

import os
import time
from pathlib import Path

import pytest

from host import MIB, wait_until
from test_move import refused
from test_qemu10 import new_qemu  # noqa: F401
from test_refresh import refresh, settled

PAGES = 48  # of 2 MiB: what a guest of 96 MiB takes
SETTING = Path("/proc/sys/vm/nr_hugepages")
POOL = Path("/sys/kernel/mm/hugepages/hugepages-2048kB")
LATER = ("--memory", "postcopy")
huge = pytest.mark.together("huge-pages")  # a setting of the whole machine, as the next one
later = pytest.mark.together("userfaultfd")
QEMUS = ["7.2", pytest.param("10.0", marks=pytest.mark.long)]


@pytest.fixture
def lab_of(labs, new_qemu):  # noqa: F811
    """Two hosts with the QEMU of that version."""
    return lambda version: labs("a", "b", qemus={"a": new_qemu, "b": new_qemu} if version == "10.0" else {})


def left():
    """Huge pages that nobody uses, nor has been promised."""
    return int((POOL / "free_hugepages").read_text()) - int((POOL / "resv_hugepages").read_text())


@pytest.fixture
def leave():
    """leave(N): N huge pages are left. What the machine had is restored."""
    before = SETTING.read_text()

    def set_left(count):
        deadline = time.monotonic() + 20  # what was used a moment ago comes back soon
        while left() != count:
            assert time.monotonic() < deadline, f"{left()} huge pages are left instead of {count}"
            SETTING.write_text(str(int(SETTING.read_text()) + count - left()))
            time.sleep(0.05)
    yield set_left
    SETTING.write_text(before)


def kinds(guest, host):
    """As its config has it, and as its QEMU has it."""
    vm = host.vm(guest.name)
    assert f"{vm['ram']}" in host.orai("info", guest.name)
    return vm["ram"], vm["ram_in_use"]


def there_and_back(lab, guest, kind, *options):
    for source, target in ((lab.a, lab.b), (lab.b, lab.a)):
        assert source.orai("move", guest.name, target.name, *options, json=True)["state"] == "moved"
        assert kinds(guest, target) == (kind, kind) and kinds(guest, source) == (kind, None)
        guest.check_alive()


def untouched(guest, host):
    settled(guest, host)
    guest.check_alive()


def test_shared(lab, guests):
    guest = guests(lab, lab.a, options=["--ram", "shared"])
    assert kinds(guest, lab.a) == ("shared", "shared")
    there_and_back(lab, guest, "shared")
    refresh(guest, lab.a)
    assert kinds(guest, lab.a) == ("shared", "shared")


# --- private -----------------------------------------------------------------------------------------------------------

@later
@pytest.mark.usefixtures("userfaultfd")
@pytest.mark.parametrize("qemu", QEMUS)
def test_private_moves_after_the_switch_only(lab_of, guests, qemu):
    lab = lab_of(qemu)
    guest = guests(lab, lab.a, options=["--ram", "private"])
    assert kinds(guest, lab.a) == ("private", "private")
    error = refused(lab.a, "move", guest.name, "b")
    assert "private" in error and "--memory postcopy" in error
    assert "private" in refused(lab.a, "move", guest.name, "b", "--dry-run")
    untouched(guest, lab.a)
    wait_until(lambda: lab.b.vm(guest.name) is None, 10, "b expects it no more")
    there_and_back(lab, guest, "private", *LATER)
    assert lab.b.vm(guest.name)["checkpoint"] == 0
    last = guest.power_off(lab.a)
    guest.check_records(lab.a, last["durable"], last["written"])


@later
def test_private_stays_when_it_cannot_move_after_the_switch(lab, guests, userfaultfd):
    guest = guests(lab, lab.a, options=["--ram", "private"])
    userfaultfd(False)
    for options in (LATER, (*LATER, "--dry-run")):
        error = refused(lab.a, "move", guest.name, "b", *options)
        assert "userfaultfd" in error and "private" in error
        untouched(guest, lab.a)


def made(guest, host):
    """Bytes of its RAM that its QEMU there has got from the kernel."""
    folder = Path(f"/proc/{host.pid_of('qemu', guest.name)}/fd")
    rams = [file.stat() for file in folder.iterdir() if "memfd:" in os.readlink(file)]
    return max((ram.st_size, 512 * ram.st_blocks) for ram in rams)[1]


def test_memory_that_was_never_used_is_not_made_before_the_switch(lab, guests):
    guest = guests(lab, lab.a, memory="768M", pattern=32, rate=0)
    used = made(guest, lab.a)
    assert used < 384 * MIB
    there_and_back(lab, guest, "shared")
    assert made(guest, lab.a) < used + 32 * MIB
    untouched(guest, lab.a)


def test_private_is_not_refreshed(labs, guests):
    lab = labs("a")
    guest = guests(lab, lab.a, options=["--ram", "private"])
    before = lab.a.pid_of("qemu", guest.name)
    error = refused(lab.a, "refresh", guest.name)
    assert "private" in error and "shared" in error
    assert lab.a.pid_of("qemu", guest.name) == before
    lab.a.orai("refresh", guest.name, "--helper")
    untouched(guest, lab.a)
    assert kinds(guest, lab.a) == ("private", "private") and lab.a.pid_of("qemu", guest.name) == before


def test_another_kind_comes_with_the_next_start(labs, guests):
    lab = labs("a")
    guest = guests(lab, lab.a)
    path = f"/v1/vms/{guest.name}/config"
    config = lab.a.api("GET", path)
    assert "ram" not in config
    guest.power_off(lab.a)
    lab.a.api("PUT", path, {**config, "ram": "private"})
    assert kinds(guest, lab.a) == ("private", None)
    guest.start(lab.a)
    assert kinds(guest, lab.a) == ("private", "private")

    # Whatever the file says by now, and whichever orai-vm looks.
    file = lab.a.state / "vms" / guest.name / "vm.json"
    file.write_text(file.read_text().replace('"private"', '"shared"'))
    lab.a.kill("orai-vm", guest.name)
    untouched(guest, lab.a)
    assert kinds(guest, lab.a) == ("shared", "private")
    assert "private" in refused(lab.a, "refresh", guest.name)
    guest.power_off(lab.a)
    guest.start(lab.a)
    assert kinds(guest, lab.a) == ("shared", "shared")


# --- huge --------------------------------------------------------------------------------------------------------------

@huge
@pytest.mark.parametrize("qemu", QEMUS)
def test_huge(lab_of, guests, leave, qemu):
    lab = lab_of(qemu)
    leave(3 * PAGES)
    guest = guests(lab, lab.a, options=["--ram", "huge"])
    assert kinds(guest, lab.a) == ("huge", "huge") and left() == 2 * PAGES
    assert "huge pages" in refused(lab.a, "move", guest.name, "b", *LATER)
    untouched(guest, lab.a)
    there_and_back(lab, guest, "huge")
    wait_until(lambda: lab.b.vm(guest.name)["checkpoint"], 20, "its memory is kept on b")
    assert lab.a.orai("move", guest.name, "b", json=True)["memory_found_bytes"] > 8 * MIB
    lab.b.orai("move", guest.name, "a")
    refresh(guest, lab.a)
    lab.a.kill("orai-vm", guest.name)
    untouched(guest, lab.a)
    assert kinds(guest, lab.a) == ("huge", "huge")
    last = guest.power_off(lab.a)
    guest.check_records(lab.a, last["durable"], last["written"])
    wait_until(lambda: left() == 3 * PAGES, 20, "all are given back")


@huge
def test_huge_with_too_few_pages(lab, guests, leave):
    leave(PAGES - 1)
    guest = guests(lab, lab.a, start=False, options=["--ram", "huge"])
    error = refused(lab.a, "start", guest.name)
    assert f"{PAGES} huge pages" in error and f"{PAGES - 1} left" in error and "sysctl -w vm.nr_hugepages=" in error
    assert lab.a.vm_state(guest.name) != "running" and left() == PAGES - 1

    leave(PAGES)
    guest.start(lab.a)
    for options in ((), ("--dry-run",)):
        error = refused(lab.a, "move", guest.name, "b", *options)
        assert f"{PAGES} huge pages" in error and "has 0 left" in error and "sysctl -w vm.nr_hugepages=" in error
        untouched(guest, lab.a)
    assert not list((lab.b.state / "vms").glob("*/disk*")), "nothing was built there"
    leave(PAGES)
    lab.a.orai("move", guest.name, "b")
    guest.check_alive()
