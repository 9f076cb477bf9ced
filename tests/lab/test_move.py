# SPDX-License-Identifier: Apache-2.0
"""A running guest moves between hosts: the stories of moves in which nothing breaks."""

import json
import shutil
import subprocess
import time

import pytest

import netns
from host import MIB, ApiError, OraiError, in_time, wait_until
from lab import GUEST
from tiny import Pulse, same_content

MAX_BLACKOUT = 0.5


def move(guest, source, target, *options):
    """Moves it; what the command line said. Also: it runs there and nowhere else, unharmed."""
    result = source.orai("move", guest.name, target.name, *options, json=True)
    assert result["state"] == "moved"
    guest.check_alive()
    states = guest.lab.where(guest.name)
    assert states.pop(target.name) == "running"
    assert "running" not in states.values() and states[source.name] == "replica"
    return result


def move_unnoticed(guest, source, target):
    """The same; its neighbours miss it for half a second at most, beside what they miss it for on this machine when nothing happens.
    For stories with the mark `alone`."""
    time.sleep(1)
    began = time.monotonic()
    usual = guest.datagrams.longest_silence(since=began - 1)
    result = move(guest, source, target)
    silence = guest.datagrams.longest_silence(since=began)
    assert result["blackout_ms"] > 0
    # The hosts hear of the guest's going on after it has gone on: on a busy machine by a time slice or two.
    in_time(result["blackout_ms"] / 1000, silence + 0.15, f"its neighbours missed it for {silence * 1000:.0f} ms, but it says")
    in_time(silence, MAX_BLACKOUT + usual, f"its neighbours missed it, before for {usual * 1000:.0f} ms")
    return result


def move_back_cheaply(guest, source, target, written_before):
    """A return: disk bytes at most 1.10 x the blocks that were written since `written_before`. Unnoticed."""
    result = move_unnoticed(guest, source, target)
    blocks = guest.slots_between(written_before, guest.status()["written"])
    assert result["disk_base"] == "replica"
    assert result["disk_bytes"] <= 1.10 * blocks * 4096 + 64 * 1024, f"for {blocks} blocks"
    return result


def check_equal_here_and_there(guest, one, other):
    """While the guest writes nothing, a hand-over leaves two equal copies."""
    assert same_content(one.image_file(guest.name), other.image_file(guest.name))


@pytest.mark.alone
def test_to_b_and_back_and_again_under_load(lab, guests):
    guest = guests(lab, lab.a)
    guest.ask("write 4000")

    first = move_unnoticed(guest, lab.a, lab.b)
    assert first["disk_bytes"] >= 3000 * 4096, "the first move carries everything"

    written = guest.quiet()["written"]
    move_unnoticed(guest, lab.b, lab.a)
    check_equal_here_and_there(guest, lab.a, lab.b)

    guest.ask("rate 100")
    guest.ask("write 1000")
    again = move_back_cheaply(guest, lab.a, lab.b, written)
    assert again["disk_bytes"] < first["disk_bytes"] / 2

    written = guest.quiet()["written"]
    guest.ask("dirty 2")
    guest.ask("rate 100")
    guest.ask("write 500")
    guest.quiet()
    move_back_cheaply(guest, lab.b, lab.a, written)
    check_equal_here_and_there(guest, lab.a, lab.b)
    assert len(guest.datagrams.boots()) == 1

    last = guest.power_off(lab.a)
    guest.check_records(lab.a, last["durable"], last["written"])


@pytest.mark.alone
def test_a_replica_two_hand_overs_old_still_helps(labs, guests):
    lab = labs("a", "b", "c")
    guest = guests(lab, lab.a, rate=0)
    guest.ask("write 3000")
    move_unnoticed(guest, lab.a, lab.b)
    written = guest.status()["written"]
    guest.ask("write 200")
    first_at_c = move_unnoticed(guest, lab.b, lab.c)
    assert first_at_c["disk_bytes"] > 2000 * 4096
    guest.ask("write 200")
    move_back_cheaply(guest, lab.c, lab.a, written)
    check_equal_here_and_there(guest, lab.a, lab.c)
    last = guest.power_off(lab.a)
    guest.check_records(lab.a, last["durable"], last["written"])


