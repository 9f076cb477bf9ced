# SPDX-License-Identifier: Apache-2.0
"""QEMU is replaced under the running guest (orai refresh): the guest, its disks and its connections notice a pause of some
milliseconds at most; whatever fails, it goes on, in one QEMU and never in two."""

import json
import re
import statistics
import subprocess
import time
from pathlib import Path

import pytest

from host import OraiError, in_time, is_alive, wait_until
from lab import ROOT
from test_move import refused
from test_qemu10 import NEW_PROGRAM, new_qemu, running_qemu  # noqa: F401 (a fixture)
from tiny import MIB

MAX_BLACKOUT = 0.5  # on a machine that is busy with other things; bench/refresh measures
SOURCE = ROOT / "src" / "move" / "refresh.c"


def refresh(guest, host, *options):
    """Refreshes it; what the command line said. The guest is unharmed, in another QEMU, and the old one is gone."""
    old = host.pid_of("qemu", guest.name)
    result = host.orai("refresh", guest.name, *options, json=True)
    assert result["state"] == "done", result
    new = host.pid_of("qemu", guest.name)
    assert new != old and not is_alive(old)
    assert host.vm_state(guest.name) == "running"
    assert result["blackout_ms"] > 0
    in_time(result["blackout_ms"] / 1000, MAX_BLACKOUT, "it stood still")
    guest.check_alive()
    return result


