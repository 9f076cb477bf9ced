# SPDX-License-Identifier: Apache-2.0
"""Machines with more than one disk and one network card: each part moves, and its way back costs what changed in it."""

import netns
from host import MIB
from lab import GUEST
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


def test_two_disks_and_two_cards_move_there_and_back_under_load(lab, guests):
    second_segment(lab)
    guest = guests(lab, lab.a, options=["--disk", "128M", "--bridge", "br1"], words=f"pulse.ip2={SECOND}/24")
    guest.ask("write 2000")
    shown = lab.a.vm(guest.name)
    assert [disk["size"] for disk in shown["disks"]] == [256 * MIB, 128 * MIB]
    assert [nic["bridge"] for nic in shown["nics"]] == ["br0", "br1"]
    other_way_in = Pulse(lab.client, SECOND)

    move(guest, lab.a, lab.b)
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
    assert sent <= 1.10 * changed + 128 * 1024
    check_equal(guest, lab.a, lab.b)

    assert other_way_in.error is None and other_way_in.echoes > check_other, "the second card's connection lives on"
    other_way_in.close()
    last = guest.power_off(lab.b)
    guest.check_records(lab.b, last["durable"], last["written"])
    guest.check_records(lab.b, last["second"]["durable"], last["second"]["written"], disk=1)