def test_a_cancelled_move_changes_nothing_and_makes_the_next_one_cheaper(lab, guests):
    guest = guests(lab, lab.a, rate=0)
    guest.ask("write 8000")
    mover = lab.a.begin("move", guest.name, "b", "--bandwidth", "40M", "--format", "json")
    wait_until(lambda: (lab.a.vm(guest.name)["move"] or {}).get("disk", {}).get("sent_bytes", 0) > 16 * MIB, 30,
               "half of the disk is over")
    lab.b.orai("cancel", guest.name)  # on either host
    out, err = mover.communicate(timeout=60)
    assert mover.returncode != 0 and "cancel" in err
    assert json.loads(out)["state"] == "stayed"
    guest.check_alive()
    wait_until(lambda: lab.where(guest.name).get("a") == "running", 10, "it runs on a")
    wait_until(lambda: lab.b.vm_state(guest.name) in ("incomplete", "replica"), 10, "b keeps what it got as a replica")

    blocks = guest.slots_between(0, guest.status()["written"])
    result = move(guest, lab.a, lab.b)
    assert result["disk_base"] == "partial"
    assert result["disk_bytes"] < (blocks * 4096) - 12 * MIB, f"{blocks} blocks were written"
    check_equal_here_and_there(guest, lab.a, lab.b)


def test_a_base_image_on_both_hosts_makes_even_the_first_move_a_difference(lab, guests, tmp_path):
    image = tmp_path / "base.raw"
    with open("/dev/urandom", "rb") as noise, open(image, "wb") as f:
        shutil.copyfileobj(_Head(noise, 64 * MIB), f)
    for host in (lab.a, lab.b):
        host.orai("image", "add", "base", image)
    guest = guests(lab, lab.a, image="base", disk="128M", rate=0)
    guest.ask("write 500")
    result = move(guest, lab.a, lab.b)
    assert result["disk_base"] == "image"
    blocks = guest.slots_between(0, guest.status()["written"])
    assert result["disk_bytes"] <= 1.10 * blocks * 4096 + 64 * 1024
    check_equal_here_and_there(guest, lab.a, lab.b)


class _Head:
    """The first bytes of an endless file."""

    def __init__(self, file, left):
        self.file, self.left = file, left

    def read(self, size):
        data = self.file.read(min(size, self.left))
        self.left -= len(data)
        return data


def test_an_old_copy_that_someone_ran_is_noticed_and_overwritten(lab, guests):
    guest = guests(lab, lab.a)
    guest.ask("write 1000")
    guest.quiet()
    move(guest, lab.a, lab.b)
    guest.ask("write 100")
    with pytest.raises(OraiError) as refused:
        lab.a.orai("start", guest.name)
    assert "b" in refused.value.err, "the error says where it is"

    # The link is cut, so that the two copies of one guest do not meet.
    lab.a.link.cut()
    lab.a.orai("start", guest.name, "--fork-old-copy")
    copy = Pulse(lab.a.namespace, GUEST)
    wait_until(lambda: json.loads(copy.ask("status"))["durable"] > 100, 30, "the old copy writes")
    copy.close()
    lab.a.orai("kill", guest.name)
    lab.a.link.heal()
    assert not same_content(lab.a.image_file(guest.name), lab.b.image_file(guest.name))

    began = time.monotonic()
    result = lab.b.orai("move", guest.name, "a", json=True)
    assert result["state"] == "moved" and time.monotonic() - began < 120
    assert result["disk_base"] == "fork" and any("fork" in note for note in result["notes"]), result["notes"]
    guest.check_alive()
    check_equal_here_and_there(guest, lab.a, lab.b)
    last = guest.power_off(lab.a)
    guest.check_records(lab.a, last["durable"], last["written"])


@pytest.mark.alone
def test_a_dry_run_predicts_and_changes_nothing(labs, guests):
    lab = labs("a", "b", rate=400_000_000)
    guest = guests(lab, lab.a, rate=0)
    guest.ask("write 4000")
    sent = lab.a.link.sent()
    predicted = lab.a.orai("move", guest.name, "b", "--dry-run", json=True)["predicted"]
    assert lab.a.link.sent() - sent < 16 * MIB
    assert lab.where(guest.name)["a"] == "running" and "running" not in (lab.b.vm_state(guest.name),)
    blocks = guest.slots_between(0, guest.status()["written"])
    assert blocks * 4096 <= predicted["disk_bytes"] <= 1.15 * blocks * 4096 + MIB
    result = move_unnoticed(guest, lab.a, lab.b)
    assert result["predicted_seconds"] is not None
    assert predicted["seconds"] < result["seconds"] * 3
    in_time(result["seconds"], 3 * predicted["seconds"], "the move")


