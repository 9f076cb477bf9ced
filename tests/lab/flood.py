# SPDX-License-Identifier: Apache-2.0
"""Hostile crowds, and what they cost.

  Flood      connections to one address that prove nothing: silent, a byte now and then, a hello and no more
  Watch      the most memory, threads and descriptors that a process has had
  hello_for  the first bytes of an honest connection
"""

import contextlib
import os
import resource
import socket
import ssl
import threading
import time
from pathlib import Path

MIB = 1 << 20


def allow_descriptors():
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def hello_for(server_name):
    """A TLS ClientHello, as bytes."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    session = context.wrap_bio(incoming, outgoing, server_hostname=server_name)
    with contextlib.suppress(ssl.SSLWantReadError):
        session.do_handshake()
    return outgoing.read()


class Flood:
    """`count` connections in all, `rate` a second, made by a thread of its own and held until close(). `words` is what
    they send, one after the other ("" = nothing): whole, or with `trickle` a byte each time round. A context."""

    def __init__(self, make, address, count, words=(b"",), rate=2500, trickle=False):
        allow_descriptors()
        self.make, self.address, self.count, self.rate, self.trickle = make, address, count, rate, trickle
        self.words, self.held, self.tried, self.connected = list(words), [], 0, 0
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)

    def run(self):
        began = time.monotonic()
        while not self.stopping.is_set():
            due = min(self.count, int((time.monotonic() - began) * self.rate) + 1)
            while self.tried < due and not self.stopping.is_set():
                self.knock()
            for entry in self.held[-2000:] if self.trickle else ():
                self.feed(entry, 1)
            self.stopping.wait(0.01 if self.tried < self.count else 0.2)

    def knock(self):
        word = self.words[self.tried % len(self.words)]
        self.tried += 1
        client = self.make()
        client.setblocking(False)
        entry = [client, word]
        try:
            client.connect(self.address)
        except BlockingIOError:
            if client.family == socket.AF_UNIX:  # the queue is full
                client.close()
                return
        except OSError:
            client.close()
            return
        self.connected += 1
        self.held.append(entry)
        if not self.trickle:
            self.late_feed()
            self.feed(entry, len(word))

    def late_feed(self):
        """A TCP connection is there a moment later."""
        for entry in self.held[-200:-1]:
            if entry[1]:
                self.feed(entry, len(entry[1]))

    def feed(self, entry, size):
        try:
            sent = entry[0].send(entry[1][:size]) if entry[1] else 0
            entry[1] = entry[1][sent:]
        except BlockingIOError:
            pass
        except OSError:
            entry[1] = b""

    def done(self):
        return self.tried >= self.count

    def close(self):
        self.stopping.set()
        if self.thread.is_alive():
            self.thread.join()
        for client, _ in self.held:
            client.close()
        self.held = []

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.close()


class Inside:
    """Makes TCP sockets inside a namespace without a thread for each: the maker stays there."""

    def __init__(self, namespace, source=None):
        self.namespace, self.source = namespace, source
        self.local = threading.local()

    def __call__(self):
        from netns import enter
        if not getattr(self.local, "inside", False):
            enter(f"/run/netns/{self.namespace.name}")  # the flood's own thread
            self.local.inside = True
        made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        if self.source:
            made.bind((self.source, 0))
        return made


def status_of(pid):
    with open(f"/proc/{pid}/status") as f:
        return dict(line.rstrip("\n").split(":\t", 1) for line in f if ":\t" in line)


class Watch:
    """A context around what the processes {name: pid} are put through. `resident` is the kernel's own high-water mark;
    `own`, without what is shared with others (a guest's RAM, programs), is looked at 20 times a second."""

    def __init__(self, **pids):
        self.pids = {name: pid for name, pid in pids.items() if pid}
        self.threads, self.descriptors, self.resident, self.own = {}, {}, {}, {}
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)

    def look(self):
        for name, pid in self.pids.items():
            try:
                status = status_of(pid)
                descriptors = len(os.listdir(f"/proc/{pid}/fd"))
            except OSError:
                continue
            if "VmHWM" not in status:
                continue  # it has just ended
            self.threads[name] = max(self.threads.get(name, 0), int(status["Threads"]))
            self.descriptors[name] = max(self.descriptors.get(name, 0), descriptors)
            self.own[name] = max(self.own.get(name, 0), int(status["RssAnon"].split()[0]) << 10)
            self.resident[name] = max(self.resident.get(name, 0), int(status["VmHWM"].split()[0]) << 10)

    def run(self):
        while not self.stopping.wait(0.05):
            self.look()

    def __enter__(self):
        for pid in self.pids.values():
            Path(f"/proc/{pid}/clear_refs").write_text("5")  # VmHWM begins anew
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stopping.set()
        self.thread.join()
        self.look()

    def __str__(self):
        return "; ".join(f"{name}: {self.resident[name] / MIB:.1f} MiB, {self.own[name] / MIB:.1f} MiB its own, {self.threads[name]} threads, "
                         f"{self.descriptors[name]} descriptors" for name in self.resident)