def qemus(guest, host):
    """The QEMUs that have the VM's RAM, dead or alive to orai."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            if f"guest={guest.name},debug-threads=on".encode() in words and str(host.run_dir).encode() in b"".join(words):
                found.append(int(folder.name))
        except OSError:
            pass
    return found


def check_one(guest, host):
    wait_until(lambda: qemus(guest, host) == [host.pid_of("qemu", guest.name)], 10, "there is one QEMU, the guest's")


def check_whole(guest, host):
    check_one(guest, host)
    last = guest.power_off(host)
    guest.check_records(host, last["durable"], last["written"])


def settled(guest, host):
    """It runs, with an orai-vm that answers."""
    wait_until(lambda: host.vm_state(guest.name) == "running", 30, f"{guest.name} runs")


def test_under_disk_and_network_load(labs, guests):
    lab = labs("a")
    guest = guests(lab, lab.a, rate=400)
    seen = len(guest.datagrams.seen)
    refresh(guest, lab.a)
    time.sleep(0.5)
    assert len(guest.datagrams.seen) > seen + 20
    check_whole(guest, lab.a)


def in_a_row(guest, host, count):
    for _ in range(count):
        refresh(guest, host)
    assert len(guest.datagrams.boots()) == 1
    check_whole(guest, host)


def test_twenty_in_a_row(labs, guests):
    lab = labs("a")
    in_a_row(guests(lab, lab.a, rate=400), lab.a, 20)


@pytest.mark.long
def test_a_hundred_in_a_row(labs, guests):
    lab = labs("a")
    in_a_row(guests(lab, lab.a, rate=400), lab.a, 100)


def test_to_another_program_and_back(labs, guests, new_qemu):  # noqa: F811
    lab = labs("a")
    guest = guests(lab, lab.a, rate=100, options=["--machine", "pc-q35-7.2"])
    assert running_qemu(guest, lab.a) != NEW_PROGRAM
    assert refresh(guest, lab.a, "--qemu", new_qemu)["qemu"].startswith("10.0.")
    assert running_qemu(guest, lab.a) == NEW_PROGRAM
    assert refresh(guest, lab.a)["qemu"].startswith("7.2.")
    assert running_qemu(guest, lab.a) != NEW_PROGRAM
    check_whole(guest, lab.a)


def test_a_machine_type_that_the_new_program_lacks_is_refused(labs, guests, new_qemu):  # noqa: F811
    lab = labs("a", qemus={"a": new_qemu})
    guest = guests(lab, lab.a, rate=0)
    machine = lab.a.vm(guest.name)["machine"]
    before = lab.a.pid_of("qemu", guest.name)
    assert machine in refused(lab.a, "refresh", guest.name, "--qemu", "/usr/bin/qemu-system-x86_64")
    assert lab.a.pid_of("qemu", guest.name) == before
    guest.check_alive()


def test_before_and_after_moves(lab, guests):
    guest = guests(lab, lab.a)
    for source, target, mode in ((lab.a, lab.b, "precopy"), (lab.b, lab.a, "postcopy"), (lab.a, lab.b, "precopy")):
        refresh(guest, source)
        result = source.orai("move", guest.name, target.name, "--mode", mode, json=True)
        memory = result["memory_bytes"] + result["memory_found_bytes"]
        assert result["state"] == "moved" and memory > 16 * MIB, "its memory is looked at again"
        wait_until(lambda: not target.vm(guest.name)["borrows"], 30, "its disks are whole")
        guest.check_alive()
    refresh(guest, lab.b)
    check_whole(guest, lab.b)


# --- new programs that fail --------------------------------------------------------------------------------------------

def wrapper(folder, name, script):
    """A program that is QEMU as long as it is asked what it can do, and something else when it is to run a guest."""
    file = folder / name
    file.write_text(f'#!/bin/sh\ncase "$1" in -version|-machine) exec qemu-system-x86_64 "$@";; esac\n{script}\n')
    file.chmod(0o755)
    for parent in file.parents[:3]:
        parent.chmod(parent.stat().st_mode | 0o111)  # QEMU's user must get through
    return file


# QEMU with its words changed by a line of sed; the last one has the guest's devices at other places.
EDITED = """for word; do shift; set -- "$@" "$(printf %s "$word" | sed '{}')"; done; exec qemu-system-x86_64 "$@" """
FAILING = {
    "says-nothing": "exit 1",
    "hangs": "exec sleep 1000",
    "less-memory": EDITED.format("s/size=96M/size=64M/"),
    "another-machine": EDITED.format("s/addr=0x2$/addr=0x1d/"),
}


def test_a_program_that_is_no_qemu_is_refused(labs, guests):
    lab = labs("a")
    guest = guests(lab, lab.a)
    before = lab.a.pid_of("qemu", guest.name)
    assert "/bin/false" in refused(lab.a, "refresh", guest.name, "--qemu", "/bin/false")
    assert refused(lab.a, "refresh", guest.name, "--qemu", "/nonexistent")
    assert lab.a.pid_of("qemu", guest.name) == before
    guest.check_alive()
    refresh(guest, lab.a)
    check_whole(guest, lab.a)


# One that hangs is given up after half a minute.
@pytest.mark.parametrize("kind", [pytest.param(kind, marks=pytest.mark.long) if kind == "hangs" else kind for kind in FAILING])
def test_a_new_qemu_that_fails_leaves_the_guest_where_it_is(labs, guests, tmp_path, kind):
    lab = labs("a")
    guest = guests(lab, lab.a, rate=200)
    before = lab.a.pid_of("qemu", guest.name)
    began = time.monotonic()
    refused(lab.a, "refresh", guest.name, "--qemu", wrapper(tmp_path, kind, FAILING[kind]))
    assert lab.a.pid_of("qemu", guest.name) == before
    settled(guest, lab.a)
    guest.check_alive()
    in_time(guest.datagrams.longest_silence(since=began), 2, "it stood still")
    check_one(guest, lab.a)
    refresh(guest, lab.a)
    check_whole(guest, lab.a)


# --- who dies, and when ------------------------------------------------------------------------------------------------

STAGES = re.findall(r'^ +(?:\{"\w+", \w+\},? *)+$', SOURCE.read_text(), re.M)
STAGES = re.findall(r'\{"(\w+)",', "".join(STAGES))
POINTS = [f"refresh.{stage}.{end}" for stage in STAGES for end in ("begin", "end")]
RUNS_IN_NEW = POINTS.index("refresh.run.end")  # from here on


def test_all_stages_are_known():
    assert STAGES == ["check", "start", "pause", "load", "switch", "run", "end"]


def next_pid(guest, host):
    try:
        pid = int((host.run_dir / "vms" / guest.name / "qemu-next.pid").read_text().split()[0])
    except (FileNotFoundError, IndexError):
        return None
    return pid if is_alive(pid) else None


def hold(guest, host, point):
    host.fault(guest.name, point, "hold")
    process = host.begin("refresh", guest.name)
    host.wait_fault_reached(guest.name, point)
    return process


def go_on(guest, host, process):
    host.clear_fault(guest.name)
    process.communicate(timeout=60)


def some(points, chosen):
    """All of them with --long; else those where something else may come of it."""
    return [point if point in chosen else pytest.param(point, marks=pytest.mark.long) for point in points]


@pytest.mark.parametrize("point", some(POINTS, ["refresh.load.begin", *(f"refresh.{stage}.end" for stage in STAGES)]))
def test_orai_vm_killed(labs, guests, point):
    """Whoever comes next finds the guest in the one QEMU that has it."""
    lab = labs("a")
    guest = guests(lab, lab.a)
    process = hold(guest, lab.a, point)
    lab.a.kill("orai-vm", guest.name)
    go_on(guest, lab.a, process)
    settled(guest, lab.a)
    guest.check_alive()
    check_one(guest, lab.a)
    refresh(guest, lab.a)
    check_whole(guest, lab.a)


@pytest.mark.parametrize("point", some(POINTS, [f"refresh.{stage}.end" for stage in STAGES]))
def test_the_stage_fails(labs, guests, point):
    lab = labs("a")
    guest = guests(lab, lab.a)
    before = lab.a.pid_of("qemu", guest.name)
    lab.a.fault(guest.name, point, "fail")
    process = lab.a.begin("refresh", guest.name)
    process.communicate(timeout=60)
    lab.a.clear_fault(guest.name)
    assert (lab.a.pid_of("qemu", guest.name) != before) == (process.returncode == 0) == (POINTS.index(point) >= RUNS_IN_NEW)
    settled(guest, lab.a)
    guest.check_alive()
    check_one(guest, lab.a)
    refresh(guest, lab.a)
    check_whole(guest, lab.a)


@pytest.mark.parametrize("point", some(POINTS[POINTS.index("refresh.start.end"):],
                                       ["refresh.start.end", "refresh.load.begin", "refresh.switch.end", "refresh.run.end"]))
def test_the_new_qemu_killed(labs, guests, point):
    lab = labs("a")
    guest = guests(lab, lab.a)
    process = hold(guest, lab.a, point)
    before_run = POINTS.index(point) < RUNS_IN_NEW
    switched = POINTS.index("refresh.switch.end") <= POINTS.index(point)
    victim = lab.a.pid_of("qemu", guest.name) if switched else next_pid(guest, lab.a)
    subprocess.run(["kill", "-9", str(victim)], check=True)
    wait_until(lambda: not is_alive(victim), 10, "it ends")
    go_on(guest, lab.a, process)
    if not before_run:
        wait_until(lambda: lab.a.vm_state(guest.name) == "crashed", 20, "a guest whose QEMU is killed has crashed")
        assert not qemus(guest, lab.a)
        return
    settled(guest, lab.a)
    guest.check_alive()
    check_one(guest, lab.a)
    refresh(guest, lab.a)
    check_whole(guest, lab.a)


@pytest.mark.parametrize("point", some(POINTS, ["refresh.start.begin", "refresh.load.begin", "refresh.load.end", "refresh.end.begin"]))
def test_the_old_qemu_killed(labs, guests, point):
    """With the state in it the guest dies, unless the new one has it already."""
    lab = labs("a")
    guest = guests(lab, lab.a)
    process = hold(guest, lab.a, point)
    loaded = POINTS.index("refresh.load.end") <= POINTS.index(point)
    switched = POINTS.index("refresh.switch.end") <= POINTS.index(point)
    victim = next_pid(guest, lab.a) if switched else lab.a.pid_of("qemu", guest.name)
    if victim is not None:
        subprocess.run(["kill", "-9", str(victim)], check=True)
        wait_until(lambda: not is_alive(victim), 10, "it ends")
    go_on(guest, lab.a, process)
    if loaded:
        settled(guest, lab.a)
        guest.check_alive()
        check_whole(guest, lab.a)
        return
    wait_until(lambda: lab.a.vm_state(guest.name) == "crashed", 20, "a guest whose QEMU is killed has crashed")
    assert not qemus(guest, lab.a)
    lab.a.orai("start", guest.name)


@pytest.mark.parametrize("fate", ["done", "stays", "orai-vm dies"])
def test_oraid_killed(labs, guests, fate):
    """Who waits for it learns what came of it, from the next oraid; until then nobody else may touch the VM."""
    lab = labs("a")
    guest = guests(lab, lab.a)
    before = lab.a.pid_of("qemu", guest.name)
    process = hold(guest, lab.a, "refresh.load.begin")
    lab.a.kill9()
    lab.a.start()
    assert "refresh" in refused(lab.a, "refresh", guest.name)
    assert "refresh" in refused(lab.a, "kill", guest.name)
    if fate == "orai-vm dies":
        lab.a.kill("orai-vm", guest.name)
    if fate == "stays":
        subprocess.run(["kill", "-9", str(next_pid(guest, lab.a))], check=True)
    lab.a.clear_fault(guest.name)
    out, err = process.communicate(timeout=60)
    assert (process.returncode == 0) == (fate == "done"), out + err
    assert (lab.a.pid_of("qemu", guest.name) == before) == (fate != "done")
    operation = lab.a.api("GET", "/v1/operations")["operations"][0]
    assert (operation["kind"], operation["state"]) == ("refresh", "done" if fate == "done" else "failed")
    settled(guest, lab.a)
    guest.check_alive()
    refresh(guest, lab.a)
    check_whole(guest, lab.a)


def test_oraid_killed_while_it_replaces_the_helper(labs, guests):
    """Wherever it was: the next one has what is needed to go on."""
    lab = labs("a")
    guest = guests(lab, lab.a)
    for wait in (0.0, 0.01, 0.03, 0.1):
        old, count = lab.a.pid_of("orai-vm", guest.name), len(lab.a.api("GET", "/v1/operations")["operations"])
        process = lab.a.begin("refresh", guest.name, "--helper")
        wait_until(lambda: len(lab.a.api("GET", "/v1/operations")["operations"]) > count, 20, "it has begun")
        time.sleep(wait)
        lab.a.kill9()
        lab.a.start()
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, out + err
        new = lab.a.pid_of("orai-vm", guest.name)
        assert new != old and is_alive(new) and not is_alive(old)
        settled(guest, lab.a)
        guest.check_alive()
    refresh(guest, lab.a)
    check_whole(guest, lab.a)


# --- when not, and how else --------------------------------------------------------------------------------------------

def test_refused_with_the_reason(lab, guests):
    guest = guests(lab, lab.a, rate=0)
    guest.ask("write 4000")
    assert "nobody" in refused(lab.a, "refresh", "nobody")
    assert "--all" in refused(lab.a, "refresh")
    assert "--all" in refused(lab.a, "refresh", guest.name, "--all")

    mover = lab.a.begin("move", guest.name, "b", "--bandwidth", "40M")
    wait_until(lambda: lab.a.vm_state(guest.name) == "leaving", 20, "it is leaving")
    assert "leaving" in refused(lab.a, "refresh", guest.name)
    assert "leaving" in refused(lab.a, "refresh", guest.name, "--helper")
    mover.communicate(timeout=120)
    assert "b" in refused(lab.a, "refresh", guest.name), "only a copy is here"

    process = hold(guest, lab.b, "refresh.load.begin")
    assert "refresh" in refused(lab.b, "move", guest.name, "a")
    assert "refresh" in refused(lab.b, "refresh", guest.name)
    go_on(guest, lab.b, process)
    assert process.returncode == 0
    guest.check_alive()
    guest.power_off(lab.b)
    assert "start" in refused(lab.b, "refresh", guest.name)


def test_while_disks_follow(labs, guests):
    lab = labs("a", "b", rate=80_000_000)
    guest = guests(lab, lab.a, rate=0)
    guest.ask("write 8000")
    lab.a.orai("move", guest.name, "b", "--mode", "postcopy", "--detach")
    wait_until(lambda: lab.b.vm_state(guest.name) == "running" and lab.b.vm(guest.name)["borrows"], 60, "it borrows")
    assert "lends" in refused(lab.b, "refresh", guest.name)
    wait_until(lambda: not lab.b.vm(guest.name)["borrows"], 90, "its disks are whole")
    refresh(guest, lab.b)


def test_a_paused_guest_stays_paused(labs, guests):
    lab = labs("a")
    guest = guests(lab, lab.a)
    control(lab.a, guest, "pause")
    wait_until(lambda: lab.a.vm_state(guest.name) == "paused", 10, "it is paused")
    old = lab.a.pid_of("qemu", guest.name)
    result = lab.a.orai("refresh", guest.name, json=True)
    assert result["state"] == "done" and result["blackout_ms"] is None
    assert lab.a.pid_of("qemu", guest.name) != old and lab.a.vm_state(guest.name) == "paused"
    control(lab.a, guest, "resume")
    settled(guest, lab.a)
    guest.check_alive()
    check_whole(guest, lab.a)


def control(host, guest, verb):
    """Asks orai-vm itself."""
    import socket
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as s:
        s.connect(str(host.run_dir / "vms" / guest.name / "control.sock"))
        s.send(json.dumps({"do": verb}).encode())
        answer = json.loads(s.recv(1 << 20))
    assert answer["ok"], answer


def test_all_of_a_host(labs, guests):
    lab = labs("a")
    guest = guests(lab, lab.a)
    lab.a.orai("create", "off", "--memory", "64M", "--disk", "16M")
    lab.a.orai("create", "empty", "--memory", "64M", "--disk", "16M")
    lab.a.orai("start", "empty")
    before = {name: lab.a.pid_of("qemu", name) for name in (guest.name, "empty")}
    results = lab.a.orai("refresh", "--all", json=True)
    assert {(r["vm"], r["state"]) for r in results} == {(guest.name, "done"), ("empty", "done")}
    assert all(lab.a.pid_of("qemu", name) != pid for name, pid in before.items())
    with pytest.raises(OraiError) as failure:
        lab.a.orai("refresh", "--all", "--qemu", "/bin/false")
    assert "2 of 2" in failure.value.err and "empty" in failure.value.out
    lab.a.orai("kill", "empty")
    check_whole(guest, lab.a)


def slowest_sync(guest, process):
    """Seconds that the guest waited for its disk at most, until the process has ended and a little longer."""
    slowest, end = 0, None
    while end is None or time.monotonic() < end:
        began = time.monotonic()
        guest.ask("sync")
        slowest = max(slowest, time.monotonic() - began)
        if end is None and process.poll() is not None:
            end = time.monotonic() + 0.5
    return slowest


def test_the_helper(labs, guests):
    """Another orai-vm, the same QEMU; the guest's disks wait a moment, not for QEMU's second attempt after a second."""
    lab = labs("a")
    guest = guests(lab, lab.a, rate=400)
    waits = []
    for _ in range(5):
        helper, qemu = lab.a.pid_of("orai-vm", guest.name), lab.a.pid_of("qemu", guest.name)
        process = lab.a.begin("refresh", guest.name, "--helper", "--format", "json")
        waits.append(slowest_sync(guest, process))
        result = json.loads(process.communicate()[0])
        assert result["state"] == "done" and result["silence_ms"] < 3000
        assert lab.a.pid_of("orai-vm", guest.name) != helper and lab.a.pid_of("qemu", guest.name) == qemu
        print(result, waits[-1])
        guest.check_alive()
    in_time(statistics.median(waits), 0.9, f"the guest waited for its disk: {waits}")
    refresh(guest, lab.a)
    check_whole(guest, lab.a)


def test_with_more_memory(labs, guests):
    lab = labs("a")
    guest = guests(lab, lab.a, memory="1G")
    print(refresh(guest, lab.a))
    check_whole(guest, lab.a)
