"""A pytest plugin, for projects that test a controller, a topology or a network's settings of their own.

Installed with the bench; pytest finds it by itself::

    @pytest.mark.bench("smallest", topo="mine.py:Ring")
    def test_my_topology(bench_run):
        result = bench_run("migration.downtime_limit=100ms", "expect.downtime=< 300ms", repeat=3)
        assert result.relearn.switches[0].frames_flooded == 0

A run that leaves no result, does not complete, or in which an expectation fails, fails the test with what was measured.
Result directories stay below pytest's ``tmp_path``. Tests skip where a run is not possible (no root), never in CI.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

if TYPE_CHECKING:
    from bench.result import RunResult

TIMEOUT_NS: Final = 1800 * 10**9


def pytest_configure(config: pytest.Config) -> None:
    """The marker that gives the defaults of ``bench_run``."""
    config.addinivalue_line(
        "markers", "bench(scenario, *settings, topo=None, repeat=None): what the fixture bench_run runs by default"
    )


class BenchRun:
    """What the fixture is: call it to run.

    :ivar directories: those of the runs so far, in order.
    """

    def __init__(self, place: Path, defaults: tuple[Any, ...], options: dict[str, Any]) -> None:
        self._place = place
        self._scenario = str(defaults[0]) if defaults else "smallest"
        self._settings = tuple(str(setting) for setting in defaults[1:])
        self._options = options
        self.directories: list[Path] = []

    def __call__(
        self,
        *settings: str,
        scenario: str | Path | None = None,
        topo: str | None = None,
        repeat: int | None = None,
        check: bool = True,
    ) -> RunResult:
        """One run in a process of its own; returns its result.

        :param settings: as ``bench run --set`` takes them, on top of the marker's.
        :param check: fail the test unless the run completed and all its expectations held.
        """
        from bench.cli.common import find_scenario  # noqa: PLC0415 - loaded by every pytest, needed by few
        from bench.result import RunResult  # noqa: PLC0415
        from bench.sweep.work import run_here  # noqa: PLC0415

        topo = topo if topo is not None else self._options.get("topo")
        repeat = repeat if repeat is not None else self._options.get("repeat")
        chosen = [*self._settings, *settings]
        if topo is not None:
            chosen.append(f'network.topology="{topo}"')
        if repeat is not None:
            chosen.append(f"run.repeat={repeat}")
        directory = self._place / f"bench-{len(self.directories) + 1}"
        self.directories.append(directory)
        done = run_here(find_scenario(str(scenario or self._scenario)), chosen, directory, TIMEOUT_NS)
        if done.error:
            pytest.fail(f"the run left no result: {done.error}\n{done.output[-4000:]}", pytrace=False)
        result = RunResult.read(directory)
        if check:
            _check(result, directory)
        return result


def _check(result: RunResult, directory: Path) -> None:
    from bench.analysis.expectations import describe  # noqa: PLC0415

    problems = [
        f"migration {number}: {one.outcome}: {one.reason}"
        for number, one in enumerate(result.migrations or [result], 1)
        if one.outcome != "completed"
    ]
    problems += [f"{item.expectation}: measured {describe(item)}" for item in result.expectations if not item.ok]
    if problems:
        doubts = [f"doubt these numbers: {reason}" for reason in result.trust.reasons]
        pytest.fail("\n".join([*problems, *doubts, f"all of it: {directory}"]), pytrace=False)


@pytest.fixture
def bench_run(request: pytest.FixtureRequest, tmp_path: Path) -> BenchRun:
    """Runs a migration; see :class:`BenchRun`."""
    if os.geteuid() != 0:
        reason = "a run of the bench needs root"
        if os.environ.get("CI"):
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
    marker = request.node.get_closest_marker("bench")
    return BenchRun(tmp_path, marker.args if marker else (), dict(marker.kwargs) if marker else {})
