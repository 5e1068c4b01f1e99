"""The directory of a sweep: ``sweep.json`` (what is to be run), a directory for each run, ``sweep.csv`` (a row each).

A run that left no result is a row too: ``failed.json`` in its directory says why. Resuming skips both.
"""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bench.errors import ResultError, ScenarioError
from bench.figures import values
from bench.output import RESULT, OutputDirectory
from bench.result import RunResult
from bench.sweep.plan import Job, SweepPlan

SCHEMA: Final = "migration-bench/sweep/1"
MAX_BYTES: Final = 64 << 20
FAILED: Final = "failed.json"
FIGURES: Final = ("downtime", "total", "outage.max", "relearn.max", "sent", "rounds", "flows.died")


@dataclass(frozen=True)
class Row:
    """What became of a job. ``error``: why it left no result; empty when it did."""

    job: Job
    result: RunResult | None
    error: str


class SweepStore:
    """One sweep's directory.

    :raises ScenarioError: the directory holds another sweep, or something that is none.
    """

    def __init__(self, directory: Path, plan: SweepPlan) -> None:
        self.directory = directory
        self.plan = plan
        path = directory / "sweep.json"
        if path.exists():
            if self._read(path).get("digest") != plan.digest:
                allowed = "the same sweep, to resume it; another one needs another directory"
                raise ScenarioError("-o", "", str(directory), allowed)
            return
        if directory.is_dir() and any(directory.iterdir()):
            raise ScenarioError("-o", "", str(directory), "a new or an empty directory, or this sweep's, to resume it")
        output = OutputDirectory(directory)
        described = {
            "schema": SCHEMA,
            "title": plan.title,
            "digest": plan.digest,
            "scenario": str(plan.scenario),
            "runs": [{"label": job.label, "settings": list(job.settings)} for job in plan.jobs],
        }
        try:
            path.write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            output.take_back()
            raise ScenarioError("-o", "", str(directory), f"a place to write to ({error.strerror})") from None

    @staticmethod
    def _read(path: Path) -> dict[str, Any]:
        try:
            with path.open("rb") as file:
                raw = json.loads(file.read(MAX_BYTES))
        except (OSError, ValueError, RecursionError) as error:
            raise ResultError(f"{path}: not a sweep: {error}") from None
        if not isinstance(raw, dict) or raw.get("schema") != SCHEMA:
            raise ResultError(f"{path}: not a sweep that this version reads ({SCHEMA})")
        return raw

    def place(self, job: Job) -> Path:
        return self.directory / job.label

    def is_done(self, job: Job) -> bool:
        return (self.place(job) / RESULT).exists() or (self.place(job) / FAILED).exists()

    def pending(self, *, retry: bool = False) -> list[Job]:
        """The jobs that are still to be run, in order; what an interrupted one left is removed.

        :param retry: those that failed, too.
        """
        found = []
        for job in self.plan.jobs:
            failed = (self.place(job) / FAILED).exists()
            if self.is_done(job) and not (failed and retry):
                continue
            self.forget(job)
            found.append(job)
        return found

    def forget(self, job: Job) -> None:
        """Remove what a run left that has to be made again."""
        if self.place(job).exists():
            shutil.rmtree(self.place(job))

    def note_failure(self, job: Job, error: str, output: str = "") -> None:
        """A run left no result: a row that says why."""
        place = self.place(job)
        place.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"error": error, "output": output[-4000:]}, indent=1)
        (place / FAILED).write_text(text + "\n", encoding="utf-8")

    def row(self, job: Job) -> Row | None:
        """What became of *job*; None while it is pending."""
        place = self.place(job)
        if (place / RESULT).exists():
            try:
                return Row(job, RunResult.read(place), "")
            except ResultError as error:
                return Row(job, None, error.message)
        if not (place / FAILED).exists():
            return None
        try:
            with (place / FAILED).open("rb") as file:
                return Row(job, None, str(json.loads(file.read(1 << 20)).get("error")))
        except (OSError, ValueError, AttributeError, RecursionError):
            return Row(job, None, "it failed")

    def rows(self) -> Iterator[Row]:
        return (row for job in self.plan.jobs if (row := self.row(job)) is not None)

    def write_table(self) -> Path:
        """``sweep.csv``: a row for each run that has ended, in the order in which they were to be run."""
        keys = list(dict.fromkeys(key for point in self.plan.points for key, _ in point.values))
        path = self.directory / "sweep.csv"
        head = [
            "run",
            "point",
            "repeat",
            *keys,
            "state",
            "outcome",
            *FIGURES,
            "expectations_failed",
            "trusted",
            "error",
        ]
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(head)
            for row in self.rows():
                point = dict(row.job.point.values)
                writer.writerow(
                    [
                        row.job.label,
                        row.job.point.label,
                        row.job.repeat,
                        *(point.get(key, "") for key in keys),
                        "failed" if row.result is None else "done",
                        *_measured(row.result),
                        row.error,
                    ]
                )
        return path


def _measured(result: RunResult | None) -> list[object]:
    if result is None:
        return [""] * (len(FIGURES) + 3)
    found: list[object] = [result.outcome]
    for figure in FIGURES:
        numbers = values(figure, result, result)
        found.append(round(max(numbers)) if numbers else "")
    return [*found, sum(not item.ok for item in result.expectations), result.trust.ok]
