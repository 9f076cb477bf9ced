# SPDX-License-Identifier: Apache-2.0
"""The lab itself: what it builds works as it says, and nothing stays."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import netns
import pytest
from host import in_time
from lab import DELAY, PREFIX, Lab, sweep

pytestmark = pytest.mark.alone

HERE = Path(__file__).parent
RATE = 200_000_000  # bits per second

TWO_ENDS = """
import sys, time
sys.path.insert(0, sys.argv[1])
from lab import Lab
lab = Lab()
lab.namespace("sleepy").popen("sleep", "1000")
print(lab.prefix, lab.folder, flush=True)
time.sleep(1000)
"""


def plug(lab, name, address):
    namespace = lab.namespace(name)
    link = lab.segment.plug(namespace, "eth0")
    namespace.ip("addr", "add", f"{address}/24", "dev", "eth0")
    return namespace, link


def reaches(namespace, address):
    """A host that is there refuses a connection to a closed port; silence means that nothing went through."""
    probe = namespace.socket()
    probe.settimeout(1)
    try:
        probe.connect((address, 9))
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    finally:
        probe.close()
    raise AssertionError("nobody should listen there")


def started_lab():
    process = subprocess.Popen([sys.executable, "-c", TWO_ENDS, HERE], stdout=subprocess.PIPE, text=True)
    prefix, folder = process.stdout.readline().split()
    return process, prefix, Path(folder)


def remains(prefix, folder):
    return [name for name in netns.names() if name.startswith(f"{prefix}-")] + ([folder] if folder.exists() else [])


def test_a_cut_link_is_silent_both_ways_and_heals():
    with Lab() as lab:
        one, link = plug(lab, "one", "10.77.0.1")
        two, _ = plug(lab, "two", "10.77.0.2")
        assert reaches(one, "10.77.0.2")
        link.cut()
        assert not reaches(one, "10.77.0.2") and not reaches(two, "10.77.0.1")
        assert "LOWER_UP" in one.ip("link", "show", "eth0"), "the carrier must stay"
        link.heal()
        assert reaches(two, "10.77.0.1")


def test_nothing_remains_after_sigterm():
    process, prefix, folder = started_lab()
    assert remains(prefix, folder)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 128 + signal.SIGTERM
    assert not remains(prefix, folder)


def test_the_next_lab_sweeps_up_what_sigkill_left():
    process, prefix, folder = started_lab()
    process.kill()
    process.wait()
    assert remains(prefix, folder)
    sweep()
    assert not remains(prefix, folder)


def test_two_labs_at_once_do_not_meet():
    with Lab() as first, Lab() as second:
        one, _ = plug(first, "one", "10.77.0.1")
        plug(second, "two", "10.77.0.2")
        assert not reaches(one, "10.77.0.2")
    assert not [name for name in netns.names() if name.startswith(f"{PREFIX}-{os.getpid()}-")]


def connected(one, two):
    """Two sockets of a connection from namespace `one` to `two`, which has the address 10.77.0.2."""
    with two.socket() as listener:
        listener.bind(("10.77.0.2", 1000))
        listener.listen()
        sender = one.socket()
        sender.connect(("10.77.0.2", 1000))
        sender.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sender, listener.accept()[0]


def check_throughput(link, sender, receiver, seconds=2, least=0.9):
    """RATE leaves through `link`; never more, and on a machine that is not busy hardly less."""
    sink = subprocess.Popen(["cat"], stdin=receiver, stdout=subprocess.DEVNULL)
    chunk, began = bytes(1 << 16), time.monotonic()
    before = link.sent()
    while time.monotonic() < began + seconds:
        sender.sendall(chunk)
    rate = (link.sent() - before) * 8 / (time.monotonic() - began)
    sender.close()
    sink.terminate()
    sink.wait()
    receiver.close()
    assert rate < 1.1 * RATE
    in_time(RATE / rate, 1 / least, "what the link should carry in a second")


def round_trips(sender, receiver, count=20):
    """Seconds that a byte there and one back take, sorted."""
    taken = []
    for _ in range(count):
        began = time.monotonic()
        sender.send(b"?")
        receiver.send(receiver.recv(1))
        sender.recv(1)
        taken.append(time.monotonic() - began)
    return sorted(taken)


def test_a_limited_link_is_as_slow_as_asked():
    with Lab() as lab:
        one, link = plug(lab, "one", "10.77.0.1")
        two, _ = plug(lab, "two", "10.77.0.2")
        link.limit(RATE)
        check_throughput(link, *connected(one, two))


def test_a_long_link_takes_the_time_asked_and_carries_the_rate_asked():
    with Lab() as lab:
        one, link = plug(lab, "one", "10.77.0.1")
        two, other = plug(lab, "two", "10.77.0.2")
        for each in (link, other):
            each.delay(0.005, DELAY)
            each.limit(RATE)
        ends = connected(one, two)
        taken = round_trips(*ends)
        assert taken[0] >= 0.020, "nothing may come too early"
        in_time(taken[len(taken) // 2], 0.0215, "a round trip")
        check_throughput(link, *ends, seconds=3, least=0.7)  # it begins slowly, as TCP does
        link.cut()
        assert not reaches(one, "10.77.0.2")
        link.heal()
        assert reaches(one, "10.77.0.2")
