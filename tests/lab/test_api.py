# SPDX-License-Identifier: Apache-2.0
"""Two oraid on the loopback address and what they answer. Every answer is checked against src/host/openapi.json.

ORAI_BUILD names the build folder (default: build). VMs have no NIC and an empty disk: their QEMU runs its firmware only.
"""

import base64
import concurrent.futures
import hashlib
import http.client
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import time

import jsonschema
import pytest

from host import in_time, wait_until
from lab import BUILD, FOLDER, ROOT

pytestmark = pytest.mark.together("api")  # the last story looks at what all the others have asked

SPEC = json.loads((ROOT / "src/host/openapi.json").read_text())
MIB = 1 << 20


# --- the specification ---------------------------------------------------------------------------------------------

def validator(schema):
    # JSON pointers of the document work in a schema that has its components.
    return jsonschema.Draft202012Validator({**schema, "components": SPEC["components"]})


def documented(method, path):
    for template, methods in SPEC["paths"].items():
        if re.fullmatch(re.sub(r"\{[^}]+\}", "[^/]+", template), path) and method.lower() in methods:
            return methods[method.lower()]
    return None


def check_answer(method, path, status, content_type, body):
    """`path` without its query. What is not documented can only be refused."""
    operation = documented(method, path)
    if operation is None:
        answers = {}
        assert status >= 400
    else:
        answers = operation["responses"]
    answer = answers.get(str(status))
    if answer is None:
        assert status >= 400, f"{method} {path} answers {status}, which is not documented"
        answer = SPEC["components"]["responses"]["Error"]
    validator(answer["content"][content_type]["schema"]).validate(body)


seen = set()


# --- one host ------------------------------------------------------------------------------------------------------

class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path, timeout=60):
        super().__init__("localhost", timeout=timeout)
        self.path = str(path)

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


class Answer:
    def __init__(self, status, body):
        self.status, self.body = status, body

    @property
    def error(self):
        return self.body["error"]

    def ok(self):
        assert self.status < 300, self.body
        return self.body


def ask(connection, method, path, body=None):
    try:
        connection.request(method, path, json.dumps(body) if body is not None else None)
        answer = connection.getresponse()
        data = json.loads(answer.read())
        plain = path.partition("?")[0]
        check_answer(method, plain, answer.status, answer.headers["content-type"], data)
        seen.add((method, answer.status < 300, (documented(method, plain) or {}).get("operationId")))
        return Answer(answer.status, data)
    finally:
        connection.close()


