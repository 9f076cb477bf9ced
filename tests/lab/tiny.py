# SPDX-License-Identifier: Apache-2.0
"""The tiny guest of guest/ as a story's hero: it knows what it wrote, and everything that happens to it is noticed.

  Pulse       one held TCP connection to the guest's port 7000, used all the time by a thread of its own
  Datagrams   receives the guest's numbered UDP packets (one each 10 ms). The longest silence is the blackout as its
              neighbours feel it; a number that comes twice means that two copies of the guest ran
  TinyGuest   makes, boots, asks, checks
"""

import functools
import json
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

from host import in_time, wait_until
from lab import CACHE, GUEST, CLIENT, UDP_PORT

GUEST_FOLDER = Path(__file__).parent / "guest"
sys.path.insert(0, str(GUEST_FOLDER))
import records  # noqa: E402

MIB = 1 << 20
CONTROL_PORT = 7000
UNUSED = "crypto_kdf108_init,init_kprobe_trace,btf_vmlinux_init,load_system_certificate_list,init_ima,slab_sysfs_init"


@functools.cache
def ensure_tiny():
    subprocess.run([GUEST_FOLDER / "build-tiny", CACHE], check=True, stdout=subprocess.DEVNULL)


class Pulse:
    def __init__(self, namespace, address, seconds=30):
        self.lock = threading.Lock()
        self.socket = None
        deadline = time.monotonic() + seconds
        while self.socket is None:
            candidate = namespace.socket()
            candidate.settimeout(2)
            try:
                candidate.connect((address, CONTROL_PORT))
                self.socket = candidate
            except OSError:
                candidate.close()
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
        self.lines = self.socket.makefile("r")
        self.echoes, self.longest, self.error = 0, 0.0, None
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self.beat, daemon=True)
        self.thread.start()

    def ask(self, line, seconds=40):
        with self.lock:
            if self.error:
                raise self.error
            self.socket.settimeout(seconds)
            try:
                self.socket.sendall(f"{line}\n".encode())
                answer = self.lines.readline().rstrip("\n")
            except OSError as e:
                self.error = e
                raise
        if not answer or answer.startswith("error"):
            raise ConnectionError(f"the guest answered {answer!r} to {line!r}")
        return answer

    def clock(self):
        """(seconds that the guest's clock is ahead of this machine's, what it counts by): by the fastest of some answers."""
        fastest = None
        for _ in range(60):
            began = time.time()
            answer = self.ask("clock")
            ended = time.time()
            if fastest is None or ended - began < fastest[0]:
                fastest = ended - began, (began + ended) / 2, answer
            time.sleep(0.005)
        took, middle, answer = fastest
        in_time(took, 0.02, "the fastest answer of its clock")
        clock = json.loads(answer)
        return clock["nsec"] / 1e9 - middle, clock["source"]

    def beat(self):
        """Each answer must come, and be the right one, over the one connection."""
        while not self.stopping.is_set():
            text = f"beat {self.echoes} " + "x" * 200
            began = time.monotonic()
            try:
                if self.ask(f"echo {text}") != text:
                    raise ConnectionError("a wrong echo")
            except OSError as e:
                with self.lock:
                    self.error = self.error or e
                return
            self.longest = max(self.longest, time.monotonic() - began)
            self.echoes += 1
            self.stopping.wait(0.01)

    def close(self):
        self.stopping.set()
        try:
            self.socket.shutdown(socket.SHUT_RDWR)  # the thread may wait for a guest that is no more
        except OSError:
            pass
        self.thread.join()
        self.socket.close()


class Datagrams:
    def __init__(self, namespace, port=UDP_PORT):
        self.socket = namespace.socket(socket.SOCK_DGRAM)
        self.socket.bind(("0.0.0.0", port))
        self.socket.settimeout(0.2)
        self.seen, self.twice, self.gaps = set(), [], []
        self.last = self.last_time = None
        self.stopping = False
        self.thread = threading.Thread(target=self.receive, daemon=True)
        self.thread.start()

    def receive(self):
        while not self.stopping:
            try:
                data = self.socket.recv(64)
            except TimeoutError:
                continue
            now = time.monotonic()
            number, boot = struct.unpack(">QQ", data[:16])
            if (boot, number) in self.seen:
                self.twice.append((boot, number))
            self.seen.add((boot, number))
            if self.last_time is not None:
                self.gaps.append((now - self.last_time, now))
            self.last, self.last_time = (boot, number), now

    def longest_silence(self, since=0.0):
        """Seconds, of the silences that ended after `since` (time.monotonic()), and of the one that lasts."""
        lasts = time.monotonic() - self.last_time if self.last_time is not None else 0.0
        return max([lasts, *(gap for gap, end in self.gaps if end >= since)])

    def heard_since(self, moment):
        return self.last_time is not None and self.last_time >= moment

    def boots(self):
        return {boot for boot, _ in self.seen}

    def close(self):
        self.stopping = True
        self.thread.join()
        self.socket.close()


