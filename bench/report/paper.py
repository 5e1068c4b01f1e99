"""Single figures for papers, as PDF, SVG or PNG: drawn by Matplotlib, which needs no browser."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

from bench.clock import NS_PER_S
from bench.errors import ResultError
from bench.recording import Recording
from bench.records import PROGRESS_KINDS, StructuredArray
from bench.report.decimate import Detail, latencies, throughput
from bench.report.layout import MAX_NODES, edges_of, positions
from bench.report.plots.timeline import origin_ns
from bench.report.text import PAGE_BYTES, after, clean, duration
from bench.result import MigrationResult, RunResult

WIDTH_IN: Final = 6.4
_STYLE: Final = {
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e3e6ec",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
    "text.parse_math": False,
}
_STAGES: Final[Mapping[str, str]] = {
    "onset": "#cfdcf7",
    "pause": "#a4bff2",
    "final pages": "#5c8ce8",
    "device state": "#2f63c9",
    "storage": "#1f4796",
    "resume": "#7a6fd0",
    "port wired": "#f7d08a",
    "announce": "#eba52f",
    "relearned": "#d97b1a",
    "client's wait": "#3aa373",
    "reply": "#9cd3b5",
}
_PHASES: Final = ("#98a2b3", "#3b7ae0", "#d0342c", "#8a4fd3", "#5b3a94", "#17834f", "#d98a1a", "#0e8f9c")

Records = Mapping[str, StructuredArray]


def write_figures(recording: Recording, directory: Path, form: str) -> list[Path]:
    """Write every figure that *recording* has something for; returns the files.

    :param form: pdf, svg or png.
    :raises ResultError: the recording is broken, or *directory* can not be written.
    """
    result = recording.result
    found = {flow.name: recording.records(flow.host, flow.name) for flow in result.flows}
    records = {name: some for name, some in found.items() if some is not None and len(some)}
    written = []
    with mpl.rc_context(_STYLE):
        for name, draw in FIGURES.items():
            drawn = draw(result, records)
            if drawn is None:
                continue
            data = io.BytesIO()
            drawn.savefig(data, format=form, dpi=300, bbox_inches="tight", metadata=_metadata(form))
            path = directory / f"{name}.{form}"
            try:
                directory.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data.getvalue())
            except OSError as error:
                raise ResultError(f"{path}: {error.strerror or error}", "name another directory with -o") from None
            written.append(path)
    return written


def _metadata(form: str) -> dict[str, Any]:
    """No dates: the same result gives the same file."""
    return {"pdf": {"CreationDate": None}, "svg": {"Date": None}}.get(form, {})


def _figure(height_in: float) -> Figure:
    return Figure(figsize=(WIDTH_IN, height_in), layout="constrained")


def _one(result: RunResult) -> MigrationResult:
    """The migration with the longest outage."""
    return max(
        result.migrations or [result], key=lambda one: max((flow.outage_ns or 0 for flow in one.flows), default=0)
    )


def _budget(result: RunResult, _records: Records) -> Figure | None:
    flows = [flow for flow in result.flows if flow.budget][::-1][:40]
    if not flows:
        return None
    figure = _figure(0.9 + 0.3 * len(flows))
    axes = figure.subplots()
    left = np.zeros(len(flows))
    names = [clean(flow.name) for flow in flows]
    for stage in dict.fromkeys(part.stage for flow in reversed(flows) for part in flow.budget):
        spent = np.array([sum(part.ns for part in flow.budget if part.stage == stage) / 1e6 for flow in flows])
        if spent.any():
            axes.barh(names, spent, left=left, color=_STAGES.get(stage, "#888888"), label=clean(stage), height=0.65)
            left += spent
    for at, (flow, end) in enumerate(zip(flows, left, strict=True)):
        axes.text(end, at, f"  {duration(flow.budget_sum_ns)}", va="center")
    axes.set_xlabel("ms without an answer")
    axes.set_xlim(0, max(left.max(), 1e-6) * 1.18)
    axes.grid(axis="y", visible=False)
    figure.legend(loc="outside upper left", ncols=6, handlelength=1, columnspacing=1)
    return figure


def _rounds(result: RunResult, _records: Records) -> Figure | None:
    rounds = _one(result).rounds
    if not rounds:
        return None
    figure = _figure(2.6)
    axes = figure.subplots()
    x = np.arange(1, len(rounds) + 1)
    axes.bar(x - 0.2, [max(item.pages, 0.5) for item in rounds], 0.4, color="#3b7ae0", label="pages to send")
    axes.bar(x + 0.2, [max(item.dirty_pages_after, 0.5) for item in rounds], 0.4, color="#d97b1a", label="dirty after")
    axes.set(xlabel="round", ylabel="pages")
    _logarithmic(axes)
    axes.set_xticks(x if len(x) <= 30 else x[:: len(x) // 15])
    rates = axes.twinx()
    took = [max(1, item.end_ns - item.start_ns) for item in rounds]
    rates.plot(
        x,
        [item.bytes_sent * 8 * NS_PER_S / ns / 1e6 for item, ns in zip(rounds, took, strict=True)],
        "o-",
        color="#1b1f27",
        markersize=3,
        linewidth=1,
        label="throughput",
    )
    running = [at for at, item in enumerate(rounds) if not item.paused]
    rates.plot(
        x[running],
        [rounds[at].dirty_pages_after * PAGE_BYTES * 8 * NS_PER_S / took[at] / 1e6 for at in running],
        "s:",
        color="#d0342c",
        markersize=3,
        linewidth=1,
        label="dirty rate",
    )
    rates.set_ylabel("Mbit/s")
    rates.grid(visible=False)
    figure.legend(loc="outside upper left", ncols=4)
    return figure


def _timeline(result: RunResult, records: Records) -> Figure | None:
    """The switchover: phases, switches and each flow's requests on one axis."""
    one = _one(result)
    if one.pause_ns is None:
        return None
    zero = one.resume_ns if one.resume_ns is not None else one.pause_ns
    flows = [flow for flow in one.flows if flow.name in records][:8]
    figure = _figure(1.2 + 0.85 * len(flows))
    rows = figure.subplots(1 + len(flows), 1, sharex=True, squeeze=False, height_ratios=[1.1, *[1] * len(flows)])[:, 0]
    ends = [flow.outage_end_ns for flow in one.flows if flow.outage_end_ns is not None]
    last = max([zero, *ends])
    margin = max(5_000_000, (last - one.pause_ns) // 8)
    lanes = ["phases", *(clean(switch.name) for switch in one.relearn.switches)][:12]
    for number, phase in enumerate(one.phases):
        rows[0].barh(
            "phases",
            (phase.end_ns - phase.start_ns) / 1e6,
            left=(phase.start_ns - zero) / 1e6,
            color=_PHASES[number % 8],
            label=clean(phase.name),
        )
    for switch in one.relearn.switches[:11]:
        if one.relearn.announce_ns is not None and switch.stable_ns is not None:
            width = (switch.stable_ns - one.relearn.announce_ns) / 1e6
            rows[0].barh(clean(switch.name), width, left=(one.relearn.announce_ns - zero) / 1e6, color="#eba52f")
    rows[0].set_yticks(range(len(lanes)), lanes)
    rows[0].invert_yaxis()
    detail, window = Detail.around([one]), (one.pause_ns - margin, last + margin)
    for axes, flow in zip(rows[1:], flows, strict=True):
        _flow_row(axes, flow.kind, records[flow.name], detail, zero, window)
        axes.set_title(f"{clean(flow.name)}: outage {duration(flow.outage_ns)}", loc="left", fontsize=8, pad=2)
        if flow.outage_start_ns is not None and flow.outage_end_ns is not None:
            axes.axvspan(
                (flow.outage_start_ns - zero) / 1e6,
                (flow.outage_end_ns - zero) / 1e6,
                color="#3b7ae0",
                alpha=0.12,
                lw=0,
            )
    for axes in rows:
        axes.axvspan((one.pause_ns - zero) / 1e6, 0, color="#d0342c", alpha=0.08, lw=0)
    rows[-1].set_xlim((window[0] - zero) / 1e6, (window[1] - zero) / 1e6)
    rows[-1].set_xlabel("ms from the guest's resume at its destination")
    figure.legend(loc="outside upper left", ncols=7, handlelength=1, columnspacing=1)
    return figure


def _flow_row(
    axes: Any, kind: str, records: StructuredArray, detail: Detail, zero: int, window: tuple[int, int]
) -> None:
    if kind in PROGRESS_KINDS:
        shown = throughput(records, detail, *window)
        axes.stairs(shown.rates_bps / 1e6, (shown.edges_ns - zero) / 1e6, fill=True, color="#17834f", alpha=0.6)
        axes.set_ylabel("Mbit/s")
        return
    found = latencies(records, detail)
    axes.plot((found.sent_ns - zero) / 1e6, np.maximum(found.took_ns, 1000) / 1e6, ".", markersize=2, color="#2f6fed")
    if len(found.lost_ns):
        level = float(np.max(found.took_ns, initial=1e6)) / 1e6
        axes.plot((found.lost_ns - zero) / 1e6, np.full(len(found.lost_ns), level), "x", markersize=3, color="#d0342c")
    axes.set_ylabel("ms")
    _logarithmic(axes)


def _logarithmic(axes: Any) -> None:
    """With plain numbers: powers would need Matplotlib's mathematics, which is off so that no name is taken for it."""
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))


