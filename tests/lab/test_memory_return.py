# SPDX-License-Identifier: Apache-2.0
"""A host keeps the memory of a guest that has left: when it comes back, what is the same is named instead of sent. Whatever
becomes of that file, it costs bytes and nothing else."""

import os
import re
import shutil
import subprocess

import pytest

from host import MIB, wait_until
from lab import BUILD
from test_postcopy import FAST, lends, switch, whole
from test_qemu10 import new_qemu  # noqa: F401

PAGES = 4096  # where the RAM begins in the file


def checkpoint(host, guest):
    return host.state / "vms" / guest.name / "memory.checkpoint"


def vm_log(host, guest):
    return (host.state / "vms" / guest.name / "orai-vm.log").read_text()


def moved(guest, source, target, *options):
    result = source.orai("move", guest.name, target.name, *options, json=True)
    assert result["state"] == "moved" and result["memory_later_bytes"] == 0
    states = guest.lab.where(guest.name)
    assert states.pop(target.name) == "running" and "running" not in states.values()
    guest.check_alive()
    wait_until(lambda: checkpoint(source, guest).exists() or "is not kept" in vm_log(source, guest), 40,
               f"the memory is kept on {source.name}, or cannot be")
    return result


def writers(host):
    """Processes that keep a guest's memory."""
    done = subprocess.run(["pgrep", "--full", f"--state-dir {host.state} .*keep-ram"], capture_output=True, text=True)
    return done.stdout.split()


def is_cheap(back, first):
    assert back["memory_bytes"] <= 0.3 * first["memory_bytes"]
    assert back["memory_found_bytes"] >= 0.7 * first["memory_bytes"]


@pytest.fixture
def idle(labs, guests):
    """A guest that does next to nothing: (lab, guest)."""
    def make(*names, disk_sizes=None, **options):
        lab = labs(*(names or ("a", "b")), disk_sizes=disk_sizes, **options)
        return lab, guests(lab, lab.a, disk="64M", region=16 * MIB, pattern=16, dirty=0, rate=0)
    return make


def test_the_way_back_sends_what_changed(idle):
    lab, guest = idle()
    first = moved(guest, lab.a, lab.b)
    assert first["memory_found_bytes"] == 0 and first["memory_zero_bytes"] > 0
    assert checkpoint(lab.a, guest).stat().st_mode & 0o777 == 0o600 and not checkpoint(lab.b, guest).exists()
    shown = {copy["host"]: copy["checkpoint"] for copy in lab.b.orai("replica", "list", guest.name, json=True)}
    assert shown["a"] > 16 * MIB and shown["b"] == 0

    is_cheap(moved(guest, lab.b, lab.a), first)
    assert not checkpoint(lab.a, guest).exists(), "it runs here"
    guest.ask("dirty 4")
    back = moved(guest, lab.a, lab.b)
    assert back["memory_found_bytes"] > 0, "also while it writes to its memory"
    guest.ask("dirty 0")
    is_cheap(moved(guest, lab.b, lab.a), first)
    guest.power_off(lab.a)
    lab.b.orai("replica", "drop", guest.name)
    assert not checkpoint(lab.b, guest).exists()


def test_the_first_trip_is_compressed_where_the_link_is_slow(idle):
    lab, guest = idle(rate=100_000_000)
    first = moved(guest, lab.a, lab.b)
    assert first["memory_saved_bytes"] > 4 * MIB
    is_cheap(moved(guest, lab.b, lab.a), first)


def test_it_is_kept_while_the_disk_still_follows(idle):
    lab, guest = idle()
    guest.ask("write 4000")
    switch(guest, lab.a, lab.b)
    wait_until(lambda: checkpoint(lab.a, guest).exists(), 30, "the memory is kept on a")
    assert lends(lab.a, guest), "long before its orai-vm ends"
    lab.a.link.limit(FAST)
    whole(lab.b, guest, lab.a)
    guest.check_alive()


def test_three_hosts(idle):
    lab, guest = idle("a", "b", "c")
    first = moved(guest, lab.a, lab.b)
    moved(guest, lab.b, lab.c)
    is_cheap(moved(guest, lab.c, lab.a), first)
    is_cheap(moved(guest, lab.a, lab.b), first)


@pytest.mark.parametrize("one,other", [("7.2", "10.0"), pytest.param("10.0", "10.0", marks=pytest.mark.long)])
def test_between_qemus(idle, new_qemu, one, other):  # noqa: F811
    lab, guest = idle(qemus={name: new_qemu for name, version in (("a", one), ("b", other)) if version == "10.0"})
    first = moved(guest, lab.a, lab.b)
    is_cheap(moved(guest, lab.b, lab.a), first)
    is_cheap(moved(guest, lab.a, lab.b), first)


# --- damage -----------------------------------------------------------------------------------------------------------

def overwrite(path, offset, data):
    with open(path, "r+b") as f:
        f.seek(offset)
        f.write(data)


def cut(path):
    with open(path, "r+b") as f:
        f.truncate(PAGES + 20 * MIB)


def spoil_everywhere(path, skip=0):
    """A byte of each page that is there but the first ones. Returns how many."""
    spoilt = 0
    with open(path, "r+b") as f:
        for at in range(PAGES, path.stat().st_size, 4096):
            f.seek(at)
            if f.read(4096).strip(b"\0"):
                spoilt += 1
                if spoilt > skip:
                    f.seek(at + 1000)
                    f.write(b"wrong")
    return max(spoilt - skip, 0)


