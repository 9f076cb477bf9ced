# SPDX-License-Identifier: Apache-2.0
"""What the stories share. A failed story shows the newest lines of every log of its lab.

Several runs of pytest at a time divide the stories among themselves: each takes the next one that no other has taken, as
a folder in the folder that --share names. Stories with one name in their mark `together` all go to the same run.
"""

import signal
from pathlib import Path

import machine
import pytest


def interrupt(_number, _frame):
    raise KeyboardInterrupt


def pytest_addoption(parser):
    parser.addoption("--long", action="store_true", help="the whole fault matrix, not only its representative part")
    parser.addoption("--share", type=Path, metavar="FOLDER", help="only what no other run with this (new) folder has taken")


def pytest_configure(config):
    config.addinivalue_line("markers", "long: runs with --long only")
    config.addinivalue_line("markers", "alone: measures, so that no other story may run at the same time")
    config.addinivalue_line("markers", "together(name): never at the same time as others with this name")
    # As Ctrl-C: fixtures are torn down. Any other exception would be one test's failure, and the rest would go on.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--long"):
        items[:] = [item for item in items if not item.get_closest_marker("long")]


def take(items, folder):
    """The stories that are this run's, one by one, at the moment when the next one is wanted."""
    taken = {}
    for number, item in enumerate(items):
        mark = item.get_closest_marker("together")
        name = mark.args[0] if mark else str(number)
        if name not in taken:
            try:
                (folder / name).mkdir(parents=True)
                taken[name] = True
            except FileExistsError:
                taken[name] = False
        if taken[name]:
            yield item


def pytest_runtestloop(session):
    folder = session.config.getoption("--share")
    if not folder or session.testsfailed or session.config.option.collectonly:
        return None  # as pytest does it
    stories = take(session.items, folder)
    story = next(stories, None)
    while story:
        following = next(stories, None)  # pytest keeps the fixtures that both have
        story.config.hook.pytest_runtest_protocol(item=story, nextitem=following)
        story = following
    return True


@pytest.fixture
def labs():
    """Makes labs that end with the test: labs("a", "b", rate=...)."""
    from lab import Lab

    made = []

    def make(*names, **options):
        made.append(Lab(*names, **options))
        return made[-1]
    yield make
    for lab in made:
        lab.close()


@pytest.fixture
def lab(labs):
    return labs("a", "b")


@pytest.fixture
def guests():
    """Makes tiny guests whose threads end with the test."""
    from tiny import TinyGuest

    made = []

    def make(*arguments, **options):
        made.append(TinyGuest(*arguments, **options))
        return made[-1]
    yield make
    for guest in made:
        guest.close()


@pytest.fixture
def userfaultfd():
    """Memory can follow a guest; userfaultfd(False) forbids it again. It is a setting of the whole machine: stories with it bear the
    mark together("userfaultfd"), and other runs of pytest wait."""
    with machine.userfaultfd() as allow:
        yield allow


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    report = (yield).get_result()
    if report.failed:
        from lab import standing
        for lab in standing:
            report.sections.append(("logs of the lab", lab.logs()))
