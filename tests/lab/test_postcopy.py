# SPDX-License-Identifier: Apache-2.0
"""Moves in which the guest is there before its disk: stories of disks that are split between two hosts."""

import json
import os
import time

import pytest

from host import MIB, OraiError, wait_until

SLOW, FAST = 40_000_000, 1_000_000_000  # bits per second
SPLIT = ("--mode", "postcopy")
LONG = pytest.mark.long


def borrows(host, guest):
    """What the host still fetches; None when all is there and the lender has heard it."""
    return host.vm(guest.name)["borrows"]


def lends(host, guest):
    return host.vm(guest.name)["lends"]


def whole(host, guest, lender, timeout=60):
    wait_until(lambda: borrows(host, guest) is None, timeout, f"all of the disk is on {host.name}")
    wait_until(lambda: lends(lender, guest) is None and lender.vm_state(guest.name) == "replica", 20,
               f"{lender.name} lends nothing any more")


def switch(guest, source, target, *options):
    """Moves it. From the switch on the cable is slow, so that the disk takes seconds to follow."""
    source.fault(guest.name, "source.pause.end", "hold")
    mover = source.begin("move", guest.name, target.name, *SPLIT, "--format", "json", *options)
    source.wait_fault_reached(guest.name, "source.pause.end")
    source.link.limit(SLOW)
    source.clear_fault(guest.name)
    out, err = mover.communicate(timeout=60)
    assert mover.returncode == 0, err
    result = json.loads(out)
    assert result["state"] == "moved"
    guest.check_alive()
    states = guest.lab.where(guest.name)
    assert states[target.name] == "running" and list(states.values()).count("running") == 1
    return result


def check_whole(guest, host):
    """Every record that the guest was told is durable is there."""
    last = guest.power_off(host)
    guest.check_records(host, last["durable"], last["written"])


def test_the_guest_is_there_before_its_disk(labs, guests):
    lab = labs("a", "b")
    guest = guests(lab, lab.a, rate=0)
    guest.ask("write 8000")
    guest.ask("rate 100")
    result = switch(guest, lab.a, lab.b)
    assert result["disk_bytes"] < 100_000, "before the switch goes only what says where the rest is"
    assert result["disk_later_bytes"] >= 6000 * 4096
    assert borrows(lab.b, guest)["missing_bytes"] > 0, "the rest takes seconds at this rate"
    assert lends(lab.a, guest)["to"] == "b"
    whole(lab.b, guest, lab.a)
    guest.quiet()
    check_whole(guest, lab.b)



@pytest.fixture
def split(labs, guests):
    """A guest under way from a to b whose disk takes seconds to follow it: (lab, guest)."""
    def make(*names, records=6000, rate=50):
        lab = labs(*(names or ("a", "b")))
        guest = guests(lab, lab.a, rate=0)
        guest.ask(f"write {records}")
        guest.ask(f"rate {rate}")
        switch(guest, lab.a, lab.b)
        assert borrows(lab.b, guest)["missing_bytes"] > 4 * MIB
        return lab, guest
    return make


def finish(lab, guest):
    whole(lab.b, guest, lab.a)
    guest.quiet()
    guest.check_alive()
    check_whole(guest, lab.b)


@pytest.mark.parametrize("who,point", [
    ("a", "source.pause.end"), pytest.param("b", "destination.pause.end", marks=LONG), ("a", "source.commit.written"),
    ("b", "destination.commit.written"), pytest.param("a", "source.finish.begin", marks=LONG),
    pytest.param("b", "destination.finish.begin", marks=LONG), ("b", "fetch.begin"), ("b", "fetch.whole"), ("b", "fetch.release"), ("a", "lend.release"), ("a", "lend.released")])
