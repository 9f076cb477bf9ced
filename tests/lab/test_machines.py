# SPDX-License-Identifier: Apache-2.0
"""Machines with more than one disk and one network card: each part moves, and its way back costs what changed in it."""

import contextlib
import os
import subprocess
import zlib

import netns
import pytest
from host import MIB, ApiError, OraiError
from test_postcopy import switch, whole
from test_qemu10 import new_qemu  # noqa: F401, a fixture
from tiny import Pulse, same_content

SECOND_NETWORK = "10.78.0"
SECOND = f"{SECOND_NETWORK}.50"


def second_segment(lab):
    """A LAN of its own for second cards: br1 on each host, and the client in it."""
    segment = lab.namespace("lan2", netns.Segment)
    segment.plug(lab.client, "eth1")
    lab.client.ip("addr", "add", f"{SECOND_NETWORK}.100/24", "dev", "eth1")
    for host in lab.hosts.values():
        netns.make_bridge(host.namespace, "br1")
        segment.plug(host.namespace, "uplink1")
        host.namespace.ip("link", "set", "uplink1", "master", "br1")


def move(guest, source, target):
    """Moves it; it runs there, unharmed. Bytes sent of disks, and {file: ...}: what is to be sent of each disk."""
    planned = source.orai("move", guest.name, target.name, "--dry-run", json=True)["predicted"]
    result = source.orai("move", guest.name, target.name, json=True)
    assert result["state"] == "moved", result
    guest.check_alive()
    assert guest.lab.where(guest.name) == {source.name: "replica", target.name: "running"}
    return result["disk_bytes"], {disk["file"]: disk for disk in planned["disks"]}


def check_equal(guest, one, other):
    """All disks; while the guest writes nothing, a hand-over leaves two equal copies."""
    folders = [host.state / "vms" / guest.name for host in (one, other)]
    names = sorted(path.name for path in folders[0].glob("*.raw"))
    assert names == sorted(path.name for path in folders[1].glob("*.raw")) != []
    for name in names:
        assert same_content(folders[0] / name, folders[1] / name), name


