# SPDX-License-Identifier: Apache-2.0
"""The command line alone, against a stand-in for oraid whose every request is checked against openapi.json.

ORAI_BUILD names the build folder (default: build).
"""

import csv
import io
import json
import os
import pathlib
import pty
import re
import select
import signal
import subprocess
import time

import pytest
import yaml

from fake_oraid import FakeOraid, check, SPEC

ROOT = pathlib.Path(__file__).parents[2]
BUILD = pathlib.Path(os.environ.get("ORAI_BUILD", ROOT / "build"))
ORAI = str(BUILD.resolve() / "orai")
ID = "0123456789abcdef0123456789abcdef"
NOW = "2026-11-20T21:31:37.000Z"


def vm(name="web1", **members):
    return {"name": name, "id": ID, "state": "running", "desired": "running", "role": "owner", "epoch": 3,
            "forked": False, "peer": None, "reason": None, "qemu_pid": 4711, "memory": 1 << 30, "cpus": 2,
            "machine": "pc-q35-7.2", "cpu": "x86-64-v2", "accel": "auto", "ram": "shared", "ram_in_use": "shared", "autostart": False,
            "uefi": False,
            "disks": [{"file": "disk0.raw", "type": "disk", "size": 8 << 30, "image": None, "allocated": 5 << 20, "device": None, "generation": 7}],
            "nics": [{"bridge": "br0", "mac": "52:54:00:00:00:01"}], "folder": "/var/lib/orai/vms/web1", "move": None,
            **members}


def move(**members):
    return {"move": ID, "vm": "web1", "from": "a", "to": "b", "role": "source", "stage": "transfer", "phase": "disk",
            "state": "running", "dry_run": False,
            "disk": {"total_bytes": 41 << 20, "sent_bytes": 10 << 20, "remaining_bytes": 31 << 20, "round": 1,
                     "full_bytes": 4 << 30, "base": "replica"},
            "memory": {"total_bytes": 512 << 20, "sent_bytes": 0, "remaining_bytes": 512 << 20, "iteration": 0},
            "rate": 125000000, "dirty_rate": 1250000, "eta_ms": 2500, "converging": True, "elapsed_ms": 1000,
            "blackout_ms": None, "predicted": None, "notes": [], "error": None, **members}


PREDICTED = {"seconds": 11.9, "blackout_ms": 150, "disk_bytes": 41 << 20, "memory_bytes": 500 << 20,
             "disks": [{"file": "disk0.raw", "bytes": 41 << 20, "base": "replica"}],
             "link_bytes_per_second": 117500000, "rtt_ms": 1.2}
MOVED = move(state="moved", stage="finish", phase="switchover", elapsed_ms=12340, blackout_ms=140, predicted=PREDICTED,
             disk={"total_bytes": 42 << 20, "sent_bytes": 42 << 20, "remaining_bytes": 0, "round": 3,
                   "full_bytes": 4 << 30, "base": "replica"},
             memory={"total_bytes": 512 << 20, "sent_bytes": 498 << 20, "remaining_bytes": 0, "iteration": 4})


def operation(state="running", version=1, progress=None, result=None, error=None, kind="move"):
    value = {"id": ID, "kind": kind, "vm": "web1", "state": state, "version": version, "progress": progress,
             "result": result, "error": error, "started": NOW, "ended": None if state == "running" else NOW}
    check(value, SPEC["components"]["schemas"]["Operation"], "operation")
    return value


@pytest.fixture
def oraid(tmp_path):
    fake = FakeOraid(tmp_path / "api.sock")
    yield fake
    fake.stop()
    assert not fake.problems


def environment(oraid, **more):
    kept = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "VISUAL", "EDITOR")}
    return {**kept, "ORAI_SOCKET": oraid.path if oraid else "/nonexistent/api.sock", "TZ": "UTC", **more}


def orai(oraid, *words, stdin=subprocess.DEVNULL, **more):
    return subprocess.run([ORAI, *words], stdin=stdin, capture_output=True, text=True, timeout=30,
                          env=environment(oraid, **more))


def on_terminal(oraid, *words, typed=b"", columns=100, **more):
    """Runs on a terminal of its own; returns what it showed and the exit code."""
    pid, fd = pty.fork()
    if pid == 0:
        os.execve(ORAI, [ORAI, *words], environment(oraid, TERM="xterm", **more))
    import fcntl
    import struct
    import termios
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    shown = b""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if not select.select([fd], [], [], 0.1)[0]:
            continue
        try:
            data = os.read(fd, 65536)
        except OSError:
            break
        if not data:
            break
        shown += data
        if typed and b"[y/N]" in shown:
            os.write(fd, typed)
            typed = b""
    os.close(fd)
    return shown.decode(), os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


# --- without oraid ---------------------------------------------------------------------------------------------

