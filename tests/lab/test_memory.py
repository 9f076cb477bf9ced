# SPDX-License-Identifier: Apache-2.0
"""Moves in which the guest is there before its memory. Until the commit everything can be taken back; then a broken link
makes it wait, and what dies with a process is said to have crashed."""

import json
import os
import re
import socket
import time
from pathlib import Path

import pytest

from host import MIB, OraiError, wait_until
from test_memory_return import PAGES, checkpoint, is_cheap, spoil_everywhere, vm_log
from test_qemu10 import new_qemu  # noqa: F401

pytestmark = [pytest.mark.together("userfaultfd"), pytest.mark.usefixtures("userfaultfd")]

SLOW, FAST = 60_000_000, 1_000_000_000  # bits per second


@pytest.fixture
def busy(labs, guests):
    """A guest that writes to memory and disk: (lab, guest)."""
    def make(*names, memory="96M", pattern=24, dirty=2, records=50, **options):
        lab = labs(*(names or ("a", "b")), **options)
        return lab, guests(lab, lab.a, memory=memory, disk="64M", region=16 * MIB, pattern=pattern, dirty=dirty, rate=records)
    return make


@pytest.fixture
def idle(busy):
    """One that does next to nothing."""
    return lambda *names, **options: busy(*names, dirty=0, records=0, **options)


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
QEMUS = ["7.2", pytest.param("10.0", marks=LONG)]


@pytest.mark.parametrize("disks", [pytest.param("precopy", marks=LONG), "postcopy"])
def test_there_and_back_under_load(busy, disks):
    lab, guest = busy()
    for source, target in ((lab.a, lab.b), (lab.b, lab.a)):
        result = result_of(begin(guest, source, target, "--mode", disks))
        assert result["state"] == "moved" and result["notes"] == []
        before = result["memory_bytes"] - result["memory_later_bytes"]
        assert before < MIB, "what had been sent when the destination was ready"
        if source is lab.a:
            assert result["memory_later_bytes"] > 24 * MIB
            assert result["memory_faults"] > 0 and 0 < result["memory_fault_ms"] <= result["memory_fault_p99_ms"]
        assert result["running_seconds"] <= result["seconds"]
        guest.check_alive()
        wait_until(lambda: checkpoint(source, guest).exists(), 20, "its memory is kept")
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


def resident(host, guest):
    """Bytes of its RAM that QEMU has touched."""
    status = Path(f"/proc/{host.pid_of('qemu', guest.name)}/status").read_text()
    return int(re.search(r"RssShmem:\s*(\d+) kB", status)[1]) * 1024


@pytest.mark.parametrize("qemu", QEMUS)
def test_memory_that_was_never_used_is_not_made(busy, new_qemu, qemu):  # noqa: F811
    lab, guest = busy(memory="768M", qemus={"a": new_qemu, "b": new_qemu} if qemu == "10.0" else {})
    used = resident(lab.a, guest)
    assert used < 256 * MIB
    mover = begin_slowly(lab, guest)
    guest.ask("write 3000")  # the guest's cache of its disk: pages that nobody had used, so they are asked for
    lab.a.link.limit(FAST)
    result_of(mover)
    assert resident(lab.b, guest) < used + 64 * MIB
    check_moved(lab, guest, lab.b)


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


def test_where_userfaultfd_is_forbidden_memory_goes_first(busy, userfaultfd):
    userfaultfd(False)
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
    for kind in ("oraid", "orai-vm", "qemu"):
        lab.b.kill(kind, guest.name)
    with pytest.raises(OraiError):
        lab.a.orai("start", guest.name)
    lab.a.orai("recover", guest.name, "--run-here", "--yes")
    mover.communicate(timeout=60)
    wait_until(lambda: lab.a.vm_state(guest.name) == "running", 30, "it runs on a")
    guest.meet()
    assert guest.status()["mem_errors"] == 0


# --- what the destination has is not sent -------------------------------------------------------------------------

def moved(guest, source, target, *options):
    result = result_of(begin(guest, source, target, *options))
    assert result["state"] == "moved"
    states = guest.lab.where(guest.name)
    assert states.pop(target.name) in ("running", "paused") and "running" not in states.values()
    wait_until(lambda: checkpoint(source, guest).exists(), 40, f"the memory is kept on {source.name}")
    return result


