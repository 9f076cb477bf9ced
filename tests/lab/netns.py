# SPDX-License-Identifier: Apache-2.0
"""Network namespaces, the links between them, and sockets inside them.

Everything is named after its lab's prefix, so that `Namespace.remove` (or a later lab, after a SIGKILL of this one) finds
and ends all of it: a namespace's processes are whatever `ip netns pids` lists, no matter who started them.
"""

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import threading
import time

LIBC = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNET = 0x40000000
MTU = 1500


def run(*command, check=True, **keywords):
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, **keywords)
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def enter(path):
    """Moves the calling thread, and only that, into a network namespace."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if LIBC.setns(fd, CLONE_NEWNET) < 0:
            raise OSError(ctypes.get_errno(), f"cannot enter {path}")
    finally:
        os.close(fd)


class Namespace:
    def __init__(self, name):
        self.name = name
        run("ip", "netns", "add", name)
        try:
            self.ip("link", "set", "lo", "up")
        except BaseException:  # in a chroot that is no mount point, say
            run("ip", "netns", "delete", name)
            raise

    def ip(self, *words):
        return run("ip", "-n", self.name, *words)

    def run(self, *command, **keywords):
        return run("ip", "netns", "exec", self.name, *command, **keywords)

    def popen(self, *command, **keywords):
        """`ip netns exec` becomes the command itself, so the process id is the command's."""
        return subprocess.Popen(["ip", "netns", "exec", self.name, *map(str, command)], **keywords)

    def call(self, function):
        """Runs `function` on a thread inside the namespace. A socket that it makes stays there, whoever uses it."""
        result = {}

        def work():
            try:
                enter(f"/run/netns/{self.name}")
                result["value"] = function()
            except BaseException as e:  # carried to the caller, whatever it is
                result["error"] = e
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        if "error" in result:
            raise result["error"]
        return result["value"]

    def socket(self, kind=socket.SOCK_STREAM):
        return self.call(lambda: socket.socket(socket.AF_INET, kind))

    def remove(self):
        remove(self.name)


def remove(name, seconds=10):
    """Ends all processes of the namespace (stopped ones too), then the namespace with its interfaces."""
    deadline = time.monotonic() + seconds
    while pids := run("ip", "netns", "pids", name, check=False).split():
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        if time.monotonic() > deadline:
            raise RuntimeError(f"processes in {name} do not end: {' '.join(pids)}")
        time.sleep(0.02)
    run("ip", "netns", "del", name, check=False)


def names():
    return [line.split()[0] for line in run("ip", "netns", "list").splitlines() if line.strip()]


class Segment(Namespace):
    """One LAN: a namespace that is nothing but a switch."""

    def __init__(self, name):
        super().__init__(name)
        make_bridge(self, "lan")

    def plug(self, namespace, interface):
        """A cable from the switch to `interface` in the namespace."""
        return Link(self, namespace, interface)


def make_bridge(namespace, name):
    namespace.ip("link", "add", name, "type", "bridge", "forward_delay", 0, "stp_state", 0, "mcast_snooping", 0)
    namespace.ip("link", "set", name, "up")


class Link:
    ports = 0

    def __init__(self, segment, namespace, interface):
        Link.ports += 1
        self.segment, self.namespace, self.interface, self.port = segment, namespace, interface, f"port{Link.ports}"
        segment.ip("link", "add", self.port, "mtu", MTU, "type", "veth",
                   "peer", "name", interface, "mtu", MTU, "netns", namespace.name)
        segment.ip("link", "set", self.port, "master", "lan", "up")
        namespace.ip("link", "set", interface, "up")

    def limit(self, bits_per_second):
        """Both directions, each on the sending end."""
        for namespace, interface in ((self.namespace, self.interface), (self.segment, self.port)):
            run("tc", "-n", namespace.name, "qdisc", "replace", "dev", interface, "root", "tbf",
                "rate", f"{bits_per_second}bit", "burst", 256 << 10, "latency", "50ms")

    def delay(self, seconds, program):
        """Every frame takes so long, each way: `program` (delay.c) joins cable and switch. Before limit()."""
        cable, end, port = self.port, f"end{self.port}", f"far{self.port}"
        self.segment.ip("link", "add", end, "mtu", MTU, "type", "veth", "peer", "name", port, "mtu", MTU)
        self.segment.ip("link", "set", cable, "nomaster")
        self.segment.ip("link", "set", port, "master", "lan", "up")
        self.segment.ip("link", "set", end, "up")
        self.port = port
        process = self.segment.popen(program, cable, end, round(seconds * 1e9), stdout=subprocess.PIPE)
        if process.stdout.readline() != b"ready\n":
            raise RuntimeError(f"the delay of {self.port} ended with {process.wait()}")

    def cut(self):
        """The switch drops all frames of this port, both ways; neither end sees its carrier go."""
        run("bridge", "-n", self.segment.name, "link", "set", "dev", self.port, "state", 0)

    def heal(self):
        run("bridge", "-n", self.segment.name, "link", "set", "dev", self.port, "state", 3)

    def sent(self):
        """Bytes that went from the namespace into the cable so far, Ethernet headers included."""
        return int(self.namespace.run("cat", f"/sys/class/net/{self.interface}/statistics/tx_bytes"))
