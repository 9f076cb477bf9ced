# SPDX-License-Identifier: Apache-2.0
"""One host of the lab: a namespace with the bridge br0, an oraid of its own, and the means to hurt it.

br0 has the host's address and one port to the segment; guests' taps join it. So all guests of all hosts of a segment are
in one LAN, together with the hosts themselves.
"""

import http.client
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import time
from pathlib import Path

import netns

PORT = 7420
MIB = 1 << 20
LOG_LINES = {"console.log": 150}  # of a log that is shown; a kernel's panic with its whole trace
OTHER_LOG_LINES = 80


class OraiError(Exception):
    """`orai` ended with a failure; `code` is its exit status, the text what it printed."""

    def __init__(self, command, code, out, err):
        super().__init__(f"{command}: exit {code}: {err.strip() or out.strip()}")
        self.code, self.out, self.err = code, out, err


class TooSlow(AssertionError):
    """More time than there is for it. A busy machine may be the reason: what made no other mistake may try again (./check)."""


def in_time(seconds, most, what):
    if seconds >= most:
        raise TooSlow(f"{what}: {seconds * 1000:.0f} ms, and there were {most * 1000:.0f}")


class ApiError(Exception):
    def __init__(self, status, body):
        super().__init__(f"HTTP {status}: {body}")
        self.status, self.error = status, body.get("error", {}) if isinstance(body, dict) else {}


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path, timeout):
        super().__init__("localhost", timeout=timeout)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self.path))


def wait_until(condition, seconds, what):
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds} s in vain: {what}")
        time.sleep(0.02)