def test_killed_at_each_step(labs, guests, who, point):
    """Whichever orai-vm is killed where: the guest runs on one host, and all of its disk comes there."""
    lab = labs("a", "b")
    guest = guests(lab, lab.a, rate=0)
    guest.ask("write 4000")
    guest.ask("rate 50")
    host = getattr(lab, who)
    host.fault(guest.name, point, "kill")
    mover = lab.a.begin("move", guest.name, "b", *SPLIT)
    host.wait_fault_reached(guest.name, point)
    host.clear_fault(guest.name)
    mover.communicate(timeout=200)
    wait_until(lambda: list(lab.where(guest.name).values()).count("running") == 1, 150, "it runs on one host")
    if lab.where(guest.name)["a"] == "running":  # rolled back, or refused
        assert point in ("source.pause.end", "destination.pause.end")
        guest.check_alive()
        check_whole(guest, lab.a)
    else:
        finish(lab, guest)


@pytest.mark.parametrize("who", ["a", "b"])
def test_a_killed_orai_vm_goes_on_where_it_was(split, who):
    lab, guest = split()
    getattr(lab, who).kill("orai-vm", guest.name)
    finish(lab, guest)


@pytest.mark.parametrize("who", [pytest.param("a", marks=LONG), "b"])
def test_a_restarted_oraid_changes_nothing(split, who):
    lab, guest = split()
    getattr(lab, who).kill("oraid", guest.name)
    getattr(lab, who).restart()
    finish(lab, guest)


def test_a_cut_link_makes_the_guest_wait_and_nothing_else(split):
    lab, guest = split()
    before = borrows(lab.b, guest)["missing_bytes"]
    lab.a.link.cut()
    wait_until(lambda: (borrows(lab.b, guest) or {}).get("error"), 30, "b says what it waits for")
    assert lends(lab.a, guest)["to"] == "b"
    time.sleep(1)
    lab.a.link.heal()
    wait_until(lambda: (borrows(lab.b, guest) or {"missing_bytes": 0})["missing_bytes"] < before - MIB, 30, "it goes on")
    finish(lab, guest)


def test_what_is_lent_is_not_dropped_nor_run(split):
    lab, guest = split()
    with pytest.raises(OraiError) as failure:
        lab.a.orai("replica", "drop", guest.name)
    assert "blocks" in failure.value.err
    with pytest.raises(OraiError):
        lab.a.orai("start", guest.name)
    finish(lab, guest)


def test_moving_on_waits_until_the_disk_is_whole(split):
    lab, guest = split("a", "b", "c")
    lab.b.orai("move", guest.name, "c", timeout=120)
    assert lab.where(guest.name) == {"a": "replica", "b": "replica", "c": "running"}
    guest.check_alive()
    check_whole(guest, lab.c)


@pytest.mark.long
def test_auto_sends_a_large_disk_for_a_while_and_lets_the_rest_follow(labs, guests, tmp_path):
    lab = labs("a", "b", rate=SLOW)
    image = tmp_path / "big.raw"
    with open(image, "wb") as file:
        for _ in range(400):
            file.write(os.urandom(MIB))
    lab.a.orai("image", "add", "big", image)
    guest = guests(lab, lab.a, image="big", disk="420M", rate=20)
    result = lab.a.orai("move", guest.name, "b", json=True)
    assert any("mode hybrid" in note for note in result["notes"])
    assert 20 * MIB < result["disk_bytes"] < 250 * MIB, "as much as goes in 20 s"
    assert result["disk_later_bytes"] < 405 * MIB - result["disk_bytes"], "what went before does not go again"
    assert borrows(lab.b, guest)["missing_bytes"] > 100 * MIB
    for host in lab.hosts.values():
        host.link.limit(FAST)
    whole(lab.b, guest, lab.a)
    guest.quiet()
    check_whole(guest, lab.b)
    assert lab.b.orai("disk", "verify", guest.name, "--against", "a", json=True)["equal"]


@pytest.mark.long
def test_and_back_again_while_still_split(split):
    lab, guest = split()
    lab.b.orai("move", guest.name, "a", timeout=120)
    assert lab.where(guest.name) == {"a": "running", "b": "replica"}
    guest.check_alive()
    check_whole(guest, lab.a)


