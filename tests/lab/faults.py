# SPDX-License-Identifier: Apache-2.0
"""Everything that can go wrong, and when: the matrix of test_faults.py.

When: the fault points of src/move. Each stage of the table in stages.c has "SIDE.STAGE.begin" and "SIDE.STAGE.end", and
the sources name some more. Both are read from the sources, so that a new stage or point cannot be forgotten.

What: a Kind. The side that stands at the point is held there (fault.h), the kind strikes, the hold is taken away.
"""

import re
import time
from dataclasses import dataclass

from lab import ROOT

SIDES = ("source", "destination")
STALL = 8  # MOVE_STALL_MS of src/move/session.h: silence after which a peer counts as gone
GONE = STALL + 2  # seconds after which both sides have noticed it
MOVE = ROOT / "src" / "move"


def stages():
    return re.findall(r'^\s*\[STAGE_\w+\] = \{\s*"(\w+)"', (MOVE / "stages.c").read_text(), re.M)


def named_points():
    """Points within a stage that stand in the sources in full, beside those of the stage table. Those of a recovery, which is
    none, are test_recover.py's."""
    names = re.compile(rf'fault_point\(err, "(\w+\.(?:{"|".join(stages())})\.\w+)"\)')
    return sorted(point for file in MOVE.glob("*.c") for point in names.findall(file.read_text()))


def points():
    of_stages = [f"{side}.{stage}.{end}" for stage in stages() for side in SIDES for end in ("begin", "end")]
    return of_stages + named_points()


@dataclass
class Scene:
    """A move that stands at a point."""

    lab: object
    guest: object
    source: object
    destination: object
    point: str

    def host(self, side):
        return self.source if side == "source" else self.destination

    @property
    def side(self):
        return self.point.split(".")[0]

    def go_on(self):
        self.host(self.side).clear_fault(self.guest.name)


def kill(kind, side):
    def strike(scene):
        host = scene.host(side)
        if host.pid_of(kind, scene.guest.name) is None:
            return False  # it does not run yet, or any more: nothing to kill here
        host.kill(kind, scene.guest.name)
        scene.go_on()
        if kind == "oraid":
            time.sleep(0.3)
            host.start()
    return strike


def cut(seconds):
    def strike(scene):
        scene.destination.link.cut()
        scene.go_on()
        time.sleep(seconds)
        scene.destination.link.heal()
    return strike


def cancel(scene):
    """It may come too late: then the move goes on, and the error says so."""
    scene.source.orai("cancel", scene.guest.name, check=False)
    scene.go_on()


def fail(scene):
    """The stage itself fails at this point: action() told it so."""
    scene.go_on()


def action(kind):
    """What the process that reaches the point is told (fault.h)."""
    return "fail" if kind == "fail" else "hold"


def freeze_source(seconds):
    """The whole source stands still, then goes on as if nothing had been."""
    def strike(scene):
        name = scene.guest.name
        frozen = [kind for kind in ("oraid", "orai-vm", "qemu") if scene.source.pid_of(kind, name)]
        for kind in frozen:
            scene.source.freeze(kind, name)
        scene.go_on()
        time.sleep(seconds)
        for kind in reversed(frozen):  # QEMU first: orai-vm may end it at once
            scene.source.thaw(kind, name)
    return strike


KINDS = {
    "kill-source-oraid": kill("oraid", "source"),
    "kill-source-orai-vm": kill("orai-vm", "source"),
    "kill-source-qemu": kill("qemu", "source"),
    "kill-destination-oraid": kill("oraid", "destination"),
    "kill-destination-orai-vm": kill("orai-vm", "destination"),
    "kill-destination-qemu": kill("qemu", "destination"),
    "cut-short": cut(2),
    "cut-long": cut(GONE),
    "freeze-source": freeze_source(GONE),
    "cancel": cancel,
    "fail": fail,
}

def matrix():
    """[(point, kind)] of everything."""
    return [(point, kind) for point in points() for kind in KINDS]


def representative():
    """Each stage with each kind at least once, each point at least once. A kind that strikes one side stands at a point
    of that side, at the stage's end, where everything that it could strike is there; the others take turns."""
    chosen = []
    for s, stage in enumerate(stages()):
        of_stage = [f"{side}.{stage}.{end}" for side in SIDES for end in ("begin", "end")]
        for k, kind in enumerate(KINDS):
            sides = [side for side in SIDES if kind.startswith(f"kill-{side}")]
            chosen.append((f"{sides[0]}.{stage}.end" if sides else of_stage[(s + k) % len(of_stage)], kind))
    for point in named_points():
        chosen += [(point, kind) for kind in ("kill-source-orai-vm", "kill-destination-orai-vm", "cut-short")]
    chosen.append(("destination.pause.end", "fail"))  # "ready" was said, so the source may commit
    uncovered = set(points()) - {point for point, _ in chosen}
    chosen += [(point, "kill-source-orai-vm") for point in sorted(uncovered)]
    return list(dict.fromkeys(chosen))