def test_a_missing_oraid_is_named_with_its_socket_and_what_to_do():
    done = orai(None, "list")
    assert done.returncode == 3
    assert done.stdout == ""
    assert done.stderr.startswith("orai: cannot reach oraid at /nonexistent/api.sock: ")
    assert "start it with: systemctl start oraid" in done.stderr


def test_the_option_wins_over_the_environment(oraid):
    oraid.on("GET", "/v1/vms", {"vms": []})
    assert orai(None, "list", "--socket", oraid.path).returncode == 0


def test_a_wrong_command_line_is_exit_2_and_points_to_the_help():
    for words in [[], ["mvoe"], ["peer"], ["move", "web1"], ["list", "--format", "xml"], ["create", "x", "--memory", "?"],
                  ["move", "a", "b", "--on-timeout", "pause"], ["config", "x", "--edit", "--set", "f"],
                  ["status", "--follow"]]:
        done = orai(None, *words)
        assert done.returncode == 2, words
        assert done.stdout == ""
        assert re.search(r"^orai: next: orai help", done.stderr, re.M), words


def test_help_works_for_every_verb_and_names_every_option():
    overview = orai(None, "help")
    verbs = re.findall(r"^  ((?:peer|image|replica|disk) [a-z]+|[a-z]+)  ", overview.stdout, re.M)
    assert len(verbs) == 29
    for verb in verbs:
        direct, asked = orai(None, *verb.split(), "--help"), orai(None, "help", *verb.split())
        assert direct.returncode == asked.returncode == 0
        assert direct.stdout == asked.stdout
        assert direct.stdout.startswith(f"Usage: orai {verb}")


def test_the_version_needs_no_oraid(oraid):
    oraid.on("GET", "/v1/host", {"version": "0.1.0"})
    alone, together = orai(None, "version", "--format", "json"), orai(oraid, "version", "--format", "json")
    assert alone.returncode == 0
    assert json.loads(alone.stdout)["oraid"] is None
    assert json.loads(together.stdout)["oraid"] == "0.1.0"


# --- lists and formats -----------------------------------------------------------------------------------------

ODD = 'a, "b"\n- : #\t\u202e往来\x1b[2J yes'


def test_every_format_carries_odd_texts(oraid):
    oraid.on("GET", "/v1/vms", {"vms": [vm(reason=ODD), vm(name="yes", reason="null")]})
    as_json = json.loads(orai(oraid, "list", "--format", "json").stdout)
    as_yaml = yaml.safe_load(orai(oraid, "list", "--format", "yaml").stdout)
    as_csv = list(csv.DictReader(io.StringIO(orai(oraid, "list", "--format", "csv").stdout, newline="")))
    table = orai(oraid, "list").stdout
    assert as_json == as_yaml
    assert [row["reason"] for row in as_json] == [row["reason"] for row in as_csv] == [ODD, "null"]
    assert as_csv[0]["memory"] == str(1 << 30)
    assert len(table.splitlines()) == 3
    assert "\x1b" not in table and "\u202e" not in table
    assert "1 GiB" in table


def test_a_terminal_gets_tables_that_fit(oraid):
    oraid.on("GET", "/v1/vms", {"vms": [vm(reason="long " * 100)]})
    shown, code = on_terminal(oraid, "list", columns=100, NO_COLOR="1")
    assert code == 0
    assert all(len(line) <= 100 for line in shown.splitlines())
    assert "…" in shown


def test_no_color_is_respected(oraid):
    oraid.on("GET", "/v1/vms", {"vms": [vm()]})
    assert "\x1b[1m" in on_terminal(oraid, "list")[0]
    assert "\x1b" not in on_terminal(oraid, "list", NO_COLOR="1")[0]


def test_info_shows_disks_and_cards(oraid):
    oraid.on("GET", "/v1/vms/web1", vm())
    shown = orai(oraid, "info", "web1").stdout
    assert re.search(r"^State: +running$", shown, re.M)
    assert "disk0.raw" in shown and "52:54:00:00:00:01" in shown


def test_an_odd_name_stays_in_its_place_of_the_path(oraid):
    oraid.refuse("GET", "/v1/vms/..%2Fhost%3Fx", 404, code="ENOENT", text="no such VM")
    assert orai(oraid, "info", "../host?x").returncode == 5
    assert oraid.requests[0][1] == "/v1/vms/..%2Fhost%3Fx"
    orai(oraid, "info", "..")
    assert oraid.requests[1][1] == "/v1/vms/%2E%2E"


def test_a_result_that_cannot_be_written_is_a_failure(oraid):
    oraid.on("GET", "/v1/vms", {"vms": [vm()]})
    with open("/dev/full", "w") as full:
        done = subprocess.run([ORAI, "list"], stdout=full, stderr=subprocess.PIPE, text=True, env=environment(oraid))
    assert done.returncode == 1
    assert "No space left" in done.stderr


