# SPDX-License-Identifier: Apache-2.0
"""Crowds and liars at every door of a host whose guest runs. The guest must not notice, honest people are answered, and
what it costs stays below what docs/threat-model.md says ("What it may cost").
"""

import contextlib
import os
import random
import socket
import struct
import subprocess
import time

import pytest

from flood import Flood, Inside, Watch, hello_for, status_of
from host import MIB, PORT, in_time, wait_until
from lab import BUILD
from test_postcopy import borrows, check_whole, split, whole  # noqa: F401 (split is a fixture)

pytestmark = pytest.mark.alone

SANITIZED = b"__asan_init" in (BUILD / "orai-vm").read_bytes()
# docs/threat-model.md, "What it may cost"
MEMORY = (64 * MIB) * (8 if SANITIZED else 1)
GUEST = 96 * MIB  # its RAM, which orai-vm maps while it compares that of an emulated guest
THREADS, DESCRIPTORS = 64, 640
SILENCE = 1.5  # seconds without the guest's datagrams: of them two are missed by a machine with all its CPUs busy
ANSWER = 5.0
LOG = 64 << 10


def watch(lab, guest):
    return Watch(**{f"{kind} of {name}": host.pid_of(kind, guest.name)
                    for name, host in lab.hosts.items() for kind in ("oraid", "orai-vm")})


def check_cost(seen):
    print(seen)
    for name in seen.resident:
        assert seen.own[name] < MEMORY and seen.resident[name] < MEMORY + GUEST, f"{name}: {seen}"
        assert seen.threads[name] < THREADS and seen.descriptors[name] < DESCRIPTORS, f"{name}: {seen}"


def log_size(lab):
    return sum(path.stat().st_size for path in lab.folder.glob("*/oraid.log")) + \
        sum(path.stat().st_size for path in lab.folder.glob("*/state/vms/*/orai-vm.log"))


def check_unmoved(guest, since):
    silence = guest.datagrams.longest_silence(since)
    print(f"longest silence of the guest: {silence:.2f} s")
    in_time(silence, SILENCE, "its neighbours missed it")
    guest.check_alive()


def answered(ask, *arguments, **keywords):
    began = time.monotonic()
    ask(*arguments, **keywords)
    took = time.monotonic() - began
    in_time(took, ANSWER, ask.__name__)
    return took


def words_for(lab, guest):
    """What strangers may say: nothing, a hello to the VM (its id is no secret: it is in every move's), a hello to the
    API."""
    vm = next(host.vm(guest.name) for host in lab.hosts.values() if host.vm(guest.name))
    return [b"", hello_for(f"{vm['id']}.orai"), hello_for("orai")]


def test_ten_thousand_strangers_at_the_port(labs, guests):
    """Half-open, slow, and with a hello for the VM or the API and no more: 10,000 in all."""
    lab = labs("a", "b")
    guest = guests(lab, lab.a, disk="64M", region=16 * MIB, rate=50)
    silent, to_vm, to_api = words_for(lab, guest)
    lab.a.peer_api(lab.b, "GET", "/v1/host")
    began, logged, slowest = time.monotonic(), log_size(lab), 0.0
    target, make = (lab.a.address, PORT), Inside(lab.client)
    with watch(lab, guest) as seen, Flood(make, target, 7000, [silent, to_vm, to_api]) as crowd, \
            Flood(make, target, 3000, [to_vm, to_api], rate=1000, trickle=True) as slow:
        while not (crowd.done() and slow.done()) or time.monotonic() < began + 4:
            slowest = max(slowest, answered(lab.a.orai, "status"), answered(lab.a.peer_api, lab.b, "GET", "/v1/host"),
                          answered(guest.ask, "write 20"))
        assert crowd.connected + slow.connected == 10_000
    print(f"slowest answer: {slowest:.2f} s")
    check_cost(seen)
    check_unmoved(guest, began)
    assert log_size(lab) - logged < LOG
    lab.a.orai("move", guest.name, "b")
    guest.check_alive()
    wait_until(lambda: freed(lab), 15, "every connection is forgotten")
    check_whole(guest, lab.b)


