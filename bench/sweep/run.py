"""Running a sweep: one run after the other here, or each on a machine of its own by Dask; and telling of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from bench.errors import ResultError
from bench.report.text import clean, duration
from bench.result import RunResult
from bench.sweep.plan import Job, SweepPlan
from bench.sweep.store import Row, SweepStore
from bench.sweep.work import Done, run_here, unpack


class Executor(Protocol):
    """Runs jobs, in any order, and yields each with how it ended."""

    def run(self, store: SweepStore, jobs: Iterable[Job]) -> Iterator[tuple[Job, Done]]: ...


class Here:
    """One run at a time on this machine: a second one would disturb what is measured."""

    def run(self, store: SweepStore, jobs: Iterable[Job]) -> Iterator[tuple[Job, Done]]:
        for job in jobs:
            yield job, run_here(store.plan.scenario, job.settings, store.place(job), store.plan.timeout_ns)


def run_sweep(store: SweepStore, executor: Executor, tell: Callable[[str], None], *, retry: bool = False) -> int:
    """Run what is pending; returns how many runs were wrong: without a result, not completed, or not as expected.

    :raises KeyboardInterrupt: a run was stopped by a signal; what has ended is kept, and the sweep can be resumed.
    """
    plan, jobs = store.plan, store.pending(retry=retry)
    total, done = len(plan.jobs), len(plan.jobs) - len(jobs)
    tell(f"{total} runs of {len(plan.points)} points" + (f", {done} are done" if done else ""))
    began, ended = time.monotonic(), 0
    try:
        for job, how in executor.run(store, jobs):
            if how.packed:
                try:
                    unpack(how.packed, store.place(job))
                except ResultError as error:
                    how = Done(how.code, error.message, how.output)
            if how.stopped:
                raise KeyboardInterrupt
            if how.error:
                store.note_failure(job, how.error, how.output)
            ended += 1
            spent = time.monotonic() - began
            row = store.row(job)
            tell(_line(done + ended, total, row, spent / ended * (len(jobs) - ended)))
    finally:
        store.write_table()
    return sum(_wrong(row) for row in store.rows())


def _line(number: int, total: int, row: Row | None, left_s: float) -> str:
    remaining = f"; about {_time(left_s)} left" if number < total else ""
    if row is None:
        return f"{number:4} of {total}  no result{remaining}"
    return f"{number:4} of {total}  {row.job.label}: {_outcome(row)}{remaining}"


def _outcome(row: Row) -> str:
    if row.result is None:
        return f"FAILED: {clean(row.error)}"
    result = row.result
    outages = [flow.outage_ns for flow in result.flows if flow.outage_ns is not None]
    failed = sum(not item.ok for item in result.expectations)
    longest = duration(max(outages, default=None))
    return (
        f"{result.outcome}, downtime {duration(result.downtime_ns)}, longest outage {longest}"
        + (f", {failed} expectations failed" if failed else "")
        + ("" if result.trust.ok else ", doubtful")
    )


def _wrong(row: Row) -> bool:
    result: RunResult | None = row.result
    if result is None:
        return True
    migrations = result.migrations or [result]
    good = all(one.outcome == "completed" and one.memory.identical is not False for one in migrations)
    return not good or any(not item.ok for item in result.expectations)


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def describe_plan(plan: SweepPlan) -> Iterator[str]:
    """What would be run, a line for each run."""
    for number, job in enumerate(plan.jobs, 1):
        yield f"{number:4}  {job.label}  {' '.join(job.settings)}"