# --- refusals --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("status,code", [(400, 2), (403, 4), (404, 5), (409, 4), (410, 4), (429, 4), (500, 1), (502, 1),
                                         (504, 1), (507, 1)])
def test_each_refusal_has_its_exit_code(oraid, status, code):
    oraid.refuse("POST", "/v1/vms/web1/start", status)
    assert orai(oraid, "start", "web1").returncode == code


def test_an_error_names_host_stage_cause_place_and_next_command(oraid):
    oraid.refuse("POST", "/v1/vms/web1/start", 409, code="EBUSY", text="it is somewhere else", host="a", stage="prepare",
                 hint="orai status web1")
    oraid.on("GET", "/v1/vms/web1", vm(state="replica", peer="b"))
    oraid.on("GET", "/v1/host", {"name": "a"})
    assert orai(oraid, "start", "web1").stderr.splitlines() == [
        "orai: host a, stage prepare: it is somewhere else",
        "orai: web1 is on b; a has a replica",
        "orai: next: orai status web1"]


@pytest.mark.parametrize("text", [b"", b"<html>no</html>", b"{", b'{"error": 1}', b'{"error": {"code": 5}}',
                                  b"[" * 100000])
def test_a_refusal_that_makes_no_sense_is_still_one(oraid, text):
    oraid.answers["GET", "/v1/vms"] = (500, text)
    done = orai(oraid, "list")
    assert done.returncode == 1
    assert done.stderr.startswith("orai: ")


def test_an_answer_that_is_no_json_is_a_failure(oraid):
    oraid.answers["GET", "/v1/vms"] = (200, b"hello")
    done = orai(oraid, "list")
    assert done.returncode == 1
    assert "oraid's answer" in done.stderr


def test_an_oraid_that_dies_in_mid_answer_is_told_apart_from_one_that_refuses(oraid):
    oraid.answers["GET", "/v1/vms"] = (200, None)
    done = orai(oraid, "list")
    assert done.returncode == 3
    assert "did not answer" in done.stderr
    oraid.answers["POST", "/v1/vms/web1/kill"] = (200, None)
    assert "it may have done what it was asked to" in orai(oraid, "kill", "web1").stderr


# --- peers, images, VMs ----------------------------------------------------------------------------------------

def test_invite_prints_just_the_token(oraid):
    oraid.on("POST", "/v1/invites", {"token": "orai1-abc", "expires": NOW}, 201)
    done = orai(oraid, "peer", "invite", "--name", "b", "--expires", "10m")
    assert done.stdout == "orai1-abc\n"
    assert "orai peer join" in done.stderr and "orai1-abc" not in done.stderr
    assert oraid.asked("POST", "/v1/invites") == [{"name": "b", "ttl_s": 600}]


def test_join_hands_the_token_over(oraid):
    oraid.on("POST", "/v1/peers/join", {"name": "a", "address": "10.0.0.1", "port": 7420, "fingerprint": "0" * 64,
                                        "since": NOW}, 201)
    assert "a at 10.0.0.1" in orai(oraid, "peer", "join", "orai1-abc").stdout
    assert oraid.asked("POST", "/v1/peers/join") == [{"token": "orai1-abc"}]


def test_an_image_is_named_by_its_absolute_path_and_waited_for(oraid, tmp_path):
    image = {"hash": "0" * 64, "name": "debian12", "size": 1 << 30, "virtual_size": 2 << 30, "path": "/x", "added": NOW}
    (tmp_path / "disk.qcow2").write_bytes(b"x")
    oraid.on("POST", "/v1/images", operation(kind="image-add"), 202)
    oraid.answers["GET", f"/v1/operations/{ID}"] = [
        (200, operation(version=2, kind="image-add", progress={"phase": "copy", "done_bytes": 1, "total_bytes": 2})),
        (200, operation("done", 3, kind="image-add", result=image))]
    done = subprocess.run([ORAI, "image", "add", "debian12", "disk.qcow2", "--format", "json"], cwd=tmp_path,
                          capture_output=True, text=True, env=environment(oraid), timeout=30)
    assert json.loads(done.stdout) == image
    assert oraid.asked("POST", "/v1/images") == [{"name": "debian12", "path": str((tmp_path / "disk.qcow2").resolve())}]


def test_a_file_that_is_not_there_is_not_even_asked_for(oraid):
    done = orai(oraid, "image", "add", "x", "/nonexistent")
    assert done.returncode == 1
    assert "cannot find /nonexistent" in done.stderr
    assert oraid.requests == []


