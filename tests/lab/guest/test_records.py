# SPDX-License-Identifier: Apache-2.0
"""check-records must pass what pulse would write, and find each way to lose a record."""

import json
import os
import shutil
import subprocess
import sys

import pytest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
import records  # noqa: E402

SLOTS = 64
DURABLE = 200
BOOT = 0x0123456789ABCDEF


def put(image, number, boot=BOOT):
    slot = records.slot_of(number, SLOTS)
    image[slot * records.SIZE : (slot + 1) * records.SIZE] = records.make(number, slot, boot)


@pytest.fixture
def image():
    image = bytearray(SLOTS * records.SIZE)
    for number in range(1, DURABLE + 1):
        put(image, number)
    return image


def run_check(tmp_path, image, *arguments):
    path = tmp_path / "image.raw"
    path.write_bytes(image)
    command = [sys.executable, os.path.join(HERE, "check-records"), path, "--durable", str(DURABLE), *arguments]
    result = subprocess.run(command, capture_output=True, text=True)
    assert not result.stderr
    *losses, summary = result.stdout.splitlines()
    summary = json.loads(summary)
    assert summary["ok"] == (result.returncode == 0) == (losses == [])
    return losses


def offset_of(number):
    return records.slot_of(number, SLOTS) * records.SIZE


def test_all_there(tmp_path, image):
    assert run_check(tmp_path, image, "--boot", f"{BOOT:x}", "--written", str(DURABLE)) == []


def test_newer_record_in_the_slot_is_fine(tmp_path, image):
    put(image, DURABLE + 1)
    assert run_check(tmp_path, image) == []


def test_newer_record_than_ever_written(tmp_path, image):
    put(image, DURABLE + 1)
    [loss] = run_check(tmp_path, image, "--written", str(DURABLE))
    assert "never written" in loss


@pytest.mark.parametrize("at", [0, 8, 24, 32, 40, records.SIZE - 1])
def test_damaged_record(tmp_path, image, at):
    image[offset_of(DURABLE) + at] ^= 1
    [loss] = run_check(tmp_path, image)
    assert loss == f"record {DURABLE} (slot {records.slot_of(DURABLE, SLOTS)}): damaged"


def test_lost_record(tmp_path, image):
    start = offset_of(DURABLE)
    image[start : start + records.SIZE] = bytes(records.SIZE)
    [loss] = run_check(tmp_path, image)
    assert "lost" in loss


def test_stale_record(tmp_path, image):
    slot = records.slot_of(DURABLE, SLOTS)
    older = next(n for n in range(DURABLE - 1, 0, -1) if records.slot_of(n, SLOTS) == slot)
    put(image, older)
    [loss] = run_check(tmp_path, image)
    assert f"stale: record {older}" in loss


def test_record_of_another_boot(tmp_path, image):
    put(image, DURABLE, boot=BOOT + 1)
    [loss] = run_check(tmp_path, image, "--boot", f"{BOOT:x}")
    assert "of boot" in loss


def test_misplaced_record(tmp_path, image):
    start = offset_of(DURABLE)
    other = offset_of(DURABLE - 1)
    image[start : start + records.SIZE] = image[other : other + records.SIZE]
    [loss] = run_check(tmp_path, image)
    assert "misplaced" in loss


def test_records_before_first_do_not_count(tmp_path, image):
    for number in range(1, DURABLE + 1):
        put(image, number, boot=BOOT + 1)
    put(image, DURABLE)
    assert run_check(tmp_path, image, "--boot", f"{BOOT:x}", "--first", str(DURABLE)) == []


def test_losses_are_listed_up_to_ten(tmp_path, image):
    assert len(run_check(tmp_path, bytearray(len(image)))) == 10


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc to run the rules as pulse has them")
def test_same_bytes_as_pulse(tmp_path):
    program = tmp_path / "one.c"
    program.write_text(
        '#include "records.h"\n#include <stdio.h>\nint main(void)\n{\n    struct record record;\n'
        f"    record_make(&record, {DURABLE}, record_slot({DURABLE}, {SLOTS}), {BOOT:#x});\n"
        "    return fwrite(&record, sizeof(record), 1, stdout) == 1 && record_valid(&record) ? 0 : 1;\n}\n"
    )
    sources = [program, os.path.join(HERE, "records.c"), os.path.join(HERE, "pattern.c")]
    subprocess.run(["gcc", "-std=c17", "-I", HERE, "-o", tmp_path / "one", *sources], check=True)
    made = subprocess.run([tmp_path / "one"], check=True, capture_output=True).stdout
    assert made == records.make(DURABLE, records.slot_of(DURABLE, SLOTS), BOOT)
