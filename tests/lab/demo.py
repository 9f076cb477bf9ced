# SPDX-License-Identifier: Apache-2.0
"""What `./demo` shows: a real Debian guest is moved between two hosts while people use it.

The hosts are network namespaces of this machine, joined by a link of 1 Gbit/s; everything else is as it would be on two
machines. See tests/lab/README.md.
"""

import argparse
import json
import sys
import time

from debian import DebianGuest, Visitors, ensure_debian, fsck, sleep_with, writer_lines
from host import MIB, wait_until
from images import Generations, differing_blocks
from lab import CACHE, Lab

LINK = 1_000_000_000
ROUTE = ("b", "a", "b")


def arguments():
    parser = argparse.ArgumentParser(prog="./demo", description="A running Debian guest moves to another host and back.")
    parser.add_argument("--json", action="store_true", help="print the result as one line of JSON at the end")
    parser.add_argument("--quick", action="store_true", help="less work between the moves")
    parser.add_argument("--keep", action="store_true", help="leave everything running at the end until Enter is pressed")
    return parser.parse_args()


def say(text=""):
    print(text, flush=True)


def amount(size):
    return f"{size / (1 << 30):.2f} GiB" if size >= 1 << 30 else f"{size / MIB:.1f} MiB"


class Journey:
    def __init__(self, lab, options):
        self.lab, self.options = lab, options
        self.moves = []
        self.guest = self.visitors = None
        self.at = lab.a

    def boot(self):
        say("Host a gets the Debian image and makes a VM of it: 1 GiB of memory, a disk of 8 GiB ...")
        self.lab.a.orai("image", "add", "debian12", CACHE / "debian12.raw")
        self.guest = DebianGuest(self.lab, self.lab.a)
        began = time.monotonic()
        self.guest.start(self.lab.a)
        self.first = self.guest.status()
        say(f"Debian with systemd and Apache is up on a after {time.monotonic() - began:.0f} s.")
        say("From now on `ab` asks its Apache without a pause, and a program in it writes to its disk.")
        self.visitors = Visitors(self.lab.client)

    def work(self):
        sleep_with(self.visitors, 4 if self.options.quick else 15)

    def move(self, name):
        target = getattr(self.lab, name)
        since = self.moves[-1]["_sectors"] if self.moves else 0
        requests = self.visitors.requests
        result = self.at.orai("move", "web1", name, json=True)
        wait_until(self.guest.answers, 10, f"the guest answers on {name}")
        status = self.guest.status()
        self.moves.append({
            "from": self.at.name, "to": name, "seconds": result["seconds"], "blackout_ms": result["blackout_ms"],
            "disk_bytes": result["disk_bytes"], "memory_bytes": result["memory_bytes"],
            "full_disk_bytes": result["full_disk_bytes"], "predicted_seconds": result["predicted_seconds"],
            "_sectors": status["sectors_written"], "_written": (status["sectors_written"] - since) * 512,
            "_full_seconds": result["seconds"] + (result["full_disk_bytes"] - result["disk_bytes"]) * 8 / LINK})
        self.source, self.at = self.at, target
        self.visitors_before = requests
        say(f"  {self.source.name} -> {name}: {result['seconds']:.1f} s, the guest stood still for "
            f"{result['blackout_ms']} ms, {amount(result['disk_bytes'])} of disk sent")

    def end(self):
        """Off; then what the disks say. Only Orai's replica and the guest's last disk are compared, by other tools."""
        self.visitors.stop()
        status, last = self.guest.status(), self.guest.writer()
        rebooted = status["boot"] != self.first["boot"] or status["uptime_ms"] < self.first["uptime_ms"]
        say("The guest is shut down; its disk is examined ...")
        self.at.orai("stop", "web1", "--timeout", "120s", timeout=180)
        disk, replica = self.at.image_file("web1"), self.source.image_file("web1")
        complete = self.source.orai("disk", "info", replica, json=True)["complete"]
        written = Generations(disk)
        strange = [block for block in differing_blocks(disk, replica) if written.of(block) <= complete]
        lines = writer_lines(disk, last["line"])
        verdict = fsck(disk)
        for problem in [f"block {b} differs though the guest has not written it since" for b in strange[:5]] + lines[:5]:
            say(f"  problem: {problem}")
        if verdict:
            say(verdict)
        return {
            "http": {"requests": self.visitors.requests, "failed": self.visitors.failed},
            "moves": [{k: v for k, v in move.items() if not k.startswith("_")} for move in self.moves],
            "disk_equal": not strange and not lines and last["errors"] == 0,
            "fsck_clean": not verdict, "guest_rebooted": rebooted}

    def table(self):
        say()
        say("                                what Orai did                      |  a full copy of the disk")
        say("  move      guest wrote    disk sent   memory    time    blackout |    disk sent       time")
        for number, move in enumerate(self.moves):
            wrote = "(image)" if number == 0 else amount(move["_written"])
            say(f"  {move['from']} -> {move['to']} {wrote:>14} {amount(move['disk_bytes']):>12} "
                f"{amount(move['memory_bytes']):>9} {move['seconds']:6.1f} s {move['blackout_ms']:7d} ms | "
                f"{amount(move['full_disk_bytes']):>12} {move['_full_seconds']:8.1f} s")
        say()


def verdict(result, trouble):
    def line(good, text):
        say(f"  {'yes' if good else 'NO '}  {text}")
        return good
    http = result["http"]
    checks = [
        line(http["failed"] == 0 and http["requests"] > 0, f"every HTTP request was answered ({http['requests']}, {http['failed']} failed)"),
        line(not result["guest_rebooted"], "the guest was never rebooted"),
        line(result["disk_equal"], "the disk holds what the guest wrote, and nothing else changed on the way"),
        line(result["fsck_clean"], "its file system is clean")]
    for text in trouble[:5]:
        say(f"  ab: {text}")
    return all(checks)


def main():
    options = arguments()
    ensure_debian()
    with Lab("a", "b", rate=LINK) as lab:
        journey = Journey(lab, options)
        try:
            journey.boot()
            for name in ROUTE:
                journey.work()
                journey.move(name)
            journey.work()
            if options.keep:
                journey.table()
                say(f"The lab is in {lab.folder}; try: ip netns exec {lab.client.name} curl http://10.77.0.50/")
                input("Enter ends it. ")
            result = journey.end()
        except BaseException:
            if journey.visitors:
                journey.visitors.stopping.set()
            say(lab.logs())
            raise
    journey.table()
    good = verdict(result, journey.visitors.trouble)
    if options.json:
        print(json.dumps(result))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