def _throughput(result: RunResult, records: Records) -> Figure | None:
    one = _one(result)
    shown = [flow for flow in one.flows if flow.name in records][:12]
    if not shown:
        return None
    figure = _figure(2.6)
    axes = figure.subplots()
    zero, no_detail = origin_ns(result), Detail(())
    begin, end = one.start_ns - NS_PER_S, one.end_ns + NS_PER_S
    for flow in shown:
        found = throughput(records[flow.name], no_detail, begin, end)
        axes.stairs(found.rates_bps / 1e6, (found.edges_ns - zero) / 1e6, label=clean(flow.name), linewidth=0.9)
    if one.pause_ns is not None and one.resume_ns is not None:
        axes.axvspan((one.pause_ns - zero) / 1e6, (one.resume_ns - zero) / 1e6, color="#d0342c", alpha=0.15, lw=0)
    axes.set(xlabel="ms from the guest's resume", ylabel="Mbit/s")
    figure.legend(loc="outside upper left", ncols=4)
    return figure


def _relearning(result: RunResult, _records: Records) -> Figure | None:
    edges = edges_of(link.name for link in result.links)
    nodes = list(dict.fromkeys(node for edge in edges for node in edge))
    one = _one(result)
    if not nodes or len(nodes) > MAX_NODES or not one.relearn.switches:
        return None
    places = positions(nodes, edges)
    figure = _figure(2.8)
    axes = figure.subplots()
    axes.axis("off")
    for a, b in edges:
        axes.plot([places[a][0], places[b][0]], [places[a][1], places[b][1]], color="#c4cad4", linewidth=1.5, zorder=1)
    stable = {switch.name: switch.stable_ns for switch in one.relearn.switches}
    for node in nodes:
        switch = node in stable
        axes.plot(
            *places[node],
            "s" if switch else "o",
            markersize=11 if switch else 7,
            color="#d97b1a" if switch else "#667085",
            zorder=2,
        )
        text = f"{clean(node)}\n{after(stable[node], one.resume_ns)}" if switch else clean(node)
        offset = (0, 8) if switch else (0, -8)
        axes.annotate(
            text, places[node], xytext=offset, textcoords="offset points", ha="center", va="bottom" if switch else "top"
        )
    axes.margins(0.15, 0.3)
    return figure


FIGURES: Final[Mapping[str, Callable[[RunResult, Records], Figure | None]]] = {
    "timeline": _timeline,
    "budget": _budget,
    "rounds": _rounds,
    "throughput": _throughput,
    "relearning": _relearning,
}
