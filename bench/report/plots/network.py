"""Figures of the network: the wave of relearning over the topology, and the flows' throughput through a migration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from bench.analysis.brownout import Brownout
from bench.clock import NS_PER_MS, NS_PER_S
from bench.records import StructuredArray
from bench.report.layout import MAX_NODES, edges_of, positions
from bench.report.plots.parts import (
    ACCENT,
    BAD,
    LINE,
    MUTED,
    SERIES,
    Figure,
    array,
    axis,
    figure,
    label,
    milliseconds,
    ms,
)
from bench.report.text import after, count, duration
from bench.result import MigrationResult, RunResult

BIN_NS: Final = 20 * NS_PER_MS
MAX_BINS: Final = 1500


def relearning(result: RunResult, migration: MigrationResult) -> Figure | None:
    """The topology; each switch in the colour of the moment at which it was stable. None: nothing to draw."""
    edges = edges_of(link.name for link in result.links)
    nodes = list(dict.fromkeys(node for edge in edges for node in edge))
    if not nodes or len(nodes) > MAX_NODES:
        return None
    places = positions(nodes, edges)
    switches = {switch.name: switch for switch in migration.relearn.switches}
    resumed = migration.resume_ns
    x: list[float | None] = []
    y: list[float | None] = []
    for a, b in edges:
        x += [places[a][0], places[b][0], None]
        y += [places[a][1], places[b][1], None]
    data: list[dict[str, Any]] = [
        {"type": "scatter", "mode": "lines", "x": x, "y": y, "line": {"color": LINE, "width": 2.5}, "hoverinfo": "skip"}
    ]
    others = [node for node in nodes if node not in switches]
    roles = {migration.source: "source", migration.destination: "destination"}
    colors = {"source": BAD, "destination": "--good"}
    data.append(
        {
            "type": "scatter",
            "mode": "markers+text",
            "x": [places[node][0] for node in others],
            "y": [places[node][1] for node in others],
            "text": [f"{label(node)}<br><i>{roles[node]}</i>" if node in roles else label(node) for node in others],
            "textposition": "bottom center",
            "marker": {
                "symbol": "circle",
                "size": 15,
                "color": [colors.get(roles.get(node, ""), MUTED) for node in others],
            },
            "hoverinfo": "skip",
        }
    )
    seen = [node for node in nodes if node in switches]
    waited = [_waited_ms(migration, node) for node in seen]
    known = [value for value in waited if value is not None]
    if seen:
        data.append(
            {
                "type": "scatter",
                "mode": "markers+text",
                "x": [places[node][0] for node in seen],
                "y": [places[node][1] for node in seen],
                "text": [f"<b>{label(node)}</b><br>{after(switches[node].stable_ns, resumed)}" for node in seen],
                "textposition": "top center",
                "marker": {
                    "symbol": "square",
                    "size": 26,
                    "color": [MUTED if value is None else value for value in waited]
                    if len(known) == len(waited)
                    else MUTED,
                    "colorscale": [[0, "--wave0"], [1, "--wave1"]],
                    "cmin": min(known, default=0.0),
                    "cmax": max([*known, min(known, default=0.0) + 0.001]),
                    "showscale": len(known) == len(waited) > 1,
                    "colorbar": {
                        "title": {"text": "ms after the resume", "side": "right"},
                        "thickness": 10,
                        "outlinewidth": 0,
                    },
                },
                "hovertext": [
                    f"<b>{label(node)}</b><br>stable {after(switches[node].stable_ns, resumed)}<br>"
                    f"{count(switches[node].frames_to_old_port, 'frame')} to the old port<br>"
                    f"{switches[node].frames_flooded:,} flooded<br>flapped back {switches[node].flapped:,} times"
                    for node in seen
                ],
                "hovertemplate": "%{hovertext}<extra></extra>",
            }
        )
    hidden = {"visible": False, "fixedrange": True}
    return figure(
        data,
        320,
        showlegend=False,
        xaxis={**hidden, "range": [-0.16, 1.16]},
        yaxis={**hidden, "range": [-0.35, 1.35]},
        dragmode=False,
    )


def _waited_ms(migration: MigrationResult, name: str) -> float | None:
    stable = next((switch.stable_ns for switch in migration.relearn.switches if switch.name == name), None)
    return None if stable is None or migration.resume_ns is None else (stable - migration.resume_ns) / NS_PER_MS


def throughputs(
    migration: MigrationResult, records: Mapping[str, StructuredArray], cut: Sequence[Brownout], zero_ns: int
) -> Figure | None:
    """Each flow's throughput in percent of what it was before, around the migration. None: no flow was kept."""
    begin, end = _around(migration)
    width = max(BIN_NS, (end - begin) // MAX_BINS)
    data: list[dict[str, Any]] = []
    most = 0.0
    for number, item in enumerate(cut):
        if not item.before_bps:
            continue
        arrived = records[item.flow]["received_ns"]
        good = arrived > 0
        edges = np.arange(begin, min(end, int(arrived.max())) + 1, width)
        if len(edges) < 2:
            continue
        sizes, _ = np.histogram(arrived[good], bins=edges, weights=records[item.flow]["bytes"][good].astype(np.float64))
        rates = sizes * 8 * NS_PER_S / width
        most = max(most, float(np.percentile(rates / item.before_bps * 100, 99)))
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": label(item.flow),
                "x": array(milliseconds(edges[:-1], zero_ns)),
                "y": array(rates / item.before_bps * 100),
                "customdata": array(rates / 1e6),
                "line": {"width": 1.6, "shape": "hv", "color": SERIES[number % len(SERIES)]},
                "hovertemplate": f"{label(item.flow)}<br>%{{x:.0f}} ms<br>%{{y:.0f}} % of before, "
                "%{customdata:.2f} Mbit/s<extra></extra>",
            }
        )
    if not data:
        return None
    shapes, notes = _phases(migration, cut, zero_ns)
    return figure(
        data,
        360,
        xaxis=axis("ms from the guest's resume", range=[ms(begin - zero_ns), ms(end - zero_ns)]),
        yaxis=axis("% of before", range=[0, min(400.0, max(130.0, most * 1.15))]),
        shapes=shapes,
        annotations=notes,
        legend={"orientation": "h", "x": 0, "y": -0.2, "yanchor": "top"},
        hovermode="closest",
        margin={"l": 8, "r": 8, "t": 44, "b": 8},
    )


