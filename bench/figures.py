"""Figures: any number of a migration's result by a short name, with its dimension. Pure.

A figure is one of :data:`NAMED`, or a path into the result (:mod:`bench.result`) whose steps are joined by dots:

=========================================  ================================================================
``downtime``, ``total``, ``outage.p99``    named ones; ``outage`` is that of every flow, ``relearn`` of every switch
``flows.died``                             flows that were not alive at the end
``flows.tcp-request.outage``               a member (``outage_ns``; the unit's suffix may be left out) of one flow
``flows.lost.sum``                         that member of all flows, made one number by an aggregate
``flows.udp-echo.budget.relearned``        one stage of one flow's outage
``prediction.efficiency.total``            any other member; those of the run itself too: ``environment.cpu.mean``
=========================================  ================================================================

Aggregates of several numbers: ``max``, ``min``, ``mean``, ``median``, ``sum``, ``p0`` to ``p100`` (linear between
neighbours). Several numbers without an aggregate stay several: a bound has to hold for each.
"""

from __future__ import annotations

import contextlib
import functools
import re
import statistics
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from pydantic import BaseModel

from bench import units
from bench.result import MigrationResult, RunResult

Dimension = Literal["duration", "size", "bit rate", "byte rate", "number"]
Numbers = list[float]

MAX_NUMBERS: Final = 100_000
_PERCENTILE: Final = re.compile(r"p(100|[0-9]{1,2})")
_NAMES_OF_ITEMS: Final = ("name", "stage")


@dataclass(frozen=True)
class Figure:
    """A named figure.

    :param what: one line for people.
    :param of: its numbers in one migration; none where it was not observed.
    :param better: which direction is an improvement.
    """

    dimension: Dimension
    what: str
    of: Callable[[MigrationResult], Numbers]
    better: Literal["less", "more"] = "less"


def _seen(*values: float | None) -> Numbers:
    return [value for value in values if value is not None]


def _relearn(migration: MigrationResult) -> Numbers:
    resumed = migration.resume_ns
    if resumed is None:
        return []
    return _seen(*(switch.stable_ns - resumed for switch in migration.relearn.switches if switch.stable_ns is not None))


def _died(migration: MigrationResult) -> Numbers:
    return [sum(not flow.alive for flow in migration.flows)]


def _throughput(migration: MigrationResult) -> Numbers:
    transfer = migration.prediction.transfer_ns if migration.prediction is not None else None
    return [migration.bytes_sent * 8e9 / transfer] if transfer else []


def _slowdown(kind: str, migration: MigrationResult) -> Numbers:
    medians = ((one.before.median_ns, one.copying.median_ns) for one in migration.interference if one.kind == kind)
    return [copying / before for before, copying in medians if before and copying is not None]


NAMED: Final[Mapping[str, Figure]] = {
    "total": Figure("duration", "from set-up to the handover", lambda one: _seen(one.total_ns)),
    "transfer": Figure(
        "duration",
        "the total without the set-up",
        lambda one: _seen(one.prediction.transfer_ns if one.prediction is not None else None),
    ),
    "downtime": Figure("duration", "the guest was paused", lambda one: _seen(one.downtime_ns)),
    "sent": Figure("size", "bytes between the engines", lambda one: [one.bytes_sent]),
    "throughput": Figure("bit rate", "bytes sent over the transfer's time", _throughput, "more"),
    "rounds": Figure("number", "pre-copy rounds, the final copy included", lambda one: [len(one.rounds)]),
    "outage": Figure(
        "duration", "a flow got no answer, of each flow", lambda one: _seen(*(flow.outage_ns for flow in one.flows))
    ),
    "relearn": Figure("duration", "from the resume until a switch is stable, of each switch", _relearn),
    "slowdown.flows": Figure(
        "number", "median latency while copying over before, of each flow", functools.partial(_slowdown, "flow")
    ),
    "slowdown.disks": Figure(
        "number", "median latency while copying over before, of each disk", functools.partial(_slowdown, "disk")
    ),
    "flows.died": Figure("number", "flows that were not alive at the end", _died),
}


