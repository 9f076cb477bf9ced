#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Runs the shells' completions of orai in the shells themselves.

Usage: check_completions.py COMPLETIONS_FOLDER ORAI. bash must be there; zsh and fish are tried when they are.
"""

import os
import pathlib
import pty
import select
import shutil
import subprocess
import sys
import tempfile
import time
import unittest

FOLDER, ORAI = pathlib.Path(sys.argv[1]).resolve(), pathlib.Path(sys.argv[2]).resolve()
sys.argv[1:] = []
HOME = tempfile.TemporaryDirectory()  # shells leave things there
ENVIRONMENT = {"PATH": f"{ORAI.parent}:{os.environ['PATH']}", "HOME": HOME.name, "TERM": "dumb", "LC_ALL": "C.UTF-8",
               "ORAI_SOCKET": "/nonexistent/api.sock"}


def run(*command, folder="/"):
    done = subprocess.run(command, env=ENVIRONMENT, cwd=folder, capture_output=True, text=True, timeout=20)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def type_and_tab(command, typed, expected):
    """Types into an interactive shell; returns what it shows once `expected` has come, or 10 seconds are over."""
    pid, fd = pty.fork()
    if pid == 0:
        os.execvpe(command[0], command, ENVIRONMENT)
    shown, sent = "", False
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and expected not in shown:
        if select.select([fd], [], [], 0.1)[0]:
            shown += os.read(fd, 65536).decode(errors="replace")
        if not sent and "ready>" in shown:
            os.write(fd, typed.encode())
            sent, shown = True, ""
    os.close(fd)
    os.waitpid(pid, 0)
    return shown


class Bash(unittest.TestCase):
    def complete(self, *words, folder="/"):
        """What bash would propose for the last word."""
        script = (f'source "{FOLDER}/orai.bash"; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1));'
                  ' _orai "$1" "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"; printf "%s\\n" "${COMPREPLY[@]}"')
        return [line for line in run("bash", "--norc", "-c", script, "bash", "orai", *words, folder=folder) if line]

    def test_verbs(self):
        self.assertEqual(self.complete("mo"), ["move"])
        self.assertIn("peer", self.complete(""))

    def test_groups(self):
        self.assertEqual(sorted(self.complete("peer", "")), ["invite", "join", "list", "remove"])

    def test_options(self):
        self.assertEqual(self.complete("move", "web1", "--band"), ["--bandwidth"])

    def test_values_after_a_space_and_after_an_equals_sign(self):
        self.assertEqual(self.complete("list", "--format", "j"), ["json"])
        self.assertEqual(self.complete("list", "--format", "=", "j"), ["json"])
        self.assertEqual(self.complete("list", "--format", "="), ["table", "json", "yaml", "csv"])

    def test_files_with_odd_names(self):
        with tempfile.TemporaryDirectory() as folder:
            (pathlib.Path(folder) / "a disk*.raw").touch()
            self.assertEqual(self.complete("disk", "info", "a", folder=folder), ["a disk*.raw"])

    def test_a_silent_oraid_proposes_nothing(self):
        self.assertEqual(self.complete("info", ""), [])

    def test_a_tab_in_a_real_shell(self):
        rc = tempfile.NamedTemporaryFile("w", suffix=".bashrc")
        rc.write(f'source "{FOLDER}/orai.bash"\nPS1="ready>"\nbind "set enable-bracketed-paste off"\n')
        rc.flush()
        shown = type_and_tab(["bash", "--noprofile", "--rcfile", rc.name, "-i"], "orai reco\tweb1 --run\t", "--run-here")
        self.assertIn("orai recover web1 --run-here", shown)


@unittest.skipUnless(shutil.which("zsh"), "zsh is not installed")
class Zsh(unittest.TestCase):
    def test_syntax(self):
        run("zsh", "-n", str(FOLDER / "_orai"))

    def test_a_tab_in_a_real_shell(self):
        with tempfile.TemporaryDirectory() as folder:
            (pathlib.Path(folder) / ".zshrc").write_text(
                f'fpath=("{FOLDER}" $fpath)\nautoload -Uz compinit\ncompinit -D -u\nPS1="ready>"\n')
            shown = type_and_tab(["env", f"ZDOTDIR={folder}", "zsh", "-i"], "orai reco\tweb1 --run\t", "--run-here")
        self.assertIn("--run-here", shown)


@unittest.skipUnless(shutil.which("fish"), "fish is not installed")
class Fish(unittest.TestCase):
    def complete(self, line):
        command = f"source '{FOLDER}/orai.fish'; complete -C '{line}'"
        return [line.split("\t")[0] for line in run("fish", "--no-config", "-c", command)]

    def test_syntax(self):
        run("fish", "-n", str(FOLDER / "orai.fish"))

    def test_verbs_options_and_values(self):
        self.assertEqual(self.complete("orai mo"), ["move"])
        self.assertEqual(self.complete("orai move web1 --band"), ["--bandwidth"])
        self.assertEqual(self.complete("orai list --format="), [f"--format={f}" for f in ("csv", "json", "table", "yaml")])


unittest.main(verbosity=2)
