# SPDX-License-Identifier: Apache-2.0
"""Orai as its Debian package installs it, run by systemd: whatever is done to oraid.service, the VMs go on.

ORAI_DEB names the package; without it one is built from the tracked files as they are."""

import os
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from booted import BootedHost
from host import wait_until
from lab import ROOT
from test_move import move

pytestmark = pytest.mark.alone


@pytest.fixture(scope="module")
def package():
    if "ORAI_DEB" in os.environ:
        yield Path(os.environ["ORAI_DEB"]).resolve()
        return
    with tempfile.TemporaryDirectory(prefix="orai-package-", dir="/var/tmp") as folder:
        subprocess.run([ROOT / "packaging" / "build-deb", "--worktree", folder], check=True, capture_output=True)
        yield next(Path(folder).glob("orai_*.deb"))


@pytest.fixture
def booted(labs, package):
    """A lab with the ordinary host b and the host s that systemd runs."""
    lab = labs("b")
    lab.add("s", BootedHost, package=package)
    return lab


def restart(host):
    host.run("systemctl", "restart", "oraid")


def stop_and_start(host):
    host.run("systemctl", "stop", "oraid")
    assert host.unit("ActiveState") == "inactive"
    host.run("systemctl", "start", "oraid")


def kill_the_main_process(host):
    """systemd starts it again (Restart=)."""
    before = host.pid_of("oraid", None)
    host.kill9()
    wait_until(lambda: host.pid_of("oraid", None) not in (None, before), 20, "systemd has started oraid again")


def install_again(host):
    """As an upgrade does it."""
    host.install()


def test_the_package_brings_a_unit_that_runs_and_users(booted):
    host = booted.s
    for unit in ("oraid", "orai-guests"):
        assert host.run("systemctl", "is-active", unit) == "active"
        assert host.run("systemctl", "is-enabled", unit) == "enabled"
    assert host.run("getent", "group", "orai").startswith("orai:")
    assert host.run("id", "--name", "--groups", "orai-qemu").split()[-1] == "kvm"
    assert host.failed_units() == []
    assert [peer["name"] for peer in host.orai("peer", "list", json=True)] == ["b"]


def test_whatever_is_done_to_the_unit_the_vms_go_on(booted, guests):
    host = booted.s
    guest = guests(booted, host)
    processes = {kind: host.pid_of(kind, guest.name) for kind in ("qemu", "orai-vm")}
    assert all(processes.values())
    owner = host.file(f"proc/{processes['qemu']}").stat().st_uid
    assert owner == int(host.run("id", "--user", "orai-qemu"))

    for act in (restart, stop_and_start, kill_the_main_process, install_again):
        before = host.pid_of("oraid", None)
        written = guest.status()["written"]
        act(host)
        wait_until(host.is_up, 20, "oraid serves its API again")
        assert host.pid_of("oraid", None) != before
        assert {kind: host.pid_of(kind, guest.name) for kind in processes} == processes, act.__name__
        wait_until(lambda: guest.check_alive()["written"] > written, 20, "its disk is still served")
        wait_until(lambda: [(vm["name"], vm["state"]) for vm in host.orai("list", json=True)] ==
                   [(guest.name, "running")], 20, "the new oraid has found it")

    removal = host.inside("dpkg", "--no-triggers", "--remove", "orai", check=False)
    assert removal.returncode and f"VMs are running on this host: {guest.name}" in removal.stderr
    guest.check_alive()

    last = guest.quiet()
    guest.pulse.stopping.set()
    host.orai("stop", guest.name, "--timeout", "30s")
    assert host.vm_state(guest.name) == "stopped" and host.pid_of("qemu", guest.name) is None
    guest.check_records(host, last["durable"], last["written"])
    assert host.failed_units() == []
    host.run("dpkg", "--no-triggers", "--purge", "orai")
    assert host.image_file(guest.name).exists(), "not even a purge deletes a disk"


def plain_vm(host, name, *options):
    """A VM whose firmware finds nothing to boot: it runs, idles, and does not react to its power button."""
    host.orai("create", name, "--memory", "64M", "--disk", "1M", *options)


def states(host):
    return {vm["name"]: vm["state"] for vm in host.orai("list", json=True)}


def test_after_a_boot_the_vms_that_start_with_their_host_run_and_no_others(booted, guests):
    host = booted.s
    guest = guests(booted, host, options=["--autostart"])
    for name, options in {"rests": ["--autostart"], "ran": [], "off": []}.items():
        plain_vm(host, name, *options)
    host.orai("start", "ran")
    plain_vm(booted.b, "away", "--autostart")
    booted.b.orai("start", "away")
    booted.b.orai("move", "away", "s")
    host.orai("move", "away", "b")

    boot_before = guest.boot
    guest.pulse.close()  # else its TCP connection waits long for an answer of the guest before
    began = time.monotonic()
    host.reboot()
    assert time.monotonic() - began < 30, "guests were shut down, or switched off, in time"
    expected = {"web1": "running", "rests": "running", "ran": "stopped", "off": "stopped", "away": "replica"}
    wait_until(lambda: states(host) == expected, 30, f"{expected} after the boot")
    guest.meet()
    assert guest.boot != boot_before and guest.status()["disk_errors"] == 0
    assert booted.b.vm_state("away") == "running"

    host.orai("kill", "rests")
    restart(host)
    wait_until(host.is_up, 20, "oraid serves its API again")
    assert states(host) == {**expected, "rests": "stopped"}, "only a boot starts them"


def test_a_vm_moves_to_and_from_a_host_that_systemd_runs(booted, guests):
    guest = guests(booted, booted.b)
    move(guest, booted.b, booted.s)
    restart(booted.s)
    wait_until(booted.s.is_up, 20, "oraid serves its API again")
    move(guest, booted.s, booted.b)