def test_create_sends_what_was_asked_for_and_nothing_else(oraid, tmp_path):
    config = tmp_path / "vm.json"
    config.write_text('{"machine": "pc-q35-7.2"}')
    oraid.on("POST", "/v1/vms", operation("done", kind="vm-create", result=vm()), 202)
    assert orai(oraid, "create", "web1").returncode == 0
    done = orai(oraid, "create", "web1", "--image", "debian12", "--memory", "1G", "--cpus", "2", "--disk", "8G", "--disk=20G", "--disk", "/dev/vg0/data",
                "--bridge", "br0", "--mac", "52:54:00:00:00:01", "--bridge", "br1", "--cdrom", "/bin/sh", "--uefi",
                "--kernel", "/bin/sh", "--initrd", "/bin/sh", "--append", "quiet",
                "--config", str(config))
    assert done.returncode == 0
    kernel = os.path.realpath("/bin/sh")
    assert oraid.asked("POST", "/v1/vms") == [
        {"name": "web1"},
        {"name": "web1", "image": "debian12", "memory": 1 << 30, "cpus": 2,
         "disks": [{"size": 8 << 30}, {"size": 20 << 30}, {"device": "/dev/vg0/data"}],
         "nics": [{"bridge": "br0", "mac": "52:54:00:00:00:01"}, {"bridge": "br1"}],
         "cdrom": kernel, "uefi": True, "kernel": kernel, "initrd": kernel, "append": "quiet",
         "config": {"machine": "pc-q35-7.2"}}]


def test_start_stop_kill_say_what_the_vm_is_then(oraid):
    for verb, state in [("start", "running"), ("stop", "stopped"), ("kill", "stopped")]:
        oraid.on("POST", f"/v1/vms/web1/{verb}", vm(state=state))
    assert orai(oraid, "start", "web1", "--fork-old-copy").stdout == "web1 is running\n"
    assert orai(oraid, "stop", "web1", "--timeout", "90s").stdout == "web1 is stopped\n"
    assert orai(oraid, "kill", "web1").stdout == "web1 is stopped\n"
    assert oraid.asked("POST", "/v1/vms/web1/start") == [{"fork_old_copy": True}]
    assert oraid.asked("POST", "/v1/vms/web1/stop") == [{"timeout_ms": 90000}]


def refreshed(name, error=None, **result):
    state = "failed" if error else "done"
    return operation(state=state, kind="refresh", error=error, result={"vm": name, "state": "stayed" if error else "done", **result})


def test_refresh_says_how_long_the_guest_stood_still(oraid):
    oraid.on("POST", "/v1/vms/web1/refresh", refreshed("web1", qemu="10.0.2", blackout_ms=6.54))
    done = orai(oraid, "refresh", "web1")
    assert done.returncode == 0 and "6.5 ms" in done.stdout and "10.0.2" in done.stdout
    assert json.loads(orai(oraid, "refresh", "web1", "--format", "json").stdout)["blackout_ms"] == 6.54
    assert orai(oraid, "refresh").returncode == orai(oraid, "refresh", "web1", "--all").returncode == 2


def test_refreshing_all_goes_on_after_a_failure_and_fails(oraid):
    oraid.on("GET", "/v1/vms", {"vms": [vm(name="web1"), vm(name="web2"), vm(name="web3", state="stopped")]})
    oraid.on("POST", "/v1/vms/web1/refresh", refreshed("web1", error={"code": "EIO", "text": "no luck"}))
    oraid.on("POST", "/v1/vms/web2/refresh", refreshed("web2", qemu="10.0.2", blackout_ms=6.54))
    done = orai(oraid, "refresh", "--all", "--format", "json")
    assert done.returncode == 1 and "1 of 2" in done.stderr
    assert [(each["vm"], each["state"]) for each in json.loads(done.stdout)] == [("web1", "stayed"), ("web2", "done")]


def test_rm_asks_on_a_terminal_only(oraid):
    oraid.on("DELETE", "/v1/vms/web1", {"ok": True})
    shown, code = on_terminal(oraid, "rm", "web1", typed=b"n\n")
    assert code == 1 and "nothing was done" in shown and oraid.requests[:1] != [("DELETE", "/v1/vms/web1", "", None)]
    assert on_terminal(oraid, "rm", "web1", typed=b"y\n")[1] == 0
    assert on_terminal(oraid, "rm", "web1", "--yes")[1] == 0
    assert orai(oraid, "rm", "web1").returncode == 0
    assert len(oraid.asked("DELETE", "/v1/vms/web1")) == 3


