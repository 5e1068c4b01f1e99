"""A scenario whose ``migration.mode`` is a list stands for one scenario for each of them, run one after the other."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from bench.errors import ScenarioError
from bench.output import RESULT
from bench.result import RunResult
from bench.scenario import Scenario, parse_scenario, read_raw

MAX_RUNS = 50
_LABEL: Final = re.compile(r"([0-9]{1,4})-[a-z-]{1,40}")


def load_scenarios(path: Path, settings: Iterable[str] = ()) -> tuple[Scenario, ...]:
    """The scenarios of a file, in the order of their modes; most files have one.

    :param settings: as of :func:`bench.scenario.load_scenario`; ``migration.mode=["precopy", "postcopy"]`` works too.
    :raises ScenarioError: unreadable, not TOML, invalid, or an empty or too long list.
    """
    raw, where = read_raw(path, settings)
    migration = raw.get("migration")
    modes = migration.get("mode") if isinstance(migration, dict) else None
    if not isinstance(modes, list):
        return (parse_scenario(raw, where),)
    if not 1 <= len(modes) <= MAX_RUNS:
        raise ScenarioError(where, "migration.mode", modes, f"one mode, or a list of 1 to {MAX_RUNS}")
    scenarios = []
    for mode in modes:
        one = copy.deepcopy(raw)
        one["migration"]["mode"] = mode
        scenarios.append(parse_scenario(one, where))
    return tuple(scenarios)


def labels(scenarios: Iterable[Scenario]) -> list[str]:
    """A name for each run of a series, which is also that of its directory: ``1-precopy``, ``2-postcopy``."""
    return [f"{number}-{scenario.migration.mode}" for number, scenario in enumerate(scenarios, 1)]


def read_labels(directory: Path) -> list[str]:
    """The labels of the runs that a series has put into *directory*, in order; empty when it is no series."""
    found = [match for place in directory.glob("*-*") if (match := _LABEL.fullmatch(place.name)) and place.is_dir()]
    return [match[0] for match in sorted(found, key=lambda match: int(match[1]))]


def read_series(directory: Path) -> list[tuple[str, RunResult | None]]:
    """The results of a series by their labels, in order; None where a run left none; empty when it is no series.

    :raises ResultError: one of them is broken.
    """
    places = [directory / label for label in read_labels(directory)]
    return [(place.name, RunResult.read(place) if (place / RESULT).exists() else None) for place in places]
