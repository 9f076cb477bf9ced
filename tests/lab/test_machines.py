# SPDX-License-Identifier: Apache-2.0
"""Machines with more than one disk and one network card: each part moves, and its way back costs what changed in it."""

import os
import shutil
import subprocess
import zlib

import netns
import pytest
from host import MIB, OraiError
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
