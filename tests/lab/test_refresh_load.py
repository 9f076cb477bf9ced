# SPDX-License-Identifier: Apache-2.0
"""QEMU is replaced again and again under a real Debian guest whose Apache is asked without a pause and which writes
checksummed lines to its disk: no request fails, no line is lost, and neither orai-vm nor oraid grows."""

import json
import re
import statistics
import subprocess
import time
from pathlib import Path

import pytest

from debian import DebianGuest, Visitors, ensure_debian, fsck, writer_lines
from host import is_alive, wait_until
from lab import CACHE
from test_move import refused
from test_refresh import EDITED, wrapper

FAILING = {  # of which the guest may stand still for a moment, but never notices more
    "ends at once": "exit 1",
    "less memory": EDITED.format("s/size=1024M/size=512M/"),
    "other devices": EDITED.format("s/addr=0x2$/addr=0x1d/"),
    "other machine": EDITED.format("s/^pc-q35-[0-9.]*/pc-q35-6.2/"),
}
GROWTH_KIB = 1024
POOLS = 8  # as many threads more may oraid have: they come with work, and stay for some seconds


def refresh(guest, host, *options):
    old = host.pid_of("qemu", guest.name)
    result = host.orai("refresh", guest.name, *options, json=True)
    new = host.pid_of("qemu", guest.name)
    assert result["state"] == "done" and new != old and not is_alive(old), result
    return result


class Keepers:
    """What the long-lived processes of a VM hold, so that it is noticed when that grows; and what lies about."""

    def __init__(self, host, name):
        self.host, self.name = host, name
        self.before = self.held()
        self.files = self.lying()

    def held(self):
        return {kind: self.of(self.host.pid_of(kind, self.name)) for kind in ("orai-vm", "oraid")}

    @staticmethod
    def of(pid):
        status = Path(f"/proc/{pid}/status").read_text()
        number = {key: int(value) for key, value in re.findall(r"^(\w+):\s+(\d+)", status, re.M)}
        return {"pid": pid, "descriptors": len(list(Path(f"/proc/{pid}/fd").iterdir())), "threads": number["Threads"],
                "kib": number["RssAnon"]}

    def lying(self):
        """Files of the VM and interfaces of its host; those that bear a process's number without it."""
        files = [path.name for folder in (self.host.run_dir, self.host.state) for path in (folder / "vms" / self.name).rglob("*")]
        links = json.loads(self.host.namespace.run("ip", "-json", "link", "show"))
        return sorted(re.sub(r"\d{2,}", "N", name) for name in files), sorted(link["ifname"] for link in links)

    def dead_children(self):
        return subprocess.run(["ps", "-o", "pid=,stat=,comm=", "--ppid",
                               ",".join(str(held["pid"]) for held in self.held().values())],
                              capture_output=True, text=True).stdout.count(" Z")

    def grown(self):
        """What has grown, in words."""
        found = []
        for kind, now in self.held().items():
            before = self.before[kind]
            allowed = {"descriptors": 0, "threads": POOLS if kind == "oraid" else 0, "kib": GROWTH_KIB}
            found += [f"{kind}: {before[what]} -> {now[what]} {what}" for what, more in allowed.items() if now[what] > before[what] + more]
            if now["pid"] != before["pid"]:
                found.append(f"{kind} is another one")
        return found

    def check(self):
        wait_until(lambda: not self.grown(), 10, f"nothing has grown: {self.grown()}")  # somebody may just be asking it
        assert self.lying() == self.files
        assert self.dead_children() == 0
        print(self.before, self.held())


class Served:
    """A Debian guest under load on a host; of one that came from another host there is a replica."""

    def __init__(self, lab):
        ensure_debian()
        self.lab, self.host = lab, lab.a
        lab.a.orai("image", "add", "debian12", CACHE / "debian12.raw")
        self.guest = DebianGuest(lab, lab.a)
        self.guest.start(lab.a)
        self.boot = self.guest.status()["boot"]
        self.visitors = Visitors(lab.client)

    def move(self, host):
        self.host.orai("move", "web1", host.name)
        self.host = host

    def check(self):
        assert not self.visitors.trouble and self.visitors.failed == 0, self.visitors.trouble
        assert self.host.vm_state("web1") == "running"

    def check_whole(self):
        self.visitors.stop()
        self.check()
        status, last = self.guest.status(), self.guest.writer()
        assert status["boot"] == self.boot and last["errors"] == 0
        self.host.orai("stop", "web1", "--timeout", "120s", timeout=180)
        image = self.host.image_file("web1")
        assert not writer_lines(image, last["line"])[:5]
        assert not fsck(image)
        print(f"{self.visitors.requests} requests, none failed; {last['line']} lines")
        assert self.visitors.requests > 0


