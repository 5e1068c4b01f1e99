"""The experiment: every point of every variable is a run of its own, and what each measured beside the model."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from bench.clock import NS_PER_S
from bench.errors import ResultError
from bench.output import RESULT
from bench.result import RunResult
from bench.sweep.work import run_here
from bench.variables.fit import sentence
from bench.variables.points import Point, Variable

RUN_NS: Final = 600 * NS_PER_S
FIGURES: Final = (
    ("total time", "total_ns"),
    ("the transfer", "transfer_ns"),
    ("downtime", "downtime_ns"),
    ("the longest outage", "outage_ns"),
)
"""What sentences are about: name and member of a sample."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One migration. Times in ns; None: not observed, or the model has no expectation.

    :param transfer_ns: the total time without its set-up: what the model's expectation is of.
    :param outage_ns: the longest of its client flows.
    """

    total_ns: int | None
    transfer_ns: int | None
    downtime_ns: int | None
    rounds: int
    outage_ns: int | None
    expected_transfer_ns: int | None
    expected_downtime_ns: int | None
    expected_rounds: int | None


@dataclass(slots=True)
class Measured:
    """One point: its samples, or why there are none."""

    value: float
    samples: list[Sample] = field(default_factory=list)
    problem: str = ""

    def middle(self, name: str) -> float | None:
        """The median of a member of its samples."""
        found = [getattr(sample, name) for sample in self.samples if getattr(sample, name) is not None]
        return statistics.median(found) if found else None


@dataclass(slots=True)
class Swept:
    """One variable with everything that was measured."""

    variable: Variable
    points: list[Measured] = field(default_factory=list)

    def sentences(self) -> list[str]:
        """What it did to each figure."""
        return [sentence(what, self.variable.name, self.pairs(name)) for what, name in FIGURES]

    def pairs(self, name: str) -> list[tuple[float, float]]:
        """(value, measured) of every sample that has it."""
        return [
            (point.value, float(getattr(sample, name)))
            for point in self.points
            for sample in point.samples
            if getattr(sample, name) is not None
        ]

    def to_json(self) -> dict[str, Any]:
        return {
            "key": self.variable.key,
            "name": self.variable.name,
            "unit": self.variable.unit,
            "points": [asdict(point) for point in self.points],
            "sentences": self.sentences(),
        }


def samples_of(result: RunResult) -> list[Sample]:
    """Of every migration of a run that completed."""
    found = []
    for move in result.migrations or [result]:
        if move.outcome != "completed":
            continue
        predicted = move.prediction.predicted if move.prediction is not None else None
        outages = [flow.outage_ns for flow in move.flows if flow.outage_ns is not None]
        found.append(
            Sample(
                move.total_ns,
                None if move.prediction is None else move.prediction.transfer_ns,
                move.downtime_ns,
                len(move.rounds),
                max(outages, default=None),
                None if predicted is None else predicted.total_ns,
                None if predicted is None else predicted.downtime_ns,
                None if predicted is None else predicted.rounds,
            )
        )
    return found


@dataclass(frozen=True, slots=True)
class Task:
    """A point of a variable that is to be measured; *place* is where its run goes."""

    variable: Variable
    point: Point
    place: Path

    @property
    def has_result(self) -> bool:
        return (self.place / RESULT).exists()

    @property
    def title(self) -> str:
        return f"{self.variable.name}: {self.point.value:g} {self.variable.unit}"


def tasks_of(chosen: Sequence[Variable], output: Path) -> list[Task]:
    """All points, one variable after the other; they run in this order, as two at a time would disturb each other."""
    return [
        Task(variable, point, output / "runs" / f"{variable.key}-{point.value:g}")
        for variable in chosen
        for point in variable.points
    ]


def run_apart(scenario: Path, task: Task, settings: Iterable[str]) -> str:
    """One run in a process of its own. :returns: why it left no result; empty when it did.

    :raises KeyboardInterrupt: when it was stopped.
    """
    done = run_here(scenario, (*settings, *task.variable.also, *task.point.settings), task.place, RUN_NS)
    if done.stopped:
        raise KeyboardInterrupt
    return done.error


def measured(task: Task, problem: str) -> Measured:
    """What a task's run left. :param problem: why it left nothing, if that is known."""
    found = Measured(task.point.value, problem=problem)
    if problem:
        return found
    try:
        result = RunResult.read(task.place)
    except (ResultError, OSError) as error:
        found.problem = str(error)[:300]
        return found
    found.samples = samples_of(result)
    if not found.samples:
        found.problem = result.reason or result.outcome
    return found


def gather(tasks: Sequence[Task], problems: Sequence[str]) -> list[Swept]:
    """Variables with their points, as far as there are *problems* of tasks."""
    swept: dict[str, Swept] = {}
    for task, problem in zip(tasks, problems, strict=False):
        swept.setdefault(task.variable.key, Swept(task.variable)).points.append(measured(task, problem))
    return list(swept.values())


def write(swept: Sequence[Swept], output: Path) -> None:
    """Everything as JSON."""
    text = json.dumps([item.to_json() for item in swept], indent=1) + "\n"
    (output / "variables.json").write_text(text, encoding="utf-8")