def freed(lab):
    pid = lab.a.pid_of("oraid", "")
    return len(os.listdir(f"/proc/{pid}/fd")) < 32 and int(status_of(pid)["Threads"]) < 16


@contextlib.contextmanager
def crowds_everywhere(lab, guest, count=8000, rate=300):
    """At the port of each host: silent ones, and hellos for the VM and for the API."""
    with contextlib.ExitStack() as stack:
        for host in lab.hosts.values():
            stack.enter_context(Flood(Inside(lab.client), (host.address, PORT), count, words_for(lab, guest), rate=rate))
        yield


def test_moves_go_through_in_a_crowd(labs, guests):
    """There and back, each time to an arrival that strangers greet as well; back with the disk after the guest."""
    lab = labs("a", "b")
    guest = guests(lab, lab.a, disk="64M", region=16 * MIB, rate=50)
    with crowds_everywhere(lab, guest), watch(lab, guest) as seen:
        for source, target, mode in ((lab.a, lab.b, "precopy"), (lab.b, lab.a, "postcopy")):
            source.orai("move", guest.name, target.name, "--mode", mode, timeout=60)
            seen.pids[f"orai-vm of {target.name}"] = target.pid_of("orai-vm", guest.name)
        whole(lab.a, guest, lab.b)
    check_cost(seen)
    assert lab.where(guest.name) == {"a": "running", "b": "replica"}
    guest.check_alive()
    check_whole(guest, lab.a)


def test_strangers_while_blocks_are_lent(split):
    lab, guest = split(records=4500)
    missing = borrows(lab.b, guest)["missing_bytes"]
    began = time.monotonic()
    with crowds_everywhere(lab, guest), watch(lab, guest) as seen:
        while time.monotonic() < began + 2:
            answered(lab.a.orai, "status"), answered(lab.b.orai, "status"), answered(guest.ask, "write 5")
    check_cost(seen)
    assert (borrows(lab.b, guest) or {"missing_bytes": 0})["missing_bytes"] < missing - MIB, "blocks went on coming"
    check_unmoved(guest, began)
    lab.a.link.limit(1_000_000_000)
    whole(lab.b, guest, lab.a)
    check_whole(guest, lab.b)


def unix_socket():
    return socket.socket(socket.AF_UNIX)


def test_ten_thousand_clients_of_the_api(labs, guests):
    lab = labs("a")
    guest = guests(lab, lab.a, disk="64M", region=16 * MIB, rate=50)
    began, target = time.monotonic(), str(lab.a.run_dir / "api.sock")
    slow = b"GET /v1/vms HTTP/1.1\r\nHost: x\r\nX-Long: " + b"x" * 4000
    body = b"POST /v1/vms HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n" + b"[" * 200_000
    with watch(lab, guest) as seen, Flood(unix_socket, target, 9000, [b"", slow[:100], body]) as crowd, \
            Flood(unix_socket, target, 1000, [slow, body], rate=400, trickle=True):
        while not crowd.done() or time.monotonic() < began + 4:
            answered(lab.a.orai, "status")
            answered(guest.ask, "write 20")
    assert crowd.tried == 9000
    check_cost(seen)
    check_unmoved(guest, began)
    wait_until(lambda: freed(lab), 20, "every connection is forgotten")


# --- `orai disk serve`, and with it every disk of every VM -----------------------------------------------------------

NBD_OPTS, NBD_REQUEST = 0x49484156454F5054, 0x25609513
READ, WRITE, TRIM, WRITE_ZEROES, BLOCK_STATUS = 0, 1, 4, 6, 7


class Client:
    """Knows just enough of NBD to break it."""

    def __init__(self, path, timeout=5):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(timeout)
        self.socket.connect(str(path))

    def negotiate(self):
        self.take(18)
        self.socket.sendall(struct.pack(">IQII", 3, NBD_OPTS, 1, 0))  # EXPORT_NAME "", NO_ZEROES
        size, _ = struct.unpack(">QH", self.take(10))
        return size

    def take(self, count):
        data = b""
        while len(data) < count:
            part = self.socket.recv(count - len(data))
            if not part:
                raise EOFError
            data += part
        return data

    def ask(self, command, offset, length, payload=b"", cookie=1, flags=0):
        self.socket.sendall(struct.pack(">IHHQQI", NBD_REQUEST, flags, command, cookie, offset, length) + payload)

    def answer(self):
        _, error, cookie = struct.unpack(">IIQ", self.take(16))
        return error, cookie


