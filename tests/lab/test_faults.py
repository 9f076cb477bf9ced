# SPDX-License-Identifier: Apache-2.0
"""A move in which something breaks: whatever and whenever it is, the guest runs on exactly one host afterwards, was
never run twice, and has every record that it was promised.

One exception is a crashed guest: its QEMU was killed where it ran. It must be startable there, and nowhere else.
The normal run takes a representative part of the matrix, --long all of it (see faults.py).
"""

import json
import time

import pytest

import faults
from host import OraiError, wait_until
from lab import Lab
from tiny import MIB, TinyGuest

SETTLE = 90
LOST_QEMU = {"kill-source-qemu", "kill-destination-qemu"}


class World:
    """Two hosts and a guest for many stories one after the other; a new one after a story that failed."""

    def __init__(self):
        self.lab = self.guest = None

    def get(self):
        if self.lab is None:
            self.lab = Lab("a", "b")
            self.guest = TinyGuest(self.lab, self.lab.a, disk="64M", region=16 * MIB, pattern=8, dirty=1, rate=50)
        return self.lab, self.guest

    def drop(self):
        if self.guest:
            self.guest.close()
        if self.lab:
            self.lab.close()
        self.lab = self.guest = None


@pytest.fixture(scope="module")
def shared():
    world = World()
    yield world
    world.drop()


@pytest.fixture
def world(shared, request):
    yield shared
    if getattr(request.node, "has_failed", True):
        shared.drop()


def home_of(lab, name):
    """The one host on which the guest runs or has crashed; None while that is not settled."""
    states = lab.where(name)
    homes = [host for host, state in states.items() if state in ("running", "crashed", "failed")]
    busy = [host for host, state in states.items() if state in ("leaving", "committed", "starting", "paused", "unresponsive")]
    return getattr(lab, homes[0]) if len(homes) == 1 and not busy else None


def settle(lab, guest):
    """Where the guest is, once two looks in a row say the same."""
    def look_twice():
        home = home_of(lab, guest.name)
        time.sleep(0.3)
        return home if home_of(lab, guest.name) is home else None
    try:
        return wait_until(look_twice, SETTLE, "the guest is on exactly one host")
    except TimeoutError as e:
        raise AssertionError(f"{e}; it is {lab.where(guest.name)}") from None


def other(lab, host):
    return lab.b if host is lab.a else lab.a


def check_whole(guest, home):
    """It lives, and all that was promised durable is in its image."""
    guest.check_alive()
    status = guest.quiet()
    guest.check_records(home, status["durable"])
    guest.ask("dirty 1")
    guest.ask("rate 50")
    guest.check_alive()


def restart_crashed(lab, guest, home, durable):
    """A crashed guest: nothing promised is lost, nobody else may start it, its host may."""
    guest.check_records(home, durable)
    with pytest.raises(OraiError):
        other(lab, home).orai("start", guest.name, timeout=60)
    guest.start(home)


def strike(lab, guest, point, kind):
    """A move that stands at `point`, and what happens there. False: there was nothing to strike."""
    source = settle(lab, guest)
    scene = faults.Scene(lab, guest, source, other(lab, source), point)
    victim = scene.host(scene.side)
    victim.fault(guest.name, point, faults.action(kind))
    mover = source.begin("move", guest.name, scene.destination.name)
    wait_until(lambda: victim.has_reached(guest.name, point) or mover.poll() is not None, 60, f"the move reaches {point}")
    if not victim.has_reached(guest.name, point):
        raise AssertionError(f"the move ended before {point}: {mover.communicate()[1]}")
    done = faults.KINDS[kind](scene) is not False
    scene.go_on()
    return done, mover


def story(world, point, kind):
    lab, guest = world.get()
    durable = guest.ask("sync")["durable"]
    done, mover = strike(lab, guest, point, kind)
    mover.communicate(timeout=SETTLE)
    home = settle(lab, guest)
    if home.vm_state(guest.name) == "running":
        check_whole(guest, home)
    else:
        assert kind in LOST_QEMU, f"the guest is {home.vm(guest.name)}"
        restart_crashed(lab, guest, home, durable)
    return done


def cases():
    chosen = faults.representative()
    rest = [case for case in faults.matrix() if case not in chosen]
    return ([pytest.param(*case, id="-".join(case)) for case in chosen] +
            [pytest.param(*case, id="-".join(case), marks=pytest.mark.long) for case in rest])