@functools.lru_cache(maxsize=1024)
def figure_dimension(figure: str) -> Dimension | None:
    """What *figure* is measured in; None where only a result can say (open tables such as ``environment``).

    :raises ValueError: there is no such figure; the message says what there is, as one phrase.
    """
    steps, _aggregate = _split(figure)
    named = NAMED.get(".".join(steps))
    if named is not None:
        return named.dimension
    model: Any = RunResult
    of_list = False
    for position, step in enumerate(steps):
        members = model.model_fields
        member = _member(members, step)
        if member is None and of_list:
            of_list = False  # the name or the number of an item
            continue
        if member is None:
            known = ", ".join(dict.fromkeys((*NAMED, *members) if position == 0 else members))
            after = f"after {'.'.join(steps[:position])!r} " if position else ""
            raise ValueError(f"a figure of the result, {after}one of {known}")
        models = _models(members[member].annotation)
        if not models:
            rest = steps[position + 1 :]
            return None if rest or dict in _origins(members[member].annotation) else _dimension_of_key(member)
        model = models[0]
        of_list = list in _origins(members[member].annotation)
    return "duration" if "ns" in getattr(model, "model_fields", {}) else None


def values(figure: str, migration: MigrationResult, run: RunResult | None = None) -> Numbers:
    """The numbers of *figure* in *migration*, or of the run where the migration has no such member; [] = not observed.

    :raises ValueError: as :func:`figure_dimension`.
    """
    steps, aggregate = _split(figure)
    named = NAMED.get(".".join(steps))
    if named is not None:
        found = named.of(migration)
    else:
        figure_dimension(figure)
        holder = migration if _member(type(migration).model_fields, steps[0]) is not None else run
        found = [] if holder is None else _walk(holder, steps)
        if aggregate and not found and holder is not None:  # a member may be called like an aggregate
            return _walk(holder, (*steps, aggregate))
    return _aggregated(found, aggregate)


def format_value(value: float | None, dimension: Dimension | None) -> str:
    """*value* as text with its unit."""
    if value is None:
        return "not seen"
    if dimension == "duration":
        return units.format_duration(round(value))
    if dimension == "size":
        return units.format_bytes(round(value))
    if dimension == "bit rate":
        return units.format_bit_rate(round(value))
    if dimension == "byte rate":
        return f"{units.format_bytes(round(value))}/s"
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.4g}"


def parse_value(text: str, dimension: Dimension | None) -> tuple[float, Dimension]:
    """A bound such as ``"300ms"`` in a figure's dimension; by its own unit where that is unknown.

    :raises ValueError: with what is allowed, as one phrase.
    """
    text = text.strip()
    parsers: dict[Dimension, Callable[[object], float]] = {
        "number": _parse_number,  # first: a bare 0 has no unit
        "duration": units.parse_duration_ns,
        "size": units.parse_bytes,
        "byte rate": _parse_byte_rate,
        "bit rate": units.parse_bit_rate,
    }
    if dimension == "byte rate":
        return float(units.parse_byte_rate(text)), dimension
    if dimension is not None:
        return float(parsers[dimension](text)), dimension
    for known, parse in parsers.items():
        with contextlib.suppress(ValueError):
            return float(parse(text)), known
    raise ValueError("a number, or a quantity with its unit such as '300ms', '64MiB', '1Gbit'")


def _parse_byte_rate(text: object) -> int:
    """Bytes alone: :func:`bench.units.parse_byte_rate` takes bits too."""
    if not str(text).endswith("B/s"):
        raise ValueError("bytes for each second")
    return units.parse_byte_rate(text)


def _parse_number(text: object) -> float:
    word = str(text)
    if word in ("true", "false"):
        return float(word == "true")
    match = re.fullmatch(r"(\d{1,18}(?:\.\d{1,18})?)(%?)", word)
    if match is None:
        raise ValueError("a plain number, or a percentage such as '90%'")
    return float(match[1]) / (100 if match[2] else 1)


