"""What every test gets: root tests skip by naming what is missing, and never in CI; and turns, when several run.

`make test` spreads the tests over several processes (pytest-xdist). Three things keep that sound:

- tests of a module whose fixtures are shared (scope module or class) stay together in one process;
- a test marked ``alone`` measures, or looks at what all runs on this machine share: no other test runs meanwhile, but
  those that need neither root nor real parts, which take what processor time is left over;
- of the tests that raise a whole testbed (marked ``testbed``, or in a module that calls `bench` as a user does) only so
  many run at a time: each keeps a processor busy, while most others wait for links and timers;
- everything else works in directories, namespaces and processes of its own.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import shutil
import signal
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import IO

import pytest

TESTBEDS = (os.cpu_count() or 1) + 1
TESTBEDS_AHEAD = 0.6
ROOT = Path(__file__).resolve().parent.parent

# A shell starts what runs in its background with SIGINT ignored, and children inherit that: tests that press Ctrl-C
# need it as a terminal has it.
signal.signal(signal.SIGINT, signal.default_int_handler)


def _missing() -> str:
    """What a root test lacks on this machine; empty when nothing."""
    if os.geteuid() != 0:
        return "root"
    for program in ("mnexec", "ovs-vswitchd", "ovsdb-server", "ovs-vsctl", "tc", "ip", "tcpdump"):
        if shutil.which(program) is None:
            return f"the program {program} (run `make setup` as root)"
    return ""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if not item.get_closest_marker("xdist_group") and (group := _group(item)):
            item.add_marker(pytest.mark.xdist_group(group))
    if hasattr(config, "workerinput"):
        _order(items)
    missing = _missing()
    if not missing:
        return
    if os.environ.get("CI"):
        pytest.exit(f"CI must run every test, but this machine lacks {missing}", returncode=1)
    for item in items:
        if item.get_closest_marker("root"):
            item.add_marker(pytest.mark.skip(reason=f"needs {missing}"))


def _order(items: list[pytest.Item]) -> None:
    """Tests that need the machine for themselves first, one after the other, so that the others wait but once; what may
    run beside them; then testbeds evenly among all else, so that there is always something to do beside them.
    """
    testbeds = [item for item in items if _raises_testbed(item)]
    others = [item for item in items if not _raises_testbed(item)]
    place = {item: number / len(others) for number, item in enumerate(others)}
    # They take longest: the last to end are better short ones.
    place |= {item: TESTBEDS_AHEAD * number / len(testbeds) for number, item in enumerate(testbeds)}
    items.sort(key=lambda item: (not _alone(item), not _light(item), place[item]))


def _alone(item: pytest.Item) -> bool:
    return item.get_closest_marker("alone") is not None


def _light(item: pytest.Item) -> bool:
    """Whether a test disturbs none that measures when it gets only what the processors have left over."""
    return not (_alone(item) or item.get_closest_marker("root") or _raises_testbed(item))


def _raises_testbed(item: pytest.Item) -> bool:
    return item.get_closest_marker("testbed") is not None or _calls_bench(getattr(item, "module", None))


@functools.cache
def _calls_bench(module: object) -> bool:
    """Whether a test module has something of bench_runs."""
    return any(getattr(value, "__module__", "") == "bench_runs" for value in vars(module or object).values())


def _group(item: pytest.Item) -> str:
    """The tests that one process runs; empty when any process may run this one."""
    if _alone(item):
        return "alone"
    definitions = getattr(item, "_fixtureinfo").name2fixturedefs.values()  # noqa: B009 - pytest has no public way
    scopes = {definition.scope for chain in definitions for definition in chain}
    return item.nodeid.partition("::")[0] if scopes & {"module", "class"} else ""


class Turns:
    """Who may run now: one test that is ``alone``, or others, of which so many raise a testbed. Shared by the processes
    of one pytest call.

    Whoever wants the machine for itself holds the gate while it waits, so that no others begin meanwhile.
    """

    def __init__(self, directory: Path) -> None:
        self._gate = (directory / "turns.gate").open("w")
        self._turn = (directory / "turns").open("w")
        self._stands = [(directory / f"turns.testbed{number}").open("w") for number in range(TESTBEDS)]
        self._stand: IO[str] | None = None
        self._alone = False

    def begin(self, *, alone: bool, testbed: bool) -> None:
        if self._alone:
            return
        if testbed and not alone:
            self._take_stand()
        fcntl.flock(self._gate, fcntl.LOCK_EX)
        fcntl.flock(self._turn, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        self._alone = alone
        if not alone:
            fcntl.flock(self._gate, fcntl.LOCK_UN)

    def end(self, *, keep: bool) -> None:
        """:param keep: the test that follows is ``alone`` as well."""
        if self._alone and keep:
            return
        self._alone = False
        if self._stand is not None:
            fcntl.flock(self._stand, fcntl.LOCK_UN)
            self._stand = None
        fcntl.flock(self._turn, fcntl.LOCK_UN)
        fcntl.flock(self._gate, fcntl.LOCK_UN)

    def _take_stand(self) -> None:
        """Wait for one of them to be free. Files' locks cannot be waited for together."""
        while self._stand is None:
            for stand in self._stands:
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(stand, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    self._stand = stand
                    return
            time.sleep(0.05)


_TURNS = pytest.StashKey[Turns]()


def pytest_sessionstart(session: pytest.Session) -> None:
    if hasattr(session.config, "workerinput"):
        factory = getattr(session.config, "_tmp_path_factory")  # noqa: B009 - its fixture comes too late
        session.config.stash[_TURNS] = Turns(factory.getbasetemp().parent)


@pytest.hookimpl(wrapper=True, tryfirst=True)  # outermost: a test's time limit is not used up by waiting
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> Generator[None, object, object]:
    turns = item.config.stash.get(_TURNS, None)
    if turns is None:
        return (yield)
    if _light(item):
        with _leftovers():
            return (yield)
    turns.begin(alone=_alone(item), testbed=_raises_testbed(item))
    try:
        return (yield)
    finally:
        turns.end(keep=nextitem is not None and _alone(nextitem))


@contextlib.contextmanager
def _leftovers() -> Iterator[None]:
    """Within, this process comes last at the processors. (Who is not root could not go back, and runs nothing else.)"""
    if os.geteuid() != 0:
        yield
        return
    priority = os.getpriority(os.PRIO_PROCESS, 0)
    os.setpriority(os.PRIO_PROCESS, 0, 19)
    try:
        yield
    finally:
        os.setpriority(os.PRIO_PROCESS, 0, priority)


@pytest.fixture
def project() -> Path:
    """The checkout's top directory."""
    return ROOT
