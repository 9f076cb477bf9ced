# SPDX-License-Identifier: Apache-2.0
"""A host of the lab that systemd runs (boot-systemd), with Orai installed from its Debian package.

Its processes are in the host's network namespace like those of any host, so the lab ends them in the same way; its files are on
a RAM disk that nobody else sees and that goes with the last process. From outside everything in it is seen through
/proc/PID/root of its process 1. Process numbers inside are others than outside: `pid_of` says those inside, which
stay the same as long as the host is up.
"""

import json
import os
import subprocess
from pathlib import Path

from host import Host, wait_until
from lab import CACHE

SCRIPT = Path(__file__).parent / "boot-systemd"


class BootedHost(Host):
    """`package` must not lie in /tmp or /run: the host has its own."""

    def __init__(self, name, namespace, link, address, folder, package):
        super().__init__(name, namespace, link, address, folder, build=None)
        self.package, self.machine = Path(package), folder / "machine"
        self.machine.mkdir()

    @property
    def first(self):
        """Its process 1, as it is called outside."""
        return int(Path(f"/proc/{self.oraid.pid}/root{self.machine}/pid").read_text())

    def file(self, path):
        return Path(f"/proc/{self.first}/root") / path

    # --- the machine ---
    def start(self):
        """Boots it, installs Orai. The supervisor stands where other hosts have their oraid: it ends with the host."""
        with open(self.folder / "boot.log", "ab") as log:
            self.oraid = self.namespace.popen("unshare", "--mount", SCRIPT, self.machine, CACHE, self.package.parent,
                                              stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.wait_booted()
        options = f"--name {self.name} --listen {self.address} --advertise {self.address} --faults"
        self.file("etc/default/oraid").write_text(f'ORAID_OPTIONS="{options}"\nORAI_STOP_SECONDS=3\n')
        self.install()
        wait_until(self.is_up, 20, f"oraid of {self.name} serves its API:\n{self.log()}")

    def install(self):
        self.run("dpkg", "--no-triggers", "--install", self.package)

    def wait_booted(self):
        def is_booted():
            state = self.inside("systemctl", "is-system-running", check=False).stdout.strip()
            return state in ("running", "degraded")
        wait_until(is_booted, 60, f"systemd of {self.name} is up; {self.folder}/boot.log")
        self.state, self.run_dir = self.file("var/lib/orai"), self.file("run/orai")

    def reboot(self):
        """In order, as a person would; returns when systemd has started everything again."""
        before = self.first
        self.inside("systemctl", "reboot", check=False)  # its answer may be lost with it
        wait_until(lambda: not os.path.exists(f"/proc/{before}"), 120, "systemd has ended")
        wait_until(lambda: self.first != before, 20, "it begins anew")
        self.wait_booted()
        wait_until(self.is_up, 20, f"oraid of {self.name} serves its API:\n{self.log()}")

    # --- commands inside ---
    def command(self, *words):
        return ["nsenter", "--target", str(self.first), "--all", "--root", "--wd=/", *map(str, words)]

    def inside(self, *words, check=True, timeout=120):
        try:
            done = subprocess.run(self.command(*words), capture_output=True, text=True, stdin=subprocess.DEVNULL,
                                  timeout=timeout)
        except (OSError, ValueError) as e:  # there is no process 1 just now
            done = subprocess.CompletedProcess(words, 1, "", str(e))
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(map(str, words))}: {done.stderr.strip() or done.stdout.strip()}\n{self.log()}")
        return done

    def run(self, *words, **keywords):
        return self.inside(*words, **keywords).stdout.strip()

    def begin(self, *words):
        return subprocess.Popen(self.command("orai", *words), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, text=True)

    # --- processes ---
    def unit(self, property):
        return self.run("systemctl", "show", "--value", "--property", property, "oraid.service")

    def pid_of(self, kind, name):
        if kind == "oraid":
            return int(self.unit("MainPID")) or None
        try:
            pid = int((self.run_dir / "vms" / name / f"{kind}.pid").read_text().split()[0])
        except (FileNotFoundError, IndexError):
            return None
        return pid if self.file(f"proc/{pid}").exists() else None

    def kill9(self):
        self.run("systemctl", "kill", "--kill-who=main", "--signal=KILL", "oraid")

    def log(self, lines=60):
        """The newest lines of its journal and of each orai-vm, QEMU and guest."""
        texts = [f"--- journal of {self.name}", self.inside("journalctl", "--no-pager", "--lines", lines, check=False).stdout]
        for path in [self.folder / "boot.log", *self.state.glob("vms/*/*.log")]:
            texts += [f"--- {path} of {self.name}", *path.read_text(errors="replace").splitlines()[-lines:]]
        return "\n".join(texts)

    def failed_units(self):
        return [unit["unit"] for unit in json.loads(self.run("systemctl", "list-units", "--failed", "--output=json"))]