@pytest.mark.parametrize("qemu", ["7.2", "10.0"])
def test_the_way_back_sends_what_changed(idle, new_qemu, qemu):  # noqa: F811
    lab, guest = idle(qemus={"a": new_qemu, "b": new_qemu} if qemu == "10.0" else {})
    first = moved(guest, lab.a, lab.b)
    assert first["memory_found_bytes"] == 0 and first["memory_zero_bytes"] > 0
    assert checkpoint(lab.a, guest).stat().st_mode & 0o777 == 0o600 and not checkpoint(lab.b, guest).exists()
    is_cheap(moved(guest, lab.b, lab.a), first)
    assert not checkpoint(lab.a, guest).exists(), "it runs here"
    is_cheap(lab.a.orai("move", guest.name, "b", json=True), first)  # as well as with memory before the switch
    wait_until(lambda: checkpoint(lab.a, guest).exists(), 40, "its memory is kept")
    guest.ask("dirty 4")
    assert moved(guest, lab.b, lab.a)["memory_found_bytes"] > 0, "also while it writes to its memory"
    check_moved(lab, guest, lab.a)


def ram_of(host, guest):
    """The RAM of a guest that stands still."""
    folder = Path(f"/proc/{host.pid_of('qemu', guest.name)}/fd")
    return max((fd for fd in folder.iterdir() if os.readlink(fd).startswith("/memfd:")), key=lambda fd: fd.stat().st_size).read_bytes()


def kept_ram(host, guest, size):
    """A guest's RAM in its checkpoint; what was never used is not in there."""
    kept = checkpoint(host, guest).read_bytes()[PAGES:]
    return kept + bytes(size - len(kept))


def working_set(host, guest):
    """The pages that the guest touches first, as the host that it came to keeps them; None: it keeps none."""
    file = host.state / "vms" / guest.name / "memory.workset"
    if not file.exists():
        return None
    data = file.read_bytes()
    assert data[:8] == b"ORAIWSET" and len(data) == 48 + 4 * int.from_bytes(data[12:16], "little")
    return [int.from_bytes(data[at:at + 4], "little") for at in range(48, len(data), 4)]


def kept_set(host, guest):
    return wait_until(lambda: working_set(host, guest), 10, f"{host.name} keeps its working set")


def test_what_it_waited_for_travels_with_it_and_a_damaged_list_is_not_used(busy):
    lab, guest = busy(dirty=8)
    lab.a.orai("move", guest.name, "b", json=True)
    written = kept_set(lab.b, guest)
    assert max(written) < 96 * MIB // 4096, "pages that went again, for the guest had written to them"
    result_of(begin(guest, lab.b, lab.a))
    waited = wait_until(lambda: set(kept_set(lab.a, guest)) >= set(written) and kept_set(lab.a, guest), 10, "a was told")
    assert len(waited) > len(written), "and what it waited for there"

    file = lab.a.state / "vms" / guest.name / "memory.workset"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    result_of(begin(guest, lab.a, lab.b))
    assert "touches first is not known" in vm_log(lab.a, guest)
    wait_until(lambda: working_set(lab.b, guest) != written, 10, "b keeps what it waited for there")
    check_moved(lab, guest, lab.b)


def test_memory_is_the_same_there(idle):
    """Byte by byte, of a guest that is paused, on the first way and on one where most is found."""
    lab, guest = idle()
    tell(lab.a, guest, "pause")
    for source, target in ((lab.a, lab.b), (lab.b, lab.a), (lab.a, lab.b)):
        before = ram_of(source, guest)
        moved(guest, source, target)
        assert ram_of(target, guest) == before
        wait_until(lambda: kept_ram(source, guest, len(before)) == before, 20, "it is kept as it was")
    tell(lab.b, guest, "resume")
    wait_until(lambda: lab.b.vm_state(guest.name) == "running", 10, "it runs")
    check_moved(lab, guest, lab.b)


def test_it_is_compressed_where_the_link_is_slow(idle):
    lab, guest = idle(rate=100_000_000, pattern=8)
    result = moved(guest, lab.a, lab.b)
    assert result["memory_saved_bytes"] > 4 * MIB
    check_moved(lab, guest, lab.b)


TOLD_EARLY = 384 * 1024 // 16  # pages whose hashes go before the switch
RING = 16 * MIB  # kept by the source, and sent once more over a new connection (src/move/stream.c)


def weight(result):
    """Bytes of what was sent before any of it was compressed, which depends on how busy link and processor are."""
    return result["memory_bytes"] + result["memory_saved_bytes"]


