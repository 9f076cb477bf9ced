# SPDX-License-Identifier: Apache-2.0
"""What the benches share.

A machine's speed drifts (other tenants, heat, caches), so contenders are never measured one after the other but
in interleaved rounds, each round starting with another one; what counts is the median over the rounds, and for a
comparison the median of the rounds' ratios. Every bench takes --quick (short runs, fewer rounds), --rounds, and --json (one JSON object as last line).
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def parser(description):
    p = argparse.ArgumentParser(description=description)
    p.add_argument("--quick", action="store_true", help="short runs, small data: a check that it works")
    p.add_argument("--rounds", type=int, help="interleaved rounds (default 5, with --quick 3)")
    p.add_argument("--json", action="store_true", help="print one JSON object as last line")
    p.add_argument("--build", type=Path, default=ROOT / "build", help="build folder (default: build)")
    p.add_argument("--folder", type=Path, default=Path("/var/tmp"), help="where the data goes (default: /var/tmp)")
    return p


def rounds(args):
    return args.rounds or (3 if args.quick else 5)


def die(text):
    sys.exit(f"{Path(sys.argv[0]).name}: {text}")


def need(*programs):
    """Programs of Debian packages, as (program, package)."""
    missing = [package for program, package in programs if not shutil.which(program)]
    if missing:
        die("needs Debian packages: apt-get install " + " ".join(sorted(set(missing))))


@contextmanager
def workspace(folder, name):
    path = Path(tempfile.mkdtemp(prefix=f"orai-bench-{name}-", dir=folder))
    try:
        yield path
    finally:
        shutil.rmtree(path)


@contextmanager
def userfaultfd():
    """As the stories have it, which wait as long. tests/lab is on Python's path by now."""
    import machine
    with machine.userfaultfd():
        yield


@contextmanager
def running(command, ready, seconds=10, **keywords):
    """A server for the length of a block; `ready()` says when it serves. Stopped with SIGTERM, killed after 10 s."""
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors, **keywords)
        try:
            deadline = time.monotonic() + seconds
            while not ready():
                if process.poll() is not None or time.monotonic() > deadline:
                    errors.seek(0)
                    die(f"{command[0]} did not get ready: {errors.read().decode(errors='replace').strip()}")
                time.sleep(0.01)
            yield process
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def interleave(names, count):
    """(round, name) so that each round has every name once, and each name stands first as often as the others."""
    names = list(names)
    for n in range(count):
        shift = n % len(names)
        for name in names[shift:] + names[:shift]:
            yield n, name


class Samples:
    """Measured values by (case, contender)."""

    def __init__(self):
        self.values = {}

    def add(self, case, contender, value):
        self.values.setdefault((case, contender), []).append(value)

    def median(self, case, contender):
        values = self.values.get((case, contender))
        return statistics.median(values) if values else None

    def spread(self, case, contender):
        """(max - min) / median: how far the rounds lie apart."""
        values = self.values.get((case, contender))
        return (max(values) - min(values)) / statistics.median(values) if values and statistics.median(values) else None

    def ratio(self, case, contender, other):
        """Median of the rounds' ratios: within a round the machine has drifted least."""
        pairs = zip(self.values.get((case, contender), []), self.values.get((case, other), []))
        ratios = [ours / theirs for ours, theirs in pairs if theirs]
        return statistics.median(ratios) if ratios else None


def table(header, rows):
    """First column to the left, the others to the right."""
    cells = [[str(c) for c in header]] + [["-" if c is None else str(c) for c in row] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    for row in cells:
        line = [row[0].ljust(widths[0])] + [c.rjust(w) for c, w in zip(row[1:], widths[1:])]
        print("  ".join(line).rstrip())


def progress(text):
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def progress_end():
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr, flush=True)


def machine():
    """What a figure is worth nothing without."""
    model = next((line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "?")
    return {"kernel": os.uname().release, "cpu": model, "cpus": len(os.sched_getaffinity(0))}


def finish(args, result):
    if args.json:
        print(json.dumps(result))
