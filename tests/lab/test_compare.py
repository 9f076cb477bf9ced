# SPDX-License-Identifier: Apache-2.0
"""A copy without a common history still helps: what it holds is found by comparing, and not sent."""

import os
import random
import time

import pytest

from host import MIB, OraiError, wait_until
from images import differing_blocks

REGION = 16 * MIB


@pytest.fixture
def lab(labs):
    return labs("a", "b")


@pytest.fixture
def guest(lab, guests):
    """Nearly all of the region is written."""
    guest = guests(lab, lab.a, disk="256M", region=REGION, rate=50)
    guest.ask("write 12000")
    guest.quiet()
    return guest


def move(source, guest, target, *options):
    return source.orai("move", guest.name, target.name, "--mode", "precopy", *options, json=True)


def check_equal(lab, guest):
    images = [host.image_file(guest.name) for host in lab.hosts.values()]
    assert not differing_blocks(*images)
    assert not any(image.with_name(image.name + ".donor").exists() for image in images), "the donor has gone"


def scribble(image, offset, size, seed=1):
    """What a copy is not supposed to hold."""
    with open(image, "r+b") as file:
        file.seek(offset)
        file.write(random.Random(seed).randbytes(size))


def check_found(result, guest):
    assert any("is compared with what is on" in note for note in result["notes"])
    assert result["disk_found_bytes"] >= 13 * MIB
    assert result["disk_bytes"] < 2 * MIB, "sums, and what differs"


def test_a_copy_whose_history_was_lost(lab, guest):
    move(lab.a, guest, lab.b)
    move(lab.b, guest, lab.a)
    image = lab.b.image_file(guest.name)
    image.with_name(image.name + ".lineage").unlink()
    scribble(image, 4 * MIB, 64 << 10)  # differs
    scribble(image, 200 * MIB, 64 << 10, seed=2)  # a hole on a
    result = move(lab.a, guest, lab.b)
    check_found(result, guest)
    check_equal(lab, guest)
    guest.check_alive()
    back = move(lab.b, guest, lab.a)
    assert back["disk_found_bytes"] == 0 and back["disk_bytes"] < MIB, "now there is a history"
    check_equal(lab, guest)


def test_a_guest_that_writes_meanwhile(lab, guest):
    """The copy there is an image that was carried there, say: without any history, and not the newest."""
    move(lab.a, guest, lab.b)
    move(lab.b, guest, lab.a)
    image = lab.b.image_file(guest.name)
    for suffix in (".lineage", ".map", ".intent"):
        image.with_name(image.name + suffix).unlink()
    guest.ask("rate 400")
    guest.ask("dirty 1")
    result = move(lab.a, guest, lab.b, "--bandwidth", "100M")
    assert result["disk_found_bytes"] >= 10 * MIB
    guest.check_alive()
    last = guest.power_off(lab.b)
    guest.check_records(lab.b, last["durable"], last["written"])


def test_a_copy_that_is_not_trusted(lab, guest):
    """What its disk has made of it, the history does not know."""
    move(lab.a, guest, lab.b)
    move(lab.b, guest, lab.a)
    scribble(lab.b.image_file(guest.name), 8 * MIB, 4096)
    with pytest.raises(OraiError, match="not in mode"):
        lab.a.orai("move", guest.name, "b", "--mode", "postcopy", "--compare")
    result = move(lab.a, guest, lab.b, "--compare")
    check_found(result, guest)
    check_equal(lab, guest)
    guest.check_alive()


@pytest.mark.parametrize("who,kind", [("b", "orai-vm"), pytest.param("a", "orai-vm", marks=pytest.mark.long),
                                      pytest.param("b", "oraid", marks=pytest.mark.long)])
def test_what_was_found_is_kept(lab, guest, who, kind):
    move(lab.a, guest, lab.b)
    move(lab.b, guest, lab.a)
    host, image = getattr(lab, who), lab.b.image_file(guest.name)
    image.with_name(image.name + ".lineage").unlink()
    scribble(image, 0, 2 * MIB)
    lab.b.fault(guest.name, "destination.sums", "hold")
    mover = lab.a.begin("move", guest.name, "b", "--mode", "precopy")
    lab.b.wait_fault_reached(guest.name, "destination.sums")
    host.kill(kind, guest.name)
    lab.b.clear_fault(guest.name)
    if kind == "oraid":
        host.restart()
    mover.communicate(timeout=60)
    if kind == "orai-vm":
        wait_until(lambda: lab.where(guest.name) == {"a": "running", "b": "replica"}, 30, "it stays on a")
        assert os.path.exists(f"{image}.donor")
        result = move(lab.a, guest, lab.b)
        assert result["disk_found_bytes"] + result["disk_bytes"] < REGION + 2 * MIB
        assert result["disk_found_bytes"] > 10 * MIB
    wait_until(lambda: lab.b.vm_state(guest.name) == "running", 30, "it is on b")
    check_equal(lab, guest)
    guest.check_alive()


def stays_and_is_moved_again(lab, guest, mover):
    if mover.returncode is None:
        mover.communicate(timeout=60)
    assert mover.returncode != 0
    wait_until(lambda: lab.where(guest.name) == {"a": "running", "b": "replica"}, 30, "it stays on a")
    guest.check_alive()
    image = lab.b.image_file(guest.name)
    assert os.path.exists(f"{image}.donor"), "what was not taken yet is kept"
    return move(lab.a, guest, lab.b)


@pytest.mark.long
def test_a_link_cut_while_it_is_compared(lab, guest):
    move(lab.a, guest, lab.b)
    move(lab.b, guest, lab.a)
    image = lab.b.image_file(guest.name)
    image.with_name(image.name + ".lineage").unlink()
    lab.b.fault(guest.name, "destination.sums", "hold")
    mover = lab.a.begin("move", guest.name, "b", "--mode", "precopy")
    lab.b.wait_fault_reached(guest.name, "destination.sums")
    lab.b.link.cut()
    lab.b.clear_fault(guest.name)
    time.sleep(10)  # longer than either side waits for a word
    lab.b.link.heal()
    result = stays_and_is_moved_again(lab, guest, mover)
    assert result["disk_bytes"] < 2 * MIB
    check_equal(lab, guest)


def test_no_room_for_what_is_found(labs, guests):
    """The donor and the copy beside it need a little more room than one of them."""
    lab = labs("a", "b", disk_sizes={"b": 192 * MIB})
    guest = guests(lab, lab.a, disk="128M", region=REGION, rate=50)
    guest.ask("write 12000")
    guest.quiet()
    move(lab.a, guest, lab.b)
    move(lab.b, guest, lab.a)
    image = lab.b.image_file(guest.name)
    image.with_name(image.name + ".lineage").unlink()
    lab.b.fault(guest.name, "destination.sums", "hold")
    mover = lab.a.begin("move", guest.name, "b", "--mode", "precopy")
    lab.b.wait_fault_reached(guest.name, "destination.sums")
    lab.b.fill_disk(leave=4 * MIB)
    lab.b.clear_fault(guest.name)
    _, err = mover.communicate(timeout=60)
    assert "no space left" in err and "make room" in err
    lab.b.free_disk()
    stays_and_is_moved_again(lab, guest, mover)
    check_equal(lab, guest)
