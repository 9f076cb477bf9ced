# SPDX-License-Identifier: Apache-2.0
"""A guest that writes to its memory faster than the link carries: what the user said happens, and is told why."""

import json
import time

import pytest

from host import MIB, in_time, wait_until
from test_memory_return import checkpoint
from test_qemu10 import new_qemu  # noqa: F401

pytestmark = pytest.mark.together("userfaultfd")
ALONE, LONG = pytest.mark.alone, pytest.mark.long

SLOW = 60_000_000  # bits per second: 7 MB/s, and the guest writes 16
MAX_BLACKOUT = 0.5


@pytest.fixture
def make_writer(labs, guests):
    """(lab, guest)."""
    def make(**options):
        lab = labs("a", "b", **options)
        guest = guests(lab, lab.a, memory="96M", disk="64M", region=16 * MIB, pattern=24, dirty=16, rate=20)
        lab.a.link.limit(SLOW)
        return lab, guest
    return make


@pytest.fixture
def writer(make_writer):
    return make_writer()


def check_whole(lab, guest, host):
    """It runs there and nowhere else, and nothing of it is damaged."""
    states = lab.where(guest.name)
    assert states[host.name] == "running" and list(states.values()).count("running") == 1
    guest.check_alive()
    lab.a.link.limit(1_000_000_000)
    last = guest.power_off(host)
    guest.check_records(host, last["durable"], last["written"])


@ALONE
def test_cancel_leaves_it_where_it_is_undisturbed(writer):
    """QEMU believes at the end of each pass that all is sent, until it looks: it must look before it stops the guest."""
    lab, guest = writer
    mover = lab.a.begin("move", guest.name, "b", "--timeout", "35s", "--format", "json")
    wait_until(lambda: "does not converge" in ((lab.a.vm(guest.name)["move"] or {}).get("obstacle") or ""), 40, "it is said")
    assert lab.a.vm(guest.name)["move"]["converging"] is False
    out, err = mover.communicate(timeout=60)
    assert mover.returncode == 6
    stayed = json.loads(out)
    assert "not expected to converge" in err and "given up" in err, "said before"
    assert "timeout" in stayed["error"]["text"] and "memory does not converge: after each pass" in stayed["error"]["text"]
    assert "--on-timeout postcopy" in stayed["error"]["hint"]
    in_time(guest.datagrams.longest_silence(), MAX_BLACKOUT, "it stood still")
    check_whole(lab, guest, lab.a)


def test_a_dry_run_says_so(writer, userfaultfd):
    lab, guest = writer
    said = lab.a.orai("move", guest.name, "b", "--dry-run")
    assert "not expected to converge: the guest changes" in said and "--memory postcopy" in said
    planned = lab.a.orai("move", guest.name, "b", "--dry-run", json=True)
    assert planned["predicted"]["converges"] is False and planned["obstacle"]
    assert planned["predicted"]["seconds"] is None, "there is no end"
    assert planned["predicted"]["dirty_bytes_per_second"] > planned["predicted"]["link_bytes_per_second"]
    for option in (["--memory", "postcopy"], ["--timeout", "10s", "--on-timeout", "postcopy"]):
        planned = lab.a.orai("move", guest.name, "b", "--dry-run", *option, json=True)
        assert planned["predicted"]["seconds"] < 60, planned
    guest.ask("dirty 0")
    time.sleep(1)
    planned = lab.a.orai("move", guest.name, "b", "--dry-run", json=True)
    assert planned["predicted"]["converges"] is True and planned["obstacle"] is None


def test_pause_makes_it_stand_still_for_the_rest(writer):
    lab, guest = writer
    result = lab.a.orai("move", guest.name, "b", "--timeout", "14s", "--on-timeout", "pause", json=True)
    assert result["state"] == "moved" and 1000 < result["blackout_ms"] < 10000
    check_whole(lab, guest, lab.b)


# --- throttle: the guest is slowed down ------------------------------------------------------------------------------

def held_for(lab, guest):
    """Percent of their time that the guest's CPUs are held."""
    return (lab.a.vm(guest.name)["move"] or {}).get("throttle") or 0


@ALONE
@LONG
def test_throttle_slows_it_down_until_memory_converges(writer):
    lab, guest = writer
    result = lab.a.orai("move", guest.name, "b", "--throttle", "99", "--timeout", "5m", json=True)
    assert result["state"] == "moved" and 0 < result["throttle_most"] <= 99 and result["memory_later_bytes"] == 0
    in_time(result["blackout_ms"] / 1000, MAX_BLACKOUT, "it stood still")
    assert any("slowed down" in note for note in result["notes"]), result["notes"]
    assert lab.b.vm(guest.name)["state"] == "running"
    check_whole(lab, guest, lab.b)