def test_a_split_guest_that_is_stopped_is_fetched_for_when_it_starts_again(split):
    lab, guest = split()
    last = guest.power_off(lab.b)
    lab.b.orai("start", guest.name)
    wait_until(lambda: lab.b.vm_state(guest.name) == "running", 30, "it runs again")
    whole(lab.b, guest, lab.a)
    lab.b.orai("kill", guest.name)
    guest.check_records(lab.b, last["durable"], last["written"])


def test_a_split_guest_is_started_though_its_first_block_is_still_away(labs, guests):
    """QEMU reads that block while it starts, before it answers anybody."""
    lab = labs("a", "b")
    guest = guests(lab, lab.a, rate=0)
    guest.ask("write 6000")
    lab.b.fault(guest.name, "fetch.begin", "hold")
    lab.a.orai("move", guest.name, "b", *SPLIT)
    lab.b.wait_fault_reached(guest.name, "fetch.begin")
    lab.b.kill("qemu", guest.name)
    lab.b.kill("orai-vm", guest.name)  # held at that point
    wait_until(lambda: lab.b.vm_state(guest.name) == "crashed", 20, "the guest has crashed")
    starting = lab.b.begin("start", guest.name)
    time.sleep(2)
    assert starting.poll() is None, "it waits for the block"
    lab.b.clear_fault(guest.name)
    _, err = starting.communicate(timeout=60)
    assert starting.returncode == 0, err
    guest.meet()
    finish(lab, guest)


def test_a_guest_that_waits_too_long_stands_still_and_sees_no_error(split):
    lab, guest = split()
    lab.a.link.cut()
    cut = time.monotonic()
    wait_until(lambda: lab.b.vm_state(guest.name) == "paused", 60, "the guest stands still")
    assert time.monotonic() - cut > 20
    assert "only a has" in lab.b.vm(guest.name)["reason"]
    lab.a.link.heal()
    wait_until(lambda: lab.b.vm_state(guest.name) == "running", 30, "it goes on by itself")
    finish(lab, guest)


# --- who lends, and is not heard of any more ------------------------------------------------------------------------

def test_a_lender_that_missed_the_end_takes_the_vm_again(split):
    """The VM went on to a third host meanwhile: it can do that only when it is whole."""
    lab, guest = split("a", "b", "c")
    lab.b.fault(guest.name, "fetch.release", "hold")
    lab.a.link.limit(FAST)
    lab.b.wait_fault_reached(guest.name, "fetch.release")
    lab.a.link.cut()
    lab.b.clear_fault(guest.name)
    lab.b.orai("move", guest.name, "c")
    lab.a.link.heal()
    assert lends(lab.a, guest) and lab.a.vm_state(guest.name) == "replica"
    lab.c.orai("move", guest.name, "a")
    assert lab.where(guest.name) == {"a": "running", "b": "replica", "c": "replica"}
    guest.quiet()
    guest.check_alive()
    check_whole(guest, lab.a)


@pytest.mark.parametrize("how", ["start", pytest.param("drop", marks=LONG)])
def test_a_borrower_that_is_lost_for_good(split, how):
    """What b had written is lost with it. A human says so; nothing else ends the lending."""
    lab, guest = split(records=3000)
    for kind in ("oraid", "orai-vm", "qemu"):
        lab.b.kill(kind, guest.name)
    with pytest.raises(OraiError, match="--force"):
        lab.a.orai("replica", "drop", guest.name)
    with pytest.raises(OraiError, match="--fork-old-copy"):
        lab.a.orai("start", guest.name)
    assert lends(lab.a, guest)
    if how == "drop":
        lab.a.orai("replica", "drop", guest.name, "--force")
        assert lab.a.vm(guest.name) is None and not lab.a.image_file(guest.name).exists()
        return
    lab.a.orai("start", guest.name, "--fork-old-copy")
    guest.meet()
    assert guest.status()["disk_errors"] == 0
    check_whole(guest, lab.a)
