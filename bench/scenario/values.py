"""What every spec is made of: its base, and quantities as text with units that become integers."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo

from bench import units

PAGE_BYTES = 4096


def quantity(parse: Any) -> BeforeValidator:
    """A quantity is text with its unit; only a stored scenario (:func:`restore_scenario`) holds plain integers."""

    def convert(value: object, info: ValidationInfo) -> object:
        stored = bool(info.context) and isinstance(value, int) and not isinstance(value, bool)
        return value if stored or value is None else parse(value)

    return BeforeValidator(convert)


DurationNs = Annotated[int, quantity(units.parse_duration_ns), Field(ge=0)]
Bytes = Annotated[int, quantity(units.parse_bytes), Field(ge=0)]
BitRate = Annotated[int, quantity(units.parse_bit_rate), Field(ge=0)]
Bandwidth = Annotated[
    int, quantity(lambda value: 0 if value == "unlimited" else units.parse_bit_rate(value)), Field(ge=0)
]
ByteRate = Annotated[int, quantity(units.parse_byte_rate), Field(ge=0)]
Share = Annotated[float, BeforeValidator(units.parse_fraction)]
# TOML has lists; a frozen scenario holds tuples.
FROM_LIST = BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)
# IPv4 needs 576 of every link; Ethernet's jumbo frames carry 9000, and switches let some more pass.
Mtu = Annotated[int, Field(ge=576, le=9216)]
NodeName = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]{0,7}$")]


def parse_keepalive(text: str) -> tuple[int, int, int]:
    """``"1s/1s/5"`` to TCP_KEEPIDLE and TCP_KEEPINTVL in s, TCP_KEEPCNT.

    :raises ValueError: when it is none, or beyond what tcp(7) takes.
    """
    parts = text.split("/")
    if len(parts) == 3 and parts[2].isdecimal():
        idle_ns, interval_ns = units.parse_duration_ns(parts[0]), units.parse_duration_ns(parts[1])
        numbers = (idle_ns // 10**9, interval_ns // 10**9, int(parts[2]))
        whole = idle_ns % 10**9 == interval_ns % 10**9 == 0
        if whole and all(1 <= item <= 32767 for item in numbers) and numbers[2] <= 127:
            return numbers
    raise ValueError("idle/interval/count with whole seconds and a count from 1 to 127, such as '1s/1s/5'")


class Spec(BaseModel):
    """Base of all specs: frozen, no unknown keys, no silent conversion."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, populate_by_name=True, defer_build=True)