@ALONE
@LONG
@pytest.mark.parametrize("version", ["7.2", "10.0"])
def test_a_guest_that_was_slowed_down_is_free_after_a_cancelled_move(make_writer, new_qemu, version):  # noqa: F811
    """While it is held for 99 % of its time its packets, one each 10 ms, come in bursts after a second."""
    lab, guest = make_writer(qemus={name: new_qemu for name in "ab"} if version == "10.0" else None)
    guest.ask("dirty 200")
    lab.a.link.limit(SLOW // 2)
    mover = lab.a.begin("move", guest.name, "b", "--throttle", "99", "--format", "json")
    wait_until(lambda: held_for(lab, guest) == 99, 300, "it is slowed down")
    time.sleep(1)
    began = time.monotonic()
    time.sleep(4)
    assert guest.datagrams.longest_silence(since=began) > MAX_BLACKOUT, "it is held"
    lab.a.orai("cancel", guest.name)
    assert mover.wait(60) == 6
    time.sleep(2)
    began = time.monotonic()
    time.sleep(4)
    in_time(guest.datagrams.longest_silence(since=began + 1), MAX_BLACKOUT, "it is free, and stood still")
    check_whole(lab, guest, lab.a)


def test_a_guest_is_slowed_down_for_one_move_only(writer):
    lab, guest = writer
    mover = lab.a.begin("move", guest.name, "b", "--throttle", "60", "--format", "json")
    wait_until(lambda: held_for(lab, guest) > 0, 90, "it is slowed down")
    lab.a.orai("cancel", guest.name)
    out, _ = mover.communicate(timeout=60)
    stayed = json.loads(out)
    assert mover.returncode == 6 and 0 < stayed["throttle_most"] <= 60
    assert held_for(lab, guest) == 0
    guest.check_alive()
    lab.a.link.limit(1_000_000_000)
    guest.ask("dirty 0")
    result = lab.a.orai("move", guest.name, "b", json=True)
    assert result["throttle_most"] == 0, "nobody asked for it"
    check_whole(lab, guest, lab.b)


def test_a_guest_that_need_not_be_slowed_down_is_not(writer):
    lab, guest = writer
    guest.ask("dirty 0")
    lab.a.link.limit(1_000_000_000)
    assert lab.a.orai("move", guest.name, "b", "--throttle", "99", json=True)["throttle_most"] == 0
    check_whole(lab, guest, lab.b)


# --- postcopy: QEMU begins again at both ends ------------------------------------------------------------------------

def begin(lab, guest, seconds=4, *options):
    return lab.a.begin("move", guest.name, "b", "--timeout", f"{seconds}s", "--on-timeout", "postcopy", "--format", "json",
                       *options)


def result_of(mover):
    out, err = mover.communicate(timeout=120)
    assert mover.returncode == 0, err
    return json.loads(out)


@ALONE
@pytest.mark.parametrize("one,other", [("7.2", "7.2"), pytest.param("10.0", "10.0", marks=LONG),
                                       pytest.param("7.2", "10.0", marks=LONG), pytest.param("10.0", "7.2", marks=LONG)])
def test_postcopy_lets_memory_follow(make_writer, userfaultfd, new_qemu, one, other):  # noqa: F811
    lab, guest = make_writer(qemus={name: new_qemu for name, version in (("a", one), ("b", other)) if version == "10.0"})
    result = result_of(begin(lab, guest, 12))
    in_time(result["blackout_ms"] / 1000, MAX_BLACKOUT, "it stood still")
    assert result["running_seconds"] > 12
    in_time(result["running_seconds"], 18, "it ran there")
    assert result["memory_later_bytes"] > 20 * MIB and result["memory_zero_bytes"] > 0, "packed, as what follows from the start"
    assert any("follows the guest" in note for note in result["notes"]), result["notes"]
    check_whole(lab, guest, lab.b)


@LONG
def test_what_begins_again_names_what_its_new_host_has(writer, userfaultfd):
    lab, guest = writer
    lab.a.link.limit(1_000_000_000)
    guest.ask("dirty 0")
    lab.a.orai("move", guest.name, "b")
    wait_until(lambda: checkpoint(lab.a, guest).exists(), 40, "its memory is kept on a")
    lab.b.link.limit(SLOW)
    guest.ask("dirty 20")
    result = result_of(lab.b.begin("move", guest.name, "a", "--timeout", "8s", "--on-timeout", "postcopy", "--format", "json"))
    assert any("follows the guest" in note for note in result["notes"]), result["notes"]
    assert result["memory_found_bytes"] > 10 * MIB and result["memory_zero_bytes"] > 0
    check_whole(lab, guest, lab.a)


@LONG
def test_postcopy_is_not_used_by_a_guest_that_converges(writer, userfaultfd):
    lab, guest = writer
    guest.ask("dirty 0")
    result = result_of(begin(lab, guest, 60))
    assert result["memory_later_bytes"] == 0 and result["seconds"] < 60
    check_whole(lab, guest, lab.b)


@ALONE
@LONG
@pytest.mark.parametrize("mode", ["auto", "precopy"])
def test_postcopy_and_disks_that_do_not_converge_either(writer, userfaultfd, mode):
    """They follow too if they may, or the guest stays: it never stands still for them."""
    lab, guest = writer
    guest.ask("rate 1000")
    guest.ask("dirty 0")
    mover = begin(lab, guest, 8, "--mode", mode)
    wait_until(lambda: (lab.a.vm(guest.name)["move"] or {}).get("stage") == "transfer", 30, "it is on its way")
    lab.a.link.limit(SLOW // 10)
    wait_until(lambda: mover.poll() is not None or (lab.a.vm(guest.name)["move"] or {}).get("stage") == "finish", 90,
               "it has gone, or stays")
    lab.a.link.limit(1_000_000_000)
    guest.ask("rate 20")
    out, err = mover.communicate(timeout=120)
    if mode == "auto":
        result = json.loads(out)
        assert mover.returncode == 0, err
        # The state of the devices and what is on its way before it take this link (6 Mbit/s) more than a second.
        in_time(result["blackout_ms"] / 1000, 4, "it stood still")
        assert result["disk_later_bytes"] > 0
        wait_until(lambda: lab.b.vm(guest.name)["borrows"] is None, 60, "all of the disk is on b")
        check_whole(lab, guest, lab.b)
    else:
        assert mover.returncode == 6 and "writes to its disks faster" in err
        in_time(guest.datagrams.longest_silence(), MAX_BLACKOUT, "it stood still")
        check_whole(lab, guest, lab.a)


def test_postcopy_that_cannot_be_is_refused_at_once(writer, userfaultfd):
    lab, guest = writer
    userfaultfd(False)
    mover = begin(lab, guest)
    _, err = mover.communicate(timeout=30)
    assert mover.returncode == 6 and "--on-timeout" in err and "unprivileged_userfaultfd" in err
    check_whole(lab, guest, lab.a)


POINTS = ("source.anew", "destination.anew", "source.pause.begin")
STRIKES = (("source", "orai-vm"), ("destination", "orai-vm"), ("source", "cancel"), ("destination", "cut"))
SHORT = (("source.anew", "source", "orai-vm"),)


@pytest.mark.parametrize("point,side,kind", [pytest.param(point, *strike, marks=() if (point, *strike) in SHORT else LONG)
                                             for point in POINTS for strike in STRIKES])
def test_what_goes_wrong_while_qemu_begins_again(writer, userfaultfd, point, side, kind):
    """Until the commit the guest stays, and can be moved again."""
    lab, guest = writer
    held, struck = (lab.a if name == "source" else lab.b for name in (point.split(".")[0], side))
    held.fault(guest.name, point, "hold")
    mover = begin(lab, guest)
    held.wait_fault_reached(guest.name, point)
    if kind == "cancel":
        lab.a.orai("cancel", guest.name)
    elif kind == "cut":
        lab.b.link.cut()
        time.sleep(10)
    else:
        struck.kill(kind, guest.name)
        time.sleep(0.5)
    held.clear_fault(guest.name)
    mover.communicate(timeout=60)
    lab.b.link.heal()
    assert mover.returncode != 0
    wait_until(lambda: lab.where(guest.name).get("a") == "running", 60, "it runs on a")
    guest.check_alive()
    wait_until(lambda: lab.b.vm_state(guest.name) in ("incomplete", "replica"), 30, "b has given up")
    lab.a.link.limit(1_000_000_000)
    lab.a.orai("move", guest.name, "b")
    check_whole(lab, guest, lab.b)


@LONG
def test_the_source_killed_while_memory_follows_after_a_timeout(writer, userfaultfd):
    """As after --memory postcopy: a crash, and nothing of the disk is lost."""
    lab, guest = writer
    durable = guest.ask("sync")["durable"]
    mover = begin(lab, guest)
    wait_until(lambda: (lab.a.vm(guest.name)["move"] or {}).get("stage") == "finish", 60, "its memory follows")
    lab.a.kill("orai-vm", guest.name)
    wait_until(lambda: lab.b.vm_state(guest.name) == "crashed", 40, "it has crashed on b")
    mover.communicate(timeout=60)
    wait_until(lambda: lab.a.vm_state(guest.name) == "replica", 60, "a only has a copy")
    guest.check_records(lab.b, durable)
    lab.a.link.limit(1_000_000_000)
    guest.start(lab.b)
    check_whole(lab, guest, lab.b)