@pytest.mark.parametrize("point, kind", cases())
def test_the_guest_survives(world, request, point, kind):
    request.node.has_failed = True
    done = story(world, point, kind)
    request.node.has_failed = False
    if not done:
        pytest.skip("what this would kill does not run at this point")


def test_every_stage_has_every_fault():
    covered = {(point.split(".")[1], kind) for point, kind in faults.representative()}
    assert faults.stages() and len(faults.stages()) == len(set(faults.stages()))
    missing = [(stage, kind) for stage in faults.stages() for kind in faults.KINDS if (stage, kind) not in covered]
    assert not missing
    assert {point for point, _ in faults.representative()} == set(faults.points())


def test_a_qemu_at_the_destination_that_stands_still(lab, guests):
    """Nobody waits for it without an end: the guest goes on where it was."""
    guest = guests(lab, lab.a, disk="64M", region=16 * MIB, pattern=8, dirty=1, rate=50)
    lab.a.fault(guest.name, "source.pause.begin", "hold")
    mover = lab.a.begin("move", guest.name, "b")
    lab.a.wait_fault_reached(guest.name, "source.pause.begin")
    lab.b.freeze("qemu", guest.name)
    lab.a.clear_fault(guest.name)
    _, err = mover.communicate(timeout=90)
    assert mover.returncode != 0 and "host" in err, err
    wait_until(lambda: lab.b.pid_of("qemu", guest.name) is None, 60, "b has cleaned up")
    check_whole(guest, settle(lab, guest))
    assert lab.where(guest.name)["a"] == "running"


def test_the_destination_disk_is_full(labs, guests):
    lab = labs("a", "b", disk_sizes={"b": 96 * MIB})
    guest = guests(lab, lab.a, disk="128M", rate=0)
    guest.ask("write 12000")
    lab.b.fill_disk(leave=12 * MIB)
    with pytest.raises(OraiError) as failure:
        lab.a.orai("move", guest.name, "b", timeout=120)
    assert "space" in failure.value.err and "b" in failure.value.err
    check_whole(guest, settle(lab, guest))
    assert lab.where(guest.name)["a"] == "running"


def test_the_destination_disk_fills_up_on_the_way(labs, guests):
    lab = labs("a", "b", disk_sizes={"b": 160 * MIB})
    guest = guests(lab, lab.a, disk="128M", rate=0)
    guest.ask("write 12000")
    mover = lab.a.begin("move", guest.name, "b", "--bandwidth", "80M")
    wait_until(lambda: (lab.a.vm(guest.name)["move"] or {}).get("disk", {}).get("sent_bytes", 0) > 4 * MIB, 30, "it moves")
    lab.b.fill_disk()
    _, err = mover.communicate(timeout=120)
    assert mover.returncode != 0 and "space" in err
    check_whole(guest, settle(lab, guest))
    assert lab.where(guest.name)["a"] == "running"
    lab.b.free_disk()
    lab.a.orai("move", guest.name, "b")
    check_whole(guest, lab.b)


def test_the_destination_qemu_refuses_to_start(labs, guests, tmp_path):
    lab = labs("a", "b")
    guest = guests(lab, lab.a, rate=0)
    broken = lab.folder / "qemu"
    broken.write_text("#!/bin/sh\n"
                      "for word; do [ \"$word\" = -incoming ] && { echo out of luck >&2; exit 1; }; done\n"
                      "exec qemu-system-x86_64 \"$@\"\n")
    broken.chmod(0o755)
    lab.b.options += ["--qemu", broken]
    lab.b.restart()
    with pytest.raises(OraiError) as failure:
        lab.a.orai("move", guest.name, "b", timeout=120)
    assert "out of luck" in failure.value.err or "QEMU" in failure.value.err
    check_whole(guest, settle(lab, guest))
    lab.b.options = lab.b.options[:-2]
    lab.b.restart()
    lab.a.orai("move", guest.name, "b")
    check_whole(guest, lab.b)


def test_a_link_lost_for_good_at_the_commit_waits_for_a_human(labs, guests):
    lab = labs("a", "b")
    guest = guests(lab, lab.a)
    lab.a.fault(guest.name, "source.commit.written", "hold")
    mover = lab.a.begin("move", guest.name, "b")
    lab.a.wait_fault_reached(guest.name, "source.commit.written")
    lab.b.link.cut()
    lab.a.clear_fault(guest.name)
    time.sleep(faults.GONE)
    assert lab.where(guest.name)["a"] == "committed" and lab.where(guest.name)["b"] != "running"
    with pytest.raises(OraiError) as failure:
        lab.a.orai("start", guest.name, timeout=60)
    assert "recover" in failure.value.err
    # The human knows that b never heard of the commit.
    assert lab.where(guest.name)["b"] == "arriving"
    lab.a.orai("recover", guest.name, "--run-here", "--yes")
    wait_until(lambda: lab.where(guest.name)["a"] == "running", 20, "it runs on a")
    mover.communicate(timeout=60)
    guest.check_alive()
    lab.b.link.heal()
    time.sleep(3)
    assert lab.where(guest.name)["b"] != "running"
    check_whole(guest, lab.a)
    assert not guest.datagrams.twice


