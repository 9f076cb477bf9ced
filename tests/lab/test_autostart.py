# SPDX-License-Identifier: Apache-2.0
"""VMs that start with their host, where something is in the way. test_systemd.py really reboots a host; here only the boot
that oraid remembers is another one."""

import json

import netns
from host import wait_until


def make(host, name, *options):
    host.orai("create", name, "--memory", "64M", "--disk", "1M", "--autostart", *options)


def down(host):
    """The host loses its power: nothing of it runs, and the next boot is another one."""
    host.kill9()
    for folder in (host.run_dir / "vms").iterdir():
        for kind in ("orai-vm", "qemu"):
            if host.pid_of(kind, folder.name):
                host.kill(kind, folder.name)
    host.state.joinpath("boot.json").write_text(json.dumps({"boot": "00000000-0000-0000-0000-000000000000"}))


def is_noted(host):
    return json.loads(host.state.joinpath("boot.json").read_text())["boot"] != "00000000-0000-0000-0000-000000000000"


def test_it_waits_for_a_bridge_that_comes_late_even_if_oraid_is_killed_meanwhile(labs):
    host = labs("a").a
    make(host, "early")
    make(host, "late", "--bridge", "late0")
    down(host)
    host.start()
    wait_until(lambda: host.vm_state("early") == "running", 20, "the VM that needs nothing runs")
    qemu = host.pid_of("qemu", "early")
    assert host.vm_state("late") != "running" and not is_noted(host)
    host.kill9()
    host.start()
    netns.make_bridge(host.namespace, "late0")
    wait_until(lambda: host.vm_state("late") == "running", 40, "it is tried again")
    wait_until(lambda: is_noted(host), 10, "the boot is done with")
    assert host.pid_of("qemu", "early") == qemu, "what ran was left alone"
    assert host.vm("late")["desired"] == "running"


def test_one_that_cannot_start_is_given_up_and_said_and_the_boot_is_done_with(labs):
    host = labs("a").a
    make(host, "broken", "--bridge", "nowhere0")
    down(host)
    host.start()
    wait_until(lambda: host.vm_state("broken") == "failed", 60, "it is given up")
    assert "orai-vm.log" in host.vm("broken")["reason"]
    wait_until(lambda: is_noted(host), 10, "the boot is done with")
    host.restart()
    assert host.vm_state("broken") in ("stopped", "crashed"), "it is not tried for ever"


def test_a_vm_that_its_owner_stops_meanwhile_stays_stopped(labs):
    host = labs("a").a
    make(host, "stopped")
    down(host)
    host.start()
    wait_until(lambda: host.vm_state("stopped") == "running", 20, "it runs")
    wait_until(lambda: is_noted(host), 10, "the boot is done with")  # before that it would be started once more
    host.orai("kill", "stopped")
    for act in (host.restart, lambda: (host.kill9(), host.start())):
        act()
        wait_until(lambda: host.vm_state("stopped") == "stopped", 5, "it stays stopped")
    assert host.pid_of("qemu", "stopped") is None