class Oraid:
    def __init__(self, folder, name, port, *options):
        self.folder, self.name, self.port, self.options = folder, name, port, options
        self.state, self.run = folder / "state", folder / "run"
        self.process = None
        folder.mkdir(parents=True)
        self.start()

    def start(self):
        command = [BUILD / "oraid", "--name", self.name, "--listen", f"127.0.0.1:{self.port}", "--state-dir", self.state,
                   "--run-dir", self.run, "--qemu-user", "root", "--orai-vm", BUILD / "orai-vm", *self.options]
        with open(self.folder / "oraid.log", "ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + 15
        while True:
            try:
                return self.get("/v1/host")
            except (FileNotFoundError, ConnectionRefusedError):
                assert self.process.poll() is None and time.monotonic() < deadline, self.log()
                time.sleep(0.02)

    def log(self):
        return (self.folder / "oraid.log").read_text()

    def kill(self):
        self.process.kill()
        self.process.wait()

    def terminate(self):
        self.process.terminate()
        assert self.process.wait(20) == 0

    def ask(self, method, path, body=None):
        return ask(UnixConnection(self.run / "api.sock"), method, path, body)

    def get(self, path):
        return self.ask("GET", path).ok()

    def wait(self, operation):
        """The operation once it has ended; by long polls, as clients do."""
        version = 0
        while operation["state"] == "running":
            operation = self.get(f"/v1/operations/{operation['id']}?wait_ms=20000&since_version={version}")
            assert operation["version"] > version
            version = operation["version"]
        return operation

    def do(self, method, path, body=None):
        """Begins an operation and waits for its good end; returns its result."""
        operation = self.wait(self.ask(method, path, body).ok())
        assert operation["state"] == "done", operation
        return operation["result"]

    def vm(self, name="web1"):
        return self.get(f"/v1/vms/{name}")

    def await_state(self, state, name="web1", seconds=20, **members):
        """The VM once it is in the state and has the other members so: not all of them change at one moment."""
        wanted = {"state": state, **members}
        deadline = time.monotonic() + seconds
        while not wanted.items() <= (vm := self.vm(name)).items():
            assert time.monotonic() < deadline, vm
            time.sleep(0.05)
        return vm

    def pid(self, kind, name="web1"):
        return int((self.run / "vms" / name / f"{kind}.pid").read_text().split()[0])

    def as_peer(self, other, identity=None):
        """A connection to another host's port with this host's key."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        folder = identity or self.state
        context.load_cert_chain(folder / "host.crt", folder / "host.key")
        return http.client.HTTPSConnection("127.0.0.1", other.port, context=context, timeout=30)

    def close(self):
        if self.process.poll() is None:
            self.kill()  # first: it would start an orai-vm again that is killed
        for kind in ("orai-vm.pid", "qemu.pid"):
            for path in self.run.glob(f"vms/*/{kind}"):
                try:
                    os.kill(int(path.read_text().split()[0]), signal.SIGKILL)
                except (ProcessLookupError, ValueError, IndexError):
                    pass
        for path in self.state.glob("vms/*/memory.checkpoint.new"):  # being written by the child of an orai-vm that has ended
            wait_until(lambda: not path.exists(), 20, "the checkpoint is written")


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture
def hosts(tmp_path_factory):
    """hosts("a", "b"): fresh hosts that end with the test."""
    # Unix socket paths are short.
    folder = pathlib.Path(tempfile.mkdtemp(prefix="orai-api-", dir=FOLDER))
    made = []

    def make(*names, options=()):
        for name in names:
            made.append(Oraid(folder / name, name, free_port(), *options))
        return made if len(names) > 1 else made[-1]
    yield make
    for host in made:
        host.close()
    shutil.rmtree(folder)


@pytest.fixture
def pair(hosts):
    return hosts("a", "b")


def join(a, b):
    token = a.ask("POST", "/v1/invites").ok()["token"]
    return b.ask("POST", "/v1/peers/join", {"token": token}).ok()


@pytest.fixture
def peers(pair):
    join(*pair)
    return pair


def tamper(token, offset, flip=0xff):
    """Changes a byte of a token and makes its checksum right again."""
    data = token.partition(".")[2]
    raw = bytearray(base64.urlsafe_b64decode(data + "=" * (-len(data) % 4)))[:-4]
    raw[offset] ^= flip
    raw += hashlib.sha256(raw).digest()[:4]
    return "orai1." + base64.urlsafe_b64encode(raw).decode().rstrip("=")


def make_image(host, name="base", size=8 * MIB, data=b"base image"):
    path = host.folder / f"{name}.raw"
    with open(path, "wb") as file:
        file.truncate(size)
        file.seek(size // 2)
        file.write(data)
    return host.do("POST", "/v1/images", {"name": name, "path": str(path)})


def make_vm(host, name="web1", **members):
    return host.do("POST", "/v1/vms", {"name": name, "memory": 64 * MIB, "disks": [{"size": 16 * MIB}], "cpu": "qemu64",
                                      **members})


# --- hosts and peers -----------------------------------------------------------------------------------------------

def test_a_host_says_what_it_is(hosts):
    a = hosts("a")
    host = a.get("/v1/host")
    assert host["name"] == "a" and host["port"] == a.port and host["address"] is None
    assert host["qemu"]["version"] and any(m.startswith("pc-q35-") for m in host["qemu"]["machines"])
    assert a.get("/v1/openapi.json") == SPEC


def test_two_hosts_join_and_know_each_other(pair):
    a, b = pair
    inviter = join(a, b)
    assert inviter["name"] == "a" and inviter["port"] == a.port
    assert [p["name"] for p in a.get("/v1/peers")["peers"]] == ["b"]
    assert a.get("/v1/peers")["peers"][0]["fingerprint"] == b.get("/v1/host")["fingerprint"]
    for host in pair:
        probe = host.get("/v1/peers?probe=true")["peers"][0]["probe"]
        assert probe["reachable"] and probe["error"] is None and 0 <= probe["latency_ms"] < 1000
    types = [e["type"] for e in a.get("/v1/events")["events"]]
    assert "peer.joined" in types


def test_a_token_is_good_once(pair, hosts):
    a, b = pair
    c = hosts("c")
    token = a.ask("POST", "/v1/invites", {"ttl_s": 60}).ok()["token"]
    b.ask("POST", "/v1/peers/join", {"token": token}).ok()
    for late in (c, b):
        refused = late.ask("POST", "/v1/peers/join", {"token": token})
        assert refused.status == 410 and "used" in refused.error["text"] and "orai peer invite" in refused.error["hint"]
    assert c.get("/v1/peers")["peers"] == []
    assert len(a.get("/v1/peers")["peers"]) == 1


def test_of_two_that_join_at_once_one_wins(pair, hosts):
    a, b = pair
    c = hosts("c")
    token = a.ask("POST", "/v1/invites").ok()["token"]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda host: host.ask("POST", "/v1/peers/join", {"token": token}).status, (b, c)))
    assert sorted(answers) == [201, 410]
    assert len(a.get("/v1/peers")["peers"]) == 1
    assert len(b.get("/v1/peers")["peers"]) + len(c.get("/v1/peers")["peers"]) == 1


def test_an_expired_token_is_refused(pair):
    a, b = pair
    token = a.ask("POST", "/v1/invites", {"ttl_s": 1}).ok()["token"]
    time.sleep(1.2)
    refused = b.ask("POST", "/v1/peers/join", {"token": token})
    assert refused.status == 410 and "expired" in refused.error["text"]
    assert a.get("/v1/peers")["peers"] == b.get("/v1/peers")["peers"] == []


def test_a_token_of_another_key_leads_nowhere(pair):
    a, b = pair
    token = a.ask("POST", "/v1/invites").ok()["token"]
    refused = b.ask("POST", "/v1/peers/join", {"token": tamper(token, 5)})
    assert refused.status == 403 and "another key" in refused.error["text"]
    refused = b.ask("POST", "/v1/peers/join", {"token": tamper(token, 35)})  # the secret
    assert refused.status == 403 and "no such invite" in refused.error["text"] and refused.error["host"] == "a"
    refused = b.ask("POST", "/v1/peers/join", {"token": token[:-3]})
    assert refused.status == 400
    assert a.get("/v1/peers")["peers"] == b.get("/v1/peers")["peers"] == []
    b.ask("POST", "/v1/peers/join", {"token": token}).ok()  # the real one is still good


def test_a_host_cannot_join_itself(hosts):
    a = hosts("a")
    token = a.ask("POST", "/v1/invites").ok()["token"]
    refused = a.ask("POST", "/v1/peers/join", {"token": token})
    assert refused.status == 400 and "itself" in refused.error["text"]
    assert a.get("/v1/peers")["peers"] == []


def test_a_name_conflict_is_refused_and_an_alias_solves_it(hosts, pair):
    a, b = pair
    twin = Oraid(a.folder.parent / "twin", "a", free_port())
    try:
        token = a.ask("POST", "/v1/invites").ok()["token"]
        refused = twin.ask("POST", "/v1/peers/join", {"token": token})
        assert refused.status == 409 and "--name" in refused.error["hint"]
        token = a.ask("POST", "/v1/invites", {"name": "twin"}).ok()["token"]
        assert twin.ask("POST", "/v1/peers/join", {"token": token, "name": "first"}).ok()["name"] == "first"
        assert a.get("/v1/peers")["peers"][0]["name"] == "twin"
    finally:
        twin.close()


def test_a_joiner_that_dies_after_the_inviter_has_stored_it_joins_again(pair):
    """A's answer reaches nobody: A knows B, B does not know A. Another token makes it whole."""
    a, b = pair
    token = a.ask("POST", "/v1/invites").ok()["token"]
    data = token.partition(".")[2]
    secret = base64.urlsafe_b64decode(data + "=" * (-len(data) % 4))[32:48].hex()
    ask(b.as_peer(a), "POST", "/v1/join", {"secret": secret, "name": "b", "address": "127.0.0.1", "port": b.port,
                                           "protocol": {"min": 1, "max": 1}}).ok()
    b.kill()
    b.start()
    assert b.get("/v1/peers")["peers"] == [] and len(a.get("/v1/peers")["peers"]) == 1
    assert b.ask("POST", "/v1/peers/join", {"token": token}).status == 410
    join(a, b)
    assert len(a.get("/v1/peers")["peers"]) == len(b.get("/v1/peers")["peers"]) == 1


def test_another_version_is_refused_at_join_and_at_arrival(peers):
    a, b = peers
    versions = {"min": 98, "max": 99}
    body = {"secret": "0" * 32, "name": "b", "address": None, "port": 1, "protocol": versions}
    refused = ask(b.as_peer(a), "POST", "/v1/join", body)
    assert refused.status == 400 and "version mismatch" in refused.error["text"]
    refused = ask(b.as_peer(a), "POST", "/v1/arrivals",
                  {"vm": "1" * 32, "name": "web1", "move": "2" * 32, "epoch": 1, "protocol": versions})
    assert refused.status == 400 and "version mismatch" in refused.error["text"] and refused.error["host"] == "a"
    assert a.get("/v1/vms")["vms"] == []


def test_a_stranger_may_only_join_and_a_removed_peer_is_a_stranger(peers, hosts):
    a, b = peers
    c = hosts("c")
    for method, path in (("GET", "/v1/host"), ("GET", "/v1/vms"), ("POST", "/v1/arrivals"), ("GET", "/none")):
        refused = ask(c.as_peer(a), method, path, {} if method == "POST" else None)
        assert refused.status == 403 and "orai peer join" in refused.error["hint"]
    assert ask(b.as_peer(a), "GET", "/v1/host").ok()["name"] == "a"
    assert ask(b.as_peer(a), "POST", "/v1/invites").status == 403
    a.ask("DELETE", "/v1/peers/b").ok()
    assert ask(b.as_peer(a), "GET", "/v1/host").status == 403
    probe = b.get("/v1/peers?probe=true")["peers"][0]["probe"]
    assert not probe["reachable"] and probe["error"]["host"] == "a"


def test_a_client_without_a_key_is_refused_by_tls(pair):
    a, b = pair
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    connection = http.client.HTTPSConnection("127.0.0.1", a.port, context=context, timeout=10)
    with pytest.raises((ssl.SSLError, ConnectionError, http.client.HTTPException)):
        connection.request("GET", "/v1/host")
        connection.getresponse()


def test_another_host_at_a_peers_address_is_not_that_peer(peers, hosts):
    a, b = peers
    b.kill()
    impostor = Oraid(a.folder.parent / "impostor", "b", b.port)
    try:
        probe = a.get("/v1/peers?probe=true")["peers"][0]["probe"]
        assert not probe["reachable"] and "another key" in probe["error"]["text"]
    finally:
        impostor.close()


def test_peers_survive_kill_and_restart(peers):
    a, b = peers
    fingerprint = a.get("/v1/host")["fingerprint"]
    token = a.ask("POST", "/v1/invites").ok()["token"]
    a.kill()
    a.start()
    assert a.get("/v1/host")["fingerprint"] == fingerprint
    assert b.get("/v1/peers?probe=true")["peers"][0]["probe"]["reachable"]
    b.ask("POST", "/v1/peers/join", {"token": token}).ok()  # invites survive too


def test_a_second_oraid_of_the_same_state_is_refused(hosts):
    a = hosts("a")
    done = subprocess.run([BUILD / "oraid", "--name", "a", "--listen", "127.0.0.1:0", "--state-dir", a.state, "--run-dir",
                           a.folder / "run2", "--qemu-user", "root"], capture_output=True, text=True, timeout=20)
    assert done.returncode == 1 and "another oraid" in done.stderr
    a.get("/v1/host")


def test_a_taken_port_is_said_with_a_hint(hosts):
    a = hosts("a")
    done = subprocess.run([BUILD / "oraid", "--name", "x", "--listen", f"127.0.0.1:{a.port}", "--state-dir",
                           a.folder / "other", "--run-dir", a.folder / "run2", "--qemu-user", "root"],
                          capture_output=True, text=True, timeout=20)
    assert done.returncode == 1 and "--listen" in done.stderr


# --- images --------------------------------------------------------------------------------------------------------

def test_an_image_is_its_bytes(peers):
    a, b = peers
    image = make_image(a)
    raw = a.folder / "base.raw"
    assert image["hash"] == hashlib.sha256(raw.read_bytes()).hexdigest() and image["virtual_size"] == 8 * MIB
    assert image["size"] <= 64 << 10
    assert pathlib.Path(image["path"]).read_bytes() == raw.read_bytes()
    qcow2 = b.folder / "base.qcow2"
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", raw, qcow2], check=True)
    assert b.do("POST", "/v1/images", {"name": "other", "path": str(qcow2)})["hash"] == image["hash"]
    assert a.get("/v1/images")["images"] == [image]
    assert a.get(f"/v1/images/{image['hash']}") == a.get("/v1/images/base") == image


def test_a_bad_image_fails_with_words_and_leaves_nothing(hosts):
    a = hosts("a")
    overlay = a.folder / "overlay.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", "/etc/passwd", overlay, "1M"], check=True)
    failed = a.wait(a.ask("POST", "/v1/images", {"name": "x", "path": str(overlay)}).ok())
    assert failed["state"] == "failed" and "/etc/passwd" in failed["error"]["text"] and failed["error"]["hint"]
    assert a.get("/v1/images")["images"] == [] and list((a.state / "images/tmp").iterdir()) == []
    for path, status in (("/no/such/file", 404), ("relative", 400), ("/dev/null", 400), ("/etc", 400)):
        assert a.ask("POST", "/v1/images", {"name": "x", "path": path}).status == status


