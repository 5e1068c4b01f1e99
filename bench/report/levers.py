"""What each lever of a migration saved and cost, in words: from the ``cost`` of its result alone.

A result may have come from anywhere: what is missing there, or no number, is left out here. See
:mod:`bench.migration.cost` for what the engines write.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from rich.console import Console
from rich.text import Text

from bench.report.text import clean, count, duration, heading, share, show, table
from bench.units import format_bytes

HEAD: Final = ("lever", "saved", "added", "CPU time", "time", "how")
REMARK: Final = "what each saved and cost; CPU: of both engines; time: an engine waited"
MAX_TEXT: Final = 80

Cost = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class LeverRow:
    """One lever of one migration; None where it has no such quantity.

    :param saved_bytes: that did not cross.
    :param added_bytes: that crossed because of it.
    :param cpu_ns: of all processors, the guest's own left out.
    :param time_ns: that an engine waited, or what *how* says.
    :param how: the rest, in words.
    """

    name: str
    saved_bytes: int | None = None
    added_bytes: int | None = None
    cpu_ns: int | None = None
    time_ns: int | None = None
    how: str = ""

    def cells(self) -> tuple[str, ...]:
        """As text, in the order of :data:`HEAD`."""
        return (
            self.name,
            "" if self.saved_bytes is None else format_bytes(self.saved_bytes),
            "" if self.added_bytes is None else format_bytes(self.added_bytes),
            "" if self.cpu_ns is None else duration(self.cpu_ns),
            "" if self.time_ns is None else duration(self.time_ns),
            self.how,
        )


def lever_rows(cost: Cost) -> list[LeverRow]:
    """One row for each lever that was on."""
    return [row(item) for name, row in _ROWS.items() if isinstance(item := cost.get(name), dict)]


def print_levers(cost: Cost, console: Console) -> None:
    """The table of one migration, if there is anything to say."""
    found = lever_rows(cost)
    if not found:
        return
    heading(console, "Levers", REMARK)
    rows = table(console, *HEAD[:-1])
    for row in found:
        rows.add_row(*row.cells()[:-1])
    show(console, rows)
    for row in found:
        console.print(Text(f"{row.name}: {row.how}"))


def _number(item: Cost, key: str) -> int | None:
    value = item.get(key)
    return round(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _numbers(item: Cost, key: str) -> list[int]:
    value = item.get(key)
    return [each for each in value if isinstance(each, int)] if isinstance(value, list) else []


def _text(item: Cost, key: str) -> str:
    return clean(str(item.get(key) or ""))[:MAX_TEXT]


def _joined(*parts: str) -> str:
    return ", ".join(part for part in parts if part)


def _pages(item: Cost, key: str, what: str) -> str:
    number = _number(item, key)
    return f"{count(number, 'page')} {what}" if number else ""


def _zero_pages(item: Cost) -> LeverRow:
    how = _pages(item, "pages", "as numbers") or "no zero page was found"
    return _row("zero pages", item, how)


def _compression(item: Cost) -> LeverRow:
    before, after = _number(item, "input_bytes"), _number(item, "output_bytes")
    how = _text(item, "codec")
    if (level := _number(item, "level")) is not None:
        how += f" {level}"
    if before and after is not None:
        how = _joined(how, f"{format_bytes(before)} became {format_bytes(after)} ({after / before:.0%})")
    return _row("compression", item, _joined(how, _pages(item, "plain_pages", "sent plain")))


def _delta(item: Cost) -> LeverRow:
    rate, cache = item.get("hit_rate"), _number(item, "cache_bytes")
    hits = f"{share(rate)} hits" if isinstance(rate, (int, float)) else "nothing was sent twice"
    how = _joined(
        hits,
        f"cache of {format_bytes(cache)}" if cache is not None else "",
        _pages(item, "overflows", "changed too much"),
        _pages(item, "refused", "found no room"),
    )
    return _row("delta", item, how)


def _unpacking(item: Cost) -> LeverRow:
    return _row("unpacking", item, "at the destination, of compression and delta")


def _streams(item: Cost) -> LeverRow:
    pages, full = _numbers(item, "pages"), _numbers(item, "window_limited_ns")
    total = sum(pages)
    how = _joined(
        f"{_number(item, 'count') or len(pages)} connections",
        f"the busiest carried {max(pages) / total:.0%}" if total else "",
        f"{sum(_numbers(item, 'retransmits')):,} retransmits",
        f"windows full for up to {duration(max(full))}" if any(full) else "",
    )
    return LeverRow("streams", time_ns=_number(item, "joined_ns"), how=f"{how}; its time is until all had joined")


def _throttle(item: Cost) -> LeverRow:
    on_ns, lost_ns = _number(item, "throttled_ns"), _number(item, "guest_cpu_ns")
    if not item.get("steps"):
        return LeverRow("auto-converge", time_ns=0, how="there was no need to hold the guest back")
    how = f"guest held back by up to {_number(item, 'percent') or 0} %, by its {_text(item, 'mechanism')}"
    lost = "" if lost_ns is None else f"{duration(lost_ns)} of its CPU time withheld"
    return LeverRow("auto-converge", time_ns=on_ns, how=f"{_joined(how, lost)}; its time is how long")


def _dirty_limit(item: Cost) -> LeverRow:
    rates = [_number(item, key) for key in ("limit_bytes_per_s", "most_bytes_per_s", "last_bytes_per_s")]
    limit, most, last = ("?" if rate is None else f"{format_bytes(rate)}/s" for rate in rates)
    held = "; its time is how long the guest was held back" if _number(item, "capped_ns") is not None else ""
    return LeverRow(
        "dirty limit", time_ns=_number(item, "capped_ns"), how=f"{limit} asked, {most} at most, {last} at last{held}"
    )


def _max_bandwidth(item: Cost) -> LeverRow:
    return LeverRow(
        "max bandwidth", time_ns=_number(item, "time_ns"), how="its time was waited so as not to send faster"
    )


def _announce_delay(item: Cost) -> LeverRow:
    return LeverRow(
        "announce delay", time_ns=_number(item, "time_ns"), how="its time is how much later the announcement began"
    )


def _security(item: Cost) -> LeverRow:
    here = _number(item, "cpu_ns")
    there = item.get("destination")
    beyond = _number(there, "cpu_ns") if isinstance(there, dict) else None
    refused = _number(there, "refused") if isinstance(there, dict) else None
    handshake = _number(item, "handshake_ns")
    how = _joined(
        count(_number(item, "connections") or 0, "connection"),
        f"handshake {duration(handshake)}" if handshake is not None else "",
        f"{duration(beyond)} of the CPU time at the destination" if beyond is not None else "",
        f"{count(refused, 'stranger')} refused" if refused else "",
    )
    cpu_ns = None if here is None else here + (beyond or 0)
    return LeverRow(
        _text(item, "carrier").upper() or "security",
        added_bytes=_number(item, "overhead_bytes"),
        cpu_ns=cpu_ns,
        time_ns=_number(item, "time_ns"),
        how=how,
    )


def _row(name: str, item: Cost, how: str) -> LeverRow:
    """Of a lever that saves bytes; what it saved may be less than nothing."""
    saved = _number(item, "saved_bytes")
    added = -saved if saved is not None and saved < 0 else None
    return LeverRow(
        name,
        saved_bytes=None if saved is None else max(0, saved),
        added_bytes=added,
        cpu_ns=_number(item, "cpu_ns"),
        time_ns=_number(item, "time_ns"),
        how=how,
    )


_ROWS: Final[Mapping[str, Callable[[Cost], LeverRow]]] = {
    "zero_pages": _zero_pages,
    "compression": _compression,
    "delta": _delta,
    "unpacking": _unpacking,
    "streams": _streams,
    "throttle": _throttle,
    "dirty_limit": _dirty_limit,
    "max_bandwidth": _max_bandwidth,
    "announce_delay": _announce_delay,
    "security": _security,
}