def test_replicas_are_listed_and_dropped(oraid):
    rows = [{"host": "a", "here": True, "state": "replica", "epoch": 2, "allocated": 5 << 20, "error": None},
            {"host": "b", "here": False, "state": "unreachable", "epoch": None, "allocated": None,
             "error": {"code": "EHOSTUNREACH", "text": "no route to b"}}]
    oraid.on("GET", "/v1/vms/web1/replicas", {"replicas": rows})
    oraid.on("DELETE", "/v1/vms/web1/replicas/here", {"ok": True})
    assert "no route to b" in orai(oraid, "replica", "list", "web1").stdout
    assert orai(oraid, "replica", "drop", "web1").returncode == 0


def test_all_copies_of_this_host_are_listed(oraid):
    disks = [{"file": "disk0.raw", "allocated": 5 << 20}, {"file": "disk1.raw", "allocated": 1 << 20}]
    oraid.on("GET", "/v1/vms", {"vms": [vm(), vm(name="web2", role="replica", state="replica", peer="b", disks=disks)]})
    table = orai(oraid, "replica", "list").stdout.splitlines()
    assert len(table) == 2 and re.split(r"  +", table[1].strip())[:3] == ["web2", "replica", "b"] and "6 MiB" in table[1]
    copy = json.loads(orai(oraid, "replica", "list", "--format", "json").stdout)
    assert [(one["name"], one["allocated"]) for one in copy] == [("web2", 6 << 20)]
    oraid.on("GET", "/v1/vms", {"vms": []})
    assert orai(oraid, "replica", "list").stdout == "No copies of VMs that are elsewhere\n"


def test_config_comes_as_json_and_goes_back_from_a_file(oraid, tmp_path):
    config = {"name": "web1", "memory": 1 << 30}
    oraid.on("GET", "/v1/vms/web1/config", config)
    oraid.on("PUT", "/v1/vms/web1/config", config)
    file = tmp_path / "vm.json"
    file.write_text(orai(oraid, "config", "web1").stdout)
    assert json.loads(file.read_text()) == config
    assert orai(oraid, "config", "web1", "--set", str(file)).returncode == 0
    assert oraid.asked("PUT", "/v1/vms/web1/config") == [config]


def test_config_edit_keeps_the_text_that_oraid_refuses(oraid, tmp_path):
    editor = tmp_path / "my editor"
    editor.write_text("#!/bin/sh\nsed -i 's/1073741824/3/' \"$1\"\n")
    editor.chmod(0o755)
    oraid.on("GET", "/v1/vms/web1/config", {"name": "web1", "memory": 1 << 30})
    oraid.refuse("PUT", "/v1/vms/web1/config", 400, code="EINVAL", text="memory must be a multiple of 2 MiB")
    shown, code = on_terminal(oraid, "config", "web1", "--edit", EDITOR=f"'{editor}'", TMPDIR=str(tmp_path), columns=400)
    assert code == 2
    kept = re.search(r"your text is in (\S+);", shown).group(1)
    assert json.loads(pathlib.Path(kept).read_text()) == {"name": "web1", "memory": 3}


def test_config_edit_without_a_change_sends_nothing(oraid, tmp_path):
    oraid.on("GET", "/v1/vms/web1/config", {"name": "web1"})
    shown, code = on_terminal(oraid, "config", "web1", "--edit", EDITOR="true", TMPDIR=str(tmp_path))
    assert code == 0 and "Nothing was changed" in shown
    assert oraid.asked("PUT", "/v1/vms/web1/config") == []
    assert list(tmp_path.glob("orai-config-*")) == []


def test_host_is_shown(oraid):
    oraid.on("GET", "/v1/host", {"name": "a", "version": "0.1.0", "qemu": {"version": "7.2", "kvm": False, "why": "no svm",
                                                                          "machines": ["pc-q35-7.2"]}})
    assert "no svm" in orai(oraid, "host").stdout


# --- events ----------------------------------------------------------------------------------------------------

EVENTS = [{"id": 7, "time": NOW, "type": "vm.state", "vm": "web1", "data": {"state": "running"}},
          {"id": 8, "time": NOW, "type": "peer.joined", "vm": None, "data": {"name": "b"}}]


def test_events_are_listed(oraid):
    oraid.on("GET", "/v1/events", {"events": EVENTS})
    assert "state=running" in orai(oraid, "events", "--vm", "web1", "--since", "6", "--limit", "5").stdout
    assert sorted(oraid.requests[0][2].split("&")) == ["follow=false", "limit=5", "since=6", "vm=web1"]


def test_events_are_followed_line_by_line(oraid):
    oraid.answers["GET", "/v1/events"] = (200, lambda handler: handler.send_lines(EVENTS))
    done = orai(oraid, "events", "--follow", "--format", "json")
    assert [json.loads(line) for line in done.stdout.splitlines()] == EVENTS
    assert done.returncode == 1 and "ended the stream" in done.stderr