def make_cdrom(folder, size=3 * MIB):
    """A file that is as good as an image of a CD-ROM, and the CRC-32 of it."""
    path = folder / "cdrom.iso"
    data = os.urandom(size // 2) + bytes(size // 2)
    path.write_bytes(data)
    return path, zlib.crc32(data)


@pytest.fixture
def loops(tmp_path):
    """Makes loop devices of so many bytes, each with its backing file; they are detached at the end."""
    made = []
    with contextlib.ExitStack() as stack:
        def make(size):
            backing = tmp_path / f"backing{len(made)}"
            with open(backing, "wb") as f:
                f.truncate(size)
            done = subprocess.run(["losetup", "--find", "--show", backing], capture_output=True, text=True)
            if done.returncode:
                pytest.skip(f"no loop device can be had: {done.stderr.strip()}")
            device = done.stdout.strip()
            made.append(device)
            stack.callback(subprocess.run, ["losetup", "--detach", device], check=True)
            return device, backing
        yield make


def whole_machine_there_and_back(lab, guests, tmp_path, uefi):
    """Two disks, two cards, a CD-ROM."""
    second_segment(lab)
    cdrom, crc = make_cdrom(tmp_path)
    options = ["--disk", "128M", "--bridge", "br1", "--cdrom", cdrom, *(["--uefi"] if uefi else [])]
    guest = guests(lab, lab.a, memory="160M", options=options, words=f"pulse.ip2={SECOND}/24")
    guest.ask("write 2000")
    shown = lab.a.vm(guest.name)
    others = [("cdrom", 3 * MIB), *([("uefi-vars", 540672)] if uefi else [])]
    assert [(disk["type"], disk["size"]) for disk in shown["disks"]] == [("disk", 256 * MIB), ("disk", 128 * MIB), *others]
    assert shown["uefi"] == uefi
    assert [nic["bridge"] for nic in shown["nics"]] == ["br0", "br1"]
    other_way_in = Pulse(lab.client, SECOND)

    _, disks = move(guest, lab.a, lab.b)
    assert disks["cdrom.raw"]["base"] == "none" and disks["cdrom.raw"]["bytes"] >= 1.5 * MIB
    assert guest.ask("crc /dev/sr0") == {"crc32": crc, "bytes": 3 * MIB}
    check_other = other_way_in.echoes
    before = guest.quiet()
    move(guest, lab.b, lab.a)
    check_equal(guest, lab.a, lab.b)

    guest.ask("rate 100")
    guest.ask("write 300")
    after = guest.quiet()
    sent, disks = move(guest, lab.a, lab.b)
    changed = 0
    for name, counts in (("disk0.raw", (before, after)), ("disk1.raw", (before["second"], after["second"]))):
        blocks = guest.slots_between(*(count["written"] for count in counts))
        assert blocks >= 250 and disks[name]["base"] == "replica"
        assert blocks * 4096 <= disks[name]["bytes"] <= 1.10 * blocks * 4096 + 64 * 1024, disks
        changed += blocks * 4096
    for name in disks.keys() - {"disk0.raw", "disk1.raw"}:
        assert disks[name]["base"] == "replica" and disks[name]["bytes"] == 0, "nobody has written to it"
    assert sent <= 1.10 * changed + 128 * 1024
    assert guest.ask("crc /dev/sr0")["crc32"] == crc
    check_equal(guest, lab.a, lab.b)

    assert other_way_in.error is None and other_way_in.echoes > check_other, "the second card's connection lives on"
    other_way_in.close()
    last = guest.power_off(lab.b)
    guest.check_records(lab.b, last["durable"], last["written"])
    guest.check_records(lab.b, last["second"]["durable"], last["second"]["written"], disk=1)


def test_a_bios_machine_moves_there_and_back_under_load(lab, guests, tmp_path):
    whole_machine_there_and_back(lab, guests, tmp_path, uefi=False)


def test_a_uefi_machine_moves_there_and_back_under_load(lab, guests, tmp_path):
    whole_machine_there_and_back(lab, guests, tmp_path, uefi=True)


def test_a_uefi_machine_moves_between_different_qemus(labs, guests, tmp_path, new_qemu):
    whole_machine_there_and_back(labs("a", "b", qemus={"b": new_qemu}), guests, tmp_path, uefi=True)


@pytest.mark.long
def test_a_uefi_machine_is_there_before_its_disks(lab, guests, tmp_path):
    cdrom, crc = make_cdrom(tmp_path, 8 * MIB)
    guest = guests(lab, lab.a, memory="160M", rate=0, options=["--disk", "128M", "--cdrom", cdrom, "--uefi"])
    guest.ask("write 2000")
    result = switch(guest, lab.a, lab.b)
    assert result["disk_bytes"] < 200_000
    assert guest.ask("crc /dev/sr0")["crc32"] == crc, "read while the CD-ROM is still on its way"
    guest.ask("write 200")
    whole(lab.b, guest, lab.a)
    guest.quiet()
    _, disks = move(guest, lab.b, lab.a)
    assert {disk["base"] for disk in disks.values()} == {"replica"}
    assert disks["cdrom.raw"]["bytes"] == 0
    check_equal(guest, lab.a, lab.b)
    last = guest.power_off(lab.a)
    guest.check_records(lab.a, last["durable"], last["written"])
    guest.check_records(lab.a, last["second"]["durable"], last["second"]["written"], disk=1)


def test_a_cdrom_that_the_destination_has_as_an_image_is_not_sent(lab, guests, tmp_path):
    cdrom, crc = make_cdrom(tmp_path)
    lab.b.orai("image", "add", "tools", cdrom)
    guest = guests(lab, lab.a, rate=0, options=["--cdrom", cdrom])
    assert lab.a.vm(guest.name)["disks"][1]["image"] == lab.b.api("GET", "/v1/images")["images"][0]["hash"]
    sent, disks = move(guest, lab.a, lab.b)
    assert disks["cdrom.raw"]["base"] == "image" and disks["cdrom.raw"]["bytes"] == 0 and sent < MIB
    assert guest.ask("crc /dev/sr0")["crc32"] == crc


def test_a_destination_without_the_firmware_refuses_and_says_what_to_install(labs, guests, tmp_path):
    lab = labs("a")
    for name, size in (("none", None), ("other", 2 * MIB)):
        folder = tmp_path / name
        folder.mkdir()
        if size:
            (folder / "OVMF_CODE_4M.fd").write_bytes(bytes(size))
        lab.add(name, build=lab.a.build, options=["--firmware", folder])
    guest = guests(lab, lab.a, rate=0, memory="160M", options=["--uefi"])
    for name, words in (("none", "install the package ovmf"), ("other", "same release")):
        with pytest.raises(OraiError) as refused:
            lab.a.orai("move", guest.name, name)
        assert words in refused.value.err
        with pytest.raises(OraiError) as refused:
            lab.hosts["none"].orai("create", "web2", "--disk", "16M", "--uefi")
        assert "install the package ovmf" in refused.value.err
    guest.check_alive()


def check_device(host, guest, device, disk=0):
    shown = host.vm(guest.name)["disks"][disk]
    assert shown["device"] == device and os.readlink(host.image_file(guest.name, disk)) == device
    assert device in host.orai("info", guest.name)


def test_a_block_device_becomes_a_file_elsewhere_and_is_the_device_again_at_home(lab, guests, loops, tmp_path):
    image = tmp_path / "base.raw"
    image.write_bytes(os.urandom(8 * MIB))
    for host in (lab.a, lab.b):
        host.orai("image", "add", "base", image)
    (system, _), (data, backing) = loops(96 * MIB), loops(32 * MIB)
    with open(system, "r+b") as stale:
        stale.write(os.urandom(32 * MIB))
    with open(data, "r+b") as kept:
        kept.seek(24 * MIB)
        kept.write(held := os.urandom(4 * MIB))
    guest = guests(lab, lab.a, image="base", disk=system, region=16 * MIB, rate=0, options=["--disk", data])
    guest.ask("write 500")
    check_device(lab.a, guest, system)
    check_device(lab.a, guest, data, disk=1)

    _, disks = move(guest, lab.a, lab.b)
    assert disks["disk0.raw"]["base"] == "image" and disks["disk1.raw"]["base"] == "none"
    assert [disk["device"] for disk in lab.b.vm(guest.name)["disks"]] == [None, None]
    check_equal(guest, lab.a, lab.b)
    assert held in lab.b.image_file(guest.name, 1).read_bytes()
    assert lab.b.image_file(guest.name, 0).stat().st_blocks * 512 < 40 * MIB, "thin stays thin"

    before = guest.status()
    guest.ask("write 200")
    sent, disks = move(guest, lab.b, lab.a)
    blocks = guest.slots_between(before["written"], before["written"] + 200)
    assert {disk["base"] for disk in disks.values()} == {"replica"} and sent <= 2.2 * blocks * 4096 + 128 * 1024
    check_device(lab.a, guest, system)
    check_equal(guest, lab.a, lab.b)

    # TRIM gives space back, on the device and, after a move, in the file.
    places = (backing, lab.b.image_file(guest.name, 1))
    before = [space_of(place) for place in places]
    assert min(before) >= 4 * MIB
    guest.ask(f"trim {16 * MIB} {16 * MIB}")
    guest.ask("sync")
    sent, _ = move(guest, lab.a, lab.b)
    assert sent < MIB, "holes are not sent as zeroes"
    after = [space_of(place) for place in places]
    assert all(now <= then - 3.9 * MIB for now, then in zip(after, before)), (before, after)
    check_equal(guest, lab.a, lab.b)

    last = guest.power_off(lab.b)
    guest.check_records(lab.a, last["durable"])
    lab.a.orai("replica", "drop", guest.name)
    assert holds_data(system), "a device is left as it is"


def space_of(file):
    subprocess.run(["sync", "-f", file], check=True)
    return file.stat().st_blocks * 512


def holds_data(device):
    with open(device, "rb") as f:
        return any(f.read(MIB))


def test_a_replica_can_be_put_on_a_block_device(lab, guests, loops):
    """As docs/operations.md says it."""
    device, _ = loops(256 * MIB)
    with open(device, "r+b") as stale:
        stale.write(os.urandom(64 * MIB))
    guest = guests(lab, lab.a, rate=0, region=16 * MIB)
    guest.ask("write 500")
    move(guest, lab.a, lab.b)
    file = lab.a.image_file(guest.name)
    for path in file.parent.glob("disk0.raw*"):
        path.unlink()
    file.symlink_to(device)
    _, disks = move(guest, lab.b, lab.a)
    assert disks["disk0.raw"]["base"] == "none"
    check_device(lab.a, guest, device)
    check_equal(guest, lab.a, lab.b)
    written = guest.ask("write 100")["written"]
    sent, _ = move(guest, lab.a, lab.b)
    assert sent <= 1.1 * guest.slots_between(written - 100, written) * 4096 + 64 * 1024


def test_devices_that_must_not_be_taken_are_refused(lab, loops, tmp_path):
    (device, _), (other, _) = loops(16 * MIB), loops(16 * MIB)

    def refusal(*disks, name="web2"):
        with pytest.raises(OraiError) as refused:
            lab.a.orai("create", name, *[word for disk in disks for word in ("--disk", disk)])
        assert lab.a.vm(name) is None
        return refused.value.err
    lab.a.orai("create", "web1", "--disk", device)
    assert 'the VM "web1" has this block device as disk0.raw' in refusal(device)
    tmp_path.chmod(0o777)
    (tmp_path / "link").symlink_to(other)
    assert "not only root can change the folder" in refusal(tmp_path / "link")
    subprocess.run(["mke2fs", "-q", other], check=True)
    mount = tmp_path / "mnt"
    mount.mkdir()
    subprocess.run(["mount", other, mount], check=True)
    try:
        assert "busy" in refusal(other).lower()
    finally:
        subprocess.run(["umount", mount], check=True)
    assert "other size" in refusal_with_size(lab, other)
    assert holds_data(other), "nothing has been written to it"


def refusal_with_size(lab, device):
    with pytest.raises(ApiError) as refused:
        lab.a.api("POST", "/v1/vms", {"name": "web2", "disks": [{"device": device, "size": MIB}]})
    return refused.value.error["text"]