def test_an_image_in_use_is_kept(hosts):
    a = hosts("a")
    make_image(a)
    assert a.ask("POST", "/v1/images", {"name": "base", "path": str(a.folder / "base.raw")}).status == 409
    make_vm(a, image="base")
    refused = a.ask("DELETE", "/v1/images/base")
    assert refused.status == 409 and "web1" in refused.error["text"] and "--force" in refused.error["hint"]
    a.ask("DELETE", "/v1/images/base?force=true").ok()
    assert a.get("/v1/images")["images"] == []
    assert a.ask("DELETE", "/v1/images/base").status == 404


def test_a_kill_during_an_add_leaves_a_failed_operation_and_no_files(hosts):
    a = hosts("a")
    big = a.folder / "big.raw"
    with open(big, "wb") as file:
        file.truncate(64 << 30)  # a hole that takes a while to hash
    operation = a.ask("POST", "/v1/images", {"name": "big", "path": str(big)}).ok()
    time.sleep(0.3)
    a.kill()
    a.start()
    operation = a.get(f"/v1/operations/{operation['id']}")
    assert operation["state"] == "failed" and "oraid ended" in operation["error"]["text"]
    assert list((a.state / "images/tmp").iterdir()) == [] and a.get("/v1/images")["images"] == []


def test_a_stop_during_an_add_does_not_wait_for_it(hosts):
    a = hosts("a")
    big = a.folder / "big.raw"
    with open(big, "wb") as file:
        file.truncate(1 << 40)
    operation = a.ask("POST", "/v1/images", {"name": "big", "path": str(big)}).ok()
    time.sleep(0.3)
    begun = time.monotonic()
    a.terminate()
    in_time(time.monotonic() - begun, 5, "the answer")
    a.start()
    assert a.get(f"/v1/operations/{operation['id']}")["state"] in ("cancelled", "failed")


