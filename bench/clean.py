"""``bench clean``: remove what dead runs left behind, by their ledgers, and nothing else."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path

from bench.clock import NS_PER_S
from bench.errors import HostError
from bench.host.ledger import LEDGER, RUNS, is_locked, read_ledger, remove_run, run_directories

_EMPTY_NS = 60 * NS_PER_S


@dataclass(slots=True)
class CleanReport:
    """Run ids: removed; live and left alone; broken, with what is wrong, and left alone."""

    removed: list[str] = field(default_factory=list)
    live: list[str] = field(default_factory=list)
    broken: list[tuple[str, str]] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.broken

    def text(self) -> str:
        """What to tell the user, one line for each run."""
        lines = [f"removed what run {run} left" for run in self.removed]
        lines += [f"run {run} is alive: left alone" for run in self.live]
        lines += [f"run {run}: {problem}" for run, problem in self.broken]
        return "\n".join(lines) or "nothing to clean"


def clean(base: Path = RUNS) -> CleanReport:
    """Go through the runs under *base*: remove those whose process (pid and start time) is dead.

    :raises MachineError: when *base* is a symbolic link, another user's, or writable by others.
    """
    report = CleanReport()
    for run in run_directories(base):
        try:
            if not (run / LEDGER).exists() and _is_abandoned(run):
                shutil.rmtree(run)
                report.removed.append(run.name)
                continue
            ledger = read_ledger(run)
            if is_locked(run) or ledger.owner_lives():
                report.live.append(run.name)
                continue
            problems = remove_run(run)
        except HostError as error:
            report.broken.append((run.name, error.message))
        except OSError as error:
            if not run.exists():
                continue  # its own process, or another clean-up, was faster
            report.broken.append((run.name, f"{error.filename or run}: {error.strerror}"))
        else:
            if problems:
                report.broken.append((run.name, "not removed: " + "; ".join(problems)))
            else:
                report.removed.append(run.name)
    return report


def _is_abandoned(run: Path) -> bool:
    """A run killed before it had its ledger: empty but for an unfinished ledger, and too old to be just starting."""
    unfinished = all(entry.name.startswith(f"{LEDGER}.") for entry in os.scandir(run))
    return unfinished and time.time_ns() - run.stat().st_mtime_ns > _EMPTY_NS
