# SPDX-License-Identifier: Apache-2.0
"""Memory follows the guest, and what dies is an orai-vm: the next one and both QEMUs go on where it was."""

import ctypes
import json
import os
import socket
import time

import pytest

from host import OraiError, wait_until
from test_memory import FAST, begin, begin_slowly, busy, check_moved, crashed, follows  # noqa: F401
from test_qemu10 import new_qemu  # noqa: F401

pytestmark = [pytest.mark.together("userfaultfd"), pytest.mark.usefixtures("userfaultfd")]

LONG = pytest.mark.long
QEMUS = ["7.2", pytest.param("10.0", marks=LONG)]


@pytest.fixture
def following(busy, new_qemu):  # noqa: F811
    """A guest that runs on b while its memory follows: (lab, guest, what moves it)."""
    def make(qemu="7.2", *options, **more):
        lab, guest = busy(qemus={"a": new_qemu, "b": new_qemu} if qemu == "10.0" else {}, **more)
        return lab, guest, begin_slowly(lab, guest, *options)
    return make


def new_vm(host, guest):
    """Another orai-vm, which the host has started by itself."""
    wait_until(lambda: host.pid_of("orai-vm", guest.name), 20, f"{host.name} starts another orai-vm")


def finish(lab, guest, mover, fast=True):
    if fast:
        lab.a.link.limit(FAST)
    mover.communicate(timeout=120)
    wait_until(lambda: lab.where(guest.name) == {"a": "replica", "b": "running"}, 60, "all of it is on b")
    assert guest.status()["mem_errors"] == 0
    check_moved(lab, guest, lab.b)


@pytest.mark.parametrize("who,qemu", [("a", "7.2"), ("b", "7.2"), ("ab", "7.2"), ("ab", "10.0"),
                                      pytest.param("a", "10.0", marks=LONG), pytest.param("b", "10.0", marks=LONG)])
def test_a_lost_orai_vm_makes_the_guest_wait(following, who, qemu):
    lab, guest, mover = following(qemu)
    pids = [lab.b.pid_of("qemu", guest.name), lab.a.pid_of("qemu", guest.name)]
    for name in who:
        getattr(lab, name).kill("orai-vm", guest.name)
    for name in who:
        new_vm(getattr(lab, name), guest)
    written = guest.check_alive()["written"]
    wait_until(lambda: guest.check_alive()["written"] > written, 30, "it goes on")
    assert pids == [lab.b.pid_of("qemu", guest.name), lab.a.pid_of("qemu", guest.name)], "all of this before its end"
    finish(lab, guest, mover)


def test_disks_that_follow_too(following):
    lab, guest, mover = following("7.2", "--mode", "postcopy")
    for name in "ba":
        getattr(lab, name).kill("orai-vm", guest.name)
        new_vm(getattr(lab, name), guest)
    lab.a.link.limit(FAST)
    mover.communicate(timeout=120)
    wait_until(lambda: lab.where(guest.name)["b"] == "running" and lab.b.vm(guest.name)["borrows"] is None, 60, "all of it is on b")
    wait_until(lambda: lab.a.vm_state(guest.name) == "replica" and not lab.a.vm(guest.name)["lends"], 20, "a lends nothing any more")
    check_moved(lab, guest, lab.b)
    lab.b.orai("disk", "verify", guest.name, "--against", "a")


def test_and_back_again(following):
    """Nothing of it is left that could be in the way of the next move."""
    lab, guest, mover = following()
    lab.b.kill("orai-vm", guest.name)
    lab.a.link.limit(FAST)
    mover.communicate(timeout=120)
    wait_until(lambda: lab.where(guest.name) == {"a": "replica", "b": "running"}, 60, "all of it is on b")
    lab.b.orai("refresh", guest.name)
    lab.b.orai("move", guest.name, "a", "--memory", "postcopy")
    assert guest.status()["mem_errors"] == 0
    check_moved(lab, guest, lab.a)


def say_out_of_band(host, guest, command):
    """On the monitor that QEMU keeps for this."""
    pidfd = os.pidfd_open(host.pid_of("qemu", guest.name))
    fd = ctypes.CDLL(None, use_errno=True).syscall(438, pidfd, 4, 0)  # pidfd_getfd
    os.close(pidfd)
    with socket.socket(fileno=fd) as monitor:
        monitor.send(json.dumps({"exec-oob": command, "id": "test"}).encode() + b"\n")


@pytest.mark.parametrize("qemu", QEMUS)
def test_a_destination_that_pauses_by_itself(following, qemu):
    lab, guest, mover = following(qemu)
    for times in range(2):
        say_out_of_band(lab.b, guest, "migrate-pause")
        wait_until(lambda: lab.a.log().count("QEMU goes on with the memory") > times, 30, "it is mended")
    finish(lab, guest, mover)


# --- again while that is mended -------------------------------------------------------------------------------------

POINTS = [pytest.param("a", "source.recover.begin", marks=LONG), ("a", "source.recover.asked"),
          pytest.param("a", "source.recover.end", marks=LONG), pytest.param("b", "destination.recover.begin", marks=LONG),
          ("b", "destination.recover.listening"), pytest.param("b", "destination.recover.end", marks=LONG)]


