"""What a sweep runs: its file, the points, and the runs in their order. Pure but for reading the file.

A sweep is a TOML file::

    scenario = "smallest"             # a file, relative to this one, or a shipped scenario
    repeats = 5
    order = "random"                  # so that no slow change of the machine looks like an effect; or "given"
    seed = 1                          # of that order, and of the guests' workloads
    vary_seed = true                  # each repeat has a workload seed of its own, the same at every point
    timeout = "10min"                 # of one run
    [set]                             # at every point
    run.settle = "300ms"
    [grid]                            # every combination
    migration.downtime_limit = ["100ms", "300ms"]
    links.default.bandwidth = ["100Mbit", "1Gbit"]
    [[points]]                        # or a list, which is crossed with the grid where there are both
    name = "plain"
    [[points]]
    name = "throttled"
    migration.auto_converge = true
"""

from __future__ import annotations

import hashlib
import itertools
import json
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from bench.clock import NS_PER_S
from bench.errors import ScenarioError
from bench.scenario import Scenario, load_scenario
from bench.scenario.loading import read_raw
from bench.scenario.values import DurationNs

MAX_RUNS: Final = 10_000
SEED_KEY: Final = "guest.workload.seed"
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9=,._+-]+")
Value = str | int | float | bool | list[Any] | dict[str, Any]


class SweepFile(BaseModel):
    """The file as it is written."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    scenario: str
    title: str = ""
    repeats: int = Field(default=1, ge=1, le=1000)
    order: Literal["random", "given"] = "random"
    seed: int = Field(default=1, ge=0, lt=2**31)
    vary_seed: bool = True
    timeout: DurationNs = 3600 * 10**9
    set: dict[str, Any] = Field(default_factory=dict)
    grid: dict[str, Any] = Field(default_factory=dict)
    points: list[dict[str, Any]] = Field(default_factory=list)

    @field_validator("timeout")
    @classmethod
    def _timeout(cls, value: int) -> int:
        if value < NS_PER_S:
            raise ValueError("a duration of '1s' or more")
        return value


@dataclass(frozen=True)
class Point:
    """One combination.

    :param label: unique in the sweep, and good as a directory's name.
    :param values: key -> value, of what differs between points.
    """

    label: str
    values: tuple[tuple[str, Value], ...]


@dataclass(frozen=True)
class Job:
    """One run. ``settings``: as ``--set`` takes them."""

    point: Point
    repeat: int
    settings: tuple[str, ...]

    @property
    def label(self) -> str:
        return f"{self.point.label}.r{self.repeat}"


@dataclass(frozen=True)
class SweepPlan:
    """All of a sweep.

    :param scenario: the scenario's file.
    :param digest: of everything that decides what is run; a sweep is resumed only with the same.
    """

    title: str
    scenario: Path
    jobs: tuple[Job, ...]
    points: tuple[Point, ...]
    timeout_ns: int
    digest: str


def load_sweep(
    path: Path,
    find_scenario: Any,
    overrides: tuple[str, ...] = (),
    check: Callable[[Scenario, str], object] = lambda _scenario, _where: None,
) -> SweepPlan:
    """Read and validate a sweep: every point's scenario is checked before anything runs.

    :param find_scenario: name -> path of a shipped scenario.
    :param overrides: settings at every point, before those of the file.
    :param check: what else a point's scenario has to pass, with its name for messages.
    :raises ScenarioError: unreadable, not TOML, unknown keys, or a point whose scenario is wrong.
    """
    raw, where = read_raw(path)
    try:
        file = SweepFile.model_validate(raw)
    except ValidationError as problem:
        error = problem.errors()[0]
        key = ".".join(str(part) for part in error["loc"])
        known = f"the keys {', '.join(SweepFile.model_fields)}"
        raise ScenarioError(
            where,
            key,
            error["input"],
            known if error["type"] == "extra_forbidden" else error["msg"].removeprefix("Value error, "),
        ) from None
    scenario = path.parent / file.scenario
    if not scenario.is_file():
        scenario = find_scenario(file.scenario)
    points = _points(file, where)
    common = (*overrides, *(f"{key}={toml_value(value)}" for key, value in flat(file.set).items()))
    if len(points) * file.repeats > MAX_RUNS:
        raise ScenarioError(where, "", f"{len(points) * file.repeats} runs", f"at most {MAX_RUNS}")
    jobs = []
    for point in points:
        settings = (*common, *(f"{key}={toml_value(value)}" for key, value in point.values))
        check(load_scenario(scenario, settings), f"{scenario} at {point.label}")
        varied = any(setting.startswith(SEED_KEY) for setting in settings)
        for repeat in range(1, file.repeats + 1):
            seed = (f"{SEED_KEY}={file.seed + repeat - 1}",) if file.vary_seed and not varied else ()
            jobs.append(Job(point, repeat, (*settings, *seed)))
    if file.order == "random":
        random.Random(file.seed).shuffle(jobs)
    decides = json.dumps([scenario.read_text(encoding="utf-8"), [(job.label, job.settings) for job in jobs]])
    digest = hashlib.sha256(decides.encode()).hexdigest()
    return SweepPlan(file.title or path.stem, scenario, tuple(jobs), tuple(points), file.timeout, digest)


def flat(table: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Nested tables as dotted keys; a key with a dot of its own keeps its quotes' effect (``"h1-s1"`` has none)."""
    found: dict[str, Any] = {}
    for name, value in table.items():
        key = f"{above}.{name}" if above else name
        if isinstance(value, Mapping) and value:
            found |= flat(value, key)
        else:
            found[key] = value
    return found


def toml_value(value: object) -> str:
    """*value* as TOML, on one line."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list):
        return f"[{', '.join(toml_value(item) for item in value)}]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(key)} = {toml_value(item)}" for key, item in value.items()) + "}"
    return json.dumps(str(value))  # TOML's basic strings are JSON's


def _points(file: SweepFile, where: str) -> list[Point]:
    grid = flat(file.grid)
    for key, values in grid.items():
        if not isinstance(values, list) or not values:
            raise ScenarioError(where, f"grid.{key}", values, "a list of values")
    listed: list[tuple[str, dict[str, Any]]] = [("", {})]
    if file.points:
        listed = [
            (str(point.get("name", "")), flat({k: v for k, v in point.items() if k != "name"})) for point in file.points
        ]
    points: dict[str, Point] = {}
    names = _short_names([*grid, *(key for _, values in listed for key in values)])
    for name, values in listed:
        for combination in itertools.product(*grid.values()):
            chosen = dict(zip(grid, combination, strict=True))
            parts = [name] if name else [_part(names[key], value) for key, value in values.items()]
            parts += [_part(names[key], value) for key, value in chosen.items()]
            label = _UNSAFE.sub("-", ",".join(parts)).strip("-.,")[:150] or "only"
            while label in points:
                label = f"{label}+"
            points[label] = Point(label, tuple({**values, **chosen}.items()))
    return list(points.values())


def _short_names(keys: list[str]) -> dict[str, str]:
    """The last part of each key, or as many as tell it from the others."""
    keys = list(dict.fromkeys(keys))
    short = {}
    for key in keys:
        parts = key.split(".")
        for count in range(1, len(parts) + 1):
            name = ".".join(parts[-count:])
            if sum(other == name or other.endswith(f".{name}") for other in keys) == 1:
                break
        short[key] = name
    return short


def _part(name: str, value: object) -> str:
    shown = "+".join(str(item) for item in value) if isinstance(value, list) else str(value)
    return f"{name}={shown.lower() if isinstance(value, bool) else shown}"
