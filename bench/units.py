"""Text with units to integers and back: "1Gbit", "40MiB/s", "300ms", "0.5%".

Inside the bench every quantity is an integer whose name carries the unit (``rate_bps``, ``ram_bytes``, ``delay_ns``);
text with units lives in scenarios and reports only. Every parser raises :class:`ValueError` with a message that says
what is allowed; :mod:`bench.scenario` turns it into a ``ScenarioError`` with file and key.
"""

from __future__ import annotations

import re
from fractions import Fraction

_NUMBER = re.compile(r"^\s*(\d+(?:\.\d+)?|\.\d+)\s*([A-Za-zµ%/]*)\s*$")

_DURATION_NS = {"ns": 1, "us": 10**3, "µs": 10**3, "ms": 10**6, "s": 10**9, "min": 60 * 10**9}
_BYTES = {
    "B": 1,
    "kB": 10**3,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
}
_BITS = {"bit": 1, "kbit": 10**3, "Kbit": 10**3, "Mbit": 10**6, "Gbit": 10**9}


def _split(text: object, allowed: str) -> tuple[Fraction, str]:
    match = _NUMBER.match(text) if isinstance(text, str) and len(text) <= 64 else None
    if match is None:
        raise ValueError(allowed)
    return Fraction(match[1]), match[2]


def _parse(text: object, table: dict[str, int], allowed: str) -> int:
    number, unit = _split(text, allowed)
    if unit not in table:
        if number == 0 and not unit:
            return 0
        raise ValueError(allowed)
    value = number * table[unit]
    if value > 2**62:
        raise ValueError(f"{allowed}, not so large")
    return round(value)


def parse_duration_ns(text: object) -> int:
    """``"300ms"`` to ns. Units: ns, us, ms, s, min."""
    return _parse(text, _DURATION_NS, "a duration with its unit such as '300ms' (ns, us, ms, s, min)")


def parse_bytes(text: object) -> int:
    """``"64MiB"`` to bytes. Units: B, kB, MB, GB (powers of 1000), KiB, MiB, GiB (powers of 1024)."""
    return _parse(text, _BYTES, "a size with its unit such as '64MiB' (B, kB, MB, GB, KiB, MiB, GiB)")


def parse_bit_rate(text: object) -> int:
    """``"1Gbit"`` (or ``"1Gbit/s"``) to bit/s; byte rates such as ``"10MB/s"`` are converted."""
    allowed = "a rate with its unit such as '1Gbit' or '100Mbit' (bit, kbit, Mbit, Gbit, or bytes as 'MB/s')"
    number, unit = _split(text, allowed)
    base = unit.removesuffix("/s")
    if base in _BITS:
        scale = _BITS[base]
    elif base in _BYTES and unit.endswith("/s"):
        scale = 8 * _BYTES[base]
    elif number == 0 and not unit:
        return 0
    else:
        raise ValueError(allowed)
    value = round(number * scale)
    if value > 2**62:
        raise ValueError(f"{allowed}, not so large")
    return value


def parse_byte_rate(text: object) -> int:
    """``"40MiB/s"`` to bytes/s; bit rates such as ``"100Mbit"`` are converted (rounded down)."""
    allowed = "a byte rate with its unit such as '40MiB/s' (B/s, kB/s, MB/s, KiB/s, MiB/s, GiB/s)"
    number, unit = _split(text, allowed)
    base = unit.removesuffix("/s")
    if base in _BYTES and unit.endswith("/s"):
        scale = Fraction(_BYTES[base])
    elif base in _BITS:
        scale = Fraction(_BITS[base], 8)
    elif number == 0 and not unit:
        return 0
    else:
        raise ValueError(allowed)
    value = int(number * scale)
    if value > 2**62:
        raise ValueError(f"{allowed}, not so large")
    return value


def parse_fraction(text: object) -> float:
    """``"0.5%"`` or a plain number 0..1 to a fraction 0..1."""
    allowed = "a share from 0 to 1, or a percentage such as '0.5%'"
    if isinstance(text, int | float) and not isinstance(text, bool):
        value = float(text)
    else:
        number, unit = _split(text, allowed)
        if unit not in ("", "%"):
            raise ValueError(allowed)
        value = float(number) / (100 if unit == "%" else 1)
    if not 0 <= value <= 1:
        raise ValueError(allowed)
    return value


def _trim(value: float, unit: str, digits: int = 3) -> str:
    text = f"{value:.{digits}f}".rstrip("0").rstrip(".")
    return f"{text} {unit}"


def format_duration(ns: int) -> str:
    """ns to a short text such as ``"283.4 ms"``, the unit chosen by size."""
    sign, ns = ("-", -ns) if ns < 0 else ("", ns)
    if ns >= 10**9:
        return sign + _trim(ns / 10**9, "s")
    if ns >= 10**6:
        return sign + _trim(ns / 10**6, "ms", 2)
    if ns >= 10**3:
        return sign + _trim(ns / 10**3, "us", 1)
    return sign + f"{ns} ns"


def format_bytes(count: int) -> str:
    """Bytes to a short text in powers of 1024 such as ``"37.5 MiB"``."""
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if abs(count) >= scale:
            return _trim(count / scale, unit, 2)
    return f"{count} B"


def format_bit_rate(bps: int) -> str:
    """bit/s to a short text such as ``"933 Mbit/s"``."""
    for unit, scale in (("Gbit/s", 10**9), ("Mbit/s", 10**6), ("kbit/s", 10**3)):
        if abs(bps) >= scale:
            return _trim(bps / scale, unit, 2)
    return f"{bps} bit/s"