# --- VMs -----------------------------------------------------------------------------------------------------------

def test_a_vm_is_created_as_asked(hosts):
    a = hosts("a")
    image = make_image(a)
    kernel = a.folder / "vmlinuz"
    kernel.write_bytes(b"kernel")
    vm = a.do("POST", "/v1/vms", {"name": "web1", "image": "base", "memory": 64 * MIB, "cpus": 2,
                                  "disks": [{"size": 32 * MIB}, {"size": 5 * MIB}], "nics": [{}, {"mac": "52:54:00:00:00:09"}],
                                  "kernel": str(kernel), "append": "quiet", "accel": "tcg"})
    assert vm["state"] == "stopped" and vm["epoch"] == 1 and vm["cpus"] == 2 and vm["machine"].startswith("pc-q35-")
    assert vm["disks"][0]["image"] == image["hash"] and vm["disks"][0]["size"] == 32 * MIB
    assert vm["disks"][1]["image"] is None and vm["disks"][1]["size"] == 5 * MIB
    assert re.fullmatch("52:54:00(:[0-9a-f]{2}){3}", vm["nics"][0]["mac"])
    assert vm["nics"][1] == {"bridge": "", "mac": "52:54:00:00:00:09"}
    folder = pathlib.Path(vm["folder"])
    assert (folder / "kernel").read_bytes() == b"kernel"
    disk = (folder / "disk0.raw").read_bytes()
    assert not any((folder / "disk1.raw").read_bytes())
    assert disk[:8 * MIB] == (a.folder / "base.raw").read_bytes() and not any(disk[8 * MIB:])
    config = a.get("/v1/vms/web1/config")
    assert config["append"] == "quiet" and config["id"] == vm["id"]
    assert a.get("/v1/vms")["vms"] == [vm]
    assert a.ask("POST", "/v1/vms", {"name": "web1"}).status == 409
    a.ask("DELETE", "/v1/vms/web1").ok()
    assert not folder.exists() and a.get("/v1/vms")["vms"] == []


def test_a_config_file_gives_what_has_no_option(hosts):
    a = hosts("a")
    make_image(a)
    config = {"memory": "96M", "cpus": 3, "disks": [{"image": "base"}, {"size": 4 * MIB}], "nics": [{"bridge": ""}, {"bridge": ""}]}
    vm = a.do("POST", "/v1/vms", {"name": "web1", "cpus": 1, "config": config})
    assert vm["memory"] == 96 * MIB and vm["cpus"] == 1 and [d["size"] for d in vm["disks"]] == [8 * MIB, 4 * MIB]
    assert len({n["mac"] for n in vm["nics"]}) == 2
    over = a.do("POST", "/v1/vms", {"name": "web2", "config": config, "disks": [{}, {"size": 6 * MIB}, {"size": MIB}],
                                    "nics": [{"mac": "52:54:00:00:00:09"}]})
    assert [d["size"] for d in over["disks"]] == [8 * MIB, 6 * MIB, MIB], "the request's lists lie over the config's"
    assert len(over["nics"]) == 2 and over["nics"][0]["mac"] == "52:54:00:00:00:09"
    edited = a.get("/v1/vms/web1/config")
    edited["cpus"] = 2
    assert a.ask("PUT", "/v1/vms/web1/config", edited).ok()["cpus"] == 2
    assert a.vm()["cpus"] == 2
    edited["disks"] = []
    assert a.ask("PUT", "/v1/vms/web1/config", edited).status == 400