def _around(migration: MigrationResult) -> tuple[int, int]:
    """From before the copying until after the outages; longer migrations with more around them."""
    copying = [phase.start_ns for phase in migration.phases if phase.name == "precopy"]
    begin = copying[0] if copying else migration.start_ns
    ends = [flow.outage_end_ns for flow in migration.flows if flow.outage_end_ns is not None]
    end = max([migration.resume_ns or migration.end_ns, *ends])
    margin = max(400 * NS_PER_MS, (end - begin) // 4)
    return begin - margin, end + margin


def _phases(
    migration: MigrationResult, cut: Sequence[Brownout], zero_ns: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    copying = [phase for phase in migration.phases if phase.name == "precopy"]
    ends = [flow.outage_end_ns for flow in migration.flows if flow.outage_end_ns is not None]
    ramps = [item.ramp_ns for item in cut if item.ramp_ns is not None]
    stretches: list[tuple[str, int, int, str, str]] = []
    if copying and migration.pause_ns is not None:
        stretches.append(("brownout", copying[0].start_ns, migration.pause_ns, "--n2", "right"))
    if migration.pause_ns is not None and ends:
        stretches.append(("blackout", migration.pause_ns, max(ends), BAD, "center"))
        if max(ramps, default=0):
            stretches.append(("ramp", max(ends), max(ends) + max(ramps), ACCENT, "left"))
    shapes = [
        {
            "type": "rect",
            "xref": "x",
            "yref": "paper",
            "x0": ms(begin - zero_ns),
            "x1": ms(end - zero_ns),
            "y0": 0,
            "y1": 1,
            "fillcolor": color,
            "opacity": 0.12,
            "line": {"width": 0},
            "layer": "below",
        }
        for _name, begin, end, color, _anchor in stretches
    ]
    notes = [
        {
            "text": f"{name} {duration(end - begin)}",
            "x": ms(_anchored(anchor, begin, end) - zero_ns),
            "xref": "x",
            "xanchor": anchor,
            "y": 1,
            "yref": "paper",
            "yanchor": "bottom",
            "yshift": 17 if anchor == "center" else 2,
            "showarrow": False,
            "font": {"size": 11, "color": MUTED},
        }
        for name, begin, end, _color, anchor in stretches
    ]
    return shapes, notes


def _anchored(anchor: str, begin: int, end: int) -> int:
    return {"right": end, "left": begin}.get(anchor, (begin + end) // 2)