@pytest.mark.parametrize("damage,said", [
    (lambda path: overwrite(path, 16, b"another VM's id."), "not one of this VM"),
    (lambda path: overwrite(path, 40, bytes(8)), "not one of this VM"),
    (cut, "not one of this VM"),
    (lambda path: path.write_bytes(b""), "not one of this VM"),
    (spoil_everywhere, ""),
    (lambda path: path.unlink(), ""),
], ids=["other-vm", "other-size", "cut", "empty", "spoilt", "gone"])
def test_a_damaged_checkpoint_costs_bytes_only(idle, damage, said):
    lab, guest = idle()
    first = moved(guest, lab.a, lab.b)
    damage(checkpoint(lab.a, guest))
    back = moved(guest, lab.b, lab.a)
    assert back["memory_found_bytes"] < MIB and back["memory_zero_bytes"] > 0
    assert back["memory_bytes"] + back["memory_saved_bytes"] > 0.7 * first["memory_bytes"]
    assert not said or re.search(f"memory comes whole.*{said}", vm_log(lab.a, guest))
    is_cheap(moved(guest, lab.a, lab.b), first)


def test_one_that_changes_while_it_is_used_fails_the_move_and_the_next_one_works(idle):
    lab, guest = idle()
    first = moved(guest, lab.a, lab.b)
    lab.b.fault(guest.name, "source.transfer.memory", "hold")
    mover = lab.b.begin("move", guest.name, "a", "--format", "json")
    lab.b.wait_fault_reached(guest.name, "source.transfer.memory")  # it is told by now
    spoil_everywhere(checkpoint(lab.a, guest))
    lab.b.clear_fault(guest.name)
    out, err = mover.communicate(timeout=60)
    assert mover.returncode != 0 and "memory.checkpoint has changed" in err, err
    wait_until(lambda: lab.where(guest.name)["b"] == "running", 30, "it runs on b")
    guest.check_alive()
    assert not checkpoint(lab.a, guest).exists()
    back = moved(guest, lab.b, lab.a)
    assert back["memory_found_bytes"] == 0
    is_cheap(moved(guest, lab.a, lab.b), first)


def test_a_cancelled_way_back_can_be_tried_again(idle):
    lab, guest = idle()
    first = moved(guest, lab.a, lab.b)
    lab.b.fault(guest.name, "source.pause.begin", "hold")
    mover = lab.b.begin("move", guest.name, "a", "--format", "json")
    lab.b.wait_fault_reached(guest.name, "source.pause.begin")
    lab.a.orai("cancel", guest.name)
    lab.b.clear_fault(guest.name)
    assert mover.wait(60) != 0
    wait_until(lambda: lab.where(guest.name)["b"] == "running", 30, "it runs on b")
    guest.check_alive()
    wait_until(lambda: lab.a.vm_state(guest.name) in ("replica", "incomplete"), 10, "a has given up")
    assert checkpoint(lab.a, guest).exists()
    is_cheap(moved(guest, lab.b, lab.a), first)


def test_where_there_is_no_room_none_is_kept(idle):
    lab, guest = idle(disk_sizes={"a": 320 * MIB})
    free = shutil.disk_usage(lab.a.state).free
    lab.a.fill_disk(leave=min(free, 48 * MIB))
    moved(guest, lab.a, lab.b)
    assert not list(checkpoint(lab.a, guest).parent.glob("memory.*"))
    assert re.search("memory is not kept.*No space", vm_log(lab.a, guest))
    wait_until(lambda: not writers(lab.a), 10, "and nobody holds the memory")
    lab.a.free_disk()
    assert moved(guest, lab.b, lab.a)["memory_found_bytes"] == 0


def keep(folder, ram, *words):
    """The process that an orai-vm starts to write a guest's memory; (exit status, what it says)."""
    options = {"--state-dir": folder, "--vm-dir": folder, "--run-dir": folder, "--host-name": "a"}
    done = subprocess.run([BUILD / "orai-vm", *(str(word) for option in options.items() for word in option), "keep-ram", *words],
                          preexec_fn=lambda: os.dup2(ram, 3), pass_fds=[3], capture_output=True, text=True)
    return done.returncode, done.stderr


def test_its_process_writes_what_it_is_given_or_nothing(tmp_path):
    ram, vm = os.memfd_create("ram"), "00112233445566778899aabbccddeeff"
    os.pwrite(ram, b"x" * PAGES, 5 * PAGES)
    os.ftruncate(ram, 4 * MIB)
    code, said = keep(tmp_path, ram, vm, "7", str(5 * MIB))
    assert code == 1 and "memory is not kept" in said and not list(tmp_path.iterdir())
    for wrong in ([vm, "7"], ["xyz", "7", "4096"], [vm, "-7", "4096"], [vm, "7", "4096 "]):
        code, said = keep(tmp_path, ram, *wrong)
        assert code == 2 and "keep-ram" in said and not list(tmp_path.iterdir())
    assert os.pread(ram, 1, 5 * PAGES) == b"x"
    assert keep(tmp_path, ram, vm, "7", str(4 * MIB)) == (0, "")
    data = (tmp_path / "memory.checkpoint").read_bytes()
    assert len(data) == PAGES + 4 * MIB and data[6 * PAGES:7 * PAGES] == b"x" * PAGES
    assert os.pread(ram, 1, 5 * PAGES) == b"\0", "its memory is free"
    os.close(ram)


def test_dropping_the_copy_drops_it(idle):
    lab, guest = idle()
    moved(guest, lab.a, lab.b)
    lab.a.orai("replica", "drop", guest.name)
    assert not checkpoint(lab.a, guest).exists()
    back = moved(guest, lab.b, lab.a)
    assert back["memory_found_bytes"] == 0 and back["disk_base"] == "none"
