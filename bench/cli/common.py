"""What several commands share: finding a scenario, options, exit codes, and how a run's end is told."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Final

from rich.console import Console

import bench
from bench.output import OutputDirectory
from bench.series import read_labels

if TYPE_CHECKING:
    from bench.result import RunResult

REFERENCE: Final = "scenarios/reference.toml"
BAD_INPUT: Final = 2
STOPPED: Final = 128  # exit codes above it: by a signal


def find_scenario(name: str) -> Path:
    """A scenario by path, or one of the shipped ones by name (``smallest``, ``field/fdb-flap``)."""
    path = Path(name)
    if path.exists() or path.suffix or path.is_absolute():
        return path
    shipped = Path(bench.__file__).resolve().parents[1] / "scenarios" / f"{name}.toml"
    return shipped if shipped.exists() else path


def exit_code(result: RunResult) -> int:
    """0 when every migration of the run completed with identical memory, and every expectation held."""
    migrations = result.migrations or [result]
    good = all(item.outcome == "completed" and item.memory.identical is not False for item in migrations)
    return 0 if good and all(expectation.ok for expectation in result.expectations) else 1


def conclude(output: OutputDirectory, console: Console) -> None:
    """Whatever ended the run: say where its result or at least its logs are; leave nothing when there is nothing."""
    if output.path.exists() and output.empty:
        output.take_back()
    if output.path.exists():
        output.hand_to_user()
    with contextlib.suppress(OSError, SystemExit):  # nobody reads any more
        if console.is_terminal:
            console.show_cursor(True)  # a killed progress display could not
        if output.path.exists():
            what = "result" if output.has_result else "results" if read_labels(output.path) else "no result; logs"
            console.print(f"{what}: {output.path}", soft_wrap=True, highlight=False)


@contextlib.contextmanager
def notices_raise() -> Iterator[None]:
    """SIGTERM and SIGHUP as exceptions, like Ctrl-C, around the sandbox, which has handlers of its own."""
    from bench.host.sandbox import Terminated  # noqa: PLC0415

    def notice(signum: int, _frame: FrameType | None) -> None:
        raise Terminated(signum)

    former = {signum: signal.signal(signum, notice) for signum in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for signum, handler in former.items():
            signal.signal(signum, handler)


def control_plane(word: str | None) -> list[str]:
    """What ``--controller`` sets: a word, the file of an app, or ``tcp:HOST:PORT``."""
    if word is None:
        return []
    if word.startswith("tcp:"):
        return ['controller.app="external"', f'controller.address="{word}"']
    return [f'controller.app="{word}"']
