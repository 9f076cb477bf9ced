# SPDX-License-Identifier: Apache-2.0
"""What the stories share. A failed story shows the newest lines of every log of its lab."""

import signal

import pytest


def interrupt(_number, _frame):
    raise KeyboardInterrupt


def pytest_addoption(parser):
    parser.addoption("--long", action="store_true", help="the whole fault matrix, not only its representative part")


def pytest_configure(config):
    config.addinivalue_line("markers", "long: runs with --long only")
    # As Ctrl-C: fixtures are torn down. Any other exception would be one test's failure, and the rest would go on.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--long"):
        items[:] = [item for item in items if not item.get_closest_marker("long")]


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


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    report = (yield).get_result()
    if report.when == "call" and report.failed:
        from lab import standing
        for lab in standing:
            report.sections.append(("logs of the lab", lab.logs()))