def test_a_machine_type_is_one_that_the_peers_have(peers):
    a, b = peers
    machines = [h.get("/v1/host")["qemu"]["machines"] for h in peers]
    vm = make_vm(a)
    assert all(vm["machine"] in m for m in machines)
    b.kill()  # a silent peer has no say, and does not hold anything up for long
    begun = time.monotonic()
    make_vm(a, "web2")
    in_time(time.monotonic() - begun, 5, "the answer")
    assert a.wait(a.ask("POST", "/v1/vms", {"name": "web3", "machine": "pc-q35-1.0"}).ok())["state"] == "failed"


def test_a_kill_during_a_creation_leaves_all_or_nothing(hosts):
    a = hosts("a")
    make_image(a, size=1 << 30, data=os.urandom(64 * MIB))
    operation = a.ask("POST", "/v1/vms", {"name": "web1", "image": "base"}).ok()
    a.kill()
    a.start()
    operation = a.get(f"/v1/operations/{operation['id']}")
    assert operation["state"] in ("failed", "done")
    vms = a.get("/v1/vms")["vms"]
    assert vms == [] or vms[0]["state"] == "stopped"
    assert not list((a.state / "vms").glob(".*"))
    if not vms:
        make_vm(a, image="base", disks=[{"size": 1 << 30}])


def test_a_vm_starts_and_is_killed(hosts):
    a = hosts("a")
    make_vm(a)
    vm = a.ask("POST", "/v1/vms/web1/start").ok()
    assert vm["state"] == "running" and vm["desired"] == "running" and vm["qemu_pid"] == a.pid("qemu")
    assert a.ask("POST", "/v1/vms/web1/start").status == 409
    assert a.ask("DELETE", "/v1/vms/web1").status == 409
    assert a.ask("PUT", "/v1/vms/web1/config", a.get("/v1/vms/web1/config")).status == 409
    late = a.ask("POST", "/v1/vms/web1/stop", {"timeout_ms": 300})  # firmware does not hear the power button
    assert late.status == 504 and "orai kill" in late.error["hint"]
    assert a.ask("POST", "/v1/vms/web1/stop", {"timeout_ms": 0}).ok()["state"] == "running"  # pressed, not waited for
    assert a.ask("POST", "/v1/vms/web1/kill").ok()["state"] == "stopped"
    assert a.ask("POST", "/v1/vms/web1/kill").status == 409
    a.ask("POST", "/v1/vms/web1/start").ok()
    a.ask("POST", "/v1/vms/web1/kill").ok()


def test_a_running_vm_is_refreshed(hosts):
    a = hosts("a")
    make_vm(a)
    assert a.ask("POST", "/v1/vms/web1/refresh").status == 409  # it does not run
    a.ask("POST", "/v1/vms/web1/start").ok()
    for body in ({"qemu": "/bin/false", "helper": True}, {"qemu": "qemu-system-x86_64"}, {"qemu": 1}, {"quem": "/bin/false"}):
        assert a.ask("POST", "/v1/vms/web1/refresh", body).status == 400
    qemu, helper = a.pid("qemu"), a.pid("orai-vm")
    operation = a.wait(a.ask("POST", "/v1/vms/web1/refresh").ok())
    assert (operation["kind"], operation["vm"], operation["state"]) == ("refresh", "web1", "done")
    assert operation["result"]["state"] == "done" and operation["result"]["blackout_ms"] > 0
    assert a.get("/v1/vms/web1")["qemu_pid"] == a.pid("qemu") != qemu and a.pid("orai-vm") == helper
    operation = a.wait(a.ask("POST", "/v1/vms/web1/refresh", {"qemu": "/bin/false"}).ok())
    assert operation["state"] == "failed" and operation["result"]["state"] == "stayed"
    assert "/bin/false" in operation["error"]["text"] and a.get("/v1/vms/web1")["state"] == "running"
    operation = a.wait(a.ask("POST", "/v1/vms/web1/refresh", {"helper": True}).ok())
    assert operation["state"] == "done" and operation["result"]["silence_ms"] > 0
    assert a.pid("orai-vm") != helper
    a.ask("POST", "/v1/vms/web1/kill").ok()


def test_a_start_that_fails_says_why(hosts):
    a = hosts("a", options=["--qemu", "/bin/false"])
    facts = a.get("/v1/host")["qemu"]
    assert facts["version"] is None and facts["why"]
    failed = a.wait(a.ask("POST", "/v1/vms", {"name": "web1"}).ok())
    assert failed["state"] == "failed" and failed["error"]["text"]


def test_vms_survive_every_death_of_oraid(hosts):
    a = hosts("a")
    make_vm(a)
    a.ask("POST", "/v1/vms/web1/start").ok()
    qemu, orai_vm = a.pid("qemu"), a.pid("orai-vm")
    a.kill()
    a.start()
    assert a.vm()["qemu_pid"] == qemu and a.pid("orai-vm") == orai_vm
    a.terminate()
    a.start()
    assert a.vm()["state"] == "running" and a.vm()["qemu_pid"] == qemu


def test_a_killed_orai_vm_is_resumed_and_finds_its_qemu(hosts):
    a = hosts("a")
    make_vm(a)
    a.ask("POST", "/v1/vms/web1/start").ok()
    qemu, orai_vm = a.pid("qemu"), a.pid("orai-vm")
    os.kill(orai_vm, signal.SIGKILL)
    deadline = time.monotonic() + 20
    while not (a.vm()["state"] == "running" and a.pid("orai-vm") != orai_vm):
        assert time.monotonic() < deadline, a.vm()
        time.sleep(0.05)
    assert a.vm()["qemu_pid"] == qemu
    assert "vm.resumed" in [e["type"] for e in a.get("/v1/events")["events"]]
    a.kill()  # both at once
    os.kill(a.pid("orai-vm"), signal.SIGKILL)
    a.start()
    assert a.await_state("running")["qemu_pid"] == qemu


