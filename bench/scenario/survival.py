"""The survival laboratory: which outages meet which connections."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator

from bench import units
from bench.scenario.values import FROM_LIST, DurationNs, Spec, parse_keepalive, quantity


def _distinct(value: object) -> object:
    items = tuple(value) if isinstance(value, (list, tuple)) else value
    if isinstance(items, tuple) and (not items or len(set(map(str, items))) != len(items)):
        raise ValueError("a list of one or more different values")
    return items


_DISTINCT = BeforeValidator(_distinct)


class SurvivalSpec(Spec):
    """What ``bench survival`` maps: every one of ``outages`` against every variant of a connection.

    The first value of each list is the base; each further one is a variant that differs from the base in that alone.
    ``patterns``: ``stream`` (a message of ``size`` bytes every ``interval``), ``request`` (one outstanding, the next
    ``interval`` after the answer), ``idle`` (nothing is sent), ``connect`` (connections being made).
    ``sends_first``: the end whose data is lost. ``rto_min`` is the route's; ``probes``: tail-loss probes
    (``tcp_early_retrans``); ``user_timeout`` is TCP_USER_TIMEOUT, ``"0s"`` for none; ``keepalive`` is
    idle/interval/count such as ``"1s/1s/5"``, on idle connections. ``warmup``: how long connections run before their
    outage begins.
    """

    outages: Annotated[tuple[DurationNs, ...], _DISTINCT] = tuple(
        int(seconds * 10**9) for seconds in (0.06, 0.21, 0.5, 1, 3.5, 10, 20, 29, 40, 60)
    )
    patterns: Annotated[tuple[Literal["stream", "request", "idle", "connect"], ...], _DISTINCT] = (
        "stream",
        "request",
        "connect",
    )
    sends_first: Annotated[tuple[Literal["client", "guest"], ...], _DISTINCT] = ("client", "guest")
    retries2: Annotated[tuple[Annotated[int, Field(ge=1, le=30)], ...], _DISTINCT] = (15, 8, 5)
    user_timeout: Annotated[tuple[DurationNs, ...], _DISTINCT] = (0, 10 * 10**9)
    rto_min: Annotated[tuple[DurationNs, ...], _DISTINCT] = (200_000_000, 20_000_000)
    probes: Annotated[tuple[bool, ...], _DISTINCT] = (True, False)
    congestion: Annotated[tuple[Annotated[str, Field(pattern=r"^[a-z0-9_]{1,15}$")], ...], _DISTINCT] = ("cubic", "bbr")
    keepalive: Annotated[tuple[str, ...], FROM_LIST] = ("1s/1s/5",)
    repeats: Annotated[int, Field(ge=1, le=100)] = 1
    interval: DurationNs = 50_000_000
    size: Annotated[int, quantity(units.parse_bytes), Field(ge=16, le=1400)] = 200
    warmup: DurationNs = 3 * 10**9
    max_cells: Annotated[int, Field(ge=1, le=4096)] = 1000

    @field_validator("outages")
    @classmethod
    def _outages(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if max(value) > 600 * 10**9:
            raise ValueError("outages up to '600s'")
        return value

    @field_validator("rto_min")
    @classmethod
    def _rto_min(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if min(value) < 10**6 or max(value) > 10**9:
            raise ValueError("durations from '1ms' to '1s'")
        return value

    @field_validator("interval")
    @classmethod
    def _interval(cls, value: int) -> int:
        if not 10**6 <= value <= 10**10:
            raise ValueError("a duration from '1ms' to '10s'")
        return value

    @field_validator("keepalive")
    @classmethod
    def _keepalive(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            parse_keepalive(text)
        return value
