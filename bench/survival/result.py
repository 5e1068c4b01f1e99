"""The result of ``bench survival``: ``survival.json``, one versioned document. Durations in ns, None: not observed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bench.errors import ResultError
from bench.output import SURVIVAL
from bench.result import Trust

SCHEMA: Literal["migration-bench/survival/1"] = "migration-bench/survival/1"
MAX_BYTES = 64 << 20

Fate = Literal["survived", "died", "not observed"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Theory(_Part):
    """What theory says of a cell.

    ``stall_ns``: until data gets through, or until the connection is given up (``died``). ``textbook_ns``: RFC 6298
    alone with the measured timer, no tail-loss probe, the data lost as the outage began.
    """

    fate: Fate
    stall_ns: int
    textbook_ns: int | None = None


class CellResult(_Part):
    """One connection and its outage.

    ``variant`` is a label, ``details`` what it stands for. ``stall_ns``: from the beginning of the outage until data
    got through again, or until the connection died with ``error``. ``tries``: transmissions that the outage swallowed,
    of the end that sent first; ``tries_ns`` are their times after its beginning. ``beyond_ns``: how much longer the
    stall was than the outage, which a shorter timer would have saved. ``in_flight``: data was lost that had to be sent
    again.
    ``reason``: why theory and measurement differ, where that is known.
    """

    variant: str
    details: dict[str, Any]
    outage_ns: int
    repeat: int
    fate: Fate
    stall_ns: int | None
    error: str = ""
    rto_ns: int | None = None
    rtt_ns: int | None = None
    tries: int = 0
    tries_ns: list[int] = Field(default_factory=list)
    beyond_ns: int | None = None
    in_flight: bool = True
    theory: Theory | None = None
    agrees: bool | None = None
    reason: str = ""


class VariantResult(_Part):
    """One kind of connection over all outages: the longest that it survived, the shortest that it did not, and what
    theory says is the longest that it could survive.
    """

    variant: str
    longest_survived_ns: int | None = None
    shortest_died_ns: int | None = None
    longest_survivable_ns: int | None = None


class SurvivalResult(_Part):
    """A whole map. ``agreement``: the share of the cells with data in flight in which theory and measurement agree
    within ``tolerance`` (5 % or 20 ms, whichever is larger).
    """

    schema_version: Literal["migration-bench/survival/1"] = Field(default=SCHEMA, alias="schema")
    title: str = ""
    cells: list[CellResult] = Field(default_factory=list)
    variants: list[VariantResult] = Field(default_factory=list)
    agreement: float | None = None
    compared: int = 0
    environment: dict[str, Any] = Field(default_factory=dict)
    trust: Trust = Trust()

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    def write(self, directory: Path) -> Path:
        """Write ``survival.json`` into *directory*; returns its path."""
        path = directory / SURVIVAL
        path.write_text(json.dumps(self.model_dump(mode="json", by_alias=True), indent=1) + "\n", encoding="utf-8")
        return path

    @classmethod
    def read(cls, directory: Path) -> SurvivalResult:
        """:raises ResultError: missing, too large, not JSON, or not a map of this version."""
        path = directory / SURVIVAL
        try:
            with path.open("rb") as file:
                data = file.read(MAX_BYTES + 1)
            if len(data) > MAX_BYTES:
                raise ResultError(f"{path}: more than {MAX_BYTES >> 20} MiB")
            return cls.model_validate_json(data)
        except OSError as error:
            raise ResultError(f"{path}: {error.strerror}", "name a directory that `bench survival` wrote") from None
        except ValidationError as problem:
            first = problem.errors()[0]
            raise ResultError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