def test_a_crashed_guest_is_not_started_again_by_itself(hosts):
    a = hosts("a")
    make_vm(a)
    a.ask("POST", "/v1/vms/web1/start").ok()
    os.kill(a.pid("qemu"), signal.SIGKILL)
    assert a.await_state("crashed", desired="stopped")["reason"]
    a.ask("POST", "/v1/vms/web1/start").ok()
    # All at once, as when the host loses power.
    pids = [a.pid("orai-vm"), a.pid("qemu")]
    a.kill()
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    a.start()
    a.await_state("crashed", desired="stopped")
    assert a.ask("POST", "/v1/vms/web1/start").ok()["state"] == "running"


def test_an_orai_vm_that_fails_again_and_again_is_given_up(hosts):
    a = hosts("a")
    make_vm(a)
    a.ask("POST", "/v1/vms/web1/start").ok()
    a.kill()
    os.kill(a.pid("orai-vm"), signal.SIGKILL)
    broken = a.folder / "broken-orai-vm"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    a.options = ("--orai-vm", broken)
    a.start()
    vm = a.await_state("failed", seconds=60)
    assert "5 times" in vm["reason"]
    assert a.ask("POST", "/v1/vms/web1/recover").status == 500
    broken.unlink()
    broken.symlink_to(BUILD / "orai-vm")
    recovered = a.ask("POST", "/v1/vms/web1/recover", {"run_here": False}).ok()
    assert recovered["vm"]["state"] == "running" and recovered["vm"]["qemu_pid"] == a.pid("qemu")
    assert a.await_state("running")


def test_a_silent_orai_vm_holds_nobody_up_for_long(hosts):
    a = hosts("a")
    make_vm(a)
    make_vm(a, "web2")
    a.ask("POST", "/v1/vms/web1/start").ok()
    pid = a.pid("orai-vm")
    os.kill(pid, signal.SIGSTOP)
    try:
        begun = time.monotonic()
        assert a.vm()["state"] == "unresponsive"
        in_time(time.monotonic() - begun, 4, "the answer")
        assert a.vm("web2")["state"] == "stopped"
    finally:
        os.kill(pid, signal.SIGCONT)
    a.await_state("running")


# --- moves ---------------------------------------------------------------------------------------------------------

def test_a_vm_moves_there_and_back(peers):
    a, b = peers
    make_vm(a)
    a.ask("POST", "/v1/vms/web1/start").ok()
    prediction = a.do("POST", "/v1/vms/web1/move", {"to": "b", "dry_run": True})
    assert prediction["state"] == "predicted" and a.vm()["state"] == "running"
    deadline = time.monotonic() + 10
    while b.get("/v1/vms")["vms"]:  # a dry run leaves nothing there
        assert time.monotonic() < deadline, b.get("/v1/vms")
        time.sleep(0.05)
    moved = a.do("POST", "/v1/vms/web1/move", {"to": "b", "bandwidth": 0, "max_blackout_ms": 500, "connections": 2})
    assert moved["state"] == "moved"
    b.await_state("running", role="owner", desired="running", epoch=2)
    a.await_state("replica", peer="b", desired="stopped", epoch=2)
    assert a.get("/v1/vms/web1/status")["operation"]["state"] == "done"
    copies = {r["host"]: r["state"] for r in a.get("/v1/vms/web1/replicas")["replicas"]}
    assert copies == {"a": "replica", "b": "owner"}
    refused = a.ask("POST", "/v1/vms/web1/start")
    assert refused.status == 409 and "orai move" in refused.error["hint"]
    assert a.ask("DELETE", "/v1/vms/web1").status == 409
    assert a.ask("POST", "/v1/vms/web1/move", {"to": "b"}).status == 409
    b.do("POST", "/v1/vms/web1/move", {"to": "a"})
    assert a.await_state("running")["epoch"] == 3
    b.await_state("replica")
    b.ask("DELETE", "/v1/vms/web1/replicas/here").ok()
    assert b.get("/v1/vms")["vms"] == []
    assert a.ask("DELETE", "/v1/vms/web1/replicas/here").status == 409
    types = [e["type"] for e in a.get("/v1/events?vm=web1")["events"]]
    assert "vm.moved" in types and "vm.arrived" in types


def test_two_copies_are_compared_by_hashes(peers):
    a, b = peers
    make_vm(a)
    a.ask("POST", "/v1/vms/web1/start").ok()
    a.do("POST", "/v1/vms/web1/move", {"to": "b"})
    result = b.do("POST", "/v1/vms/web1/verify", {"against": "a"})
    assert result["equal"] and result["different"] == 0
    assert b.ask("POST", "/v1/vms/web1/verify", {"against": "b"}).status == 400
    assert b.ask("POST", "/v1/vms/web1/verify", {"against": "c"}).status == 404

    copy = ask(b.as_peer(a), "GET", "/v1/vms/web1/copy?disk=0").ok()
    lineage = bytes.fromhex(copy["lineage"])
    entry = lineage[64 + 96 * (int.from_bytes(lineage[52:56], "little") - 1):][:24]  # the newest: docs/formats.md
    wanted = {"vm": copy["vm"], "disk": 0, "generation": int.from_bytes(entry[:4], "little"),
              "generation_id": entry[8:24].hex(), "seed": "00" * 8, "from": 0, "count": 1}
    hashes = ask(b.as_peer(a), "POST", "/v1/vms/web1/hashes", wanted).ok()
    assert hashes["count"] == 1 and len(hashes["sums"]) == 32
    assert ask(b.as_peer(a), "POST", "/v1/vms/web1/hashes", {**wanted, "seed": "01" * 8}).ok()["sums"] != hashes["sums"]
    assert ask(b.as_peer(a), "POST", "/v1/vms/web1/hashes", {**wanted, "count": 1025}).status == 400
    assert a.ask("POST", "/v1/vms/web1/hashes", wanted).status == 403  # peers only


