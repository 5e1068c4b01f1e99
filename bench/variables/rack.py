"""A network that stays up while one point after the other is measured on it.

What a point changes is changed on it (links are shaped anew) or made for it (guests with their disks and load, clients,
engines); what is the same at all points (hosts, switches, control plane) is raised once. That is a third of a short
run's time. A point that fails takes the network with it: the next one belongs into another sandbox.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Final

from bench.errors import HostError
from bench.plan import Plan
from bench.runner import Runner
from bench.scenario import Scenario
from bench.testbed import Testbed
from bench.timeline import Event
from bench.watch import Watch

POINT_S: Final = 120


class PointWatch(Watch):
    """Without the frames, which tell of relearning: no variable is about that, and tcpdump ends slowly."""

    def start_frames(self, stack: contextlib.ExitStack, testbed: Testbed) -> None:
        del stack, testbed


class Rack:
    """Use it as a context, within a sandbox and in its main thread.

    :param directory: the run directory; *record_cgroup* as of :class:`bench.runner.Runner`.
    """

    def __init__(self, directory: Path, record_cgroup: Callable[[Path], Path]) -> None:
        self._directory = directory
        self._record_cgroup = record_cgroup
        self._testbed: Testbed | None = None

    def __enter__(self) -> Rack:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def run(self, scenario: Scenario, plan: Plan, output: Path) -> None:
        """Run one point as :class:`bench.runner.Runner` does, into *output*.

        :raises BenchError: it cannot be, or takes longer than :data:`POINT_S`.
        :raises KeyboardInterrupt: it was stopped.
        """
        try:
            with _limited(POINT_S):
                testbed = self._prepared(scenario, plan)
                runner = Runner(
                    scenario,
                    plan,
                    self._directory,
                    output,
                    _unheard,
                    record_cgroup=self._record_cgroup,
                    testbed=testbed,
                    watch=PointWatch(scenario, plan, self._directory, output, _unheard),
                )
                runner.run()
            if runner.notice:
                shutil.rmtree(output, ignore_errors=True)  # a result cut short is no measurement
                raise KeyboardInterrupt
        except BaseException:
            self.close()
            raise

    def _prepared(self, scenario: Scenario, plan: Plan) -> Testbed:
        testbed = self._testbed
        if testbed is None:
            testbed = self._testbed = Testbed(scenario, plan, self._directory, lambda _text: None)
            testbed.raise_network()
        else:
            testbed.renew(scenario, plan)
        testbed.boot_guests()
        return testbed

    def close(self) -> None:
        """Take down what is up. Idempotent."""
        testbed, self._testbed = self._testbed, None
        if testbed is not None:
            testbed.close()
            testbed.guests.forget_all()


def _unheard(_event: Event) -> None:
    """Nobody looks at a single point."""


@contextlib.contextmanager
def _limited(seconds: int) -> Iterator[None]:
    """:raises HostError: in the body, when it takes longer."""

    def late(_number: int, _frame: FrameType | None) -> None:
        raise HostError(f"it took longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
