"""A run's directory as it was written, for reading: result, scenario, events, requests, captures.

Directories may come from anywhere: every read is bounded, and what is broken is one :class:`~bench.errors.ResultError`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from bench.errors import ResultError
from bench.output import RESULT
from bench.records import SAMPLES_SUFFIX, TCP_SAMPLE, StructuredArray, load_records
from bench.result import RunResult
from bench.timeline import Event, Timeline

MAX_SCENARIO_BYTES: Final = 4 << 20
MAX_EVENTS_BYTES: Final = 2 << 30
MAX_FLOWS: Final = 4096
MAX_RUNS: Final = 10_000
REPEAT: Final = re.compile(r"(?P<point>.+)\.r(?P<repeat>[0-9]{1,4})")
"""How a sweep names a run's directory: the point, and which of its repeats it is."""


class Recording:
    """One run.

    :param label: how to name it beside others.
    """

    def __init__(self, path: Path, label: str = "") -> None:
        self.path = path
        self.label = label or path.resolve().name

    @cached_property
    def result(self) -> RunResult:
        """:raises ResultError: as :meth:`bench.result.RunResult.read`."""
        return RunResult.read(self.path)

    @cached_property
    def scenario(self) -> dict[str, Any]:
        """The scenario as it was stored; empty when it is missing. :raises ResultError: it is broken."""
        path = self.path / "scenario.json"
        try:
            with path.open("rb") as file:
                data = file.read(MAX_SCENARIO_BYTES + 1)
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise ResultError(f"{path}: {error.strerror}") from None
        if len(data) > MAX_SCENARIO_BYTES:
            raise ResultError(f"{path}: more than {MAX_SCENARIO_BYTES >> 20} MiB")
        try:
            raw = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise ResultError(f"{path}: not JSON: {error}") from None
        if not isinstance(raw, dict):
            raise ResultError(f"{path}: not a scenario: {type(raw).__name__}")
        return raw

    @cached_property
    def events(self) -> list[Event]:
        """Every event in order; none when the file is missing. :raises ResultError: it is broken or too large."""
        path = self.path / "events.jsonl"
        try:
            size = path.stat().st_size
            if size > MAX_EVENTS_BYTES:
                raise ResultError(f"{path}: {size} bytes are more than {MAX_EVENTS_BYTES >> 30} GiB")
            return list(Timeline.read(path))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise ResultError(f"{path}: {error.strerror}") from None

    @cached_property
    def requests(self) -> dict[tuple[str, str], Path]:
        """(host, flow) -> the file of its records, in order; :func:`bench.records.load_records` reads it."""
        found = sorted(
            path
            for path in self.path.glob("requests/*/*.npy")
            if path.is_file() and not path.name.endswith(SAMPLES_SUFFIX)
        )
        if len(found) > MAX_FLOWS:
            raise ResultError(f"{self.path / 'requests'}: {len(found)} flows are more than {MAX_FLOWS}")
        return {(path.parent.name, path.stem): path for path in found}

    def records(self, host: str, flow: str) -> StructuredArray | None:
        """The records of one flow; None: it kept none. :raises ResultError: they are broken."""
        path = self.requests.get((host, flow))
        return None if path is None else load_records(path)

    def samples(self, host: str, flow: str) -> StructuredArray | None:
        """What the kernel said of one flow's connection; None: nobody looked. :raises ResultError: it is broken."""
        path = self.path / "requests" / host / f"{flow}{SAMPLES_SUFFIX}"
        known = (host, flow) in self.requests  # no path that a result makes up
        return load_records(path, TCP_SAMPLE) if known and path.is_file() else None

    @property
    def captures(self) -> list[Path]:
        """Packet captures, relative to the directory."""
        return sorted(path.relative_to(self.path) for path in self.path.glob("captures/*.pcapng") if path.is_file())

    @property
    def logs(self) -> list[Path]:
        """Logs, relative to the directory."""
        return sorted(path.relative_to(self.path) for path in self.path.glob("logs/*.log") if path.is_file())


def find_recordings(places: Iterable[Path]) -> list[Recording]:
    """The runs in *places*, each of which is a run's directory, or one that holds runs (a series, a sweep).

    :raises ResultError: one of them holds none.
    """
    found: list[Recording] = []
    for place in places:
        if (place / RESULT).exists():
            found.append(Recording(place))
            continue
        inner = sorted(path.parent for path in place.glob(f"*/{RESULT}")) if place.is_dir() else []
        if not inner:
            what = "holds no result" if place.is_dir() else "there is no such directory"
            raise ResultError(f"{place}: {what}", "name a directory that `bench run -o` or `bench sweep -o` wrote")
        found += [Recording(path) for path in inner]
    if len(found) > MAX_RUNS:
        raise ResultError(f"{len(found)} runs are more than {MAX_RUNS}", "name fewer directories")
    return found


def read_points(place: Path) -> dict[str, list[RunResult]]:
    """The results in *place* by the point of the sweep that they are repeats of; of a run or a series of runs that is
    no sweep all under one empty label.

    :raises ResultError: it holds none, or one is broken.
    """
    points: dict[str, list[RunResult]] = {}
    for recording in find_recordings([place]):
        match = REPEAT.fullmatch(recording.label) if recording.path != place else None
        points.setdefault(match["point"] if match is not None else "", []).append(recording.result)
    return points