def test_an_old_copy_is_shared_with_a_peer_that_asks(peers):
    a, b = peers
    make_vm(a)
    wanted = {"vm": a.ask("GET", "/v1/vms/web1").ok()["id"]}
    owner = ask(b.as_peer(a), "POST", "/v1/vms/web1/share", wanted)
    assert owner.status == 409 and "no copy that can be shared" in owner.error["text"]
    a.ask("POST", "/v1/vms/web1/start").ok()
    a.do("POST", "/v1/vms/web1/move", {"to": "b"})
    assert ask(b.as_peer(a), "POST", "/v1/vms/web1/share", {"vm": "0" * 31 + "1"}).status == 404
    assert a.ask("POST", "/v1/vms/web1/share", wanted).status == 403  # peers only
    for _ in range(2):  # asked again, it still does
        assert ask(b.as_peer(a), "POST", "/v1/vms/web1/share", wanted).ok() == {"ok": True}
        assert a.ask("GET", "/v1/vms/web1").ok()["shares"] == {"to": "b", "connections": 0, "fetches": 0, "bytes": 0}
    b.do("POST", "/v1/vms/web1/move", {"to": "a"})  # whoever comes back needs the copy more
    assert a.ask("GET", "/v1/vms/web1").ok()["shares"] is None


def test_moves_that_cannot_be_are_refused(peers):
    a, b = peers
    make_vm(a)
    stopped = a.ask("POST", "/v1/vms/web1/move", {"to": "b"})
    assert stopped.status == 409 and "orai start" in stopped.error["hint"]
    a.ask("POST", "/v1/vms/web1/start").ok()
    itself = a.ask("POST", "/v1/vms/web1/move", {"to": "a"})
    assert itself.status == 400 and "this host" in itself.error["text"]
    unknown = a.ask("POST", "/v1/vms/web1/move", {"to": "c"})
    assert unknown.status == 404 and "orai peer invite" in unknown.error["hint"]
    assert a.ask("POST", "/v1/vms/web1/move", {"to": "b", "connections": 9}).status == 400
    make_vm(b)  # another VM of that name
    failed = a.wait(a.ask("POST", "/v1/vms/web1/move", {"to": "b"}).ok())
    assert failed["state"] == "failed" and failed["error"]["host"] == "b" and failed["error"]["stage"] == "prepare"
    b.kill()
    failed = a.wait(a.ask("POST", "/v1/vms/web1/move", {"to": "b"}).ok())
    assert failed["state"] == "failed" and "cannot reach" in failed["error"]["text"]
    assert a.vm()["state"] == "running"


def test_an_arrival_that_does_not_come_is_taken_back(peers, hosts):
    a, b = peers
    c = hosts("c")
    join(a, c)
    body = {"vm": "1" * 32, "name": "web1", "move": "2" * 32, "epoch": 7, "protocol": {"min": 1, "max": 1}}
    assert ask(b.as_peer(a), "POST", "/v1/arrivals", body).ok()["host"] == "a"
    assert a.await_state("arriving")["peer"] == "b"
    assert a.ask("DELETE", "/v1/vms/web1/replicas/here").status == 409
    assert ask(c.as_peer(a), "POST", "/v1/arrivals", body).status == 409  # it is b's
    assert ask(c.as_peer(a), "DELETE", f"/v1/arrivals/{body['move']}").status == 403
    ask(b.as_peer(a), "POST", "/v1/arrivals", {**body, "move": "3" * 32}).ok()  # a later try takes its place
    ask(b.as_peer(a), "DELETE", f"/v1/arrivals/{'3' * 32}").ok()
    deadline = time.monotonic() + 10
    while a.get("/v1/vms")["vms"]:  # nothing came, nothing stays
        assert time.monotonic() < deadline, a.vm()
        time.sleep(0.05)
    ask(b.as_peer(a), "DELETE", f"/v1/arrivals/{'3' * 32}").ok()


def slow_move(a, b):
    """A move that lasts: its disk does not fit through the given bandwidth."""
    raw = a.folder / "full.raw"
    raw.write_bytes(os.urandom(16 * MIB))
    a.do("POST", "/v1/images", {"name": "full", "path": str(raw)})
    make_vm(a, image="full")
    a.ask("POST", "/v1/vms/web1/start").ok()
    return a.ask("POST", "/v1/vms/web1/move", {"to": "b", "bandwidth": MIB}).ok()


def progress(host, operation, stage="transfer"):
    deadline = time.monotonic() + 30
    while True:
        now = host.get(f"/v1/operations/{operation['id']}")
        assert now["state"] == "running" and time.monotonic() < deadline, now
        if now["progress"] and now["progress"]["stage"] == stage:
            return now["progress"]
        time.sleep(0.05)


def test_a_vm_moves_once_at_a_time_and_a_cancel_leaves_it_running(peers):
    a, b = peers
    operation = slow_move(a, b)
    second = a.ask("POST", "/v1/vms/web1/move", {"to": "b"})
    assert second.status == 409 and "under way" in second.error["text"]
    progress(a, operation)
    assert a.vm()["state"] == "leaving" and b.vm()["state"] == "arriving"
    status = b.get("/v1/vms/web1/status")["vm"]["move"]
    assert status["move"] == operation["id"] and status["role"] == "destination"
    assert [o["id"] for o in a.get("/v1/operations?vm=web1&limit=1")["operations"]] == [operation["id"]]
    a.ask("POST", "/v1/vms/web1/cancel").ok()
    ended = a.wait(operation)
    assert ended["state"] == "cancelled" and a.await_state("running")
    assert a.ask("POST", "/v1/vms/web1/cancel").status == 409