@pytest.mark.parametrize("when", ["before", "during"])
def test_a_checkpoint_that_is_spoilt_while_memory_follows_costs_bytes_only(idle, when):
    """The beginning is told before the switch, the rest after it; what is named then cannot be read."""
    lab, guest = idle(memory="256M", pattern=128)
    first = moved(guest, lab.a, lab.b)
    path = checkpoint(lab.a, guest)
    if when == "before":
        spoil_everywhere(path)
    lab.b.link.limit(SLOW)
    lab.b.fault(guest.name, "source.commit.begin", "hold")
    mover = begin(guest, lab.b, lab.a)
    lab.b.wait_fault_reached(guest.name, "source.commit.begin")
    if when == "during":
        assert spoil_everywhere(path, skip=TOLD_EARLY + 1024) > 1000
    lab.b.clear_fault(guest.name)
    lab.b.link.limit(FAST)
    result = result_of(mover)
    if when == "during":
        assert "memory comes whole from here on" in vm_log(lab.a, guest)
        assert weight(result) < 1.1 * weight(first) + RING
    else:
        assert result["memory_found_bytes"] < MIB
    check_moved(lab, guest, lab.a)


@pytest.mark.parametrize("qemu", QEMUS)
def test_a_cut_link_on_the_way_back(idle, new_qemu, qemu):  # noqa: F811
    lab, guest = idle(memory="128M", pattern=40, qemus={"a": new_qemu, "b": new_qemu} if qemu == "10.0" else {})
    first = moved(guest, lab.a, lab.b)
    guest.ask("dirty 40")
    time.sleep(3)  # most of the pattern is another
    lab.b.fault(guest.name, "source.commit.begin", "hold")
    lab.b.link.limit(SLOW)
    mover = begin(guest, lab.b, lab.a)
    lab.b.wait_fault_reached(guest.name, "source.commit.begin")
    lab.b.clear_fault(guest.name)
    for _ in range(3):
        time.sleep(0.5)
        lab.b.link.cut()
        time.sleep(1)
        lab.b.link.heal()
    lab.b.link.limit(FAST)
    result = result_of(mover)
    assert 0 < result["memory_found_bytes"] and result["memory_bytes"] < first["memory_bytes"]
    wait_until(lambda: lab.a.vm_state(guest.name) == "running", 20, "a has heard that too")  # TCP's patience grew while it was cut
    check_moved(lab, guest, lab.a)


@pytest.mark.parametrize("who", ["a", "b"])
def test_killed_on_the_way_back(busy, who):
    """What was kept of the guest's memory is of no use any more, and what is still missing comes whole."""
    lab, guest = busy(memory="128M", pattern=40, dirty=20)
    moved(guest, lab.a, lab.b)
    time.sleep(2)
    lab.b.fault(guest.name, "source.commit.begin", "hold")
    lab.b.link.limit(SLOW)
    mover = begin(guest, lab.b, lab.a)
    lab.b.wait_fault_reached(guest.name, "source.commit.begin")
    lab.b.clear_fault(guest.name)
    wait_until(lambda: lab.a.vm_state(guest.name) == "arriving" and lab.b.vm_state(guest.name) == "committed", 20, "it follows")
    time.sleep(0.2)
    getattr(lab, who).kill("orai-vm", guest.name)
    lab.b.link.limit(FAST)
    mover.communicate(timeout=60)
    wait_until(lambda: lab.where(guest.name) == {"a": "running", "b": "replica"}, 60, "all of it is on a")
    check_moved(lab, guest, lab.a)


# --- after it: a QEMU that dies takes the guest's memory along (an orai-vm does not: test_recover.py) ----------------

@pytest.mark.parametrize("who", ["a", "b"])
def test_killed_while_memory_follows(busy, who):
    lab, guest = busy()
    durable = guest.ask("sync")["durable"]
    mover = begin_slowly(lab, guest)
    getattr(lab, who).kill("qemu", guest.name)
    reason = crashed(lab.b, guest)
    assert reason, "and says why"
    if who == "a":
        assert "memory" in reason
    mover.communicate(timeout=60)
    wait_until(lambda: lab.a.vm_state(guest.name) == "replica", 60, "a only has a copy")
    guest.check_records(lab.b, durable)
    with pytest.raises(OraiError):
        lab.a.orai("start", guest.name)
    guest.start(lab.b)
    guest.check_alive()


def test_the_source_lost_while_the_link_is_cut(busy):
    """The guest waits for what will never come until a has a way to say so."""
    lab, guest = busy()
    mover = begin_slowly(lab, guest)
    lab.a.link.cut()
    lab.a.kill("qemu", guest.name)
    time.sleep(12)  # both notice
    assert lab.b.vm_state(guest.name) != "crashed"
    lab.a.link.heal()
    assert "memory" in crashed(lab.b, guest)
    mover.communicate(timeout=60)
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


@pytest.mark.parametrize("who", ["a", pytest.param("b", marks=LONG)])
def test_killed_while_memory_and_disk_follow(busy, who):
    """The memory is lost, the disk still comes."""
    lab, guest = busy()
    mover = begin_slowly(lab, guest, "--mode", "postcopy")
    getattr(lab, who).kill("qemu", guest.name)
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


@pytest.mark.parametrize("qemu", QEMUS)
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
