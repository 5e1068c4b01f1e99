from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "report"))

from made_up import MS, migration, result

from bench.analysis.comparison import FigureComparison, compare_runs, summary
from bench.result import RunResult


def runs(count: int, *, seed: int, slower: float = 1.0) -> list[RunResult]:
    """Runs that vary; all times of them *slower* times as long."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        factor = slower * rng.normal(1, 0.05)
        made.append(
            result(
                migrations=[
                    migration(
                        downtime_ns=round(23 * MS * factor),
                        total_ns=round(6100 * MS * rng.normal(1, 0.05)),
                        bytes_sent=round(900e6 * rng.normal(1, 0.02)),
                    )
                ]
            )
        )
    return made


def of(items: tuple[FigureComparison, ...], figure: str) -> FigureComparison:
    return next(item for item in items if item.figure == figure)


def test_a_slower_figure_is_said_to_be_and_counts() -> None:
    found = compare_runs(runs(10, seed=1), runs(10, seed=2, slower=1.5))
    downtime = of(found.figures, "downtime")
    assert downtime.verdict == "slower"
    assert downtime.worse is True
    assert summary(downtime).startswith("slower by ")
    assert found.worse
    assert found.unit == "run"
    assert of(found.figures, "rounds").verdict == "same"


def test_a_faster_one_does_not() -> None:
    found = compare_runs(runs(10, seed=1, slower=1.5), runs(10, seed=2), ["downtime"])
    assert found.figures[0].verdict == "faster"
    assert not found.worse


def test_equal_sets_are_seldom_told_apart() -> None:
    told = 0
    for seed in range(0, 100, 2):
        told += any(item.worse is not None for item in compare_runs(runs(6, seed=seed), runs(6, seed=seed + 1)).figures)
    assert told <= 6  # of 50, at a risk of 5 in 100


def test_too_few_repeats_say_how_many_more_would() -> None:
    found = compare_runs(runs(2, seed=1), runs(2, seed=2, slower=1.5), ["downtime"])
    assert found.figures[0].verdict == "cannot tell"
    assert "more runs of each would" in summary(found.figures[0], found.unit)


def test_the_migrations_of_a_run_count_when_there_is_one_run() -> None:
    one = result(migrations=[migration(downtime_ns=(20 + number) * MS) for number in range(5)])
    other = result(migrations=[migration(downtime_ns=(60 + number) * MS) for number in range(5)])
    found = compare_runs([one], [other], ["downtime"])
    assert found.unit == "migration"
    assert found.figures[0].verdict == "slower"


def test_what_one_side_lacks_is_said() -> None:
    cancelled = result(migrations=[migration(downtime_ns=None, outcome="cancelled")])
    found = compare_runs([result()], [cancelled], ["downtime"])
    assert summary(found.figures[0]) == "not observed in B"


def test_an_unknown_figure_is_refused() -> None:
    with pytest.raises(ValueError, match="one of"):
        compare_runs([result()], [result()], ["nothing"])


def test_a_hundred_runs_on_each_side_do_not_take_long() -> None:
    a, b = runs(100, seed=1), runs(100, seed=2)
    began = time.process_time()
    compare_runs(a, b)
    assert time.process_time() - began < 10  # a bound against the worst only; benchmarks/report.py measures
