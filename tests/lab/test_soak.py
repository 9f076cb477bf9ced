# SPDX-License-Identifier: Apache-2.0
"""Random moves among three hosts under load, with something random breaking at a random moment of each, not only at the
fault points. After each: the guest is on exactly one host, was never rebooted nor run twice, every promised record is
there, and a move in which nothing is written leaves two equal disks. The seed is in the test's name.
"""

import random
import time

import pytest

from faults import GONE
from host import wait_until
from images import differing_blocks
from test_faults import check_whole, settle
from tiny import MIB

MOVES = 17  # with three seeds more than 50
MODES = ("precopy", "precopy", "postcopy", "hybrid")


def kill_if_there(host, kind, name):
    try:
        host.kill(kind, name)
    except ProcessLookupError:
        pass  # it does not run yet, or any more


def kill_oraid(host):
    host.kill9()
    host.start()


def cut(host, seconds):
    host.link.cut()
    time.sleep(seconds)
    host.link.heal()


STRIKES = {
    "nothing": lambda source, destination, name: None,
    "kill-source-orai-vm": lambda source, destination, name: kill_if_there(source, "orai-vm", name),
    "kill-destination-orai-vm": lambda source, destination, name: kill_if_there(destination, "orai-vm", name),
    "kill-both-orai-vm": lambda source, destination, name: [kill_if_there(host, "orai-vm", name)
                                                            for host in (source, destination)],
    "kill-source-oraid": lambda source, destination, name: kill_oraid(source),
    "kill-destination-oraid": lambda source, destination, name: kill_oraid(destination),
    "cut-short": lambda source, destination, name: cut(destination, 1),
    "cut-long": lambda source, destination, name: cut(destination, GONE),
    "cancel": lambda source, destination, name: source.orai("cancel", name, check=False),
}


def settled(lab, guest):
    """The host that has the guest, and all of its disk."""
    home = settle(lab, guest)
    wait_until(lambda: home.vm(guest.name)["borrows"] is None, 120, f"all of the disk is on {home.name}")
    return home


def troubled_move(dice, lab, guest):
    source = settle(lab, guest)
    destination = dice.choice([host for host in lab.hosts.values() if host is not source])
    mover = source.begin("move", guest.name, destination.name, "--bandwidth", dice.choice(["60M", "500M"]),
                         "--mode", dice.choice(MODES))
    time.sleep(dice.uniform(0, 3))
    STRIKES[dice.choice(list(STRIKES))](source, destination, guest.name)
    mover.communicate(timeout=100)
    check_whole(guest, settled(lab, guest))


def quiet_move(dice, lab, guest):
    source = settle(lab, guest)
    destination = dice.choice([host for host in lab.hosts.values() if host is not source])
    status = guest.quiet()
    source.orai("move", guest.name, destination.name, "--mode", dice.choice(MODES))
    assert settled(lab, guest) is destination
    assert not differing_blocks(source.image_file(guest.name), destination.image_file(guest.name))
    guest.check_records(destination, status["durable"], status["written"])
    guest.ask("dirty 1")
    guest.ask("rate 50")


@pytest.mark.long
@pytest.mark.parametrize("seed", range(3))
def test_random_moves_with_random_trouble(labs, guests, seed):
    dice = random.Random(seed)
    lab = labs("a", "b", "c")
    guest = guests(lab, lab.a, disk="64M", region=16 * MIB, pattern=8, dirty=1, rate=50)
    for number in range(MOVES):
        troubled_move(dice, lab, guest)
        if number % 3 == 2:
            quiet_move(dice, lab, guest)
    guest.quiet()
    for host in lab.hosts.values():
        home = settle(lab, guest)
        if home is not host:
            home.orai("move", guest.name, host.name)
    home = settle(lab, guest)
    last = guest.power_off(home)
    for host in lab.hosts.values():
        guest.check_records(host, last["durable"], last["written"])