def test_a_reader_that_was_cut_off_is_told_how_to_go_on(oraid):
    cut = [{"id": 9, "time": NOW, "type": "events.cut", "vm": None, "data": {}}]
    oraid.answers["GET", "/v1/events"] = (200, lambda handler: handler.send_lines(EVENTS + cut))
    done = orai(oraid, "events", "--follow")
    assert done.returncode == 1
    assert "events were lost" in done.stderr and "--since" in done.stderr


# --- moves -----------------------------------------------------------------------------------------------------

def script_move(oraid, *operations, status=202):
    """The move's operation as it will be at each look."""
    oraid.on("POST", "/v1/vms/web1/move", operation(), status)
    oraid.answers["GET", f"/v1/operations/{ID}"] = [(200, o) for o in operations]
    oraid.on("GET", "/v1/host", {"name": "a"})


STEPS = [operation(version=2, progress=move()),
         operation(version=3, progress=move(phase="memory", converging=False)),
         operation(version=4, progress=move(phase="switchover"))]


def test_move_without_a_terminal_prints_lines_with_the_time_and_a_result(oraid):
    script_move(oraid, *STEPS, operation("done", 5, progress=MOVED, result=MOVED))
    done = orai(oraid, "move", "web1", "b")
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and done.stderr == ""
    assert len(lines) == 4
    assert all(re.match(r"2\d\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\+0000 (disk|memory|switchover) ", line) for line in lines[:3])
    assert "10 MiB of 41 MiB" in lines[0] and "dirty 10 Mbit/s" in lines[0] and "3 s left" in lines[0]
    assert lines[1].endswith("not converging")
    assert lines[3] == ("web1 moved from a to b in 12.3 s (predicted 11.9 s), blackout 140 ms (predicted 150 ms), "
                        "disk 42 MiB (predicted 41 MiB), memory 498 MiB (predicted 500 MiB); "
                        "a full copy of the disk: 4 GiB")


def test_move_on_a_terminal_rewrites_one_line_per_phase(oraid):
    script_move(oraid, *STEPS, operation("done", 5, progress=MOVED, result=MOVED))
    shown, code = on_terminal(oraid, "move", "web1", "b", columns=100)
    assert code == 0
    lines = [line.rsplit("\r", 1)[-1] for line in shown.replace("\r\n", "\n").rstrip("\n").split("\n")]
    assert [line.split()[0] for line in lines] == ["disk", "memory", "switchover", "web1"]
    assert "\x1b[33m" in shown and "not converging" in shown


def test_move_as_json_is_one_object_with_the_progress_elsewhere(oraid):
    script_move(oraid, *STEPS, operation("done", 5, progress=MOVED, result=MOVED))
    done = orai(oraid, "move", "web1", "b", "--format", "json")
    result = json.loads(done.stdout)
    assert {k: result[k] for k in ("from", "to", "seconds", "blackout_ms", "disk_bytes", "memory_bytes",
                                   "full_disk_bytes", "predicted_seconds")} == {
        "from": "a", "to": "b", "seconds": 12.34, "blackout_ms": 140, "disk_bytes": 42 << 20, "memory_bytes": 498 << 20,
        "full_disk_bytes": 4 << 30, "predicted_seconds": 11.9}
    assert len(done.stderr.splitlines()) == 3


def test_move_asks_for_what_was_said(oraid):
    script_move(oraid, operation("done", 2, progress=MOVED, result=MOVED))
    orai(oraid, "move", "web1", "b", "--bandwidth", "500M", "--max-blackout", "200ms", "--timeout", "10m", "--on-timeout",
         "pause", "--connections", "4", "--throttle", "80",
         "--verify-memory")
    orai(oraid, "move", "web1", "b")
    assert oraid.asked("POST", "/v1/vms/web1/move") == [
        {"to": "b", "bandwidth": 62500000, "max_blackout_ms": 200, "timeout_ms": 600000, "on_timeout": "pause",
         "connections": 4, "throttle": 80, "verify_memory": True}, {"to": "b"}]


def test_a_dry_run_shows_the_prediction(oraid):
    predicted = move(state="predicted", dry_run=True, predicted=PREDICTED)
    script_move(oraid, operation("done", 2, progress=predicted, result=predicted))
    done = orai(oraid, "move", "web1", "b", "--dry-run")
    assert oraid.asked("POST", "/v1/vms/web1/move") == [{"to": "b", "dry_run": True}]
    assert "Nothing was moved" in done.stdout
    assert re.search(r"^Time: +11\.9 s$", done.stdout, re.M) and re.search(r"^Blackout: +150 ms$", done.stdout, re.M)
    assert re.search(r"^disk0\.raw +41 MiB +replica$", done.stdout, re.M)
    as_json = json.loads(orai(oraid, "move", "web1", "b", "--dry-run", "--format", "json").stdout)
    assert as_json["predicted"] == PREDICTED