def test_a_dry_run_that_the_destination_refuses_says_why(lab, guests):
    netns.make_bridge(lab.a.namespace, "br7")
    guest = guests(lab, lab.a, rate=0, options=["--bridge", "br7"])
    assert "br7" in refused(lab.a, "move", guest.name, "b", "--dry-run")
    guest.check_alive()


@pytest.mark.long
def test_the_rate_limit_is_honest(lab, guests):
    guest = guests(lab, lab.a, rate=0, dirty=0)
    guest.ask("write 9000")
    limit = 5_000_000  # bytes per second
    mover = lab.a.begin("move", guest.name, "b", "--bandwidth", f"{limit * 8}", "--format", "json")

    def sent():
        return (lab.a.vm(guest.name)["move"] or {}).get("disk", {}).get("sent_bytes", 0)
    wait_until(lambda: sent() > 2 * MIB, 30, "the disk is on its way")
    began, before = time.monotonic(), lab.a.link.sent()
    time.sleep(4)
    rate = (lab.a.link.sent() - before) / (time.monotonic() - began)
    mover.communicate(timeout=180)
    assert mover.returncode == 0
    assert limit * 0.95 < rate < limit * 1.05, f"{rate:.0f} bytes per second on the wire"
    guest.check_alive()


def refused(host, *words):
    with pytest.raises(OraiError) as failure:
        host.orai(*words, timeout=60)
    return failure.value.err


def test_moves_that_cannot_be_are_refused_with_the_reason(lab, guests):
    guest = guests(lab, lab.a, rate=0)
    guest.ask("write 4000")
    assert "a" in refused(lab.a, "move", guest.name, "a")
    assert "nowhere" in refused(lab.a, "move", guest.name, "nowhere")
    assert "other" in refused(lab.a, "move", "other", "b")

    mover = lab.a.begin("move", guest.name, "b", "--bandwidth", "100M")
    wait_until(lambda: lab.a.vm_state(guest.name) == "leaving", 20, "it is leaving")
    assert guest.name in refused(lab.a, "move", guest.name, "b"), "two moves at once"
    mover.communicate(timeout=120)
    assert mover.returncode == 0
    guest.check_alive()
    assert "b" in refused(lab.a, "move", guest.name, "b"), "it is no longer here"


def test_another_protocol_version_is_refused_before_anything_happens(lab, guests):
    guest = guests(lab, lab.a, rate=0)
    vm = lab.a.vm(guest.name)
    request = {"vm": vm["id"], "name": guest.name, "move": "0" * 31 + "1", "epoch": vm["epoch"],
               "protocol": {"min": 900, "max": 901}}
    with pytest.raises(ApiError) as refusal:
        lab.b.peer_api(lab.a, "POST", "/v1/arrivals", request)
    assert "version" in refusal.value.error["text"] or "protocol" in refusal.value.error["text"]
    assert lab.b.vm(guest.name) is None
    guest.check_alive()


def test_moving_while_oraid_is_killed_and_restarted_on_both_sides(lab, guests):
    guest = guests(lab, lab.a)
    guest.ask("write 4000")
    mover = lab.a.begin("move", guest.name, "b", "--bandwidth", "80M", "--detach")
    mover.communicate(timeout=30)
    wait_until(lambda: lab.a.vm_state(guest.name) == "leaving", 20, "it is leaving")
    for host in (lab.a, lab.b):
        host.kill9()
        host.start()
    wait_until(lambda: lab.where(guest.name) == {"a": "replica", "b": "running"}, 120, "it has moved")
    guest.check_alive()
    status = lab.a.orai("status", guest.name, json=True)
    assert status["vm"]["peer"] == "b"


def test_a_copy_is_dropped_as_soon_as_the_move_from_it_has_ended(lab, guests):
    guest = guests(lab, lab.a, rate=0)
    lab.a.fault(guest.name, "source.finish.end", "hold")
    lab.a.orai("move", guest.name, "b", "--detach")
    lab.a.wait_fault_reached(guest.name, "source.finish.end")
    with lab.a.begin("replica", "drop", guest.name) as dropper:
        with pytest.raises(subprocess.TimeoutExpired):
            dropper.wait(1)
        lab.a.clear_fault(guest.name)
        out, err = dropper.communicate(timeout=60)
    assert dropper.returncode == 0, out + err
    assert lab.where(guest.name) == {"b": "running"}
    guest.check_alive()
