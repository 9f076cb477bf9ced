# SPDX-License-Identifier: Apache-2.0
"""Moves in which the guest is there before its memory. Until the commit everything can be taken back; then a broken link
makes it wait, and what dies with a process is said to have crashed."""

import json
import socket
import time
from pathlib import Path

import pytest

from host import MIB, OraiError, wait_until
from test_qemu10 import new_qemu  # noqa: F401

SLOW, FAST = 60_000_000, 1_000_000_000  # bits per second
ALLOWED = Path("/proc/sys/vm/unprivileged_userfaultfd")


@pytest.fixture(autouse=True)
def userfaultfd():
    """As the package's sysctl.d does it; what the machine had is restored."""
    before = ALLOWED.read_text()
    ALLOWED.write_text("1")
    yield
    ALLOWED.write_text(before)


@pytest.fixture
def busy(labs, guests):
    """A guest that writes to memory and disk: (lab, guest)."""
    def make(*names, **options):
        lab = labs(*(names or ("a", "b")), **options)
        return lab, guests(lab, lab.a, disk="64M", region=16 * MIB, pattern=24, dirty=2, rate=50)
    return make


def begin(guest, source, target, *options):
    return source.begin("move", guest.name, target.name, "--memory", "postcopy", "--format", "json", *options)


def result_of(mover, timeout=120):
    out, err = mover.communicate(timeout=timeout)
    assert mover.returncode == 0, err
    return json.loads(out)


def follows(lab, guest):
    """The guest runs on b, and some of its memory is still on a."""
    move = lab.a.vm(guest.name)["move"]
    return move and move["stage"] == "finish" and move["phase"] == "memory" and move["memory"]["remaining_bytes"] > 0


def begin_slowly(lab, guest, *options):
    """The cable is slow from the switch on, so that memory takes seconds to follow."""
    lab.a.fault(guest.name, "source.commit.begin", "hold")
    mover = begin(guest, lab.a, lab.b, *options)
    lab.a.wait_fault_reached(guest.name, "source.commit.begin")
    lab.a.link.limit(SLOW)
    lab.a.clear_fault(guest.name)
    wait_until(lambda: follows(lab, guest), 20, "its memory follows")
    return mover


def check_moved(lab, guest, host):
    states = lab.where(guest.name)
    assert states[host.name] == "running" and list(states.values()).count("running") == 1
    guest.check_alive()
    last = guest.power_off(host)
    guest.check_records(host, last["durable"], last["written"])


def check_stayed(lab, guest, mover):
    mover.communicate(timeout=60)
    assert mover.returncode != 0
    wait_until(lambda: lab.where(guest.name)["a"] == "running", 30, "it runs on a")
    guest.check_alive()
    lab.a.orai("move", guest.name, "b", "--memory", "postcopy")
    check_moved(lab, guest, lab.b)


def crashed(host, guest):
    wait_until(lambda: host.vm_state(guest.name) == "crashed", 40, f"it has crashed on {host.name}")
    return host.vm(guest.name)["reason"]


# --- what it is for ---------------------------------------------------------------------------------------------------

LONG = pytest.mark.long


@pytest.mark.parametrize("disks", [pytest.param("precopy", marks=LONG), "postcopy"])
def test_there_and_back_under_load(busy, disks):
    lab, guest = busy()
    for source, target in ((lab.a, lab.b), (lab.b, lab.a)):
        result = result_of(begin(guest, source, target, "--mode", disks))
        assert result["state"] == "moved" and result["notes"] == []
        before = result["memory_bytes"] - result["memory_later_bytes"]
        assert before < result["memory_later_bytes"] / 4, "what QEMU had sent when the destination was ready"
        assert result["memory_later_bytes"] > 24 * MIB and result["running_seconds"] <= result["seconds"]
        guest.check_alive()
    check_moved(lab, guest, lab.a)


def test_the_guest_runs_while_its_memory_follows(busy):
    lab, guest = busy()
    mover = begin_slowly(lab, guest)
    written = guest.check_alive()["written"]
    wait_until(lambda: guest.check_alive()["written"] > written + 20, 30, "it writes")
    assert follows(lab, guest), "and its memory is still on its way"
    assert lab.where(guest.name) == {"a": "committed", "b": "arriving"}
    result_of(mover)
    check_moved(lab, guest, lab.b)