@pytest.fixture
def served(labs):
    made = []

    def make(*names):
        made.append(Served(labs(*names)))
        return made[-1]
    yield make
    for each in made:
        each.visitors.stop()


def fails(served, tmp_path, kind):
    """A new QEMU that fails in that way leaves the guest in the old one."""
    before = served.host.pid_of("qemu", "web1")
    refused(served.host, "refresh", "web1", "--qemu", wrapper(tmp_path, kind.replace(" ", "-"), FAILING[kind]))
    assert served.host.pid_of("qemu", "web1") == before
    wait_until(lambda: served.host.vm_state("web1") == "running", 30, "it goes on in the old one")


def in_a_row(served, count, tmp_path):
    """With a program that fails in the midst of them, of each kind one."""
    guest, host = served.guest, served.host
    for _ in range(3):
        refresh(guest, host)  # what is made once has been made then
    keepers = Keepers(host, "web1")
    blackouts = []
    kinds = {number * count // len(FAILING): kind for number, kind in enumerate(FAILING)}
    for number in range(count):
        blackouts.append(refresh(guest, host)["blackout_ms"])
        if number in kinds:
            fails(served, tmp_path, kinds[number])
        served.check()
    print(f"{count} refreshes: {statistics.median(blackouts):.1f} ms, longest {max(blackouts):.1f} ms")
    keepers.check()


@pytest.mark.long
def test_a_hundred_in_a_row(served, tmp_path):
    web = served("a")
    in_a_row(web, 100, tmp_path)
    web.check_whole()


# --- among all else that may happen ------------------------------------------------------------------------------------

def refresh_the_helper(web):
    old = web.host.pid_of("orai-vm", "web1")
    assert web.host.orai("refresh", "web1", "--helper", json=True)["state"] == "done"
    assert web.host.pid_of("orai-vm", "web1") != old


def restart_oraid(web):
    web.host.restart()


def restart_oraid_meanwhile(web):
    old = web.host.pid_of("qemu", "web1")
    process = web.host.begin("refresh", "web1")
    wait_until(lambda: web.host.vm_state("web1") == "refreshing", 20, "it is being refreshed")
    web.host.restart()
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, out + err
    assert web.host.pid_of("qemu", "web1") != old


def refresh_beside_a_comparison(web):
    with web.host.begin("disk", "verify", "web1", "--against", "a", "--format", "json") as comparison:
        wait_until(lambda: web.host.api("GET", "/v1/operations")["operations"][0]["kind"] == "verify", 20, "it is compared")
        for _ in range(3):
            refresh(web.guest, web.host)
        out, err = comparison.communicate(timeout=120)
    assert comparison.returncode == 0 and json.loads(out)["equal"], out + err


def refresh_twice_at_once(web):
    """One of them is refused, or came later."""
    both = [web.host.begin("refresh", "web1") for _ in range(2)]
    said = [process.communicate(timeout=60)[1] for process in both]
    codes = sorted(process.returncode for process in both)
    assert codes == [0, 0] or (codes[0] == 0 and "refreshed" in "".join(said)), said


def among_all(web, rounds):
    web.move(web.lab.b)
    for _ in range(rounds):
        for deed in (refresh_the_helper, restart_oraid, restart_oraid_meanwhile, refresh_beside_a_comparison, refresh_twice_at_once):
            deed(web)
            refresh(web.guest, web.host)
            web.check()


def test_some_in_a_row_and_some_among_all_else(served, tmp_path):
    web = served("a", "b")
    in_a_row(web, 5, tmp_path)
    among_all(web, 1)
    web.check_whole()


@pytest.mark.long
def test_many_among_all_else(served):
    web = served("a", "b")
    among_all(web, 10)
    web.check_whole()
