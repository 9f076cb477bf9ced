# SPDX-License-Identifier: Apache-2.0
"""Integrity: two copies are compared without sending them, and a flipped bit is found, named and not spread."""

import json
import time

import pytest

from host import MIB, OraiError, in_time, wait_until
from test_move import move
from test_postcopy import borrows, check_whole, switch, whole
from tiny import same_content

BLOCK = 4096


def verify(host, name, against, *options):
    return host.orai("disk", "verify", name, "--against", against, *options, json=True)


def find_damage(host, name, against):
    """What a comparison that fails prints: (result, message)."""
    with pytest.raises(OraiError) as e:
        verify(host, name, against)
    assert e.value.code == 1
    return json.loads(e.value.out), e.value.err


def flip(image, block, bit=0x10):
    """Turns one bit over behind Orai's back."""
    with open(image, "r+b", buffering=0) as f:
        f.seek(block * BLOCK + 1000)
        byte = f.read(1)[0]
        f.seek(block * BLOCK + 1000)
        f.write(bytes([byte ^ bit]))


def written_blocks(image):
    """Numbers of the blocks that hold anything."""
    zeroes = bytes(BLOCK)
    with open(image, "rb") as f:
        return [number for number, block in enumerate(iter(lambda: f.read(BLOCK), b"")) if block != zeroes]


@pytest.fixture
def moved(lab, guests):
    """A guest that has come from a to b; a has a replica."""
    guest = guests(lab, lab.a, rate=0)
    guest.ask("write 3000")
    move(guest, lab.a, lab.b)
    return lab, guest


def test_two_copies_are_proved_equal_from_either_side_while_the_guest_writes(moved):
    lab, guest = moved
    still = verify(lab.a, guest.name, "b")
    assert still["equal"] and still["differences"] == []
    guest.ask("rate 200")
    guest.ask("write 200")
    for host, other in ((lab.a, lab.b), (lab.b, lab.a)):
        result = verify(host, guest.name, other.name)
        disk = result["disks"][0]
        assert result["equal"] and result["here"] == host.name and result["against"] == other.name
        assert disk["changed"] > 0, "what the guest writes since is told apart"
        assert disk["compared"] + disk["changed"] == disk["size"]
    assert "COMPARED" in lab.a.orai("disk", "verify", guest.name, "--against", "b")
    guest.check_alive()


def test_only_hashes_go_over_the_cable(moved):
    lab, guest = moved

    def crossed():
        return int(lab.b.namespace.run("cat", "/sys/class/net/uplink/statistics/rx_bytes"))
    before = crossed()
    disk = verify(lab.a, guest.name, "b")["disks"][0]
    assert crossed() - before < disk["size"] / 100
    assert disk["compared"] >= 3000 * BLOCK


