# SPDX-License-Identifier: Apache-2.0
"""A split disk whose blocks come from more than one host: the one that the guest left, and one where it was before."""

import pytest

from host import MIB, wait_until
from test_postcopy import SLOW, borrows, check_whole, lends, switch, whole


def shares(host, guest):
    return host.vm(guest.name)["shares"]


def fetched_from(host, guest, name):
    """Bytes that came from there so far; None when it is not among those that share."""
    mine = [one for one in (borrows(host, guest) or {}).get("shares", []) if one["from"] == name]
    return mine[0]["fetched_bytes"] if mine else None


@pytest.fixture
def trip(labs, guests):
    """A guest that was on a, wrote a little on b, and is split between b and c: (lab, guest). a has an old copy."""
    def make(old=6000, new=300, after=None):
        lab = labs("a", "b", "c")
        guest = guests(lab, lab.a, rate=0)
        guest.ask(f"write {old}")
        lab.a.orai("move", guest.name, "b")
        guest.ask(f"write {new}")
        guest.ask("rate 50")
        if after:
            after(lab, guest)
        switch(guest, lab.b, lab.c)
        return lab, guest
    return make


def finish(lab, guest):
    whole(lab.c, guest, lab.b)
    guest.quiet()
    guest.check_alive()
    check_whole(guest, lab.c)


def test_blocks_come_from_both_hosts(trip):
    """b's cable is slow; a brings what b has not written since."""
    lab, guest = trip()
    most = 0

    def done():
        nonlocal most
        most = max(most, fetched_from(lab.c, guest, "a") or 0)
        return borrows(lab.c, guest) is None
    wait_until(lambda: (fetched_from(lab.c, guest, "a") or 0) > MIB, 20, "a brings blocks")
    assert shares(lab.a, guest)["to"] == "c" and shares(lab.a, guest)["bytes"] > MIB
    assert lends(lab.b, guest)["to"] == "c"
    wait_until(done, 60, "all of the disk is on c")
    assert most > 8 * MIB
    finish(lab, guest)
    wait_until(lambda: shares(lab.a, guest) is None, 40, "a's orai-vm has ended")
    assert lab.a.vm_state(guest.name) == "replica"


@pytest.mark.parametrize("how", [pytest.param("kill", marks=pytest.mark.long), "cut"])
def test_a_host_that_shares_is_lost(trip, how):
    lab, guest = trip()
    wait_until(lambda: (fetched_from(lab.c, guest, "a") or 0) > MIB, 20, "a brings blocks")
    if how == "kill":
        lab.a.kill("orai-vm", guest.name)
    else:
        lab.a.link.cut()
    finish(lab, guest)
    lab.a.link.heal()


def test_the_lender_is_lost_and_the_other_goes_on(trip):
    lab, guest = trip(after=lambda lab, guest: lab.a.link.limit(SLOW))
    wait_until(lambda: fetched_from(lab.c, guest, "a"), 20, "a brings blocks")
    lab.b.link.cut()
    before = fetched_from(lab.c, guest, "a")
    wait_until(lambda: fetched_from(lab.c, guest, "a") > before + 4 * MIB, 30, "a goes on")
    wait_until(lambda: borrows(lab.c, guest).get("error"), 30, "b is missed")
    lab.b.link.heal()
    finish(lab, guest)


@pytest.mark.long
def test_the_borrower_starts_again(trip):
    lab, guest = trip()
    wait_until(lambda: (fetched_from(lab.c, guest, "a") or 0) > 0, 20, "a brings blocks")
    lab.c.kill("orai-vm", guest.name)
    finish(lab, guest)


def test_a_copy_that_someone_ran_shares_nothing(trip):
    """It is a fork: what it holds was the VM's once, and may not be any more."""
    def run_old(lab, guest):
        lab.a.orai("start", guest.name, "--fork-old-copy")
        lab.a.orai("kill", guest.name)
    lab, guest = trip(after=run_old)
    finish(lab, guest)
    assert fetched_from(lab.c, guest, "a") is None and shares(lab.a, guest) is None


@pytest.mark.long
def test_a_copy_that_is_wanted_otherwise_is_not_shared_any_more(trip):
    lab, guest = trip()
    wait_until(lambda: (fetched_from(lab.c, guest, "a") or 0) > 0, 20, "a brings blocks")
    lab.a.orai("replica", "drop", guest.name)
    assert guest.name not in lab.a.orai("replica", "list")
    finish(lab, guest)


@pytest.mark.long
def test_back_to_the_host_that_shares(trip):
    lab, guest = trip(old=3000)
    lab.c.orai("move", guest.name, "a", timeout=120)
    assert lab.where(guest.name) == {"a": "running", "b": "replica", "c": "replica"}
    guest.quiet()
    guest.check_alive()
    check_whole(guest, lab.a)


@pytest.mark.long
def test_what_was_damaged_on_the_way_is_fetched_again(trip):
    lab, guest = trip(after=lambda lab, guest: lab.a.link.limit(SLOW))
    wait_until(lambda: fetched_from(lab.c, guest, "a"), 20, "a brings blocks")
    lab.a.fault(guest.name, "lend.run", "flip")
    finish(lab, guest)
    assert "arrived damaged" in lab.c.log()