def test_a_source_that_was_cut_off_is_answered_after_the_guest_went_on(labs, guests):
    lab = labs("a", "b", "c")
    guest = guests(lab, lab.a)
    lab.b.fault(guest.name, "destination.commit.written", "hold")
    mover = lab.a.begin("move", guest.name, "b")
    lab.b.wait_fault_reached(guest.name, "destination.commit.written")
    lab.a.link.cut()
    lab.b.clear_fault(guest.name)
    wait_until(lambda: lab.where(guest.name)["b"] == "running", 20, "it runs on b")
    guest.check_alive()
    lab.b.orai("move", guest.name, "c")
    assert lab.where(guest.name)["a"] == "committed"
    lab.a.link.heal()
    wait_until(lambda: lab.where(guest.name)["a"] == "replica", 30, "a hears that b had taken it")
    mover.communicate(timeout=60)
    check_whole(guest, settle(lab, guest))
    assert lab.where(guest.name) == {"a": "replica", "b": "replica", "c": "running"}


def epoch_role(host, guest):
    try:
        return json.loads((host.state / "vms" / guest.name / "epoch.json").read_text())["role"]
    except FileNotFoundError:
        return None


@pytest.mark.long
def test_a_first_arrival_killed_before_its_vm_json_leaves_nothing(labs, guests):
    lab = labs("a", "b", rate=30_000_000)  # the kernel takes a while to come, and vm.json comes after it
    guest = guests(lab, lab.a, rate=0)
    mover = lab.a.begin("move", guest.name, "b")
    wait_until(lambda: epoch_role(lab.b, guest) == "arriving", 30, "b records the arrival")
    lab.b.kill("orai-vm", guest.name)
    assert not (lab.b.state / "vms" / guest.name / "vm.json").exists(), "killed too late for this story"
    mover.communicate(timeout=60)
    wait_until(lambda: lab.b.vm(guest.name) is None, 20, "b forgets the arrival")
    assert lab.where(guest.name) == {"a": "running"}
    lab.a.orai("move", guest.name, "b")
    check_whole(guest, lab.b)


def test_an_older_state_of_a_block_never_replaces_a_newer_one(labs, guests):
    """One data connection stands still with a block of the first round; the block is written again and goes over in the
    next round, on the other connection."""
    lab = labs("a", "b")
    guest = guests(lab, lab.a, disk="64M", region=1 * MIB, dirty=4, rate=0)
    guest.ask("write 400")
    guest.ask("sync")
    lab.b.fault(guest.name, "destination.run.0", "hold")
    mover = lab.a.begin("move", guest.name, "b", "--mode", "precopy")
    lab.b.wait_fault_reached(guest.name, "destination.run.0")
    for _ in range(6):  # side rounds, each with nearly all of the region's blocks
        guest.ask("write 300")
        guest.ask("sync")
        time.sleep(0.3)
    lab.b.clear_fault(guest.name)
    _, err = mover.communicate(timeout=60)
    assert mover.returncode == 0, err
    guest.check_alive()
    last = guest.power_off(lab.b)
    guest.check_records(lab.b, last["durable"], last["written"])


def test_refusing_again_and_again_is_no_obstacle(labs, guests):
    """Each of these tries was ready there, and so refused durably; the copy there is as old as before."""
    lab = labs("a", "b")
    guest = guests(lab, lab.a, rate=0)
    for _ in range(3):
        lab.a.fault(guest.name, "source.pause.end", "fail")
        with pytest.raises(OraiError):
            lab.a.orai("move", guest.name, "b")
        lab.a.clear_fault(guest.name)
        wait_until(lambda: lab.b.vm_state(guest.name) == "replica", 20, "b has given up")
        assert lab.b.vm(guest.name)["epoch"] <= lab.a.vm(guest.name)["epoch"]
    lab.a.orai("move", guest.name, "b")
    check_whole(guest, lab.b)