def test_a_move_that_stayed_says_where_the_vm_is(oraid):
    error = {"code": "ENOSPC", "text": "no space for 8 GiB", "host": "b", "stage": "prepare",
             "hint": "orai replica list web1"}
    stayed = move(state="stayed", error=error)
    script_move(oraid, operation("failed", 2, progress=stayed, error=error))
    oraid.on("GET", "/v1/vms/web1", vm())
    done = orai(oraid, "move", "web1", "b")
    assert done.returncode == 6
    assert done.stderr.splitlines() == ["orai: host b, stage prepare: no space for 8 GiB", "orai: web1 is running on a",
                                        "orai: next: orai replica list web1"]
    script_move(oraid, operation("failed", 2, progress=stayed, error=error))
    as_json = orai(oraid, "move", "web1", "b", "--format", "json")
    assert as_json.returncode == 6
    assert json.loads(as_json.stdout)["state"] == "stayed"


def test_a_lost_guest_is_not_a_move_that_stayed(oraid):
    error = {"code": "EIO", "text": "QEMU died"}
    lost = move(state="guest-lost", error=error)
    script_move(oraid, operation("failed", 2, progress=lost, error=error))
    oraid.on("GET", "/v1/vms/web1", vm(state="crashed"))
    done = orai(oraid, "move", "web1", "b")
    assert done.returncode == 1
    assert "web1 is crashed on a" in done.stderr


def test_a_cancelled_move_stayed(oraid):
    script_move(oraid, operation("cancelled", 2, progress=move(state="stayed")))
    assert orai(oraid, "move", "web1", "b").returncode == 6


def test_notes_are_told(oraid):
    moved = {**MOVED, "notes": ["the copy on b had forked\x1b[2J"]}
    script_move(oraid, operation("done", 2, progress=moved, result=moved))
    assert orai(oraid, "move", "web1", "b").stderr == "Note: the copy on b had forked\\x1b[2J\n"


def test_detach_does_not_wait(oraid):
    script_move(oraid)
    done = orai(oraid, "move", "web1", "b", "--detach")
    assert done.returncode == 0 and "orai status web1" in done.stdout and "orai cancel web1" in done.stdout
    assert len(oraid.requests) == 1


