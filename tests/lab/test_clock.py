# SPDX-License-Identifier: Apache-2.0
"""An emulated guest's clock does not fall behind when the guest moves, though it stands still meanwhile."""

import pytest

from host import MIB, in_time, wait_until

pytestmark = pytest.mark.alone

MOVES = 5  # there and back, and again
USUAL = 0.010  # seconds that most moves make of difference at most
MOST = 0.025  # and any, where a write was slow; where it was very slow, still far from all of its blackout


def check_moves(lab, guest, *options):
    """Moves it there and back; returns what each move made of its clock, in seconds."""
    hosts, changes = [lab.a, lab.b], []
    before, counts_by = guest.pulse.clock()
    for _ in range(MOVES):
        result = hosts[0].orai("move", guest.name, hosts[1].name, *options, json=True)
        wait_until(lambda: hosts[0].vm_state(guest.name) == "replica", 30, "the move is over at its source")
        after, _ = guest.pulse.clock()
        changes.append((after - before, result["blackout_ms"] / 1000))
        before = after
        hosts.reverse()
    guest.check_alive()
    said = ", ".join(f"{change * 1000:+.1f} ms of {blackout * 1000:.0f}" for change, blackout in changes)
    print(f"the clock by {counts_by}: {said}")
    return changes, said


def check_right(changes, said):
    errors = sorted(abs(change) for change, _ in changes)
    assert all(blackout > MOST for _, blackout in changes), f"it hardly stood still, so this shows nothing: {said}"
    in_time(errors[len(errors) // 2], USUAL, f"what most moves made of its clock: {said}")
    for change, blackout in changes:
        in_time(abs(change), max(MOST, blackout / 2), f"what each move made of its clock: {said}")


@pytest.fixture
def idle(lab, guests):
    return guests(lab, lab.a, memory="256M", disk="64M", region=16 * MIB, pattern=24, dirty=0, rate=0)


def test_the_clock_is_right_after_moves(lab, idle):
    check_right(*check_moves(lab, idle))


@pytest.mark.together("userfaultfd")
def test_the_clock_is_right_when_memory_follows(lab, idle, userfaultfd):
    check_right(*check_moves(lab, idle, "--memory", "postcopy"))