class TinyGuest:
    def __init__(self, lab, host, name="web1", image=None, disk="256M", memory="96M", region=64 * MIB, pattern=16,
                 dirty=2, rate=100, start=True, options=(), words=""):
        ensure_tiny()
        self.lab, self.name, self.region = lab, name, region
        self.pulse = None
        self.datagrams = Datagrams(lab.client)
        # A kernel that hangs says where: its console is shown with a failed story. Without its self-tests, what nobody here
        # uses, and patching itself for one CPU it boots in three quarters of the time.
        append = (f"console=ttyS0 quiet softlockup_panic=1 cryptomgr.notests noreplace-smp initcall_blacklist={UNUSED} pulse.ip={GUEST}/24 pulse.gw={CLIENT} "
                  f"pulse.mem={pattern} pulse.dirty={dirty} pulse.rate={rate} pulse.sync=64 pulse.region={region} "
                  f"pulse.udp={CLIENT}:{UDP_PORT} {words}")
        host.orai("create", name, "--memory", memory, "--disk", disk, "--bridge", "br0", "--kernel", CACHE / "vmlinuz",
                  "--initrd", CACHE / "tiny.cpio.gz", "--append", append, *(["--image", image] if image else []), *options)
        if start:
            self.start(host)

    def start(self, host):
        host.orai("start", self.name)
        self.meet()

    def meet(self, seconds=60):
        """Connects to a guest that was (re)booted."""
        if self.pulse:
            self.pulse.close()
        self.pulse = Pulse(self.lab.client, GUEST, seconds)
        self.boot = self.status()["boot"]

    def status(self):
        return json.loads(self.pulse.ask("status"))

    def ask(self, line, seconds=120):
        """Writing thousands of records takes an emulated guest a while."""
        return json.loads(self.pulse.ask(line, seconds))

    def quiet(self):
        """Nothing is written to disk or pattern any more; all that was is durable."""
        self.ask("rate 0")
        self.ask("dirty 0")
        return self.ask("sync")

    def slots_between(self, first, last):
        """How many different 4 KiB blocks the records after `first` up to `last` lie in."""
        slots = self.region // records.SIZE
        return len({records.slot_of(number, slots) for number in range(first + 1, last + 1)})

    # --- what must hold ---
    def check_alive(self):
        """The same boot, the same connection, no damage seen from inside."""
        if self.pulse.error:
            raise AssertionError(f"the held TCP connection broke: {self.pulse.error}")
        status = self.status()
        assert status["boot"] == self.boot, "the guest was rebooted"
        assert status["disk_errors"] == 0 and status["mem_errors"] == 0, status
        assert not self.datagrams.twice, "the guest ran twice at the same time"
        return status

    def check_records(self, host, durable, written=None, disk=0):
        """The image on `host` has every record that an fsync had covered."""
        command = [sys.executable, GUEST_FOLDER / "check-records", host.image_file(self.name, disk), "--durable", durable,
                   "--region", self.region, "--boot", self.boot, *(["--written", written] if written is not None else [])]
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
        assert done.returncode == 0, f"records lost on {host.name}:\n{done.stdout}{done.stderr}"

    def power_off(self, host):
        """Everything written is durable, then the guest is off. Returns its last status."""
        status = self.quiet()
        self.pulse.stopping.set()
        self.pulse.thread.join()
        self.pulse.ask("poweroff")
        wait_until(lambda: host.vm_state(self.name) == "stopped", 30, f"{self.name} is off on {host.name}")
        return status

    def close(self):
        if self.pulse:
            self.pulse.close()
        self.datagrams.close()


def same_content(one, other):
    """Whether two images are equal byte by byte; holes are zeroes. A longer one may only have zeroes more."""
    done = subprocess.run(["qemu-img", "compare", "-f", "raw", "-F", "raw", one, other], capture_output=True, text=True)
    if done.returncode > 1:
        raise RuntimeError(done.stderr)
    return done.returncode == 0
