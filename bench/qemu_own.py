# SPDX-License-Identifier: Apache-2.0
"""QEMU's own way of moving a VM with its disk, as libvirt drives it: blockdev-mirror to an NBD export of the waiting
QEMU on the other host, `migrate` with pause-before-switchover, the end of the mirror in that pause, the switch."""

import itertools
import json
import socket
import subprocess
import time

NBD_PORT, MIGRATION_PORT = 10809, 4444


class Qmp:
    def __init__(self, path, seconds=20):
        self.socket = socket.socket(socket.AF_UNIX)
        deadline = time.monotonic() + seconds
        while True:
            try:
                self.socket.connect(str(path))
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
        self.lines = self.socket.makefile("r")
        self.events = []
        self.lines.readline()
        self("qmp_capabilities")

    def read(self):
        message = json.loads(self.lines.readline())
        if "event" in message:
            self.events.append(message)
        return message

    def __call__(self, command, **arguments):
        request = {"execute": command, "arguments": {k.replace("_", "-"): v for k, v in arguments.items()}}
        self.socket.sendall(json.dumps(request).encode())
        while True:
            answer = self.read()
            if "error" in answer:
                raise RuntimeError(f"{command}: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]

    def wait(self, name, condition=lambda data: True, seconds=600):
        self.socket.settimeout(seconds)
        while True:
            for event in self.events:
                if event["event"] == name and condition(event.get("data", {})):
                    self.events.remove(event)
                    return event
            self.read()


def own_hosts(lab, network, rate=None, rtt=None, delay=None):
    """Two of them on the lab's segment, as the lab's own hosts are; `delay` is the program that makes `rtt` (seconds)."""
    hosts = []
    for number, name in enumerate("ab", 1):
        namespace = lab.namespace(name)
        link = lab.segment.plug(namespace, "uplink")
        if rtt:
            link.delay(rtt / 4, delay)
        if rate:
            link.limit(rate)
        hosts.append(OwnHost(namespace, link, f"{network}.{number}", lab.folder))
    return hosts


class OwnHost:
    """A network namespace in which QEMU is started by hand."""

    count = itertools.count(1)

    def __init__(self, namespace, link, address, folder):
        self.namespace, self.link, self.address, self.folder = namespace, link, address, folder
        namespace.ip("link", "add", "br0", "type", "bridge", "forward_delay", 0)
        namespace.ip("link", "set", "br0", "up")
        namespace.ip("link", "set", link.interface, "master", "br0")
        namespace.ip("addr", "add", f"{address}/24", "dev", "br0")

    def start(self, disk, kernel, initrd, append, memory, incoming=False, options=()):
        number = next(self.count)
        tap, path = f"tap{number}", self.folder / f"qmp{number}"
        self.namespace.ip("tuntap", "add", tap, "mode", "tap")
        self.namespace.ip("link", "set", tap, "master", "br0", "up")
        command = ["qemu-system-x86_64", "-machine", "q35", "-accel", "tcg", "-cpu", "max", "-m", memory, "-nodefaults",
                   "-display", "none", "-kernel", kernel, "-initrd", initrd, "-append", append,
                   "-blockdev", f"driver=file,filename={disk},node-name=file0",
                   "-blockdev", "driver=raw,file=file0,node-name=disk0", "-device", "virtio-blk-pci,drive=disk0,id=vda",
                   "-netdev", f"tap,ifname={tap},id=net0,script=no,downscript=no",
                   "-device", "virtio-net-pci,netdev=net0,mac=52:54:00:77:00:01", "-qmp", f"unix:{path},server=on,wait=off",
                   *(["-incoming", "defer", "-S"] if incoming else []), *options]
        process = self.namespace.popen(*command, stdin=subprocess.DEVNULL)
        return process, Qmp(path)


def move(source, target, destination, *capabilities, mirror=True, **parameters):
    """`source`, `target`: Qmp of the running and the waiting QEMU; `capabilities` and `parameters`: more of QEMU's migration. With
    "postcopy-ram" the memory follows the switch, without a pass before it. Without `mirror` both have the same disk, on shared
    storage. Returns when all is there and the guest runs on the target."""
    later = "postcopy-ram" in capabilities
    if mirror:
        target("nbd-server-start", addr={"type": "inet", "data": {"host": destination, "port": str(NBD_PORT)}})
        target("block-export-add", id="export0", type="nbd", node_name="disk0", name="disk0", writable=True)
    for qmp in (source, target):
        qmp("migrate-set-capabilities", capabilities=[{"capability": "pause-before-switchover", "state": True},
                                                      *({"capability": name, "state": True} for name in ("events", *capabilities))])
        qmp("migrate-set-parameters", max_bandwidth=1 << 34, downtime_limit=300, **parameters)
    target("migrate-incoming", uri=f"tcp:{destination}:{MIGRATION_PORT}")
    if mirror:
        source("blockdev-add", driver="nbd", node_name="there", export="disk0",
               server={"type": "inet", "host": destination, "port": str(NBD_PORT)})
        source("blockdev-mirror", job_id="mirror0", device="disk0", target="there", sync="full")
        source.wait("BLOCK_JOB_READY")
    source("migrate", uri=f"tcp:{destination}:{MIGRATION_PORT}")
    if later:
        source.wait("MIGRATION", lambda data: data["status"] == "active")
        source("migrate-start-postcopy")
    source.wait("MIGRATION", lambda data: data["status"] == "pre-switchover")
    if mirror:
        source("block-job-cancel", device="mirror0")
        source.wait("BLOCK_JOB_COMPLETED")
    if later:  # it runs before the stream ends
        if mirror:
            target("nbd-server-stop")
        target("cont")
    source("migrate-continue", state="pre-switchover")
    source.wait("MIGRATION", lambda data: data["status"] == "completed")
    target.wait("MIGRATION", lambda data: data["status"] == "completed")
    if not later:
        if mirror:
            target("nbd-server-stop")  # the guest may only write once the export does not
        target("cont")
