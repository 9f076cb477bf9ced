# SPDX-License-Identifier: Apache-2.0
"""`orai disk serve` as other people's programs see it: libnbd's tools, QEMU's, fio, and the NBD project's own tester.

ORAI_BUILD names the build folder (default: build), ORAI_CACHE where nbd-tester-client is kept once built
(default: ~/.cache/orai), NBD_TESTER_SOURCE an unpacked source of Debian's package `nbd` where none can be fetched.
"""

import json
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import time

import pytest

from host import wait_until

ROOT = pathlib.Path(__file__).parents[2]
BUILD = pathlib.Path(os.environ.get("ORAI_BUILD", ROOT / "build")).resolve()
ORAI = str(BUILD / "orai")
CACHE = pathlib.Path(os.environ.get("ORAI_CACHE", pathlib.Path.home() / ".cache" / "orai"))
MIB = 1 << 20


def run(*command, check=True, timeout=120):
    result = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=timeout, check=False,
                            errors="replace")
    if check:
        assert result.returncode == 0, f"{command[0]}: {result.stdout[-2000:]}{result.stderr[-2000:]}"
    return result


class Server:
    def __init__(self, image, *options):
        self.image = image
        self.socket = image.with_suffix(".sock")
        self.uri = f"nbd+unix:///?socket={self.socket}"
        self.process = subprocess.Popen(
            [ORAI, "disk", "serve", image, "--socket", self.socket, *options],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.ready = self.process.stdout.readline()

    def stop(self, with_signal=signal.SIGTERM):
        self.process.send_signal(with_signal)
        out, err = self.process.communicate(timeout=30)
        self.out, self.err = self.ready + out, err
        return self.process.returncode


@pytest.fixture
def folder(tmp_path_factory):
    """On a real file system, with a path short enough for a socket."""
    path = tmp_path_factory.mktemp("serve")
    yield path
    shutil.rmtree(path)


@pytest.fixture
def serve(folder):
    """Makes servers that end with the test: serve(), serve("--read-only")."""
    made = []

    def make(*options, image=folder / "disk.raw", size=64 * MIB):
        if not image.exists():
            with open(image, "wb") as f:
                f.truncate(size)
        made.append(Server(image, *options))
        assert made[-1].ready.startswith("orai: serving "), made[-1].process.communicate()
        return made[-1]
    yield make
    for server in made:
        if server.process.poll() is None:
            assert server.stop() == 0


def sparse_file(path, size=64 * MIB, seed=1):
    """Data, zeroes that are written, and holes, at odd places."""
    rng = random.Random(seed)
    with open(path, "wb") as f:
        f.truncate(size)
        for _ in range(40):
            f.seek(rng.randrange(size - MIB))
            length = rng.randrange(1, MIB)
            f.write(rng.randbytes(length) if rng.random() < 0.8 else bytes(length))
    return path


def same(one, other):
    return run("cmp", one, other, check=False).returncode == 0


def verify(image):
    return run(ORAI, "disk", "verify", image, check=False).returncode == 0


# --- libnbd --------------------------------------------------------------------------------------------------

def test_nbdinfo_sees_all_that_the_server_can(serve):
    server = serve("--export", "web1")
    export = json.loads(run("nbdinfo", "--json", server.uri).stdout)["exports"][0]
    assert export["export-size"] == 64 * MIB
    for ability in ("cache", "df", "fast_zero", "flush", "fua", "multi_conn", "trim", "zero"):
        assert export[f"can_{ability}"], ability
    assert not export["is_read_only"]
    assert export["contexts"] == ["base:allocation"]
    assert [export[f"block_size_{n}"] for n in ("minimum", "preferred", "maximum")] == [1, 4096, 32 * MIB]
    listed = json.loads(run("nbdinfo", "--list", "--json", server.uri).stdout)
    assert [e["export-name"] for e in listed["exports"]] == ["web1"]


def test_nbdinfo_of_an_unknown_export_fails(serve):
    server = serve("--export", "web1")
    result = run("nbdinfo", f"nbd+unix:///other?socket={server.socket}", check=False)
    assert result.returncode != 0
    assert "No such file or directory for export: other" in result.stderr


@pytest.mark.parametrize("connections", [1, 4])
def test_nbdcopy_brings_back_what_it_took(serve, folder, connections):
    server = serve()
    source = sparse_file(folder / "source.raw")
    run("nbdcopy", f"--connections={connections}", source, server.uri)
    run("nbdcopy", f"--connections={connections}", server.uri, folder / "back.raw")
    assert same(source, folder / "back.raw")
    server.stop()
    assert same(source, server.image)
    assert verify(server.image)


def test_nbdcopy_with_the_longest_requests(serve, folder):
    server = serve()
    source = sparse_file(folder / "source.raw")
    run("nbdcopy", "--synchronous", f"--request-size={32 * MIB}", source, server.uri)
    assert same(source, server.image)


# --- QEMU ----------------------------------------------------------------------------------------------------

def test_qemu_img_maps_the_holes(serve, folder):
    image = folder / "disk.raw"
    with open(image, "wb") as f:
        f.truncate(64 * MIB)
        f.seek(16 * MIB)
        f.write(b"x" * MIB)
    server = serve()
    assert json.loads(run("qemu-img", "info", "--output=json", server.uri).stdout)["virtual-size"] == 64 * MIB
    extents = json.loads(run("qemu-img", "map", "--output=json", server.uri).stdout)
    assert [(e["start"], e["length"], e["data"]) for e in extents] == [
        (0, 16 * MIB, False), (16 * MIB, MIB, True), (17 * MIB, 47 * MIB, False)]


def test_qemu_img_converts_and_compares(serve, folder):
    server = serve()
    source = sparse_file(folder / "source.raw", seed=2)
    run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", "-m", "8", "-W", source, server.uri)
    run("qemu-img", "compare", "-f", "raw", "-F", "raw", source, server.uri)
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", server.uri, folder / "back.qcow2")
    run("qemu-img", "compare", "-f", "qcow2", "-F", "raw", folder / "back.qcow2", source)
    assert server.image.stat().st_blocks <= source.stat().st_blocks + 64  # holes stay holes


def test_qemu_io_patterns(serve):
    server = serve()
    commands = ["write -P 7 1M 3M", "read -P 7 1M 3M", "write -z 2M 512k", "read -P 0 2M 512k", "write -z -u 1M 64k",
                "read -P 0 1M 64k", "discard 3M 64k", "read -P 0 3M 64k", "read -P 7 3136k 960k", "write -f -P 5 100 1000",
                "read -P 5 100 1000", "read -P 0 0 100", "flush", "aio_write -P 9 8M 32M", "aio_flush", "read -P 9 8M 32M"]
    out = run("qemu-io", "-f", "raw", *[w for c in commands for w in ("-c", c)], server.uri).stdout
    assert "verification failed" not in out and "failed" not in out, out
    server.stop()
    assert verify(server.image)


def test_read_only_refuses_writes_and_leaves_the_image_alone(serve, folder):
    serve().stop()  # makes the side files
    before = (folder / "disk.raw").stat().st_mtime_ns
    server = serve("--read-only")
    result = run("qemu-io", "-f", "raw", "-c", "write 0 4k", server.uri, check=False)
    assert result.returncode != 0
    assert "Permission denied" in result.stderr
    assert json.loads(run("nbdinfo", "--json", server.uri).stdout)["exports"][0]["is_read_only"]
    assert (folder / "disk.raw").stat().st_mtime_ns == before


# --- fio -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("options", [(), ("--direct",)], ids=["cached", "direct"])
def test_fio_verifies_what_it_wrote(serve, options, folder):
    server = serve(*options)
    for bs in ("4k", "512-256k", "1M"):
        size = ["--bsrange=" + bs, "--bs_unaligned=0"] if "-" in bs else ["--bs=" + bs]
        run("fio", "--name=v", "--ioengine=nbd", f"--uri={server.uri}", "--rw=randwrite", *size, "--iodepth=16",
            "--size=48M", "--verify=crc32c", "--verify_fatal=1", "--fsync=64", f"--aux-path={folder}")
    server.stop()
    assert verify(server.image)


# --- the NBD project's own tester ----------------------------------------------------------------------------

def fetch_source(work):
    """Debian's source package `nbd` of the running release, else of a newer one whose archive is there."""
    for folder in ("lists/partial", "cache/archives/partial"):
        (work / folder).mkdir(parents=True)
    rows = run("apt-get", "indextargets", "--format", "$(REPO_URI) $(CODENAME) $(LABEL)", "Created-By: Packages").stdout
    sites = [r.split() for r in rows.splitlines() if r.endswith(" Debian") and not r.split()[1].count("-")]
    errors = []
    for uri, codename in [(uri, c) for uri, own, _ in sites[:1] for c in dict.fromkeys((own, "trixie"))]:
        (work / "sources.list").write_text(
            f"deb-src [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] {uri} {codename} main\n")
        options = [w for o in (f"Dir::Etc::sourcelist={work}/sources.list", "Dir::Etc::sourceparts=/dev/null",
                               f"Dir::State::lists={work}/lists", f"Dir::Cache={work}/cache",
                               "APT::Sandbox::User=root") for w in ("-o", o)]
        for command in (["update"], ["source", "--download-only", "nbd"]):
            result = subprocess.run(["apt-get", *options, *command], cwd=work, capture_output=True, text=True,
                                    check=False)
            if result.returncode:
                errors.append(f"{codename}: {result.stderr.strip()[-300:]}")
                break
        else:
            tarball = next(work.glob("nbd_*.orig.tar.*"))
            run("tar", "-C", work, "-xf", tarball)
            return next(p for p in work.glob("nbd-*") if p.is_dir())
    pytest.skip("the source package nbd cannot be fetched: " + "; ".join(errors))


CONFIG_H = """#define _GNU_SOURCE 1
#define _FILE_OFFSET_BITS 64
#define HAVE_FDATASYNC 1
#define PROG_NAME "nbd-tester-client"
#define PACKAGE_STRING "nbd"
#define PACKAGE_VERSION "0"
#define SYSCONFDIR "/etc"
#define SIZEOF_UNSIGNED_SHORT_INT 2
#define SIZEOF_UNSIGNED_INT 4
#define SIZEOF_UNSIGNED_LONG_INT 8
#define SIZEOF_UNSIGNED_LONG_LONG_INT 8
"""


@pytest.fixture(scope="session")
def tester(tmp_path_factory):
    """nbd-tester-client and its transaction log. No binary package has it, so it is built once, without the rest of
    its project: the two files it consists of."""
    home = CACHE / "nbd-tester"
    if not (home / "nbd-tester-client").exists():
        if run("pkg-config", "--exists", "glib-2.0", check=False).returncode:
            pytest.skip("building nbd-tester-client needs Debian's libglib2.0-dev")
        work = tmp_path_factory.mktemp("tester")
        given = os.environ.get("NBD_TESTER_SOURCE")
        source = pathlib.Path(given) if given else fetch_source(work)
        (work / "config.h").write_text(CONFIG_H)
        flags = run("pkg-config", "--cflags", "--libs", "glib-2.0").stdout.split()
        home.mkdir(parents=True, exist_ok=True)
        shutil.copy(source / "tests/run/integrity-test.tr", home)
        run("cc", "-w", "-O1", f"-I{work}", f"-I{source}", "-o", work / "client",
            source / "tests/run/nbd-tester-client.c", source / "cliserv.c", *flags)
        shutil.move(work / "client", home / "nbd-tester-client")
    return home


@pytest.mark.together("nbd-tester")  # which the first of them builds
@pytest.mark.parametrize("options", [["-i", "-t", "integrity-test.tr"], ["-o"], ["-h"], ["-w", "-f"], ["-l", "-w"]],
                         ids=["integrity", "oversize", "handshake", "flush", "loose-order"])
def test_nbd_tester_client(serve, tester, options):
    server = serve("--export", "web1")
    command = [str(tester / o) if o.endswith(".tr") else o for o in options]
    run(tester / "nbd-tester-client", "-N", "web1", *command, "-u", server.socket)


# --- stopping, starting, misuse ------------------------------------------------------------------------------

@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_cleanly(serve, folder, number):
    server = serve("--pid-file", folder / "pid")
    assert int((folder / "pid").read_text()) == server.process.pid
    run("qemu-io", "-f", "raw", "-c", "write -P 3 0 1M", server.uri)
    assert server.stop(number) == 0
    assert "writes (1 MiB)" in server.err
    assert not server.socket.exists() and not (folder / "pid").exists()
    assert server.image.read_bytes()[:MIB] == b"\3" * MIB
    assert "closed in order" in run(ORAI, "disk", "verify", server.image).stdout


def test_a_signal_stops_with_clients_connected(serve):
    server = serve()
    with socket.socket(socket.AF_UNIX) as silent:
        silent.connect(str(server.socket))
        silent.recv(18)
        start = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - start < 5


def test_a_killed_server_starts_again_with_its_disk_and_socket(serve):
    server = serve()
    run("qemu-io", "-f", "raw", "-c", "write -P 3 0 1M", "-c", "flush", server.uri)
    server.stop(signal.SIGKILL)
    assert server.socket.exists()
    again = serve()
    run("qemu-io", "-f", "raw", "-c", "read -P 3 0 1M", again.uri)
    assert again.stop() == 0
    assert verify(again.image)


def test_a_second_server_of_the_same_image_is_refused(serve, folder):
    server = serve()
    result = run(ORAI, "disk", "serve", server.image, "--socket", folder / "other.sock", check=False)
    assert result.returncode == 1
    assert str(server.image) in result.stderr
    assert not (folder / "other.sock").exists()
    result = run(ORAI, "disk", "serve", server.image, "--socket", server.socket, check=False)
    assert result.returncode == 1
    run("nbdinfo", server.uri)  # the first one goes on


def test_a_socket_in_use_is_left_to_its_server(serve, folder):
    server = serve()
    other = folder / "other.raw"
    other.write_bytes(bytes(MIB))
    result = run(ORAI, "disk", "serve", other, "--socket", server.socket, check=False)
    assert result.returncode == 1
    assert "another server listens" in result.stderr
    run("nbdinfo", server.uri)


def test_a_file_in_the_sockets_place_is_left_alone(folder):
    image, taken = folder / "disk.raw", folder / "taken"
    image.write_bytes(bytes(MIB))
    taken.write_text("precious")
    result = run(ORAI, "disk", "serve", image, "--socket", taken, check=False)
    assert result.returncode == 1
    assert "is no socket" in result.stderr
    assert taken.read_text() == "precious"


def test_the_socket_is_for_its_user_only(serve):
    assert serve().socket.stat().st_mode & 0o777 == 0o600


def test_missing_options_are_usage_errors(folder):
    for words in ([], [folder / "x"], [folder / "x", "--socket"], [folder / "x", "--socket", "s", "--bogus"],
                  [folder / "x", "--socket", "s", "--max-connections", "0"]):
        result = run(ORAI, "disk", "serve", *words, check=False)
        assert result.returncode == 2, words
        assert result.stderr.startswith("orai: ")


def test_a_crowd_of_silent_clients_costs_little_and_disturbs_nobody(serve, folder):
    server = serve()
    fio = subprocess.Popen(["fio", "--name=v", "--ioengine=nbd", f"--uri={server.uri}", "--rw=randwrite", "--bs=4k",
                            "--iodepth=16", "--size=32M", "--time_based", "--runtime=3", "--verify=crc32c",
                            f"--aux-path={folder}"], stdout=subprocess.DEVNULL)
    wait_until(lambda: server.image.stat().st_blocks, 20, "fio writes")
    crowd = []
    for _ in range(100):
        client = socket.socket(socket.AF_UNIX)
        client.setblocking(False)
        try:
            client.connect(str(server.socket))
        except BlockingIOError:
            pass  # the listen queue is full, which is as it should be
        crowd.append(client)
    status = pathlib.Path(f"/proc/{server.process.pid}/status").read_text()
    resident = int(status.split("VmRSS:")[1].split()[0]) << 10
    assert resident < 20 * MIB
    assert fio.wait(30) == 0
    for client in crowd:
        client.close()
    run("nbdinfo", server.uri, timeout=5)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_full_file_system_is_told_and_survived(serve, folder):
    small = folder / "small"
    small.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", small)
    try:
        server = serve(image=small / "disk.raw")
        result = run("qemu-io", "-f", "raw", "-c", "write -P 1 0 32M", server.uri, check=False)
        assert "No space left on device" in result.stdout + result.stderr
        run("qemu-io", "-f", "raw", "-c", "discard 0 64M", "-c", "write -P 2 0 1M", "-c", "read -P 2 0 1M", server.uri)
        assert server.stop() == 0
        assert verify(server.image)
    finally:
        run("umount", small)


def test_info_tells_what_is_known_of_an_image(serve):
    server = serve()
    run("qemu-io", "-f", "raw", "-c", "write 0 40k", server.uri)
    server.stop()
    info = json.loads(run(ORAI, "disk", "info", "--format", "json", server.image).stdout)
    assert info["size"] == 64 * MIB
    assert info["written"] == info["written_since"] == 40 << 10
    assert info["claim"] == "owner"
    assert "owner" in run(ORAI, "disk", "info", server.image).stdout