# paths


@functools.lru_cache(maxsize=1024)
def _split(figure: str) -> tuple[tuple[str, ...], str]:
    """The steps of a figure's path, and its aggregate ('' for none)."""
    steps = tuple(figure.split("."))
    if not all(steps) or len(figure) > 200:
        raise ValueError("the name of a figure such as 'downtime' or 'flows.tcp-request.outage'")
    last = steps[-1]
    if len(steps) > 1 and (last in _AGGREGATES or _PERCENTILE.fullmatch(last)):
        return steps[:-1], last
    return steps, ""


def _member(members: typing.Container[str], step: str) -> str | None:
    """The member that *step* names: by itself, or without its unit."""
    if step in members:
        return step
    others = (f"{step}_ns", f"{step}_bps", f"{step}_bytes_per_s", f"bytes_{step}")
    return next((candidate for candidate in others if candidate in members), None)


def _origins(annotation: Any) -> tuple[Any, ...]:
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        return tuple(found for part in typing.get_args(annotation) for found in _origins(part))
    return (origin or annotation,)


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in typing.get_args(annotation) for model in _models(part)]


def _dimension_of_key(key: str) -> Dimension:
    if key.endswith("_ns") or key == "ns":
        return "duration"
    if key.endswith("bytes_per_s"):
        return "byte rate"
    if key.startswith("bytes") or key.endswith("bytes"):
        return "size"
    return "bit rate" if key.endswith("_bps") else "number"


def _walk(value: object, steps: Sequence[str]) -> Numbers:
    """Every number at the end of *steps*."""
    if isinstance(value, BaseModel):
        members = type(value).model_fields
        if not steps:
            return _walk(getattr(value, "ns"), ()) if "ns" in members else []  # noqa: B009 - of whatever model has it
        member = _member(members, steps[0])
        return [] if member is None else _walk(getattr(value, member), steps[1:])
    if isinstance(value, bool | int | float):
        return [] if steps else [float(value)]
    if isinstance(value, Mapping):
        if not steps:
            return _walk(value["ns"], ()) if "ns" in value else []
        key = _member(value, steps[0])
        return [] if key is None else _walk(value[key], steps[1:])
    if isinstance(value, list | tuple):
        if steps:
            named = [item for item in value if any(getattr(item, name, None) == steps[0] for name in _NAMES_OF_ITEMS)]
            if named:
                return [number for item in named for number in _walk(item, steps[1:])]
            if steps[0].isdecimal() and len(steps[0]) < 9:
                at = int(steps[0])
                return _walk(value[at], steps[1:]) if at < len(value) else []
        return [number for item in value[:MAX_NUMBERS] for number in _walk(item, steps)]
    return []


# aggregates


def percentile(numbers: Sequence[float], share: float) -> float:
    """Linear between neighbours (Hyndman and Fan's type 7, numpy's default). *numbers* are not empty."""
    ordered = sorted(numbers)
    at = share * (len(ordered) - 1)
    below = int(at)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (at - below)


_AGGREGATES: Final[Mapping[str, Callable[[Sequence[float]], float]]] = {
    "max": max,
    "min": min,
    "mean": statistics.fmean,
    "median": statistics.median,
    "sum": sum,
}


def aggregate_of(name: str) -> Callable[[Sequence[float]], float]:
    """The function that an aggregate's *name* stands for. :raises ValueError: it is none."""
    if name in _AGGREGATES:
        return _AGGREGATES[name]
    match = _PERCENTILE.fullmatch(name)
    if match is None:
        raise ValueError(f"one of {', '.join(_AGGREGATES)}, p0 to p100")
    share = int(match[1]) / 100
    return lambda numbers: percentile(numbers, share)


def _aggregated(numbers: Numbers, name: str) -> Numbers:
    return [aggregate_of(name)(numbers)] if name and numbers else numbers
