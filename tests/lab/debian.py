# SPDX-License-Identifier: Apache-2.0
"""The full Debian guest (systemd, Apache, a disk writer) and its visitors."""

import http.client
import json
import re
import subprocess
import tempfile
import threading
import time
from pathlib import Path

from host import wait_until
from lab import CACHE, CLIENT, GUEST

GUEST_FOLDER = Path(__file__).parent / "guest"
LINE, LINES_PER_FILE = 1024, 4096


def ensure_debian():
    subprocess.run([GUEST_FOLDER / "build-debian", CACHE], check=True)


def command_line(writer=64):
    """The kernel's; the writer writes so many KiB per second."""
    return f"root=/dev/vda rw console=ttyS0 quiet orai.ip={GUEST}/24 orai.gw={CLIENT} orai.writer={writer}"


class Apache:
    """The guest's, whoever runs the guest."""

    def __init__(self, lab):
        self.lab = lab

    def wait(self, seconds=180):
        wait_until(lambda: self.answers(), seconds, "the guest's Apache answers")

    def get(self, path, seconds=5):
        connection = http.client.HTTPConnection(GUEST, timeout=seconds)
        connection.sock = self.lab.client.socket()
        connection.sock.settimeout(seconds)
        try:
            connection.sock.connect((GUEST, 80))
            connection.request("GET", path)
            answer = connection.getresponse()
            body = answer.read()
        finally:
            connection.close()
        if answer.status != 200:
            raise OSError(f"{path}: {answer.status}")
        return body

    def answers(self):
        try:
            return self.status() and self.writer()
        except (OSError, ValueError, http.client.HTTPException):
            return None

    def status(self):
        return json.loads(self.get("/status.json"))

    def writer(self):
        return json.loads(self.get("/writer.json"))


class DebianGuest(Apache):
    def __init__(self, lab, host, name="web1", image="debian12", memory="1G", disk="8G", cpus=2, writer=64):
        super().__init__(lab)
        self.name = name
        host.orai("create", name, "--image", image, "--memory", memory, "--cpus", cpus, "--disk", disk, "--bridge", "br0",
                  "--kernel", CACHE / "debian12.vmlinuz", "--initrd", CACHE / "debian12.initrd", "--append", command_line(writer))

    def start(self, host, seconds=180):
        host.orai("start", self.name)
        self.wait(seconds)


class Visitors:
    """`ab` again and again, each run to its end; without -r, so that a broken connection is a failure."""

    COUNT = 100

    def __init__(self, namespace, concurrency=2):
        self.command = ["ab", "-q", "-l", "-s", "30", "-n", str(self.COUNT), "-c", str(concurrency), f"http://{GUEST}/"]
        self.namespace = namespace
        self.requests, self.failed, self.trouble = 0, 0, []
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self.visit)
        self.thread.start()

    def visit(self):
        while not self.stopping.is_set():
            with self.namespace.popen(*self.command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as ab:
                output = ab.communicate()[0]
            self.count(ab.returncode, output)
            self.stopping.wait(0.1)

    def count(self, code, output):
        def number(label):
            found = re.search(rf"{label}:\s+(\d+)", output)
            return int(found[1]) if found else 0
        complete = number("Complete requests")
        failed = number("Failed requests") + number("Non-2xx responses")
        if code or complete < self.COUNT:
            failed += max(1, self.COUNT - complete) if code == 0 else 1
            self.trouble.append(output.strip().splitlines()[-1] if output.strip() else f"ab: exit {code}")
        self.requests += complete + (1 if code else 0)
        self.failed += failed

    def stop(self):
        self.stopping.set()
        self.thread.join()


def fnv1a(data):
    total = 0xCBF29CE484222325
    for byte in data:
        total = (total ^ byte) * 0x100000001B3 & (1 << 64) - 1
    return total


def writer_lines(image, last):
    """Problems of the writer's lines up to number `last` in the image of a guest that is off. Nothing is mounted."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["debugfs", "-R", f"rdump /var/lib/writer {folder}", image], check=True, capture_output=True)
        logs = {int(path.name.partition(".")[2]): path.read_bytes() for path in Path(folder).glob("writer/log.*")}
    problems = [] if logs else ["there is no log at all"]
    for number in range(min(logs, default=0) * LINES_PER_FILE + 1, last + 1):
        file, at = divmod(number - 1, LINES_PER_FILE)
        line = logs.get(file, b"")[at * LINE:(at + 1) * LINE]
        if len(line) != LINE or line[:16] != b"%016x" % fnv1a(line[17:-1]) or line[17:33] != b"%016d" % number:
            problems.append(f"line {number} is {'missing' if not line else 'damaged'}")
    return problems


def fsck(image):
    """e2fsck's verdict on an image that nobody uses; an empty text means clean."""
    done = subprocess.run(["e2fsck", "-fn", image], capture_output=True, text=True)
    return "" if done.returncode == 0 else done.stdout + done.stderr


def sleep_with(visitors, seconds):
    """`seconds` of ordinary work."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and not visitors.trouble:
        time.sleep(0.1)