@pytest.mark.parametrize("qemu", QEMUS)
@pytest.mark.parametrize("who,point", POINTS)
def test_lost_again(following, who, point, qemu):
    lab, guest, mover = following(qemu)
    host = getattr(lab, who)
    host.fault(guest.name, point, "kill")
    host.kill("orai-vm", guest.name)
    host.wait_fault_reached(guest.name, point)
    host.clear_fault(guest.name)
    finish(lab, guest, mover)


@pytest.mark.parametrize("who,point", [POINTS[0], pytest.param(*POINTS[1], marks=LONG), POINTS[3], ("b", "destination.recover.end")])
def test_the_link_cut_at_that_moment(following, who, point):
    """12 s: longer than either side waits before it calls the connection dead."""
    lab, guest, mover = following()
    host = getattr(lab, who)
    host.fault(guest.name, point, "hold")
    lab.b.kill("orai-vm", guest.name)
    host.wait_fault_reached(guest.name, point)
    lab.a.link.cut()
    time.sleep(1)
    host.clear_fault(guest.name)
    time.sleep(12)
    lab.a.link.heal()
    finish(lab, guest, mover)


def test_lost_while_the_link_is_cut(following):
    lab, guest, mover = following()
    lab.a.link.cut()
    for name in "ab":
        getattr(lab, name).kill("orai-vm", guest.name)
        new_vm(getattr(lab, name), guest)
    time.sleep(12)
    lab.a.link.heal()
    finish(lab, guest, mover)


@pytest.mark.parametrize("qemu", QEMUS)
def test_the_source_lost_at_the_very_end(busy, new_qemu, qemu):  # noqa: F811
    """When its QEMU has sent its last byte it cannot send again. Either b has all, or the guest's memory is lost, which
    b says; never does it run on both."""
    lab, guest = busy(qemus={"a": new_qemu, "b": new_qemu} if qemu == "10.0" else {})
    durable = guest.ask("sync")["durable"]
    mover = begin_slowly(lab, guest)
    wait_until(lambda: not follows(lab, guest), 60, "QEMU has sent all")
    if lab.a.pid_of("orai-vm", guest.name):
        lab.a.kill("orai-vm", guest.name)
    mover.communicate(timeout=120)
    wait_until(lambda: lab.where(guest.name)["a"] == "replica" and not lab.a.pid_of("qemu", guest.name), 60, "nothing of it is left on a")
    wait_until(lambda: lab.b.vm_state(guest.name) in ("running", "crashed"), 30, "its fate is known")
    if lab.b.vm_state(guest.name) == "crashed":
        assert "memory" in lab.b.vm(guest.name)["reason"]
        guest.check_records(lab.b, durable)
        guest.start(lab.b)
    check_moved(lab, guest, lab.b)


# --- the guest of the switch ----------------------------------------------------------------------------------------

@pytest.mark.parametrize("qemu", QEMUS)
def test_a_human_takes_the_guest_back_from_a_lost_orai_vm(busy, new_qemu, qemu):  # noqa: F811
    lab, guest = busy(qemus={"a": new_qemu, "b": new_qemu} if qemu == "10.0" else {})
    guest.quiet()
    mover = begin_slowly(lab, guest)
    lab.b.link.cut()
    for kind in ("oraid", "orai-vm", "qemu"):
        lab.b.kill(kind, guest.name)
    lab.a.kill("orai-vm", guest.name)
    new_vm(lab.a, guest)

    def decided():
        try:
            return lab.a.orai("recover", guest.name, "--run-here", "--yes") is not None
        except OraiError:
            return False
    wait_until(decided, 20, "the new one can be told")
    mover.communicate(timeout=60)
    wait_until(lambda: lab.a.vm_state(guest.name) == "running", 60, "it runs on a")
    guest.meet()
    assert guest.status()["mem_errors"] == 0


@pytest.mark.parametrize("qemu", QEMUS)
def test_lost_before_the_commit(busy, new_qemu, qemu):  # noqa: F811
    """QEMU has switched, b is ready, and a has not said that the guest is b's."""
    lab, guest = busy(qemus={"a": new_qemu, "b": new_qemu} if qemu == "10.0" else {})
    lab.a.fault(guest.name, "source.pause.end", "kill")
    mover = begin(guest, lab.a, lab.b)
    lab.a.wait_fault_reached(guest.name, "source.pause.end")
    lab.a.clear_fault(guest.name)
    mover.communicate(timeout=60)
    wait_until(lambda: lab.a.vm_state(guest.name) == "running", 60, "it runs on a")
    guest.check_alive()
    lab.b.orai("cancel", guest.name)
    wait_until(lambda: lab.b.pid_of("qemu", guest.name) is None, 30, "b has given it up")
    assert guest.status()["mem_errors"] == 0
    lab.a.orai("move", guest.name, "b", "--memory", "postcopy")
    check_moved(lab, guest, lab.b)


# --- what is lost ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("who", [pytest.param("a", marks=LONG), "b"])
def test_a_host_without_power(following, who):
    """The guest's memory is gone, its disks are not."""
    lab, guest, mover = following()
    durable = guest.ask("sync")["durable"]
    host = getattr(lab, who)
    for kind in ("oraid", "orai-vm", "qemu"):
        host.kill(kind, guest.name)
    time.sleep(1)
    host.restart()
    reason = crashed(lab.b, guest)
    assert "memory" in reason if who == "a" else reason
    mover.communicate(timeout=60)
    wait_until(lambda: lab.a.vm_state(guest.name) == "replica", 60, "a only has a copy")
    guest.check_records(lab.b, durable)
    guest.start(lab.b)
    guest.check_alive()