def test_ctrl_c_does_not_stop_the_move_and_says_so(oraid):
    script_move(oraid)
    oraid.answers["GET", f"/v1/operations/{ID}"] = lambda query, body: (time.sleep(5), (200, STEPS[0]))[1]
    client = subprocess.Popen([ORAI, "move", "web1", "b"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                              env=environment(oraid),  # a shell's background job ignores Ctrl-C, and so would this
                              preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    deadline = time.monotonic() + 10
    while len(oraid.requests) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    client.send_signal(signal.SIGINT)
    out, err = client.communicate(timeout=3)
    assert client.returncode == 130
    assert "the move of web1 goes on" in err and "orai status web1" in err and "orai cancel web1" in err
    assert not any(path.endswith("/cancel") for _, path, _, _ in oraid.requests)


def test_an_oraid_that_restarts_in_between_is_waited_for(oraid):
    script_move(oraid, (STEPS[0]))
    oraid.answers["GET", f"/v1/operations/{ID}"] = (200, None)
    client = subprocess.Popen([ORAI, "move", "web1", "b"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                              env=environment(oraid))
    deadline = time.monotonic() + 10
    while len(oraid.requests) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    oraid.stop()
    time.sleep(0.7)
    oraid.answers["GET", f"/v1/operations/{ID}"] = (200, operation("done", 9, progress=MOVED, result=MOVED))
    oraid.start()
    out, err = client.communicate(timeout=10)
    assert client.returncode == 0, err
    assert "web1 moved from a to b" in out


def test_status_of_all_and_of_one(oraid):
    moving = vm(state="leaving", peer="b", move=move(converging=False))
    oraid.on("GET", "/v1/vms", {"vms": [moving, vm(name="web2")]})
    oraid.on("GET", "/v1/vms/web1/status", {"vm": moving, "operation": operation(progress=move())})
    everything, one = orai(oraid, "status"), orai(oraid, "status", "web1")
    assert re.search(r"^web1 +leaving +a +b +running +disk", everything.stdout, re.M)
    assert re.search(r"^web2 +running +- ", everything.stdout, re.M)
    assert "not converging" in one.stdout
    assert json.loads(orai(oraid, "status", "web1", "--format", "json").stdout)["vm"] == moving


def test_status_follow_goes_on_until_the_move_has_ended(oraid):
    states = [move(), move(phase="memory"), MOVED]
    oraid.answers["GET", "/v1/vms/web1/status"] = [(200, {"vm": vm(move=m), "operation": None}) for m in states]
    done = orai(oraid, "status", "web1", "--follow")
    assert done.returncode == 0
    assert re.search(r"^State: +moved$", done.stdout, re.M)
    assert len(oraid.requests) == 3


def test_cancel_works_and_a_late_one_is_refused(oraid):
    oraid.on("POST", "/v1/vms/web1/cancel", {"vm": vm(), "operation": None})
    assert "goes on where it was" in orai(oraid, "cancel", "web1").stdout
    oraid.refuse("POST", "/v1/vms/web1/cancel", 409, code="EALREADY", text="the move is committed")
    assert orai(oraid, "cancel", "web1").returncode == 4


def test_run_here_needs_a_human(oraid):
    oraid.on("POST", "/v1/vms/web1/recover", {"vm": vm(), "operation": None})
    assert orai(oraid, "recover", "web1", "--run-here").returncode == 2
    assert on_terminal(oraid, "recover", "web1", "--run-here", typed=b"n\n")[1] == 1
    assert oraid.asked("POST", "/v1/vms/web1/recover") == []
    assert on_terminal(oraid, "recover", "web1", "--run-here", typed=b"y\n")[1] == 0
    assert orai(oraid, "recover", "web1", "--run-here", "--yes").returncode == 0
    assert orai(oraid, "recover", "web1").returncode == 0
    assert oraid.asked("POST", "/v1/vms/web1/recover") == [{"run_here": True}, {"run_here": True}, {}]


# --- disk ------------------------------------------------------------------------------------------------------

def test_disk_needs_no_oraid(tmp_path):
    image = tmp_path / "disk.raw"
    image.write_bytes(bytes(1 << 20))
    done = orai(None, "disk", "info", str(image))
    assert done.returncode in (0, 1) and "api.sock" not in done.stderr
    assert orai(None, "disk", "info").returncode == 2


# --- with a real oraid -----------------------------------------------------------------------------------------

@pytest.mark.skipif(not (BUILD / "oraid").exists(), reason="oraid is not built")
def test_a_real_oraid_answers_every_verb_in_every_format(labs):
    lab = labs("a", "b")
    with open(lab.folder / "disk.img", "wb") as file:
        file.truncate(8 << 20)
    lab.a.orai("image", "add", "base", lab.folder / "disk.img")
    lab.a.orai("create", "web1", "--image", "base", "--memory", "64M", "--disk", "16M")
    for words, key in [(["peer", "list"], "name"), (["image", "list"], "hash"), (["list"], "name"),
                       (["info", "web1"], "id"), (["replica", "list", "web1"], "host"), (["events"], "type"),
                       (["host"], "fingerprint"), (["version"], "orai"), (["config", "web1"], "name")]:
        as_json = lab.a.orai(*words, json=True)
        rows = as_json if isinstance(as_json, list) else [as_json]
        assert rows and all(row[key] for row in rows), words
        assert yaml.safe_load(lab.a.orai(*words, "--format", "yaml")) is not None, words
        as_csv = list(csv.DictReader(io.StringIO(lab.a.orai(*words, "--format", "csv"), newline="")))
        assert as_csv and as_csv[0][key] == rows[0][key], words
        assert lab.a.orai(*words), words
    assert lab.a.orai("status", "web1", json=True)["vm"]["state"] == "stopped"
    assert "reachable" in lab.a.orai("peer", "list", "--probe", "--format", "csv")
    assert [vm["name"] for vm in json.loads(lab.a.orai("list", "--format", "json"))] == ["web1"]


@pytest.mark.skipif(not (BUILD / "oraid").exists(), reason="oraid is not built")
def test_a_real_oraid_refuses_with_the_documented_exit_codes(labs):
    from host import OraiError
    host = labs("a").a
    host.orai("create", "web1", "--memory", "64M", "--disk", "16M")
    for code, words in [(5, ["info", "web2"]), (5, ["image", "rm", "none"]), (5, ["peer", "remove", "none"]),
                        (4, ["create", "web1", "--memory", "64M", "--disk", "16M"]), (4, ["replica", "drop", "web1"]),
                        (2, ["create", "web/2", "--memory", "64M", "--disk", "16M"])]:
        with pytest.raises(OraiError) as refused:
            host.orai(*words)
        assert refused.value.code == code, (words, refused.value)
        assert refused.value.err.startswith("orai: "), words


@pytest.mark.skipif(not (BUILD / "oraid").exists(), reason="oraid is not built")
def test_a_real_config_makes_the_round_trip(labs, tmp_path):
    host = labs("a").a
    host.orai("create", "web1", "--memory", "64M", "--disk", "16M")
    config = host.orai("config", "web1", json=True)
    config["cpus"] = 2
    (tmp_path / "vm.json").write_text(json.dumps(config))
    host.orai("config", "web1", "--set", tmp_path / "vm.json")
    assert host.orai("info", "web1", json=True)["cpus"] == 2