def tell(host, guest, verb):
    """Asks its orai-vm for what only orai-vm offers so far."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as control:
        control.connect(str(host.run_dir / "vms" / guest.name / "control.sock"))
        control.send(json.dumps({"do": verb}).encode())
        assert json.loads(control.recv(65536))["ok"]


def test_a_paused_guest_stays_paused(busy):
    lab, guest = busy()
    tell(lab.a, guest, "pause")
    result_of(begin(guest, lab.a, lab.b))
    assert lab.b.vm_state(guest.name) == "paused"
    tell(lab.b, guest, "resume")
    wait_until(lambda: lab.b.vm_state(guest.name) == "running", 10, "it runs")
    check_moved(lab, guest, lab.b)


@pytest.mark.parametrize("one,other", [("7.2", "10.0"), pytest.param("10.0", "7.2", marks=LONG),
                                       pytest.param("10.0", "10.0", marks=LONG)])
def test_between_qemus(busy, new_qemu, one, other):  # noqa: F811
    qemus = {name: new_qemu for name, version in (("a", one), ("b", other)) if version == "10.0"}
    lab, guest = busy(qemus=qemus)
    result_of(begin(guest, lab.a, lab.b))
    result_of(begin(guest, lab.b, lab.a))
    check_moved(lab, guest, lab.a)


def test_where_userfaultfd_is_forbidden_memory_goes_first(busy):
    ALLOWED.write_text("0")
    lab, guest = busy()
    planned = result_of(begin(guest, lab.a, lab.b, "--dry-run"))
    assert "before the switch" in planned["notes"][0] and "unprivileged_userfaultfd" in planned["notes"][0]
    result = result_of(begin(guest, lab.a, lab.b))
    assert result["memory_later_bytes"] == 0
    assert "before the switch" in result["notes"][0] and "unprivileged_userfaultfd" in result["notes"][0]
    check_moved(lab, guest, lab.b)


# --- before the commit: taken back --------------------------------------------------------------------------------

@pytest.mark.parametrize("qemu", ["7.2", "10.0"])
@pytest.mark.parametrize("kind", ["cancel", pytest.param("kill-qemu", marks=LONG), pytest.param("kill-orai-vm", marks=LONG),
                                  pytest.param("cut", marks=LONG)])
def test_taken_back_after_qemu_has_switched(busy, new_qemu, kind, qemu):  # noqa: F811
    lab, guest = busy(qemus={"a": new_qemu, "b": new_qemu} if qemu == "10.0" else {})
    lab.a.fault(guest.name, "source.pause.end", "hold")
    mover = begin(guest, lab.a, lab.b)
    lab.a.wait_fault_reached(guest.name, "source.pause.end")
    if kind == "cancel":
        lab.a.orai("cancel", guest.name)
    elif kind == "cut":
        lab.a.link.cut()
        time.sleep(10)
    else:
        lab.b.kill(kind.removeprefix("kill-"), guest.name)
        time.sleep(0.5)
    lab.a.clear_fault(guest.name)
    if kind == "cut":
        mover.communicate(timeout=60)
        lab.a.link.heal()
    check_stayed(lab, guest, mover)


# --- after it: the link ---------------------------------------------------------------------------------------------

@pytest.mark.parametrize("seconds", [1, pytest.param(12, marks=LONG)])
def test_a_cut_link_makes_the_guest_wait(busy, seconds):
    """12 s: longer than either side waits before it calls the connection dead."""
    lab, guest = busy()
    mover = begin_slowly(lab, guest)
    for _ in range(2):
        lab.a.link.cut()
        time.sleep(seconds)
        lab.a.link.heal()
        time.sleep(1)
    result_of(mover)
    check_moved(lab, guest, lab.b)


@pytest.mark.parametrize("point", ["source.commit.written", pytest.param("source.finish.begin", marks=LONG),
                                   pytest.param("destination.finish.begin", marks=LONG)])
def test_a_link_cut_around_the_commit(busy, point):
    lab, guest = busy()
    host = lab.a if point.startswith("source") else lab.b
    host.fault(guest.name, point, "hold")
    mover = begin(guest, lab.a, lab.b)
    host.wait_fault_reached(guest.name, point)
    lab.a.link.cut()
    time.sleep(10)
    host.clear_fault(guest.name)
    time.sleep(1)
    lab.a.link.heal()
    result_of(mover)
    check_moved(lab, guest, lab.b)


@pytest.mark.long
@pytest.mark.parametrize("who", ["a", "b"])
def test_a_restarted_oraid_changes_nothing(busy, who):
    lab, guest = busy()
    mover = begin_slowly(lab, guest)
    getattr(lab, who).kill("oraid", guest.name)
    getattr(lab, who).restart()
    mover.communicate(timeout=60)
    wait_until(lambda: lab.where(guest.name) == {"a": "replica", "b": "running"}, 60, "it is over")
    check_moved(lab, guest, lab.b)


def test_a_destination_lost_for_good_leaves_the_guest_of_the_switch(busy):
    """What it did since then is lost; a human has to say so."""
    lab, guest = busy()
    guest.quiet()
    mover = begin_slowly(lab, guest)
    lab.b.link.cut()
    lab.b.kill("orai-vm", guest.name)  # the next one ends QEMU
    with pytest.raises(OraiError):
        lab.a.orai("start", guest.name)
    lab.a.orai("recover", guest.name, "--run-here", "--yes")
    mover.communicate(timeout=60)
    wait_until(lambda: lab.a.vm_state(guest.name) == "running", 30, "it runs on a")
    guest.meet()
    assert guest.status()["mem_errors"] == 0


# --- after it: whoever dies takes the guest's memory along ----------------------------------------------------------

@pytest.mark.parametrize("kind", ["orai-vm", "qemu"])
@pytest.mark.parametrize("who", ["a", "b"])
def test_killed_while_memory_follows(busy, who, kind):
    lab, guest = busy()
    durable = guest.ask("sync")["durable"]
    mover = begin_slowly(lab, guest)
    getattr(lab, who).kill(kind, guest.name)
    reason = crashed(lab.b, guest)
    assert reason, "and says why"
    if (who, kind) != ("b", "qemu"):
        assert "memory" in reason
    mover.communicate(timeout=60)
    wait_until(lambda: lab.a.vm_state(guest.name) == "replica", 60, "a only has a copy")
    guest.check_records(lab.b, durable)
    with pytest.raises(OraiError):
        lab.a.orai("start", guest.name)
    guest.start(lab.b)
    guest.check_alive()


def test_the_guest_can_be_killed_while_its_memory_follows(busy):
    lab, guest = busy()
    mover = begin_slowly(lab, guest)
    lab.b.orai("kill", guest.name)
    wait_until(lambda: lab.b.vm_state(guest.name) not in ("running", "arriving"), 20, "it is off")
    assert lab.b.vm_state(guest.name) == "stopped", "by a human's wish, not by a crash"
    mover.communicate(timeout=60)
    wait_until(lambda: lab.a.vm_state(guest.name) == "replica", 60, "a only has a copy")


@pytest.mark.parametrize("who,kind", [("a", "orai-vm"), ("b", "orai-vm"), pytest.param("a", "qemu", marks=LONG),
                                      pytest.param("b", "qemu", marks=LONG)])
def test_killed_while_memory_and_disk_follow(busy, who, kind):
    """The memory is lost, the disk still comes."""
    lab, guest = busy()
    mover = begin_slowly(lab, guest, "--mode", "postcopy")
    getattr(lab, who).kill(kind, guest.name)
    assert crashed(lab.b, guest)
    lab.a.link.limit(FAST)
    mover.communicate(timeout=60)
    guest.start(lab.b)
    guest.check_alive()
    wait_until(lambda: lab.b.vm(guest.name)["borrows"] is None, 60, "all of the disk is on b")
    wait_until(lambda: lab.a.vm_state(guest.name) == "replica" and not lab.a.vm(guest.name)["lends"], 20,
               "a lends nothing any more")
    check_moved(lab, guest, lab.b)
    lab.b.orai("disk", "verify", guest.name, "--against", "a")


def test_a_guest_that_was_started_again_has_all_its_memory(busy):
    """Host b goes down while memory follows; what its record says of that ends with the next start."""
    lab, guest = busy()
    mover = begin_slowly(lab, guest)
    wait_until(lambda: json.loads((lab.b.state / "vms" / guest.name / "epoch.json").read_text())["role"] == "owner", 20,
               "b owns it")
    for kind in ("oraid", "orai-vm", "qemu"):
        lab.b.kill(kind, guest.name)
    lab.b.restart()
    mover.communicate(timeout=60)
    crashed(lab.b, guest)
    guest.start(lab.b)
    guest.check_alive()
    lab.b.kill("orai-vm", guest.name)
    wait_until(lambda: lab.b.pid_of("orai-vm", guest.name) and lab.b.vm_state(guest.name) == "running", 20, "a new one")
    check_moved(lab, guest, lab.b)


@pytest.mark.parametrize("qemu", ["7.2", "10.0"])
def test_a_return_path_that_makes_no_sense(busy, new_qemu, qemu):  # noqa: F811
    """Version 10 then gives up at the end of its stream, and would continue the guest, which runs on b."""
    lab, guest = busy(qemus={"a": new_qemu, "b": new_qemu} if qemu == "10.0" else {})
    durable = guest.ask("sync")["durable"]
    mover = begin_slowly(lab, guest)
    lab.b.fault(guest.name, "destination.back", "flip")
    lab.b.wait_fault_reached(guest.name, "destination.back")
    lab.a.link.limit(FAST)
    mover.communicate(timeout=60)
    wait_until(lambda: lab.where(guest.name)["a"] == "replica" and not lab.a.pid_of("qemu", guest.name), 60,
               "nothing of it is left on a")
    if qemu == "10.0":
        assert "QEMU continued the guest after the hand-over: it is ended" in lab.a.log()
    wait_until(lambda: lab.b.vm_state(guest.name) in ("running", "crashed"), 20, "its fate is known")
    if lab.b.vm_state(guest.name) == "crashed":
        assert "memory" in lab.b.vm(guest.name)["reason"]
        guest.check_records(lab.b, durable)
        guest.start(lab.b)
    check_moved(lab, guest, lab.b)