def test_a_move_is_cancelled_from_the_destination(peers):
    a, b = peers
    operation = slow_move(a, b)
    progress(a, operation)
    b.ask("POST", "/v1/vms/web1/cancel").ok()
    assert a.wait(operation)["state"] in ("cancelled", "failed")
    a.await_state("running")


def test_a_move_goes_on_while_both_oraid_are_killed(peers):
    a, b = peers
    operation = slow_move(a, b)
    progress(a, operation)
    a.kill()
    b.kill()
    a.start()
    b.start()
    assert progress(a, operation)["state"] == "running"
    refused = a.ask("POST", "/v1/vms/web1/move", {"to": "b"})
    assert refused.status == 409
    assert a.wait(operation)["state"] == "done"
    b.await_state("running")
    a.await_state("replica")


def test_a_move_that_ends_while_oraid_is_dead_is_known_afterwards(peers):
    a, b = peers
    operation = slow_move(a, b)
    progress(a, operation)
    a.kill()
    b.await_state("running", seconds=60)
    time.sleep(1)  # until orai-vm has ended at the source
    a.start()
    assert a.wait(operation)["state"] == "done"
    a.await_state("replica")


def test_a_killed_source_helper_ends_the_move_and_the_vm_runs_on(peers):
    a, b = peers
    operation = slow_move(a, b)
    progress(a, operation)
    os.kill(a.pid("orai-vm"), signal.SIGKILL)
    ended = a.wait(operation)
    assert ended["state"] == "failed" and ended["error"]["text"]
    a.await_state("running")
    assert a.ask("POST", "/v1/vms/web1/cancel").status == 409


def test_an_old_copy_is_started_on_purpose_only(peers):
    a, b = peers
    make_vm(a)
    a.ask("POST", "/v1/vms/web1/start").ok()
    a.do("POST", "/v1/vms/web1/move", {"to": "b"})
    a.await_state("replica")
    b.kill()
    vm = a.ask("POST", "/v1/vms/web1/start", {"fork_old_copy": True}).ok()
    assert vm["state"] == "running" and vm["forked"] and vm["role"] == "owner"
    a.ask("POST", "/v1/vms/web1/kill").ok()
    b.start()
    b.do("POST", "/v1/vms/web1/move", {"to": "a"})
    assert not a.await_state("running")["forked"]


# --- events --------------------------------------------------------------------------------------------------------

def lines(response):
    """Events of a followed stream, each checked."""
    schema = validator({"$ref": "#/components/schemas/Event"})
    while line := response.readline():
        event = json.loads(line)
        schema.validate(event)
        yield event


def follow(host, query=""):
    connection = UnixConnection(host.run / "api.sock", timeout=10)
    connection.request("GET", f"/v1/events?follow=true{query}")
    response = connection.getresponse()
    assert response.status == 200 and response.headers["content-type"] == "application/x-ndjson"
    return connection, lines(response)


def test_events_are_followed_live_and_from_an_id(hosts):
    a = hosts("a")
    before = a.get("/v1/events")["events"][-1]["id"]
    connection, stream = follow(a)
    other, only_web2 = follow(a, "&vm=web2")
    make_vm(a, "web1")
    make_vm(a, "web2")
    types = []
    while types.count("vm.created") < 2:
        types.append(next(stream)["type"])
    assert {event["vm"] for event in (next(only_web2), next(only_web2))} == {"web2"}
    connection.close()
    other.close()
    again, replayed = follow(a, f"&since={before}")
    assert [next(replayed)["type"] for _ in types] == types
    again.close()
    a.kill()
    a.start()
    after = a.get(f"/v1/events?since={before}")["events"]
    assert [e["type"] for e in after][:len(types)] == types
    assert [e["id"] for e in after] == list(range(before + 1, before + 1 + len(after)))


def test_a_follower_that_does_not_read_is_cut_with_a_last_line(hosts):
    a = hosts("a")
    connection = UnixConnection(a.run / "api.sock", timeout=20)
    connection.connect()
    connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.request("GET", "/v1/events?follow=true")
    response = connection.getresponse()
    for i in range(1200):  # peers that come and go make events without work
        a.ask("POST", "/v1/images", {"name": f"n{i % 7}", "path": str(a.folder / "oraid.log")})
        if i % 100 == 99 and sum(1 for e in a.get("/v1/events?limit=10000&since=0")["events"]) > 2500:
            break
    events = list(lines(response))
    assert events[-1]["type"] == "events.cut" and events[-1]["data"]["since"] == events[-2]["id"]


# --- the whole -----------------------------------------------------------------------------------------------------

def test_an_idle_oraid_costs_little(peers):
    a, b = peers
    make_vm(a)
    a.ask("POST", "/v1/vms/web1/start").ok()
    time.sleep(12)  # until the pools' threads have ended
    pid = a.process.pid
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    switches = lambda: sum(int(re.search(r"^voluntary_ctxt_switches:\s+(\d+)", (t / "status").read_text(), re.M)[1])
                           for t in pathlib.Path(f"/proc/{pid}/task").iterdir())
    before = switches()
    time.sleep(4)
    assert switches() - before <= 4
    assert int(re.search(r"VmRSS:\s+(\d+)", status)[1]) < 20 << 10


def test_ready_is_told_to_systemd(hosts, tmp_path):
    path = "/var/tmp/orai-notify-%d" % os.getpid()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(path)
        sock.settimeout(20)
        try:
            os.environ["NOTIFY_SOCKET"] = path
            a = hosts("a")
            assert sock.recv(100) == b"READY=1"
            a.terminate()
            assert sock.recv(100) == b"STOPPING=1"
        finally:
            del os.environ["NOTIFY_SOCKET"]
            os.unlink(path)


def test_every_documented_operation_was_asked_and_answered():
    """Runs last: a part of the API without a test would go unnoticed."""
    missing = {operation["operationId"] for methods in SPEC["paths"].values() for operation in methods.values()} - {
        name for _, good, name in seen if good}
    assert missing <= {"events"}, missing
