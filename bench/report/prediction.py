"""Prediction beside measurement beside the lower bound, for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.text import Text

from bench.report.text import NOT_SEEN, clean, duration, heading, share, show, table
from bench.result import MigrationResult, PredictionResult
from bench.units import format_bit_rate, format_bytes


def print_prediction(migration: MigrationResult, prediction: PredictionResult, console: Console) -> None:
    """One row for each quantity. Transfer: the total time without the set-up, of which the model says nothing."""
    heading(console, "Prediction", "made before the migration; bound: least of any engine")
    guessed, least, efficiency = prediction.predicted, prediction.bound, prediction.efficiency
    completed = migration.outcome == "completed"
    if guessed is not None or least is not None:
        rows = table(console, "", "predicted", "measured", "bound", "bound/measured")
        rows.add_row(
            "rounds",
            NOT_SEEN if guessed is None else f"{guessed.rounds:,}",
            f"{len(migration.rounds):,}" if completed else NOT_SEEN,
            "",
            "",
        )
        rows.add_row(
            "sent",
            _size(None if guessed is None else guessed.bytes),
            _size(migration.bytes_sent if completed else None),
            _size(None if least is None else least.bytes),
            share(efficiency.bytes),
        )
        rows.add_row(
            "transfer",
            duration(None if guessed is None else guessed.total_ns),
            duration(prediction.transfer_ns),
            duration(None if least is None else least.total_ns),
            share(efficiency.total),
        )
        rows.add_row(
            "downtime",
            duration(None if guessed is None else guessed.downtime_ns),
            duration(migration.downtime_ns if completed else None),
            duration(None if least is None else least.downtime_ns),
            share(efficiency.downtime),
        )
        show(console, rows)
    if guessed is not None and not guessed.converged:
        console.print(Text("the downtime limit was predicted not to be reached", style="yellow"))
    inputs = _inputs(prediction.inputs)
    if inputs:
        console.print(Text(f"from {inputs}", style="dim"))
    if prediction.note:
        console.print(Text(f"no prediction: {clean(prediction.note)}" if guessed is None else clean(prediction.note)))


def _size(size_bytes: int | None) -> str:
    return NOT_SEEN if size_bytes is None else format_bytes(size_bytes)


def _inputs(inputs: Mapping[str, Any]) -> str:
    """The inputs that matter most, as far as they are there: a result may have come from anywhere."""

    def number(key: str) -> int | None:
        value = inputs.get(key)
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    parts = []
    rate, working_set = number("dirty_bytes_per_s"), number("working_set_bytes")
    if rate is not None:
        parts.append(f"{format_bytes(rate)}/s dirtied")
    if working_set is not None:
        parts.append(f"working set {format_bytes(working_set)}")
    goodput, round_trip = number("goodput_bps"), number("round_trip_ns")
    if goodput is not None:
        parts.append(f"goodput {format_bit_rate(goodput)}")
    if round_trip is not None:
        parts.append(f"round trip {duration(round_trip)}")
    levers = inputs.get("levers")
    wire_share = levers.get("wire_share") if isinstance(levers, dict) else None
    if isinstance(wire_share, float) and wire_share < 1:
        parts.append(f"pages compress to {share(wire_share)}")
    return ", ".join(parts)