@pytest.fixture
def server(tmp_path):
    image, path = tmp_path / "disk.raw", tmp_path / "disk.sock"
    with open(image, "wb") as f:
        f.truncate(64 * MIB)
    process = subprocess.Popen([BUILD / "orai", "disk", "serve", image, "--socket", path], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline().startswith("orai: serving ")
    yield process, path
    process.terminate()
    assert process.wait(20) == 0


def liar(path, number):
    """Lies, and goes; what it hears must be an error or the end."""
    rng = random.Random(number)
    client = Client(path)
    end = client.negotiate()
    lies = [(READ, end, 1), (READ, end - 1, 2), (READ, 2**64 - 1, 2), (READ, 2**63, 512), (READ, 0, 2**32 - 1),
            (TRIM, 2**64 - 512, 1024), (WRITE_ZEROES, end - 512, 1024), (BLOCK_STATUS, 0, 0), (200, 0, 512)]
    client.ask(*rng.choice(lies))
    assert client.answer()[0] != 0
    client.ask(READ, 0, 512)
    assert client.answer()[0] == 0, "the connection goes on"
    client.take(512)
    with contextlib.suppress(OSError, EOFError):
        rng.choice([
            lambda: client.ask(WRITE, end - 512, 1024, bytes(1024)),
            lambda: client.ask(WRITE, 0, 2**32 - 1, bytes(4096)),  # much is announced, little comes
            lambda: client.ask(WRITE, 0, 32 << 20, bytes(70_000)),
            lambda: client.socket.sendall(b"\xff" * 28),
            lambda: client.socket.sendall(struct.pack(">IHH", NBD_REQUEST, 0, READ)),
        ])()
    return client


def silent_reader(path):
    """Asks for much and takes nothing."""
    client = Client(path, timeout=0.2)
    client.negotiate()
    asked = 0
    with contextlib.suppress(OSError):
        for asked in range(200_000):
            client.ask(READ, 0, 32 << 20, cookie=asked)
    return client


def test_liars_at_a_disk(server):
    """Beside an honest client: requests that cannot be, halves of requests, and readers that do not read."""
    process, path = server
    honest = Client(path)
    honest.negotiate()
    began, rounds, slowest, others = time.monotonic(), 0, 0.0, []
    with Watch(server=process.pid) as seen:
        others += [silent_reader(path) for _ in range(4)]
        for number in range(200):
            client = liar(path, number)
            if number < 6:
                others.append(client)  # it holds its place, in the middle of its request
            else:
                client.socket.close()
            asked, data = time.monotonic(), os.urandom(4096)
            honest.ask(WRITE, (number % 100) * 65536, 4096, data)
            assert honest.answer()[0] == 0
            honest.ask(READ, (number % 100) * 65536, 4096)
            assert honest.answer()[0] == 0 and honest.take(4096) == data
            slowest, rounds = max(slowest, time.monotonic() - asked), rounds + 1
        # as many as the queue takes, and for whoever leaves one comes
        with Flood(unix_socket, str(path), 10_000, [b""], rate=5000) as crowd:
            while not crowd.done():
                asked = time.monotonic()
                honest.ask(READ, 0, 65536)
                assert honest.answer()[0] == 0 and honest.take(65536)
                slowest, rounds = max(slowest, time.monotonic() - asked), rounds + 1
    took = time.monotonic() - began
    print(f"{seen}; {rounds} honest rounds in {took:.1f} s, the slowest {slowest:.3f} s; {crowd.connected} connected")
    assert seen.resident["server"] < 48 * MIB * (8 if SANITIZED else 1)
    assert seen.threads["server"] <= 16 + 4 and seen.descriptors["server"] < 128
    assert slowest < 1 and rounds > 300
    for client in others:
        client.socket.close()
    last = Client(path)
    assert last.negotiate() == 64 * MIB