def is_alive(pid, start=None):
    """`start`: of its record (src/base/pid.h); another process may have got the same pid by now."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return fields[0] not in "ZX" and start in (None, fields[19])


def stands_still(pid):
    """All its threads are stopped, or it is gone."""
    states = []
    for thread in Path(f"/proc/{pid}/task").glob("*/stat"):
        try:
            states.append(thread.read_text().rpartition(")")[2].split()[0])
        except (FileNotFoundError, ProcessLookupError):
            pass
    return all(state in "TtZX" for state in states)


def call(connection, method, path, body):
    try:
        connection.request(method, path, json.dumps(body) if body is not None else None,
                           {"Content-Type": "application/json"})
        answer = connection.getresponse()
        data = json.loads(answer.read() or b"null")
    finally:
        connection.close()
    if answer.status >= 400:
        raise ApiError(answer.status, data)
    return data


class Host:
    def __init__(self, name, namespace, link, address, folder, build, options=()):
        self.name, self.namespace, self.link, self.address, self.build = name, namespace, link, address, build
        self.folder, self.state, self.run_dir = folder, folder / "state", folder / "run"
        self.options = list(options)
        self.oraid = None
        self.mounted = False
        for path in (self.folder, self.state, self.run_dir):
            path.mkdir(mode=0o711)
            path.chmod(0o711)  # QEMU's user must get through
        netns.make_bridge(namespace, "br0")
        namespace.ip("link", "set", link.interface, "master", "br0")
        namespace.ip("addr", "add", f"{address}/24", "dev", "br0")

    # --- oraid ---
    def start(self):
        command = [self.build / "oraid", "--name", self.name, "--state-dir", self.state, "--run-dir", self.run_dir,
                   "--listen", self.address, "--advertise", self.address, "--qemu-user", "nobody",
                   "--faults", *self.options]
        with open(self.folder / "oraid.log", "ab") as log:
            self.oraid = self.namespace.popen(*command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        wait_until(self.is_up, 20, f"oraid of {self.name} serves its API; {self.folder}/oraid.log:\n{self.log()}")

    def is_up(self):
        if self.oraid and self.oraid.poll() is not None:
            raise RuntimeError(f"oraid of {self.name} ended with {self.oraid.returncode}:\n{self.log()}")
        try:
            return self.api("GET", "/v1/host", timeout=5)
        except (OSError, http.client.HTTPException):
            return None

    def stop(self):
        self.oraid.terminate()
        self.oraid.wait(20)

    def kill9(self):
        self.oraid.kill()
        self.oraid.wait()

    def restart(self):
        if self.oraid.poll() is None:
            self.stop()
        self.start()

    def log(self):
        """The newest lines of the logs of oraid, each orai-vm, QEMU and guest."""
        texts = []
        for path in [self.folder / "oraid.log", *self.state.glob("vms/*/*.log")]:
            if path.exists() and path.stat().st_size:
                newest = path.read_text(errors="replace").splitlines()[-LOG_LINES.get(path.name, OTHER_LOG_LINES):]
                texts.append("\n".join([f"--- {path.relative_to(self.folder)} of {self.name}", *newest]))
        return "\n".join(texts)

    # --- asking ---
    def begin(self, *words):
        """Starts the command line, as if on this host; a Popen."""
        return subprocess.Popen([str(self.build / "orai"), *map(str, words)], stdin=subprocess.DEVNULL,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                env={**os.environ, "ORAI_SOCKET": str(self.run_dir / "api.sock")})

    def orai(self, *words, json=False, timeout=300, check=True):
        """Runs the command line; its output, or with `json` the object that it printed."""
        words = [*words, *(["--format", "json"] if json else [])]
        with self.begin(*words) as process:
            try:
                out, err = process.communicate(timeout=timeout)
            except BaseException:
                process.kill()
                raise
        if check and process.returncode:
            raise OraiError("orai " + " ".join(map(str, words)), process.returncode, out, err)
        return parse(out) if json else out

    def api(self, method, path, body=None, timeout=60):
        return call(UnixConnection(self.run_dir / "api.sock", timeout), method, path, body)

    def peer_api(self, caller, method, path, body=None, timeout=60):
        """Asks this host's TCP port with the key of the host `caller`."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.load_cert_chain(caller.state / "host.crt", caller.state / "host.key")
        connection = http.client.HTTPSConnection(self.address, PORT, timeout=timeout, context=context)
        plain = caller.namespace.socket()
        plain.settimeout(timeout)
        plain.connect((self.address, PORT))
        connection.sock = context.wrap_socket(plain)
        return call(connection, method, path, body)

    def vm(self, name):
        """The VM as the API shows it, or None."""
        try:
            return self.api("GET", f"/v1/vms/{name}")
        except ApiError as e:
            if e.status == 404:
                return None
            raise

    def vm_state(self, name):
        vm = self.vm(name)
        return vm["state"] if vm else None

    def image_file(self, name, disk=0):
        return self.state / "vms" / name / f"disk{disk}.raw"

    # --- processes ---
    def pid_of(self, kind, name):
        """`kind`: oraid, orai-vm or qemu. None when it does not run."""
        path = self.run_dir / "oraid.pid" if kind == "oraid" else self.run_dir / "vms" / name / f"{kind}.pid"
        try:
            pid, start, _boot = path.read_text().split()
        except (FileNotFoundError, ValueError):
            return None
        return int(pid) if is_alive(pid, start) else None

    def signal(self, kind, name, number):
        pid = self.pid_of(kind, name)
        if pid is None:
            raise ProcessLookupError(f"no {kind} of {name} on {self.name}")
        os.kill(pid, number)
        return pid

    def kill(self, kind, name):
        """kill -9, and waits until it is gone."""
        if kind == "oraid":
            self.kill9()
        else:
            pid = self.signal(kind, name, signal.SIGKILL)
            wait_until(lambda: not is_alive(pid), 10, f"{kind} of {name} ends")

    def freeze(self, kind, name):
        """Returns once it stands still: a thread that waits for its disk has to come back from there first."""
        pid = self.signal(kind, name, signal.SIGSTOP)
        wait_until(lambda: stands_still(pid), 30, f"{kind} of {name} on {self.name} stands still")

    def thaw(self, kind, name):
        self.signal(kind, name, signal.SIGCONT)

    # --- faults (src/move/fault.h) ---
    def fault(self, name, point, action):
        folder = self.run_dir / "vms" / name
        folder.mkdir(mode=0o711, parents=True, exist_ok=True)
        (folder / "fault.reached").unlink(missing_ok=True)
        (folder / "fault.new").write_text(f"{point} {action}\n")
        (folder / "fault.new").rename(folder / "fault")

    def has_reached(self, name, point):
        path = self.run_dir / "vms" / name / "fault.reached"
        return path.exists() and path.read_text() == point

    def wait_fault_reached(self, name, point, seconds=60):
        wait_until(lambda: self.has_reached(name, point), seconds, f"{self.name} reaches {point}")

    def clear_fault(self, name):
        (self.run_dir / "vms" / name / "fault").unlink(missing_ok=True)

    # --- a disk that can be full ---
    def limit_disk(self, size):
        """The state folder becomes a file system of `size` bytes of its own. Before start()."""
        image = self.folder / "state.ext4"
        with open(image, "wb") as f:
            f.truncate(size)
        netns.run("mke2fs", "-q", "-t", "ext4", "-m", 0, image)
        netns.run("mount", "-o", "loop", image, self.state)
        self.mounted = True
        self.state.chmod(0o711)

    def fill_disk(self, leave=MIB):
        """Only `leave` bytes stay free in the state folder (limit_disk); free_disk() takes the ballast away."""
        free = shutil.disk_usage(self.state).free
        with open(self.state / "ballast", "wb") as f:
            os.posix_fallocate(f.fileno(), 0, max(free - leave, 1))

    def free_disk(self):
        (self.state / "ballast").unlink(missing_ok=True)

    def remove(self):
        """Nothing of the host is left but its folder."""
        self.namespace.remove()
        if self.oraid:
            self.oraid.wait()
        if self.mounted:
            netns.run("umount", self.state)
            self.mounted = False


def parse(text):
    """The JSON document that the command line printed."""
    return json.loads(text)
