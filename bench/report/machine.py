"""What a run ran on, for a terminal: links as asked, applied and measured, and the environment.

These members of a result are open dictionaries (:class:`~bench.result.LinkResult`), so every look into them is guarded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from bench.report.text import NOT_SEEN, clean, duration, heading, share, show, table
from bench.result import LinkResult
from bench.units import format_bit_rate, format_bytes

_COMPARED = ("rate_bps", "delay_ns", "jitter_ns", "loss")


def print_links(links: Sequence[LinkResult], console: Console) -> None:
    """One line for each link."""
    mechanisms = {link.mechanism for link in links}
    by = f"by {clean(mechanisms.pop())}; " if len(mechanisms) == 1 else ""
    heading(console, "Links", f"{by}two values: out / back")
    rows = table(console, "link", *([] if by else ["by"]), "asked", "applied", left=4)
    rows.add_column("measured rate", justify="right", no_wrap=True)
    rows.add_column("round trip (asked)", justify="right", no_wrap=True)
    notes: dict[str, list[str]] = {}
    for link in links:
        asked = _both(link.asked, _impairment)
        applied = "as asked" if _same(link.asked, link.applied) else _both(link.applied, _impairment)
        rows.add_row(
            clean(link.name),
            *([] if by else [clean(link.mechanism)]),
            asked,
            applied,
            _both(link.measured, _rate),
            _round_trip(link.measured),
            style="" if link.ok else "bold yellow",
        )
        for note in _notes(link):
            notes.setdefault(note, []).append(link.name)
    show(console, rows)
    for note, names in notes.items():
        console.print(Text(clean(f"{', '.join(names)}: {note}"), style="dim"))


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _number(values: Mapping[str, Any], key: str) -> int | float | None:
    value = values.get(key)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _both(values: Mapping[str, Any], describe: Callable[[Mapping[str, Any]], str]) -> str:
    """Both directions by *describe*; one text when they are the same."""
    out, back = describe(_mapping(values.get("forward"))), describe(_mapping(values.get("backward")))
    if out == back:
        return out
    (out_value, _, out_unit), (_, _, back_unit) = out.partition(" "), back.partition(" ")
    return f"{out_value if out_unit == back_unit else out} / {back}"


def _impairment(direction: Mapping[str, Any]) -> str:
    if not direction:
        return NOT_SEEN
    rate, delay, jitter, loss = (_number(direction, name) for name in _COMPARED)
    parts = [format_bit_rate(int(rate)) if rate else "unshaped"]
    if delay is not None:
        parts.append(duration(int(delay)) + (f" ± {duration(int(jitter))}" if jitter else ""))
    if loss:
        parts.append(f"loss {loss:.3%}")
    return ", ".join(parts)


def _same(asked: Mapping[str, Any], applied: Mapping[str, Any]) -> bool:
    """Everything that was asked for and can be compared is what is applied."""
    for direction in ("forward", "backward"):
        want, have = _mapping(asked.get(direction)), _mapping(applied.get(direction))
        if not want or not have:
            return False
        if any((want.get(name) or 0) != (have.get(name) or 0) for name in _COMPARED):
            return False
    return True


def _rate(direction: Mapping[str, Any]) -> str:
    rate = _number(direction, "rate_bps")
    return NOT_SEEN if rate is None else format_bit_rate(int(rate))


def _round_trip(measured: Mapping[str, Any]) -> str:
    trip = _mapping(measured.get("round_trip"))
    median, asked = _number(trip, "median_ns"), _number(trip, "asked_ns")
    if median is None:
        return NOT_SEEN
    return duration(int(median)) + (f" ({duration(int(asked))})" if asked is not None else "")


def _notes(link: LinkResult) -> list[str]:
    found = [_mapping(link.measured.get(direction)).get("rate_note") for direction in ("forward", "backward")]
    found.append(link.measured.get("note"))
    return list(dict.fromkeys(note for note in found if isinstance(note, str) and note))


def print_environment(environment: Mapping[str, Any], console: Console) -> None:
    """One paragraph: kernel, machine, datapath, delay mechanism, controller, versions, CPU load during the run."""
    parts: list[str] = []
    for key, label in (("kernel", "kernel"), ("distribution", ""), ("cpu_model", "")):
        if environment.get(key):
            parts.append(f"{label} {environment[key]}".strip())
    cpus, memory = _number(environment, "cpu_count"), _number(environment, "memory_bytes")
    if cpus is not None:
        parts.append(f"{cpus} CPUs")
    if memory is not None:
        parts.append(format_bytes(int(memory)))
    if environment.get("datapath"):
        parts.append(f"Open vSwitch datapath: {environment['datapath']}")
    delay = environment.get("delay")
    if delay:
        parts.append(f"links by {', '.join(map(str, delay)) if isinstance(delay, list | tuple) else delay}")
    if environment.get("controller"):
        parts.append(f"controller {environment['controller']}")
    parts += [f"{name} {version}" for name, version in _mapping(environment.get("versions")).items() if version]
    cpu = _mapping(environment.get("cpu"))
    if cpu:
        load = f"CPU load {share(_number(cpu, 'mean'))} mean, {share(_number(cpu, 'max'))} at most"
        steal = _number(cpu, "steal")
        parts.append(load + (f", {share(steal)} stolen" if steal else ""))
    heading(console, "Environment")
    console.print(Text(clean("; ".join(parts)) or NOT_SEEN))
