"""Figures of bars: outage budgets, rounds, prediction beside measurement and bound."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from bench.clock import NS_PER_S
from bench.report.plots.parts import (
    ACCENT,
    INK,
    MUTED,
    STAGES,
    Figure,
    axis,
    figure,
    label,
    ms,
)
from bench.report.text import PAGE_BYTES, duration
from bench.result import FlowResult, MigrationResult, PredictionResult, RoundResult
from bench.units import format_bit_rate, format_bytes

MAX_BUDGETS: Final = 40
MAX_ROUNDS: Final = 500


def budgets(flows: Sequence[FlowResult]) -> Figure:
    """One stacked bar for each flow: where its outage went; the sum beside it."""
    shown = [flow for flow in flows if flow.budget][:MAX_BUDGETS]
    names = [label(flow.name) for flow in shown]
    stages = list(dict.fromkeys(part.stage for flow in shown for part in flow.budget))
    data: list[dict[str, Any]] = []
    for stage in stages:
        spent = [sum(part.ns for part in flow.budget if part.stage == stage) for flow in shown]
        if not any(spent):
            continue
        data.append(
            {
                "type": "bar",
                "orientation": "h",
                "name": label(stage),
                "y": names,
                "x": [ms(ns) for ns in spent],
                "marker": {"color": STAGES.get(stage, MUTED), "line": {"width": 0.5, "color": "--card"}},
                "hovertext": [
                    f"<b>{name}</b><br>{label(stage)}: {duration(ns)}"
                    + (f" ({ns / flow.outage_ns:.0%})" if flow.outage_ns else "")
                    for name, ns, flow in zip(names, spent, shown, strict=True)
                ],
                "hovertemplate": "%{hovertext}<extra></extra>",
            }
        )
    sums = [
        {
            "x": ms(flow.budget_sum_ns or 0),
            "y": name,
            "text": f"  {duration(flow.budget_sum_ns)}" + ("" if flow.budget_ok else " (doubtful)"),
            "xanchor": "left",
            "showarrow": False,
            "font": {"size": 12, "color": INK},
        }
        for name, flow in zip(names, shown, strict=True)
    ]
    longest = max((ms(flow.budget_sum_ns or 0) for flow in shown), default=1.0)
    return figure(
        data,
        92 + 38 * len(shown) + 24,
        barmode="stack",
        xaxis=axis("ms without an answer", range=[0, longest * 1.3 or 1]),
        yaxis=axis(autorange="reversed", type="category"),
        annotations=sums,
        legend={"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom", "traceorder": "normal", "font": {"size": 11}},
    )


def rounds(items: Sequence[RoundResult]) -> Figure:
    """Pages of each round and what was dirty after it; rates on the second axis."""
    shown = items[:MAX_ROUNDS]
    x = [f"{number}{' (paused)' if item.paused else ''}" for number, item in enumerate(shown, 1)]
    took = [max(1, item.end_ns - item.start_ns) for item in shown]
    sent = [item.bytes_sent * 8 * NS_PER_S / ns for item, ns in zip(shown, took, strict=True)]
    dirty = [
        None if item.paused else item.dirty_pages_after * PAGE_BYTES * 8 * NS_PER_S / ns
        for item, ns in zip(shown, took, strict=True)
    ]

    def rate(name: str, values: Sequence[float | None], color: str, dash: str) -> dict[str, Any]:
        return {
            "type": "scatter",
            "mode": "lines+markers",
            "name": name,
            "x": x,
            "y": [None if value is None else max(value, 1) / 1e6 for value in values],
            "yaxis": "y2",
            "line": {"color": color, "dash": dash, "width": 1.5},
            "marker": {"size": 6},
            "hovertext": ["" if value is None else format_bit_rate(round(value)) for value in values],
            "hovertemplate": f"{name}: %{{hovertext}}<extra></extra>",
        }

    def bars(name: str, values: Sequence[int], color: str) -> dict[str, Any]:
        return {
            "type": "bar",
            "name": name,
            "x": x,
            "y": list(values),
            "marker": {"color": color},
            "hovertemplate": f"round %{{x}}<br>{name}: %{{y:,}}<extra></extra>",
        }

    return figure(
        [
            bars("pages to send", [item.pages for item in shown], "--p2"),
            bars("dirty after", [item.dirty_pages_after for item in shown], "--n3"),
            rate("throughput", sent, ACCENT, "solid"),
            rate("dirty rate", dirty, "--bad", "dot"),
        ],
        340,
        barmode="group",
        xaxis=axis("round", type="category"),
        yaxis=axis("pages", type="log", rangemode="tozero", exponentformat="power", dtick=1),
        yaxis2=axis("Mbit/s", overlaying="y", side="right", showgrid=False, type="log", dtick=1),
        legend={"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom", "font": {"size": 11}},
    )


@dataclass(frozen=True)
class _Compared:
    """One quantity: the least possible, predicted, measured."""

    name: str
    least: int | None
    predicted: int | None
    measured: int | None
    show: Callable[[int], str]


def prediction(migration: MigrationResult, found: PredictionResult) -> Figure:
    """What was predicted, what was measured, and the least that was possible: each relative to what was measured."""
    guessed, least = found.predicted, found.bound
    rows = [
        _Compared(
            "transfer",
            least.total_ns if least else None,
            guessed.total_ns if guessed else None,
            found.transfer_ns,
            duration,
        ),
        _Compared(
            "downtime",
            least.downtime_ns if least else None,
            guessed.downtime_ns if guessed else None,
            migration.downtime_ns,
            duration,
        ),
        _Compared(
            "bytes",
            least.bytes if least else None,
            guessed.bytes if guessed else None,
            migration.bytes_sent,
            format_bytes,
        ),
    ]
    rows = [row for row in rows if row.measured]
    data: list[dict[str, Any]] = []
    highest = [100.0]
    for name, color, member in (
        ("lower bound", "--c1", "least"),
        ("predicted", "--n2", "predicted"),
        ("measured", ACCENT, "measured"),
    ):
        values: list[int | None] = [getattr(row, member) for row in rows]
        shares = [
            None if value is None else value / (row.measured or 1) * 100
            for value, row in zip(values, rows, strict=True)
        ]
        highest += [value for value in shares if value is not None]
        data.append(
            {
                "type": "bar",
                "name": name,
                "x": [row.name for row in rows],
                "y": shares,
                "text": ["" if value is None else row.show(value) for value, row in zip(values, rows, strict=True)],
                "textposition": "outside",
                "textangle": 0,
                "cliponaxis": False,
                "marker": {"color": color},
                "hovertemplate": f"{name}: %{{text}}<extra></extra>",
            }
        )
    return figure(
        data,
        320,
        barmode="group",
        xaxis=axis(type="category"),
        yaxis=axis("% of what was measured", range=[0, 1.12 * max(highest)]),
        legend={"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom", "font": {"size": 11}},
    )
