#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The manual says what the programs do: compares man pages with --help, which comes from the program's own table.

Usage: check_man.py MAN_FOLDER ORAI
"""

import pathlib
import re
import shutil
import subprocess
import sys
import unittest

FOLDER, ORAI = pathlib.Path(sys.argv[1]).resolve(), pathlib.Path(sys.argv[2]).resolve()
sys.argv[1:] = []


def help_of(program, *words):
    done = subprocess.run([program, *words], capture_output=True, text=True, timeout=20)
    assert done.returncode == 0, done.stderr
    return done.stdout


def options_in(text):
    """The options that a help text lists, with their short forms and values."""
    return {(short.strip(", ") or "", name, value)
            for short, name, value in re.findall(r"^  (-\w, |    )--([\w-]+)(?: (\S+))?", text, re.M)}


def plain(troff):
    return re.sub(r"\\f[BIRP]", "", troff).replace("\\-", "-")


def page_of(verb):
    page = FOLDER / f"orai-{verb.split()[0]}.1"
    text = page.read_text()
    link = re.search(r"^\.so man1/(\S+)$", text, re.M)
    return (FOLDER / link.group(1)).read_text() if link else text


def sections(text):
    """The parts of a page by their headings, as written for a reader."""
    parts = re.split(r"^\.S[SH] (.*)$", text, flags=re.M)
    return {plain(heading): body for heading, body in zip(parts[1::2], parts[2::2])}


def options_of_section(body):
    """As options_in, from the .TP entries of a man page."""
    found = set()
    for line in re.findall(r"^\.TP\n(\.B\w? .*\\-\\-.*)$", body, re.M):
        entry = " ".join(plain(line).split(maxsplit=1)[1].replace('"', "").replace(" , ", ", ").split())
        short, name, value = re.fullmatch(r"(?:(-\w), )?--([\w-]+)(?: (\S+))?", entry).groups()
        found.add((short or "", name, value or ""))
    return found


VERBS = re.findall(r"^  ((?:peer|image|replica|disk) [a-z]+|[a-z]+)  ", help_of(ORAI, "help"), re.M)
SHARED = options_in(help_of(ORAI, "help"))
SHARED_LINES = help_of(ORAI, "help").splitlines()  # a verb may have an option of the same name and another meaning


class Manual(unittest.TestCase):
    def test_there_are_verbs(self):
        self.assertGreater(len(VERBS), 20)
        self.assertEqual({name for _, name, _ in SHARED}, {"socket", "help", "version", "format"})

    def test_every_verb_has_its_section_with_its_operands(self):
        for verb in VERBS:
            with self.subTest(verb):
                usage = help_of(ORAI, "help", *verb.split()).splitlines()[0]
                synopsis = usage.removeprefix("Usage: ").removesuffix(" [OPTION]...")
                self.assertIn(synopsis, sections(page_of(verb)))

    def test_every_section_has_the_options_of_its_verb_and_no_others(self):
        for verb in VERBS:
            with self.subTest(verb):
                text = help_of(ORAI, "help", *verb.split())
                heading = text.splitlines()[0].removeprefix("Usage: ").removesuffix(" [OPTION]...")
                own = options_in("\n".join(line for line in text.splitlines() if line not in SHARED_LINES))
                self.assertEqual(options_of_section(sections(page_of(verb))[heading]), own)

    def test_the_help_points_to_a_page_that_is_there(self):
        for verb in VERBS:
            page = re.search(r"^The manual: man (\S+)$", help_of(ORAI, "help", *verb.split()), re.M).group(1)
            self.assertTrue((FOLDER / f"{page}.1").exists(), page)

    def test_the_shared_options_stand_in_the_main_page(self):
        self.assertEqual(options_of_section(sections((FOLDER / "orai.1").read_text())["OPTIONS"]), SHARED)

    def test_the_exit_codes_are_those_of_the_program(self):
        header = (FOLDER.parent / "src/cli/cli.h").read_text()
        codes = re.findall(r"^    CLI_[A-Z_]+ = (\d+),", header, re.M)
        listed = re.findall(r"^\.TP\n\.B (\d+)$", sections((FOLDER / "orai.1").read_text())["EXIT STATUS"], re.M)
        self.assertEqual(listed, codes)

    def test_the_daemons_options_are_those_of_their_help(self):
        for name in ("oraid", "orai-vm"):
            program = ORAI.parent / name
            with self.subTest(name):
                if not program.exists():
                    self.skipTest(f"{program} is not built")
                options = set(re.findall(r"--([a-z][a-z-]*)", help_of(program, "--help")))
                listed = {o for _, o, _ in options_of_section(sections((FOLDER / f"{name}.8").read_text())["OPTIONS"])}
                self.assertEqual(listed, options)

    @unittest.skipUnless(shutil.which("mandoc"), "mandoc is not installed")
    def test_the_pages_are_well_formed(self):
        for page in [p for p in FOLDER.iterdir() if not re.search(r"^\.so ", p.read_text(), re.M)]:
            done = subprocess.run(["mandoc", "-T", "lint", "-W", "warning", page], capture_output=True, text=True)
            self.assertEqual([line for line in done.stdout.splitlines() if "missing date" not in line], [])


unittest.main(verbosity=2)