def test_a_bit_that_flips_on_the_replicas_disk_is_found_and_named(moved):
    lab, guest = moved
    image = lab.a.image_file(guest.name)
    blocks = written_blocks(image)
    chosen = sorted({blocks[5], blocks[len(blocks) // 2], blocks[-3]})
    for block in chosen:
        flip(image, block)
    for host, other in ((lab.b, "a"), (lab.a, "b")):
        result, message = find_damage(host, guest.name, other)
        assert [d["block"] for d in result["differences"]] == chosen
        assert result["different"] == len(chosen) and not result["equal"]
        assert f"{len(chosen)} blocks" in message and "on a" in message and "on b" in message
    # A damaged replica is given up; then a move sends everything.
    lab.a.orai("replica", "drop", guest.name)
    move(guest, lab.b, lab.a)
    assert verify(lab.a, guest.name, "b")["equal"]


def test_a_bit_that_flips_below_a_running_guest_is_found_and_does_not_spread(moved):
    lab, guest = moved
    image, replica = lab.b.image_file(guest.name), lab.a.image_file(guest.name)
    block = written_blocks(replica)[40]
    good = replica.read_bytes()[block * BLOCK:(block + 1) * BLOCK]
    flip(image, block)
    result, _ = find_damage(lab.a, guest.name, "b")
    assert [(d["block"], d["count"]) for d in result["differences"]] == [(block, 1)]
    guest.ask("write 100")
    move(guest, lab.b, lab.a)
    again = replica.read_bytes()[block * BLOCK:(block + 1) * BLOCK]
    assert again == good, "a return sends what was written, and nobody wrote this"
    result, _ = find_damage(lab.a, guest.name, "b")
    assert [d["block"] for d in result["differences"]] == [block]


def test_a_third_copy_says_which_of_two_is_damaged(labs, guests):
    lab = labs("a", "b", "c")
    guest = guests(lab, lab.a, rate=0)
    guest.ask("write 1000")
    move(guest, lab.a, lab.b)
    guest.ask("write 100")
    move(guest, lab.b, lab.c)
    block = written_blocks(lab.a.image_file(guest.name))[7]
    flip(lab.a.image_file(guest.name), block)
    assert verify(lab.b, guest.name, "c")["equal"]
    result, _ = find_damage(lab.b, guest.name, "a")  # two replicas, the VM itself elsewhere
    assert [d["block"] for d in result["differences"]] == [block]
    assert result["disks"][0]["changed"] > 0, "b is one hand-over newer than a"


def test_a_vm_that_is_stopped_is_compared_too(moved):
    lab, guest = moved
    guest.power_off(lab.b)
    assert verify(lab.a, guest.name, "b")["equal"]
    assert same_content(lab.a.image_file(guest.name), lab.b.image_file(guest.name)) or \
        verify(lab.b, guest.name, "a")["disks"][0]["changed"] > 0


@pytest.mark.long
def test_a_move_need_not_wait_for_a_comparison(moved):
    lab, guest = moved
    slow = lab.a.begin("disk", "verify", guest.name, "--against", "b", "--rate", "2MB/s", "--format", "json")
    wait_until(lambda: any(o["kind"] == "verify" and o["state"] == "running"
                           for o in lab.a.api("GET", "/v1/operations")["operations"]), 10, "it runs")
    guest.ask("write 100")
    move(guest, lab.b, lab.a)
    out, err = slow.communicate(timeout=120)
    assert slow.returncode == 0, err
    assert json.loads(out)["equal"]


def test_a_comparison_is_cancelled(moved):
    lab, guest = moved
    slow = lab.a.begin("disk", "verify", guest.name, "--against", "b", "--rate", "1100000B/s")
    wait_until(lambda: any(o["kind"] == "verify" and (o["progress"] or {}).get("done_bytes")
                           for o in lab.a.api("GET", "/v1/operations")["operations"]), 20, "it is under way")
    with pytest.raises(OraiError) as e:
        verify(lab.a, guest.name, "b")
    assert e.value.code == 4 and "orai cancel" in e.value.err
    began = time.monotonic()
    assert "comparison" in lab.a.orai("cancel", guest.name)
    _, err = slow.communicate(timeout=30)
    assert slow.returncode != 0 and "cancelled" in err
    in_time(time.monotonic() - began, 10, "the end")
    guest.check_alive()


def test_what_cannot_be_compared_is_said(lab, guests):
    guest = guests(lab, lab.a, rate=0)
    for against, words in (("nowhere", "nowhere"), ("a", "this host"), ("b", guest.name)):
        with pytest.raises(OraiError) as e:
            verify(lab.a, guest.name, against)
        assert words in e.value.err, e.value.err
    with pytest.raises(OraiError) as e:
        lab.a.orai("disk", "verify", "no-such-vm", "--against", "b")
    assert e.value.code == 5


@pytest.mark.long
def test_a_peer_that_is_away_is_named(moved):
    lab, guest = moved
    lab.b.stop()
    with pytest.raises(OraiError) as e:
        verify(lab.a, guest.name, "b")
    assert "host b" in e.value.err and "next:" in e.value.err
    lab.b.start()


def test_a_bit_that_flips_in_transit_stops_the_move_and_is_named(lab, guests):
    guest = guests(lab, lab.a, rate=0)
    guest.ask("write 3000")
    lab.a.fault(guest.name, "source.run", "flip")
    with pytest.raises(OraiError) as e:
        lab.a.orai("move", guest.name, "b")
    assert lab.a.has_reached(guest.name, "source.run")
    assert "arrived damaged" in e.value.err and "host b" in e.value.err and "of disk 0" in e.value.err, e.value.err
    guest.check_alive()
    wait_until(lambda: lab.where(guest.name).get("a") == "running", 10, "it runs on a")
    wait_until(lambda: lab.b.vm_state(guest.name) != "arriving", 20, "b has given up")
    move(guest, lab.a, lab.b)
    assert verify(lab.a, guest.name, "b")["equal"]


def test_a_bit_that_flips_on_the_way_of_a_late_block_is_fetched_again(labs, guests):
    lab = labs("a", "b")
    guest = guests(lab, lab.a, rate=0)
    guest.ask("write 4000")
    switch(guest, lab.a, lab.b)
    assert borrows(lab.b, guest)["missing_bytes"] > 2 * MIB
    lab.a.fault(guest.name, "lend.run", "flip")
    lab.a.wait_fault_reached(guest.name, "lend.run")
    whole(lab.b, guest, lab.a)
    guest.quiet()
    assert verify(lab.b, guest.name, "a")["equal"]
    check_whole(guest, lab.b)


def test_all_disks_of_a_vm_are_compared_and_the_damaged_one_is_named(lab, guests, tmp_path):
    cdrom = tmp_path / "tools.iso"
    cdrom.write_bytes(b"tools" * MIB)
    guest = guests(lab, lab.a, rate=0, options=("--disk", "32M", "--cdrom", cdrom))
    guest.ask("write 500")
    move(guest, lab.a, lab.b)
    files = [disk["file"] for disk in lab.b.vm(guest.name)["disks"]]
    result = verify(lab.a, guest.name, "b")
    assert result["equal"] and [disk["file"] for disk in result["disks"]] == files and len(files) == 3
    flip(lab.a.state / "vms" / guest.name / files[2], 100)
    result, _ = find_damage(lab.b, guest.name, "a")
    assert result["differences"] == [{"file": files[2], "block": 100, "count": 1, "offset": 100 * BLOCK}]
    assert [disk["equal"] for disk in result["disks"]] == [True, True, False]
