# SPDX-License-Identifier: Apache-2.0
"""The lab: several hosts on one machine. A block

    with Lab("a", "b") as lab:
        lab.a.orai("list")

has two hosts that know each other, on one segment, and a client outside of both. Afterwards nothing is left: no
process, namespace, mount or file, also after an exception, Ctrl-C or SIGTERM. A lab that was itself killed with SIGKILL
is swept up by the next one. Several labs may run at once: all names carry the process that made them.

Needs root. ORAI_BUILD names the build folder (default: build), ORAI_CACHE the built guests, ORAI_LABS the folder in which
labs have theirs (default: /var/tmp).
"""

import atexit
import contextlib
import itertools
import os
import re
import shutil
import signal
import tempfile
from pathlib import Path

import netns
from host import Host

ROOT = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("ORAI_BUILD", ROOT / "build")).resolve()
DELAY = BUILD / "tests" / "lab" / "delay"
CACHE = Path(os.environ.get("ORAI_CACHE", "/var/cache/orai-lab"))
FOLDER = Path(os.environ.get("ORAI_LABS", "/var/tmp"))
PREFIX = "orai-lab"
NETWORK = "10.77.0"
CLIENT = f"{NETWORK}.100"
GUEST = f"{NETWORK}.50"
UDP_PORT = 9000

serial = itertools.count(1)
standing = []  # labs to be taken down at exit


class Lab:
    """Hosts named so, connected and trusting each other. `rate` in bits per second limits each host's cable;
    `rtt` in seconds is the time from one host to another and back; `disk_sizes` ({name: bytes}) gives hosts a small disk; `builds` ({name: folder}) other programs; `qemus`
    ({name: file}) another QEMU."""

    def __init__(self, *names, rate=None, rtt=None, disk_sizes=None, builds=None, qemus=None, keep=False, folder=FOLDER):
        sweep(folder)
        self.prefix = f"{PREFIX}-{os.getpid()}-{next(serial)}"
        self.folder = Path(tempfile.mkdtemp(prefix=f"{self.prefix}-", dir=folder))
        self.folder.chmod(0o711)
        self.keep, self.rate, self.rtt = keep, rate, rtt
        self.hosts, self.namespaces = {}, []
        standing.append(self)
        self.builds, self.disk_sizes, self.qemus = builds or {}, disk_sizes or {}, qemus or {}
        try:
            self.segment = self.namespace("lan", netns.Segment)
            self.client = self.namespace("client")
            self.client_link = self.segment.plug(self.client, "eth0")
            self.client.ip("addr", "add", f"{CLIENT}/24", "dev", "eth0")
            for name in names:
                self.add(name)
        except BaseException:
            self.close()
            raise

    def namespace(self, name, kind=netns.Namespace):
        made = kind(f"{self.prefix}-{name}")
        self.namespaces.append(made)
        return made

    def add(self, name, kind=Host, **keywords):
        """One more host; it and all others trust each other. Another `kind` is made with `keywords`."""
        namespace = self.namespace(name)
        link = self.segment.plug(namespace, "uplink")
        if self.rtt:
            link.delay(self.rtt / 4, DELAY)  # two cables, two ways
        if self.rate:
            link.limit(self.rate)
        keywords = keywords or {"build": self.builds.get(name, BUILD),
                                "options": ["--qemu", self.qemus[name]] if name in self.qemus else ()}
        host = kind(name, namespace, link, f"{NETWORK}.{len(self.hosts) + 1}", self.folder / name, **keywords)
        if name in self.disk_sizes:
            host.limit_disk(self.disk_sizes[name])
        host.start()
        for other in self.hosts.values():
            join(other, host)
        self.hosts[name] = host
        setattr(self, name, host)
        return host

    def logs(self):
        return "\n".join(host.log() for host in self.hosts.values())

    def where(self, vm):
        """{host: state} of all hosts that have the VM and whose oraid runs."""
        states = {name: host.vm_state(vm) for name, host in self.hosts.items() if host.oraid.poll() is None}
        return {name: state for name, state in states.items() if state}

    def close(self):
        if self not in standing:
            return
        with uninterrupted():
            for host in self.hosts.values():
                host.remove()
            for namespace in self.namespaces:
                namespace.remove()
            unmount_below(self.folder)
            if not self.keep:
                shutil.rmtree(self.folder)
            standing.remove(self)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def join(inviter, guest):
    token = inviter.orai("peer", "invite", "--name", guest.name, json=True)["token"]
    guest.orai("peer", "join", token)


@contextlib.contextmanager
def uninterrupted():
    """Ctrl-C and SIGTERM wait until the block has ended."""
    old = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old)


def unmount_below(folder):
    mounts = [line.split()[1] for line in open("/proc/mounts")]
    for mount in reversed([m for m in mounts if m.startswith(f"{folder}/")]):
        netns.run("umount", mount)


def sweep(folder=FOLDER):
    """What labs left whose process is gone: they were killed with SIGKILL."""
    def is_stray(name):
        match = re.fullmatch(rf"{PREFIX}-(\d+)-.*", name)
        return match and not os.path.exists(f"/proc/{match[1]}")
    for name in filter(is_stray, netns.names()):
        netns.remove(name)
    for path in Path(folder).glob(f"{PREFIX}-*"):
        if is_stray(path.name):
            unmount_below(path)
            shutil.rmtree(path, ignore_errors=True)


def take_down():
    for lab in list(standing):
        lab.close()


def terminated(number, _frame):
    raise SystemExit(128 + number)


atexit.register(take_down)
for number in (signal.SIGTERM, signal.SIGHUP):
    if signal.getsignal(number) is signal.SIG_DFL:  # pytest has its own way (conftest.py)
        signal.signal(number, terminated)
